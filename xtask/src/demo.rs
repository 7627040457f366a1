//! `cargo xtask demo`: a release on a real kernel with a real NFS server and real clients.
//! With `--nfsv4`, a move between two of them.
//! The part inside the machines is `tests/src/demo.rs`, and `tests/src/demo/nfsv4.rs`.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    arch::Arch,
    build,
    cache::Cache,
    lab::{Cluster, Kernel, KernelName, Lab, Offered, Run, Stream, UnlockIp, kernel::newest},
};

/// Far longer than any pause in the demo's output, even under emulation.
const DEADLINE: Duration = Duration::from_mins(5);

/// The servers of the cluster, as `tests/src/cluster.rs` knows them.
pub const NODES: [(&str, &str); 2] = [("a", "10.77.2.1"), ("b", "10.77.2.2")];

/// Of each of their two disks.
const DISK: u64 = 64 << 20;

/// Where the driver records the move, from its root.
pub const RECORDING: &str = "root/move.jsonl";

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Boot two servers, and move a VIP with the locks of NFSv3 and NFSv4 clients between them
    #[arg(long)]
    pub nfsv4: bool,

    /// Boot a machine of this architecture
    #[arg(long, value_enum, default_value_t)]
    pub arch: Arch,

    /// Kernel to boot, named as for `lab run` [default: the newest with a broken `unlock_ip`, on
    /// which nlmfo then tries FREE_ALL]
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
        None => default(&lab.kernels()?, args.nfsv4)?,
    };
    let kernel = lab.kernel(&name)?;
    eprintln!("booting {} ({name}) …", kernel.release);

    let status = match args.nfsv4 {
        true => moves(&lab, &kernel, &programs, None)?,
        false => {
            let run = machine(&kernel, &programs, &["demo"]);
            forwarded(|output| lab.run(&run, output)?.status())?
        }
    };
    Ok(status == 0)
}

/// A machine that does this with `lab-guest`.
fn machine(kernel: &Kernel, programs: &Path, arguments: &[&str]) -> Run {
    let command = ["/lab-guest"].iter().chain(arguments).copied();
    let mut run = Run::new(kernel.clone(), command);
    run.deadline = DEADLINE;
    run.renews_deadline = true;
    run.files = ["nlmfo", "lab-guest"]
        .map(|program| (programs.join(program), format!("/{program}").into()))
        .into();
    run
}
/// Moves a VIP between two servers; the status of the demo. Its recording goes to [`RECORDING`] in
/// this directory.
pub fn moves(lab: &Lab, kernel: &Kernel, programs: &Path, record: Option<&Path>) -> Result<i32> {
    let mut driver = machine(kernel, programs, &["demo", "--nfsv4"]);
    if let Some(directory) = record {
        let path = format!("/{RECORDING}");
        driver.command.extend(["--record", &path].map(Into::into));
        driver.collect.push(path.into());
        driver.collect_into = directory.into();
    }
    let servers = NODES.map(|(name, address)| machine(kernel, programs, &["node", name, address]));
    let mut cluster = Cluster {
        driver,
        servers: servers.into(),
        disks: vec![DISK; 2],
    };
    // Each emulated processor costs the host time, and there are three machines.
    cluster.driver.processors = 1;
    for server in &mut cluster.servers {
        server.processors = 1;
    }
    forwarded(|output| lab.run_cluster(&cluster, output)?.status())
}

/// Shows the output of the machine while it runs.
fn forwarded(run: impl FnOnce(&mut dyn FnMut(Stream, &[u8])) -> Result<i32>) -> Result<i32> {
    let mut lost = None;
    let status = run(&mut |stream, bytes| {
        let written = match stream {
            Stream::Stdout => io::stdout().lock().write_all(bytes),
            Stream::Stderr => io::stderr().lock().write_all(bytes),
        };
        if let Err(error) = written {
            lost.get_or_insert(error);
        }
    });
    match lost {
        Some(error) => Err(error).context("forward the demo's output"),
        None => status,
    }
}

/// The newest kernel with a broken `unlock_ip`, else the newest; prints the choice, if the demo
/// shows the difference.
fn default(offered: &[Offered], nfsv4: bool) -> Result<KernelName> {
    let broken = newest(offered, |kernel| kernel.unlock_ip() == UnlockIp::Broken);
    let chosen =
        (broken.or_else(|| newest(offered, |_| true))).context("the archive offers no kernel")?;
    match (nfsv4, broken) {
        (true, _) => {}
        (false, Some(broken)) => eprintln!(
            "{}: the newest kernel with a broken unlock_ip (it reports success and releases nothing)",
            broken.release
        ),
        (false, None) => eprintln!(
            "{}: the newest kernel; none has a broken unlock_ip, so the demo will not show FREE_ALL",
            chosen.release
        ),
    }
    Ok(chosen.name())
}
