//! The fences and grace windows of VIPs in the kernel, and how long they last.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use nlmfo_common::gate::Window;

use super::GraceError;
use super::gate::Gate;
use super::window::{is_open, left, now};
use crate::causes::chain;

/// The fence and window of one VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub vip: IpAddr,
    /// Time left of its grace.
    pub grace: Option<Duration>,
    /// Time left of its fence.
    pub fence: Option<Duration>,
}

impl Standing {
    fn of(vip: IpAddr, window: &Window, now: u64) -> Option<Self> {
        let grace = is_open(window, now).then(|| left(window.until, now));
        let fence = (window.fenced_until > now).then(|| left(window.fenced_until, now));
        (grace.is_some() || fence.is_some()).then_some(Standing { vip, grace, fence })
    }
}

/// The VIPs with a fence or window; of all if none is named.
pub fn of(vips: &[IpAddr]) -> Result<Vec<Standing>, GraceError> {
    let Some(gate) = Gate::in_force()? else {
        return Ok(Vec::new());
    };
    let now = now();
    let mut standing: Vec<Standing> = (gate.windows()?.iter())
        .filter(|(vip, _)| vips.is_empty() || vips.contains(vip))
        .filter_map(|(vip, window)| Standing::of(*vip, window, now))
        .collect();
    standing.sort_unstable_by_key(|one| one.vip);
    Ok(standing)
}

/// [`of`] as text, for the end of a sentence.
pub fn words(vips: &[IpAddr]) -> String {
    match of(vips) {
        Ok(standing) if standing.is_empty() => "no fence or grace remains on this node".to_owned(),
        Ok(standing) => {
            let words: Vec<String> = standing.iter().map(Standing::to_string).collect();
            words.join(", ")
        }
        Err(error) => format!(
            "cannot tell whether a fence or grace remains: {}",
            chain(&error)
        ),
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: Duration| time.as_millis().div_ceil(1000);
        write!(f, "{} is ", self.vip)?;
        if let Some(fence) = self.fence {
            write!(f, "fenced for at most {} s", seconds(fence))?;
        }
        if let Some(grace) = self.grace {
            let and = if self.fence.is_some() { " and " } else { "" };
            write!(f, "{and}in grace for {} s", seconds(grace))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn standing(opened: u64, until: u64, fenced_until: u64) -> Option<String> {
        let window = Window {
            opened,
            until,
            fenced_until,
            ..Window::default()
        };
        let vip = "10.77.0.1".parse().unwrap();
        Standing::of(vip, &window, 10 * S).map(|one| one.to_string())
    }

    #[test]
    fn what_stands_is_said_with_its_time() {
        assert_eq!(standing(0, 0, 0), None);
        assert_eq!(standing(S, 10 * S, 10 * S), None);
        let fenced = "10.77.0.1 is fenced for at most 33 s";
        assert_eq!(standing(0, 0, 42 * S + S / 2).as_deref(), Some(fenced));
        let open = "10.77.0.1 is in grace for 20 s";
        assert_eq!(standing(S, 30 * S, 0).as_deref(), Some(open));
        let both = "10.77.0.1 is fenced for at most 1 s and in grace for 20 s";
        assert_eq!(standing(S, 30 * S, 11 * S).as_deref(), Some(both));
    }
}
