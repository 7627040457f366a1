//! What `nlmfo serve` exposes to Prometheus, and the events that it reports.
//!
//! [`text`] turns [`Facts`] into the text format, [`http`] serves it, [`watcher`] finds what happened
//! between two ticks, [`last`] reads the reports of failovers, and [`report`] writes events. A scrape
//! reads existing facts, and never causes a look at lockd.

pub mod http;
pub mod last;
pub mod report;
pub mod text;
pub mod watcher;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::observe::states::Counts4;
use crate::ticks::world::World;

use self::last::Last;

/// What is known of this node.
#[derive(Debug, Default)]
pub struct Facts {
    /// Of the build and the kernel.
    pub version: &'static str,
    pub commit: &'static str,
    pub kernel: String,
    /// The server of the node, as `nlmfo server list` names it; `node` is the node's own.
    pub server: String,
    /// Whether `unlock_ip` of this kernel is broken, if its code tells.
    pub unlock_ip_broken: Option<bool>,
    /// Services of this node, and whether they are ready.
    pub services: BTreeMap<String, bool>,
    /// Clients that could not be recorded in the client book: the buffer was full.
    pub dropped: u64,
    /// The last tick, and the details of each VIP.
    pub world: World,
    /// When it was taken.
    pub taken: Option<Instant>,
    /// Of each VIP, in seconds.
    pub oldest_waiters: BTreeMap<IpAddr, f64>,
    pub nfs4: Nfs4,
    pub last: Vec<Last>,
    /// Whether each client has metrics of its own.
    pub per_client: bool,
}

/// What NFSv4 clients hold.
#[derive(Debug, Default)]
pub struct Nfs4 {
    /// By the VIP that a client uses; a client of several VIPs is in each. No VIP for a client
    /// whose VIP is not known.
    pub held: BTreeMap<Option<IpAddr>, Counts4>,
    /// The longest time since a client of the VIP renewed its lease, in seconds.
    pub silent: BTreeMap<Option<IpAddr>, u64>,
}

/// The facts, which one thread makes and others read.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<Facts>>);

impl Shared {
    pub fn change<T>(&self, change: impl FnOnce(&mut Facts) -> T) -> T {
        // The facts are consistent even after a panic of a holder: each field is set at once.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The metrics as text.
    pub fn text(&self) -> String {
        self.change(|facts| text::render(facts, Instant::now()))
    }
}
