//! `nlmfo release`: what one dead client holds goes, and everybody else's stays.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Context, End, Machine, Scenario};
use crate::guest::client::Client;
use crate::guest::command::run;
use crate::guest::known::ensure_same;
use crate::guest::lab::Lab;
use crate::guest::locker::{Locker, Mode, Outcome, Range};
use crate::guest::tool::{Tool, exit};
use crate::guest::traces::Traces;
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "targeted-nfs3",
        claim: "of a dead client go one lock, one owner's, a merged range, a file's, one VIP's, all; \
                a waiter gets it; a live client is refused; killed in between it ends in a second run",
        run: nfs3,
        machine: Machine::Own("a client that was cut off keeps its locks in mind for long"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "targeted-nfs4",
        claim: "dead NFSv4.0 and 4.1 clients are dropped, live ones and one of two VIPs refused; a \
                client without a connection keeps a release from being confirmed until it is dropped",
        run: nfs4,
        machine: Machine::Own("nfsd keeps its NFSv4 clients for longer than their mounts"),
        ..Scenario::DEFAULT
    },
];

/// Long enough for a Linux client to ask again for a lock that no server has queued.
const NEXT_POLL: Duration = Duration::from_secs(90);

/// First bytes of the server's locks on a file.
fn starts(lab: &Lab, file: &str) -> Result<BTreeSet<u64>> {
    let inode = fs::metadata(lab.server.export().join(file))?.ino();
    let locks = lab.server.locks()?;
    let held = locks
        .iter()
        .filter(|lock| lock.inode == inode && !lock.waiting);
    Ok(held.map(|lock| lock.start).collect())
}

fn ensure_starts(lab: &Lab, file: &str, expected: &[u64]) -> Result<()> {
    let expected = expected.iter().copied().collect();
    ensure_same(
        &format!("locks on {file}, by their first byte"),
        &expected,
        &starts(lab, file)?,
    )
}

/// The ID of the NFSv3 lock that begins there.
fn id(tool: &Tool, file: &str, start: u64) -> Result<String> {
    let listing = tool.json(exit::CONFIRMED, &["locks", "--nfs", "3", "--file", file])?;
    let locks = listing["locks"].as_array().context("locks")?;
    let lock = locks.iter().find(|lock| lock["range"]["start"] == start);
    let id = lock.with_context(|| format!("no lock at {start}: {listing}"))?["id"].as_str();
    Ok(id.context("no id")?.to_owned())
}

fn taken(locker: &Locker, path: &Path, start: u64, len: u64) -> Result<()> {
    let outcome = locker.lock(path, Range::new(start, len), Mode::Write)?;
    ensure!(
        outcome == Outcome::Held,
        "{} at {start}: {outcome:?}",
        path.display()
    );
    Ok(())
}

