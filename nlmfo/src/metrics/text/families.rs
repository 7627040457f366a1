//! Families of metrics, and how their text is made.

use std::net::IpAddr;

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

pub(super) type Labels = Vec<(&'static str, String)>;

pub(super) fn label(vip: IpAddr) -> (&'static str, String) {
    ("vip", vip.to_string())
}

pub(super) fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// A metric without a value.
pub(super) fn metric(labels: Labels) -> Metric {
    let pair = |(name, value): (&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    };
    Metric::from_label(labels.into_iter().map(pair).collect())
}

/// Metrics by name.
#[derive(Default)]
pub(super) struct Families(Vec<MetricFamily>);

impl Families {
    pub(super) fn gauge(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        let gauge = |(labels, value)| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            let mut metric = metric(labels);
            metric.set_gauge(gauge);
            metric
        };
        let metrics = rows.into_iter().map(gauge).collect();
        self.add(name, help, MetricType::GAUGE, metrics);
    }

    pub(super) fn counter(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) {
        let counter = |(labels, value)| {
            let mut counter = Counter::default();
            counter.set_value(value as f64);
            let mut metric = metric(labels);
            metric.set_counter(counter);
            metric
        };
        let metrics = rows.into_iter().map(counter).collect();
        self.add(name, help, MetricType::COUNTER, metrics);
    }

    /// The format has no family without a metric.
    pub(super) fn add(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
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

    pub(super) fn text(&self) -> String {
        let mut text = Vec::new();
        // Writing to memory cannot fail, and no family is empty.
        let _ = TextEncoder::new().encode(&self.0, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}
