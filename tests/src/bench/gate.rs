//! What the grace gate costs a real NFS client: its throughput and its rate of small
//! calls without a gate, with one that has no window open, with a window of another
//! VIP, and with one of the client's own.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::programs::tc::SchedClassifier;
use nlmfo::grace::gate::Gate;
use nlmfo::grace::{leftovers, method};
use nlmfo::observe::host::Transport;
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};

use super::{Effort, Row, Spread};
use crate::guest::client::Client;
use crate::guest::server::Server;

/// Bytes written and read in a turn.
const BYTES: usize = 4 << 20;
/// GETATTR calls in a turn.
const CALLS: u32 = 400;

const LASTING: Duration = Duration::from_hours(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Attached,
    OtherVip,
    OwnVip,
}

impl State {
    const ALL: [State; 3] = [State::Attached, State::OtherVip, State::OwnVip];

    fn name(self) -> &'static str {
        match self {
            State::Attached => "gate, no window",
            State::OtherVip => "another VIP's window",
            State::OwnVip => "its own VIP's window",
        }
    }

    /// The minimum share of the bare rate.
    fn target(self) -> (f64, &'static str) {
        match self {
            State::Attached => (0.99, ">= 99 %"),
            State::OtherVip => (0.97, ">= 97 %"),
            State::OwnVip => (0.95, ">= 95 %"),
        }
    }
}

/// The result of one turn, in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Turn {
    write: f64,
    read: f64,
    calls: f64,
}

#[derive(Debug, Serialize)]
struct Cost {
    state: State,
    /// Rates against bare.
    write: Spread,
    read: Spread,
    calls: Spread,
}

#[derive(Debug, Serialize)]
pub struct GateCost {
    bytes: usize,
    calls: u32,
    bare: Vec<Turn>,
    costs: Vec<Cost>,
    /// The gate's time for a packet that is not for lockd, in nanoseconds, by the kernel's own
    /// statistics of BPF programs.
    ns_per_packet: f64,
    packets: u64,
}

pub fn run(server: &Server, vips: &[IpAddr], effort: Effort) -> Result<GateCost> {
    let client = Client::join(server, 1)?;
    let mount = client.mount(server, vips[0], Transport::Tcp)?;
    let file = client.node().path(mount.path("bench"));
    let runtime = Builder::new_current_thread().enable_all().build()?;
    settled(&file)?;
    let mut bare = vec![turn(&file)?];
    let mut turns = Vec::new();
    let mut per_packet = None;
    for n in 1..=effort.rounds {
        for state in State::ALL {
            enter(&runtime, state, vips)?;
            settled(&file)?;
            turns.push((state, bare.len(), turn(&file)?));
            if n == 1 && state == State::OtherVip {
                per_packet = Some(packets(&file)?);
            }
            let removed = runtime.block_on(leftovers::cleanup())?;
            ensure!(removed > 0, "there was no gate");
            settled(&file)?;
            bare.push(turn(&file)?);
        }
        eprintln!("gate, round {n} of {}", effort.rounds);
    }
    let costs = State::ALL.map(|state| {
        let of = |figure: fn(&Turn) -> f64| {
            Spread::of(
                turns
                    .iter()
                    .filter(|turn| turn.0 == state)
                    .map(|(_, n, turn)| {
                        let around = figure(&bare[n - 1]) + figure(&bare[*n]);
                        around / 2.0 / figure(turn)
                    }),
            )
        };
        Cost {
            state,
            write: of(|turn| turn.write),
            read: of(|turn| turn.read),
            calls: of(|turn| turn.calls),
        }
    });
    let (ns_per_packet, packets) = per_packet.context("one round at least")?;
    Ok(GateCost {
        bytes: BYTES,
        calls: CALLS,
        bare,
        costs: costs.into(),
        ns_per_packet,
        packets,
    })
}

fn enter(runtime: &Runtime, state: State, vips: &[IpAddr]) -> Result<()> {
    runtime.block_on(async {
        let vip = match state {
            State::Attached => {
                let gate = Gate::load_or_take_over().await?;
                gate.cover_all().await?;
                return Ok(());
            }
            State::OtherVip => vips[1],
            State::OwnVip => vips[0],
        };
        let plan = method::Plan {
            vips: vec![vip],
            lasting: LASTING,
            scope: Vec::new(),
            lockd_later: false,
        };
        method::begin(&plan).await?;
        Ok(())
    })
}

/// Work that is not measured: it opens connections and files for later turns. Meanwhile, the kernel
/// frees the last gate's maps, which takes as long as some thousand calls.
fn settled(file: &Path) -> Result<()> {
    turn(file).map(drop)
}

fn turn(file: &Path) -> Result<Turn> {
    let content = vec![0x5a; BYTES];
    let write = timed(|| {
        let mut file = File::create(file)?;
        file.write_all(&content)?;
        file.sync_all()
    })?;
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop_caches")?;
    let mut read_back = Vec::with_capacity(BYTES);
    let read = timed(|| File::open(file)?.read_to_end(&mut read_back).map(drop))?;
    ensure!(read_back == content, "other bytes were read than written");
    let open = OpenOptions::new().read(true).open(file)?;
    // Without attribute caching (`noac`) each asks the server.
    let calls = timed(|| (0..CALLS).try_for_each(|_| open.metadata().map(drop)))?;
    Ok(Turn { write, read, calls })
}

fn timed(work: impl FnOnce() -> std::io::Result<()>) -> Result<f64> {
    let began = Instant::now();
    work().context("the client's file")?;
    Ok(began.elapsed().as_secs_f64())
}

/// Time for a packet, and how many there were, while the client works.
fn packets(file: &Path) -> Result<(f64, u64)> {
    const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";
    fs::write(STATISTICS, "1").context(STATISTICS)?;
    turn(file)?;
    fs::write(STATISTICS, "0").context(STATISTICS)?;
    let info = SchedClassifier::from_pin(pinned("gate_ether")?)?.info()?;
    let (time, packets) = (info.run_time(), info.run_count());
    ensure!(packets > 0, "no packet passed the gate");
    Ok((time.as_nanos() as f64 / packets as f64, packets))
}

fn pinned(program: &str) -> Result<PathBuf> {
    let mut folders = vec![PathBuf::from("/sys/fs/bpf/nlmfo")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).context("the gate's pins")? {
            let path = entry?.path();
            if path.ends_with(Path::new("progs").join(program)) {
                return Ok(path);
            }
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    anyhow::bail!("{program} is not pinned")
}

impl GateCost {
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for cost in &self.costs {
            let (least, target) = cost.state.target();
            for (what, rate) in [
                ("WRITE", cost.write),
                ("READ", cost.read),
                ("small calls", cost.calls),
            ] {
                rows.push((
                    format!("{what} against bare, {}", cost.state.name()),
                    rate.percent(),
                    target,
                    Some(rate.median >= least),
                ));
            }
        }
        rows.push((
            "the gate's ns for a packet that is not lockd's".into(),
            format!("{:.0} ({} packets)", self.ns_per_packet, self.packets),
            "",
            None,
        ));
        rows
    }
}
