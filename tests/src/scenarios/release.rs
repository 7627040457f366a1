//! `nlmfo failover --phase release`: the VIP's locks go, all of them and no
//! others, on kernels whose `unlock_ip` works and on those where it does not.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::rpc::nlm::Status;
use serde_json::Value;

use super::locks::many_locks;
use super::{Context, End, Kernels, Scenario};
use crate::guest::churn::Churn;
use crate::guest::known::{Known, ensure_kernel_holds, ensure_same};
use crate::guest::lab::{Lab, Twins};
use crate::guest::locker::{Locker, Mode, Outcome, Range};
use crate::guest::raw::RawNet;
use crate::guest::report::{self, Releases};
use crate::guest::tool::{Tool, exit};
use crate::guest::traces::Traces;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "release-ipv4",
        claim: "the locks of an IPv4 VIP are released; those of other VIPs stay, while their clients lock and unlock",
        run: |context| one_vip(context, 0),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "release-ipv6",
        claim: "the locks of an IPv6 VIP are released; those of other VIPs stay, while their clients lock and unlock",
        run: |context| one_vip(context, 2),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "release-several",
        claim: "two VIPs, IPv4 and IPv6, are released by one command; the third stays",
        run: several,
        kernels: Kernels::One("release-ipv4 and release-ipv6 release each on every kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "release-raw",
        claim: "locks by NLM v1, v3 and v4 over UDP and TCP, waiters and shares are released",
        run: raw,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "release-nothing",
        claim: "the release of a VIP without locks is confirmed and changes no lock",
        run: nothing,
        kernels: Kernels::One("release-ipv4 keeps others' locks on every kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "release-dry-run",
        claim: "--dry-run shows the plan and releases nothing",
        run: dry_run,
        kernels: Kernels::One("nothing is changed in the kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "release-record",
        claim: "--record writes what the new node needs",
        run: record,
        kernels: Kernels::One("the record is what locks-exact lists on every kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "release-again",
        claim: "after a release the clients of the VIP can lock through it again",
        run: again,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "release-vip-gone",
        claim: "a VIP that has already left the node is released too",
        run: vip_gone,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "release-same-address-elsewhere",
        claim: "the same address in another network namespace keeps its locks",
        run: same_address_elsewhere,
        ..Scenario::DEFAULT
    },
];

const VIPS: [&str; 3] = ["10.77.0.1", "10.77.0.2", "fd77::1"];

/// A server with many locks through every VIP, and on each client a process
/// that locks and unlocks through the VIPs that are to stay.
struct Busy {
    lab: Lab,
    _lockers: Vec<Locker>,
    known: BTreeSet<Known>,
    churns: Vec<Churn>,
}

impl Busy {
    /// With churn through all VIPs but those `leaving`.
    fn up(leaving: &[usize]) -> Result<Busy> {
        let lab = Lab::up(&VIPS, 2)?;
        let (lockers, known) = many_locks(&lab)?;
        let mut churns = Vec::new();
        for (c, mounted) in lab.clients.iter().enumerate() {
            for (v, mount) in mounted.mounts.iter().enumerate() {
                if !leaving.contains(&v) {
                    let file = mount.path(&format!("churn-{c}-{v}"));
                    let locker = mounted.client.locker()?;
                    churns.push(Churn::start(locker, file, Range::new(0, 1))?);
                }
            }
        }
        Ok(Busy {
            lab,
            _lockers: lockers,
            known,
            churns,
        })
    }

    fn tool<'a>(&'a self, context: &Context) -> Tool<'a> {
        Tool::new(&context.nlmfo, self.lab.server.node())
    }

    /// Everybody else worked on, and the kernel holds what it held, less what
    /// went through the VIPs `gone`.
    fn ensure_only_gone(mut self, gone: &[IpAddr]) -> Result<()> {
        for churn in self.churns.drain(..) {
            churn
                .wait_for(3)
                .context("another VIP's client, afterwards")?;
            churn.stop().context("another VIP's client, meanwhile")?;
        }
        let stays = self.known.iter().filter(|lock| !gone.contains(&lock.vip));
        ensure_kernel_holds(&self.lab.server.locks()?, stays)
    }
}

