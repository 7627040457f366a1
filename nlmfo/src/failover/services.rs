//! Whether the services of this node are ready for a takeover. What would lose locks is
//! found before grace starts, a client is notified, or anything is released on another
//! node.
//!
//! lockd asks rpc.statd before it grants a client's first lock, and finds statd through
//! rpcbind. Clients find lockd through rpcbind. If one of the three hangs or has lost its
//! registrations, every reclaim is lost without a trace in lockd's answers.

pub mod look;

use std::net::IpAddr;

use crate::kernel::preflight::{Capability, Check, Need};
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::lockd_ports::LockdPorts;
use crate::rpc::nlm;
use crate::rpc::portmap::Registered;

/// What was seen; errors are text.
#[derive(Clone, Debug)]
pub struct Facts {
    /// nfsd's threads run.
    pub nfsd: Capability,
    pub serves_v3: Result<bool, String>,
    /// Number of exported directories.
    pub exports: Result<usize, String>,
    pub lockd: Result<LockdPorts, String>,
    /// The result of a null call to lockd; none if it does not listen.
    pub lockd_answers: Option<Result<(), String>>,
    pub rpcbind: Result<Registered, String>,
    /// The result of a null call to rpc.statd; none if it is not registered.
    pub statd: Option<Result<(), String>>,
    /// Whether the state directory can be written to.
    pub state_dir: Result<(), String>,
    /// Whether statd's user can read the client books there.
    pub callout: Result<(), String>,
}

/// Why the facts are checked.
#[derive(Clone, Debug, Default)]
pub struct Purpose {
    /// The VIPs to take over; none means both address families.
    pub vips: Vec<IpAddr>,
    /// The exports must exist now: they do not come with the address.
    pub exports_now: bool,
    /// What the kernel lacks, so that lockd's sockets cannot be read.
    pub unseen: Option<&'static str>,
}

/// The findings. A cause comes before its consequences.
pub fn decide(facts: &Facts, purpose: &Purpose) -> Vec<Check> {
    use Need::{Option, Required};
    let check = |name: &str, purpose, need, capability| Check {
        name: name.to_owned(),
        purpose,
        need,
        capability,
    };
    let nfsd = &facts.nfsd;
    let listens = unless([("nfsd", nfsd)], || match (&facts.lockd, purpose.unseen) {
        (Err(_), Some(because)) => Capability::Unknown { because },
        _ => listens(&facts.lockd),
    });
    let rpcbind = unless([("nfsd", nfsd)], || rpcbind(&facts.rpcbind));
    let registered = [
        ("nfsd", nfsd),
        ("lockd_listens", &listens),
        ("rpcbind", &rpcbind),
    ];
    let registered = unless(registered, || registered_ports(facts, purpose));
    let statd = unless([("nfsd", nfsd), ("rpcbind", &rpcbind)], || statd(facts));
    let answers = unless([("nfsd", nfsd), ("lockd_listens", &listens)], || {
        lockd_answers(facts)
    });
    let exports_need = match purpose.exports_now {
        true => Required,
        false => Option,
    };
    vec![
        check(
            "nfsd",
            "the NFS server and releases",
            Required,
            nfsd.clone(),
        ),
        check(
            "nfsv3",
            "NFSv3 clients",
            Required,
            unless([("nfsd", nfsd)], || serves_v3(&facts.serves_v3)),
        ),
        check(
            "exports",
            "reclaims",
            exports_need,
            unless([("nfsd", nfsd)], || exports(&facts.exports)),
        ),
        check("lockd_listens", "NLM calls", Required, listens),
        check("lockd_answers", "NLM calls", Required, answers),
        check("rpcbind", "lookup of lockd and statd", Required, rpcbind),
        check(
            "rpcbind_nlm",
            "lookup of lockd by clients",
            Required,
            registered,
        ),
        check("statd", "granting locks", Required, statd),
        check(
            "state_dir",
            "the client book and the state numbers",
            Option,
            state_dir(&facts.state_dir),
        ),
        check(
            "callout",
            "statd's callout (`nlmfo ha-callout`)",
            Option,
            callout(&facts.callout),
        ),
    ]
}

/// What would lose locks, as text, each with its fix.
pub fn blockers(checks: &[Check]) -> Vec<String> {
    (checks.iter().filter(|check| check.is_failed()))
        .filter_map(|check| match &check.capability {
            Capability::Missing { reason, remedy } => {
                Some(format!("{}: {reason}; {remedy}", check.name))
            }
            _ => None,
        })
        .collect()
}

