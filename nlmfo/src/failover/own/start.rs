//! The start of a server of its own on this node.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::no_runtime;
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
use crate::server::{self, Server};
use crate::times::milliseconds;
use crate::{output, runtime};

/// How much longer to follow the reclaims than the longest grace takes.
const MARGIN: Duration = Duration::from_secs(30);

/// lockd's grace unless it is set otherwise.
const LOCKD_GRACE: Duration = Duration::from_secs(50);

/// What a start did.
#[derive(Debug, Serialize)]
pub struct Started {
    /// The server was not stopped cleanly: what its clients held is not recorded.
    pub crashed: bool,
    /// Other servers that should not have noticed, and did.
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

/// Starts the server. `fenced`: it may have run on another node that did not stop it.
///
/// # Errors
/// It may serve nevertheless: see [`Server::is_here`].
pub fn start(server: &Server, fenced: bool) -> Result<Started, Failure> {
    start_held(server, &server.lock()?, fenced)
}

/// [`start`] for one who has the server's lock.
///
/// # Errors
/// Like [`start`].
pub fn start_held(server: &Server, _: &Held, fenced: bool) -> Result<Started, Failure> {
    let began = Instant::now();
    let plan = half::Plan {
        state: StateDir::new(server.state_dir()),
        config: Config::read(None).map_err(anyhow::Error::from)?,
        fences_nfs4: true,
        // nfsd extends its own up to twice, while clients reclaim.
        deadline: (server.description.grace * 2).max(LOCKD_GRACE) + MARGIN,
    };
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
    let followed = server.within(|| {
        let follow = own::follow(server, begun, &plan);
        let state = "the server serves; its clients may not have all their locks yet";
        runtime::run(or_interrupt(follow, &[], state)).map_err(no_runtime)
    });
    drop(paused);
    Ok(Started {
        crashed,
        disturbed,
        reclaim: followed???,
        took_ms: milliseconds(began.elapsed()),
    })
}
