//! NLM FREE_ALL in the name of each client, over `lo`.
//!
//! lockd looks up the host of a call by (client address, server address, transport,
//! NLM version) in its network namespace (`nlmsvc_lookup_host`), and FREE_ALL gives up
//! the locks, waiting requests and shares of that host and of no other: hosts are
//! compared by pointer (`nlmsvc_same_host`). One call for each host of the VIP therefore
//! releases exactly that VIP, on every kernel, IPv4 and IPv6 alike.
//!
//! Read in fs/lockd, 6.1.192 and 6.12.117:
//!
//! - FREE_ALL checks no grace period, no privilege and no port.
//! - It exists in v3 and v4. The table of v1 ends at procedure 16, so that hosts of v1
//!   get an UNLOCK of the whole file for each owner. That is refused in grace, and opens
//!   the file: its export must still be there.
//! - It drops one host's waiters and locks, and what another host waits for is granted at once: that
//!   client would be told of a lock that the next call takes away. So every waiter of the VIP gets a
//!   CANCEL before the first lock is released. If the CANCEL is refused (as UNLOCK is), FREE_ALL drops
//!   the waiter anyway.
//! - lockd takes calls only from addresses that some export names (`svc_set_client`). If the export was
//!   removed before the locks, the client is admitted for the time of the call: see [`Admission`].
//! - While no nfsd runs it answers and does nothing.
//! - lockd is one thread, so that no other call of lockd's walks its files meanwhile:
//!   `unlock_ip` lacks that safety on kernels before 6.1.188 and 6.12.109.

use futures_util::future::LocalBoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::route::Detour;
use super::target::{Request, RequestKind, Target};
use super::{Attempt, Error, Facts, HostReport, Job, Method, Reach, Report, Suitability};
use crate::causes::chain;
use crate::kernel::admission::Admission;
use crate::observe::counters::Counters;
use crate::observe::host::{Host, NlmVersion};
use crate::observe::lockd_ports::LockdPorts;
use crate::rpc::client::{self, Cause, Client, Endpoint, Source};
use crate::rpc::message::{Credential, Refusal};
use crate::rpc::nlm::{Lock, NlmClient, Share, Status};

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub struct FreeAll;

/// Hosts called at a time. lockd works through them one by one, and a backlog of 64
/// connections is what its listener takes.
const CONCURRENT: usize = 32;

/// Attempts for a host. The first one may collide with the real client's own connection on the same
/// source port, or with lockd closing it in favour of another one.
const TRIES: u32 = 2;

/// FREE_ALL is repeated while it makes progress: a client may have taken a lock between the
/// snapshot and the call.
const ROUNDS: usize = 3;

impl Method for FreeAll {
    fn name(&self) -> &'static str {
        "FREE_ALL"
    }

    fn id(&self) -> &'static str {
        "free_all"
    }

    fn reach(&self) -> Reach {
        Reach::Vip
    }

    fn calls_lockd(&self) -> bool {
        true
    }

    fn suitability(&self, _: &Facts) -> Suitability {
        Suitability::Fit
    }

    fn merit(&self, _: &Facts, tried: &[Attempt]) -> Option<String> {
        let last = (tried.iter()).rfind(|attempt| attempt.method.id() == self.id())?;
        Some(format!("{last}; it may release the rest"))
    }

    fn rounds(&self) -> usize {
        ROUNDS
    }

    /// Hosts of NLM v1 get a call for each lock.
    fn dropped(&self, seen: &Counters, version: NlmVersion) -> u64 {
        match version {
            NlmVersion::V1 => seen.unlocked,
            NlmVersion::V3 | NlmVersion::V4 => seen.released.free_all,
        }
    }

    fn release<'a>(&'a self, job: &'a Job<'a>) -> LocalBoxFuture<'a, Result<Report, Error>> {
        self.call(job, &[Pass::Waiters, Pass::Rest]).boxed_local()
    }
}

/// What the calls for a host release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Its waiters are cancelled.
    Waiters,
    /// Everything else is released.
    Rest,
    /// What the targets name is released, and nothing else of their hosts.
    Named,
}

impl FreeAll {
    /// Cancels the waiters of the job's targets. Held locks stay.
    pub(crate) async fn cancel_waiters(&self, job: &Job<'_>) -> Result<Report, Error> {
        self.call(job, &[Pass::Waiters]).await
    }

