//! The node's own NFS server moves whole, with all its VIPs and its storage: active/passive.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Context, End, Kernels, Scenario};
use crate::cluster::agent::{AGENT, quoted};
use crate::cluster::killed::Step;
use crate::cluster::{Cluster, Node};
use crate::guest::command::run;
use crate::guest::holders::{Holders, ensure_no_theft};
use crate::guest::node::TestNode;
use crate::guest::report;
use crate::guest::server::{
    LOCKD_GRACE, NFSD_GRACE, NFSD_GRACE_TIME, NFSD_LEASE_TIME, NLM_GRACE_PERIOD, end_grace_of,
    export_options,
};
use crate::guest::tool::exit;
use crate::guest::wait::{Seen, until};

pub const ON_A_CLUSTER: &[Scenario] = &[MOVES, KILLED];

const MOVES: Scenario = Scenario {
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
};

const KILLED: Scenario = Scenario {
    name: "two-nodes-whole-server-killed",
    claim: "a release or takeover of a whole server that is killed goes on if it is run again; the record may \
            be copied; after a crash of the node clients reclaim too, and that is not confirmed: nobody loses a lock",
    run: killed,
    kernels: Kernels::One("the halves are those of a restart, which restart-killed kills"),
    only_full: Some("four moves of a whole server"),
    ..Scenario::DEFAULT
};

const VIPS: [&str; 3] = ["10.77.0.1", "10.77.0.2", "fd77::1"];

/// What moves along: exported files, nfs-utils' state, nlmfo's state.
const STORAGE: &str = "/srv/whole";
const EXPORT: &str = "/srv/whole/export";
pub(super) const STATE: &str = "/srv/whole/nlmfo";

/// Longer than a move may take: a grace of this length that is over was ended early.
const LONG_GRACE: &str = "90";

/// An idle NFSv4 client notices the move when it renews its lease.
const SHORT_LEASE: &str = "10";

/// A state directory of each node, and the copy of a record.
const LOCAL_STATE: &str = "/tmp/whole-state";
const COPY: &str = "/tmp/whole.json";

pub(super) const LEASES: &str = "/proc/sys/fs/leases-enable";

const HAND_OVER: &str = "/tmp/hand-over-whole";

/// A condition of the shell.
const RUNS: &str = "grep -qsx '[1-9][0-9]*' /proc/fs/nfsd/threads";

pub(super) const WITHOUT_DAEMONS: &str = "rpc.nfsd 0\n\
    for daemon in rpc.mountd rpc.statd nfsdcld; do ! pid=$(pidof $daemon) || kill -9 $pid; done";

/// Shell that starts the server, whose scope is the host name. Ended daemons may still be listed.
pub(super) const START: &str = "nfsdcld -p /run/rpc_pipefs\n\
    until grep -qs inotify $(for pid in $(pidof nfsdcld); do echo /proc/$pid/fdinfo/*; done)\n\
    do sleep 0.1; done\n\
    rpc.nfsd --tcp 4";

/// Shell that brings the addresses up, as a cluster manager does last; nlmfo announces them.
pub(super) fn addresses_up() -> String {
    VIPS.map(|vip| match vip.contains(':') {
        true => format!("ip addr replace {vip}/128 dev eth0 nodad"),
        false => format!("ip addr replace {vip}/32 dev eth0"),
    })
    .join("\n")
}

