//! Decides what the counts of the gate and of lockd say about a window. Pure.
//!
//! The gate counts calls on their way in, the audit counts lockd's answers on their way
//! out. lockd can never answer more calls than came in. If it answered fewer, calls are
//! still waiting, or ended before lockd decided about the lock (no such file, a client that
//! cannot be monitored, statd that hangs): a reclaim among them is lost without a trace.

use std::fmt;

use nlmfo_common::gate::{Audited, Gated};
use serde::{Deserialize, Serialize};

/// The verdict on a VIP's window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Verdict {
    /// lockd answered calls, all as grace requires.
    Enforced,
    /// No client has asked for a lock yet.
    Quiet,
    /// It is being opened: lockd is still working on earlier calls.
    Opening,
    /// It ended before lockd had finished earlier calls.
    EndedEarly,
    /// lockd was unloaded and loaded again.
    Reloaded,
    /// Locks were granted that were not reclaims.
    Violated { locks: u64 },
    /// Reclaims were refused because of grace: their clients have lost those locks.
    ReclaimsLost { locks: u64 },
    /// lockd answered calls that the gate did not see.
    Unexplained { answered: u64, seen: u64 },
    /// The window is over and lockd has not answered all calls that the gate saw. Reclaims
    /// among them are lost.
    Doubtful { unanswered: u64 },
}

impl Verdict {
    /// Whether grace holds.
    pub fn is_good(&self) -> bool {
        matches!(self, Verdict::Enforced | Verdict::Quiet | Verdict::Opening)
    }
}

/// The state of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowState {
    /// Open, and not audited yet.
    Opening,
    /// Open and audited. Unanswered calls may still wait in lockd's queue.
    Stood,
    /// Ended and audited. The caller has waited until lockd had finished its queue.
    Ended,
    /// Ended, and never audited.
    EndedEarly,
    /// Audited until lockd was unloaded.
    Reloaded,
}

/// The verdict on one window.
pub fn judge(state: WindowState, gated: &Gated, audited: &Audited) -> Verdict {
    match state {
        WindowState::Opening => Verdict::Opening,
        WindowState::EndedEarly => Verdict::EndedEarly,
        WindowState::Reloaded => Verdict::Reloaded,
        WindowState::Stood => judge_counts(gated, audited, 0),
        WindowState::Ended => judge_counts(gated, audited, unanswered(gated, audited)),
    }
}

/// Calls that the gate saw and lockd's lock code did not answer.
pub fn unanswered(gated: &Gated, audited: &Audited) -> u64 {
    (gated.new + gated.reclaims + gated.left).saturating_sub(audited.answered)
}