    /// Gives up what the targets name, each by a call of its own: UNLOCK, CANCEL, UNSHARE. What
    /// else their hosts hold stays. lockd refuses all three while it is in grace.
    pub(crate) async fn give_up_named(&self, job: &Job<'_>) -> Result<Report, Error> {
        self.call(job, &[Pass::Waiters, Pass::Named]).await
    }

    /// The report is of the last pass.
    async fn call(&self, job: &Job<'_>, passes: &[Pass]) -> Result<Report, Error> {
        let ports = LockdPorts::look_up()?;
        if ports.is_empty() {
            return Err(Error::NoLockd);
        }
        let clients: BTreeSet<IpAddr> = job.targets.iter().map(|t| t.host.client).collect();
        let until = Instant::now() + job.deadline;
        let detour = Detour::open(job.turn, job.vip, &clients).await?;
        let mut hosts = Vec::new();
        for &pass in passes {
            let concerned = |target: &&Target| pass != Pass::Waiters || !target.waiting.is_empty();
            let targets = job.targets.iter().filter(concerned);
            hosts = call_for_each(job, targets, pass, &ports, until).await;
            debug!(?pass, ?hosts, "called");
        }
        detour.close().await?;
        Ok(Report {
            action: format!("NLM calls over lo for {} hosts", hosts.len()),
            hosts,
        })
    }
}

async fn call_for_each(
    job: &Job<'_>,
    targets: impl IntoIterator<Item = &Target>,
    pass: Pass,
    ports: &LockdPorts,
    until: Instant,
) -> Vec<HostReport> {
    stream::iter(targets)
        .map(|target| release_host(job, target, pass, ports, until))
        .buffer_unordered(CONCURRENT)
        .collect()
        .await
}

async fn release_host(
    job: &Job<'_>,
    target: &Target,
    pass: Pass,
    ports: &LockdPorts,
    until: Instant,
) -> HostReport {
    let start = Instant::now();
    let outcome = match address_of_lockd(&target.host, job.netns, ports) {
        Err(reason) => Err(reason),
        Ok(peer) => match timeout_at(until, call_for(job, target, pass, peer)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!(
                "not finished within {:?} for all hosts",
                job.deadline
            )),
        },
    };
    HostReport {
        host: target.host,
        outcome,
        took: start.elapsed(),
    }
}

async fn call_for(
    job: &Job<'_>,
    target: &Target,
    pass: Pass,
    peer: SocketAddr,
) -> Result<String, String> {
    let mut admission = None;
    let mut tries = 1;
    loop {
        match try_call_for(job, target, pass, peer).await {
            Ok(outcome) => return outcome,
            Err(error) if admission.is_none() && is_of_no_export(&error) => {
                let admitted = Admission::of_unexported(target.host.client);
                admission = Some(admitted.map_err(|admitting| {
                        let error = chain(&error);
                        format!("{error}; no export covers the client, and it could not be admitted: {admitting}")
                    })?);
            }
            Err(_) if tries < TRIES => tries += 1,
            Err(error) => return Err(chain(&error)),
        }
    }
}

/// A retry may succeed after the outer error.
async fn try_call_for(
    job: &Job<'_>,
    target: &Target,
    pass: Pass,
    peer: SocketAddr,
) -> Result<Result<String, String>, client::Error> {
    let Target { host, caller, .. } = target;
    let rpc = Client::connect(Endpoint {
        peer,
        transport: host.transport,
        source: Source::InNameOf(host.client),
        // The credentials that the kernel's own NFS client uses.
        credential: Credential::Unix {
            machine: caller.as_bytes().to_vec(),
            uid: 0,
            gid: 0,
        },
        deadline: job.deadline,
    })
    .await?;
    let mut nlm = NlmClient::new(rpc, host.version);
    match (pass, host.version) {
        (Pass::Waiters, _) => give_up_each(&mut nlm, caller.as_bytes(), &target.waiting).await,
        (Pass::Rest, NlmVersion::V3 | NlmVersion::V4) => {
            nlm.free_all(caller.as_bytes(), 0).await?;
            Ok(Ok("FREE_ALL".into()))
        }
        (Pass::Rest, NlmVersion::V1) | (Pass::Named, _) => {
            give_up_each(&mut nlm, caller.as_bytes(), &target.held).await
        }
    }
}