/// Without a fence: the VIP's clients go on afterwards. What a fence does has scenarios
/// of its own.
pub const RELEASE: [&str; 4] = ["failover", "--phase", "release", "--no-fence"];

/// Arguments of a release.
pub fn arguments(vips: &[IpAddr], options: &[&str]) -> Vec<String> {
    let mut arguments: Vec<String> = RELEASE.map(String::from).into();
    for vip in vips {
        arguments.extend(["--vip".into(), vip.to_string()]);
    }
    arguments.extend(options.iter().map(|option| String::from(*option)));
    arguments
}

/// Runs a release that must end with exit code 0.
fn done(tool: &Tool<'_>, vips: &[IpAddr], options: &[&str]) -> Result<Releases> {
    let arguments = arguments(vips, options);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Releases::of(tool.json(exit::CONFIRMED, &arguments)?)
}

/// Runs a release that must be confirmed, for every VIP and with no other VIP
/// disturbed.
pub fn confirmed(tool: &Tool<'_>, vips: &[IpAddr], options: &[&str]) -> Result<Releases> {
    let report = done(tool, vips, options)?;
    ensure!(
        report.confirmed,
        "exit 0, and yet not confirmed: {report:#?}"
    );
    for vip in vips {
        let release = report.vip(*vip)?;
        ensure!(
            release.verdict == "confirmed" && release.remaining.is_empty(),
            "{vip}: {release:#?}"
        );
    }
    for other in &report.other_vips {
        ensure!(other.fate != "disturbed", "another VIP: {other:?}");
    }
    Ok(report)
}

/// The report names the VIPs' locks, all of them, and the way that this kernel
/// makes necessary.
fn ensure_told(busy: &Busy, report: &Releases, gone: &[IpAddr]) -> Result<()> {
    for vip in gone {
        let release = report.vip(*vip)?;
        let expected = busy
            .known
            .iter()
            .filter(|lock| lock.vip == *vip)
            .cloned()
            .collect();
        ensure_same(
            &format!("locks released through {vip}"),
            &expected,
            &release.known()?,
        )?;
        ensure!(
            matches!(
                release.methods()[..],
                ["unlock_ip" | "free_all"] | ["unlock_ip", "free_all"]
            ),
            "{vip} was released by {:?}",
            release.steps
        );
    }
    Ok(())
}

fn one_vip(context: &Context, leaving: usize) -> Result<End> {
    let busy = Busy::up(&[leaving])?;
    let before = Traces::of(busy.lab.server.node())?;
    let vip = busy.lab.vips[leaving];
    let report = confirmed(&busy.tool(context), &[vip], &[])?;
    ensure_told(&busy, &report, &[vip])?;
    Traces::of(busy.lab.server.node())?.ensure_as(&before)?;
    if vip.is_ipv4() {
        ensure_the_kernels_method(&busy, &report, leaving)?;
    }
    busy.ensure_only_gone(&[vip])?;
    Ok(End::Pass)
}

/// `unlock_ip` alone where it releases, FREE_ALL where it does not: found out
/// here by a lock that is taken for it, without the tool.
fn ensure_the_kernels_method(busy: &Busy, report: &Releases, leaving: usize) -> Result<()> {
    let vip = busy.lab.vips[leaving];
    let mounted = &busy.lab.clients[0];
    let trial =
        mounted
            .client
            .lock(&mounted.mounts[leaving], "trial", Range::WHOLE, Mode::Write)?;
    let inode = fs::metadata(busy.lab.server.export().join("trial"))?.ino();
    let line = format!("{vip}\n");
    busy.lab
        .server
        .node()
        .write("/proc/fs/nfsd/unlock_ip", &line)?;
    let works = !busy
        .lab
        .server
        .locks()?
        .iter()
        .any(|lock| lock.inode == inode);
    if !works {
        trial.release()?;
    }
    let methods = report.vip(vip)?.methods();
    ensure!(
        match works {
            true => methods == ["unlock_ip"],
            false => methods.last() == Some(&"free_all"),
        },
        "unlock_ip {} here, and {vip} was released by {methods:?}",
        if works { "works" } else { "releases nothing" }
    );
    Ok(())
}

