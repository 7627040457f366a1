//! `nlmfo serve --listen` while a VIP fails over.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Context, End, Extra, Kernels, Machine, Scenario};
use crate::guest::lab::Lab;
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "serve-prometheus",
        claim: "a Prometheus that scrapes `nlmfo serve` sees a failover, and evaluates all alert rules",
        run: scraped,
        kernels: Kernels::One("Prometheus sees the same of every kernel"),
        machine: Machine::Own("Prometheus takes memory"),
        extra: Some(Extra::Prometheus),
        only_full: Some("serve-metrics shows the same numbers, and promtool tests the rules"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "serve-metrics",
        claim: "metrics and events show locks, a release with its cause and a takeover with its verdict",
        run: failover,
        kernels: Kernels::One(
            "where the numbers come from, counters-calls and locks-exact show on all",
        ),
        ..Scenario::DEFAULT
    },
];

pub(super) const LISTEN: &str = "127.0.0.1:9814";
const EVENTS: &str = "/tmp/events.jsonl";

fn failover(context: &Context) -> Result<End> {
    let (lab, _held) = Lab::with_one_lock()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let serve = [
        "serve",
        "--listen",
        LISTEN,
        "--events",
        EVENTS,
        "--interval",
        "500ms",
    ];
    let mut serving = tool.start(&serve)?;
    let vip = lab.vips[0];
    shows(&[
        (&format!("nlmfo_locks{{vip=\"{vip}\"}}"), 1.0),
        ("nlmfo_server_serving", 1.0),
        ("nlmfo_service_ready{service=\"statd\"}", 1.0),
    ])?;
    let text = scrape()?;
    ensure!(
        !text.contains("client="),
        "clients are named unasked: {text}"
    );
    tool.expect(exit::COULD_NOT_RUN, &["serve", "--listen", LISTEN])?;

    let vip_argument = vip.to_string();
    let arguments = ["failover", "--vip", &vip_argument, "--grace", "60s"];
    tool.expect(exit::CONFIRMED, &arguments)?;
    let failover = format!("{{vip=\"{vip}\",operation=\"failover\"}}");
    shows(&[
        (&format!("nlmfo_last_failover_exit_status{failover}"), 0.0),
        (
            &format!("nlmfo_last_failover_reclaims_missing{failover}"),
            0.0,
        ),
        (&format!("nlmfo_failover_running{failover}"), 0.0),
        (&format!("nlmfo_grace{{vip=\"{vip}\"}}"), 0.0),
        (&format!("nlmfo_locks{{vip=\"{vip}\"}}"), 1.0),
        // A reclaim in a VIP's window reaches lockd as a new lock.
        (
            &format!("nlmfo_grants_total{{vip=\"{vip}\",when=\"at_once\"}}"),
            1.0,
        ),
    ])?;
    let grace = ["grace", "--vip", &vip_argument, "--for", "60s"];
    tool.expect(exit::CONFIRMED, &grace)?;
    shows(&[(&format!("nlmfo_grace{{vip=\"{vip}\"}}"), 1.0)])?;
    let text = scrape()?;
    let released: f64 = samples(&text)
        .filter(|(name, _)| name.starts_with("nlmfo_releases_total{"))
        .map(|(_, value)| value)
        .sum();
    ensure!(released >= 1.0, "no release was counted: {text}");

    serving.signal(Signal::SIGTERM)?;
    ensure!(serving.code()? == exit::CONFIRMED, "serve after SIGTERM");
    let events = fs::read_to_string(EVENTS).context(EVENTS)?;
    let events: Vec<Value> = (events.lines())
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .with_context(|| events.clone())?;
    let kinds: BTreeSet<&str> = events
        .iter()
        .filter_map(|event| event["kind"].as_str())
        .collect();
    for kind in ["released", "grace", "operation", "fence"] {
        ensure!(kinds.contains(kind), "no event {kind}: {events:#?}");
    }
    ensure!(
        events.iter().any(|event| event["kind"] == "operation"
            && event["exit_status"] == 0
            && event["vip"] == vip.to_string()),
        "no verdict: {events:#?}"
    );
    Ok(End::Pass)
}

/// Waits until a scrape has all of these.
fn shows(wanted: &[(&str, f64)]) -> Result<()> {
    until(&format!("metrics with {wanted:?}"), || {
        let text = match scrape() {
            Ok(text) => text,
            Err(error) => return Ok(Seen::No(format!("{error:#}"))),
        };
        let has = |wanted: &(&str, f64)| samples(&text).any(|sample| sample == *wanted);
        Ok(match wanted.iter().all(has) {
            true => Seen::Yes(()),
            false => Seen::No(text.clone()),
        })
    })
}

