//! Nothing is left half-done: what a command leaves in the kernel is seen, ended and removed
//! by the next one, wherever it runs.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::rpc::nlm::Status;
use serde_json::Value;

use super::watch_unload::{put_in, take_out};
use super::{Context, End, Kernels, Scenario};
use crate::guest::command::{finish, run};
use crate::guest::gated::{ensure_gone, kill_all, processes};
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::node::TestNode;
use crate::guest::raw::RawNet;
use crate::guest::server::Server;
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};
use crate::guest::wired::VIP;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "half-done-said",
        claim: "a failed command leaves nothing behind, or reports what remains; a dry run changes nothing",
        run: said,
        kernels: Kernels::One("what a failed command does about its own traces is no kernel's"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "half-done-lockd-reloaded",
        claim: "a window holds over a reload of lockd, and is not confirmed",
        run: lockd_reloaded,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "half-done-netns-exec",
        claim: "windows and fences outlive a command of `ip netns exec`, and its keeper",
        run: netns_exec,
        ..Scenario::DEFAULT
    },
];

/// The keeper takes the gate away a moment after what needed it.
fn wait_until_gone() -> Result<()> {
    until("the gate to be gone", || {
        Ok(match ensure_gone() {
            Ok(()) if processes()?.is_empty() => Seen::Yes(()),
            Ok(()) => Seen::No("processes of nlmfo are left".into()),
            Err(error) => Seen::No(error.to_string()),
        })
    })
}

/// The server's processes of this name.
fn of_server(name: &str) -> Result<Vec<Pid>> {
    let ours = fs::read_link("/proc/self/ns/net")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // It may end while we look.
        let is_named = fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
        let is_ours = fs::read_link(path.join("ns/net")).is_ok_and(|theirs| theirs == ours);
        let pid = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        found.extend(pid.filter(|_| is_named && is_ours).map(Pid::from_raw));
    }
    ensure!(!found.is_empty(), "no {name} runs");
    Ok(found)
}

