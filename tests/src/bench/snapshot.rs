//! A snapshot of many locks against a plain read of `/proc/locks`, and its memory.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nlmfo::observe::programs::Programs;
use nlmfo::observe::snapshot::Snapshots;
use serde::{Deserialize, Serialize};

use super::measured::Measured;
use super::{Effort, Row, Spread};

/// Long enough for an exact snapshot.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_mins(1);

/// The cost of a snapshot by the library, in a process of its own.
#[derive(Debug, Serialize, Deserialize)]
struct Taken {
    locks: usize,
    seconds: f64,
    peak_kib: i64,
    /// The time for which other lock operations were blocked.
    longest_run_ms: f64,
}

/// The process that takes one snapshot with the library and prints [`Taken`].
pub fn take_snapshot() -> Result<()> {
    let programs = Programs::load(&nlmfo::kernel::layout::load()?)?;
    let mut snapshots = Snapshots::attach(programs)?;
    let began = Instant::now();
    let snapshot = snapshots.take(None, SNAPSHOT_TIMEOUT)?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(snapshot.is_exact(), "nobody locks, yet locks changed");
    let status = fs::read_to_string("/proc/self/status")?;
    let peak_kib = peak_in(&status).context("no VmHWM in /proc/self/status")?;
    let taken = Taken {
        locks: snapshot.table.locks.len(),
        seconds,
        peak_kib,
        longest_run_ms: 1e3
            * snapshot
                .longest_run
                .map_or(f64::NAN, |run| run.as_secs_f64()),
    };
    println!("{}", serde_json::to_string(&taken)?);
    Ok(())
}

/// The largest resident set in `/proc/PID/status`, in KiB.
pub(super) fn peak_in(status: &str) -> Option<i64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn take(locks: usize) -> Result<Taken> {
    let output = Command::new("/proc/self/exe")
        .arg("snapshot")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start a snapshot process")?;
    ensure!(output.status.success(), "the snapshot failed");
    let taken: Taken = serde_json::from_slice(&output.stdout).context("the snapshot's answer")?;
    ensure!(
        taken.locks == locks,
        "a snapshot of {} locks where {locks} are held",
        taken.locks
    );
    Ok(taken)
}

fn nlmfo_locks(nlmfo: &Path) -> Result<Measured> {
    Measured::of(nlmfo, &["locks", "--json"])
}

/// The cost while nothing is held.
#[derive(Debug, Serialize)]
pub struct Empty {
    snapshot_peak_kib: i64,
    /// The first one since the boot: it reads the kernel's symbols, and keeps them.
    first_nlmfo_locks: Measured,
    nlmfo_locks: Measured,
}

impl Empty {
    pub fn measure(nlmfo: &Path) -> Result<Empty> {
        Ok(Empty {
            snapshot_peak_kib: take(0)?.peak_kib,
            first_nlmfo_locks: nlmfo_locks(nlmfo)?,
            nlmfo_locks: nlmfo_locks(nlmfo)?,
        })
    }
}

/// One turn of each.
#[derive(Debug, Serialize)]
struct Round {
    cat_seconds: f64,
    snapshot: Taken,
    nlmfo_locks: Measured,
}

#[derive(Debug, Serialize)]
pub struct Snapshot {
    locks: usize,
    /// `cat /proc/locks > /dev/null`:
    cat_seconds: Spread,
    /// The library's snapshot alone, programs already attached.
    snapshot_seconds: Spread,
    /// `nlmfo locks --json > /dev/null`, with start, attaching and paths.
    nlmfo_locks_seconds: Spread,
    /// The rounds' ratios.
    snapshot_to_cat: Spread,
    nlmfo_locks_to_cat: Spread,
    /// Peak resident memory beyond that of the same process without locks.
    snapshot_bytes_per_lock: Spread,
    /// The longest time for which the kernel's lock operations wait for a snapshot.
    longest_run_ms: f64,
    nlmfo_locks_bytes_per_lock: Spread,
    empty: Empty,
    rounds: Vec<Round>,
}

