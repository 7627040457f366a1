//! The whole failover of a VIP: fence, release, grace, reclaim, and what waits meanwhile.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::rpc::nlm::Status;
use serde_json::Value;

use super::{Context, End, Kernels, Scenario};
use crate::guest::command::run;
use crate::guest::lab::{Lab, MountedClient};
use crate::guest::locker::{Mode, Range};
use crate::guest::raw::RawNet;
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "takeover-reclaim",
        claim: "release and takeover: real clients reclaim every lock, grace ends early, waiters continue",
        run: reclaim,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "takeover-missing",
        claim: "locks that are not reclaimed in time are listed, and the exit status is 5",
        run: missing,
        kernels: Kernels::One("takeover-reclaim compares with the record on every kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "takeover-late",
        claim: "a takeover of a VIP that was up without fence or grace is not confirmed, unless all its locks are held",
        run: late,
        kernels: Kernels::One("the tool decides it from its own windows and the node's addresses"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "fence",
        claim: "from before the record until the VIP leaves, nothing reaches lockd through it",
        run: fence,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "grace-waiter",
        claim: "a request that waited before the window is not granted in it",
        run: waiter,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "grace-violation",
        claim: "the audit finds and lists a lock that bypassed the gate",
        run: violation,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "grace-scope",
        claim: "with --scope filesystem, new locks on it are refused through other VIPs too",
        run: scope,
        kernels: Kernels::One("the gate is one program; grace-window runs it on every kernel"),
        ..Scenario::DEFAULT
    },
];

const VIPS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

fn reclaim(context: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 2)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let [owner, other] = &lab.clients[..] else {
        unreachable!("two clients were asked for");
    };
    let (mine, others) = (&owner.mounts[0], &owner.mounts[1]);
    let _held = [
        (owner.client).lock(mine, "first", Range::new(0, 10), Mode::Write)?,
        (owner.client).lock(mine, "first", Range::new(100, 0), Mode::Read)?,
        (owner.client).lock(mine, "second", Range::WHOLE, Mode::Write)?,
        (other.client).lock(&other.mounts[0], "third", Range::new(5, 5), Mode::Read)?,
    ];
    let _stays = (owner.client).lock(others, "stays", Range::WHOLE, Mode::Write)?;
    let before = lab.server.locks()?;

    // Who asks for a new lock meanwhile gets it afterwards, by the client's own doing.
    let late = other.client.locker()?;
    let arguments = ["failover", "--vip", VIPS[0], "--grace", "90s", "--json"];
    let (reports, waiting) = std::thread::scope(|scope| -> Result<_> {
        let failover = scope.spawn(|| tool.expect(exit::CONFIRMED, &arguments));
        until("the VIP's window", || {
            Ok(
                match tool.json(exit::CONFIRMED, &["grace", "--list"])?["windows"].as_array() {
                    Some(windows) if windows.iter().any(|window| window["open"] == true) => {
                        Seen::Yes(())
                    }
                    other => Seen::No(format!("{other:?}")),
                },
            )
        })?;
        let waiting = late.lock_wait(&other.mounts[0].path("late"), Range::WHOLE, Mode::Write)?;
        let finished = failover.join().expect("running nlmfo does not panic")?;
        Ok((finished.stdout, waiting))
    })?;
    let reports: Vec<Value> = serde_json::Deserializer::from_str(&reports)
        .into_iter()
        .collect::<Result<_, _>>()?;
    let [released, taken] = &reports[..] else {
        anyhow::bail!("two reports were expected: {reports:?}");
    };
    ensure!(released["fenced"][0] == VIPS[0], "{released}");
    let vip = &taken["vips"][0];
    ensure!(
        vip["expected"] == 4
            && vip["missing"].as_array().is_some_and(Vec::is_empty)
            && vip["notified"]["done"] == true
            && vip["notified"]["notify"]["clients"]
                .as_array()
                .map(Vec::len)
                == Some(2)
            && vip["reclaimed_after_ms"]
                .as_f64()
                .is_some_and(|at| at < 80_000.0)
            && vip["window"]["open"] == false
            && vip["window"]["lockd"]["reclaimed"].as_u64() >= Some(4)
            && vip["window"]["lockd"]["violations"] == 0,
        "{taken}"
    );
    ensure!(
        waiting.held_within(Duration::from_mins(1))?,
        "a client that asked in the window has no lock after it"
    );
    until("the locks of before, and the late one", || {
        let now = lab.server.locks()?;
        let back = before.iter().all(|lock| now.contains(lock));
        Ok(match back && now.len() == before.len() + 1 {
            true => Seen::Yes(()),
            false => Seen::No(format!("{now:?}")),
        })
    })?;
    ensure_no_gate(&lab)?;
    Ok(End::Pass)
}

