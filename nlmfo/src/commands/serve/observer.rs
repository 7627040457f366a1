//! The thread of `serve` that observes lockd: it passes facts to the metrics, and events to the journal
//! and a file.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cli::ServeArgs;
use crate::cli::version::{COMMIT, VERSION};
use crate::exit::Failure;
use crate::files::run;
use crate::foreign::Shown;
use crate::kernel::preflight;
use crate::kernel::unlock_bug::Verdict;
use crate::metrics::last::Lasts;
use crate::metrics::report::{Happened, Journal, Lines};
use crate::metrics::watcher::Watcher;
use crate::metrics::{Nfs4, Shared};
use crate::notify::state_dir::StateDir;
use crate::observe::states::take::StateSnapshot;
use crate::output;
use crate::server::description::NODE;
use crate::ticks::live::Live;

/// Where events go, opened as paths of the node: the namespaces of a server of its own have others.
pub struct Events {
    journal: Option<Journal>,
    lines: Option<(PathBuf, Lines)>,
}

impl Events {
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: Option<&PathBuf>) -> Result<Self, Failure> {
        let lines = match path {
            Some(path) => {
                let lines = Lines::append(path);
                let lines = lines.with_context(|| format!("cannot open {}", path.shown()))?;
                Some((path.clone(), lines))
            }
            None => None,
        };
        Ok(Events {
            journal: Journal::open(),
            lines,
        })
    }
}

/// Starts the thread, which ends with the process.
///
/// # Errors
/// It cannot be started.
pub fn start(
    args: &ServeArgs,
    state: &StateDir,
    events: Events,
    shared: &Shared,
) -> Result<(), Failure> {
    let live = Live::new(args.interval, state)
        .context("cannot read the inode number of this network namespace")?;
    let observer = Observer {
        live,
        shared: shared.clone(),
        watcher: Watcher::new(args.long_wait),
        lasts: Lasts::new(run::folder()),
        journal: events.journal,
        lines: events.lines,
        noted: None,
        looked_at_ms: None,
    };
    shared.change(|facts| {
        (facts.version, facts.commit) = (VERSION, COMMIT);
        (args.server.as_deref().unwrap_or(NODE)).clone_into(&mut facts.server);
        facts.per_client = args.metrics_per_client;
    });
    thread::Builder::new()
        .name("observer".to_owned())
        .spawn(|| observer.run())
        .context("cannot start a thread")?;
    Ok(())
}

struct Observer {
    live: Live,
    shared: Shared,
    watcher: Watcher,
    lasts: Lasts,
    journal: Option<Journal>,
    lines: Option<(PathBuf, Lines)>,
    /// The last problem that was noted.
    noted: Option<String>,
    /// The last look after which states were read.
    looked_at_ms: Option<u64>,
}

impl Observer {
    fn run(mut self) {
        self.kernel();
        self.live.charge_this_thread();
        loop {
            let next = Instant::now() + self.live.interval();
            self.look();
            thread::sleep(
                next.saturating_duration_since(Instant::now())
                    .max(MIN_PAUSE),
            );
        }
    }

    /// What stays the same while this kernel runs.
    fn kernel(&self) {
        let kernel = preflight::Facts::gather(&[]);
        self.shared.change(|facts| {
            facts.unlock_ip_broken = match kernel.unlock_ip {
                Verdict::Broken { .. } => Some(true),
                Verdict::Fixed { .. } => Some(false),
                Verdict::Unknown { .. } => None,
            };
            facts.kernel = kernel.release;
        });
    }

    fn look(&mut self) {
        let tick = self.live.tick();
        let states = match self.looked_at_ms == Some(tick.look.at_ms) {
            true => None,
            false => Some(self.live.states().and_then(Result::ok).map(nfs4)),
        };
        self.looked_at_ms = Some(tick.look.at_ms);
        let lasts = self.lasts.look();
        let mut problem = tick.troubles.first().cloned();
        let watcher = &mut self.watcher;
        let happened = self.shared.change(|facts| {
            facts.world.take(tick.clone());
            facts.taken = Some(Instant::now());
            if let Some(states) = states {
                // No data is better than old data.
                facts.nfs4 = states.unwrap_or_default();
            }
            let mut happened = watcher.look(&tick, &facts.world);
            happened.extend(watcher.lasts(tick.at_ms, &lasts));
            happened.extend(watcher.services(tick.at_ms, &facts.services));
            facts.oldest_waiters = watcher.oldest_waiters(tick.elapsed_ms);
            facts.last = lasts;
            happened
        });
        for happened in &happened {
            problem = self.report(happened).or(problem);
        }
        if let Some(problem) = &problem
            && self.noted.as_ref() != Some(problem)
        {
            output::note(problem);
        }
        self.noted = problem;
    }

    /// Returns why the event is not in the file.
    fn report(&mut self, happened: &Happened) -> Option<String> {
        match &self.journal {
            Some(journal) => journal.write(happened),
            None => output::note(happened.line()),
        }
        let (path, lines) = self.lines.as_mut()?;
        let error = lines.write(happened).err()?;
        Some(format!("cannot write events to {}: {error}", path.shown()))
    }
}

/// The time between two looks, however long a look takes.
const MIN_PAUSE: Duration = Duration::from_millis(100);

fn nfs4(snapshot: &StateSnapshot) -> Nfs4 {
    let mut nfs4 = Nfs4::default();
    let table = &snapshot.table;
    for (client, counts) in table.clients.iter().zip(table.counts_of_each()) {
        let mut vips: Vec<_> = client.vips.iter().copied().map(Some).collect();
        vips.extend(client.vip_unknown.then_some(None));
        for vip in vips {
            *nfs4.held.entry(vip).or_default() += counts;
            let silent = client.info.renewed_seconds.unwrap_or_default();
            let longest = nfs4.silent.entry(vip).or_default();
            *longest = silent.max(*longest);
        }
    }
    nfs4
}
