//! Ticks of this node: counters and windows each time, and a snapshot when one is due.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::locks::Locks;
use super::probes::Probes;
use crate::causes::chain;
use crate::grace::report::WindowReport;
use crate::grace::{Gate, GraceError};
use crate::kernel::grace::SeenGrace;
use crate::kernel::nfsd::Nfsd;
use crate::kernel::path::PathFinder;
use crate::kernel::{lockd, netns};
use crate::notify::number::{Claim, Numbers};
use crate::notify::state_dir::StateDir;
use crate::observe::error::ObserveError;
use crate::observe::states::take::StateSnapshot;
use crate::observe::table::LockTable;
use crate::ticks::events;
use crate::ticks::judge::{Facts, Memory};
use crate::ticks::pace::{next_look, next_tick, process_time, thread_time};
use crate::ticks::tick::{Look, Pace, SCHEMA, Server, Tick, VipTick};
use crate::times::{now_milliseconds, whole_milliseconds};

/// The observer of this node.
pub struct Live {
    asked: Duration,
    node: String,
    netns: u32,
    began: Instant,
    probes: Probes,
    locks: Locks,
    look: Look,
    look_due: Instant,
    /// The VIP whose detail goes before the others'.
    first: Option<IpAddr>,
    memories: BTreeMap<IpAddr, Memory>,
    numbers: Numbers,
    claims: BTreeMap<u32, Claim>,
    /// The VIPs that were seen in this network namespace: calls to others are counted too.
    ours: BTreeSet<IpAddr>,
    /// The last tick, without its details and events.
    before: Option<Tick>,
    pace: Pace,
    /// The cost of the last tick without its snapshot.
    light: Duration,
    /// Processor time of this process: at the end of the last tick,
    spent: Duration,
    /// and when the last look began.
    at_look: (Instant, Duration),
    states: Option<Result<StateSnapshot, String>>,
    /// The processor time that is charged to watching.
    clock: fn() -> Duration,
}

impl Live {
    /// Watches this network namespace. Nothing is attached before the first tick, since lockd may not
    /// be loaded yet.
    pub fn new(asked: Duration, state: &StateDir) -> std::io::Result<Self> {
        let now = Instant::now();
        let asked_ms = whole_milliseconds(asked);
        Ok(Live {
            asked,
            node: netns::node(),
            netns: netns::network()?.inode as u32,
            began: now,
            probes: Probes::default(),
            locks: Locks::default(),
            look: Look::default(),
            look_due: now,
            first: None,
            memories: BTreeMap::new(),
            numbers: Numbers::new(state),
            claims: BTreeMap::new(),
            ours: BTreeSet::new(),
            before: None,
            pace: Pace {
                asked_ms,
                tick_ms: asked_ms,
                look_ms: asked_ms,
                cpu_percent: 0.0,
            },
            light: Duration::ZERO,
            spent: process_time(),
            at_look: (now, process_time()),
            states: None,
            clock: process_time,
        })
    }

    /// Charges this thread's processor time alone, for a process that does other work too.
    pub fn charge_this_thread(&mut self) {
        self.clock = thread_time;
        self.forget_cost();
    }

    /// Attaches the probes at once, for callers that cannot wait for lockd.
    pub fn attach(&mut self) -> Result<(), ObserveError> {
        self.probes.follow(lockd::incarnation())?;
        self.forget_cost();
        Ok(())
    }

    /// Makes the detail of this VIP before the others.
    pub fn show_first(&mut self, vip: Option<IpAddr>) {
        self.first = vip;
    }