pub fn run(nlmfo: &Path, empty: Empty, locks: usize, effort: Effort) -> Result<Snapshot> {
    let mut rounds = Vec::new();
    for n in 1..=effort.snapshots {
        let round = Round {
            cat_seconds: Measured::of(Path::new("cat"), &["/proc/locks"])?.seconds,
            snapshot: take(locks)?,
            nlmfo_locks: nlmfo_locks(nlmfo)?,
        };
        eprintln!(
            "snapshot, round {n} of {}: cat {:.3} s, snapshot {:.3} s, nlmfo locks {:.3} s",
            effort.snapshots, round.cat_seconds, round.snapshot.seconds, round.nlmfo_locks.seconds
        );
        rounds.push(round);
    }
    let of = |value: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(value));
    let per_lock = |kib: i64| kib as f64 * 1024.0 / locks as f64;
    Ok(Snapshot {
        locks,
        cat_seconds: of(&|round| round.cat_seconds),
        snapshot_seconds: of(&|round| round.snapshot.seconds),
        nlmfo_locks_seconds: of(&|round| round.nlmfo_locks.seconds),
        snapshot_to_cat: of(&|round| round.snapshot.seconds / round.cat_seconds),
        nlmfo_locks_to_cat: of(&|round| round.nlmfo_locks.seconds / round.cat_seconds),
        snapshot_bytes_per_lock: of(&|round| {
            per_lock(round.snapshot.peak_kib - empty.snapshot_peak_kib)
        }),
        longest_run_ms: of(&|round| round.snapshot.longest_run_ms).highest,
        nlmfo_locks_bytes_per_lock: of(&|round| {
            per_lock(round.nlmfo_locks.peak_kib - empty.nlmfo_locks.peak_kib)
        }),
        empty,
        rounds,
    })
}

impl Snapshot {
    pub fn rows(&self) -> Vec<Row> {
        let seconds = |what: &str, seconds: Spread| -> Row {
            let what = format!("{what}, {} locks", self.locks);
            (what, format!("{:.3} s", seconds.median), "", None)
        };
        let ratio = |what: &str, ratio: Spread, target, met| -> Row {
            let what = format!("{what} against cat");
            (what, ratio.percent(), target, met)
        };
        let bytes = |what: &str, bytes: Spread, target, met| -> Row {
            let what = format!("{what}, memory per lock");
            (what, format!("{:.0} B", bytes.median), target, met)
        };
        vec![
            seconds("cat /proc/locks", self.cat_seconds),
            seconds("snapshot", self.snapshot_seconds),
            seconds("nlmfo locks --json", self.nlmfo_locks_seconds),
            (
                "nlmfo locks --json, 0 locks, first since the boot".into(),
                format!("{:.3} s", self.empty.first_nlmfo_locks.seconds),
                "",
                None,
            ),
            (
                "nlmfo locks --json, 0 locks".into(),
                format!("{:.3} s", self.empty.nlmfo_locks.seconds),
                "<= 0.25 s",
                Some(self.empty.nlmfo_locks.seconds <= 0.25),
            ),
            ratio(
                "snapshot",
                self.snapshot_to_cat,
                "<= 50 %",
                Some(self.snapshot_to_cat.median <= 0.5),
            ),
            ratio(
                "nlmfo locks --json",
                self.nlmfo_locks_to_cat,
                "<= 150 %",
                Some(self.nlmfo_locks_to_cat.median <= 1.5),
            ),
            (
                "snapshot, lock operations wait for it".into(),
                format!("{:.2} ms", self.longest_run_ms),
                "<= 5 ms",
                Some(self.longest_run_ms <= 5.0),
            ),
            bytes(
                "snapshot",
                self.snapshot_bytes_per_lock,
                "<= 300 B",
                Some(self.snapshot_bytes_per_lock.median <= 300.0),
            ),
            bytes(
                "nlmfo locks --json",
                self.nlmfo_locks_bytes_per_lock,
                "",
                None,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_peak_is_found() {
        let status = "Name:\tx\nVmHWM:\t    4321 kB\nVmRSS:\t 1 kB\n";
        assert_eq!(super::peak_in(status), Some(4321));
        assert_eq!(super::peak_in("Name:\tx\n"), None);
    }
}
