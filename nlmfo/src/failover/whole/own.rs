//! A server in namespaces of its own. All of this runs in them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use anyhow::anyhow;

use super::report::{Ended, StartReport, StopReport};
use super::run::{following, of_start, of_stop};
use super::stop::StopError;
use super::{Server, ServerError, delegations, reserve, start, stop};
use crate::causes::chain;
use crate::exit::Failure;
use crate::failover::watch::Watch;
use crate::kernel::connections::{self, Connection};
use crate::kernel::grace::Grace;
use crate::kernel::nfsd;
use crate::kernel::preflight::Facts;
use crate::notify::state_dir::StateDir;
use crate::server;
use crate::server::phase::{self, Phase};

/// The server as one that stops and starts as a whole. `crashed` is of the start: there is no
/// record.
struct Own<'a> {
    server: &'a server::Server,
    crashed: bool,
}

fn other(error: server::ServerError) -> ServerError {
    ServerError::Other(chain(&error))
}

fn state(server: &server::Server) -> StateDir {
    StateDir::new(server.state_dir())
}

impl Server for Own<'_> {
    fn title(&self) -> String {
        format!("server {}", self.server.name())
    }

    async fn stop(&self) -> Result<(), ServerError> {
        server::stop::halt(self.server).map_err(other)
    }

    async fn start(&self) -> Result<(), ServerError> {
        server::start::threads(self.server).map_err(other)?;
        let grace = Grace::read().map_err(other)?;
        // If it cannot be read, a later step reports that.
        let record = stop::stored(&state(self.server)).ok().flatten();
        match record {
            Some(record) if !record.nfs4.is_empty() && !grace.nfsd => Err(ServerError::Other(
                "NFSv4 clients held state at the stop, but nfsd is not in grace: nfsdcld has no \
                 records of them, and others could take their locks"
                    .to_owned(),
            )),
            _ => Ok(()),
        }
    }

    async fn appear(&self) -> Result<(), ServerError> {
        let crashed = self.crashed;
        reserve::take_half(&state(self.server));
        server::start::appear(self.server, Phase::Reclaiming { crashed }).map_err(other)
    }

    fn serves(&self, vip: IpAddr) -> bool {
        self.server.description.has_vip(vip)
    }

    fn connections(&self) -> Vec<Connection> {
        let found = connections::established(|vip| self.server.description.has_vip(vip));
        found.unwrap_or_default()
    }

    fn nfs4_records(&self) -> Option<PathBuf> {
        (self.server.description.serves_v4()).then(|| self.server.nfs4_records())
    }

    fn monitored(&self) -> Vec<PathBuf> {
        self.server.monitored().into()
    }
}

/// What a stop did.
pub struct Stopped {
    /// None if the server had stopped before.
    pub report: Option<StopReport>,
    /// When packets from clients were dropped.
    pub fenced: Instant,
    /// The probes. Detaching them takes a second, for which clients would be blocked.
    pub watch: Option<Watch>,
}

/// Records what the clients hold, stops the server, and proves that nothing is left. Once delegations
/// are back, packets from clients are dropped.
///
/// # Errors
/// If the server still runs then, its addresses are up again.
pub async fn stop(
    server: &server::Server,
    observe: impl Fn() -> Result<(Facts, Watch), Failure>,
) -> Result<Stopped, Failure> {
    let mut observed = None;
    if nfsd::runs() {
        let (facts, mut watch) = observe()?;
        delegations::recall(&mut watch).await;
        observed = Some((facts, watch));
    }
    server::stop::fence(server).map_err(anyhow::Error::from)?;
    let fenced = Instant::now();
    let done = match &mut observed {
        Some((facts, watch)) => record_and_stop(server, facts, watch).await.map(Some),
        None => server::stop::halt(server)
            .map(|()| None)
            .map_err(|error| anyhow::Error::from(error).into()),
    };
    if done.is_err() && nfsd::runs() {
        reserve::take_all(&state(server));
        server::stop::unfence(server).map_err(anyhow::Error::from)?;
    }
    done.map(|report| Stopped {
        report,
        fenced,
        watch: observed.map(|(_, watch)| watch),
    })
}