/// The same in the background, once the server runs: no client is refused by a node without it.
fn addresses_later() -> String {
    let up = addresses_up();
    format!("{{ until {RUNS}; do sleep 0.1; done; {up}\n}} </dev/null >/dev/null 2>&1 &")
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

pub(super) struct Fixture {
    pub(super) cluster: Cluster,
    pub(super) holders: Holders,
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
        let holders = Holders::up(&TestNode::root(), Path::new(EXPORT), &vips)?;
        Ok(Fixture { cluster, holders })
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

/// Everything is back: at least 10 locks and opens.
pub(super) fn ensure_kept(report: &Value) -> Result<()> {
    report::ensure_kept(report, &["lockd", "nfsd"], 10)
}

fn words<'a>(state: &'a str, first: &[&'a str]) -> Vec<&'a str> {
    let mut words = [&["failover", "--whole-server", "--state-dir", state], first].concat();
    for vip in VIPS {
        words.extend(["--vip", vip]);
    }
    words
}

/// The stopped server's address does not refuse clients.
fn ensure_silent() -> Result<()> {
    let address = SocketAddr::new(VIPS[0].parse()?, 2049);
    let answer = TcpStream::connect_timeout(&address, Duration::from_millis(500));
    let error = answer.err().context("connected to a stopped server")?;
    ensure!(error.kind() == ErrorKind::TimedOut, "{error}");
    Ok(())
}

fn release(node: &Node) -> Result<()> {
    let released = node
        .tool()
        .json(exit::CONFIRMED, &words(STATE, &["--phase", "release"]))?;
    ensure!(
        released["stop"]["stopped"] == true
            && released["start"].is_null()
            && released["stop"]["notes"] == Value::Array(vec![]),
        "{released}"
    );
    eprintln!("released in {} ms", released["took_ms"]);
    ensure_silent()?;
    node.shell(&leave()).map(drop)
}

/// Takes over; the addresses come when the server runs.
fn take_over(node: &Node, state: &str, further: &[&str]) -> Result<()> {
    ensure_kept(&take_over_with(node, exit::CONFIRMED, state, further)?)
}

/// The same, with this exit status. Returns the report.
fn take_over_with(node: &Node, exit: i32, state: &str, further: &[&str]) -> Result<Value> {
    let wait = ["--phase", "takeover", "--wait-address", "60s"];
    let takeover = words(state, &[&wait, further].concat());
    thread::scope(|scope| {
        let takeover = scope.spawn(|| node.tool().json(exit, &takeover));
        until("nfsd on the other node", || {
            let threads = node.node().read("/proc/fs/nfsd/threads")?;
            Ok(match threads.trim() {
                "0" => Seen::No(threads),
                _ => Seen::Yes(()),
            })
        })?;
        node.shell(&addresses_up())?;
        takeover.join().expect("running nlmfo does not panic")
    })
}

/// Steps of a release and of a takeover at which they are killed.
fn steps(from: &Node, to: &Node) -> [(Step, Step); 3] {
    let record = |node: &Node| format!("{STATE}/restart/{}.json", node.name());
    let reclaims = format!(
        "{RUNS} && {{ {}; ls /proc/fs/nfsd/clients | grep -q .; }}",
        addresses_up().replace('\n', "; ")
    );
    [
        (Step::gate_loaded(), Step::file_there(&record(to))),
        (
            Step::file_there(&record(from)),
            Step::when("nfsd runs", RUNS.to_owned()),
        ),
        (
            Step::when(
                "nfsd has stopped",
                "grep -qx 0 /proc/fs/nfsd/threads".into(),
            ),
            Step::when("clients reclaim", reclaims),
        ),
    ]
}

fn killed(context: &Context) -> Result<End> {
    let fixture = Fixture::up(context)?;
    let (mut from, mut to) = (&fixture.cluster.a, &fixture.cluster.b);
    let thief = fixture.holders.steal()?;
    let owned = |words: Vec<&str>| -> Vec<String> { words.into_iter().map(String::from).collect() };
    for nth in 0..steps(from, to).len() {
        let (releasing, taking) = steps(from, to).into_iter().nth(nth).context("no step")?;
        let words_here = words(STATE, &["--phase", "release"]);
        from.kill_at(&releasing, &owned(words_here.clone()))?;
        let released = from.tool().json(exit::CONFIRMED, &words_here)?;
        ensure!(released["stop"]["stopped"] == true, "{released}");
        from.shell(&leave())?;
        to.shell(&arrive())?;
        let words_there = words(STATE, &["--phase", "takeover", "--wait-address", "60s"]);
        to.kill_at(&taking, &owned(words_there))?;
        take_over(to, STATE, &[])?;
        fixture.holders.all_held()?;
        (from, to) = (to, from);
    }

    // The state directories are those of the nodes, and the record is copied.
    let release = ["--phase", "release", "--record", COPY];
    from.tool()
        .json(exit::CONFIRMED, &words(LOCAL_STATE, &release))?;
    let record = from.shell(&format!("cat {COPY}"))?;
    from.shell(&leave())?;
    to.shell(&arrive())?;
    to.shell(&format!("printf %s {} >{COPY}", quoted(&record)))?;
    take_over(to, LOCAL_STATE, &["--expect", COPY])?;
    fixture.holders.all_held()?;

    // Nobody recorded anything, so nlmfo does not pause leases; the test does. `all_held` opens every
    // file, which recalls delegations.
    for node in [from, to] {
        node.node().write(LEASES, "0")?;
    }
    fixture.holders.all_held()?;
    to.kill()?;
    from.shell(&arrive())?;
    let taken = take_over_with(from, exit::NOT_CONFIRMED, STATE, &[])?;
    ensure!(
        taken["start"]["has_record"] == false && taken["start"]["ended"] == "by_itself",
        "{taken}"
    );
    ensure_no_theft(thief)?;
    fixture.holders.all_held()?;
    fixture.holders.release()?;
    Ok(End::Pass)
}

fn moves(context: &Context) -> Result<End> {
    let fixture = Fixture::up(context)?;
    let (a, b) = (&fixture.cluster.a, &fixture.cluster.b);
    let thief = fixture.holders.steal()?;

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
        &words(STATE, &["--phase", "takeover", "--dry-run"]),
    )?;
    ensure!(
        here.stdout.contains("the NFS server runs here"),
        "{}",
        here.stdout
    );

    // By phases, addresses last.
    release(a)?;
    b.shell(&arrive())?;
    take_over(b, STATE, &[])?;
    fixture.holders.all_held()?;

    // Back by one command.
    let script = format!(
        "#!/bin/sh\nset -e\n{}\n{AGENT} rsh \"$1\" {}\n",
        leave(),
        quoted(&format!("set -e\n{}\n{}", arrive(), addresses_later()))
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
    let moved = b.tool().json(exit::CONFIRMED, &words(STATE, &to))?;
    ensure_kept(&moved["takeover"])?;
    eprintln!(
        "moved in {} ms; stood still at most {} ms",
        moved["took_ms"], moved["stood_still_ms"]
    );
    fixture.holders.all_held()?;

    // A server that is started with another scope is refused, and no lock is lost.
    release(a)?;
    b.shell(&arrive())?;
    b.shell(START)?;
    let takeover = words(STATE, &["--phase", "takeover"]);
    let refused = b.tool().expect(exit::NOT_CONFIRMED, &takeover)?;
    ensure!(
        refused
            .stderr
            .contains("its scope is b, and NFSv4 clients reclaim only from one with the scope a"),
        "{}",
        refused.stderr
    );
    b.shell("rpc.nfsd 0")?;
    take_over(b, STATE, &[])?;
    ensure_no_theft(thief)?;
    fixture.holders.all_held()?;
    fixture.holders.release()?;
    Ok(End::Pass)
}