fn missing(context: &Context) -> Result<End> {
    let (lab, _held) = Lab::with_one_lock()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let record = "/tmp/record.json";
    let vip = lab.vips[0].to_string();
    let release = [
        "failover", "--phase", "release", "--vip", &vip, "--record", record,
    ];
    tool.expect(exit::CONFIRMED, &release)?;
    let report = tool.json(
        exit::INCOMPLETE,
        &[
            "failover",
            "--phase",
            "takeover",
            "--vip",
            &vip,
            "--expect",
            record,
            "--grace",
            "3s",
            "--no-notify",
        ],
    )?;
    let missing = &report["vips"][0]["missing"][0];
    ensure!(
        missing["client"] == lab.clients[0].client.address_for(lab.vips[0]).to_string()
            && missing["file"]["path"] == "/export/held",
        "{report}"
    );
    ensure_no_gate(&lab)?;
    Ok(End::Pass)
}

fn late(context: &Context) -> Result<End> {
    const RECORD: &str = "/tmp/record.json";
    let lab = Lab::up(&VIPS[..1], 2)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let [owner, thief] = &lab.clients[..] else {
        unreachable!("two clients were asked for");
    };
    let lock = |client: &MountedClient| {
        (client.client).lock(&client.mounts[0], "held", Range::WHOLE, Mode::Write)
    };
    let _held = lock(owner)?;
    let failover = ["failover", "--vip", VIPS[0], "--phase"];
    let release = ["release", "--no-fence", "--record", RECORD];
    let takeover = ["takeover", "--expect", RECORD, "--grace", "60s"];
    tool.expect(exit::CONFIRMED, &[&failover[..], &release].concat())?;
    // It could change the file, and leaves no trace.
    lock(thief)?.release()?;
    for (code, late) in [(exit::NOT_CONFIRMED, true), (exit::CONFIRMED, false)] {
        let report = tool.json(code, &[&failover[..], &takeover].concat())?;
        let vip = &report["vips"][0];
        ensure!(
            vip["late"] == late
                && vip["expected"] == 1
                && vip["missing"].as_array().is_some_and(Vec::is_empty)
                && vip["window"]["late"] == true,
            "{report}"
        );
    }
    Ok(End::Pass)
}

fn fence(context: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 1)?;
    let net = RawNet::join(&lab.server)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let file = net.file(&lab.server, lab.vips[0], "file")?;
    let range = |number: u16| Range::new(10 * u64::from(number), 5);
    let mut clients = Vec::new();
    for (number, transport) in [(1, Transport::Tcp), (2, Transport::Udp)] {
        let mut client = net.client(number, lab.vips[0], NlmVersion::V4, transport)?;
        client.granted(|raw| raw.lock(&file, 7, range(number), Mode::Write))?;
        clients.push((number, client));
    }
    let record = "/tmp/record.json";
    let release = [
        "failover", "--phase", "release", "--vip", VIPS[0], "--record", record,
    ];
    let report = tool.json(exit::CONFIRMED, &release)?;
    ensure!(report["fenced"][0] == VIPS[0], "{report}");
    let recorded: Value = serde_json::from_str(&std::fs::read_to_string(record)?)?;
    ensure!(
        recorded["locks"].as_array().map(Vec::len) == Some(2),
        "{recorded}"
    );
    for (number, client) in &mut clients {
        client.set_deadline(Duration::from_secs(2));
        let answer = client.lock(&file, 7, range(*number), Mode::Write);
        ensure!(answer.is_err(), "through the fence: {answer:?}");
    }
    ensure!(
        lab.server.locks()?.is_empty(),
        "a lock was taken through the fence"
    );
    let mut other = net.client(3, lab.vips[1], NlmVersion::V4, Transport::Tcp)?;
    other.granted(|raw| raw.lock(&file, 7, range(3), Mode::Write))?;

    lab.server.remove_vip(lab.vips[0])?;
    until("the fence to be gone with its VIP", || {
        Ok(match gate_is_gone() {
            true => Seen::Yes(()),
            false => Seen::No("the gate is still pinned".into()),
        })
    })?;
    lab.server.add_vip(lab.vips[0])?;
    let mut again = net.client(4, lab.vips[0], NlmVersion::V4, Transport::Tcp)?;
    again.granted(|raw| raw.lock(&file, 7, range(4), Mode::Write))?;
    Ok(End::Pass)
}