    /// How long until the next tick.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.pace.tick_ms)
    }

    /// What NFSv4 clients held at the last look, or why it could not be read; none without lockd.
    pub fn states(&self) -> Option<Result<&StateSnapshot, &str>> {
        let states = self.states.as_ref()?;
        Some(states.as_ref().map_err(String::as_str))
    }

    /// Takes a tick now.
    pub fn tick(&mut self) -> Tick {
        let mut troubles = Vec::new();
        match (self.probes).try_follow(lockd::incarnation(), self.asked) {
            Ok(true) => self.forget_cost(),
            Ok(false) => {}
            Err(error) => troubles.push(error),
        }
        let look_cost = match Instant::now() >= self.look_due {
            true => self.look(&mut troubles),
            false => Duration::ZERO,
        };
        let mut tick = self.make(troubles);
        tick.events = events::between(self.before.as_ref(), &tick);
        self.before = Some(Tick {
            events: Vec::new(),
            ..tick.clone()
        });
        tick.details = self.locks.changed();
        self.account(look_cost);
        tick
    }

    /// Takes a snapshot and returns its cost.
    fn look(&mut self, troubles: &mut Vec<String>) -> Duration {
        let (now, spent) = (Instant::now(), (self.clock)());
        let (then, spent_then) = self.at_look;
        if self.before.is_some() {
            let share = (spent - spent_then).div_duration_f64(now - then);
            self.pace.cpu_percent = (share * 1000.0).round() / 10.0;
        }
        self.at_look = (now, spent);

        let mut began = thread_time();
        let states = self.probes.states(self.netns);
        if self.states.is_none() {
            // The first call loads the programs, which is done only once.
            began = thread_time();
        }
        self.states = states.map(|states| states.map_err(|error| chain(&error)));
        if let Some(Err(error)) = &self.states {
            troubles.push(error.clone());
        }
        let at_ms = whole_milliseconds(now - self.began);
        let (exact, table) = match self.probes.look() {
            Some(Ok(snapshot)) => {
                let netns = self.netns;
                let exact = snapshot.is_exact();
                (exact, snapshot.table.part(|host| host.netns == netns))
            }
            // Without lockd nothing is held.
            None => (true, LockTable::default()),
            Some(Err(error)) => {
                troubles.push(chain(&error));
                return thread_time() - began;
            }
        };
        let states = self.states.as_ref().and_then(|states| states.as_ref().ok());
        let states = states.map(|states| &states.table);
        if let Err(error) = self.locks.take(table, states, at_ms, self.first) {
            troubles.push(format!(
                "cannot read the list of mounted filesystems: {error}"
            ));
        }
        let cost = thread_time() - began;
        self.look = Look {
            at_ms,
            exact,
            cost_us: cost.as_micros() as u64,
        };
        let interval = next_look(cost, self.light, self.interval());
        self.pace.look_ms = whole_milliseconds(interval);
        // A tick that is a little early must not delay the look to the next tick.
        self.look_due = now + interval - self.asked.min(interval) / 10;
        cost
    }

    fn make(&mut self, mut troubles: Vec<String>) -> Tick {
        let (windows, fenced) = windows().unwrap_or_else(|error| {
            troubles.push(chain(&error));
            Default::default()
        });
        match self.numbers.claims(std::mem::take(&mut self.claims)) {
            Ok(claims) => self.claims = claims,
            Err(error) => troubles.push(chain(&error)),
        }
        // In ascending order, so that the highest number of a VIP is kept.
        let told = (self.claims.iter())
            .flat_map(|(&number, claim)| claim.vips.iter().map(move |&vip| (vip, number)));
        let told: BTreeMap<IpAddr, u32> = told.collect();
        let addresses = netns::addresses().unwrap_or_else(|error| {
            troubles.push(format!("cannot read this node's addresses: {error}"));
            BTreeSet::new()
        });
        let kernel_grace = SeenGrace::now();
        let in_grace = kernel_grace.stands();
        let (counted4, trouble4) = self.probes.counters4();
        let counted4 = counted4.cloned();
        troubles.extend(trouble4.map(|error| chain(&error)));
        let (counted, trouble) = self.probes.counters();
        troubles.extend(trouble.map(|error| chain(&error)));
        let mut vips: BTreeSet<IpAddr> = (self.locks.gauges.keys())
            .chain(self.locks.held4.iter().flat_map(|held| held.keys()))
            .chain(self.locks.last_held4.keys())
            // Of clients without a connection.
            .filter(|vip| !vip.is_unspecified())
            .chain(windows.keys())
            .chain(&fenced)
            .copied()
            .collect();
        self.ours.extend(vips.iter().copied().chain(addresses));
        let counted_vips =
            (counted.keys()).chain(counted4.iter().flat_map(|counted| counted.keys()));
        vips.extend(counted_vips.filter(|vip| self.ours.contains(vip)));
        self.memories.retain(|vip, _| vips.contains(vip));
        let rows = vips.into_iter().map(|vip| {
            let gauges = self.locks.gauges.get(&vip).copied().unwrap_or_default();
            let counters = counted.get(&vip).copied().unwrap_or_default();
            let window = windows.get(&vip).cloned();
            let fenced = fenced.contains(&vip);
            let state = self.memories.entry(vip).or_default().judge(&Facts {
                held: gauges.held,
                others: gauges.waiters + gauges.shares,
                counters: &counters,
                fenced,
                window: window.as_ref(),
                kernel_grace: in_grace,
            });
            VipTick {
                vip,
                state,
                held: gauges.held,
                waiters: gauges.waiters,
                shares: gauges.shares,
                clients: gauges.clients,
                counters,
                nfs4: (counted4.as_ref())
                    .map(|counted| counted.get(&vip).copied().unwrap_or_default()),
                held4: (self.locks.held4.as_ref())
                    .map(|held| held.get(&vip).copied().unwrap_or_default()),
                waiters4: (self.locks.waiting4.get(&vip).copied()).unwrap_or_default(),
                last_held4: (self.locks.last_held4.get(&vip).copied()).unwrap_or_default(),
                fenced,
                window,
                state_number: told.get(&vip).copied(),
            }
        });
        Tick {
            schema: SCHEMA.into(),
            node: self.node.clone(),
            at_ms: now_milliseconds(),
            elapsed_ms: whole_milliseconds(self.began.elapsed()),
            pace: self.pace,
            server: server(),
            kernel_grace,
            look: self.look,
            vips: rows.collect(),
            not_connected: self.locks.not_connected.clone(),
            details: Vec::new(),
            events: Vec::new(),
            troubles,
        }
    }

    /// The cost of everything but looks since the last tick, including the screen, determines the time
    /// of the next tick.
    fn account(&mut self, look_cost: Duration) {
        let spent = (self.clock)();
        self.light = (spent - self.spent).saturating_sub(look_cost);
        self.spent = spent;
        self.pace.tick_ms = whole_milliseconds(next_tick(self.light, self.asked));
    }

    /// Attaching is done once, and is not part of a tick's cost.
    fn forget_cost(&mut self) {
        self.spent = (self.clock)();
        self.at_look = (Instant::now(), self.spent);
    }
}

/// The windows by address, and the fenced VIPs.
type Gated = (BTreeMap<IpAddr, WindowReport>, BTreeSet<IpAddr>);

fn windows() -> Result<Gated, GraceError> {
    // The gate may just be being removed from the kernel, pin by pin: then it counts as gone.
    let read = || -> Result<Option<Gated>, GraceError> {
        let Some(gate) = Gate::in_force()? else {
            return Ok(None);
        };
        let mut paths = PathFinder::new(0).map_err(GraceError::Namespace)?;
        let windows = gate.report(&mut paths)?;
        let windows = windows.into_iter().map(|window| (window.vip, window));
        Ok(Some((
            windows.collect(),
            gate.fenced()?.into_iter().collect(),
        )))
    };
    let found = read().or_else(|_| read())?;
    Ok(found.unwrap_or_default())
}

/// If nfsd's state cannot be read, lockd may serve nevertheless.
fn server() -> Server {
    if !lockd::is_loaded() {
        return Server::NotLoaded;
    }
    match Nfsd::mounted().and_then(|nfsd| nfsd.threads()) {
        Ok(0) => Server::Stopped,
        _ => Server::Serving,
    }
}
