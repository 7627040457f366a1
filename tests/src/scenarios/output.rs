//! What a command does is independent of its output, and after a signal it reports everything. Checked
//! by the kernel's locks, the stored report, and the exit status.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use nlmfo::observe::host::{NlmVersion, Transport};
use serde_json::Value;

use super::bad_days::{hold_many, in_the_middle, too_fast};
use super::release::RELEASE;
use super::{Context, End, Kernels, Scenario};
use crate::guest::command::run;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::raw::RawNet;
use crate::guest::tool::{Tool, exit};
use crate::guest::traces::Traces;
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "output-unheard",
        claim: "a failover whose outputs are full, closed or broken completes, and its report is stored",
        run: unheard,
        kernels: Kernels::One("the outputs are the tool's own"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "output-signals",
        claim: "SIGINT, SIGTERM and SIGQUIT end a command with 3 and a list of what remains; SIGHUP ends none",
        run: signals,
        kernels: Kernels::One("signals are the tool's own"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "output-names",
        claim: "a client whose caller_name would clear the screen is listed and released like any other",
        run: names,
        kernels: Kernels::One("names are escaped by the tool"),
        ..Scenario::DEFAULT
    },
];

const EVIL: &str = "\x1b[2J\n✓ 10.77.0.1: confirmed";

/// The report that is kept of a VIP.
fn kept(what: &str, vip: IpAddr) -> Result<Value> {
    let path = format!("/run/nlmfo/last-{what}-{vip}.json");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    serde_json::from_str(&text).context(path)
}

fn names(context: &Context) -> Result<End> {
    let lab = Lab::up(&["10.77.0.1"], 0)?;
    let (vip, tool) = (lab.vips[0], Tool::new(&context.nlmfo, lab.server.node()));
    let net = RawNet::join(&lab.server)?;
    let file = net.file(&lab.server, vip, "locked")?;
    let mut client = net.client(1, vip, NlmVersion::V4, Transport::Tcp)?;
    client.set_name(EVIL);
    client.granted(|raw| raw.nm_lock(&file, 1, Range::new(0, 5), Mode::Write))?;
    let vip = vip.to_string();
    let release = [
        "failover",
        "--phase",
        "release",
        "--vip",
        &vip,
        "--no-fence",
    ];
    for command in [&["locks"][..], &["locks", "--json"], &["clients"], &release] {
        let said = tool.expect(exit::CONFIRMED, command)?.stdout;
        ensure!(
            !said.contains(EVIL) && !said.contains('\x1b'),
            "{command:?}: {said}"
        );
        let is_listed = said.contains("\\x1b[2J\\n") || said.contains("\\\\x1b[2J\\\\n");
        ensure!(is_listed || command[0] != "locks", "{command:?}: {said}");
    }
    ensure!(lab.server.locks()?.is_empty(), "{:?}", lab.server.locks()?);
    Ok(End::Pass)
}

