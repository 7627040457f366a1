//! `nlmfo locks`: exactly what lockd holds, each lock with its VIP, client,
//! file, range and mode.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::observe::programs::Programs;
use nlmfo::observe::snapshot::{Snapshot, Snapshots};
use nlmfo::rpc::nlm::Status;
use nlmfo_common::layout::{Layout, LockLists};

use super::{Context, End, Kernels, Scenario};
use crate::guest::churn::Churn;
use crate::guest::known::{Known, ensure_kernel_holds, ensure_same};
use crate::guest::lab::{Lab, Twins};
use crate::guest::locker::{Locker, Mode, Outcome, Range};
use crate::guest::raw::{RawNet, address};
use crate::guest::report;
use crate::guest::server::Filesystem;
use crate::guest::tool::{Tool, exit};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "locks-exact",
        claim: "locks lists what real clients hold: files, ranges, modes, merged and split locks",
        run: |context| exact(context, Filesystem::Tmpfs),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "locks-ext4",
        claim: "the same on an ext4 export",
        run: |context| exact(context, Filesystem::Ext4),
        kernels: Kernels::One(
            "lockd does not know filesystems apart; locks-exact is for every kernel",
        ),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "locks-while-others-lock",
        claim: "a listing misses no held lock, however many others come and go",
        run: while_others_lock,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "locks-raw",
        claim: "locks lists NLM v1, v3 and v4, UDP and TCP, IPv4 and IPv6, with version and svid",
        run: raw,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "locks-waiters-and-shares",
        claim: "locks lists blocked requests, where the kernel queues them, and DOS shares",
        run: waiters_and_shares,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "locks-other-netns",
        claim: "locks lists this network namespace; --all-netns adds the others",
        run: other_netns,
        kernels: Kernels::One(
            "release-same-address-elsewhere tells namespaces apart on every kernel",
        ),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "locks-none",
        claim: "locks on a server without locks prints an empty list and succeeds",
        run: none,
        kernels: Kernels::One("every other listing shows more"),
        ..Scenario::DEFAULT
    },
];

fn exact(context: &Context, filesystem: Filesystem) -> Result<End> {
    let lab = Lab::with(filesystem, &["10.77.0.1", "10.77.0.2", "fd77::1"], 2)?;
    let (lockers, known) = many_locks(&lab)?;
    ensure_kernel_holds(&lab.server.locks()?, &known)?;

    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let report = tool.json(exit::CONFIRMED, &["locks"])?;
    ensure_same("nlmfo locks", &known, &report::known(&report, "locks")?)?;
    for entry in report::entries(&report, "locks")? {
        let path = entry.file.path.context("a lock without its file's path")?;
        let inode = fs::metadata(&path).with_context(|| path.clone())?.ino();
        ensure!(
            inode == entry.file.ino,
            "{path} is inode {inode}, listed as {}",
            entry.file.ino
        );
    }

    for vip in &lab.vips {
        let seen = tool.json(exit::CONFIRMED, &["locks", "--vip", &vip.to_string()])?;
        let expected = only(&known, |lock| lock.vip == *vip);
        ensure_same(
            &format!("nlmfo locks --vip {vip}"),
            &expected,
            &report::known(&seen, "locks")?,
        )?;
    }
    ensure_both_ways_agree()?;
    let client = lab.clients[0].client.address_for(lab.vips[0]);
    let seen = tool.json(exit::CONFIRMED, &["locks", "--client", &client.to_string()])?;
    ensure_same(
        &format!("nlmfo locks --client {client}"),
        &only(&known, |lock| lock.client == client),
        &report::known(&seen, "locks")?,
    )?;
    drop(lockers);
    Ok(End::Pass)
}

/// Whether a snapshot that walks the kernel's lists has what one has that reads page by page.
fn ensure_both_ways_agree() -> Result<()> {
    const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(30);
    let layout = nlmfo::kernel::layout::load()?;
    let by_pages = Layout {
        lock_lists: LockLists::default(),
        ..layout
    };
    let take = |layout: &Layout| -> Result<Snapshot> {
        let snapshot = Snapshots::attach(Programs::load(layout)?)?.take(None, SNAPSHOT_TIMEOUT)?;
        ensure!(snapshot.is_exact(), "locks change while nobody locks");
        Ok(snapshot)
    };
    let (walked, paged) = (take(&layout)?, take(&by_pages)?);
    ensure!(
        walked.longest_run.is_some() && paged.longest_run.is_none(),
        "not the ways that were asked for: {:?}, {:?}",
        walked.longest_run,
        paged.longest_run
    );
    ensure!(
        walked.table == paged.table && !walked.table.locks.is_empty(),
        "walked: {:#?}\npage by page: {:#?}",
        walked.table,
        paged.table
    );
    Ok(())
}

