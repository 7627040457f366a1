//! The node's own NFS server moves whole, with all its VIPs and its storage: active/passive.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::Transport;
use serde_json::Value;

use super::{Context, End, Kernels, Scenario};
use crate::cluster::agent::{AGENT, quoted};
use crate::cluster::{Cluster, Node};
use crate::guest::busy::{Busy, Tally, Wanted};
use crate::guest::client::{Client, HeldLock, Mount};
use crate::guest::command::run;
use crate::guest::locker::{Mode, Outcome, Range};
use crate::guest::node::TestNode;
use crate::guest::server::{
    LOCKD_GRACE, NFSD_GRACE, NFSD_GRACE_TIME, NFSD_LEASE_TIME, NLM_GRACE_PERIOD, end_grace_of,
    export_options,
};
use crate::guest::tool::exit;
use crate::guest::wait::{Seen, until};

pub const ON_A_CLUSTER: &[Scenario] = &[Scenario {
    name: "two-nodes-whole-server",
    claim: "the NFS server of a node moves to another one with all its VIPs and its storage, and back: \
            NFSv3, 4.0, 4.1 and 4.2 clients keep every lock, nobody else gets one, and both graces end \
            early; a server with another scope is refused, and costs no lock",
    run: moves,
    // On 7.3.4 a client may keep a delegation over the stop (docs/KNOWN_ISSUES.md): it returns it in
    // grace, which then lasts its full time.
    kernels: Kernels::One("the halves are those of a restart, which restart-keeps shows on all"),
    only_full: Some("three moves of a whole server"),
    ..Scenario::DEFAULT
}];

const VIPS: [&str; 3] = ["10.77.0.1", "10.77.0.2", "fd77::1"];

/// What moves along: exported files, nfs-utils' state, nlmfo's state.
const STORAGE: &str = "/srv/whole";
const EXPORT: &str = "/srv/whole/export";
pub(super) const STATE: &str = "/srv/whole/nlmfo";

/// Longer than a move may take: a grace of this length that is over was ended early.
const LONG_GRACE: &str = "90";

/// An idle NFSv4 client notices the move when it renews its lease.
const SHORT_LEASE: &str = "10";

const HAND_OVER: &str = "/tmp/hand-over-whole";

pub(super) const WITHOUT_DAEMONS: &str = "rpc.nfsd 0\n\
    for daemon in rpc.mountd rpc.statd nfsdcld; do ! pid=$(pidof $daemon) || kill -9 $pid; done";

/// Shell that starts the server, whose scope is the host name. Ended daemons may still be listed.
pub(super) const START: &str = "nfsdcld -p /run/rpc_pipefs\n\
    until grep -qs inotify $(for pid in $(pidof nfsdcld); do echo /proc/$pid/fdinfo/*; done)\n\
    do sleep 0.1; done\n\
    rpc.nfsd --tcp 4";

/// The file that every client has open, so that nobody has a delegation of it.
const SHARED: &str = "shared";

/// Shell that brings the addresses up, as a cluster manager does last.
pub(super) fn addresses_up() -> String {
    VIPS.map(|vip| match vip.contains(':') {
        true => format!("ip addr replace {vip}/128 dev eth0 nodad"),
        false => format!("ip addr replace {vip}/32 dev eth0; arping -q -A -c 1 -I eth0 {vip}"),
    })
    .join("\n")
}

/// Shell that takes all but the server away.
pub(super) fn leave() -> String {
    let addresses = VIPS.map(|vip| {
        let length = if vip.contains(':') { 128 } else { 32 };
        format!("ip addr del {vip}/{length} dev eth0")
    });
    format!(
        "{}\nexportfs -au\nexportfs -f\n{WITHOUT_DAEMONS}\n\
         for mount in /var/lib/nfs {STORAGE}; do\n\
         tries=0\n\
         until umount $mount; do tries=$((tries + 1)); [ $tries -lt 300 ]; sleep 0.1; done\n\
         done",
        addresses.join("\n")
    )
}

/// Shell that brings everything but the server and the addresses.
pub(super) fn arrive() -> String {
    let options = export_options(7);
    format!(
        "mkdir -p {STORAGE}\n\
         mount /dev/vda {STORAGE}\n\
         [ -d {STORAGE}/nfs ] || cp -a /var/lib/nfs {STORAGE}/nfs\n\
         mkdir -p {EXPORT}\n\
         mount --bind {STORAGE}/nfs /var/lib/nfs\n\
         touch /etc/exports\n\
         exportfs -o {options} '*:{EXPORT}'\n\
         rpc.mountd --port 20048"
    )
}

/// A client that holds a lock on a file of its own and one on the shared file.
struct Holder {
    number: u8,
    _client: Client,
    locks: Vec<HeldLock>,
}

