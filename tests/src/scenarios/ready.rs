//! What a failover needs of a node's services: where lockd listens, whoever answers for
//! it, and what is found out before anything is done.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::observe::lockd_ports::{LockdPort, LockdPorts};
use serde_json::Value;

use super::{Context, End, Kernels, Machine, Scenario};
use crate::guest::command::run;
use crate::guest::daemons::{cold_rpcbind, crash, register, signal, wait_lockd_blocked};
use crate::guest::gated::open;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::node::TestNode;
use crate::guest::server::OWN_ADDRESS;
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};
use crate::guest::wired::{GRANTED, OTHER, REFUSED, VIP, VIP6, Wired};

const DAEMONS: &str = "it kills and stops the server's daemons";

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "ready-ports",
        claim: "grace and fence hold, and NFS is not affected, with rpcbind dead, empty or wrong, and \
                with fixed ports; neither starts where lockd does not listen",
        run: ports,
        machine: Machine::Own(DAEMONS),
        kernels: Kernels::One(
            "the ports come from the sockets by the same eBPF; gate-* run on both",
        ),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "ready-statd",
        claim: "with statd crashed or hung, a takeover is refused before anything changes, or waits in \
                grace, and no lock is lost; check reports each cause once",
        run: statd,
        machine: Machine::Own(DAEMONS),
        kernels: Kernels::One("statd and the checks of it are no part of the kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "ready-blocked",
        claim: "a release waits for a lockd that statd blocks, releases what it can without it, and \
                confirms nothing before lockd answers",
        run: blocked,
        machine: Machine::Own(DAEMONS),
        ..Scenario::DEFAULT
    },
];

/// Every port is one that the kernel listens on, by its own list of sockets.
fn ensure_listening(ports: &LockdPorts) -> Result<()> {
    for port in ports.ports() {
        let (file, state) = match (port.transport, port.ipv6) {
            (Transport::Tcp, false) => ("tcp", "0A"),
            (Transport::Tcp, true) => ("tcp6", "0A"),
            (Transport::Udp, false) => ("udp", "07"),
            (Transport::Udp, true) => ("udp6", "07"),
        };
        let table = fs::read_to_string(format!("/proc/net/{file}"))?;
        let listens = table.lines().any(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let local = fields.next().unwrap_or_default();
            let found = fields.nth(1).unwrap_or_default();
            local.ends_with(&format!(":{:04X}", port.port)) && found == state
        });
        ensure!(listens, "{port:?} is not in /proc/net/{file}:\n{table}");
    }
    Ok(())
}

/// A new lock is refused and a reclaim granted, over both transports and families, and
/// NFS through the VIP goes on.
fn ensure_in_grace(wired: &mut Wired, when: &str) -> Result<()> {
    for index in [0, 2] {
        let vip = wired.lab.vips[index];
        for (reclaim, expected) in [(false, REFUSED), (true, GRANTED)] {
            let (caller, mut stream) = wired.stream(vip, NlmVersion::V4)?;
            let answer = wired.ask(&caller, &mut stream, reclaim)?;
            ensure!(
                answer == expected,
                "{when}: to {vip} over tcp, reclaim {reclaim}: {answer:?}"
            );
        }
        wired.exchange_datagrams((index / 2, NlmVersion::V4))?;
    }
    (wired.net.file(&wired.lab.server, wired.lab.vips[0], when)).context("NFS through the VIP")?;
    Ok(())
}