fn said(context: &Context) -> Result<End> {
    const NEW: Range = Range::new(5000, 5);
    let (lab, held) = Lab::with_one_lock()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let command = |line: &str, code| tool.expect(code, &line.split(' ').collect::<Vec<_>>());
    let before = lab.server.locks()?;
    let ensure_untouched = |what: &str| -> Result<()> {
        wait_until_gone().with_context(|| what.to_owned())?;
        ensure!(lab.server.locks()? == before, "{what}: a lock was released");
        Ok(())
    };

    for wrong in ["127.0.0.1", "::1", "255.255.255.255"] {
        command(&format!("failover --vip {wrong}"), exit::USAGE)?;
    }
    ensure_untouched("addresses that are no VIPs")?;
    let line = format!("failover --vip {VIP} --phase release --record /nonexistent/r");
    command(&line, exit::COULD_NOT_RUN)?;
    ensure_untouched("a record that cannot be written")?;

    // A release that fails when its fence stands: lockd hangs, as its statd does.
    let statd = of_server("rpc.statd")?;
    let net = RawNet::join(&lab.server)?;
    let file = net.file(&lab.server, lab.vips[0], "other")?;
    let mut raw = net.client(1, lab.vips[0], NlmVersion::V4, Transport::Udp)?;
    raw.set_deadline(Duration::from_secs(1));
    for pid in &statd {
        kill(*pid, Signal::SIGSTOP)?;
    }
    let answer = raw.lock(&file, 7, NEW, Mode::Write);
    let line = format!("failover --vip {VIP} --phase release --deadline 5s");
    let failed = tool.run(&line.split(' ').collect::<Vec<_>>())?;
    for pid in &statd {
        kill(*pid, Signal::SIGCONT)?;
    }
    ensure!(answer.is_err(), "lockd did not hang: {answer:?}");
    wait_until_gone().with_context(|| format!("lockd hung: {}", failed.stderr))?;
    raw.set_deadline(Duration::from_secs(20));
    // The client's own lock may be released by now: unlock_ip can do without lockd's thread.
    raw.granted(|raw| raw.lock(&file, 7, NEW, Mode::Write))?;
    let before_dry_runs = lab.server.locks()?;
    let count = before_dry_runs.len();

    let line = format!("failover --vip {VIP} --phase takeover --grace 20s --dry-run --json");
    let plan: Value = serde_json::from_str(&command(&line, exit::CONFIRMED)?.stdout)?;
    ensure!(
        plan["schema"] == "nlmfo.takeover-plan/1" && plan["vips"][0]["address_up"] == true,
        "{plan}"
    );
    ensure_gone()?;
    let both = command(&format!("failover --vip {VIP} --dry-run"), exit::CONFIRMED)?.stdout;
    ensure!(
        both.contains("to be released")
            && both.contains(&format!("{count} of {count} expected locks are held")),
        "{both}"
    );
    ensure_gone()?;
    ensure!(
        lab.server.locks()? == before_dry_runs,
        "a dry run released a lock"
    );
    raw.granted(|raw| raw.unlock(&file, 7, NEW))?;

    let unknown = command("failover --vip 192.0.2.1 --phase release", exit::CONFIRMED)?.stdout;
    ensure!(
        unknown.starts_with("! 192.0.2.1: this node has never served it"),
        "{unknown}"
    );
    let line = format!("failover --vip {VIP} --phase takeover --grace 1ms --no-notify");
    let short = command(&line, exit::NOT_CONFIRMED)?.stderr;
    ensure!(short.contains("before it was in force"), "{short}");
    wait_until_gone()?;
    let line = "failover --vip 192.0.2.1 --phase takeover --grace 40s --wait-address 1s";
    let waited = command(line, exit::NOT_CONFIRMED)?.stderr;
    ensure!(
        waited.contains("192.0.2.1 is not an address")
            && waited.contains("192.0.2.1 is in grace for"),
        "{waited}"
    );
    command("grace --end --vip 192.0.2.1", exit::CONFIRMED)?;

    // Last, as the client's lock goes with the server.
    let line = format!("failover --vip {VIP} --phase takeover --grace 15s --no-notify --json");
    let stopped = std::thread::scope(|scope| -> Result<Value> {
        let takeover = scope.spawn(|| command(&line, exit::NOT_CONFIRMED));
        until("the VIP's grace", || {
            let listed = command("grace --list --json", exit::CONFIRMED)?.stdout;
            Ok(
                match listed.contains("\"open\":true") && !listed.contains("opening") {
                    true => Seen::Yes(()),
                    false => Seen::No(listed),
                },
            )
        })?;
        lab.server.stop_nfsd()?;
        let ended = takeover.join().expect("running nlmfo does not panic")?;
        Ok(serde_json::from_str(&ended.stdout)?)
    })?;
    ensure!(stopped["nfsd_stopped"] == true, "{stopped}");
    lab.server.start_nfsd()?;
    wait_until_gone()?;
    drop(held);
    Ok(End::Pass)
}

fn lockd_reloaded(context: &Context) -> Result<End> {
    let vip: IpAddr = VIP.parse()?;
    let server = Server::start(TestNode::root(), Path::new("/export"))?;
    server.add_vip(vip)?;
    // No mount of the kernel's own client, which needs lockd too.
    let mut net = RawNet::join(&server)?;
    let file = net.file(&server, vip, "file")?;
    let tool = Tool::new(&context.nlmfo, server.node());
    tool.expect(exit::CONFIRMED, &["grace", "--vip", VIP, "--for", "300s"])?;

    server.stop_nfsd()?;
    take_out(&server, &net)?;
    let without = tool.json(exit::NOT_CONFIRMED, &["grace", "--list"])?;
    ensure!(without["windows"][0]["open"] == true, "{without}");
    put_in(&server)?;
    net.look_up_ports(&server)?;
    let mut number = 0;
    until("the gate to follow lockd", || {
        number += 1;
        let mut raw = net.client(number, vip, NlmVersion::V4, Transport::Udp)?;
        let range = |half: u64| Range::new(20 * u64::from(number) + 10 * half, 5);
        let new = raw.nm_lock(&file, 7, range(0), Mode::Write)?;
        let reclaim = raw.reclaim(&file, 7, range(1), Mode::Write)?;
        Ok(match (new, reclaim) {
            (Status::DeniedGracePeriod, Status::Granted) => Seen::Yes(()),
            other => Seen::No(format!("{other:?}")),
        })
    })?;
    let listed = tool.json(exit::NOT_CONFIRMED, &["grace", "--list"])?;
    ensure!(
        listed["windows"][0]["verdict"]["state"] == "reloaded",
        "{listed}"
    );
    tool.expect(exit::NOT_CONFIRMED, &["grace", "--end", "--vip", VIP])?;
    wait_until_gone()?;
    Ok(End::Pass)
}

