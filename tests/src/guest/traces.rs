//! What a tool may leave behind in the kernel: routing rules and tables,
//! pinned BPF objects, probes, tc filters.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use anyhow::Result;

use super::command::run;
use super::known::ensure_same;
use super::node::TestNode;

const BPF: &str = "/sys/fs/bpf";

/// The persistent state of one place, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// Reads the current state.
    pub fn of(node: &TestNode) -> Result<Traces> {
        let mut traces = BTreeSet::new();
        for arguments in [
            &["rule", "show"][..],
            &["-6", "rule", "show"],
            &["route", "show", "table", "all"],
            &["-6", "route", "show", "table", "all"],
        ] {
            let output = run(node.command("ip").args(arguments))?;
            let name = arguments.join(" ");
            traces.extend(
                output
                    .lines()
                    .filter(|line| !is_the_kernels_own(line))
                    .map(|line| format!("ip {name}: {}", line.trim())),
            );
        }
        traces.extend(names(BPF)?.iter().map(|name| format!("{BPF}/{name}")));
        let probes = fs::read_to_string("/sys/kernel/tracing/kprobe_events").unwrap_or_default();
        traces.extend(probes.lines().map(|line| format!("kprobe {line}")));
        Ok(Traces(traces))
    }

    /// What only nlmfo can have added since `before`: routing rules, pins, and routes by
    /// devices with its name.
    pub fn of_nlmfo_beyond(&self, before: &Traces) -> Vec<String> {
        let is_ours = |line: &&String| {
            line.contains("rule show")
                || line.starts_with(BPF)
                || line.contains("route show") && line.contains("nlmfo")
        };
        self.0
            .difference(&before.0)
            .filter(is_ours)
            .cloned()
            .collect()
    }

    /// Whether it is as it was `before`.
    ///
    /// # Errors
    /// Names what appeared and what vanished.
    pub fn ensure_as(&self, before: &Traces) -> Result<()> {
        ensure_same("traces left in the kernel", &before.0, &self.0)
    }
}

/// Routes that come and go by themselves: of multicast, of neighbours, and of
/// link-local addresses, which appear seconds after their device.
fn is_the_kernels_own(line: &str) -> bool {
    ["multicast", "anycast", "ff00::", "fe80::", "expires"]
        .iter()
        .any(|word| line.contains(word))
}

/// Names in a directory; one that does not exist has none.
fn names(directory: &str) -> Result<Vec<String>> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}
