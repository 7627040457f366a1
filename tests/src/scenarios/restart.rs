//! The NFS server of a node restarts, and its clients keep their locks.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use nlmfo::testbed::server::export_folder;
use serde_json::{Value, json};

use super::{Context, End, Kernels, Machine, Scenario};
use crate::guest::busy::Busy;
use crate::guest::command::run;
use crate::guest::daemons;
use crate::guest::holders::{Holders, ensure_no_theft};
use crate::guest::lab::{Lab, MountedClient};
use crate::guest::locker::{Mode, Range};
use crate::guest::node::TestNode;
use crate::guest::report;
use crate::guest::server::{NFSD_GRACE_TIME, NFSD_LEASE_TIME, NLM_GRACE_PERIOD, Server};
use crate::guest::step::signal_after;
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "restart-keeps",
        claim: "over `nlmfo restart`, with statd and nfsdcld dead before, and with the unit's halves, \
                NFSv3, 4.0, 4.1 and 4.2 clients keep every lock, nobody else gets one, and both \
                graces end early",
        run: keeps,
        only_full: Some("three restarts of a minute each on a busy machine"),
        machine: Machine::Own(OWN),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "restart-plain",
        claim: "over a plain restart, an NFSv3 client loses its lock to another one; a restart whose stop fails \
                leaves no fence",
        run: plain,
        kernels: Kernels::One("it is the control of restart-keeps"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "restart-busy",
        claim: "over a restart while clients lock and unlock, they keep the locks that they hold, get each lock \
                that they ask for, and leave none behind",
        run: busy,
        kernels: Kernels::One("the kernel makes no difference to the comparison"),
        only_full: Some("a grace of its full time, if clients unlock at the wrong moment"),
        machine: Machine::Own(OWN),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "restart-missing",
        claim: "an address that comes up late is waited for; locks that do not come back are named: of an \
                address that is gone, of a client that is down; without a record, statd's list is used and nothing is confirmed; those of an \
                export that is a bind mount come back",
        run: missing,
        kernels: Kernels::One("the kernel makes no difference to the comparison"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "restart-killed",
        claim: "after SIGKILL at any step of a restart, the next one loses no lock",
        run: killed,
        only_full: Some("minutes of restarts"),
        machine: Machine::Own(OWN),
        ..Scenario::DEFAULT
    },
];

const OWN: &str = "nfsd keeps its NFSv4 clients for longer than their mounts";

pub(super) const VIPS: [&str; 3] = ["10.77.0.1", "10.77.0.2", "fd77::1"];

/// Longer than a restart may take: a grace of this length that is over was ended early.
pub(super) const LONG_GRACE: &str = "90";

/// An idle NFSv4 client notices a restart when it renews its lease, after two thirds of it.
pub(super) const SHORT_LEASE: &str = "10";

/// The file that clients lock.
const SHARED: &str = "shared";

struct Fixture {
    lab: Lab,
    holders: Holders,
}

impl Fixture {
    /// Graces are long and leases short.
    fn up() -> Result<Fixture> {
        let lab = Lab::up(&VIPS, 0)?;
        run(Command::new("modprobe").arg("nfsv4"))?;
        long_graces(&lab.server)?;
        let holders = Holders::up(lab.server.node(), lab.server.export(), &lab.vips)?;
        Ok(Fixture { lab, holders })
    }

    /// Every holder gives its locks back to the server.
    fn release(self) -> Result<()> {
        self.holders.release()?;
        let left = self.lab.server.locks()?;
        ensure!(left.is_empty(), "locks are left: {left:?}");
        Ok(())
    }
}

/// Restarts nfsd with graces of [`LONG_GRACE`] and leases of [`SHORT_LEASE`], and ends the graces.
fn long_graces(server: &Server) -> Result<()> {
    let node = server.node();
    server.stop_nfsd()?;
    node.write(NLM_GRACE_PERIOD, LONG_GRACE)?;
    node.write(NFSD_LEASE_TIME, SHORT_LEASE)?;
    node.write(NFSD_GRACE_TIME, LONG_GRACE)?;
    server.start_nfsd()?;
    server.end_grace()
}

