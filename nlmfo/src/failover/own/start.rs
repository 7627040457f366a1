//! The start of a server of its own on this node.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use serde::Serialize;

use super::no_runtime;
use super::stop::{Stopped, stop_held};
use crate::causes::chain;
use crate::exit::{Exit, Failure};
use crate::failover::interrupted::or_interrupt;
use crate::failover::watch::observe;
use crate::failover::whole::report::StartReport;
use crate::failover::whole::{leases, own, start as half};
use crate::files::lock::Held;
use crate::notify::config::Config;
use crate::notify::state_dir::StateDir;
use crate::server::holder::{self, Last};
use crate::server::phase::{self, Phase};
use crate::server::{self, Server, status};
use crate::times::milliseconds;
use crate::{output, runtime};

/// How much longer to follow the reclaims than the longest grace takes.
const MARGIN: Duration = Duration::from_secs(30);

/// lockd's default grace time.
const LOCKD_GRACE: Duration = Duration::from_secs(50);

/// What a start did.
#[derive(Debug, Serialize)]
pub struct Started {
    /// The server served before, and nothing was done.
    pub already: bool,
    /// The server was not stopped cleanly: what its clients held is not recorded.
    pub crashed: bool,
    /// Other servers that were disturbed and should not have been.
    pub disturbed: Vec<String>,
    /// What the clients reclaimed; null if no client is known.
    pub reclaim: Option<StartReport>,
    pub took_ms: f64,
}

impl Started {
    pub const SCHEMA: &str = "nlmfo.server.start/1";

    pub fn exit(&self) -> Exit {
        let reclaimed = self.reclaim.as_ref().map_or(Exit::Done, StartReport::exit);
        match self.disturbed.is_empty() && !self.crashed {
            true => reclaimed,
            false => Exit::NotConfirmed,
        }
    }
}

/// Starts the server unless it serves, or continues a start or a stop that was interrupted. With
/// `fenced`, it is started even if another node did not stop it.
///
/// # Errors
/// It may serve nevertheless: see [`Server::is_here`].
pub fn start(server: &Server, fenced: bool) -> Result<Started, Failure> {
    start_held(server, &server.lock()?, fenced)
}

/// [`start`] for a caller that holds the server's lock.
///
/// # Errors
/// Like [`start`].
pub fn start_held(server: &Server, held: &Held, fenced: bool) -> Result<Started, Failure> {
    let began = Instant::now();
    let plan = half::Plan {
        state: StateDir::new(server.state_dir()),
        config: Config::read(None).map_err(anyhow::Error::from)?,
        fences_nfs4: true,
        // nfsd extends its own grace up to twice while clients reclaim.
        deadline: (server.description.grace * 2).max(LOCKD_GRACE) + MARGIN,
    };
    let here = (server.is_here()).then(|| server.within(phase::read));
    match here.transpose()? {
        None => {}
        Some(Phase::Serving) => return serving(server),
        Some(Phase::Reclaiming { crashed }) => return resume(server, crashed, &plan, began),
        Some(Phase::Unfinished) => {
            output::note(format_args!(
                "a start or stop of server {} was interrupted: stopping it first",
                server.name()
            ));
            let stopped = stop_held(server, held)?;
            if !stopped.is_proved() {
                return Err(not_stopped(server, &stopped));
            }
        }
    }
    let created = server::start::create(server, fenced)?;
    let crashed = created.last == Last::Crashed;
    if crashed {
        server.within(|| own::forget(server))?;
    }
    let wanted = server.within(|| own::allows_pause(server))?;
    // Of the node: the server has a /run of its own.
    let paused = runtime::run(leases::pause_if(wanted, None)).map_err(no_runtime)?;
    let begun =
        server.within(|| runtime::run(own::begin(server, crashed, observe)).map_err(no_runtime));
    let begun = match begun.map_err(Failure::from).flatten().flatten() {
        Ok(begun) => begun,
        Err(failure) => {
            // Without it, the record of the stop stands, for a start here or on another node.
            if !crashed && let Err(error) = server.within(|| holder::remove(server)).flatten() {
                output::note(chain(&error));
            }
            let undone = server::start::undone(server, &chain(&*failure.error));
            return Err(Failure::new(failure.exit, undone));
        }
    };
    let disturbed = created.disturbed(server)?;
    let followed = follow(server, begun, &plan);
    drop(paused);
    Ok(Started {
        already: false,
        crashed,
        disturbed,
        reclaim: followed?,
        took_ms: milliseconds(began.elapsed()),
    })
}

/// Does nothing; an error if something is missing.
fn serving(server: &Server) -> Result<Started, Failure> {
    let problems = status::of(server)?.problems;
    if !problems.is_empty() {
        let name = server.name();
        let error = anyhow!("server {name} already runs, but {}", problems.join("; "));
        return Err(error.into());
    }
    Ok(Started {
        already: true,
        crashed: false,
        disturbed: Vec::new(),
        reclaim: None,
        took_ms: 0.0,
    })
}

/// Continues an interrupted start: the server serves, and clients may still reclaim.
fn resume(
    server: &Server,
    crashed: bool,
    plan: &half::Plan,
    began: Instant,
) -> Result<Started, Failure> {
    output::note(format_args!(
        "server {} already serves, but an earlier start was interrupted: waiting for its clients",
        server.name()
    ));
    let begun = server.within(|| own::resume(server, crashed, observe))?;
    Ok(Started {
        already: false,
        crashed,
        disturbed: Vec::new(),
        reclaim: follow(server, begun?, plan)?,
        took_ms: milliseconds(began.elapsed()),
    })
}

fn follow(
    server: &Server,
    begun: own::Begun,
    plan: &half::Plan,
) -> Result<Option<StartReport>, Failure> {
    let followed = server.within(|| {
        let follow = own::follow(server, begun, plan);
        let state = "the server serves; its clients may not have all their locks yet";
        runtime::run(or_interrupt(follow, &[], state)).map_err(no_runtime)
    });
    followed??
}

fn not_stopped(server: &Server, stopped: &Stopped) -> Failure {
    let left = (stopped.release.as_ref()).map_or_else(String::new, |report| report.left.join("; "));
    let error = anyhow!(
        "server {} was not started, because its stop left: {left}",
        server.name()
    );
    Failure::new(Exit::NotConfirmed, error)
}
