//! The data of one screen: what `nlmfo watch --json` prints, one JSON object per line, `--record`
//! writes and `--replay` reads.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::detail::Detail;
use super::events::Event;
use super::judge::VipState;
use super::states::NotConnected;
use crate::foreign;
use crate::grace::report::WindowReport;
use crate::kernel::grace::SeenGrace;
use crate::observe::counters::Counters;
use crate::observe::counters::nfs4::Counters4;
use crate::observe::states::Counts4;

/// Name and version of the record. A reader refuses another.
pub const SCHEMA: &str = "nlmfo.watch/1";

/// One moment. Times are milliseconds; addresses are text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tick {
    /// [`SCHEMA`].
    pub schema: Cow<'static, str>,
    /// The node's name.
    #[serde(deserialize_with = "foreign::text")]
    pub node: String,
    /// Since 1970.
    pub at_ms: u64,
    /// Since the watch started, on a monotonic clock; rates and ages use it.
    pub elapsed_ms: u64,
    /// How often this watch updates, and at what cost.
    pub pace: Pace,
    /// Whether the node serves locks now.
    pub server: Server,
    /// lockd's and nfsd's own grace, of all addresses.
    pub kernel_grace: SeenGrace,
    /// The snapshot that the gauges are from.
    pub look: Look,
    /// In the order of their addresses.
    pub vips: Vec<VipTick>,
    /// NFSv4 clients without a connection, of the look.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_connected: Vec<NotConnected>,
    /// Those that have changed since the last tick; a VIP's detail holds until its
    /// next one, or until the VIP is gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<Detail>,
    /// What happened since the last tick.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<Event>,
    /// What could not be read, and why, as text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<String>,
}

/// The intervals of updates, and their cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// The requested interval.
    pub asked_ms: u64,
    /// The interval of counters and windows.
    pub tick_ms: u64,
    /// The interval of snapshots.
    pub look_ms: u64,
    /// The processor time of all of `nlmfo watch`, in percent of one core, since the
    /// last look.
    pub cpu_percent: f64,
}

impl Pace {
    /// Whether an interval is longer than requested.
    pub fn is_stretched(&self) -> bool {
        self.tick_ms.max(self.look_ms) > self.asked_ms
    }
}

/// Whether this node serves locks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Server {
    /// nfsd has threads, and lockd is loaded.
    #[default]
    Serving,
    /// nfsd has no thread, so lockd serves no client.
    Stopped,
    /// lockd is not loaded.
    NotLoaded,
}

/// The last snapshot, on which the gauges and details are based.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// When it was, on the clock of [`Tick::elapsed_ms`].
    pub at_ms: u64,
    /// Whether two walks of the kernel's lists agreed on every lock.
    pub exact: bool,
    /// What it cost, in microseconds of processor time.
    pub cost_us: u64,
}

/// One VIP. The gauges are those of [`Tick::look`], all else is of the tick.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VipTick {
    /// The server address.
    pub vip: IpAddr,
    /// Its state; the fields are those of the record itself.
    #[serde(flatten)]
    pub state: VipState,
    /// Locks of NFSv3 clients.
    pub held: u64,
    /// Their blocked requests.
    pub waiters: u64,
    /// Their DOS share reservations.
    pub shares: u64,
    /// That hold, wait for or have reserved something.
    pub clients: u64,
    /// Since the watch began.
    pub counters: Counters,
    /// NFSv4 calls since the watch began; null where they are not counted.
    #[serde(default)]
    pub nfs4: Option<Counters4>,
    /// What NFSv4 clients hold; null if it could not be read.
    #[serde(default)]
    pub held4: Option<Counts4>,
    /// Blocked requests of NFSv4 clients.
    #[serde(default)]
    pub waiters4: u64,
    /// What NFSv4 clients hold that were last seen on this VIP and are not connected now.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub last_held4: Counts4,
    /// Its packets to lockd are dropped.
    pub fenced: bool,
    /// Its grace, open, or ended and not yet forgotten by the kernel.
    pub window: Option<WindowReport>,
    /// The state number that was last sent to its clients.
    #[serde(default)]
    pub state_number: Option<u32>,
}

fn is_nothing(counts: &Counts4) -> bool {
    *counts == Counts4::default()
}

impl VipTick {
    /// Blocked requests of NFSv3 and NFSv4 clients.
    pub fn waiting(&self) -> u64 {
        self.waiters + self.waiters4
    }

    /// How much NFSv4 clients hold, as text; with `+N?` what those hold that were last seen here.
    pub fn held4_text(&self) -> String {
        let last = match self.last_held4.total() {
            0 => String::new(),
            last => format!("+{last}?"),
        };
        match self.held4 {
            Some(held) => format!("{}{last}", held.total()),
            None => "-".to_owned(),
        }
    }
}

impl Tick {
    /// The entry of a VIP, if there is one.
    pub fn vip(&self, vip: IpAddr) -> Option<&VipTick> {
        let place = self.vips.binary_search_by_key(&vip, |one| one.vip);
        place.ok().map(|place| &self.vips[place])
    }
}