fn waiter(context: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 0)?;
    let net = RawNet::join(&lab.server)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let file = net.file(&lab.server, lab.vips[0], "file")?;
    let client = |number| net.client(number, lab.vips[0], NlmVersion::V4, Transport::Tcp);
    let mut holder = client(1)?;
    holder.granted(|raw| raw.nm_lock(&file, 1, Range::WHOLE, Mode::Write))?;
    let waiting = client(2)?.wait(&file, 2, Range::WHOLE, Mode::Write)?;
    ensure!(waiting == Status::Blocked, "{waiting:?}");
    let listed = tool.json(exit::CONFIRMED, &["locks"])?;
    if listed["waiters"].as_array().is_none_or(Vec::is_empty) {
        return Ok(End::Unsupported("this kernel queues no NLM request".into()));
    }
    let grace = ["grace", "--vip", VIPS[0], "--for", "120s"];
    let opened = tool.json(exit::CONFIRMED, &grace)?;
    ensure!(opened["waiters_cancelled"] == 1, "{opened}");
    ensure!(lab.server.locks()?.len() == 1, "the held lock is gone");
    client(1)?.granted(|raw| raw.unlock(&file, 1, Range::WHOLE))?;
    ensure!(lab.server.locks()?.is_empty(), "the waiter has its lock");
    let listed = tool.json(exit::CONFIRMED, &["grace", "--list"])?;
    ensure!(listed["windows"][0]["lockd"]["violations"] == 0, "{listed}");
    tool.expect(exit::CONFIRMED, &["grace", "--end", "--vip", VIPS[0]])?;
    Ok(End::Pass)
}

fn violation(context: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 0)?;
    let net = RawNet::join(&lab.server)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let file = net.file(&lab.server, lab.vips[0], "file")?;
    tool.expect(
        exit::CONFIRMED,
        &["grace", "--vip", VIPS[0], "--for", "120s"],
    )?;
    take_gate_off(&lab)?;
    let mut thief = net.client(1, lab.vips[0], NlmVersion::V4, Transport::Udp)?;
    thief.granted(|raw| raw.lock(&file, 7, Range::new(30, 5), Mode::Write))?;
    let listed = tool.json(exit::NOT_CONFIRMED, &["grace", "--list"])?;
    let found = &listed["windows"][0]["violations"][0];
    ensure!(
        found["kind"] == "unseen"
            && found["client"] == "10.78.0.1"
            && found["path"] == "/export/file"
            && found["svid"] == 7
            && found["mode"] == "write"
            && found["range"]["start"] == 30
            && found["range"]["end"] == 34,
        "{listed}"
    );
    Ok(End::Pass)
}

fn scope(context: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 0)?;
    let net = RawNet::join(&lab.server)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let file = net.file(&lab.server, lab.vips[0], "file")?;
    let open = [
        "grace",
        "--vip",
        VIPS[0],
        "--for",
        "120s",
        "--scope",
        "filesystem",
        "--filesystem",
        "/export",
    ];
    tool.expect(exit::CONFIRMED, &open)?;
    let mut number = 0;
    for vip in &lab.vips {
        for transport in [Transport::Tcp, Transport::Udp] {
            number += 1;
            let mut client = net.client(number, *vip, NlmVersion::V4, transport)?;
            let range = Range::new(10 * u64::from(number), 5);
            let status = client.lock(&file, 7, range, Mode::Write)?;
            ensure!(
                status == Status::DeniedGracePeriod,
                "a new lock through {vip} over {transport}: {status:?}"
            );
            let status = client.reclaim(&file, 7, range, Mode::Write)?;
            let expected = match *vip == lab.vips[0] {
                true => Status::Granted,
                false => Status::DeniedGracePeriod,
            };
            ensure!(
                status == expected,
                "a reclaim through {vip} over {transport}: {status:?}"
            );
        }
    }
    tool.expect(exit::CONFIRMED, &["grace", "--end", "--vip", VIPS[0]])?;
    let mut client = net.client(100, lab.vips[1], NlmVersion::V4, Transport::Tcp)?;
    client.granted(|raw| raw.lock(&file, 7, Range::new(5000, 5), Mode::Write))?;
    Ok(End::Pass)
}

/// As somebody may who does not know what it is for.
fn take_gate_off(lab: &Lab) -> Result<()> {
    let script = "pkill -9 nlmfo\n\
                  rm -f /sys/fs/bpf/nlmfo/*/*/links/tc-* /sys/fs/bpf/nlmfo/*/*/links/guard\n\
                  for d in /sys/class/net/*; do tc qdisc del dev ${d##*/} clsact 2>/dev/null; done\n\
                  true\n";
    let mut shell = lab.server.node().command("sh");
    run(shell.args(["-c", script]))?;
    Ok(())
}

fn gate_is_gone() -> bool {
    !Path::new("/sys/fs/bpf/nlmfo").exists()
}

/// The keeper may need a moment.
fn ensure_no_gate(lab: &Lab) -> Result<()> {
    until("the gate to be gone", || {
        if gate_is_gone() {
            return Ok(Seen::Yes(()));
        }
        let mut find = lab.server.node().command("find");
        Ok(Seen::No(run(find.arg("/sys/fs/bpf"))?))
    })
}