fn number(value: &Value, key: &str) -> Result<u64> {
    value[key]
        .as_u64()
        .with_context(|| format!("no {key} in {value}"))
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value[key]
        .as_array()
        .with_context(|| format!("no list {key} in {value}"))
}

/// nfsdcld does not know a 4.0 client that has only reclaimed.
fn ensure_added(report: &Value) -> Result<()> {
    let added = &report["stop"]["added"];
    ensure!(*added == json!(["Linux NFSv4.0 c2/10.77.0.1"]), "{report}");
    Ok(())
}

/// Everything is back: at least 8 locks and opens, without the holder that is dropped on 6.1.
pub(super) fn ensure_kept(report: &Value) -> Result<()> {
    report::ensure_kept(report, &["lockd"], 8)
}

/// The clients list the exported directory until one has a delegation of it.
fn delegate_directory(fixture: &Fixture, tool: &Tool) -> Result<()> {
    until("a delegation of the directory", || {
        fixture.holders.list_folder()?;
        let listing = tool.json(exit::CONFIRMED, &["locks"])?;
        let states = list(&listing["nfs4"], "states")?;
        let is_it =
            |state: &Value| state["kind"] == "delegation" && state["file"]["path"] == "/export";
        Ok(match states.iter().any(is_it) {
            true => Seen::Yes(()),
            false => Seen::No(listing["nfs4"]["states"].to_string()),
        })
    })
}

fn keeps(context: &Context) -> Result<End> {
    let mut fixture = Fixture::up()?;
    // Its lockd keeps the locks while clients of this machine run, and unlock_ip releases those
    // of IPv4 addresses only.
    let keeps_ipv6 = context.kernel.starts_with("6.1.");
    if keeps_ipv6 {
        fixture.holders.drop_holder(5)?;
    }
    let node = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &node);
    // Nothing is locked behind it, and nobody reclaims it.
    if context.kernel.starts_with("7.") {
        delegate_directory(&fixture, &tool)?;
    }
    let thief = fixture.holders.steal()?;
    let report = tool.json(exit::CONFIRMED, &["restart"])?;
    ensure_kept(&report)?;
    let nfs3_locks = if keeps_ipv6 { 2 } else { 4 };
    ensure!(
        number(&report["stop"], "locks")? == nfs3_locks
            && number(&report["stop"], "nfs4_clients")? >= 3,
        "{report}"
    );
    fixture.holders.all_held()?;
    ensure_no_theft(thief)?;

    // Once more, and without the daemons that reclaims need.
    let thief = fixture.holders.steal()?;
    daemons::crash("rpc.statd")?;
    daemons::crash("nfsdcld")?;
    let report = tool.json(exit::CONFIRMED, &["restart"])?;
    ensure_kept(&report)?;
    ensure_added(&report)?;
    fixture.holders.all_held()?;

    // As systemd's unit does it.
    let recorded = tool.json(exit::CONFIRMED, &["restart", "--record-only"])?;
    ensure!(recorded["start"].is_null(), "{recorded}");
    ensure_added(&recorded)?;
    fixture.lab.server.stop_nfsd()?;
    fixture.lab.server.start_nfsd()?;
    let unit = ["restart", "--start-only", "--start-command", "true"];
    ensure_kept(&tool.json(exit::CONFIRMED, &unit)?)?;
    ensure_no_theft(thief)?;
    fixture.holders.all_held()?;
    fixture.release()?;
    Ok(End::Pass)
}

