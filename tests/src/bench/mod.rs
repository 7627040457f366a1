//! What `cargo xtask bench` measures inside the virtual machine: what our probes
//! cost lockd's clients, what a snapshot costs, how long a release takes.
//!
//! Under emulation nothing here is a machine's real speed, and the speed itself
//! drifts while a run lasts. So every number that is judged is a ratio of two
//! that were taken next to each other, and the median of many such.

mod bpftrace;
mod lock_path;
mod measured;
mod release;
mod snapshot;

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::guest::handles::FileHandle;
use crate::guest::load::{self, Holding, Monitoring};
use crate::guest::place::Place;
use crate::guest::raw::RawNet;
use crate::guest::server::Server;

pub use measured::measure;
pub use snapshot::take_snapshot;

/// Nine IPv4 VIPs, and an IPv6 one: up to 7.1 only FREE_ALL releases that.
const VIPS: u8 = 10;
const IPV6_VIP: &str = "fd77::1";

/// Locks of each client through each VIP.
const LOCKS_EACH: u32 = 10;
/// Files that those locks are on.
const FILES: usize = 1000;

/// What can be measured by itself; a release wants the snapshot's locks, but not
/// its measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    LockPath,
    Snapshot,
    Release,
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
    /// Times that a snapshot and the plain read take turns.
    pub snapshots: usize,
}

impl Effort {
    pub fn full() -> Effort {
        Effort {
            rounds: 9,
            turn: Duration::from_secs(3),
            holders: 1000,
            snapshots: 7,
        }
    }

    pub fn quick() -> Effort {
        Effort {
            rounds: 3,
            turn: Duration::from_secs(2),
            holders: 100,
            snapshots: 3,
        }
    }
}

/// Everything that one run measured; the JSON of `cargo xtask bench`.
#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    kernel: String,
    lock_path: Option<lock_path::LockPath>,
    snapshot: Option<snapshot::Snapshot>,
    releases: Vec<release::Release>,
}

/// A line of the table: what, how much, what it should be, whether it is.
type Row = (String, String, &'static str, Option<bool>);

/// Measures `parts`, or everything; JSON goes to standard output, progress and the table to
/// standard error.
///
/// # Errors
/// If something could not be measured. A missed target is no error: the table
/// and the JSON say so.
pub fn run(nlmfo: &Path, parts: &[Part], effort: Effort) -> Result<()> {
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    let server = Server::start(Place::root(), Path::new("/export"))?;
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
        lock_path,
        snapshot: None,
        releases: Vec::new(),
    };
    if wanted(Part::Snapshot) || wanted(Part::Release) {
        let locks_each_vip = hold(&server, &net, &vips, &files, effort)?;
        if wanted(Part::Snapshot) {
            let held = vips.len() * locks_each_vip;
            report.snapshot = Some(snapshot::run(nlmfo, nothing, held, effort)?);
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

/// Takes the locks that are looked at and released; returns how many each VIP has.
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
        locks: LOCKS_EACH,
        monitoring: Monitoring::Unmonitored,
    };
    load::hold(net, files, holding)?;
    let held = server.locks()?.len();
    let locks_each_vip = usize::from(effort.holders) * LOCKS_EACH as usize;
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
            .collect();
        let width = rows.iter().map(|row| row.0.len()).max().unwrap_or_default();
        writeln!(out, "kernel {}", self.kernel)?;
        for (what, value, target, met) in rows {
            let met = match met {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "",
            };
            writeln!(out, "{what:width$}  {value:>14}  {target:12}  {met}")?;
        }
        Ok(())
    }
}

/// The middle one, or the mean of the middle two.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 100.0]), 3.0);
        assert_eq!(median([1.0, 2.0, 4.0, 100.0]), 3.0);
        assert!(median([]).is_nan());
    }
}
