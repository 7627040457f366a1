//! The facts as Prometheus's text format, by the crate `prometheus`.

mod families;
mod vips;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use self::families::{Families, flag, label};
use super::Facts;
use crate::observe::states::Counts4;
use crate::ticks::tick::{Server, Tick};

/// The VIP of an NFSv4 client that has no connection.
const UNKNOWN: &str = "unknown";

/// All metrics of this moment.
pub fn render(facts: &Facts, now: Instant) -> String {
    let mut out = Families::default();
    node(&mut out, facts);
    if let Some(tick) = &facts.world.tick {
        let since = facts.taken.map_or(0.0, |taken| (now - taken).as_secs_f64());
        look(&mut out, tick, since);
        vips::gauges(&mut out, &tick.vips);
        vips::counters(&mut out, &tick.vips);
        vips::counters4(&mut out, &tick.vips);
        vips::windows(&mut out, &tick.vips);
    }
    nfs4(&mut out, facts);
    waiters(&mut out, facts);
    lasts(&mut out, facts);
    if facts.per_client {
        clients(&mut out, facts);
    }
    out.text()
}

fn node(out: &mut Families, facts: &Facts) {
    let info = vec![
        ("version", facts.version.to_owned()),
        ("commit", facts.commit.to_owned()),
        ("kernel", facts.kernel.clone()),
        ("server", facts.server.clone()),
    ];
    out.gauge(
        "nlmfo_info",
        "Version of nlmfo, the kernel, and the NFS server that the metrics are of.",
        [(info, 1.0)],
    );
    let broken = facts.unlock_ip_broken.map(|broken| (vec![], flag(broken)));
    out.gauge(
        "nlmfo_unlock_ip_broken",
        "Whether unlock_ip of this kernel releases nothing (CVE-2026-93231).",
        broken,
    );
    let services = facts.services.iter();
    out.gauge(
        "nlmfo_service_ready",
        "Whether a service that a takeover needs is ready, as `nlmfo check` finds it.",
        services.map(|(name, ready)| (vec![("service", name.clone())], flag(*ready))),
    );
    out.counter(
        "nlmfo_dropped_events_total",
        "Clients not recorded in the client book because the buffer was full.",
        [(vec![], facts.dropped)],
    );
}

fn look(out: &mut Families, tick: &Tick, since: f64) {
    let serves = tick.server == Server::Serving;
    out.gauge(
        "nlmfo_server_serving",
        "Whether lockd serves clients.",
        [(vec![], flag(serves))],
    );
    let graces = [
        ("lockd", tick.kernel_grace.lockd),
        ("nfsd", tick.kernel_grace.nfsd),
    ];
    let graces = graces
        .into_iter()
        .filter_map(|(daemon, grace)| Some((vec![("daemon", daemon.to_owned())], flag(grace?))));
    out.gauge(
        "nlmfo_kernel_grace",
        "Whether the kernel's own grace period, for all addresses, is open.",
        graces,
    );
    let age = tick.elapsed_ms.saturating_sub(tick.look.at_ms) as f64 / 1000.0 + since;
    for (name, help, value) in [
        (
            "nlmfo_snapshot_age_seconds",
            "Time since the last snapshot of lockd's lists.",
            age,
        ),
        (
            "nlmfo_snapshot_cpu_seconds",
            "Processor time of the last snapshot.",
            tick.look.cost_us as f64 / 1e6,
        ),
        (
            "nlmfo_snapshot_exact",
            "Whether no lock changed while the last snapshot was taken.",
            flag(tick.look.exact),
        ),
        (
            "nlmfo_snapshot_interval_seconds",
            "Time between two snapshots; longer than --interval if they are expensive.",
            tick.pace.look_ms as f64 / 1000.0,
        ),
        (
            "nlmfo_problems",
            "Number of things that could not be read.",
            tick.troubles.len() as f64,
        ),
    ] {
        out.gauge(name, help, [(vec![], value)]);
    }
}

