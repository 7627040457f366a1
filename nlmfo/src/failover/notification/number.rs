//! The state number of a notification: claimed, or made from the clock if nothing can be
//! written.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Duration;

use crate::causes::chain;
use crate::kernel::netns;
use crate::notify::number::{Claim, Numbers};
use crate::notify::state_dir::StateDir;

/// The state number of all VIPs of a takeover, claimed when the first of them is up.
#[derive(Debug)]
pub struct Number {
    vips: Vec<IpAddr>,
    release: Option<String>,
    within: Duration,
    claimed: OnceLock<Claimed>,
}

/// A state number for SM_NOTIFY.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub number: u32,
    /// Why it was made from the clock, so that another node could use it too.
    pub state_number_error: Option<String>,
}

impl Number {
    pub fn new(vips: &[IpAddr], release: Option<String>, within: Duration) -> Self {
        Number {
            vips: vips.to_vec(),
            release,
            within,
            claimed: OnceLock::new(),
        }
    }

    pub fn get(&self, state: &StateDir) -> Claimed {
        let claim = || {
            let claim = Claim::new(&self.vips, netns::node(), self.release.clone());
            let numbers = Numbers::new(state);
            match numbers.continue_or_claim(&claim, self.within) {
                Ok(number) => Claimed {
                    number,
                    state_number_error: None,
                },
                // Clients that are not notified lose their locks. An unclaimed
                // number is almost certainly new to them.
                Err(error) => Claimed {
                    number: numbers.by_clock(&claim),
                    state_number_error: Some(chain(&error)),
                },
            }
        };
        self.claimed.get_or_init(claim).clone()
    }
}