fn nfs3(context: &Context) -> Result<End> {
    let lab = Lab::up(&["10.77.0.1", "10.77.0.2"], 3)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let [dead, waiting, other] = &lab.clients[..] else {
        anyhow::bail!("three clients were asked for");
    };
    let shared = lab.server.export().join("shared");
    let file = shared.to_str().context("no UTF-8")?;

    // Two owners of the client that will die, ranges that merge, a file through the second
    // VIP, and many locks; behind them a waiter, another client's lock and a local one.
    let (first, second) = (dead.client.locker()?, dead.client.locker()?);
    let (one, two) = (&dead.mounts[0], &dead.mounts[1]);
    taken(&first, &one.path("shared"), 0, 5)?;
    taken(&first, &one.path("shared"), 20, 5)?;
    taken(&second, &one.path("shared"), 40, 5)?;
    taken(&second, &one.path("shared"), 50, 5)?;
    taken(&first, &one.path("merged"), 0, 10)?;
    taken(&first, &one.path("merged"), 10, 10)?;
    taken(&second, &two.path("second"), 0, 5)?;
    for nth in 0..MANY {
        taken(&first, &one.path("many"), 10 * nth, 5)?;
    }
    let waiter = waiting.client.locker()?;
    let waits = waiter.lock_wait(
        &waiting.mounts[0].path("shared"),
        Range::new(0, 5),
        Mode::Write,
    )?;
    let stays = other
        .client
        .lock(&other.mounts[1], "shared", Range::new(60, 5), Mode::Write)?;
    let mut command = lab.server.node().command(env::current_exe()?);
    command.arg("locker");
    let local = Locker::spawn(command)?;
    taken(&local, &shared, 80, 5)?;
    let all = [0, 20, 40, 50, 60, 80];
    ensure_starts(&lab, "shared", &all)?;
    let before = Traces::of(lab.server.node())?;

    // Alive, it is refused, and nothing changes.
    let lock = id(&tool, file, 0)?;
    let refused = tool.expect(exit::COULD_NOT_RUN, &["release", "--lock", &lock])?;
    ensure!(
        refused.stderr.contains("answers") && refused.stderr.contains("--force"),
        "{refused:?}"
    );
    ensure_starts(&lab, "shared", &all)?;
    for wrong in [
        &["release"][..],
        &["release", "--lock", "1"],
        &["release", "--vip", "10.77.0.1"],
    ] {
        tool.expect(exit::USAGE, wrong)?;
    }
    tool.expect(exit::COULD_NOT_RUN, &["release", "--lock", "000000000000"])?;

    let queued = lab.server.locks()?.iter().any(|lock| lock.waiting);
    dead.client.node().ip("link set eth0 down\n")?;
    let release = |code, what: &[&str]| {
        let quick = ["--answer-within", "1s"];
        tool.json(code, &[&["release"], what, &quick].concat())
    };
    let planned = release(exit::CONFIRMED, &["--lock", &lock, "--dry-run"])?;
    ensure!(
        planned["verdict"] == "planned" && planned["locks"][0]["id"] == lock,
        "{planned}"
    );
    ensure_starts(&lab, "shared", &all)?;

    // One lock of two of one owner, and its waiter has it.
    let report = release(exit::CONFIRMED, &["--lock", &lock])?;
    ensure!(
        report["verdict"] == "confirmed" && report["left"] == 0,
        "{report}"
    );
    ensure_local(&report, 1)?;
    if queued {
        let client: IpAddr = waiting.client.address_for(lab.vips[0]);
        ensure!(
            report["taken"][0]["client"] == client.to_string(),
            "{report}"
        );
    }
    ensure!(
        waits.held_within(NEXT_POLL)?,
        "the waiter did not get the lock"
    );
    ensure_starts(&lab, "shared", &all)?;

    // One lock of one of two owners, and a merged range.
    release(exit::CONFIRMED, &["--lock", &id(&tool, file, 40)?])?;
    ensure_starts(&lab, "shared", &[0, 20, 50, 60, 80])?;
    let merged = lab.server.export().join("merged");
    let merged = id(&tool, merged.to_str().context("no UTF-8")?, 0)?;
    release(exit::CONFIRMED, &["--lock", &merged])?;
    ensure_starts(&lab, "merged", &[])?;

    // What the client has on the file, and what stays on it.
    let client = dead.client.address_for(lab.vips[0]).to_string();
    let report = release(exit::CONFIRMED, &["--file", file, "--client", &client])?;
    ensure!(
        report["locks"]
            .as_array()
            .is_some_and(|locks| locks.len() == 2),
        "{report}"
    );
    ensure_local(&report, 1)?;
    ensure_starts(&lab, "shared", &[0, 60, 80])?;

    // Killed while it works, and run again.
    let many = lab.server.export().join("many");
    let many = many.to_str().context("no UTF-8")?;
    let mut killed = tool.start(&["release", "--file", many, "--answer-within", "1s"])?;
    until("the first of many locks to go", || {
        let left = starts(&lab, "many")?.len() as u64;
        Ok(match left < MANY || killed.ended()? {
            true => Seen::Yes(()),
            false => Seen::No(format!("{left} of {MANY}")),
        })
    })?;
    killed.signal(Signal::SIGKILL)?;
    killed.code()?;
    release(exit::CONFIRMED, &["--file", many])?;
    ensure_starts(&lab, "many", &[])?;

    // All of it through one VIP, then the rest: nothing is left of it, and the rest stays.
    let through = ["--client", &client, "--vip", "10.77.0.2"];
    let report = release(exit::CONFIRMED, &through)?;
    ensure!(
        report["locks"]
            .as_array()
            .is_some_and(|locks| locks.len() == 1),
        "{report}"
    );
    ensure_starts(&lab, "second", &[])?;
    let last = release(exit::CONFIRMED, &["--client", &client])?;
    ensure!(last["verdict"] == "confirmed", "{last}");
    ensure_starts(&lab, "shared", &[0, 60, 80])?;
    let kept: Value =
        serde_json::from_str(&lab.server.node().read("/run/nlmfo/last-release.json")?)?;
    ensure!(
        kept["exit"] == 0 && kept["report"]["verdict"] == "confirmed",
        "{kept}"
    );
    Traces::of(lab.server.node())?.ensure_as(&before)?;

    // A live client loses it only by force; the report says what that means.
    let live = waiting.client.address_for(lab.vips[0]).to_string();
    let forced = release(exit::CONFIRMED, &["--client", &live, "--force"])?;
    ensure!(
        forced["forced"] == true && forced["warnings"][0].is_string(),
        "{forced}"
    );
    ensure_starts(&lab, "shared", &[60, 80])?;
    // Its mounts can be taken down only then.
    dead.client.node().ip("link set eth0 up\n")?;
    drop(stays);
    Ok(End::Pass)
}

