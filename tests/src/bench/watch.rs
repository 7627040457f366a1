//! The share of a core that `nlmfo watch` uses while many locks are held and more come and go.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::Row;
use crate::guest::handles::FileHandle;
use crate::guest::load::{self, Monitoring, PAIRS_AT_ONCE};
use crate::guest::pty::Pty;
use crate::guest::raw::RawNet;

/// Lock operations a second: as many LOCKs as UNLOCKs.
const OPERATIONS: f64 = 1000.0;

/// As long as several snapshots of all locks.
const LASTS: Duration = Duration::from_secs(150);

#[derive(Debug, Serialize)]
pub struct Watch {
    locks: usize,
    operations_per_second: f64,
    seconds: f64,
    /// Processor time of all its threads, user and kernel, in parts of a core.
    of_a_core: f64,
    peak_kib: i64,
    /// The screen's second line at the end: its intervals.
    said: String,
}

/// Watches on a terminal of the usual size, at the default interval. What it costs to
/// start and to take the first look is not counted.
pub fn run(
    nlmfo: &Path,
    net: &RawNet,
    vip: IpAddr,
    file: &FileHandle,
    locks: usize,
) -> Result<Watch> {
    eprintln!("watching {locks} locks for {} s …", LASTS.as_secs());
    let mut command = Command::new(nlmfo);
    command.arg("watch");
    let mut watch = Pty::spawn(command, 80, 24)?;
    let vip_text = format!("{vip} ");
    watch.shows("the VIPs", |text| {
        text.lines().any(|line| line.starts_with(&vip_text))
    })?;

    let before = processor_time(watch.id())?;
    let began = Instant::now();
    let rate = load::pairs_while(
        net,
        vip,
        std::slice::from_ref(file),
        Monitoring::Unmonitored,
        paced(began),
    )?;
    let spent = processor_time(watch.id())? - before;
    let seconds = began.elapsed().as_secs_f64();
    let said = watch.text().lines().nth(1).unwrap_or_default().to_owned();
    let status = fs::read_to_string(format!("/proc/{}/status", watch.id()))?;
    let peak_kib = super::snapshot::peak_in(&status).context("no VmHWM of nlmfo watch")?;
    watch.press("q")?;
    let (code, _) = watch.ended()?;
    ensure!(code == Some(0), "nlmfo watch ended with {code:?}");
    Ok(Watch {
        locks,
        operations_per_second: 2.0 * rate.per_second(),
        seconds,
        of_a_core: spent.as_secs_f64() / seconds,
        peak_kib,
        said,
    })
}

/// Called before each batch of pairs: waits for its turn. False when the time is up.
fn paced(began: Instant) -> impl Fn() -> bool + Sync {
    let batch = Duration::from_secs_f64(2.0 * PAIRS_AT_ONCE as f64 / OPERATIONS);
    move || {
        let batches = began.elapsed().div_duration_f64(batch).ceil();
        let turn = began + batch.mul_f64(batches);
        thread::sleep(turn.saturating_duration_since(Instant::now()));
        began.elapsed() < LASTS
    }
}

/// Of all threads of a process: the first number in each one's `schedstat`.
fn processor_time(process: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task")).context("nlmfo's threads")? {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let spent = text.split_whitespace().next().unwrap_or_default();
        let spent: u64 = (spent.parse()).with_context(|| format!("schedstat says {text:?}"))?;
        nanoseconds += spent;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

impl Watch {
    pub fn rows(&self) -> Vec<Row> {
        let what = format!(
            "nlmfo watch, {} locks, {:.0} operations/s",
            self.locks, self.operations_per_second
        );
        vec![
            (
                what,
                format!("{:.2} % of a core", 100.0 * self.of_a_core),
                "< 5 %",
                Some(self.of_a_core < 0.05),
            ),
            (
                "its peak memory".into(),
                format!("{} KiB", self.peak_kib),
                "",
                None,
            ),
            (self.said.clone(), String::new(), "", None),
        ]
    }
}
