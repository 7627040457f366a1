//! The lab itself, without the tool under test: locks of real clients, of raw
//! clients and of the load generator arrive in the server's kernel.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::rpc::nlm::Status;

use super::{Context, End, Kernels, Scenario};
use crate::guest::client::Client;
use crate::guest::handles::FileHandle;
use crate::guest::lab::Lab;
use crate::guest::load::{self, Holding, Monitoring};
use crate::guest::locker::{Mode, Range};
use crate::guest::node::TestNode;
use crate::guest::raw::{RawClient, RawNet};
use crate::guest::server::Server;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "topology",
        claim: "two clients' locks through two IPv4 VIPs and an IPv6 VIP are in the server's list",
        run: topology,
        kernels: Kernels::One("the lab without nlmfo; release-ipv4 uses the same on every kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "topology-raw",
        claim: "raw NLM v1, v3 and v4 over UDP and TCP, IPv4 and IPv6, lock and share",
        run: raw,
        kernels: Kernels::One("the lab without nlmfo; release-raw uses the same on every kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "topology-load",
        claim: "the load generator holds the requested locks and cycles pairs",
        run: load,
        kernels: Kernels::One("the lab without nlmfo"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "topology-two-servers",
        claim: "two servers in network namespaces serve the same address, each with its own locks",
        run: two_servers,
        kernels: Kernels::One(
            "the lab without nlmfo; release-same-address-elsewhere uses the same on every kernel",
        ),
        ..Scenario::DEFAULT
    },
];

fn topology(_: &Context) -> Result<End> {
    let lab = Lab::up(&["10.77.0.1", "10.77.0.2", "fd77::1"], 2)?;
    let mut held = Vec::new();
    let mut expected = BTreeSet::new();
    for (c, mounted) in lab.clients.iter().enumerate() {
        for (v, mount) in mounted.mounts.iter().enumerate() {
            let file = format!("c{c}-vip{v}");
            let range = Range::new(10 * v as u64, 10 + c as u64);
            held.push(mounted.client.lock(mount, &file, range, Mode::Write)?);
            let inode = fs::metadata(lab.server.export().join(&file))?.ino();
            expected.insert((inode, range.start, range.end(), true));
        }
    }
    let seen = |lab: &Lab| -> Result<BTreeSet<_>> {
        Ok(lab
            .server
            .locks()?
            .into_iter()
            .map(|lock| (lock.inode, lock.start, lock.end, lock.write))
            .collect())
    };
    let locks = seen(&lab)?;
    ensure!(
        locks == expected,
        "expected {expected:?}, the server holds {locks:?}"
    );

    for lock in held {
        lock.release()?;
    }
    let left = seen(&lab)?;
    ensure!(
        left.is_empty(),
        "released everything, the server holds {left:?}"
    );
    Ok(End::Pass)
}

fn raw(_: &Context) -> Result<End> {
    let lab = Lab::up(&["10.77.0.1", "fd77::1"], 0)?;
    let net = RawNet::join(&lab.server)?;
    let names = ["locked".to_owned(), "shared".to_owned()];
    let mut expected = Vec::new();
    let mut number = 0;
    for vip in &lab.vips {
        let files = net.files(&lab.server, *vip, &names)?;
        for version in [NlmVersion::V1, NlmVersion::V3, NlmVersion::V4] {
            for transport in [Transport::Tcp, Transport::Udp] {
                number += 1;
                let range = Range::new(10 * u64::from(number), 5);
                let mut client = net.client(number, *vip, version, transport)?;
                client.granted(|raw| raw.lock(&files[0], 7, range, Mode::Write))?;
                expected.push((range.start, range.end()));
                if version == NlmVersion::V4 {
                    share(&net, &mut client, number, *vip, &files[1])?;
                }
            }
        }
    }
    let held: Vec<_> = lab
        .server
        .locks()?
        .iter()
        .map(|lock| (lock.start, lock.end))
        .collect();
    ensure!(
        held == expected,
        "expected {expected:?}, the server holds {held:?}"
    );
    Ok(End::Pass)
}

/// A share that denies writing keeps another client's writing share out for as
/// long as it stands: `/proc/locks` shows no shares.
fn share(
    net: &RawNet,
    client: &mut RawClient,
    number: u16,
    vip: IpAddr,
    file: &FileHandle,
) -> Result<()> {
    const READ: u32 = 1;
    const WRITE: u32 = 2;
    client.granted(|raw| raw.share(file, READ, WRITE))?;
    let mut other = net.client(number + 100, vip, NlmVersion::V4, Transport::Tcp)?;
    let refused = other.share(file, WRITE, 0)?;
    ensure!(
        refused == Status::Denied,
        "a share against a share: {refused:?}"
    );
    Ok(())
}

fn load(_: &Context) -> Result<End> {
    let lab = Lab::up(&["10.77.0.1", "10.77.0.2", "fd77::1"], 0)?;
    let net = RawNet::join(&lab.server)?;
    let names: Vec<_> = (0..8).map(|i| format!("load{i}")).collect();
    let files = net.files(&lab.server, lab.vips[0], &names)?;
    load::hold(
        &net,
        &files,
        Holding {
            vips: &lab.vips,
            clients: 10,
            locks: 40,
            monitoring: Monitoring::Unmonitored,
        },
    )?;
    let held = lab.server.locks()?.len();
    ensure!(
        held == 3 * 10 * 40,
        "expected 1200 locks, the server holds {held}"
    );

    let names: Vec<_> = (0..4).map(|i| format!("pairs{i}")).collect();
    let files = net.files(&lab.server, lab.vips[1], &names)?;
    let rate = load::pairs(
        &net,
        lab.vips[1],
        &files,
        Monitoring::Unmonitored,
        Duration::from_secs(1),
    )?;
    ensure!(rate.pairs > 0, "no pair in {} s", rate.seconds);
    eprintln!("{:.0} LOCK+UNLOCK pairs per second", rate.per_second());
    let left = lab.server.locks()?.len();
    ensure!(left == held, "pairs left {left} locks where {held} were");
    Ok(End::Pass)
}

fn two_servers(_: &Context) -> Result<End> {
    let vip: IpAddr = "10.77.0.1".parse()?;
    let lab = Lab::up(&["10.77.0.1"], 1)?;
    let other = Server::start(TestNode::create("node2")?, Path::new("/export2"))?;
    other.add_vip(vip)?;
    let client = Client::join(&other, 1)?;
    let mount = client.mount(&other, vip, Transport::Tcp)?;
    let _there = client.lock(&mount, "there", Range::new(5, 5), Mode::Write)?;
    let here = &lab.clients[0];
    let _here = here
        .client
        .lock(&here.mounts[0], "here", Range::new(0, 5), Mode::Write)?;
    let starts = |server: &Server| -> Result<Vec<u64>> {
        Ok(server.locks()?.iter().map(|lock| lock.start).collect())
    };
    let (here, there) = (starts(&lab.server)?, starts(&other)?);
    ensure!(
        here == [0] && there == [5],
        "expected [0] and [5], the servers hold {here:?} and {there:?}"
    );
    Ok(End::Pass)
}
