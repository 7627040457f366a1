//! The state of the server in one network namespace, by the kernel.

use std::time::Duration;

use serde::Serialize;
use tracing::{debug, warn};

use super::description::Version;
use super::{ServerError, folder, running, within};
use crate::causes::chain;
use crate::kernel::grace::Grace;
use crate::kernel::namespaces::Namespaces;
use crate::kernel::nfsd::{Nfsd, Versions};
use crate::observe::lockd_queue::pass_queue;
use crate::runtime;

/// The state of nfsd and lockd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    pub threads: u32,
    pub versions: Vec<Version>,
    /// NFSv4 clients.
    pub clients: usize,
    pub grace: Grace,
}

/// Reads those of this thread's namespaces.
pub fn here() -> Result<Facts, ServerError> {
    let Ok(nfsd) = Nfsd::mounted() else {
        return Ok(Facts::default());
    };
    let threads = nfsd.threads()?;
    if threads == 0 {
        return Ok(Facts {
            clients: nfsd.clients()?,
            ..Facts::default()
        });
    }
    Ok(Facts {
        threads,
        versions: served(&nfsd.versions()?),
        clients: nfsd.clients()?,
        grace: Grace::read::<ServerError>()?,
    })
}

/// The versions that nfsd serves.
pub fn served(versions: &Versions) -> Vec<Version> {
    let is_served = |version: &Version| match version {
        Version::V3 => versions.has_v3(),
        Version::V4(minor) => versions.has_v4((*minor).into()),
    };
    Version::ALL.into_iter().filter(is_served).collect()
}

/// Maximum time for lockd to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// All servers of this node but one: the node's own, and those in namespaces of their own, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others(Vec<(String, Facts)>);

/// Wakes lockd's thread, which all servers of a node share, after one of them has stopped.
///
/// When the sockets of the stopped server are closed, requests to other servers that wait in the
/// thread's queue are put back without waking the thread (`svc_clean_up_xprts`,
/// `net/sunrpc/svc_xprt.c`, 6.7 to 7.3). Without another call, such a request waits until its client
/// connects again: 17 and 62 s were seen on 6.12.111. Any call wakes the thread.
pub fn wake_lockd() {
    let is_awake = call_lockd()
        || (running().into_iter()).any(|other| within(&other, call_lockd).unwrap_or(false));
    debug!(is_awake, "called lockd for the other servers");
}

/// Has lockd answer a call in this thread's network namespace; false if it does not listen there.
fn call_lockd() -> bool {
    let called = runtime::finish(|| pass_queue(ANSWER));
    match called {
        Ok(Ok(is_answered)) => is_answered,
        Ok(Err(error)) => {
            warn!(error = chain(&error), "lockd does not answer");
            true
        }
        Err(error) => {
            warn!(error = chain(&error), "lockd could not be called");
            true
        }
    }
}

impl Others {
    pub fn than(name: &str) -> Result<Self, ServerError> {
        let mut all = vec![("this node's own server".to_owned(), here()?)];
        for other in running().into_iter().filter(|other| other != name) {
            let namespaces = Namespaces::in_folder(folder().join(&other));
            // It may stop in the meantime.
            if let Ok(facts) = namespaces.within(here) {
                all.push((format!("server {other}"), facts?));
            }
        }
        Ok(Others(all))
    }

    /// What has happened to the other servers that should not: they stopped, or entered grace.
    pub fn disturbed(&self, after: &Others) -> Vec<String> {
        let mut disturbed = Vec::new();
        for (name, before) in &self.0 {
            let Some((_, after)) = after.0.iter().find(|(other, _)| other == name) else {
                continue;
            };
            if after.threads != before.threads {
                let (before, after) = (before.threads, after.threads);
                disturbed.push(format!("{name} had {before} threads and has {after}"));
            }
            let entered = (after.grace.nfsd && !before.grace.nfsd)
                || (after.grace.lockd && !before.grace.lockd);
            if entered {
                disturbed.push(format!("{name} has entered grace"));
            }
        }
        disturbed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_undisturbed_while_they_serve_on() {
        let facts = |threads, nfsd, lockd| Facts {
            threads,
            grace: Grace { lockd, nfsd },
            ..Facts::default()
        };
        let others = |facts: Facts| Others(vec![("server data".into(), facts)]);
        let disturbed = |before, after| others(before).disturbed(&others(after)).len();
        assert_eq!(disturbed(facts(8, false, false), facts(8, false, false)), 0);
        // Grace ends by itself.
        assert_eq!(disturbed(facts(8, true, true), facts(8, false, false)), 0);
        assert_eq!(disturbed(facts(8, false, false), facts(8, true, false)), 1);
        assert_eq!(disturbed(facts(8, true, false), facts(8, true, true)), 1);
        assert_eq!(disturbed(facts(8, false, false), facts(0, false, true)), 2);
        assert!(
            others(facts(8, false, false))
                .disturbed(&Others::default())
                .is_empty()
        );
    }
}
