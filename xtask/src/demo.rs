//! `cargo xtask demo`: a release on a real kernel with a real NFS server and real clients.
//! The part inside the machine is `tests/src/demo.rs`.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    arch::Arch,
    build,
    cache::Cache,
    lab::{KernelName, Lab, Offered, Run, Stream, UnlockIp, kernel::newest},
};

/// Far longer than the demo takes, even under emulation.
const DEADLINE: Duration = Duration::from_mins(5);

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Boot a machine of this architecture
    #[arg(long, value_enum, default_value_t)]
    pub arch: Arch,

    /// Kernel to boot, named as for `lab run` [default: the newest with a broken `unlock_ip`, to
    /// show that nlmfo then tries FREE_ALL]
    #[arg(long, value_name = "KERNEL")]
    pub kernel: Option<KernelName>,
}

/// Fails if the demo does not show what it claims.
pub fn execute(cache: &Cache, args: DemoArgs) -> Result<ExitCode> {
    Ok(match shows(cache, args)? {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Runs the demo; whether it shows what it claims.
pub fn shows(cache: &Cache, args: DemoArgs) -> Result<bool> {
    let programs = build::workspace(cache, args.arch, false)?;
    let lab = Lab::open(args.arch)?;
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
        return Err(error).context("forward the demo's output");
    }
    Ok(outcome.status()? == 0)
}

/// The newest kernel with a broken `unlock_ip`, else the newest; prints the choice.
fn default(offered: &[Offered]) -> Result<KernelName> {
    if let Some(broken) = newest(offered, |kernel| kernel.unlock_ip() == UnlockIp::Broken) {
        eprintln!(
            "{}: the newest kernel with a broken unlock_ip (it reports success and releases nothing)",
            broken.release
        );
        return Ok(broken.name());
    }
    let newest = newest(offered, |_| true).context("the archive offers no kernel")?;
    eprintln!(
        "{}: the newest kernel; none has a broken unlock_ip, so the demo will not show FREE_ALL",
        newest.release
    );
    Ok(newest.name())
}
