//! The same move with nlmfo's agents and with those of the package resource-agents, measured by
//! the same clients (the table in docs/clusters.md).

use std::time::Instant;

use anyhow::{Result, ensure};

use super::super::{Context, End, Kernels, Manager, Scenario};
use super::{Grouped, Owned, VIPS};
use crate::cluster::measured::{Measured, Users};
use crate::cluster::pacemaker::{Fencing, Pacemaker, Resource};
use crate::cluster::service::Service;
use crate::cluster::stock;
use crate::cluster::{Cluster, Node};
use crate::guest::client::{Client, Mount};
use nlmfo::observe::host::Transport;

pub const MEASURED: &[Scenario] = &[
    Scenario {
        name: "measured-nlmfo",
        claim: "Pacemaker moves a group with nlmfo's agents to the node of another group and away from there: NFSv3 clients of both VIPs lose no lock",
        run: shared,
        kernels: Kernels::One(TABLE),
        manager: Some(Manager::Pacemaker),
        only_full: Some(TABLE),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "measured-own-server",
        claim: "the same with servers of their own: clients of NFSv3 and 4.2 lose no lock",
        run: own,
        kernels: Kernels::One(TABLE),
        manager: Some(Manager::Pacemaker),
        only_full: Some(TABLE),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "measured-exportfs",
        claim: "the same with exportfs, IPaddr2 and nfsnotify, the NFS server running on both nodes: what NFSv3 clients lose is measured",
        run: exportfs,
        kernels: Kernels::One(TABLE),
        manager: Some(Manager::Pacemaker),
        only_full: Some(TABLE),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "measured-nfsserver",
        claim: "one group of both VIPs with nfsserver, exportfs, IPaddr2 and nfsnotify moves, and back: what clients of NFSv3 and 4.2 lose is measured",
        run: nfsserver,
        kernels: Kernels::One(TABLE),
        manager: Some(Manager::Pacemaker),
        only_full: Some(TABLE),
        ..Scenario::DEFAULT
    },
];

const TABLE: &str = "a table in docs/clusters.md";

/// Versions of clients. A shared server that stays moves NFSv3 alone.
const ALL: [Option<u8>; 3] = [None, None, Some(2)];
const NFS3: [Option<u8>; 2] = [None, None];

/// The first resource moves to the node of the second one, and away from there.
fn measure(
    users: &Users,
    pacemaker: &Pacemaker,
    moving: &Resource,
    staying: &Resource,
) -> Result<Vec<Measured>> {
    let (from, to) = pacemaker.spread(moving, staying)?;
    let all = there_and_back(users, pacemaker, moving, (from, to))?;
    eprintln!("{}", pacemaker.logs());
    Ok(all)
}

fn there_and_back(
    users: &Users,
    pacemaker: &Pacemaker,
    moving: &Resource,
    (from, to): (&Node, &Node),
) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for (what, node) in [("there", to), ("back", from)] {
        let began = Instant::now();
        let seen = users.measure(|| {
            pacemaker.move_to(moving, node)?;
            eprintln!("{what}: moved after {:?}", began.elapsed());
            Ok(())
        })?;
        for one in &seen {
            eprintln!("{what}: {one}");
        }
        all.extend(seen);
    }
    Ok(all)
}

/// What nlmfo claims for itself.
fn ensure_none_lost(all: &[Measured]) -> Result<End> {
    for one in all {
        let lost = one.moved.lost + one.other.lost;
        let failed = one.moved.failed + one.other.failed;
        ensure!(lost == 0 && failed == 0, "{one}");
    }
    Ok(End::Pass)
}

fn mount(service: &Service, client: &Client, version: Option<u8>) -> Result<Mount> {
    let (folder, vip) = (service.folder(), service.vip);
    match version {
        None => client.mount_export(folder, vip, Transport::Tcp),
        Some(minor) => client.mount_export_nfs4(folder, vip, minor),
    }
}

fn users_of(cluster: &Cluster, versions: &[Option<u8>]) -> Result<Users> {
    let [moving, staying] = [0, 1].map(|number| {
        let service = &cluster.services[number];
        move |client: &Client, version| mount(service, client, version)
    });
    Users::join(versions, &moving, &staying)
}

fn shared(context: &Context) -> Result<End> {
    let grouped = Grouped::new(context)?;
    let [moving, staying] = &grouped.groups;
    let pacemaker = Pacemaker::start(&grouped.cluster, &grouped.groups, Fencing::No)?;
    let users = users_of(&grouped.cluster, &NFS3)?;
    let seen = measure(&users, &pacemaker, moving, staying)?;
    pacemaker.ensure_smooth()?;
    ensure_none_lost(&seen)
}

fn own(context: &Context) -> Result<End> {
    let owned = Owned::new(context)?;
    let pacemaker = owned.start()?;
    let [moving, staying] = &owned.resources;
    let users = Users::join(
        &ALL,
        &|client, version| owned.mail.mount(client, version),
        &|client, version| owned.data.mount(client, version),
    )?;
    let seen = measure(&users, &pacemaker, moving, staying)?;
    pacemaker.ensure_smooth()?;
    ensure_none_lost(&seen)
}

fn exportfs(context: &Context) -> Result<End> {
    let cluster = Cluster::stopped(&context.nlmfo, &VIPS)?;
    let [moving, staying] = [0, 1].map(|number| stock::group(&cluster.services[number]));
    let groups = [moving?, staying?];
    let pacemaker = Pacemaker::start(&cluster, &groups, Fencing::No)?;
    // Not of NFSv4: exportfs writes to unlock_filesystem, and with their locks the node crashes.
    let users = users_of(&cluster, &NFS3)?;
    measure(&users, &pacemaker, &groups[0], &groups[1])?;
    eprintln!("{}", pacemaker.status()?);
    Ok(End::Pass)
}

fn nfsserver(context: &Context) -> Result<End> {
    let cluster = Cluster::stopped(&context.nlmfo, &VIPS)?;
    for node in [&cluster.a, &cluster.b] {
        stock::give_server_away(node)?;
    }
    let groups = [stock::group_with_server(&cluster.services)?];
    let pacemaker = Pacemaker::start(&cluster, &groups, Fencing::No)?;
    let users = users_of(&cluster, &ALL)?;
    let nodes = pacemaker.nodes(&groups[0])?;
    there_and_back(&users, &pacemaker, &groups[0], nodes)?;
    eprintln!("{}\n{}", pacemaker.status()?, pacemaker.logs());
    Ok(End::Pass)
}