/// Runs `find` unless a cause is missing.
fn unless<const N: usize>(
    causes: [(&'static str, &Capability); N],
    find: impl FnOnce() -> Capability,
) -> Capability {
    Capability::unless(&causes, find)
}

fn serves_v3(serves: &Result<bool, String>) -> Capability {
    let remedy = "set vers3=y in section [nfsd] of /etc/nfs.conf and restart the NFS server";
    match serves {
        Ok(true) => Capability::Available,
        Ok(false) => Capability::missing("nfsd does not serve NFSv3", remedy),
        Err(error) => Capability::missing(error, remedy),
    }
}

fn exports(exports: &Result<usize, String>) -> Capability {
    let remedy = "mount the filesystem and export it (`exportfs`) before clients are notified";
    match exports {
        Ok(0) => Capability::missing("no filesystem is exported", remedy),
        Ok(_) => Capability::Available,
        Err(error) => Capability::missing(error, remedy),
    }
}

fn listens(lockd: &Result<LockdPorts, String>) -> Capability {
    let remedy = "restart the NFS server (`systemctl restart nfs-server`)";
    match lockd {
        Ok(ports) if ports.is_empty() => {
            Capability::missing("lockd listens on no port in this network namespace", remedy)
        }
        Ok(_) => Capability::Available,
        Err(error) => Capability::missing(error, "see the reason"),
    }
}

fn lockd_answers(facts: &Facts) -> Capability {
    match &facts.lockd_answers {
        Some(Err(error)) => {
            Capability::missing(error, "restart what lockd waits for; lockd then continues")
        }
        _ => Capability::Available,
    }
}

fn rpcbind(rpcbind: &Result<Registered, String>) -> Capability {
    match rpcbind {
        Ok(_) => Capability::Available,
        Err(error) => Capability::missing(
            format!("rpcbind does not answer: {error}"),
            "start it (`systemctl start rpcbind`), then restart rpc-statd and the NFS server, so that \
             they register again",
        ),
    }
}

/// Whether rpcbind sends clients to the ports that lockd listens on.
fn registered_ports(facts: &Facts, purpose: &Purpose) -> Capability {
    let (Ok(registered), Ok(ports)) = (&facts.rpcbind, &facts.lockd) else {
        return Capability::Available;
    };
    let Some(&version) = ports.versions().last() else {
        return Capability::Available;
    };
    let concerns =
        |ipv6| purpose.vips.is_empty() || purpose.vips.iter().any(|vip| vip.is_ipv6() == ipv6);
    let wrong = (ports.ports().iter()).filter(|port| concerns(port.ipv6));
    let wrong = wrong.filter_map(|port| {
        let of = registered.port(nlm::PROGRAM, version.into(), port.transport, port.ipv6);
        (of != Some(port.port))
            .then(|| misdirected(version, port.transport, port.ipv6, port.port, of))
    });
    let wrong: Vec<String> = wrong.collect();
    Capability::when(
        wrong.is_empty(),
        wrong.join(", "),
        "restart the NFS server (`systemctl restart nfs-server`) to register lockd again; run rpcbind \
         with -w to keep registrations over a restart",
    )
}

fn misdirected(
    version: NlmVersion,
    transport: Transport,
    ipv6: bool,
    listens: u16,
    registered: Option<u16>,
) -> String {
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let what = match registered {
        None => "has no port".to_owned(),
        Some(port) => format!("has port {port}"),
    };
    format!(
        "rpcbind {what} for NLM {version} over {transport} and {family}, but lockd listens on {listens}"
    )
}

fn statd(facts: &Facts) -> Capability {
    match &facts.statd {
        Some(Ok(())) => Capability::Available,
        Some(Err(error)) => Capability::missing(
            format!("rpc.statd does not answer: {error}"),
            "check what it waits for (a name server, a callout), or restart it (`systemctl restart \
             rpc-statd`)",
        ),
        None => Capability::missing(
            "rpc.statd is not registered with rpcbind: it is not running, or rpcbind was restarted \
             after it",
            "restart it (`systemctl restart rpc-statd`)",
        ),
    }
}

fn state_dir(state_dir: &Result<(), String>) -> Capability {
    match state_dir {
        Ok(()) => Capability::Available,
        Err(error) => Capability::missing(
            error,
            "make it writable; without it, clients are known only from the release record \
             (--expect), and the state number is made from the clock",
        ),
    }
}

fn callout(callout: &Result<(), String>) -> Capability {
    match callout {
        Ok(()) => Capability::Available,
        Err(error) => Capability::missing(
            format!("statd's user cannot read the client books: {error}"),
            "give it read and search permission on the state directory and its parents",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::lockd_ports::LockdPort;
    use crate::rpc::portmap::Service;

    fn port(transport: Transport, ipv6: bool, port: u16) -> LockdPort {
        LockdPort {
            transport,
            ipv6,
            port,
        }
    }

    fn service(ipv6: bool, port: u16) -> Service {
        Service {
            program: nlm::PROGRAM,
            version: 4,
            transport: Transport::Tcp,
            ipv6,
            port,
        }
    }

    /// A node on which all is well, with lockd at 4045 over TCP of both families.
    fn well() -> Facts {
        let ports = [false, true].map(|ipv6| port(Transport::Tcp, ipv6, 4045));
        let versions = vec![NlmVersion::V1, NlmVersion::V3, NlmVersion::V4];
        Facts {
            nfsd: Capability::Available,
            serves_v3: Ok(true),
            exports: Ok(1),
            lockd: Ok(LockdPorts::new(ports.to_vec(), versions)),
            lockd_answers: Some(Ok(())),
            rpcbind: Ok(Registered::new(
                [false, true].map(|ipv6| service(ipv6, 4045)).to_vec(),
            )),
            statd: Some(Ok(())),
            state_dir: Ok(()),
            callout: Ok(()),
        }
    }

    /// The names of what is missing and of what blocks.
    fn found(facts: &Facts, purpose: &Purpose) -> (Vec<String>, usize) {
        let checks = decide(facts, purpose);
        let missing = checks.iter().filter(|check| check.is_missing());
        let names = missing.map(|check| check.name.clone()).collect();
        (names, blockers(&checks).len())
    }

    #[test]
    fn nothing_is_found_where_all_is_well() {
        assert_eq!(found(&well(), &Purpose::default()), (vec![], 0));
    }

    #[test]
    fn each_cause_is_said_once() {
        let mut facts = well();
        facts.nfsd = Capability::missing("no threads", "start it");
        facts.serves_v3 = Ok(false);
        facts.exports = Ok(0);
        facts.lockd = Ok(LockdPorts::default());
        facts.lockd_answers = None;
        facts.rpcbind = Err("connection refused".into());
        facts.statd = None;
        assert_eq!(found(&facts, &Purpose::default()), (vec!["nfsd".into()], 1));
        facts.nfsd = Capability::Available;
        facts.serves_v3 = Ok(true);
        facts.exports = Ok(1);
        assert_eq!(
            found(&facts, &Purpose::default()),
            (vec!["lockd_listens".into(), "rpcbind".into()], 2)
        );
    }

    #[test]
    fn what_the_kernel_does_not_show_is_no_finding_of_lockd() {
        let mut facts = well();
        facts.lockd = Err("hidden".into());
        facts.lockd_answers = Some(Err("hidden".into()));
        let mut purpose = Purpose::default();
        assert_eq!(found(&facts, &purpose).0, ["lockd_listens"]);
        purpose.unseen = Some("symbols");
        assert_eq!(found(&facts, &purpose).0, [""; 0]);
    }

    #[test]
    fn a_statd_that_is_absent_or_hangs_blocks() {
        for statd in [None, Some(Err("no answer within 5s".to_owned()))] {
            let mut facts = well();
            facts.statd = statd;
            let checks = decide(&facts, &Purpose::default());
            let [blocker] = &blockers(&checks)[..] else {
                panic!("{checks:?}");
            };
            assert!(blocker.contains("systemctl restart rpc-statd"), "{blocker}");
        }
    }

    #[test]
    fn clients_must_be_sent_to_the_ports_of_lockd() {
        let mut facts = well();
        facts.rpcbind = Ok(Registered::new(vec![service(false, 2049)]));
        let checks = decide(&facts, &Purpose::default());
        let [blocker] = &blockers(&checks)[..] else {
            panic!("{checks:?}");
        };
        let said = "rpcbind_nlm: rpcbind has port 2049 for NLM v4 over tcp and IPv4, but lockd listens on \
                    4045, rpcbind has no port for NLM v4 over tcp and IPv6, but lockd listens on \
                    4045; restart";
        assert!(blocker.starts_with(said), "{blocker}");
        facts.rpcbind = Ok(Registered::new(vec![service(false, 4045)]));
        let purpose = |vip: &str| Purpose {
            vips: vec![vip.parse().unwrap()],
            ..Purpose::default()
        };
        assert_eq!(found(&facts, &purpose("10.77.0.1")).1, 0);
        assert_eq!(found(&facts, &purpose("fd77::1")).1, 1);
    }

    #[test]
    fn what_can_be_done_without_does_not_block() {
        let mut facts = well();
        facts.state_dir = Err("read-only".into());
        facts.exports = Ok(0);
        let missing: Vec<String> = ["exports", "state_dir"].map(Into::into).into();
        let mut purpose = Purpose::default();
        assert_eq!(found(&facts, &purpose), (missing.clone(), 0));
        purpose.exports_now = true;
        assert_eq!(found(&facts, &purpose), (missing, 1));
    }
}
