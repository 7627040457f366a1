//! The state number of a telling: claimed, or the clock's where nothing can be written.

use std::cell::OnceCell;
use std::net::IpAddr;
use std::time::Duration;

use crate::causes::chain;
use crate::kernel::netns;
use crate::notify::number::{Claim, Numbers};
use crate::notify::state_dir::StateDir;

/// The state number under which all of a takeover's VIPs are told of: claimed with the
/// first of them that is up.
#[derive(Debug)]
pub struct Number {
    vips: Vec<IpAddr>,
    release: Option<String>,
    within: Duration,
    claimed: OnceCell<Claimed>,
}

#[derive(Clone, Debug)]
pub struct Claimed {
    pub number: u32,
    /// Why it is the clock's, and nobody else is kept from it.
    pub unclaimed: Option<String>,
}

impl Number {
    pub fn new(vips: &[IpAddr], release: Option<String>, within: Duration) -> Self {
        Number {
            vips: vips.to_vec(),
            release,
            within,
            claimed: OnceCell::new(),
        }
    }

    pub fn get(&self, state: &StateDir) -> Claimed {
        let claim = || {
            let claim = Claim::new(&self.vips, netns::node(), self.release.clone());
            let numbers = Numbers::new(state);
            match numbers.continue_or_claim(&claim, self.within) {
                Ok(number) => Claimed {
                    number,
                    unclaimed: None,
                },
                // Clients that are not told lose their locks; a number that nobody else is
                // kept from is all but certain to be new to them.
                Err(error) => Claimed {
                    number: numbers.by_clock(&claim),
                    unclaimed: Some(chain(&error)),
                },
            }
        };
        self.claimed.get_or_init(claim).clone()
    }
}