async fn record_and_stop(
    server: &server::Server,
    facts: &Facts,
    watch: &mut Watch,
) -> Result<StopReport, Failure> {
    let plan = stop::Plan {
        state: state(server),
        kernel: facts.release.clone(),
        partial: false,
        identity: None,
        moving: None,
    };
    let own = Own {
        server,
        crashed: false,
    };
    let recorded = stop::record(&own, &plan, watch).map_err(of_stop)?;
    let blockers = recorded.blockers(&plan, &[]);
    if !blockers.is_empty() {
        return Err(of_stop(StopError::Refused(blockers)));
    }
    let stopped = recorded.stop(&own, &plan, None, watch).await;
    stopped.map_err(of_stop)
}

/// Whether leases may be paused while clients reclaim.
pub fn allows_pause(server: &server::Server) -> bool {
    stop::allows_pause(&state(server))
}

/// Forgets the record of an earlier stop: the server has run since then.
pub fn forget(server: &server::Server) {
    start::forget(&state(server));
}

/// Lets the server start on another node; without a record of what its clients held, as after a
/// crash.
pub fn give_up(server: &server::Server) -> Result<(), server::ServerError> {
    match stop::stored(&state(server)) {
        Ok(Some(_)) => server::holder::remove(server),
        _ => server::holder::leave(server),
    }
}

/// Continues a start that was interrupted when the server already served. The probes are attached if a
/// client may have something to reclaim.
///
/// # Errors
/// The server continues to serve.
pub fn resume(
    server: &server::Server,
    crashed: bool,
    observe: fn() -> Result<(Facts, Watch), Failure>,
) -> Result<Begun, Failure> {
    let own = Own { server, crashed };
    let begun = start::Begun::earlier(&own).map_err(of_start)?;
    let is_needed =
        crashed || begun.grace().stands() || !matches!(stop::stored(&state(server)), Ok(None));
    Ok((begun, is_needed.then(|| following(observe))))
}

/// A start, and the probes if a client may have something to reclaim.
pub type Begun = (start::Begun, Option<Result<Watch, Failure>>);

/// Starts the server in grace and brings its addresses up. If a client may have something to reclaim,
/// the probes are attached in parallel, which takes as long as the start. `crashed`: there is no
/// record, and clients reclaim.
///
/// # Errors
/// If it does not serve.
pub async fn begin(
    server: &server::Server,
    crashed: bool,
    observe: fn() -> Result<(Facts, Watch), Failure>,
) -> Result<Begun, Failure> {
    let is_needed = crashed || !matches!(stop::stored(&state(server)), Ok(None));
    // A thread is in the namespaces of the one that starts it.
    let attaching = is_needed.then(|| thread::spawn(move || following(observe)));
    let attached = |grace: Grace| match attaching {
        Some(thread) => {
            let panicked = |_| Err(anyhow!("the thread that attaches the probes panicked").into());
            Some(thread.join().unwrap_or_else(panicked))
        }
        None => grace.stands().then(|| following(observe)),
    };
    reserve::free(&state(server));
    let own = Own { server, crashed };
    let begun = start::begin(&own, false, attached).await;
    begun.map_err(of_start)
}

/// Notifies the clients, follows the reclaims, and ends both grace periods once all is back. None if no
/// client has anything to reclaim.
///
/// # Errors
/// The server continues to serve.
pub async fn follow(
    server: &server::Server,
    (begun, watch): Begun,
    plan: &start::Plan,
) -> Result<Option<StartReport>, Failure> {
    let mut report = None;
    if let Some(watch) = watch {
        let followed = start::follow(plan, begun, &mut watch?).await;
        let (done, _) = followed.map_err(of_start)?;
        if done.ended != Ended::NotYet || done.expected == 0 {
            start::forget(&state(server));
        }
        report = Some(done);
    }
    reserve::take_all(&state(server));
    phase::set(Phase::Serving).map_err(anyhow::Error::from)?;
    Ok(report)
}