fn nfs4(out: &mut Families, facts: &Facts) {
    let name =
        |vip: &Option<IpAddr>| ("vip", vip.map_or(UNKNOWN.to_owned(), |vip| vip.to_string()));
    type Of = fn(&Counts4) -> usize;
    let kinds: [(&str, Of); 5] = [
        ("open", |held| held.opens),
        ("lock", |held| held.locks),
        ("delegation", |held| held.delegations),
        ("layout", |held| held.layouts),
        ("other", |held| held.others),
    ];
    let states = facts.nfs4.held.iter().flat_map(|(vip, held)| {
        let kinds = kinds.iter();
        kinds.map(move |(kind, of)| {
            (
                vec![name(vip), ("type", (*kind).to_owned())],
                of(held) as f64,
            )
        })
    });
    out.gauge(
        "nlmfo_nfs4_states",
        "NFSv4 state held through the VIP, by type.",
        states,
    );
    let clients = facts.nfs4.held.iter();
    out.gauge(
        "nlmfo_nfs4_clients",
        "NFSv4 clients of the VIP; a client of several VIPs counts in each.",
        clients.map(|(vip, held)| (vec![name(vip)], held.clients as f64)),
    );
    let mut lost: BTreeMap<Option<IpAddr>, usize> = BTreeMap::new();
    for client in (facts.world.tick.iter()).flat_map(|tick| &tick.not_connected) {
        let seen = client.last_seen.iter().copied().map(Some);
        let never = client.last_seen.is_empty().then_some(None);
        for vip in seen.chain(never) {
            *lost.entry(vip).or_default() += 1;
        }
    }
    out.gauge(
        "nlmfo_nfs4_clients_not_connected",
        "NFSv4 clients without a connection, by the VIP on which they were last seen.",
        (lost.iter()).map(|(vip, clients)| (vec![name(vip)], *clients as f64)),
    );
    let silent = facts.nfs4.silent.iter();
    out.gauge(
        "nlmfo_nfs4_client_silent_seconds",
        "Longest time since an NFSv4 client that holds state renewed its lease.",
        silent.map(|(vip, seconds)| (vec![name(vip)], *seconds as f64)),
    );
}

fn waiters(out: &mut Families, facts: &Facts) {
    let oldest = facts.oldest_waiters.iter();
    out.gauge(
        "nlmfo_oldest_waiter_seconds",
        "Time since the oldest blocked lock request was first seen.",
        oldest.map(|(vip, seconds)| (vec![label(*vip)], *seconds)),
    );
}

fn lasts(out: &mut Families, facts: &Facts) {
    let labels =
        |last: &super::last::Last| vec![label(last.vip), ("operation", last.operation.clone())];
    let running = facts.last.iter();
    out.gauge(
        "nlmfo_failover_running",
        "Whether an operation of the VIP runs, or was killed.",
        running.map(|last| (labels(last), flag(last.exit_status.is_none()))),
    );
    let ended = || facts.last.iter().filter(|last| last.exit_status.is_some());
    out.gauge(
        "nlmfo_last_failover_exit_status",
        "Exit status of the last operation of the VIP: 0 confirmed, 3 not confirmed, 5 confirmed \
         but incomplete.",
        ended().filter_map(|last| Some((labels(last), f64::from(last.exit_status?)))),
    );
    out.gauge(
        "nlmfo_last_failover_duration_seconds",
        "Duration of the last operation of the VIP.",
        ended().filter_map(|last| Some((labels(last), last.seconds?))),
    );
    out.gauge(
        "nlmfo_last_failover_timestamp_seconds",
        "When the last operation of the VIP was stored, since 1970.",
        ended().map(|last| (labels(last), last.at as f64)),
    );
    out.gauge(
        "nlmfo_last_failover_reclaims_missing",
        "Locks of the release record that were not reclaimed.",
        ended().filter_map(|last| Some((labels(last), last.missing? as f64))),
    );
}