fn ports(context: &Context) -> Result<End> {
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;

    // What lockd registered itself, before anybody else had a word.
    let found = LockdPorts::look_up()?;
    ensure_listening(&found)?;
    ensure!(found.ports().len() == 4, "{found:?}");
    for (vip, transport) in [
        (0, Transport::Tcp),
        (0, Transport::Udp),
        (2, Transport::Tcp),
        (2, Transport::Udp),
    ] {
        let vip = wired.lab.vips[vip];
        for version in [NlmVersion::V1, NlmVersion::V3, NlmVersion::V4] {
            let registered = wired.net.lockd(vip, version, transport)?.port();
            let port = found.port(vip, version, transport);
            ensure!(
                port == Some(registered),
                "{vip} {version} {transport}: {port:?}, registered: {registered}"
            );
        }
    }
    let elsewhere = TestNode::create("nobody")?;
    let there = elsewhere.within(|| Ok(LockdPorts::look_up()?))?;
    ensure!(there.is_empty(), "in another namespace: {there:?}");

    crash("rpcbind")?;
    let vips = [VIP, VIP6];
    open(&tool, &vips)?;
    ensure_in_grace(&mut wired, "rpcbind-dead")?;
    tool.expect(
        exit::CONFIRMED,
        &["grace", "--end", "--vip", VIP, "--vip", VIP6],
    )?;

    cold_rpcbind()?;
    let nfs = |family: &str| format!("{family}.8.1");
    register(100_021, 99, "tcp", &nfs("0.0.0.0"))?;
    register(100_021, 4, "tcp6", &nfs("::"))?;
    open(&tool, &vips)?;
    ensure_in_grace(&mut wired, "rpcbind-lies")?;
    tool.expect(
        exit::CONFIRMED,
        &["grace", "--end", "--vip", VIP, "--vip", VIP6],
    )?;

    let held = wired.range();
    let file = wired.file.clone();
    // Not monitored: the statd that rpcbind has forgotten cannot be asked.
    let mut holder = wired.retrying(wired.lab.vips[0])?;
    holder.granted(|raw| raw.nm_lock(&file, 7, held, Mode::Write))?;
    let release = ["failover", "--phase", "release", "--vip", VIP];
    let report = tool.json(exit::CONFIRMED, &release)?;
    ensure!(report["fenced"][0] == VIP, "{report}");
    let listed = tool.json(exit::CONFIRMED, &["grace", "--list"])?;
    ensure!(listed["fences"][0]["vip"] == VIP, "{listed}");
    holder.set_deadline(Duration::from_secs(2));
    let answer = holder.nm_lock(&file, 7, held, Mode::Write);
    ensure!(answer.is_err(), "through the fence: {answer:?}");
    let mut other = wired.retrying(wired.lab.vips[1])?;
    other.granted(|raw| raw.nm_lock(&file, 7, held, Mode::Write))?;
    (wired
        .net
        .file(&wired.lab.server, wired.lab.vips[0], "fenced"))
    .context("NFS through the fenced VIP")?;
    tool.expect(exit::CONFIRMED, &["cleanup"])?;

    wired.lab.server.stop_nfsd()?;
    let refused = tool.expect(exit::UNSUPPORTED, &["grace", "--vip", OTHER, "--for", "9s"])?;
    ensure!(
        refused.stderr.contains("lockd listens on no port")
            && refused.stderr.contains("start the NFS server"),
        "{}",
        refused.stderr
    );
    for (file, port) in [("nlm_tcpport", "4045"), ("nlm_udpport", "4047")] {
        root.write(&format!("/proc/sys/fs/nfs/{file}"), port)?;
    }
    // None of its addresses is a VIP.
    crash("rpcbind")?;
    run(root.command("rpcbind").args(["-h", OWN_ADDRESS]))?;
    run(root.command("rpc.nfsd").args(["--tcp", "--udp", "4"]))?;
    let fixed: BTreeSet<LockdPort> = LockdPorts::look_up()?.ports().iter().copied().collect();
    let expected = [(Transport::Tcp, 4045), (Transport::Udp, 4047)];
    let expected: BTreeSet<LockdPort> = (expected.into_iter())
        .flat_map(|(transport, port)| {
            [false, true].map(|ipv6| LockdPort {
                transport,
                ipv6,
                port,
            })
        })
        .collect();
    ensure!(fixed == expected, "{fixed:?} on fixed ports {expected:?}");
    wired.lab.server.end_grace()?;
    wired.net.look_up_ports(&wired.lab.server)?;
    open(&tool, &vips)?;
    ensure_in_grace(&mut wired, "fixed-ports")?;
    Ok(End::Pass)
}

/// What `check` finds missing that a failover needs, by name.
fn missing(tool: &Tool) -> Result<Vec<String>> {
    let report: Value = serde_json::from_str(&tool.run(&["check", "--json"])?.stdout)?;
    let checks = report["checks"].as_array().into_iter().flatten();
    let missing = checks.filter(|check| check["need"] == "required" && check["state"] == "missing");
    Ok(missing
        .map(|check| check["name"].as_str().unwrap_or_default().to_owned())
        .collect())
}

fn ensure_missing(tool: &Tool, when: &str, expected: &str) -> Result<()> {
    let found = missing(tool)?;
    ensure!(found == [expected], "{when}: {found:?} is missing");
    let shown = tool.expect(exit::UNSUPPORTED, &["check"])?.stdout;
    ensure!(
        shown.matches("why: ").count() - shown.matches("– without").count() == 1
            && !shown.contains("please report"),
        "{when}: one cause was expected:\n{shown}"
    );
    Ok(())
}

fn open_windows(tool: &Tool) -> Result<usize> {
    let listed = tool.run(&["grace", "--list", "--json"])?.stdout;
    let listed: Value = serde_json::from_str(&listed)?;
    let windows = listed["windows"].as_array().into_iter().flatten();
    Ok(windows.filter(|window| window["open"] == true).count())
}

