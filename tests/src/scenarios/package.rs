//! The Debian package, installed and removed.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Context, End, Extra, Kernels, Machine, Scenario};
use crate::guest::command::run;
use crate::guest::lab::Lab;
use crate::guest::tool::{Tool, exit};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "package-deb",
    claim: "the installed package checks, lists and moves locks; removed and purged, it leaves nothing",
    run: install,
    kernels: Kernels::One("what is installed is the same on every kernel"),
    machine: Machine::Own("it has dpkg and the package, which take memory"),
    extra: Some(Extra::Deb),
    ..Scenario::DEFAULT
}];

/// Where packages put files.
const FOLDERS: [&str; 2] = ["/usr", "/etc"];

const STATE: &str = "/var/lib/nlmfo";

fn install(_: &Context) -> Result<End> {
    let before = files()?;
    dpkg(&["--install", "/nlmfo.deb"])?;
    let installed = files()?;
    for path in [
        "/usr/sbin/nlmfo-ha-callout",
        "/usr/share/man/man8/nlmfo-failover.8.gz",
        "/usr/share/bash-completion/completions/nlmfo",
        "/usr/lib/systemd/system/nlmfo-serve.service",
        "/usr/lib/systemd/system/nlmfo-restart.service",
        "/usr/lib/systemd/system/nlmfo-restart-prepare.service",
        "/usr/lib/systemd/system/nlmfo-server@.service",
        "/usr/share/doc/nlmfo/THIRD-PARTY.md",
        "/etc/nlmfo.toml",
    ] {
        ensure!(installed.contains(path), "{path} was not installed");
    }
    let (lab, _held) = Lab::with_one_lock()?;
    let tool = Tool::new("/usr/sbin/nlmfo", lab.server.node());
    let version = tool.expect(exit::CONFIRMED, &["--version"])?.stdout;
    ensure!(
        version.contains("commit ") && version.contains("tested on Linux 6.1"),
        "{version}"
    );
    tool.expect(exit::CONFIRMED, &["check"])?;
    let doctor = tool.expect(exit::CONFIRMED, &["doctor"])?.stdout;
    ensure!(doctor.contains("can give it up now"), "{doctor}");
    let vip = lab.vips[0].to_string();
    let locks = tool.json(exit::CONFIRMED, &["locks"])?;
    ensure!(locks["locks"][0]["vip"] == *vip, "{locks}");
    tool.expect(
        exit::CONFIRMED,
        &["failover", "--vip", &vip, "--grace", "60s"],
    )?;
    // Removal ends it.
    tool.expect(exit::CONFIRMED, &["grace", "--vip", &vip, "--for", "1h"])?;

    dpkg(&["--remove", "nlmfo"])?;
    let kept: BTreeSet<String> = files()?.difference(&before).cloned().collect();
    let configuration = ["/etc/default/nlmfo", "/etc/nlmfo.toml"].map(str::to_owned);
    ensure!(
        kept == configuration.into(),
        "a removed package left {kept:?}"
    );
    ensure!(
        Path::new(STATE).is_dir(),
        "the removal took the client book along"
    );
    for path in ["/run/nlmfo", "/sys/fs/bpf/nlmfo"] {
        ensure!(!Path::new(path).exists(), "a removed package left {path}");
    }
    dpkg(&["--purge", "nlmfo"])?;
    let kept: BTreeSet<String> = files()?.difference(&before).cloned().collect();
    ensure!(kept.is_empty(), "a purged package left {kept:?}");
    ensure!(!Path::new(STATE).exists(), "a purged package left {STATE}");
    Ok(End::Pass)
}

fn dpkg(arguments: &[&str]) -> Result<()> {
    let mut dpkg = Command::new("dpkg");
    run(dpkg.args(arguments).env("PATH", "/usr/sbin:/usr/bin")).map(drop)
}

/// All files and links below [`FOLDERS`].
fn files() -> Result<BTreeSet<String>> {
    let mut find = Command::new("find");
    let found = run(find.args(FOLDERS).args(["-xdev", "-not", "-type", "d"]))?;
    let list = found.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    ensure!(!list.is_empty(), "find found nothing");
    Ok(list)
}
