//! Decides the state of a VIP from one tick and a summary of earlier ticks.

use serde::{Deserialize, Serialize};

use crate::grace::audit::Verdict;
use crate::grace::report::WindowReport;
use crate::observe::counters::Counters;

/// The state of a VIP, shown as a symbol, a word and a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum VipState {
    /// lockd grants locks through it as usual.
    Serving,
    /// Its packets to lockd are dropped; its locks are still held.
    Fenced,
    /// lockd is dropping its locks.
    Releasing,
    /// Nothing is held any more, and nothing was granted since.
    Released,
    /// New locks are refused, and no lock is reclaimed yet.
    Grace {
        /// Until its end, in milliseconds.
        left_ms: u64,
    },
    /// In grace, and clients reclaim their locks.
    Reclaiming {
        /// Locks that were reclaimed in this grace.
        reclaimed: u64,
        /// Locks that were held before the release; none if this watch did not see it.
        expected: Option<u64>,
        /// Until the end of grace, in milliseconds.
        left_ms: u64,
    },
    /// The kernel itself is in grace, for every address.
    KernelGrace,
    /// Locks were granted in grace that were not reclaims.
    Violation {
        /// How many.
        locks: u64,
    },
    /// Grace may have failed: reclaims were refused, or lockd answered calls that the gate did not
    /// see.
    Doubtful {
        /// How many: reclaims that were refused, calls that the gate did not see, or calls that lockd
        /// did not answer.
        calls: u64,
    },
}

/// What is known of a VIP at a tick.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub held: u64,
    /// Waiters and shares.
    pub others: u64,
    pub counters: &'a Counters,
    pub fenced: bool,
    pub window: Option<&'a WindowReport>,
    pub kernel_grace: bool,
}

/// What is remembered of a VIP from tick to tick.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Locks held when it last served.
    held: u64,
    /// Held before the release that was seen.
    before: Option<u64>,
    /// A release is running or done, and the VIP does not serve again yet.
    leaving: Option<Leaving>,
    /// Counted up to the last tick.
    by_operator: u64,
    dropped: u64,
    /// The violations of the last window, until the next one opens.
    wrong: Option<VipState>,
}

/// A release as it was when it began.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    dropped: u64,
    grants: u64,
}

impl Memory {
    /// The VIP's state now.
    pub fn judge(&mut self, facts: &Facts) -> VipState {
        let dropped = facts.counters.released.total();
        let by_operator =
            facts.counters.released.unlock_ip + facts.counters.released.unlock_filesystem;
        let dropping = dropped > self.dropped;
        let ordered = by_operator > self.by_operator;
        let state = self.state(facts, dropping, ordered);
        self.dropped = dropped;
        self.by_operator = by_operator;
        state
    }

    fn state(&mut self, facts: &Facts, dropping: bool, ordered: bool) -> VipState {
        if let Some(window) = facts.window {
            match wrong(&window.verdict) {
                Some(state) => self.wrong = Some(state),
                None if window.open => self.wrong = None,
                None => {}
            }
        }
        if let Some(state) = self.wrong {
            return state;
        }
        if let Some(window) = facts.window.filter(|window| window.open) {
            self.leaving = None;
            let left_ms = window.left_ms;
            return match window.lockd.reclaimed {
                0 => VipState::Grace { left_ms },
                reclaimed => VipState::Reclaiming {
                    reclaimed,
                    expected: self.before,
                    left_ms,
                },
            };
        }
        let gone = facts.held + facts.others == 0;
        let grants = facts.counters.grants();
        if self.leaving.is_none() && (facts.fenced || ordered) {
            self.before = Some(self.held.max(facts.held));
            self.leaving = Some(Leaving {
                dropped: self.dropped,
                grants,
            });
        }
        if let Some(leaving) = self.leaving {
            let taken_again = !facts.fenced && grants > leaving.grants;
            let left_behind = !facts.fenced && !gone && !dropping;
            if !taken_again && !left_behind {
                return match (gone, facts.counters.released.total() > leaving.dropped) {
                    (true, _) => VipState::Released,
                    (false, true) => VipState::Releasing,
                    (false, false) => VipState::Fenced,
                };
            }
            self.leaving = None;
        }
        self.held = facts.held;
        self.before = None;
        match facts.kernel_grace {
            true => VipState::KernelGrace,
            false => VipState::Serving,
        }
    }
}

