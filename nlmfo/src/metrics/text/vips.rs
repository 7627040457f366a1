//! The metrics of each VIP.

use std::net::IpAddr;

use prometheus::proto::{Bucket, Histogram, Metric, MetricType};

use super::families::{Families, flag, label, metric};
use crate::observe::counters::Counters;
use crate::observe::counters::nfs4::Counters4;
use crate::ticks::events::causes;
use crate::ticks::tick::VipTick;

/// The bounds of the histogram's buckets: 2^n nanoseconds, 4 µs to 17 s.
const BOUNDS: [usize; 12] = [12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34];

pub(super) fn gauges(out: &mut Families, vips: &[VipTick]) {
    type Of = fn(&VipTick) -> f64;
    let gauges: [(&str, &str, Of); 6] = [
        ("nlmfo_locks", "NFSv3 locks held through the VIP.", |vip| {
            vip.held as f64
        }),
        ("nlmfo_waiters", "Blocked NFSv3 lock requests.", |vip| {
            vip.waiters as f64
        }),
        (
            "nlmfo_nfs4_waiters",
            "Blocked NFSv4 lock requests.",
            |vip| vip.waiters4 as f64,
        ),
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
pub(super) fn counters4(out: &mut Families, vips: &[VipTick]) {
    let outcome = |outcome| Some(("outcome", outcome));
    let counters: [Family<'_, Counters4>; 5] = [
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
            "nlmfo_nfs4_reclaims_refused_total",
            "NFSv4 reclaims that nfsd refused.",
            &[(None, |c| c.reclaims_refused)],
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

pub(super) fn counters(out: &mut Families, vips: &[VipTick]) {
    let counters: [Family<'_, Counters>; 7] = [
        (
            "nlmfo_grants_total",
            "Locks granted, without reclaims: at once, or later to a waiter.",
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

pub(super) fn windows(out: &mut Families, vips: &[VipTick]) {
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
    let mut metric = metric(vec![label(vip)]);
    metric.set_histogram(histogram);
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

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