/// At most as many as details have lines.
fn clients(out: &mut Families, facts: &Facts) {
    let mut held: BTreeMap<(IpAddr, IpAddr), u64> = BTreeMap::new();
    for detail in facts.world.details.values() {
        for client in &detail.clients {
            *held.entry((detail.vip, client.client)).or_default() += client.held;
        }
    }
    out.gauge(
        "nlmfo_client_locks",
        "NFSv3 locks that a client holds through the VIP.",
        held.into_iter().map(|((vip, client), held)| {
            (
                vec![label(vip), ("client", client.to_string())],
                held as f64,
            )
        }),
    );
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::metrics::last::Last;
    use crate::ticks::samples;
    use crate::ticks::states::NotConnected;

    fn facts(mut tick: Tick) -> Facts {
        let vip = tick.vips[0].vip;
        tick.not_connected.push(NotConnected {
            client: [10, 77, 0, 14].into(),
            name: "Linux NFSv4.1 mail4".to_owned(),
            minor: 1,
            held: 2,
            last_seen: vec![vip],
        });
        let mut facts = Facts {
            version: "0.1.0",
            commit: "1234",
            kernel: "6.12.107".to_owned(),
            unlock_ip_broken: Some(true),
            services: [("statd".to_owned(), false)].into(),
            oldest_waiters: [(vip, 65.0)].into(),
            last: vec![Last {
                vip,
                operation: "takeover".to_owned(),
                at: 1_764_000_000,
                exit_status: Some(5),
                seconds: Some(1.5),
                missing: Some(2),
                error: None,
            }],
            ..Facts::default()
        };
        let held = Counts4 {
            clients: 2,
            opens: 5,
            ..Counts4::default()
        };
        facts.nfs4.held.insert(Some(vip), held);
        facts.nfs4.silent.insert(None, 4_000);
        facts.world.take(tick);
        facts
    }

    /// `cargo xtask package` gives this text to promtool.
    #[test]
    fn the_whole_text() {
        let facts = facts(samples::violation());
        insta::assert_snapshot!(render(&facts, Instant::now()));
    }

    /// The names of metrics in a text, without the suffixes of a histogram's parts.
    fn names(text: &str) -> BTreeSet<String> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = text.split(|c| !is_word(c));
        let names = words.filter(|word| word.starts_with("nlmfo_"));
        let parts = ["_bucket", "_count", "_sum"];
        names
            .map(|name| {
                let part = parts.iter().find_map(|part| name.strip_suffix(part));
                part.unwrap_or(name).to_owned()
            })
            .collect()
    }

    #[test]
    fn rules_dashboard_and_document_name_metrics_that_exist() {
        let mut facts = facts(samples::violation());
        facts.per_client = true;
        let known = names(&render(&facts, Instant::now()));
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
        for path in ["dist/prometheus/nlmfo.rules.yml", "dist/grafana/nlmfo.json"] {
            let unknown: Vec<_> = names(&read(path)).difference(&known).cloned().collect();
            assert!(unknown.is_empty(), "{path}: {unknown:?}");
        }
        assert_eq!(names(&read("docs/metrics.md")), known);
    }

    #[test]
    fn clients_have_metrics_only_if_wanted() {
        let mut facts = facts(samples::one_vip());
        let text = render(&facts, Instant::now());
        assert!(!text.contains("client=\""), "{text}");
        facts.per_client = true;
        let text = render(&facts, Instant::now());
        assert!(
            text.contains(r#"nlmfo_client_locks{vip="10.77.0.1",client="10.77.0.11"} 3"#),
            "{text}"
        );
    }

    #[test]
    fn the_number_of_series_does_not_depend_on_the_locks() {
        let mut tick = samples::one_vip();
        let count = |tick: &Tick| render(&facts(tick.clone()), Instant::now()).lines().count();
        let few = count(&tick);
        tick.vips[0].held *= 1_000;
        tick.vips[0].clients *= 1_000;
        assert_eq!(count(&tick), few);
    }
}