/// Names with their labels, and values.
fn samples(text: &str) -> impl Iterator<Item = (&str, f64)> {
    let lines = text.lines().filter(|line| line.starts_with("nlmfo_"));
    lines.filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name, value.parse().ok()?))
    })
}

pub(super) fn scrape() -> Result<String> {
    get(LISTEN, "/metrics HTTP/1.1")
}

/// The answer to a request for a path with a protocol version.
fn get(address: &str, path: &str) -> Result<String> {
    let address: SocketAddr = address.parse()?;
    let mut stream = TcpStream::connect(address).context("connect")?;
    let request = format!("GET {path}\r\nHost: lab\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(
        answer.starts_with("HTTP/1.") && answer.contains(" 200 "),
        "{answer}"
    );
    Ok(answer)
}

const PROMETHEUS: &str = "127.0.0.1:9090";
const CONFIGURATION: &str = "/tmp/prometheus.yml";

fn scraped(context: &Context) -> Result<End> {
    let (lab, _held) = Lab::with_one_lock()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let _serving = tool.start(&["serve", "--listen", LISTEN, "--interval", "500ms"])?;
    let configuration = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
         rule_files: [/nlmfo.rules.yml]\n\
         scrape_configs:\n\
         - job_name: nlmfo\n\
         \x20 static_configs: [{{ targets: [\"{LISTEN}\"] }}]\n"
    );
    fs::write(CONFIGURATION, configuration).context(CONFIGURATION)?;
    let mut prometheus = (lab.server.node().command("/prometheus"))
        .arg(format!("--config.file={CONFIGURATION}"))
        .arg("--storage.tsdb.path=/tmp/prometheus")
        .arg(format!("--web.listen-address={PROMETHEUS}"))
        .arg("--log.level=warn")
        .spawn()
        .context("start Prometheus")?;
    let vip = lab.vips[0].to_string();
    let seen = || -> Result<()> {
        sees("up%7Bjob%3D%22nlmfo%22%7D", "1")?;
        sees(&format!("nlmfo_locks%7Bvip%3D%22{vip}%22%7D"), "1")?;
        let arguments = ["failover", "--vip", &vip, "--grace", "60s"];
        tool.expect(exit::CONFIRMED, &arguments)?;
        sees(
            "nlmfo_last_failover_exit_status%7Boperation%3D%22failover%22%7D",
            "0",
        )?;
        sees("sum(nlmfo_releases_total)%3E%3Dbool%201", "1")?;
        // What was scraped meanwhile: the release took the lock away, the takeover brought it back.
        sees(
            "max_over_time(nlmfo_failover_running%5B5m%5D)%3E%3Dbool%200",
            "1",
        )?;
        until("all rules evaluated", || {
            let rules = answer("/api/v1/rules")?;
            let groups = rules["data"]["groups"].as_array().into_iter().flatten();
            let rules: Vec<&Value> = groups
                .filter_map(|one| one["rules"].as_array())
                .flatten()
                .collect();
            let are_well = rules.iter().all(|rule| rule["health"] == "ok");
            Ok(match !rules.is_empty() && are_well {
                true => Seen::Yes(()),
                false => Seen::No(format!("{rules:?}")),
            })
        })
    };
    let seen = seen();
    prometheus.kill().context("end Prometheus")?;
    prometheus.wait().context("wait for Prometheus")?;
    seen?;
    Ok(End::Pass)
}

/// Waits until a query has this value in its first result.
fn sees(query: &str, value: &str) -> Result<()> {
    until(&format!("{query} of {value}"), || {
        Ok(match answer(&format!("/api/v1/query?query={query}")) {
            Ok(answer) if answer["data"]["result"][0]["value"][1] == value => Seen::Yes(()),
            Ok(answer) => Seen::No(answer.to_string()),
            Err(error) => Seen::No(format!("{error:#}")),
        })
    })
}

fn answer(path: &str) -> Result<Value> {
    // HTTP/1.0 has no chunks.
    let answer = get(PROMETHEUS, &format!("{path} HTTP/1.0"))?;
    let body = answer.lines().find(|line| line.starts_with('{'));
    Ok(serde_json::from_str(body.context("no object")?)?)
}
