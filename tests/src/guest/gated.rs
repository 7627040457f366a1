//! The gate as nlmfo reports it and as the kernel has it: windows and their counts, filters on
//! devices, and remaining nlmfo processes.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use aya::programs::tc::{SchedClassifier, TcAttachType};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::command::run;
use super::node::TestNode;
use super::tool::{Tool, exit};
use super::wait::{Seen, until};

/// Opens windows that are longer than any scenario.
pub fn open(tool: &Tool, vips: &[&str]) -> Result<Value> {
    let vips = vips.iter().flat_map(|vip| ["--vip", vip]);
    let arguments: Vec<_> = ["grace", "--for", "300s"].into_iter().chain(vips).collect();
    tool.json(exit::CONFIRMED, &arguments)
}

/// The window of one VIP from `nlmfo grace --list`, which must report no problem.
pub fn window(tool: &Tool, vip: &str) -> Result<Value> {
    let listed = tool.json(exit::CONFIRMED, &["grace", "--list"])?;
    let windows = listed["windows"].as_array().into_iter().flatten();
    windows
        .into_iter()
        .find(|window| window["vip"] == vip)
        .cloned()
        .with_context(|| format!("no window of {vip} in {listed}"))
}

/// Checks lockd's answers in a window.
pub fn ensure_answers(window: &Value, reclaimed: u64, refused: u64) -> Result<()> {
    let answers = &window["lockd"];
    ensure!(
        answers["reclaimed"] == reclaimed
            && answers["refused"] == refused
            && answers["violations"] == 0
            && answers["reclaims_refused"] == 0
            && answers["reclaims_failed"] == 0
            && window["verdict"]["state"] == "enforced",
        "expected {reclaimed} reclaims granted and {refused} new locks refused, the audit has: \
         {window}"
    );
    Ok(())
}

/// How many of the gate's filters are on a device of the root network namespace, of
/// tcx and clsact together.
pub fn filters_on(device: &str) -> Result<usize> {
    // The query fails on kernels without tcx.
    let tcx = SchedClassifier::query_tcx(device, TcAttachType::Ingress)
        .map_or(Vec::new(), |(_, programs)| programs);
    let is_ours = |name: &str| name.starts_with("gate_");
    let by_tcx = (tcx.iter())
        .filter(|program| program.name_as_str().is_some_and(is_ours))
        .count();
    let root = TestNode::root();
    let listed = run(root
        .command("tc")
        .args(["filter", "show", "dev", device, "ingress"]))?;
    // A filter has a line with its handle; its priority has one without.
    let by_clsact = listed
        .lines()
        .filter(|line| line.contains(" handle ") && line.contains("nlmfo"))
        .count();
    Ok(by_tcx + by_clsact)
}

/// Names of all devices of the root network namespace.
pub fn devices() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/class/net")? {
        let entry = entry?;
        // Files of bonding's lie there too.
        if entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Every device has exactly one filter of the gate.
pub fn ensure_one_filter_each() -> Result<()> {
    for device in devices()? {
        let filters = filters_on(&device)?;
        ensure!(filters == 1, "{device} has {filters} filters of the gate");
    }
    Ok(())
}

/// Checks that nothing of the gate is in the kernel: no pin, no filter, no qdisc.
pub fn ensure_gone() -> Result<()> {
    for device in devices()? {
        let filters = filters_on(&device)?;
        ensure!(filters == 0, "{device} still has {filters} filters");
    }
    let qdiscs = run(TestNode::root().command("tc").args(["qdisc", "show"]))?;
    ensure!(!qdiscs.contains("clsact"), "{qdiscs}");
    let pins = fs::exists("/sys/fs/bpf/nlmfo")?;
    ensure!(!pins, "/sys/fs/bpf/nlmfo is still there");
    Ok(())
}

/// Kills every process of the tool, and waits until none is left.
pub fn kill_all() -> Result<()> {
    ensure!(!processes()?.is_empty(), "no keeper was left behind");
    until("the end of every nlmfo", || {
        let left = processes()?;
        for pid in &left {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        Ok(match left.is_empty() {
            true => Seen::Yes(()),
            false => Seen::No(format!("{left:?}")),
        })
    })
}

/// Processes of the tool that have not ended.
pub fn processes() -> Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may end while we look. Those that nobody has waited for yet are dead.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let is = |line: &str| status.lines().any(|other| other == line);
        if is("Name:\tnlmfo") && !status.contains("State:\tZ") {
            found.insert(pid);
        }
    }
    Ok(found)
}