fn statd(context: &Context) -> Result<End> {
    const RECORD: &str = "/tmp/record.json";
    const STATE: &str = "/var/lib/nlmfo";
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let (lab, _held) = Lab::with_one_lock()?;
    let before = lab.server.locks()?;
    ensure!(missing(&tool)?.is_empty(), "{:?}", missing(&tool)?);
    let release = [
        "failover", "--phase", "release", "--vip", VIP, "--record", RECORD, "--fence", "300s",
    ];
    tool.expect(exit::CONFIRMED, &release)?;

    let takeover = [
        "failover", "--phase", "takeover", "--vip", VIP, "--expect", RECORD,
    ];
    let start = || run(root.command("rpc.statd").arg("--no-notify"));
    for hung in [false, true] {
        match hung {
            false => crash("rpc.statd")?,
            true => signal("rpc.statd", Signal::SIGSTOP)?,
        }
        ensure_missing(&tool, &format!("statd hung: {hung}"), "statd")?;
        let refused = tool.expect(exit::UNSUPPORTED, &takeover)?;
        ensure!(
            refused.stderr.contains("systemctl restart rpc-statd"),
            "{}",
            refused.stderr
        );
        ensure!(open_windows(&tool)? == 0, "grace is open");
        ensure!(lab.server.locks()?.is_empty(), "a client was told");
        if !hung {
            start()?;
        }
    }
    let waits = [&takeover[..], &["--wait-services", "90s", "--json"]].concat();
    let report = std::thread::scope(|scope| -> Result<_> {
        let taken = scope.spawn(|| tool.expect(exit::CONFIRMED, &waits));
        until("the window of a takeover that waits", || {
            Ok(match open_windows(&tool)? {
                1 => Seen::Yes(()),
                other => Seen::No(format!("{other} windows")),
            })
        })?;
        ensure!(lab.server.locks()?.is_empty(), "a client was told");
        signal("rpc.statd", Signal::SIGCONT)?;
        taken.join().expect("running nlmfo does not panic")
    })?;
    let report: Value = serde_json::from_str(&report.stdout)?;
    ensure!(report["vips"][0]["expected"] == 1, "{report}");
    ensure!(lab.server.locks()? == before, "{:?}", lab.server.locks()?);

    // The clients are told all the same.
    fs::create_dir_all(STATE)?;
    run(root
        .command("mount")
        .args(["-t", "tmpfs", "-o", "ro", "none", STATE]))?;
    let finished = tool.expect(exit::INCOMPLETE, &["failover", "--vip", VIP, "--json"])?;
    let reports = serde_json::Deserializer::from_str(&finished.stdout).into_iter();
    let reports = reports.collect::<Result<Vec<Value>, _>>()?;
    let vip = &reports.last().context("no report")?["vips"][0];
    ensure!(
        vip["notified"]["done"] == true
            && vip["notified"]["state_number_error"].is_string()
            && vip["missing"].as_array().is_some_and(Vec::is_empty),
        "{vip}"
    );
    ensure!(lab.server.locks()? == before, "{:?}", lab.server.locks()?);
    run(root.command("umount").arg(STATE))?;

    for (file, bad, name) in [
        ("/proc/sys/kernel/kptr_restrict", "2", "symbols"),
        ("/proc/sys/kernel/ftrace_enabled", "0", "ftrace"),
    ] {
        let good = root.read(file)?;
        root.write(file, bad)?;
        // Kept symbols make up for those that the kernel hides.
        run(root.command("rm").args(["-f", "/run/nlmfo/symbols.json"]))?;
        ensure_missing(&tool, file, name)?;
        tool.expect(exit::UNSUPPORTED, &takeover)?;
        root.write(file, &good)?;
    }
    lab.server.stop_nfsd()?;
    ensure_missing(&tool, "nfsd stopped", "nfsd")?;
    tool.expect(exit::UNSUPPORTED, &takeover)?;
    Ok(End::Pass)
}

fn blocked(context: &Context) -> Result<End> {
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let lab = Lab::up(&[VIP], 2)?;
    let _held = lab.clients[0].lock("held", Range::WHOLE)?;
    let works = tool.run(&["check", "--json"])?.stdout;
    let works = serde_json::from_str::<Value>(&works)?["unlock_ip"]["verdict"] == "fixed";

    // lockd asks statd before it grants this client its first lock.
    signal("rpc.statd", Signal::SIGSTOP)?;
    let late = lab.clients[1].client.locker()?;
    let path = lab.clients[1].mounts[0].path("late");
    let _waiting = late.lock_wait(&path, Range::WHOLE, Mode::Write)?;
    wait_lockd_blocked(&tool)?;

    let release = ["failover", "--phase", "release", "--vip", VIP, "--deadline"];
    let began = std::time::Instant::now();
    let report = tool.json(exit::NOT_CONFIRMED, &[&release[..], &["7s"]].concat())?;
    let took = began.elapsed();
    ensure!(
        took >= Duration::from_secs(7) && took < Duration::from_secs(40),
        "{took:?} with a deadline of 7 s"
    );
    let vip = &report["vips"][0];
    ensure!(
        vip["verdict"] == "not_confirmed" && vip["blockers"].to_string().contains("rpc.statd"),
        "{vip}"
    );
    let left = vip["remaining"].as_array().map_or(0, Vec::len);
    ensure!(
        left == usize::from(!works),
        "unlock_ip works: {works}: {vip}"
    );

    let arguments = [&release[..], &["90s", "--json"]].concat();
    let done = std::thread::scope(|scope| -> Result<_> {
        let release = scope.spawn(|| tool.expect(exit::CONFIRMED, &arguments));
        signal("rpc.statd", Signal::SIGCONT)?;
        release.join().expect("running nlmfo does not panic")
    })?;
    ensure!(lab.server.locks()?.is_empty(), "{}", done.stdout);
    Ok(End::Pass)
}
