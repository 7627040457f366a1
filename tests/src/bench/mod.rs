//! What `cargo xtask bench` measures inside the virtual machine: what our probes
//! cost lockd's clients, what a snapshot costs, how long a release takes, what the
//! grace gate costs NFS, and what `nlmfo watch` takes of a core.
//!
//! The virtual machine's clock counts the instructions that it executes, unless `cargo xtask bench` is
//! told otherwise: then neither emulation nor other work of the host affects the numbers, and the same
//! work takes the same time in every run. They are still not the speed of a real machine, so every
//! number with a target is a ratio of two that were measured next to each other: the median of several,
//! with the lowest and the highest.

mod bpftrace;
mod gate;
mod lock_path;
mod measured;
mod release;
mod snapshot;
mod watch;

use std::fmt;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::guest::handles::FileHandle;
use crate::guest::load::{self, Holding, Monitoring};
use crate::guest::node::TestNode;
use crate::guest::raw::RawNet;
use crate::guest::server::Server;

pub use measured::measure;
pub use snapshot::take_snapshot;

/// Nine IPv4 VIPs, and an IPv6 one: up to 7.1 only FREE_ALL releases that.
const VIPS: u8 = 10;
const IPV6_VIP: &str = "fd77::1";

/// Files that those locks are on.
const FILES: usize = 1000;

/// The parts that can be measured separately. A release and the watch need the snapshot's locks, but
/// not its measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    LockPath,
    Snapshot,
    Release,
    Gate,
    Watch,
}

/// The clock of the virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// A nanosecond per instruction executed, on one processor.
    Instructions,
    /// The host's time: numbers vary with the load of the host.
    Host,
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Clock::Instructions => "a nanosecond per instruction executed, one processor",
            Clock::Host => "the host's time",
        })
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Times that bare, ours and bpftrace take turns.
    pub rounds: usize,
    /// One turn.
    pub turn: Duration,
    /// Clients that hold locks, per family.
    pub holders: u16,
    /// Locks of each of them through each VIP.
    pub locks_each: u32,
    /// Times that a snapshot and the plain read take turns.
    pub snapshots: usize,
}

impl Effort {
    pub fn full() -> Effort {
        Effort {
            rounds: 3,
            turn: Duration::from_millis(500),
            holders: 1000,
            locks_each: 10,
            snapshots: 3,
        }
    }

    pub fn quick() -> Effort {
        Effort {
            rounds: 2,
            turn: Duration::from_millis(200),
            holders: 100,
            locks_each: 10,
            snapshots: 2,
        }
    }

    /// With this number of clients and about this number of locks.
    pub fn holding(self, locks: Option<u32>, clients: Option<u16>) -> Effort {
        let holders = clients.unwrap_or(self.holders).max(1);
        let locks_each = match locks {
            Some(locks) => (locks / (u32::from(VIPS) * u32::from(holders))).max(1),
            None => self.locks_each,
        };
        Effort {
            holders,
            locks_each,
            ..self
        }
    }
}

/// Everything that one run measured; the JSON of `cargo xtask bench`.
#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    kernel: String,
    clock: Clock,
    lock_path: Option<lock_path::LockPath>,
    snapshot: Option<snapshot::Snapshot>,
    releases: Vec<release::Release>,
    gate: Option<gate::GateCost>,
    watch: Option<watch::Watch>,
}

