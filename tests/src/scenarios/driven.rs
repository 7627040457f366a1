//! `nlmfo failover --to`: two nodes, driven from the one that gives up.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Context, End, Scenario};
use crate::cluster::agent::AGENT;
use crate::cluster::handover::{Handover, words};
use crate::cluster::holdings::{Holdings, ensure_nothing_stolen};
use crate::cluster::killed::Step;
use crate::cluster::service::HANDED_OVER;
use crate::cluster::{Cluster, NODES, Node};
use crate::guest::command::run;
use crate::guest::tool::exit;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "two-nodes-driven",
        claim: "one command moves a VIP to another node; if it fails, every lock stays where it was",
        run: driven,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "two-nodes-driven-killed",
        claim: "a move that is killed after any step completes when it is run again",
        run: killed,
        only_full: Some("five minutes; two-nodes-killed-command shows the shortest of its kind"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "two-nodes-driven-signals",
        claim: "a move that a signal ends says what may remain, and completes when it is run again; \
                SIGHUP does not end it",
        run: signals,
        only_full: Some("three minutes; output-signals shows a failover on one node"),
        ..Scenario::DEFAULT
    },
];

const VIP: &str = "10.77.0.1";

fn driven(context: &Context) -> Result<End> {
    let cluster = Cluster::up(&context.nlmfo, &[VIP])?;
    let everyone = cluster.clients(3)?;
    let (clients, [thief]) = everyone.split_at(2) else {
        unreachable!("three clients were asked for");
    };
    let service = &cluster.services[0];
    let mine = Holdings::take(clients, 0, service, &cluster.a)?;
    let (a, b) = (&cluster.a, &cluster.b);
    let rsh = format!("{AGENT} rsh");
    let nlmfo = context.nlmfo.to_string_lossy();
    let drive = |host: &str, hand_over: &str, code: i32| -> Result<Value> {
        let arguments = [
            "failover",
            "--vip",
            VIP,
            "--to",
            host,
            "--rsh",
            &rsh,
            "--remote-nlmfo",
            &nlmfo,
            "--hand-over",
            hand_over,
        ];
        a.tool().json(code, &arguments)
    };
    let [_, (_, host)] = NODES;
    let program = service.hand_over_program(a)?;

    let doctor = |host: &str, code: i32| -> Result<Value> {
        let peer = ["--peer", host, "--rsh", &rsh, "--remote-nlmfo", &nlmfo];
        a.tool().json(code, &[&["doctor"], &peer[..]].concat())
    };
    let page = doctor(host, exit::CONFIRMED)?;
    let half = |side: &Value| side["outlooks"][0]["half"].clone();
    ensure!(
        half(&page) == "give_up"
            && page["outlooks"][0]["vips"][0] == VIP
            && half(&page["peer"]["there"]) == "take_over",
        "{page}"
    );
    let export = |options: &str| {
        let folder = service.folder().display();
        let line = format!("mkdir -p {folder}; exportfs {options} '*:{folder}'");
        run(b.node().command("sh").args(["-c", &line]))
    };
    export(&format!("-o fsid={}", service.fsid() + 1))?;
    let page = doctor(host, exit::UNSUPPORTED)?;
    let differences = page["peer"]["differences"].as_array();
    ensure!(
        differences.is_some_and(|all| all.iter().any(|one| one["topic"] == "fsid"
            && one["weight"] == "loss"
            && one["of"] == *service.folder().to_string_lossy())),
        "{page}"
    );
    export("-u")?;

    // No host has this address (TEST-NET-1).
    let unseen = doctor("192.0.2.1", exit::NOT_CONFIRMED)?;
    ensure!(unseen["peer"]["there"].is_null(), "{unseen}");
    let refused = drive("192.0.2.1", program, exit::COULD_NOT_RUN)?;
    ensure!(
        refused["release"].is_null() && refused["steps"][0]["action"] == "check",
        "{refused}"
    );
    mine.ensure_on(service, a)?;
    // Problems there that would lose the locks are found before anything is done.
    let signal = |signal: &str| {
        let kill = format!("kill -{signal} $(pidof rpc.statd)");
        run(b.node().command("sh").args(["-c", &kill]))
    };
    signal("STOP")?;
    let page = doctor(host, exit::UNSUPPORTED)?;
    let missing = page["peer"]["there"]["missing"].to_string();
    ensure!(missing.contains("statd"), "{page}");
    let refused = drive(host, program, exit::UNSUPPORTED)?;
    signal("CONT")?;
    let error = refused["steps"][0]["error"].as_str().unwrap_or_default();
    ensure!(
        refused["release"].is_null()
            && refused["steps"].as_array().map(Vec::len) == Some(1)
            && error.contains("systemctl restart rpc-statd"),
        "{refused}"
    );
    mine.ensure_on(service, a)?;

    let robbing = mine.robbed_by(thief, 0)?;
    // The program fails before it has moved anything.
    let failed = drive(host, "/bin/false", exit::NOT_CONFIRMED)?;
    ensure!(
        failed["release"]["confirmed"] == true
            && failed["takeover"].is_null()
            && failed["reclaimed_here"]["vips"][0]["missing"]
                .as_array()
                .is_some_and(Vec::is_empty),
        "{failed}"
    );
    mine.ensure_on(service, a)?;
    let left = b.tool().json(exit::CONFIRMED, &["grace", "--list"])?;
    ensure!(
        left["windows"].as_array().is_some_and(Vec::is_empty),
        "{left}"
    );

    let moved = drive(host, program, exit::CONFIRMED)?;
    let vip = &moved["takeover"]["vips"][0];
    ensure!(
        vip["expected"] == mine.known.len()
            && vip["missing"].as_array().is_some_and(Vec::is_empty)
            && vip["notified"]["done"] == true
            && vip["window"]["lockd"]["violations"] == 0
            && moved["situation"].is_null(),
        "{moved}"
    );
    ensure_nothing_stolen(robbing)?;
    mine.ensure_on(service, b)?;
    // The book has moved too.
    let book = b
        .tool()
        .json(exit::CONFIRMED, &["clients", "--book", "--vip", VIP])?;
    ensure!(
        book["vips"][0]["clients"]
            .as_array()
            .is_some_and(|all| all.len() == clients.len()),
        "{book}"
    );
    mine.give_up(service, b)?;
    Ok(End::Pass)
}