fn unheard(context: &Context) -> Result<End> {
    let (lab, _held) = Lab::with_one_lock()?;
    let (vip, before) = (lab.vips[0], lab.server.locks()?);
    // A name that would clear the screen and imitate nlmfo's output.
    let export = lab.server.export();
    fs::rename(export.join("held"), export.join(EVIL))?;
    let listed =
        Tool::new(&context.nlmfo, lab.server.node()).expect(exit::CONFIRMED, &["locks"])?;
    ensure!(
        listed.stdout.contains("\\x1b[2J\\n✓ 10.77.0.1: confirmed")
            && !listed.stdout.contains('\x1b'),
        "{}",
        listed.stdout
    );

    let nlmfo = context.nlmfo.display();
    let failover = format!("{nlmfo} failover --vip {vip} --grace 60s");
    // With the status in a file: of a pipe, a shell tells another one.
    for (line, status) in [
        (
            format!("{failover} >/dev/full 2>/dev/full"),
            exit::CONFIRMED,
        ),
        (format!("{failover} >&- 2>&- <&-"), exit::CONFIRMED),
        (format!("{failover} --json"), exit::CONFIRMED),
        (
            format!("{nlmfo} grace --vip {vip} --for 60s"),
            exit::CONFIRMED,
        ),
        (format!("{nlmfo} grace --vip {vip} --end"), exit::CONFIRMED),
        (format!("{nlmfo} locks"), exit::CONFIRMED),
        (format!("{nlmfo} locks >/dev/full"), exit::COULD_NOT_RUN),
    ] {
        let script = format!("{{ {line}; echo $? >/tmp/status; }} 2>/tmp/said | true");
        run(lab.server.node().command("sh").args(["-c", &script]))?;
        let ended = until(&format!("the end of `{line}`"), || {
            let text = fs::read_to_string("/tmp/status").unwrap_or_default();
            Ok(match text.trim().parse::<i32>() {
                Ok(status) => Seen::Yes(status),
                Err(_) => Seen::No("it has not ended".into()),
            })
        })?;
        fs::remove_file("/tmp/status")?;
        let said = fs::read_to_string("/tmp/said")?;
        ensure!(ended == status, "{line}: exit status {ended}: {said}");
        let is_clean = !said.contains("panicked") && !said.contains(EVIL);
        ensure!(is_clean, "{line}: {said}");
        if !line.starts_with(&failover) {
            continue;
        }
        let report = kept("failover", vip)?;
        ensure!(
            report["exit_status"] == exit::CONFIRMED
                && report["release"]["confirmed"] == true
                && report["takeover"]["vips"][0]["expected"] == 1
                && report["takeover"]["vips"][0]["missing"] == serde_json::json!([]),
            "{line}: {report}"
        );
        fs::remove_file(format!("/run/nlmfo/last-failover-{vip}.json"))?;
        let now = lab.server.locks()?;
        ensure!(
            now == before,
            "{line}: {before:?} were held, and now {now:?}"
        );
    }
    Ok(End::Pass)
}

fn signals(context: &Context) -> Result<End> {
    let lab = Lab::up(&["fd77::1"], 0)?;
    let net = RawNet::join(&lab.server)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let (vip, address) = (lab.vips[0], "fd77::1");
    let before = Traces::of(lab.server.node())?;

    // An open window is reported as open; this is fast on every kernel.
    let takeover = [
        "failover",
        "--phase",
        "takeover",
        "--vip",
        address,
        "--grace",
        "300s",
        "--no-notify",
    ];
    let mut running = tool.start(&takeover)?;
    until("the window", || {
        // One that is still being opened could not be confirmed when it is ended.
        let listed = tool
            .json(exit::CONFIRMED, &["grace", "--list"])?
            .to_string();
        Ok(
            match listed.contains("\"open\":true") && !listed.contains("opening") {
                true => Seen::Yes(()),
                false => Seen::No(listed),
            },
        )
    })?;
    running.signal(Signal::SIGHUP)?;
    running.signal(Signal::SIGTERM)?;
    let code = running.code()?;
    let report = kept("takeover", vip)?;
    let error = report["error"].as_str().unwrap_or_default();
    ensure!(
        code == exit::NOT_CONFIRMED
            && report["exit_status"] == exit::NOT_CONFIRMED
            && error.contains("interrupted by SIGTERM")
            && error.contains("fd77::1 is in grace for "),
        "exit status {code}: {report}"
    );
    tool.expect(exit::CONFIRMED, &["grace", "--end", "--vip", address])?;
    tool.expect(exit::CONFIRMED, &["cleanup"])?;

    let release = [&RELEASE[..], &["--vip", address]].concat();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGQUIT,
        Signal::SIGHUP,
    ] {
        hold_many(&lab, &net)?;
        let Some(mut running) = in_the_middle(&tool, &lab, &release)? else {
            return Ok(too_fast());
        };
        running.signal(signal)?;
        running.signal(Signal::SIGCONT)?;
        let code = running.code()?;
        let report = kept("release", vip)?;
        let expected = match signal {
            Signal::SIGHUP => exit::CONFIRMED,
            _ => exit::NOT_CONFIRMED,
        };
        ensure!(
            code == expected && report["exit_status"] == expected,
            "{signal}: exit status {code}: {report}"
        );
        let error = report["error"].as_str().unwrap_or_default();
        let is_said = error.contains(&format!("interrupted by {signal}"));
        ensure!(is_said == (signal != Signal::SIGHUP), "{signal}: {report}");
        Traces::of(lab.server.node())?.ensure_as(&before)?;
    }
    ensure!(lab.server.locks()?.is_empty(), "SIGHUP: locks are left");
    Ok(End::Pass)
}