/// A row of the table: what, its value, its target, and whether it is met.
type Row = (String, String, &'static str, Option<bool>);

/// Measures `parts`, or everything; JSON goes to standard output, progress and the table to
/// standard error.
///
/// # Errors
/// If something could not be measured. A missed target is no error: the table
/// and the JSON say so.
pub fn run(nlmfo: &Path, parts: &[Part], effort: Effort, clock: Clock) -> Result<()> {
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    let server = Server::start(TestNode::root(), Path::new("/export"))?;
    let mut vips: Vec<IpAddr> = (1..VIPS).map(|n| [10, 77, 0, n].into()).collect();
    vips.push(IPV6_VIP.parse().context("the IPv6 VIP")?);
    for vip in &vips {
        server.add_vip(*vip)?;
    }
    let net = RawNet::join(&server)?;
    let names: Vec<String> = (0..FILES).map(|n| format!("file-{n}")).collect();
    let files = net.files(&server, vips[0], &names)?;

    let lock_path = (wanted(Part::LockPath))
        .then(|| lock_path::run(&net, vips[0], &files, effort))
        .transpose()?;
    let nothing = snapshot::Empty::measure(nlmfo)?;
    let mut report = Report {
        schema: "nlmfo.bench/1",
        kernel: nlmfo::kernel::release()?,
        clock,
        lock_path,
        snapshot: None,
        releases: Vec::new(),
        gate: (wanted(Part::Gate))
            .then(|| gate::run(&server, &vips, effort))
            .transpose()?,
        watch: None,
    };
    if [Part::Snapshot, Part::Release, Part::Watch]
        .into_iter()
        .any(wanted)
    {
        let locks_each_vip = hold(&server, &net, &vips, &files, effort)?;
        if wanted(Part::Snapshot) {
            let held = vips.len() * locks_each_vip;
            report.snapshot = Some(snapshot::run(nlmfo, nothing, held, effort)?);
        }
        if wanted(Part::Watch) {
            let file = net.files(&server, vips[0], &["watched".to_owned()])?;
            let held = vips.len() * locks_each_vip;
            report.watch = Some(watch::run(nlmfo, &net, vips[0], &file[0], held)?);
        }
        if wanted(Part::Release) {
            for vip in [vips[0], vips[vips.len() - 1]] {
                (report.releases).push(release::run(nlmfo, vip, locks_each_vip)?);
            }
        }
    }
    println!("{}", serde_json::to_string_pretty(&report)?);
    report.write_table(&mut std::io::stderr().lock())?;
    Ok(())
}

/// Takes the locks for the measurements; returns how many each VIP has.
fn hold(
    server: &Server,
    net: &RawNet,
    vips: &[IpAddr],
    files: &[FileHandle],
    effort: Effort,
) -> Result<usize> {
    eprintln!("taking locks …");
    let holding = Holding {
        vips,
        clients: effort.holders,
        locks: effort.locks_each,
        monitoring: Monitoring::Unmonitored,
    };
    load::hold(net, files, holding)?;
    let held = server.locks()?.len();
    let locks_each_vip = usize::from(effort.holders) * effort.locks_each as usize;
    let expected = vips.len() * locks_each_vip;
    ensure!(
        held == expected,
        "the server holds {held} locks, not {expected}"
    );
    Ok(locks_each_vip)
}

impl Report {
    fn write_table(&self, out: &mut impl Write) -> std::io::Result<()> {
        let rows: Vec<Row> = (self.lock_path.iter().flat_map(lock_path::LockPath::rows))
            .chain(self.snapshot.iter().flat_map(snapshot::Snapshot::rows))
            .chain(self.releases.iter().flat_map(release::Release::rows))
            .chain(self.gate.iter().flat_map(gate::GateCost::rows))
            .chain(self.watch.iter().flat_map(watch::Watch::rows))
            .collect();
        let width = rows.iter().map(|row| row.0.len()).max().unwrap_or_default();
        writeln!(out, "kernel {}; time: {}", self.kernel, self.clock)?;
        for (what, value, target, met) in rows {
            let met = match met {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "",
            };
            writeln!(out, "{what:width$}  {value:>26}  {target:12}  {met}")?;
        }
        Ok(())
    }
}

/// Several measurements of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Spread {
    lowest: f64,
    median: f64,
    highest: f64,
}

impl Spread {
    /// Of at least one value.
    fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let last = values.len() - 1;
        Spread {
            lowest: values[0],
            // The middle one, or the mean of the middle two.
            median: f64::midpoint(values[last / 2], values[last.div_ceil(2)]),
            highest: values[last],
        }
    }

    /// In percent, the lowest and the highest in brackets.
    fn percent(self) -> String {
        let [lowest, median, highest] =
            [self.lowest, self.median, self.highest].map(|ratio| 100.0 * ratio);
        format!("{median:.1} % ({lowest:.1} to {highest:.1})")
    }
}

#[cfg(test)]
mod tests {
    use super::{Effort, Spread};

    #[test]
    fn a_median_is_in_the_middle() {
        let spread = Spread::of([3.0, 1.0, 100.0]);
        assert_eq!(
            (spread.lowest, spread.median, spread.highest),
            (1.0, 3.0, 100.0)
        );
        assert_eq!(Spread::of([1.0, 2.0, 4.0, 100.0]).median, 3.0);
        assert_eq!(Spread::of([7.0]).median, 7.0);
    }

    #[test]
    fn locks_are_spread_over_clients_and_vips() {
        let effort = Effort::full().holding(Some(250_000), Some(500));
        assert_eq!((effort.holders, effort.locks_each), (500, 50));
        let effort = Effort::full().holding(Some(1), None);
        assert_eq!((effort.holders, effort.locks_each), (1000, 1));
    }

    #[test]
    fn a_ratio_is_shown_with_its_spread() {
        let spread = Spread::of([0.962, 0.971, 0.98]);
        assert_eq!(spread.percent(), "97.1 % (96.2 to 98.0)");
    }
}