/// Runs nlmfo by `ip netns exec`, which gives each command mounts of its own.
fn exec(context: &Context, code: i32, arguments: &str) -> Result<Value> {
    // nfsd's files are those of whoever mounts them.
    let script = format!(
        "mount -t nfsd nfsd /proc/fs/nfsd && exec {} {arguments} --json",
        context.nlmfo.display()
    );
    let mut ip = TestNode::root().command("ip");
    let finished = finish(ip.args(["netns", "exec", "srv", "sh", "-c", &script]), "")?;
    ensure!(
        finished.code() == code,
        "{arguments}: exit code {}\n{}{}",
        finished.code(),
        finished.stdout,
        finished.stderr
    );
    serde_json::from_str(&finished.stdout)
        .with_context(|| format!("{arguments}: {}", finished.stdout))
}

fn netns_exec(context: &Context) -> Result<End> {
    const RECORD: &str = "/tmp/netns-exec.record";
    let vip: IpAddr = VIP.parse()?;
    let server = Server::start(TestNode::create("srv")?, Path::new("/export"))?;
    server.add_vip(vip)?;
    let net = RawNet::join(&server)?;
    let file = net.file(&server, vip, "file")?;
    let pid = server.node().pid().to_string();
    run(TestNode::root()
        .command("ip")
        .args(["netns", "attach", "srv", &pid]))?;
    let client = |number| net.client(number, vip, NlmVersion::V4, Transport::Tcp);
    let part = |number: u64| Range::new(10 * number, 5);

    exec(
        context,
        exit::CONFIRMED,
        &format!("grace --vip {VIP} --for 300s"),
    )?;
    kill_all()?;
    let listed = exec(context, exit::CONFIRMED, "grace --list")?;
    ensure!(listed["windows"][0]["open"] == true, "{listed}");
    kill_all()?;
    let mut raw = client(1)?;
    let new = raw.lock(&file, 7, part(1), Mode::Write)?;
    ensure!(new == Status::DeniedGracePeriod, "a new lock: {new:?}");
    raw.granted(|raw| raw.reclaim(&file, 7, part(2), Mode::Write))?;
    let listed = exec(context, exit::CONFIRMED, "grace --list")?;
    let answers = &listed["windows"][0]["lockd"];
    ensure!(
        answers["refused"] == 1 && answers["reclaimed"] == 1,
        "{listed}"
    );
    exec(context, exit::CONFIRMED, "cleanup")?;
    ensure_gone()?;

    let mut fenced = client(2)?;
    fenced.set_deadline(Duration::from_secs(2));
    fenced.granted(|raw| raw.lock(&file, 7, part(3), Mode::Write))?;
    let arguments = format!("failover --phase release --vip {VIP} --record {RECORD}");
    let released = exec(context, exit::CONFIRMED, &arguments)?;
    ensure!(released["fenced"][0] == VIP, "{released}");
    kill_all()?;
    let answer = fenced.lock(&file, 7, part(3), Mode::Write);
    ensure!(answer.is_err(), "through the fence: {answer:?}");

    let arguments =
        format!("failover --phase takeover --vip {VIP} --expect {RECORD} --grace 90s --no-notify");
    let taken = std::thread::scope(|scope| -> Result<Value> {
        let takeover = scope.spawn(|| exec(context, exit::CONFIRMED, &arguments));
        until("the reclaim to be granted", || {
            // Fenced off, or no grace yet.
            let reclaim = |number: u16, range| -> Result<Status> {
                let mut raw = client(number)?;
                raw.set_deadline(Duration::from_secs(2));
                raw.reclaim(&file, 7, range, Mode::Write)
            };
            let answer = reclaim(1, part(2)).and_then(|_| reclaim(2, part(3)));
            Ok(match answer {
                Ok(Status::Granted) => Seen::Yes(()),
                other => Seen::No(format!("{other:?}")),
            })
        })?;
        takeover.join().expect("running nlmfo does not panic")
    })?;
    ensure!(taken["vips"][0]["expected"] == 2, "{taken}");
    wait_until_gone()?;
    run(Command::new("ip").args(["netns", "delete", "srv"]))?;
    Ok(End::Pass)
}
