//! LOCK+UNLOCK pairs per second: bare, with our counters, with bpftrace's.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use nlmfo::observe::counters::CounterProbes;
use nlmfo::observe::programs::Programs;
use serde::Serialize;

use super::bpftrace::Bpftrace;
use super::{Effort, Row, median};
use crate::guest::handles::FileHandle;
use crate::guest::load::{self, Monitoring, Rate};
use crate::guest::raw::RawNet;

/// Client addresses that lock and unlock at once, each a file of its own.
const CLIENTS: usize = 64;

/// One turn of each, in pairs per second.
#[derive(Clone, Copy, Debug, Serialize)]
struct Round {
    bare: f64,
    ours: f64,
    bpftrace: f64,
    /// Bare once more: the next round's, or the last of all.
    bare_after: f64,
}

impl Round {
    /// `rate` against bare before and after it: a drift in between cancels out.
    fn against_bare(&self, rate: f64) -> f64 {
        rate / ((self.bare + self.bare_after) / 2.0)
    }
}

#[derive(Debug, Serialize)]
pub struct LockPath {
    clients: usize,
    /// Medians, in LOCK+UNLOCK pairs per second.
    bare: f64,
    ours: f64,
    bpftrace: f64,
    /// Medians of the rounds' ratios.
    ours_to_bare: f64,
    bpftrace_to_bare: f64,
    ours_to_bpftrace: f64,
    rounds: Vec<Round>,
}

/// Bare, ours and bpftrace take turns; both observers must have counted every
/// call.
pub fn run(net: &RawNet, vip: IpAddr, files: &[FileHandle], effort: Effort) -> Result<LockPath> {
    let turn = || {
        load::pairs(
            net,
            vip,
            &files[..CLIENTS],
            Monitoring::Unmonitored,
            effort.turn,
        )
    };
    // The first turn opens what later ones find open.
    turn()?;
    let mut bare = turn()?.per_second();
    let mut rounds = Vec::new();
    for n in 1..=effort.rounds {
        let ours = with_ours(vip, turn)?.per_second();
        let bpftrace = with_bpftrace(vip, turn)?.per_second();
        let bare_after = turn()?.per_second();
        let round = Round {
            bare,
            ours,
            bpftrace,
            bare_after,
        };
        eprintln!(
            "lock path, round {n} of {}: {bare:.0} pairs/s bare, {ours:.0} with nlmfo, \
             {bpftrace:.0} with bpftrace",
            effort.rounds
        );
        rounds.push(round);
        bare = bare_after;
    }
    let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
    Ok(LockPath {
        clients: CLIENTS,
        bare: of(|round| round.bare),
        ours: of(|round| round.ours),
        bpftrace: of(|round| round.bpftrace),
        ours_to_bare: of(|round| round.against_bare(round.ours)),
        bpftrace_to_bare: of(|round| round.against_bare(round.bpftrace)),
        ours_to_bpftrace: of(|round| round.ours / round.bpftrace),
        rounds,
    })
}

fn with_ours(vip: IpAddr, turn: impl Fn() -> Result<Rate>) -> Result<Rate> {
    let mut programs = Programs::load(&nlmfo::kernel::layout::load()?)?;
    let probes = CounterProbes::attach(&mut programs)?;
    let rate = turn()?;
    let counted = probes.read()?.remove(&vip).unwrap_or_default();
    ensure!(
        (counted.granted, counted.unlocked) == (rate.pairs, rate.pairs),
        "{} pairs were answered; the probes counted {} grants and {} unlocks",
        rate.pairs,
        counted.granted,
        counted.unlocked
    );
    Ok(rate)
}

fn with_bpftrace(vip: IpAddr, turn: impl Fn() -> Result<Rate>) -> Result<Rate> {
    let running = Bpftrace::start(&nlmfo::kernel::layout::load()?)?;
    let rate = turn()?;
    let counted = running.stop(vip)?;
    ensure!(
        (counted.granted, counted.unlocked) == (rate.pairs, rate.pairs),
        "{} pairs were answered; bpftrace counted {} grants and {} unlocks",
        rate.pairs,
        counted.granted,
        counted.unlocked
    );
    Ok(rate)
}

impl LockPath {
    pub fn rows(&self) -> Vec<Row> {
        let rate = |what: &str, rate: f64| -> Row {
            let what = format!("LOCK+UNLOCK pairs/s, {what}");
            (what, format!("{rate:.0}"), "", None)
        };
        let percent = |ratio: f64| format!("{:.1} %", 100.0 * ratio);
        vec![
            rate("bare", self.bare),
            rate("with nlmfo's probes", self.ours),
            rate("with bpftrace", self.bpftrace),
            (
                "nlmfo against bare".into(),
                percent(self.ours_to_bare),
                ">= 95 %",
                Some(self.ours_to_bare >= 0.95),
            ),
            (
                "bpftrace against bare".into(),
                percent(self.bpftrace_to_bare),
                "",
                None,
            ),
            (
                "nlmfo against bpftrace".into(),
                percent(self.ours_to_bpftrace),
                "> 100 %",
                Some(self.ours_to_bpftrace > 1.0),
            ),
        ]
    }
}