fn while_others_lock(context: &Context) -> Result<End> {
    const LISTINGS: usize = 3;
    let lab = Lab::up(&["10.77.0.1", "fd77::1"], 2)?;
    let (_lockers, known) = many_locks(&lab)?;
    let mut churns = Vec::new();
    for mounted in &lab.clients {
        for mount in &mounted.mounts {
            // All on one file, beside a lock that stands.
            let file = mount.path("churn");
            let range = Range::new(10 * churns.len() as u64, 5);
            churns.push(Churn::start(mounted.client.locker()?, file, range)?);
        }
    }
    let churned = fs::metadata(lab.server.export().join("churn"))?.ino();
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    for _ in 0..LISTINGS {
        let seen = report::known(&tool.json(exit::CONFIRMED, &["locks"])?, "locks")?;
        let standing = only(&seen, |lock| lock.inode != churned);
        ensure_same("nlmfo locks, the locks that stand", &known, &standing)?;
    }
    for churn in churns {
        churn.stop()?;
    }
    Ok(End::Pass)
}

fn only(known: &BTreeSet<Known>, keep: impl Fn(&Known) -> bool) -> BTreeSet<Known> {
    known.iter().filter(|lock| keep(lock)).cloned().collect()
}

/// Locks of every client through every VIP: private and shared files, both
/// modes, far offsets, the whole file, and locks that the kernel merged or
/// split.
pub fn many_locks(lab: &Lab) -> Result<(Vec<Locker>, BTreeSet<Known>)> {
    let mut lockers = Vec::new();
    let mut known = BTreeSet::new();
    for (c, mounted) in lab.clients.iter().enumerate() {
        for (vip, mount) in lab.vips.iter().zip(&mounted.mounts) {
            let locker = mounted.client.locker()?;
            let own = |kind: &str| format!("{kind}-{c}-{vip}").replace(':', "_");
            let take = |file: &str, range, mode| -> Result<()> {
                let outcome = locker.lock(&mount.path(file), range, mode)?;
                ensure!(outcome == Outcome::Held, "{file} {range:?}: {outcome:?}");
                Ok(())
            };
            let mut holds = |file: &str, range, mode| -> Result<()> {
                let inode = fs::metadata(lab.server.export().join(file))?.ino();
                let client = mounted.client.address_for(*vip);
                known.insert(Known::linux(*vip, client, inode, range, mode));
                Ok(())
            };
            for (file, range, mode) in [
                (own("near"), Range::new(0, 10), Mode::Write),
                (own("near"), Range::new(100, 1), Mode::Read),
                (own("far"), Range::new(1 << 40, 4096), Mode::Write),
                (own("whole"), Range::WHOLE, Mode::Write),
                ("read-by-all".into(), Range::new(0, 7), Mode::Read),
            ] {
                take(&file, range, mode)?;
                holds(&file, range, mode)?;
            }
            let merged = own("merged");
            take(&merged, Range::new(0, 10), Mode::Write)?;
            take(&merged, Range::new(10, 10), Mode::Write)?;
            holds(&merged, Range::new(0, 20), Mode::Write)?;
            let split = own("split");
            take(&split, Range::new(0, 30), Mode::Write)?;
            locker.unlock(&mount.path(&split), Range::new(10, 10))?;
            holds(&split, Range::new(0, 10), Mode::Write)?;
            holds(&split, Range::new(20, 10), Mode::Write)?;
            lockers.push(locker);
        }
    }
    Ok((lockers, known))
}