fn several(context: &Context) -> Result<End> {
    let busy = Busy::up(&[0, 2])?;
    let before = Traces::of(busy.lab.server.node())?;
    let leaving = [busy.lab.vips[0], busy.lab.vips[2]];
    let report = confirmed(&busy.tool(context), &leaving, &[])?;
    ensure_told(&busy, &report, &leaving)?;
    Traces::of(busy.lab.server.node())?.ensure_as(&before)?;
    busy.ensure_only_gone(&leaving)?;
    Ok(End::Pass)
}

fn raw(context: &Context) -> Result<End> {
    const WRITE: u32 = 2;
    let lab = Lab::up(&["10.77.0.1", "fd77::1", "10.77.0.2"], 0)?;
    let net = RawNet::join(&lab.server)?;
    let mut clients = Vec::new();
    let mut number = 0;
    for vip in &lab.vips {
        let files = net.files(&lab.server, *vip, &["locked".into(), "shared".into()])?;
        for version in [NlmVersion::V1, NlmVersion::V3, NlmVersion::V4] {
            for transport in [Transport::Tcp, Transport::Udp] {
                number += 1;
                let range = Range::new(10 * u64::from(number), 5);
                let mut client = net.client(number, *vip, version, transport)?;
                client.granted(|raw| raw.lock(&files[0], 1, range, Mode::Write))?;
                clients.push(client);
            }
        }
        // A waiter behind the last of them, and a share.
        let behind = Range::new(10 * u64::from(number), 5);
        let mut waiter = net.client(100 + number, *vip, NlmVersion::V4, Transport::Tcp)?;
        let blocked = waiter.wait(&files[0], 1, behind, Mode::Write)?;
        ensure!(blocked == Status::Blocked, "waiter: {blocked:?}");
        if *vip == lab.vips[0] {
            waiter.granted(|raw| raw.share(&files[1], WRITE, WRITE))?;
        }
        clients.push(waiter);
    }
    let queued = lab.server.locks()?.iter().any(|lock| lock.waiting);
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let before = Traces::of(lab.server.node())?;
    let report = confirmed(&tool, &lab.vips[..2], &[])?;
    Traces::of(lab.server.node())?.ensure_as(&before)?;
    for vip in &lab.vips[..2] {
        let counters = report.vip(*vip)?.counters;
        ensure!(
            counters.granted_later == 0,
            "a waiter of {vip} was granted what its release takes away: {counters:?}"
        );
    }
    let first = report.vip(lab.vips[0])?;
    let told = (
        first.released.len(),
        first.waiters_released.len(),
        first.shares_released.len(),
    );
    let expected = (6, usize::from(queued), 1);
    ensure!(
        told == expected,
        "{expected:?} locks, waiters and shares were held, {told:?} are reported as released"
    );

    let starts: Vec<u64> = lab
        .server
        .locks()?
        .iter()
        .filter(|lock| !lock.waiting)
        .map(|lock| lock.start)
        .collect();
    let stay: Vec<u64> = (13..=18).map(|number| 10 * number).collect();
    ensure!(
        starts == stay,
        "the third VIP's locks begin at {stay:?}, the server's at {starts:?}"
    );
    let files = net.files(&lab.server, lab.vips[2], &["shared".into()])?;
    let mut other = net.client(200, lab.vips[2], NlmVersion::V4, Transport::Tcp)?;
    other
        .granted(|raw| raw.share(&files[0], WRITE, WRITE))
        .context("the share that was released still keeps others out")?;
    Ok(End::Pass)
}

fn nothing(context: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 1)?;
    let mounted = &lab.clients[0];
    let _held = mounted
        .client
        .lock(&mounted.mounts[0], "held", Range::WHOLE, Mode::Write)?;
    let before = lab.server.locks()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    confirmed(&tool, &lab.vips[1..], &[])?;
    let after = lab.server.locks()?;
    ensure!(after == before, "before {before:?}, after {after:?}");
    Ok(End::Pass)
}