impl Holder {
    fn range(number: u8) -> Range {
        Range::new(10 * u64::from(number), 5)
    }

    fn own(number: u8) -> String {
        format!("own-{number}")
    }
}

pub(super) struct Fixture {
    pub(super) cluster: Cluster,
    holders: Vec<Holder>,
    thief: Client,
    thief_mounts: Vec<Mount>,
}

impl Fixture {
    /// The server is on the first node. Both have no other one.
    pub(super) fn up(context: &Context) -> Result<Fixture> {
        let cluster = Cluster::up(&context.nlmfo, &[])?;
        run(Command::new("modprobe").arg("nfsv4"))?;
        for node in [&cluster.a, &cluster.b] {
            node.shell(WITHOUT_DAEMONS)?;
            set_graces(node)?;
        }
        let a = &cluster.a;
        a.shell("mkfs.ext4 -q -F /dev/vda")?;
        a.shell(&arrive())?;
        a.shell("rpc.statd --no-notify")?;
        a.shell(START)?;
        a.shell(&addresses_up())?;
        for control in [LOCKD_GRACE, NFSD_GRACE] {
            end_grace_of(a.node(), control)?;
        }
        let vips: Vec<IpAddr> = VIPS
            .iter()
            .map(|vip| vip.parse())
            .collect::<Result<_, _>>()?;
        let [one, two, six] = vips[..] else {
            anyhow::bail!("the scenario wants three VIPs");
        };
        let bridge = TestNode::root();
        let mount = |client: &Client, minor, vip| match minor {
            None => client.mount_export(Path::new(EXPORT), vip, Transport::Tcp),
            Some(minor) => client.mount_export_nfs4(Path::new(EXPORT), vip, minor),
        };
        let mut holders = Vec::new();
        for (number, minor, vip) in [
            (1, None, one),
            (2, Some(0), one),
            (3, Some(1), two),
            (4, Some(2), six),
            (5, None, six),
        ] {
            let client = Client::join_bridge(&bridge, number)?;
            let mount = mount(&client, minor, vip)?;
            let locks = [Holder::own(number), SHARED.to_owned()];
            let locks = locks
                .iter()
                .map(|file| client.lock(&mount, file, Holder::range(number), Mode::Write))
                .collect::<Result<_>>()?;
            holders.push(Holder {
                number,
                _client: client,
                locks,
            });
        }
        let thief = Client::join_bridge(&bridge, 9)?;
        let thief_mounts = vec![mount(&thief, Some(1), two)?, mount(&thief, None, one)?];
        Ok(Fixture {
            cluster,
            holders,
            thief,
            thief_mounts,
        })
    }

    /// Asks for every lock on the shared file all of the time, by NFSv3 and NFSv4.
    pub(super) fn steal(&self) -> Result<Busy> {
        let wanted = self.thief_mounts.iter().flat_map(|mount| {
            self.holders.iter().map(|holder| Wanted {
                file: mount.path(SHARED),
                range: Holder::range(holder.number),
                mode: Mode::Write,
            })
        });
        self.thief.busy(&wanted.collect::<Vec<_>>())
    }

    /// No lock can be had by others.
    pub(super) fn all_held(&self) -> Result<()> {
        let locker = self.thief.locker()?;
        for holder in &self.holders {
            let range = Holder::range(holder.number);
            for file in [SHARED.to_owned(), Holder::own(holder.number)] {
                for mount in &self.thief_mounts {
                    let tested = locker.test(&mount.path(&file), range, Mode::Write)?;
                    ensure!(
                        tested == Outcome::Refused,
                        "the lock of client {} on {file}: {tested:?}",
                        holder.number
                    );
                }
            }
        }
        Ok(())
    }

    /// Every holder gives its locks back to the server.
    pub(super) fn release(self) -> Result<()> {
        for holder in self.holders {
            for lock in holder.locks {
                lock.release()?;
            }
        }
        Ok(())
    }
}

/// Before nfsd starts.
pub(super) fn set_graces(node: &Node) -> Result<()> {
    for (file, seconds) in [
        (NLM_GRACE_PERIOD, LONG_GRACE),
        (NFSD_LEASE_TIME, SHORT_LEASE),
        (NFSD_GRACE_TIME, LONG_GRACE),
    ] {
        node.node().write(file, seconds)?;
    }
    Ok(())
}

pub(super) fn ensure_no_theft(thief: Busy) -> Result<()> {
    let tallies = thief.finish()?;
    let stolen: Vec<&Tally> = tallies.iter().filter(|tally| tally.held > 0).collect();
    ensure!(stolen.is_empty(), "stolen: {stolen:?}");
    let slowest = tallies.iter().map(|tally| tally.slowest).max();
    eprintln!("the slowest answer to the thief took {slowest:?}");
    Ok(())
}