/// Locks on the file whose release is interrupted.
const MANY: u64 = 150;

/// The report names the local locks that stay on the file.
fn ensure_local(report: &Value, count: usize) -> Result<()> {
    let local = report["on_file"]["local"].as_array().context("local")?;
    ensure!(
        local.len() == count,
        "{count} local locks expected: {report}"
    );
    ensure!(local.iter().all(|lock| lock["start"] == 80), "{report}");
    Ok(())
}

fn nfs4(context: &Context) -> Result<End> {
    let lab = Lab::up(&["10.77.0.1", "10.77.0.2", "10.77.0.3"], 0)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    run(Command::new("modprobe").arg("nfsv4"))?;
    let mut clients = Vec::new();
    // 4.0, 4.1, a trunked 4.1 and one that lives on.
    for (number, minor, vips) in [
        (2, 0, &[0][..]),
        (3, 1, &[1]),
        (5, 1, &[0, 1]),
        (6, 2, &[1]),
    ] {
        let client = Client::join(&lab.server, number)?;
        let mounts = vips
            .iter()
            .map(|&vip| client.mount_nfs4(&lab.server, lab.vips[vip], minor));
        let mounts = mounts.collect::<Result<Vec<_>>>()?;
        let locker = client.locker()?;
        // All have the file open, so that nobody gets a delegation of it.
        for file in ["shared".to_owned(), format!("own-{number}")] {
            let start = 10 * u64::from(number);
            taken(&locker, &mounts[0].path(&file), start, 5)?;
        }
        if let Some(second) = mounts.get(1) {
            locker.test(&second.path("shared"), Range::WHOLE, Mode::Read)?;
        }
        clients.push((client, mounts, locker));
    }
    let held = |number: u8| -> Result<usize> {
        let listing = tool.json(exit::CONFIRMED, &["locks", "--nfs", "4"])?;
        let states = listing["nfs4"]["states"].as_array().cloned();
        let states = states.with_context(|| listing.to_string())?;
        let of = |state: &&Value| {
            state["client"] == format!("10.77.1.{number}") && state["standing"] == "held"
        };
        Ok(states.iter().filter(of).count())
    };
    if let Err(error) = held(2) {
        return Ok(End::Unsupported(format!("{error:#}")));
    }
    let release = |code, what: &[&str]| tool.json(code, &[&["release"], what].concat());
    let refused = |code, what: &[&str], words: &[&str]| -> Result<()> {
        let said = tool.expect(code, &[&["release"], what].concat())?.stderr;
        ensure!(
            words.iter().all(|word| said.contains(word)),
            "{words:?} in {said}"
        );
        Ok(())
    };

    // Alive, of two VIPs, one state, one file: each refused with its reason.
    let live = ["--client", "10.77.1.6"];
    refused(exit::COULD_NOT_RUN, &live, &["renewed", "--force"])?;
    let trunked = ["--client", "10.77.1.5"];
    until("the trunked client's two connections", || {
        let said = tool
            .run(&[&["release"], &trunked[..], &["--dry-run"]].concat())?
            .stderr;
        Ok(
            match said.contains("10.77.0.1 and 10.77.0.2") && said.contains("--all-vips") {
                true => Seen::Yes(()),
                false => Seen::No(said),
            },
        )
    })?;
    let listing = tool.json(exit::CONFIRMED, &["locks", "--nfs", "4"])?;
    let row = listing["nfs4"]["states"][0]["ids"][0]
        .as_str()
        .context("ids")?;
    refused(exit::UNSUPPORTED, &["--lock", row], &["NFSv4", "--client"])?;
    let shared = lab.server.export().join("shared");
    let shared = shared.to_str().context("no UTF-8")?;
    refused(
        exit::UNSUPPORTED,
        &["--file", shared],
        &["--unlock-filesystem", "--nfs 3"],
    )?;

    // Two die; their leases run out.
    for (client, _, _) in &clients[..2] {
        client.node().ip("link set eth0 down\n")?;
    }
    let alive = held(6)?;
    for (number, vip) in [(2, "10.77.0.1"), (3, "10.77.0.2")] {
        let address = format!("10.77.1.{number}");
        let report = until("its lease to be over", || {
            let arguments = ["release", "--client", &address, "--json"];
            let finished = tool.run(&arguments)?;
            Ok(match finished.code() {
                exit::CONFIRMED => Seen::Yes(serde_json::from_str::<Value>(&finished.stdout)?),
                exit::COULD_NOT_RUN => Seen::No(finished.stderr),
                code => anyhow::bail!("exit code {code}: {}{}", finished.stdout, finished.stderr),
            })
        })?;
        ensure!(
            report["nfs4"]["clients"][0]["minor"] == i32::from(number != 2),
            "{report}"
        );
        ensure!(
            report["verdict"] == "confirmed" && held(number)? == 0,
            "{vip}: {report}"
        );
        ensure!(
            held(6)? == alive && held(5)? > 0,
            "others lost something: {report}"
        );
    }

    // The client of two VIPs loses its connections: it may be any VIP's now.
    clients[2].0.node().ip("link set eth0 down\n")?;
    for vip in &lab.vips[..2] {
        lab.server.remove_vip(*vip)?;
    }
    let failover = ["failover", "--phase", "release", "--vip", "10.77.0.3"];
    let doubt = until("the trunked client to be without a connection", || {
        let report = tool.json(exit::NOT_CONFIRMED, &failover)?;
        let doubt = report["vips"][0]["blockers"][0]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        Ok(match doubt.contains("nlmfo release --client 10.77.1.5") {
            true => Seen::Yes(doubt),
            false => Seen::No(report.to_string()),
        })
    });
    doubt.context("the remedy for a client without a connection")?;
    for number in ["10.77.1.5", "10.77.1.6"] {
        release(exit::CONFIRMED, &["--client", number, "--force"])?;
    }
    let clean = tool.json(exit::CONFIRMED, &failover)?;
    ensure!(clean["vips"][0]["nfs4"]["state"] == "none", "{clean}");
    Ok(End::Pass)
}