/// The control.
fn plain(context: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS[..1], 2)?;
    let [owner, thief] = &lab.clients[..] else {
        unreachable!("two clients were asked for");
    };
    let _held = owner.lock(SHARED, Range::WHOLE)?;

    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let failing = ["restart", "--stop-command", "false"];
    tool.expect(exit::NOT_CONFIRMED, &failing)?;
    let listed = tool.json(exit::CONFIRMED, &["grace", "--list"])?;
    ensure!(listed["fences"].is_null(), "{listed}");
    thief.lock("another", Range::WHOLE)?.release()?;

    lab.server.stop_nfsd()?;
    lab.server.start_nfsd()?;
    let locker = thief.client.locker()?;
    let waiter = locker.lock_wait(&thief.mounts[0].path(SHARED), Range::WHOLE, Mode::Write)?;
    ensure!(
        waiter.held_within(Duration::from_secs(100))?,
        "a plain restart keeps the lock: nlmfo restart is not needed"
    );
    Ok(End::Pass)
}

fn busy(context: &Context) -> Result<End> {
    let fixture = Fixture::up()?;
    let tool = Tool::new(&context.nlmfo, fixture.lab.server.node());
    let thief = fixture.holders.steal()?;
    let clients = fixture.holders.lock_and_unlock()?;
    for _ in 0..2 {
        let report = tool.json(exit::CONFIRMED, &["restart"])?;
        let start = &report["start"];
        eprintln!(
            "all back after {} ms; grace ended {}; given up: {}",
            start["back_after_ms"], start["ended"], start["given_up"]
        );
        fixture.holders.all_held()?;
        let held = |client: &Busy| client.tallies().iter().map(|one| one.held).sum::<u64>();
        for client in &clients {
            let before = held(client);
            until("more locks", || {
                Ok(match held(client) > before {
                    true => Seen::Yes(()),
                    false => Seen::No(format!("{:?}", client.tallies())),
                })
            })?;
        }
    }
    for client in clients {
        for tally in client.finish()? {
            ensure!(tally.failed.is_empty() && tally.refused == 0, "{tally:?}");
            eprintln!("{} locks, the slowest took {:?}", tally.held, tally.slowest);
        }
    }
    ensure_no_theft(thief)?;
    fixture.holders.all_held()?;
    fixture.release()?;
    Ok(End::Pass)
}