/// All is back, and grace was ended before its time.
pub(super) fn ensure_kept(report: &Value) -> Result<()> {
    let start = &report["start"];
    let none = |kind: &str| start["missing"][kind].as_array().is_some_and(Vec::is_empty);
    ensure!(
        start["ended"] == "early"
            && start["has_record"] == true
            && start["grace"]["lockd"] == true
            && start["grace"]["nfsd"] == true
            && start["expected"].as_u64() >= Some(10)
            && none("locks")
            && none("nfs4"),
        "{report}"
    );
    eprintln!("all back {} ms after the start", start["back_after_ms"]);
    Ok(())
}

fn words<'a>(first: &[&'a str]) -> Vec<&'a str> {
    let mut words = [&["failover", "--whole-server", "--state-dir", STATE], first].concat();
    for vip in VIPS {
        words.extend(["--vip", vip]);
    }
    words
}

fn release(node: &Node) -> Result<()> {
    let released = node
        .tool()
        .json(exit::CONFIRMED, &words(&["--phase", "release"]))?;
    ensure!(
        released["stop"]["stopped"] == true
            && released["start"].is_null()
            && released["stop"]["notes"] == Value::Array(vec![]),
        "{released}"
    );
    eprintln!("released in {} ms", released["took_ms"]);
    node.shell(&leave()).map(drop)
}

/// Takes over; the addresses come when the server runs.
fn take_over(node: &Node) -> Result<()> {
    let takeover = words(&["--phase", "takeover", "--wait-address", "60s"]);
    let taken = thread::scope(|scope| {
        let takeover = scope.spawn(|| node.tool().json(exit::CONFIRMED, &takeover));
        until("nfsd on the other node", || {
            let threads = node.node().read("/proc/fs/nfsd/threads")?;
            Ok(match threads.trim() {
                "0" => Seen::No(threads),
                _ => Seen::Yes(()),
            })
        })?;
        node.shell(&addresses_up())?;
        takeover.join().expect("running nlmfo does not panic")
    })?;
    ensure_kept(&taken)
}

fn moves(context: &Context) -> Result<End> {
    let fixture = Fixture::up(context)?;
    let (a, b) = (&fixture.cluster.a, &fixture.cluster.b);
    let thief = fixture.steal()?;

    // A VIP stays behind: nothing is stopped.
    let some = [
        "failover",
        "--whole-server",
        "--state-dir",
        STATE,
        "--phase",
        "release",
        "--vip",
        VIPS[0],
    ];
    let refused = a.tool().expect(exit::COULD_NOT_RUN, &some)?;
    ensure!(
        refused.stderr.contains("add --vip 10.77.0.2"),
        "{}",
        refused.stderr
    );
    // The other node's phase is refused where the server runs.
    let here = a.tool().expect(
        exit::UNSUPPORTED,
        &words(&["--phase", "takeover", "--dry-run"]),
    )?;
    ensure!(
        here.stdout.contains("the NFS server runs here"),
        "{}",
        here.stdout
    );

    // By phases, addresses last.
    release(a)?;
    b.shell(&arrive())?;
    take_over(b)?;
    fixture.all_held()?;

    // Back by one command.
    let script = format!(
        "#!/bin/sh\nset -e\n{}\n{AGENT} rsh \"$1\" {}\n",
        leave(),
        quoted(&format!("set -e\n{}\n{}", arrive(), addresses_up()))
    );
    b.node().write_program(HAND_OVER, &script)?;
    let rsh = format!("{AGENT} rsh");
    let nlmfo = context.nlmfo.to_str().context("no UTF-8")?;
    let to = [
        "--to",
        "10.77.2.1",
        "--rsh",
        &rsh,
        "--remote-nlmfo",
        nlmfo,
        "--hand-over",
        HAND_OVER,
    ];
    let moved = b.tool().json(exit::CONFIRMED, &words(&to))?;
    ensure_kept(&moved["takeover"])?;
    eprintln!(
        "moved in {} ms; stood still at most {} ms",
        moved["took_ms"], moved["stood_still_ms"]
    );
    fixture.all_held()?;

    // A server that is started with another scope is refused, and no lock is lost.
    release(a)?;
    b.shell(&arrive())?;
    b.shell(START)?;
    let takeover = words(&["--phase", "takeover"]);
    let refused = b.tool().expect(exit::NOT_CONFIRMED, &takeover)?;
    ensure!(
        refused
            .stderr
            .contains("its scope is b, and NFSv4 clients reclaim only from one with the scope a"),
        "{}",
        refused.stderr
    );
    b.shell("rpc.nfsd 0")?;
    take_over(b)?;
    ensure_no_theft(thief)?;
    fixture.all_held()?;
    fixture.release()?;
    Ok(End::Pass)
}
