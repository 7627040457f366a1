//! What the counts of the gate and of lockd say about a window, decided from values
//! alone.
//!
//! The gate counts calls on their way in, the audit counts lockd's answers on their
//! way out. lockd can never have answered more than came in. If it answered less, calls
//! wait for it, or ended before it decided about the lock (no such file, a client that
//! cannot be monitored, statd that hangs): a reclaim among them is lost without a trace.

use std::fmt;

use nlmfo_common::gate::{Audited, Gated};
use serde::{Deserialize, Serialize};

/// What is to be said of a VIP's window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Verdict {
    /// lockd has answered calls, and as in grace.
    Enforced,
    /// Nobody has asked for a lock yet.
    Quiet,
    /// It is being opened: lockd still works on what reached it before.
    Opening,
    /// It ended before lockd was done with what had reached it before.
    EndedEarly,
    /// lockd was unloaded and loaded again.
    Reloaded,
    /// Locks were granted that were no reclaims.
    Violated { locks: u64 },
    /// Reclaims were refused because of grace: their clients have lost those locks.
    ReclaimsLost { locks: u64 },
    /// lockd answered more calls than the gate saw, or others.
    Unexplained { answered: u64, seen: u64 },
    /// The window is over, and lockd has not answered calls that the gate saw in it:
    /// among them may be reclaims, whose clients have lost those locks.
    Doubtful { unanswered: u64 },
}

impl Verdict {
    /// Whether grace is as it should be.
    pub fn is_good(&self) -> bool {
        matches!(self, Verdict::Enforced | Verdict::Quiet | Verdict::Opening)
    }
}

/// How far a window has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Open, and not audited yet.
    Opening,
    /// Open and audited. What lockd has not answered may still wait for it.
    Stood,
    /// Audited until its end. Whoever asks has waited until lockd was done with its queue.
    Ended,
    /// Ended, and never audited.
    EndedEarly,
    /// Audited until lockd was unloaded.
    Reloaded,
}

/// The verdict on one window.
pub fn judge(stage: Stage, gated: &Gated, audited: &Audited) -> Verdict {
    match stage {
        Stage::Opening => Verdict::Opening,
        Stage::EndedEarly => Verdict::EndedEarly,
        Stage::Reloaded => Verdict::Reloaded,
        Stage::Stood => judge_counts(gated, audited, 0),
        Stage::Ended => judge_counts(gated, audited, unanswered(gated, audited)),
    }
}

/// Calls that the gate saw and lockd's lock code has not answered.
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
                f.write_str("✓ enforced: every lock that was granted was a reclaim")
            }
            Verdict::Quiet => f.write_str("✓ nobody has asked for a lock"),
            Verdict::Opening => f.write_str("- not in force yet: it is being opened"),
            Verdict::Reloaded => f.write_str(
                "✗ NOT CONFIRMED: lockd was unloaded and loaded again meanwhile; what it granted \
                 before the gate had followed was not seen",
            ),
            Verdict::EndedEarly => {
                f.write_str("✗ NOT CONFIRMED: it was over before it was in force")
            }
            Verdict::Violated { locks: 1 } => {
                f.write_str("✗ VIOLATED: a lock was granted that was no reclaim")
            }
            Verdict::Violated { locks } => {
                write!(
                    f,
                    "✗ VIOLATED: {locks} locks were granted that were no reclaims"
                )
            }
            Verdict::ReclaimsLost { locks } => write!(
                f,
                "✗ NOT CONFIRMED: {locks} reclaims were refused because of grace; their clients \
                 have lost those locks"
            ),
            Verdict::Unexplained { answered, seen } => write!(
                f,
                "✗ NOT CONFIRMED: lockd answered {answered} calls, and the gate saw {seen} of them"
            ),
            Verdict::Doubtful { unanswered } => write!(
                f,
                "✗ NOT CONFIRMED: {unanswered} calls for locks reached this node and lockd's lock \
                 code answered none of them; reclaims among them are lost"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(gated: Gated, audited: Audited) -> Verdict {
        judge(Stage::Ended, &gated, &audited)
    }

    #[test]
    fn a_window_that_never_stood_is_not_confirmed() {
        let (gated, audited) = (Gated::default(), Audited::default());
        let opening = judge(Stage::Opening, &gated, &audited);
        assert!(
            opening.is_good() && opening != Verdict::Quiet,
            "{opening:?}"
        );
        let early = judge(Stage::EndedEarly, &gated, &audited);
        assert!(!early.is_good(), "{early:?}");
        assert!(!judge(Stage::Reloaded, &gated, &audited).is_good());
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
        assert_eq!(judge(Stage::Stood, &gated, &audited), Verdict::Enforced);
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
            judge(Stage::Stood, &gated, &audited),
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
