//! LOCK+UNLOCK pairs per second: bare, with our counters, with bpftrace's.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nlmfo::observe::counters::CounterProbes;
use nlmfo::observe::programs::Programs;
use serde::Serialize;

use super::bpftrace::Bpftrace;
use super::{Effort, Row, Spread};
use crate::guest::handles::FileHandle;
use crate::guest::load::{self, Monitoring};
use crate::guest::raw::RawNet;

/// Client addresses that lock and unlock at once, each a file of its own.
const CLIENTS: usize = 64;

/// The result of one turn.
#[derive(Clone, Copy, Debug, Serialize)]
struct Turn {
    pairs_per_second: f64,
    /// lockd's own time on a processor for a pair, in nanoseconds.
    lockd_ns: f64,
}

/// One turn of each.
#[derive(Clone, Copy, Debug, Serialize)]
struct Round {
    bare: Turn,
    ours: Turn,
    bpftrace: Turn,
    /// Bare once more: the next round's, or the last of all.
    bare_after: Turn,
}

impl Round {
    /// A turn's figure against bare before and after it: a drift in between
    /// cancels out.
    fn against_bare(&self, turn: Turn, figure: fn(Turn) -> f64) -> f64 {
        figure(turn) / f64::midpoint(figure(self.bare), figure(self.bare_after))
    }
}

#[derive(Debug, Serialize)]
pub struct LockPath {
    clients: usize,
    /// LOCK+UNLOCK pairs per second, clients and server on one machine.
    bare: Spread,
    ours: Spread,
    bpftrace: Spread,
    /// The rounds' ratios of those.
    ours_to_bare: Spread,
    bpftrace_to_bare: Spread,
    ours_to_bpftrace: Spread,
    /// What a pair costs lockd alone, the rounds' ratios.
    lockd_ours_to_bare: Spread,
    lockd_bpftrace_to_bare: Spread,
    rounds: Vec<Round>,
}

/// Bare, ours and bpftrace take turns; both observers must have counted every
/// call.
pub fn run(net: &RawNet, vip: IpAddr, files: &[FileHandle], effort: Effort) -> Result<LockPath> {
    let lockd = Lockd::find()?;
    let turn = || {
        let before = lockd.on_processor()?;
        let rate = load::pairs(
            net,
            vip,
            &files[..CLIENTS],
            Monitoring::Unmonitored,
            effort.turn,
        )?;
        let took = lockd.on_processor()? - before;
        let turn = Turn {
            pairs_per_second: rate.per_second(),
            lockd_ns: took.as_nanos() as f64 / rate.pairs as f64,
        };
        Ok((turn, rate.pairs))
    };
    // The first turn opens connections and files for later ones.
    turn()?;
    let (mut bare, _) = turn()?;
    let mut rounds = Vec::new();
    for n in 1..=effort.rounds {
        let ours = with_ours(vip, turn)?;
        let bpftrace = with_bpftrace(vip, turn)?;
        let (bare_after, _) = turn()?;
        let round = Round {
            bare,
            ours,
            bpftrace,
            bare_after,
        };
        eprintln!(
            "lock path, round {n} of {}: {:.0} pairs/s bare, {:.0} with nlmfo, {:.0} with bpftrace",
            effort.rounds, bare.pairs_per_second, ours.pairs_per_second, bpftrace.pairs_per_second,
        );
        rounds.push(round);
        bare = bare_after;
    }
    let of = |value: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(value));
    let rate = |turn: Turn| turn.pairs_per_second;
    let lockd_ns = |turn: Turn| turn.lockd_ns;
    Ok(LockPath {
        clients: CLIENTS,
        bare: of(&|round| rate(round.bare)),
        ours: of(&|round| rate(round.ours)),
        bpftrace: of(&|round| rate(round.bpftrace)),
        ours_to_bare: of(&|round| round.against_bare(round.ours, rate)),
        bpftrace_to_bare: of(&|round| round.against_bare(round.bpftrace, rate)),
        ours_to_bpftrace: of(&|round| rate(round.ours) / rate(round.bpftrace)),
        lockd_ours_to_bare: of(&|round| round.against_bare(round.ours, lockd_ns)),
        lockd_bpftrace_to_bare: of(&|round| round.against_bare(round.bpftrace, lockd_ns)),
        rounds,
    })
}

/// lockd's kernel thread.
struct Lockd {
    schedstat: PathBuf,
}

impl Lockd {
    fn find() -> Result<Lockd> {
        for entry in fs::read_dir("/proc").context("/proc")? {
            let process = entry?.path();
            // Processes come and go.
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            if name.trim_end() == "lockd" {
                let schedstat = process.join("schedstat");
                return Ok(Lockd { schedstat });
            }
        }
        bail!("no process is called lockd")
    }

    /// Time spent on a processor so far: the first number in the file.
    fn on_processor(&self) -> Result<Duration> {
        let path = self.schedstat.display();
        let text = fs::read_to_string(&self.schedstat).with_context(|| path.to_string())?;
        let spent = text.split_whitespace().next().unwrap_or_default();
        let spent = (spent.parse()).with_context(|| format!("{path} says {text:?}"))?;
        Ok(Duration::from_nanos(spent))
    }
}

fn with_ours(vip: IpAddr, turn: impl Fn() -> Result<(Turn, u64)>) -> Result<Turn> {
    let mut programs = Programs::load(&nlmfo::kernel::layout::load()?)?;
    let probes = CounterProbes::attach(&mut programs)?;
    let (turn, pairs) = turn()?;
    let counted = probes.read()?.remove(&vip).unwrap_or_default();
    ensure!(
        (counted.granted, counted.unlocked) == (pairs, pairs),
        "{} pairs were answered; the probes counted {} grants and {} unlocks",
        pairs,
        counted.granted,
        counted.unlocked
    );
    Ok(turn)
}

fn with_bpftrace(vip: IpAddr, turn: impl Fn() -> Result<(Turn, u64)>) -> Result<Turn> {
    let running = Bpftrace::start(&nlmfo::kernel::layout::load()?)?;
    let (turn, pairs) = turn()?;
    let counted = running.stop(vip)?;
    ensure!(
        (counted.granted, counted.unlocked) == (pairs, pairs),
        "{} pairs were answered; bpftrace counted {} grants and {} unlocks",
        pairs,
        counted.granted,
        counted.unlocked
    );
    Ok(turn)
}

impl LockPath {
    pub fn rows(&self) -> Vec<Row> {
        let rate = |what: &str, rate: Spread| -> Row {
            let what = format!("LOCK+UNLOCK pairs/s, {what}");
            (what, format!("{:.0}", rate.median), "", None)
        };
        let ratio = |what: &str, ratio: Spread| -> Row { (what.into(), ratio.percent(), "", None) };
        vec![
            rate("bare", self.bare),
            rate("with nlmfo's probes", self.ours),
            rate("with bpftrace", self.bpftrace),
            (
                "nlmfo against bare".into(),
                self.ours_to_bare.percent(),
                ">= 95 %",
                Some(self.ours_to_bare.median >= 0.95),
            ),
            ratio("bpftrace against bare", self.bpftrace_to_bare),
            (
                "nlmfo against bpftrace".into(),
                self.ours_to_bpftrace.percent(),
                "> 100 %",
                Some(self.ours_to_bpftrace.median > 1.0),
            ),
            ratio(
                "lockd's own time for a pair, nlmfo against bare",
                self.lockd_ours_to_bare,
            ),
            ratio(
                "lockd's own time for a pair, bpftrace against bare",
                self.lockd_bpftrace_to_bare,
            ),
        ]
    }
}