/// A move is ended at each of its steps, by some signal. `interrupt` does that to a run, `complete`
/// runs it again to its end and returns its report.
fn ended_at_each_step(
    context: &Context,
    mut interrupt: impl FnMut(&Node, &Step, &[String]) -> Result<()>,
    complete: impl Fn(&Node, &[String]) -> Result<Value>,
) -> Result<End> {
    let cluster = Cluster::up(&context.nlmfo, &[VIP])?;
    let everyone = cluster.clients(2)?;
    let (clients, [thief]) = everyone.split_at(1) else {
        unreachable!("two clients were asked for");
    };
    let service = &cluster.services[0];
    let mine = Holdings::take(clients, 0, service, &cluster.a)?;
    let robbing = mine.robbed_by(thief, 0)?;
    let (a, b) = (&cluster.a, &cluster.b);
    let handover = Handover {
        service,
        from: a,
        to: b,
    };
    let command = handover.pair_command()?;
    for step in [
        Step::grace_open().on(b),
        Step::locks_gone(service),
        Step::file_there(HANDED_OVER),
        Step::locks_there(service).on(b),
    ] {
        interrupt(a, &step, &command)?;
    }
    let moved = complete(a, &command)?;
    let vip = &moved["takeover"]["vips"][0];
    ensure!(
        vip["expected"] == mine.known.len()
            && vip["missing"].as_array().is_some_and(Vec::is_empty)
            && vip["window"]["lockd"]["violations"] == 0
            && moved["situation"].is_null(),
        "{moved}"
    );
    ensure_nothing_stolen(robbing)?;
    mine.ensure_on(service, b)?;
    for node in [a, b] {
        node.wait_gate_gone()?;
    }
    mine.give_up(service, b)?;
    Ok(End::Pass)
}

fn killed(context: &Context) -> Result<End> {
    ended_at_each_step(context, Node::kill_at, |node, command| {
        node.tool().json(exit::CONFIRMED, &words(command))
    })
}

fn signals(context: &Context) -> Result<End> {
    let mut signals = ["TERM", "INT", "QUIT"].iter().cycle();
    let interrupt = |node: &Node, step: &Step, command: &[String]| -> Result<()> {
        let signal = signals.next().context("no signal")?;
        let said = node.signal_at(step, command, (signal, 3))?;
        ensure!(said.contains("run the command again"), "{signal}: {said}");
        Ok(())
    };
    ended_at_each_step(context, interrupt, |node, command| {
        let command = [command, &["--json".to_owned()]].concat();
        let said = node.signal_at(&Step::begun(), &command, ("HUP", 0))?;
        let report = said.lines().find(|line| line.starts_with('{'));
        Ok(serde_json::from_str(report.context("no report")?)?)
    })
}
