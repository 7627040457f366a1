//! What the end of a command that starts a whole server on the other node means.

use super::rsh::Finished;
use crate::exit::Exit;
use crate::foreign::Shown;

/// Whether the server serves there, and how the command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct There {
    /// The server serves there.
    pub serves: bool,
    pub exit: Exit,
}

/// `code`: the exit status of nlmfo there; none if it is not known.
pub fn judge(code: Option<i32>, has_report: bool) -> There {
    let serves = has_report && matches!(code, Some(0 | 3 | 5));
    There {
        serves,
        exit: match (serves, code) {
            (true, Some(0)) => Exit::Done,
            (true, Some(5)) => Exit::Incomplete,
            _ => Exit::NotConfirmed,
        },
    }
}

/// What a command on the other node printed, on one line.
pub fn said(finished: &Finished) -> String {
    let lines = finished.stdout.lines();
    let lines = lines.filter(|line| !line.starts_with("✓"));
    let out = lines.collect::<Vec<_>>().join("; ");
    let text = [&*finished.stderr, &*out].join(" ");
    text.trim().shown().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_report_says_that_it_serves_there() {
        let there = |serves, exit| There { serves, exit };
        for (code, has_report, expected) in [
            (Some(0), true, there(true, Exit::Done)),
            (Some(5), true, there(true, Exit::Incomplete)),
            (Some(3), true, there(true, Exit::NotConfirmed)),
            (Some(1), false, there(false, Exit::NotConfirmed)),
            (Some(4), false, there(false, Exit::NotConfirmed)),
            // It serves, or not: nobody said.
            (Some(0), false, there(false, Exit::NotConfirmed)),
            // ssh was cut off.
            (Some(255), false, there(false, Exit::NotConfirmed)),
            (None, false, there(false, Exit::NotConfirmed)),
        ] {
            assert_eq!(judge(code, has_report), expected, "{code:?} {has_report}");
        }
    }
}
