//! Debian's package of Prometheus: promtool on the metrics and the alert rules, and the server for
//! guests.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    apt::{self, Apt, Suite},
    arch::Arch,
    cache::{Cache, workspace_root},
    progress,
};

/// Changes when what is unpacked changes.
const ENTRY: &str = "promtool/2";

/// What `nlmfo/src/metrics/text.rs` renders, as its test keeps it.
const METRICS: &str =
    "nlmfo/src/metrics/snapshots/nlmfo__metrics__text__tests__the_whole_text.snap";

const RULES: &str = "dist/prometheus/nlmfo.rules.yml";
const RULES_TEST: &str = "dist/prometheus/nlmfo.rules.test.yml";

/// `check metrics`, `check rules` and `test rules`.
pub fn check(cache: &Cache) -> Result<()> {
    let promtool = programs(cache, Arch::HERE)?.join("promtool");
    let root = workspace_root();
    let snapshot =
        fs::read_to_string(root.join(METRICS)).with_context(|| format!("read {METRICS}"))?;
    let metrics = snapshot
        .splitn(3, "---\n")
        .nth(2)
        .context("a snapshot without text")?;
    let mut metrics_file = tempfile::tempfile()?;
    std::io::Write::write_all(&mut metrics_file, metrics.as_bytes())?;
    std::io::Seek::rewind(&mut metrics_file)?;
    let output = Command::new(&promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::from(metrics_file))
        .output()
        .context("start promtool")?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && said.trim().is_empty(),
        "promtool check metrics: {said}"
    );
    for (what, file) in [("check", RULES), ("test", RULES_TEST)] {
        let said = apt::run(
            Command::new(&promtool)
                .args([what, "rules"])
                .arg(root.join(file)),
        )?;
        ensure!(said.contains("SUCCESS"), "promtool {what} rules: {said}");
    }
    Ok(())
}

/// For a guest that runs Prometheus: its program and our rules, with their places in the guest.
pub fn for_guest(cache: &Cache, arch: Arch) -> Result<Vec<(PathBuf, PathBuf)>> {
    Ok(vec![
        (
            programs(cache, arch)?.join("prometheus"),
            "/prometheus".into(),
        ),
        (workspace_root().join(RULES), "/nlmfo.rules.yml".into()),
    ])
}

/// A directory with both programs.
fn programs(cache: &Cache, arch: Arch) -> Result<PathBuf> {
    cache
        .once(&format!("{ENTRY}{}", arch.suffix()), |to| {
            let index = Apt::of(cache, arch)?.index(&[Suite::Bookworm, Suite::BookwormSecurity])?;
            let debs = index.download(&[index.newest("prometheus")?])?;
            let unpacked = to.with_file_name("unpacked");
            progress::step("unpacking Prometheus", || apt::unpack(debs, &unpacked))?;
            fs::create_dir_all(to).context("create its directory")?;
            for program in ["promtool", "prometheus"] {
                let from = unpacked.join("usr/bin").join(program);
                fs::rename(from, to.join(program)).with_context(|| format!("move {program}"))?;
            }
            Ok(())
        })
        .context("get Prometheus")
}