fn dry_run(context: &Context) -> Result<End> {
    let busy = Busy::up(&[0])?;
    let before = Traces::of(busy.lab.server.node())?;
    let vip = busy.lab.vips[0];
    let plan = done(&busy.tool(context), &[vip], &["--dry-run"])?;
    let planned = plan.vip(vip)?;
    ensure!(
        !plan.confirmed && planned.verdict == "planned" && !planned.steps.is_empty(),
        "the plan: {plan:#?}"
    );
    Traces::of(busy.lab.server.node())?.ensure_as(&before)?;
    busy.ensure_only_gone(&[])?;
    Ok(End::Pass)
}

fn record(context: &Context) -> Result<End> {
    let busy = Busy::up(&[0])?;
    let vip = busy.lab.vips[0];
    let file = Path::new("/tmp/nlmfo-record.json");
    confirmed(
        &busy.tool(context),
        &[vip],
        &["--record", &file.to_string_lossy()],
    )?;
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let record: Value = serde_json::from_str(&text).context("the record")?;
    let expected = busy
        .known
        .iter()
        .filter(|lock| lock.vip == vip)
        .cloned()
        .collect();
    ensure_same(
        "locks in the record",
        &expected,
        &report::known(&record, "locks")?,
    )?;
    let clients: BTreeSet<IpAddr> = record["clients"]
        .as_array()
        .context("the record has no clients")?
        .iter()
        .map(|client| Ok(client["client"].as_str().unwrap_or_default().parse()?))
        .collect::<Result<_>>()?;
    let expected = expected.iter().map(|lock: &Known| lock.client).collect();
    ensure_same("clients in the record", &expected, &clients)?;
    busy.ensure_only_gone(&[vip])?;
    Ok(End::Pass)
}

fn again(context: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 1)?;
    let mounted = &lab.clients[0];
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    for (vip, mount) in lab.vips.iter().zip(&mounted.mounts) {
        let file = format!("again-{vip}").replace(':', "_");
        let old = mounted
            .client
            .lock(mount, &file, Range::WHOLE, Mode::Write)?;
        confirmed(&tool, &[*vip], &[])?;
        // The old owner still believes in its lock: its own client would
        // refuse another process, so the newcomer wants another range.
        let newcomer = mounted.client.locker()?;
        let other = mount.path(&format!("{file}-new"));
        let outcome = newcomer.lock(&other, Range::new(0, 5), Mode::Write)?;
        ensure!(
            outcome == Outcome::Held,
            "a new lock through {vip} after its release: {outcome:?}"
        );
        drop(old);
    }
    Ok(End::Pass)
}

fn vip_gone(context: &Context) -> Result<End> {
    let busy = Busy::up(&[0, 2])?;
    let leaving = [busy.lab.vips[0], busy.lab.vips[2]];
    for vip in leaving {
        busy.lab.server.remove_vip(vip)?;
    }
    let before = Traces::of(busy.lab.server.node())?;
    let report = confirmed(&busy.tool(context), &leaving, &[])?;
    ensure_told(&busy, &report, &leaving)?;
    Traces::of(busy.lab.server.node())?.ensure_as(&before)?;
    busy.ensure_only_gone(&leaving)?;
    Ok(End::Pass)
}

fn same_address_elsewhere(context: &Context) -> Result<End> {
    let twins = Twins::up()?;
    let server = &twins.here.server;
    let tool = Tool::new(&context.nlmfo, server.node());
    let before = Traces::of(server.node())?;
    confirmed(&tool, &twins.here.vips, &[])?;
    Traces::of(server.node())?.ensure_as(&before)?;
    let (here, there) = (server.locks()?.len(), twins.there.locks()?.len());
    ensure!(
        (here, there) == (0, 1),
        "{here} locks here and {there} there, where 0 and 1 were expected"
    );
    Ok(End::Pass)
}
