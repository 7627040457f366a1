//! SM_NOTIFY to this node's lockd, as if a client had rebooted.
//!
//! It releases a client's locks on **all** VIPs, so it is used only on request, and only for clients
//! that use no other VIP. lockd knows a client by the cookie that it gave statd with `SM_MON`: this
//! method cannot release a client that is not monitored.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use super::target::{Monitored, Target};
use super::{Attempt, Error, Facts, HostReport, Job, Method, Reach, Report, Suitability};
use crate::causes::chain;
use crate::observe::counters::Counters;
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::lockd_ports::LockdPorts;
use crate::rpc::nsm;

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub struct Reboot;

impl Method for Reboot {
    fn name(&self) -> &'static str {
        "SM_NOTIFY"
    }

    fn id(&self) -> &'static str {
        "reboot"
    }

    fn reach(&self) -> Reach {
        Reach::Clients
    }

    fn calls_lockd(&self) -> bool {
        true
    }

    fn suitability(&self, facts: &Facts) -> Suitability {
        match facts.reboot_allowed {
            true => Suitability::Fit,
            false => Suitability::Absent,
        }
    }

    fn merit(&self, _: &Facts, _: &[Attempt]) -> Option<String> {
        Some("--reboot-notice was given".into())
    }

    fn dropped(&self, seen: &Counters, _: NlmVersion) -> u64 {
        seen.released.client_reboot
    }

    fn release<'a>(&'a self, job: &'a Job<'a>) -> LocalBoxFuture<'a, Result<Report, Error>> {
        notify_for_each(job).boxed_local()
    }
}

async fn notify_for_each(job: &Job<'_>) -> Result<Report, Error> {
    let ports = LockdPorts::look_up()?;
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let (transport, port) = [Transport::Udp, Transport::Tcp]
        .into_iter()
        .find_map(|transport| {
            let port = ports.port(loopback, NlmVersion::V4, transport)?;
            Some((transport, port))
        })
        .ok_or(Error::NoLockd)?;
    let mut hosts = Vec::new();
    for target in job.targets {
        let start = Instant::now();
        let outcome = match monitored(target, job.elsewhere) {
            Err(reason) => Err(reason),
            Ok(Monitored { name, cookie }) => nsm::notify(
                transport,
                port,
                name.as_bytes(),
                fresh_state(),
                cookie,
                job.deadline,
            )
            .await
            .map(|()| format!("SM_NOTIFY for {name}"))
            .map_err(|error| chain(&error)),
        };
        hosts.push(HostReport {
            host: target.host,
            outcome,
            took: start.elapsed(),
        });
    }
    Ok(Report {
        action: format!("SM_NOTIFY to lockd for {} hosts", hosts.len()),
        hosts,
    })
}

/// The cookie by which lockd knows the client, or why it cannot be declared rebooted.
fn monitored<'t>(
    target: &'t Target,
    elsewhere: &BTreeSet<IpAddr>,
) -> Result<&'t Monitored, String> {
    let client = target.host.client;
    if elsewhere.contains(&client) {
        return Err(format!(
            "{client} also uses other addresses of this node and would lose those locks too"
        ));
    }
    target
        .monitored
        .as_ref()
        .ok_or_else(|| format!("{client} is not monitored by statd, so lockd cannot identify it"))
}

/// A state number that is new to this client's hosts: lockd skips hosts that already have it. Real
/// state numbers of statd count reboots and stay far below the time in seconds since 1970.
fn fresh_state() -> u32 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_secs() as u32 | 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::host::Host;

    fn target(client: &str, monitored: bool) -> Target {
        Target {
            host: Host::sample([10, 77, 0, 1], client.parse::<IpAddr>().unwrap()),
            caller: "c1".into(),
            monitored: monitored.then(|| Monitored {
                name: client.into(),
                cookie: [7; 16],
            }),
            waiting: Vec::new(),
            held: Vec::new(),
        }
    }

    #[test]
    fn only_a_monitored_client_of_no_other_vip_is_told_to_have_rebooted() {
        let elsewhere = ["10.77.0.12".parse().unwrap()].into();
        let monitored = |target| monitored(target, &elsewhere);
        let told = target("10.77.0.11", true);
        assert_eq!(monitored(&told).unwrap().cookie, [7; 16]);
        let other = target("10.77.0.12", true);
        assert!(monitored(&other).unwrap_err().contains("other addresses"));
        let unmonitored = target("10.77.0.11", false);
        assert!(
            monitored(&unmonitored)
                .unwrap_err()
                .contains("not monitored")
        );
    }
}