fn wrong(verdict: &Verdict) -> Option<VipState> {
    match *verdict {
        // A window that has ended shows the next state.
        Verdict::Enforced
        | Verdict::Quiet
        | Verdict::Opening
        | Verdict::EndedEarly
        | Verdict::Reloaded => None,
        Verdict::Violated { locks } => Some(VipState::Violation { locks }),
        Verdict::ReclaimsLost { locks } => Some(VipState::Doubtful { calls: locks }),
        Verdict::Unexplained { answered, seen } => Some(VipState::Doubtful {
            calls: answered.saturating_sub(seen),
        }),
        Verdict::Doubtful { unanswered } => Some(VipState::Doubtful { calls: unanswered }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grace::report::{Answers, GateCounts, Reach};

    fn window(open: bool, reclaimed: u64, verdict: Verdict) -> WindowReport {
        WindowReport {
            vip: "10.77.0.1".parse().unwrap(),
            reach: Reach::Vip,
            open,
            left_ms: if open { 43_000 } else { 0 },
            length_ms: 90_000,
            until_ns: 0,
            late: false,
            gate: GateCounts::default(),
            lockd: Answers {
                reclaimed,
                ..Answers::default()
            },
            violations: Vec::new(),
            verdict,
        }
    }

    /// A VIP's life, tick by tick.
    struct Vip {
        memory: Memory,
        counters: Counters,
        held: u64,
        fenced: bool,
    }

    impl Vip {
        fn with(held: u64) -> Self {
            let mut vip = Vip {
                memory: Memory::default(),
                counters: Counters::default(),
                held,
                fenced: false,
            };
            assert_eq!(vip.tick(None), VipState::Serving);
            vip
        }

        fn tick(&mut self, window: Option<&WindowReport>) -> VipState {
            self.memory.judge(&Facts {
                held: self.held,
                others: 0,
                counters: &self.counters,
                fenced: self.fenced,
                window,
                kernel_grace: false,
            })
        }
    }

    #[test]
    fn a_failover_from_the_fence_to_the_last_reclaim() {
        let mut vip = Vip::with(1000);
        vip.fenced = true;
        assert_eq!(vip.tick(None), VipState::Fenced);
        vip.counters.released.free_all = 300;
        vip.held = 700;
        assert_eq!(vip.tick(None), VipState::Releasing);
        vip.counters.released.free_all = 1000;
        vip.held = 0;
        assert_eq!(vip.tick(None), VipState::Released);
        assert_eq!(
            vip.tick(Some(&window(true, 0, Verdict::Quiet))),
            VipState::Grace { left_ms: 43_000 }
        );
        vip.counters.reclaimed = 812;
        assert_eq!(
            vip.tick(Some(&window(true, 812, Verdict::Enforced))),
            VipState::Reclaiming {
                reclaimed: 812,
                expected: Some(1000),
                left_ms: 43_000
            }
        );
        vip.fenced = false;
        vip.held = 1000;
        let over = window(false, 1000, Verdict::Enforced);
        assert_eq!(vip.tick(Some(&over)), VipState::Serving);
        assert_eq!(vip.tick(None), VipState::Serving);
    }

    #[test]
    fn an_unlock_ip_without_a_fence_is_a_release() {
        let mut vip = Vip::with(10);
        vip.counters.released.unlock_ip = 4;
        vip.held = 6;
        assert_eq!(vip.tick(None), VipState::Releasing);
        vip.counters.released.unlock_ip = 10;
        vip.held = 0;
        assert_eq!(vip.tick(None), VipState::Released);
        assert_eq!(vip.tick(None), VipState::Released);
        vip.counters.granted = 1;
        assert_eq!(vip.tick(None), VipState::Serving);
    }

    #[test]
    fn a_release_that_left_something_ends_where_nothing_moves_any_more() {
        let mut vip = Vip::with(10);
        vip.counters.released.unlock_ip = 4;
        vip.held = 6;
        assert_eq!(vip.tick(None), VipState::Releasing);
        assert_eq!(vip.tick(None), VipState::Serving);
    }

    #[test]
    fn a_rebooted_client_is_no_failover() {
        let mut vip = Vip::with(10);
        vip.counters.released.client_reboot = 10;
        vip.counters.released.free_all = 3;
        vip.held = 0;
        assert_eq!(vip.tick(None), VipState::Serving);
    }

    #[test]
    fn a_violation_stays_until_the_next_window() {
        let mut vip = Vip::with(1);
        let violated = window(true, 3, Verdict::Violated { locks: 1 });
        let violation = VipState::Violation { locks: 1 };
        assert_eq!(vip.tick(Some(&violated)), violation);
        assert_eq!(vip.tick(None), violation);
        let next = window(true, 0, Verdict::Quiet);
        assert_eq!(vip.tick(Some(&next)), VipState::Grace { left_ms: 43_000 });
    }

    #[test]
    fn a_takeover_of_what_was_held_elsewhere_has_no_expectation() {
        let mut vip = Vip::with(0);
        let state = vip.tick(Some(&window(true, 5, Verdict::Enforced)));
        let VipState::Reclaiming { expected, .. } = state else {
            panic!("{state:?}");
        };
        assert_eq!(expected, None);
    }
}