fn raw(context: &Context) -> Result<End> {
    let lab = Lab::up(&["10.77.0.1", "fd77::1"], 0)?;
    let net = RawNet::join(&lab.server)?;
    let mut expected = BTreeSet::new();
    let mut number = 0;
    for vip in &lab.vips {
        let files = net.files(&lab.server, *vip, &["raw".to_owned()])?;
        let inode = fs::metadata(lab.server.export().join("raw"))?.ino();
        for version in [NlmVersion::V1, NlmVersion::V3, NlmVersion::V4] {
            for transport in [Transport::Tcp, Transport::Udp] {
                number += 1;
                let svid = 1000 + u32::from(number);
                let range = Range::new(10 * u64::from(number), 5);
                let mut client = net.client(number, *vip, version, transport)?;
                client.granted(|raw| raw.lock(&files[0], svid, range, Mode::Write))?;
                let known = Known {
                    transport,
                    version,
                    ..Known::linux(*vip, address(number, *vip), inode, range, Mode::Write)
                };
                expected.insert((known, svid));
            }
        }
    }
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let report = tool.json(exit::CONFIRMED, &["locks"])?;
    let seen = report::entries(&report, "locks")?
        .iter()
        .map(|entry| Ok((entry.known()?, entry.svid)))
        .collect::<Result<_>>()?;
    ensure_same("nlmfo locks", &expected, &seen)?;
    Ok(End::Pass)
}

fn waiters_and_shares(context: &Context) -> Result<End> {
    const READ: u32 = 1;
    const WRITE: u32 = 2;
    let lab = Lab::up(&["10.77.0.1"], 0)?;
    let vip = lab.vips[0];
    let net = RawNet::join(&lab.server)?;
    let files = net.files(&lab.server, vip, &["locked".into(), "shared".into()])?;
    let range = Range::new(0, 10);
    let mut holder = net.client(1, vip, NlmVersion::V4, Transport::Tcp)?;
    let mut waiter = net.client(2, vip, NlmVersion::V4, Transport::Tcp)?;
    holder.granted(|raw| raw.nm_lock(&files[0], 1, range, Mode::Write))?;
    let blocked = waiter.wait(&files[0], 2, Range::new(5, 10), Mode::Read)?;
    ensure!(
        blocked == Status::Blocked,
        "a blocking request behind a lock: {blocked:?}"
    );
    holder.granted(|raw| raw.share(&files[1], READ, WRITE))?;

    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let report = tool.json(exit::CONFIRMED, &["locks"])?;
    let shares: Vec<_> = report::entries(&report, "shares")?
        .into_iter()
        .map(|share| (share.vip, share.client, share.access, share.deny))
        .collect();
    let expected = vec![(vip, address(1, vip), Some(READ), Some(WRITE))];
    ensure!(
        shares == expected,
        "expected the share {expected:?}, nlmfo lists {shares:?}"
    );

    let inode = fs::metadata(lab.server.export().join("locked"))?.ino();
    let request = Known::linux(vip, address(2, vip), inode, Range::new(5, 10), Mode::Read);
    let queued = lab.server.locks()?.iter().any(|lock| lock.waiting);
    let expected = BTreeSet::from_iter(queued.then_some(request));
    let listed = report::known(&report, "waiters")?;
    ensure_same("waiters", &expected, &listed)?;
    if !queued {
        return Ok(End::Unsupported(
            "this kernel answers blocked and queues nothing, so there is no waiter to list".into(),
        ));
    }
    Ok(End::Pass)
}

fn other_netns(context: &Context) -> Result<End> {
    let twins = Twins::up()?;
    let tool = Tool::new(&context.nlmfo, twins.here.server.node());
    let starts = |arguments: &[&str]| -> Result<BTreeSet<u64>> {
        let report = tool.json(exit::CONFIRMED, arguments)?;
        Ok(report::known(&report, "locks")?
            .iter()
            .map(|lock| lock.start)
            .collect())
    };
    ensure_same(
        "nlmfo locks",
        &BTreeSet::from([Twins::HERE]),
        &starts(&["locks"])?,
    )?;
    ensure_same(
        "nlmfo locks --all-netns",
        &BTreeSet::from([Twins::HERE, Twins::THERE]),
        &starts(&["locks", "--all-netns"])?,
    )?;
    Ok(End::Pass)
}

fn none(context: &Context) -> Result<End> {
    let lab = Lab::up(&["10.77.0.1"], 0)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let nobody: IpAddr = "10.77.0.99".parse()?;
    for arguments in [
        &["locks"][..],
        &["locks", "--vip", &nobody.to_string()],
        &["locks", "--client", &nobody.to_string()],
    ] {
        let report = tool.json(exit::CONFIRMED, arguments)?;
        ensure_same(
            &arguments.join(" "),
            &BTreeSet::new(),
            &report::known(&report, "locks")?,
        )?;
    }
    Ok(End::Pass)
}
