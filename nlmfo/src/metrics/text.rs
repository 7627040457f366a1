//! The facts as Prometheus's text format, by the crate `prometheus`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{Encoder, TextEncoder};

use super::Facts;
use crate::observe::counters::Counters;
use crate::observe::counters::nfs4::Counters4;
use crate::observe::states::Counts4;
use crate::ticks::events::causes;
use crate::ticks::tick::{Server, Tick, VipTick};

/// The bounds of the histogram's buckets: 2^n nanoseconds, 4 µs to 17 s.
const BOUNDS: [usize; 12] = [12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34];

/// The VIP of an NFSv4 client that has no connection.
const UNKNOWN: &str = "unknown";

type Labels = Vec<(&'static str, String)>;

/// All metrics of this moment.
pub fn render(facts: &Facts, now: Instant) -> String {
    let mut out = Families::default();
    node(&mut out, facts);
    if let Some(tick) = &facts.world.tick {
        let since = facts.taken.map_or(0.0, |taken| (now - taken).as_secs_f64());
        look(&mut out, tick, since);
        gauges(&mut out, &tick.vips);
        counters(&mut out, &tick.vips);
        counters4(&mut out, &tick.vips);
        windows(&mut out, &tick.vips);
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
    ];
    out.gauge(
        "nlmfo_info",
        "Version of nlmfo, and the kernel.",
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

fn gauges(out: &mut Families, vips: &[VipTick]) {
    type Of = fn(&VipTick) -> f64;
    let gauges: [(&str, &str, Of); 5] = [
        ("nlmfo_locks", "NFSv3 locks held through the VIP.", |vip| {
            vip.held as f64
        }),
        ("nlmfo_waiters", "Blocked NFSv3 lock requests.", |vip| {
            vip.waiters as f64
        }),
        ("nlmfo_shares", "NFSv3 share reservations.", |vip| {
            vip.shares as f64
        }),
        (
            "nlmfo_fenced",
            "Whether lock traffic to the VIP is dropped.",
            |vip| flag(vip.fenced),
        ),
        (
            "nlmfo_grace",
            "Whether the VIP's own grace period is open.",
            |vip| flag(vip.window.as_ref().is_some_and(|window| window.open)),
        ),
    ];
    for (name, help, of) in gauges {
        out.gauge(
            name,
            help,
            vips.iter().map(|vip| (vec![label(vip.vip)], of(vip))),
        );
    }
    let clients = vips
        .iter()
        .map(|vip| (vec![label(vip.vip)], vip.clients as f64));
    out.gauge(
        "nlmfo_nfs3_clients",
        "NFSv3 clients that hold, wait for or have reserved something.",
        clients,
    );
}

/// A label that tells it from the other parts, and its number.
type Part<C> = (Option<(&'static str, &'static str)>, fn(&C) -> u64);

/// A name, a help text, and the parts.
type Family<'a, C> = (&'static str, &'static str, &'a [Part<C>]);

fn families<C>(out: &mut Families, vips: &[(IpAddr, &C)], families: &[Family<'_, C>]) {
    for (name, help, parts) in families {
        let rows = vips.iter().flat_map(|(vip, counters)| {
            parts.iter().map(move |(part, of)| {
                let mut labels = vec![label(*vip)];
                labels.extend(part.map(|(key, value)| (key, value.to_owned())));
                (labels, of(counters))
            })
        });
        out.counter(name, help, rows);
    }
}

/// Nothing where nfsd's calls are not counted.
fn counters4(out: &mut Families, vips: &[VipTick]) {
    let outcome = |outcome| Some(("outcome", outcome));
    let counters: [Family<'_, Counters4>; 4] = [
        (
            "nlmfo_nfs4_opens_total",
            "NFSv4 OPEN calls, by outcome.",
            &[
                (outcome("granted"), |c| c.opens),
                (outcome("reclaimed"), |c| c.opens_reclaimed),
                (outcome("grace"), |c| c.opens_in_grace),
            ],
        ),
        (
            "nlmfo_nfs4_locks_total",
            "NFSv4 LOCK calls, by outcome.",
            &[
                (outcome("granted"), |c| c.locks),
                (outcome("reclaimed"), |c| c.locks_reclaimed),
                (outcome("denied"), |c| c.locks_denied),
                (outcome("grace"), |c| c.locks_in_grace),
            ],
        ),
        (
            "nlmfo_nfs4_delegations_total",
            "NFSv4 delegations granted and recalled.",
            &[
                (outcome("granted"), |c| c.delegations),
                (outcome("recalled"), |c| c.recalled),
            ],
        ),
        (
            "nlmfo_nfs4_clients_ended_total",
            "NFSv4 clients that left, expired or were dropped.",
            &[(None, |c| c.clients_ended)],
        ),
    ];
    let each = vips
        .iter()
        .filter_map(|vip| Some((vip.vip, vip.nfs4.as_ref()?)));
    families(out, &each.collect::<Vec<_>>(), &counters);
}

fn counters(out: &mut Families, vips: &[VipTick]) {
    let counters: [Family<'_, Counters>; 7] = [
        (
            "nlmfo_grants_total",
            "Locks granted, reclaims apart: at once, or later to a waiter.",
            &[
                (Some(("when", "at_once")), |c| c.granted),
                (Some(("when", "later")), |c| c.granted_later),
            ],
        ),
        (
            "nlmfo_reclaims_total",
            "Reclaims granted in the kernel's own grace; one in a VIP's grace is a grant.",
            &[(None, |c| c.reclaimed)],
        ),
        (
            "nlmfo_denials_total",
            "LOCK calls refused, because of grace or for another reason.",
            &[
                (Some(("reason", "grace")), |c| c.denied_grace),
                (Some(("reason", "other")), |c| c.denied),
            ],
        ),
        (
            "nlmfo_blocked_total",
            "LOCK calls answered with blocked.",
            &[(None, |c| c.blocked)],
        ),
        (
            "nlmfo_cancels_total",
            "CANCEL calls.",
            &[(None, |c| c.cancelled)],
        ),
        (
            "nlmfo_unlocks_total",
            "UNLOCK calls.",
            &[(None, |c| c.unlocked)],
        ),
        ("nlmfo_tests_total", "TEST calls.", &[(None, |c| c.tested)]),
    ];
    let each: Vec<_> = vips.iter().map(|vip| (vip.vip, &vip.counters)).collect();
    families(out, &each, &counters);
    let releases = vips.iter().flat_map(|vip| {
        let causes = causes(&vip.counters.released).into_iter();
        causes.map(|(cause, count)| (vec![label(vip.vip), ("cause", slug(cause))], count))
    });
    out.counter(
        "nlmfo_releases_total",
        "Owners whose locks on a file lockd released by itself, by cause.",
        releases,
    );
    let histograms = vips
        .iter()
        .map(|vip| histogram(vip.vip, &vip.counters.latency_ns_log2));
    out.add(
        "nlmfo_lock_duration_seconds",
        "Time that lockd took to answer LOCK calls; the sum is an estimate from the buckets.",
        MetricType::HISTOGRAM,
        histograms.collect(),
    );
}

fn windows(out: &mut Families, vips: &[VipTick]) {
    let open = || {
        vips.iter().filter_map(|vip| {
            let window = vip.window.as_ref().filter(|window| window.open)?;
            Some((vip.vip, window))
        })
    };
    let seen = || (vips.iter()).filter_map(|vip| Some((vip.vip, vip.window.as_ref()?)));
    out.gauge(
        "nlmfo_grace_left_seconds",
        "Time until the VIP's grace period ends.",
        open().map(|(vip, window)| (vec![label(vip)], window.left_ms as f64 / 1000.0)),
    );
    out.gauge(
        "nlmfo_grace_violations",
        "Locks granted in the VIP's last grace period that were not reclaims.",
        seen().map(|(vip, window)| (vec![label(vip)], window.lockd.violations as f64)),
    );
    out.gauge(
        "nlmfo_grace_reclaims_refused",
        "Reclaims that lockd refused because of grace in the VIP's last grace period.",
        seen().map(|(vip, window)| (vec![label(vip)], window.lockd.reclaims_refused as f64)),
    );
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
        "Time that the oldest blocked lock request has been seen.",
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

fn label(vip: IpAddr) -> (&'static str, String) {
    ("vip", vip.to_string())
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// A cause as a label: lower case, one word.
fn slug(cause: &str) -> String {
    cause.to_lowercase().replace("'s", "").replace(' ', "_")
}

fn histogram(vip: IpAddr, calls: &[u64]) -> Metric {
    let total: u64 = calls.iter().sum();
    let buckets = BOUNDS.map(|bound| {
        let mut bucket = Bucket::default();
        bucket.set_cumulative_count(calls.iter().take(bound).sum());
        bucket.set_upper_bound(2f64.powi(bound as i32) / 1e9);
        bucket
    });
    // Bucket i holds 2^i to 2^(i+1) nanoseconds.
    let middle = |at: usize| 1.5 * 2f64.powi(at as i32) / 1e9;
    let sum = calls
        .iter()
        .enumerate()
        .map(|(at, &calls)| calls as f64 * middle(at));
    let mut histogram = Histogram::default();
    histogram.set_sample_count(total);
    histogram.set_sample_sum(sum.sum());
    histogram.set_bucket(buckets.into());
    let mut metric = Metric::from_label(pairs(vec![label(vip)]));
    metric.set_histogram(histogram);
    metric
}

fn pairs(labels: Labels) -> Vec<LabelPair> {
    let pair = |(name, value): (&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    };
    labels.into_iter().map(pair).collect()
}

/// Metrics by name.
#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    fn gauge(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels, f64)>) {
        let metric = |(labels, value)| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            let mut metric = Metric::from_label(pairs(labels));
            metric.set_gauge(gauge);
            metric
        };
        let metrics = rows.into_iter().map(metric).collect();
        self.add(name, help, MetricType::GAUGE, metrics);
    }

    fn counter(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels, u64)>) {
        let metric = |(labels, value)| {
            let mut counter = Counter::default();
            counter.set_value(value as f64);
            let mut metric = Metric::from_label(pairs(labels));
            metric.set_counter(counter);
            metric
        };
        let metrics = rows.into_iter().map(metric).collect();
        self.add(name, help, MetricType::COUNTER, metrics);
    }

    /// The format has no family without a metric.
    fn add(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }

    fn text(&self) -> String {
        let mut text = Vec::new();
        // Writing to memory cannot fail, and no family is empty.
        let _ = TextEncoder::new().encode(&self.0, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::metrics::last::Last;
    use crate::ticks::samples;

    fn facts(tick: Tick) -> Facts {
        let vip = tick.vips[0].vip;
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

    #[test]
    fn a_histogram_adds_up() {
        let mut calls = [0; 36];
        (calls[11], calls[12], calls[35]) = (1, 2, 3);
        let metric = histogram("10.77.0.1".parse().unwrap(), &calls);
        let buckets = metric.get_histogram().get_bucket();
        assert_eq!(buckets[0].cumulative_count(), 1);
        assert_eq!(buckets[1].cumulative_count(), 3);
        assert_eq!(buckets[11].cumulative_count(), 3);
        assert_eq!(metric.get_histogram().get_sample_count(), 6);
    }
}
