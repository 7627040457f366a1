//! Release and confirmation of one VIP's locks among those of ten.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::Row;

/// Longer than a release takes in the host's time, in seconds: a slow one must be measured, not
/// interrupted.
const DEADLINE: &str = "600";

/// One method that was tried.
#[derive(Debug, Serialize)]
struct Step {
    method: String,
    /// Locks released by it.
    released: u64,
    /// Including the snapshot afterwards.
    took_ms: f64,
}

#[derive(Debug, Serialize)]
pub struct Release {
    vip: IpAddr,
    locks: usize,
    /// Time of the whole command.
    seconds: f64,
    /// From the first snapshot to the verdict.
    took_ms: f64,
    steps: Vec<Step>,
}

/// `nlmfo failover --phase release` of `vip`, through which `locks` are held.
///
/// # Errors
/// If it is not confirmed, or another number of locks was released.
pub fn run(nlmfo: &Path, vip: IpAddr, locks: usize) -> Result<Release> {
    let began = Instant::now();
    let output = Command::new(nlmfo)
        .args(["failover", "--phase", "release", "--no-fence", "--json"])
        .args(["--deadline", DEADLINE, "--vip"])
        .arg(vip.to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start nlmfo")?;
    let seconds = began.elapsed().as_secs_f64();
    let report: Value =
        serde_json::from_slice(&output.stdout).context("the report of nlmfo failover")?;
    let ours = &report["vips"][0];
    ensure!(
        output.status.success() && report["confirmed"] == true,
        "the release of {vip} was not confirmed: {} {}",
        output.status,
        ours["blockers"]
    );
    let released = ours["released"].as_array().map_or(0, Vec::len);
    ensure!(
        released == locks,
        "{released} of {locks} locks of {vip} were released"
    );
    let steps = (ours["steps"].as_array().into_iter().flatten())
        .map(|step| {
            let held = |when: &str| step[when]["locks"].as_u64();
            Some(Step {
                method: step["method"].as_str()?.into(),
                released: held("before")?.checked_sub(held("after")?)?,
                took_ms: step["took_ms"].as_f64()?,
            })
        })
        .collect::<Option<Vec<_>>>()
        .with_context(|| format!("the steps in the report: {}", ours["steps"]))?;
    let release = Release {
        vip,
        locks,
        seconds,
        took_ms: report["took_ms"]
            .as_f64()
            .context("took_ms in the report")?,
        steps,
    };
    eprintln!("release of {vip}: {seconds:.2} s");
    Ok(release)
}

impl Release {
    pub fn rows(&self) -> Vec<Row> {
        let Release { vip, locks, .. } = self;
        let whole = (
            format!("release of {locks} locks through {vip}"),
            format!("{:.2} s", self.seconds),
            "",
            None,
        );
        let steps = self.steps.iter().map(|step| -> Row {
            let what = format!("  by {}, {} locks gone", step.method, step.released);
            (what, format!("{:.2} s", step.took_ms / 1e3), "", None)
        });
        std::iter::once(whole).chain(steps).collect()
    }
}