fn judge_counts(gated: &Gated, audited: &Audited, unanswered: u64) -> Verdict {
    let answered = audited.reclaimed
        + audited.refused
        + audited.reclaims_refused
        + audited.reclaims_failed
        + audited.other;
    let seen = gated.new + gated.reclaims + gated.left + gated.repeated;
    if audited.violations > 0 {
        Verdict::Violated {
            locks: audited.violations,
        }
    } else if audited.reclaims_refused > 0 {
        Verdict::ReclaimsLost {
            locks: audited.reclaims_refused,
        }
    } else if answered > seen || audited.unseen > 0 {
        Verdict::Unexplained {
            answered,
            seen: seen.min(answered.saturating_sub(audited.unseen)),
        }
    } else if unanswered > 0 {
        Verdict::Doubtful { unanswered }
    } else if answered > 0 {
        Verdict::Enforced
    } else {
        Verdict::Quiet
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Enforced => {
                f.write_str("✓ enforced: every granted lock was a reclaim")
            }
            Verdict::Quiet => f.write_str("✓ no client has asked for a lock"),
            Verdict::Opening => f.write_str("- not in force yet: grace is being started"),
            Verdict::Reloaded => f.write_str(
                "✗ NOT CONFIRMED: lockd was reloaded during grace; locks that it granted before the gate \
                 followed it were not seen",
            ),
            Verdict::EndedEarly => {
                f.write_str("✗ NOT CONFIRMED: grace ended before it was in force")
            }
            Verdict::Violated { locks: 1 } => {
                f.write_str("✗ VIOLATED: 1 granted lock was not a reclaim")
            }
            Verdict::Violated { locks } => {
                write!(
                    f,
                    "✗ VIOLATED: {locks} granted locks were not reclaims"
                )
            }
            Verdict::ReclaimsLost { locks } => write!(
                f,
                "✗ NOT CONFIRMED: {locks} reclaims were refused; their clients have lost those locks"
            ),
            Verdict::Unexplained { answered, seen } => write!(
                f,
                "✗ NOT CONFIRMED: lockd answered {answered} calls, but the gate saw only {seen} of them"
            ),
            Verdict::Doubtful { unanswered } => write!(
                f,
                "✗ NOT CONFIRMED: lockd did not answer {unanswered} lock calls that reached this node; \
                 reclaims among them are lost"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(gated: Gated, audited: Audited) -> Verdict {
        judge(WindowState::Ended, &gated, &audited)
    }

    #[test]
    fn a_window_that_never_stood_is_not_confirmed() {
        let (gated, audited) = (Gated::default(), Audited::default());
        let opening = judge(WindowState::Opening, &gated, &audited);
        assert!(
            opening.is_good() && opening != Verdict::Quiet,
            "{opening:?}"
        );
        let early = judge(WindowState::EndedEarly, &gated, &audited);
        assert!(!early.is_good(), "{early:?}");
        assert!(!judge(WindowState::Reloaded, &gated, &audited).is_good());
        assert!(early.to_string().contains("NOT CONFIRMED"), "{early}");
    }

    #[test]
    fn answers_as_in_grace_are_grace() {
        let gated = Gated {
            new: 3,
            reclaims: 2,
            repeated: 1,
            ..Gated::default()
        };
        let audited = Audited {
            reclaimed: 2,
            refused: 4,
            answered: 5,
            ..Audited::default()
        };
        assert_eq!(judged(gated, audited), Verdict::Enforced);
        let quiet = judged(Gated::default(), Audited::default());
        assert_eq!(quiet, Verdict::Quiet);
    }

    #[test]
    fn calls_that_lockd_never_answered_make_an_ended_window_doubtful() {
        let gated = Gated {
            new: 8,
            reclaims: 1,
            ..Gated::default()
        };
        let audited = Audited {
            refused: 7,
            answered: 7,
            ..Audited::default()
        };
        let verdict = judged(gated, audited);
        assert_eq!(verdict, Verdict::Doubtful { unanswered: 2 });
        assert!(!verdict.is_good());
        assert_eq!(
            judge(WindowState::Stood, &gated, &audited),
            Verdict::Enforced
        );
        let none = judged(gated, Audited::default());
        assert_eq!(none, Verdict::Doubtful { unanswered: 9 });
    }

    #[test]
    fn an_answer_to_a_call_that_the_gate_never_saw_is_not_explained() {
        let gated = Gated {
            new: 5,
            ..Gated::default()
        };
        let audited = Audited {
            refused: 2,
            answered: 1,
            unseen: 1,
            ..Audited::default()
        };
        assert_eq!(
            judge(WindowState::Stood, &gated, &audited),
            Verdict::Unexplained {
                answered: 2,
                seen: 1
            }
        );
    }

    #[test]
    fn one_violation_outweighs_everything() {
        let gated = Gated {
            new: 100,
            ..Gated::default()
        };
        let audited = Audited {
            refused: 99,
            violations: 1,
            reclaims_refused: 1,
            ..Audited::default()
        };
        let verdict = judged(gated, audited);
        assert_eq!(verdict, Verdict::Violated { locks: 1 });
        assert!(!verdict.is_good());
        assert!(verdict.to_string().contains("VIOLATED"), "{verdict}");
    }

    #[test]
    fn a_reclaim_that_was_refused_is_not_a_success() {
        let audited = Audited {
            reclaimed: 1,
            reclaims_refused: 2,
            ..Audited::default()
        };
        let gated = Gated {
            reclaims: 3,
            ..Gated::default()
        };
        assert_eq!(judged(gated, audited), Verdict::ReclaimsLost { locks: 2 });
    }

    #[test]
    fn more_answers_than_calls_are_not_explained() {
        let gated = Gated {
            new: 1,
            left: 1,
            ..Gated::default()
        };
        let audited = Audited {
            refused: 2,
            other: 1,
            ..Audited::default()
        };
        let verdict = judged(gated, audited);
        assert_eq!(
            verdict,
            Verdict::Unexplained {
                answered: 3,
                seen: 2
            }
        );
        assert!(!verdict.is_good());
    }
}