fn missing(context: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS[..2], 2)?;
    let server = &lab.server;
    let tool = Tool::new(&context.nlmfo, server.node());
    let [one, two] = &lab.clients[..] else {
        unreachable!("two clients were asked for");
    };
    let through = |client: &MountedClient, vip: usize, file: &str| {
        (client.client).lock(&client.mounts[vip], file, Range::WHOLE, Mode::Write)
    };
    let _held = [
        through(one, 0, "one")?,
        through(one, 1, "gone")?,
        through(two, 0, "two")?,
    ];

    // An address comes up when the server runs already and all else is back.
    server.node().write(NLM_GRACE_PERIOD, LONG_GRACE)?;
    tool.json(exit::CONFIRMED, &["restart", "--stop-only"])?;
    server.remove_vip(lab.vips[1])?;
    let report = thread::scope(|scope| {
        let starting = scope.spawn(|| tool.json(exit::CONFIRMED, &["restart", "--start-only"]));
        until("the locks of the other address", || {
            let locks = server.locks()?;
            Ok(match locks.len() {
                2 => Seen::Yes(()),
                _ => Seen::No(format!("{locks:?}")),
            })
        })?;
        server.add_vip(lab.vips[1])?;
        starting.join().expect("no panic")
    })?;
    ensure!(
        report["start"]["expected"] == 3
            && report["start"]["ended"] == "early"
            && list(&report["start"], "changes")?.is_empty(),
        "{report}"
    );
    ensure!(server.locks()?.len() == 3, "{:?}", server.locks()?);
    server.node().write(NLM_GRACE_PERIOD, "12")?;

    // An address does not come up. Its lock is named.
    tool.json(exit::CONFIRMED, &["restart", "--stop-only"])?;
    server.remove_vip(lab.vips[1])?;
    let report = tool.json(exit::INCOMPLETE, &["restart", "--start-only"])?;
    let changes = list(&report["start"], "changes")?;
    ensure!(
        changes.len() == 1
            && changes[0]["what"] == "10.77.0.2 is not an address of this node"
            && changes[0]["costs"] == 1
            && report["start"]["ended"] == "by_itself"
            && list(&report["start"]["missing"], "locks")?.len() == 1,
        "{report}"
    );
    ensure!(server.locks()?.len() == 2, "{:?}", server.locks()?);

    // A client that is down has the whole grace to come back.
    server.node().ip("link set vc2 down\n")?;
    let report = tool.json(exit::INCOMPLETE, &["restart"])?;
    let lost = list(&report["start"]["missing"], "locks")?;
    ensure!(
        lost.len() == 1
            && lost[0]["client_name"] == "c2"
            && report["start"]["ended"] == "by_itself",
        "{report}"
    );
    ensure!(server.locks()?.len() == 1, "{:?}", server.locks()?);

    // Nobody recorded anything, as after a crash: statd still has its list.
    daemons::crash("rpc.statd")?;
    server.stop_nfsd()?;
    server.start_nfsd()?;
    run(server.node().command("rpc.statd").arg("--no-notify"))?;
    let report = tool.json(exit::NOT_CONFIRMED, &["restart", "--start-only"])?;
    ensure!(
        report["start"]["has_record"] == false && report["start"]["ended"] == "by_itself",
        "{report}"
    );
    ensure!(server.locks()?.len() == 1, "{:?}", server.locks()?);
    server.node().ip("link set vc2 up\n")?;
    server.add_vip(lab.vips[1])?;

    // The export is a bind mount now, and the file is found by another mount.
    let (export, bound) = (server.export(), Path::new("/run/bound"));
    let unexport = |folder: &Path| {
        let folder = format!("*:{}", folder.display());
        run(server.node().command("exportfs").args(["-u", &folder]))
    };
    std::fs::create_dir_all(bound)?;
    run(Command::new("mount").arg("--bind").args([export, bound]))?;
    unexport(export)?;
    export_folder(server.node(), bound, 1)?;
    let report = tool.json(exit::CONFIRMED, &["restart"])?;
    ensure!(
        report["start"]["expected"] == 1 && list(&report["start"], "changes")?.is_empty(),
        "{report}"
    );
    unexport(bound)?;
    export_folder(server.node(), export, 1)?;
    run(Command::new("umount").arg("-l").arg(bound))?;
    Ok(End::Pass)
}

/// Steps at which the restart is killed.
fn steps(full: bool) -> Box<dyn Iterator<Item = usize>> {
    match full {
        true => Box::new((0..).map(|nth| 1 + nth * nth)),
        false => Box::new([15, 60, 150].into_iter()),
    }
}

fn killed(context: &Context) -> Result<End> {
    let fixture = Fixture::up()?;
    let tool = Tool::new(&context.nlmfo, fixture.lab.server.node());
    let thief = fixture.holders.steal()?;
    let mut kills = 0;
    for step in steps(context.full) {
        let stepped = signal_after(&mut tool.command(&["restart"]), step, Signal::SIGKILL)?;
        let Some(at) = &stepped.at else {
            ensure!(stepped.code == exit::CONFIRMED, "{}", stepped.said);
            break;
        };
        kills += 1;
        eprintln!("killed at step {step}, {at}");
        let report = tool.json(exit::CONFIRMED, &["restart"])?;
        ensure_kept(&report).with_context(|| format!("killed at step {step}, {at}"))?;
        (fixture.holders.all_held()).with_context(|| format!("killed at step {step}, {at}"))?;
    }
    ensure!(kills >= 1, "killed {kills} times only");
    ensure_no_theft(thief)?;
    fixture.holders.all_held()?;
    fixture.release()?;
    Ok(End::Pass)
}
