//! `cargo xtask demo`: the tool at its main job, on a real kernel with a real
//! NFS server and real clients. The part inside the machine is
//! `tests/src/demo.rs`.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    build,
    cache::Cache,
    lab::{KernelName, Lab, Offered, Run, Stream, UnlockIp, kernel::newest},
};

/// Minutes under emulation would be far more than it takes.
const DEADLINE: Duration = Duration::from_secs(300);

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// The kernel to boot, as `cargo xtask lab run` names it; by default the
    /// newest whose unlock_ip is broken, so that the escalation is seen
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<KernelName>,
}

/// Fails if what the demo claims is not so.
pub fn execute(cache: &Cache, args: DemoArgs) -> Result<ExitCode> {
    let programs = build::workspace(cache, false)?;
    let lab = Lab::open()?;
    let name = match args.kernel {
        Some(name) => name,
        None => default(&lab.kernels()?)?,
    };
    let kernel = lab.kernel(&name)?;
    eprintln!("booting {} ({name}) …", kernel.release);

    let mut run = Run::new(kernel, ["/lab-guest", "demo"]);
    run.deadline = DEADLINE;
    run.files = ["nlmfo", "lab-guest"]
        .map(|program| (programs.join(program), format!("/{program}").into()))
        .into();
    let mut lost = None;
    let outcome = lab.run(&run, &mut |stream, bytes| {
        let written = match stream {
            Stream::Stdout => io::stdout().lock().write_all(bytes),
            Stream::Stderr => io::stderr().lock().write_all(bytes),
        };
        if let Err(error) = written {
            lost.get_or_insert(error);
        }
    })?;
    if let Some(error) = lost {
        return Err(error).context("show what the demo says");
    }
    Ok(match outcome.status()? {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// One whose `unlock_ip` is broken if there is one, else the newest, and says so.
fn default(offered: &[Offered]) -> Result<KernelName> {
    if let Some(broken) = newest(offered, |kernel| kernel.unlock_ip() == UnlockIp::Broken) {
        eprintln!(
            "{}: the newest kernel offered whose unlock_ip reports success and releases nothing",
            broken.release
        );
        return Ok(broken.name());
    }
    let newest = newest(offered, |_| true).context("the archive offers no kernel")?;
    eprintln!(
        "{}: the newest kernel offered; none has the unlock_ip that releases nothing, so no \
         escalation will be seen",
        newest.release
    );
    Ok(newest.name())
}
