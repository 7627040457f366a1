//! The counters of what lockd dropped by itself, against every cause for which
//! it does.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nlmfo::kernel::netns;
use nlmfo::observe::counters::{Counters, Released};
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::release::filesystem::Filesystem;
use nlmfo::release::free_all::FreeAll;
use nlmfo::release::reboot::Reboot;
use nlmfo::release::target::targets;
use nlmfo::release::unlock_ip::UnlockIp;
use nlmfo::release::{Job, Method, Turn};
use tokio::runtime::Builder;

use super::{Context, End, Scenario};
use crate::guest::counted::Counted;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::node::TestNode;
use crate::guest::raw::{RawClient, RawNet};
use crate::guest::server::Server;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "counters-released",
        claim: "each owner whose locks lockd dropped counts for its VIP and cause",
        run: released,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "counters-shutdown",
        claim: "locks that lockd dropped when it stopped count for their VIP as its shutdown",
        run: shutdown,
        ..Scenario::DEFAULT
    },
];

const VIPS: [&str; 3] = ["10.77.0.1", "10.77.0.2", "fd77::1"];

/// Owners of [`hold`], all in one file.
const OWNERS: u64 = 4;
/// Locks of [`hold`].
const LOCKS: usize = 5;

/// Takes locks in one file through `vip` with three clients, numbered from
/// `number` on: the first has two owners, one of them with two locks, and the
/// others are of another transport and version.
fn hold(net: &RawNet, server: &Server, vip: IpAddr, number: u16) -> Result<()> {
    let shared = net.file(server, vip, &format!("shared{number}"))?;
    let client = |number, version, transport| {
        net.introduce(number, vip, &shared)?;
        net.client(number, vip, version, transport)
    };
    let take = |client: &mut RawClient, svid, start| {
        client.granted(|raw| raw.lock(&shared, svid, Range::new(start, 5), Mode::Write))
    };
    let mut tcp = client(number, NlmVersion::V4, Transport::Tcp)?;
    take(&mut tcp, 1, 0)?;
    take(&mut tcp, 1, 10)?;
    take(&mut tcp, 2, 20)?;
    let mut udp = client(number + 1, NlmVersion::V4, Transport::Udp)?;
    take(&mut udp, 1, 30)?;
    let mut old = client(number + 2, NlmVersion::V3, Transport::Udp)?;
    take(&mut old, 1, 40)
}

fn released(_: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 0)?;
    let server = &lab.server;
    let net = RawNet::join(server)?;
    let [first, second, third] = [lab.vips[0], lab.vips[1], lab.vips[2]];
    let mut case = Case {
        server,
        watch: Counted::attach()?,
    };
    // Untouched until everything on the filesystem is released.
    hold(&net, server, second, 100)?;

    for (vip, number) in [(first, 1), (third, 10)] {
        hold(&net, server, vip, number)?;
        let gone = case.after(&FreeAll, vip)?;
        ensure!(gone == LOCKS, "FREE_ALL released {gone} of {LOCKS} locks");
        let free_all = OWNERS;
        case.expect("FREE_ALL", &[vip], |released| released.free_all = free_all)?;
    }

    hold(&net, server, third, 20)?;
    let gone = case.after(&Reboot, third)?;
    ensure!(gone == LOCKS, "SM_NOTIFY released {gone} of {LOCKS} locks");
    case.expect("SM_NOTIFY", &[third], |released| {
        released.client_reboot = OWNERS;
    })?;

    hold(&net, server, first, 30)?;
    let gone = case.after(&UnlockIp, first)?;
    let works = match gone {
        0 => false,
        LOCKS => true,
        _ => bail!("unlock_ip released {gone} of {LOCKS} locks"),
    };
    case.expect("unlock_ip", &[first], |released| {
        released.unlock_ip = if works { OWNERS } else { 0 };
    })?;

    if works {
        hold(&net, server, first, 40)?;
    }
    let gone = case.after(&Filesystem, first)?;
    ensure!(
        gone == 2 * LOCKS,
        "unlock_filesystem released {gone} of {} locks",
        2 * LOCKS
    );
    case.expect("unlock_filesystem", &[first, second], |released| {
        released.unlock_filesystem = OWNERS;
    })?;
    Ok(End::Pass)
}

struct Case<'a> {
    server: &'a Server,
    watch: Counted,
}

impl Case<'_> {
    /// Releases `vip` by the method. Returns how many locks are gone, by the kernel's own list.
    fn after(&mut self, method: &dyn Method, vip: IpAddr) -> Result<usize> {
        let table = self.watch.snapshot()?.table;
        let netns = netns::network()?.inode as u32;
        let targets = targets(&table, vip, netns);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let job = Job {
            vip,
            netns,
            targets: &targets,
            elsewhere: &BTreeSet::new(),
            filesystems: &[self.server.export().into()],
            turn: &runtime.block_on(Turn::take(Duration::ZERO))?,
            deadline: Duration::from_mins(1),
        };
        let before = self.server.locks()?.len();
        self.watch.since()?;
        let report = runtime.block_on(method.release(&job))?;
        let failed: Vec<_> = report.failures().collect();
        ensure!(failed.is_empty(), "{}: {failed:#?}", method.name());
        Ok(before - self.server.locks()?.len())
    }

    fn expect(&mut self, what: &str, vips: &[IpAddr], fill: impl Fn(&mut Released)) -> Result<()> {
        expect_released(&mut self.watch, what, vips, fill)
    }
}

fn expect_released(
    watch: &mut Counted,
    what: &str,
    vips: &[IpAddr],
    fill: impl Fn(&mut Released),
) -> Result<()> {
    let mut counters = Counters::default();
    fill(&mut counters.released);
    let expected: Vec<_> = vips.iter().map(|vip| (*vip, counters)).collect();
    watch.expect(what, &expected)
}

fn shutdown(_: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS[..1], 0)?;
    let other = Server::start(TestNode::create("node2")?, Path::new("/export2"))?;
    let vip: IpAddr = VIPS[1].parse()?;
    other.add_vip(vip)?;
    let net = RawNet::join(&lab.server)?;
    hold(&net, &lab.server, lab.vips[0], 1)?;
    let other_net = RawNet::join(&other)?;
    hold(&other_net, &other, vip, 1)?;
    let mut watch = Counted::attach()?;

    // lockd goes on for the other network namespace: some kernels keep the
    // locks of this one (6.1), others drop them (6.12).
    other.stop_nfsd()?;
    let gone = LOCKS - other.locks()?.len();
    let dropped = [0, OWNERS][usize::from(gone == LOCKS)];
    ensure!(gone == 0 || dropped > 0, "{gone} of {LOCKS} locks went");
    expect_released(&mut watch, "the end of one of two", &[vip], |released| {
        released.shutdown = dropped;
    })?;
    lab.server.stop_nfsd()?;
    let left = [lab.server.locks()?, other.locks()?].concat();
    ensure!(left.is_empty(), "without lockd there are {left:?}");
    let mut vips = lab.vips.clone();
    vips.extend((dropped == 0).then_some(vip));
    expect_released(&mut watch, "the end of the last one", &vips, |released| {
        released.shutdown = OWNERS;
    })?;
    Ok(End::Pass)
}
