//! `nlmfo failover --whole-server`: the node's own server moves with all its VIPs. The release is the
//! first half of a restart, and the takeover the second one, on another node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tokio::time::sleep;

use super::handed::{self, HandedError};
use super::node::NodeServer;
use super::report::RestartReport;
use super::run::{self, Plan};
use super::{NotReady, Server, ServerError, identity};
use crate::causes::chain;
use crate::exit::{Exit, Failure};
use crate::failover::announce::announce;
use crate::failover::record::Record;
use crate::failover::watch::observe;
use crate::kernel::{netns, nfsd, nfsdcld};
use crate::notify::state_dir::StateDir;
use crate::output;
use crate::rpc::nfs4::Identity;
use crate::server::program;

/// Maximum time to follow the reclaims; the kernel's own grace may end earlier.
pub const DEADLINE: Duration = Duration::from_mins(5);

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What a takeover needs besides the plan of the start.
#[derive(Clone, Debug)]
pub struct Takeover {
    /// The VIPs that move, if they are named.
    pub vips: Vec<IpAddr>,
    /// The record of the release, if it is given.
    pub given: Option<Record>,
    /// Maximum time to wait, in grace, until the VIPs are up.
    pub wait_address: Duration,
}

/// Takes the server over.
///
/// # Errors
/// With [`Exit::NotConfirmed`] if it runs here.
pub async fn run(
    plan: &Plan,
    node: &NodeServer,
    takeover: Takeover,
) -> Result<RestartReport, Failure> {
    let runs = nfsd::runs();
    let refused = |error: HandedError| {
        let context = match runs {
            true => "nothing was changed; the NFS server runs on this node",
            false => "nothing was changed; the NFS server was not started",
        };
        Failure::new(Exit::Unsupported, anyhow!(error).context(context))
    };
    let record = handed::adopt(&plan.state, takeover.given).map_err(refused)?;
    let mut vips: BTreeSet<IpAddr> = takeover.vips.into_iter().collect();
    if let Some(record) = &record {
        handed::check(record, &plan.state, node, runs).map_err(refused)?;
        vips.extend(&record.vips);
    }
    let lines = record.iter().flat_map(|record| &record.nfs4);
    let newest = lines.map(|line| line.client.minor).max();
    let taking = Taking {
        node,
        ran: runs,
        holds_nfs4: newest.is_some(),
        has_sessions: newest > Some(0),
        recorded: record.is_some(),
        identity: match record {
            Some(record) => record.identity,
            None => identity::remembered(&plan.state),
        },
        state: &plan.state,
        vips,
        wait_address: takeover.wait_address,
        exposed: AtomicBool::new(false),
    };
    if runs {
        taking.daemon().map_err(refused)?;
    }
    let done = run::run(plan, &taking, observe).await;
    done.map_err(
        |failure| match nfsd::runs() || taking.exposed.load(Relaxed) {
            true => Failure::new(Exit::NotConfirmed, failure.error),
            false => failure,
        },
    )
}

/// Why this node cannot take a server over now; empty if it can.
pub fn hindrances() -> Vec<String> {
    let mut hindrances = Vec::new();
    if nfsd::runs() {
        hindrances.push(
            "the NFS server runs here: stop it, since clients reclaim only when a server starts"
                .to_owned(),
        );
    }
    let missing = ["rpc.nfsd", "rpc.statd"]
        .into_iter()
        .filter(|name| !program::exists(name));
    hindrances.extend(missing.map(|name| format!("there is no {name}")));
    hindrances
}

/// The node's server, whose clients come from another node.
struct Taking<'a> {
    node: &'a NodeServer,
    /// It ran here before.
    ran: bool,
    /// NFSv4 clients are recorded, and of them some of 4.1 or newer.
    holds_nfs4: bool,
    has_sessions: bool,
    /// There is a record of the release.
    recorded: bool,
    /// What they know the server by; without a record, what nlmfo saw last.
    identity: Option<Identity>,
    state: &'a StateDir,
    vips: BTreeSet<IpAddr>,
    wait_address: Duration,
    /// Clients could reach a server that they do not reclaim from.
    exposed: AtomicBool,
}