fn is_of_no_export(error: &client::Error) -> bool {
    matches!(error.cause, Cause::Refused(Refusal::Authentication(_)))
}

/// The address at which the lockd of this host listens, or why it cannot be called.
fn address_of_lockd(host: &Host, netns: u32, ports: &LockdPorts) -> Result<SocketAddr, String> {
    if host.netns != netns {
        return Err(format!(
            "it belongs to network namespace {}; run nlmfo there",
            host.netns
        ));
    }
    if let IpAddr::V6(client) = host.client
        && client.is_unicast_link_local()
    {
        return Err("link-local clients are not supported: lockd does not store their link".into());
    }
    let port = ports
        .port(host.vip, host.version, host.transport)
        .ok_or_else(|| {
            let family = if host.vip.is_ipv4() { "IPv4" } else { "IPv6" };
            format!(
                "lockd does not listen for NLM {} over {} and {family}",
                host.version, host.transport
            )
        })?;
    Ok(SocketAddr::new(host.vip, port))
}

/// One call for each request.
async fn give_up_each(
    nlm: &mut NlmClient,
    caller: &[u8],
    requests: &[Request],
) -> Result<Result<String, String>, client::Error> {
    let mut refused = Vec::new();
    for request in requests {
        let lock = |range| Lock {
            caller: caller.to_owned(),
            file_handle: request.file_handle.clone(),
            owner: Vec::new(),
            svid: request.svid,
            range,
        };
        let (name, status) = match &request.kind {
            RequestKind::Held { range } => ("UNLOCK", nlm.unlock(&lock(*range)).await?),
            RequestKind::Waiting { range, exclusive } => {
                ("CANCEL", nlm.cancel(&lock(*range), *exclusive).await?)
            }
            RequestKind::Share {
                owner,
                access,
                deny,
            } => {
                let share = Share {
                    caller: String::from_utf8_lossy(caller).into_owned(),
                    file_handle: request.file_handle.clone(),
                    owner: owner.clone(),
                    deny: *deny,
                    access: *access,
                };
                ("UNSHARE", nlm.unshare(&share).await?)
            }
        };
        // A waiter that has gone since the snapshot is "denied" its CANCEL.
        let gone = name == "CANCEL" && status == Status::Denied;
        if status != Status::Granted && !gone {
            refused.push(format!("{name} for svid {}: {status:?}", request.svid));
        }
    }
    if refused.is_empty() {
        Ok(Ok(format!(
            "{} UNLOCK, CANCEL or UNSHARE calls",
            requests.len()
        )))
    } else {
        Ok(Err(format!("lockd refused {}", refused.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::host::Transport;
    use crate::observe::lockd_ports::LockdPort;

    fn host(vip: &str, client: &str, netns: u32) -> Host {
        Host {
            vip: vip.parse().unwrap(),
            client: client.parse().unwrap(),
            version: NlmVersion::V4,
            transport: Transport::Tcp,
            netns,
        }
    }

    fn ports() -> LockdPorts {
        let tcp = LockdPort {
            transport: Transport::Tcp,
            ipv6: false,
            port: 700,
        };
        LockdPorts::new(vec![tcp], vec![NlmVersion::V4])
    }

    #[test]
    fn a_host_is_called_at_its_own_vip() {
        let peer = address_of_lockd(&host("10.77.0.1", "10.77.0.11", 5), 5, &ports());
        assert_eq!(peer, Ok("10.77.0.1:700".parse().unwrap()));
    }

    #[test]
    fn a_host_that_cannot_be_called_says_why() {
        let elsewhere = address_of_lockd(&host("10.77.0.1", "10.77.0.11", 6), 5, &ports());
        assert!(elsewhere.unwrap_err().contains("network namespace 6"));
        let no_port = address_of_lockd(&host("fd77::1", "fd77::11", 5), 5, &ports());
        assert_eq!(
            no_port.unwrap_err(),
            "lockd does not listen for NLM v4 over tcp and IPv6"
        );
        let link_local = address_of_lockd(&host("fe80::1", "fe80::11", 5), 5, &ports());
        assert!(link_local.unwrap_err().contains("link-local"));
    }
}