impl Taking<'_> {
    /// Whether nfsdcld uses the database that it has moved along, once it runs.
    fn daemon(&self) -> Result<(), HandedError> {
        match self.node.nfs4_records() {
            Some(database) if self.holds_nfs4 => match nfsdcld::uses(&database) {
                Ok(true) => Ok(()),
                _ => Err(HandedError::OtherDatabase(database)),
            },
            _ => Ok(()),
        }
    }

    /// Whether NFSv4 clients reclaim from the server that runs now.
    async fn is_the_same(&self) -> Result<(), String> {
        if self.recorded && !self.has_sessions {
            return Ok(());
        }
        let now = identity::of_server().await;
        if let Err(reason) = same(self.identity.as_ref(), &now) {
            if self.recorded && self.identity.is_some() {
                return Err(reason);
            }
            output::note(reason);
        }
        if let Ok(Some(now)) = &now {
            identity::remember(self.state, now);
        }
        Ok(())
    }

    /// Waits until the VIPs are up, and announces each as soon as it is.
    async fn wait(&self) -> Result<(), ServerError> {
        let until = Instant::now() + self.wait_address;
        let mut announced = BTreeSet::new();
        loop {
            let here = netns::addresses();
            let here = here.map_err(|error| ServerError::Other(format!("addresses: {error}")))?;
            for &vip in self.vips.intersection(&here) {
                if announced.insert(vip) {
                    announce(vip);
                }
            }
            let missing: Vec<String> = (self.vips.difference(&here))
                .map(IpAddr::to_string)
                .collect();
            if missing.is_empty() || Instant::now() >= until {
                return Ok(());
            }
            output::progress(format_args!("waiting for {}", missing.join(", ")));
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// Whether clients that know the server by this reclaim from the one that runs now.
fn same(expected: Option<&Identity>, now: &Result<Option<Identity>, String>) -> Result<(), String> {
    let Some(expected) = expected else {
        return Err(
            "the scope that the server had before is not known: if it was another one, NFSv4.1 and 4.2 \
             clients cannot reclaim"
                .to_owned(),
        );
    };
    let scope = &expected.scope;
    match now {
        Ok(Some(now)) if now == expected => Ok(()),
        Ok(Some(now)) => Err(format!(
            "its scope is {}, and NFSv4 clients reclaim only from one with the scope {scope}: start it with \
             that scope (`scope` in section [nfsd] of /etc/nfs.conf, or the host name)",
            now.scope
        )),
        Ok(None) => Err("NFSv4.1 and 4.2 are not served".to_owned()),
        Err(reason) => Err(format!("its scope is not known: {reason}")),
    }
}

impl Server for Taking<'_> {
    fn title(&self) -> String {
        self.node.title()
    }

    async fn stop(&self) -> Result<(), ServerError> {
        self.node.stop().await
    }

    async fn prepare(&self) -> Vec<NotReady> {
        self.node.prepare().await
    }

    async fn start(&self) -> Result<(), ServerError> {
        if !self.ran {
            let used = self.daemon();
            used.map_err(|error| ServerError::Other(chain(&error)))?;
        }
        self.node.start().await
    }

    async fn appear(&self) -> Result<(), ServerError> {
        if let Err(reason) = self.is_the_same().await {
            let mut vips = self.vips.iter();
            let exposed = vips.any(|vip| netns::has_address(*vip).unwrap_or(true));
            self.exposed.store(exposed, Relaxed);
            if !self.ran {
                // Within grace: the clients reclaim from the next start, here or on the other node.
                self.node.stop().await?;
            }
            return Err(ServerError::Other(reason));
        }
        self.wait().await
    }

    fn nfs4_records(&self) -> Option<PathBuf> {
        self.node.nfs4_records()
    }

    fn monitored(&self) -> Vec<PathBuf> {
        self.node.monitored()
    }
}

/// Reads the record of the release.
///
/// # Errors
/// If it cannot be read.
pub fn given(path: Option<&Path>) -> Result<Option<Record>, Failure> {
    let record = path.map(Record::read).transpose();
    Ok(record.context("the record of the release")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_reclaim_from_a_server_with_the_same_scope() {
        let identity = |scope: &str| Identity {
            scope: scope.into(),
            owner: scope.into(),
        };
        let (a, b) = (identity("a"), identity("b"));
        assert_eq!(same(Some(&a), &Ok(Some(a.clone()))), Ok(()));
        let refused = |expected, now: Result<Option<Identity>, String>| {
            same(expected, &now).expect_err("another one")
        };
        assert!(refused(Some(&a), Ok(Some(b))).contains("the scope a"));
        assert!(refused(Some(&a), Ok(None)).contains("not served"));
        assert!(refused(Some(&a), Err("no answer".into())).contains("no answer"));
        assert!(refused(None, Ok(Some(a.clone()))).contains("before is not known"));
    }
}
