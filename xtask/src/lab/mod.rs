//! The lab: distribution kernels with a real NFS server and real clients, in
//! QEMU.
//!
//! A run boots a kernel from nothing with a Debian 12 userland in memory, runs one command, and brings
//! back its output, exit status and files. Nothing of one run is left for the next, so every run starts
//! from the same machine. Without KVM, QEMU emulates the processor: a boot takes seconds either way.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use xtask::{arch::Arch, lab::{Lab, Run}};
//!
//! let lab = Lab::open(Arch::HERE)?;
//! let kernel = lab.kernel(&"bookworm-security".parse()?)?;
//! let outcome = lab.run(&Run::new(kernel, ["uname", "-r"]), &mut |_, _| {})?;
//! assert_eq!(outcome.status()?, 0);
//! # Ok(())
//! # }
//! ```
//!
//! | room | does |
//! |---|---|
//! | `kernel` | names a kernel and finds it in the archive |
//! | `image` | makes it bootable: reads the image (`format`), packs its `modules` |
//! | `rootfs` | the userland layers |
//! | `layer` | writes a layer; `initrd` puts a run's together |
//! | `tools` | QEMU and helpers, unpacked privately |
//! | `types` | a kernel's types and symbols, out of its files |
//! | `qemu` | one QEMU process |
//! | `console`, `port` | read what the kernel and the command say |
//! | `run` | one run, from layers to outcome |
//! | `cluster` | machines that share a network and disks |

pub mod cli;
pub mod cluster;
mod console;
mod format;
pub mod image;
mod initrd;
pub mod kernel;
mod layer;
mod modules;
mod port;
mod qemu;
mod rootfs;
pub mod run;
pub(crate) mod tools;
mod tsc;
mod types;

use std::{env, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};

pub use self::{
    cluster::{Cluster, ClusterOutcome},
    image::Kernel,
    kernel::{KernelName, Offered, UnlockIp},
    qemu::Clock,
    rootfs::Manager,
    run::{Ending, Outcome, Run, Stream},
};
use self::{
    qemu::{Accelerator, Devices},
    run::Member,
    tools::Tools,
};
use crate::{apt::Apt, arch::Arch, cache::Cache};

/// A working KVM boots in a second or two; a machine that emulates it takes
/// minutes, or forever.
const KVM_DEADLINE: Duration = Duration::from_secs(10);

/// The release of the kernel that `name` means now, and the directory with its types and
/// symbols (`types`). Nothing is booted, and of the lab only its tools are needed.
pub fn types(cache: &Cache, arch: Arch, name: &KernelName) -> Result<(String, PathBuf)> {
    let apt = Apt::of(cache, arch)?;
    let tools = Tools::get(cache, arch)?;
    let kernel =
        Kernel::get(cache, &apt, &tools, name).with_context(|| format!("get the kernel {name}"))?;
    let folder = types::extract(cache, &tools, &kernel)?;
    Ok((kernel.release, folder))
}

/// Everything that runs share: the cache, QEMU, the userland.
#[derive(Clone, Debug)]
pub struct Lab {
    cache: Cache,
    apt: Apt,
    tools: Tools,
    userland: PathBuf,
}

impl Lab {
    /// Downloads and builds what every run on this architecture needs, the first time.
    pub fn open(arch: Arch) -> Result<Self> {
        let cache = Cache::open()?;
        let apt = Apt::of(&cache, arch)?;
        let tools = Tools::get(&cache, arch)?;
        Ok(Self {
            userland: rootfs::userland(&cache, &apt, &tools)?,
            tools,
            cache,
            apt,
        })
    }

    /// Where what it has fetched is kept.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The kernel that `name` means now, ready to boot.
    pub fn kernel(&self, name: &KernelName) -> Result<Kernel> {
        Kernel::get(&self.cache, &self.apt, &self.tools, name)
            .with_context(|| format!("get the kernel {name}"))
    }

    /// All kernels that the archive offers now, suite by suite, newest first.
    pub fn kernels(&self) -> Result<Vec<Offered>> {
        kernel::offered(&self.apt, &kernel::SUITES)
    }

    /// The newest offered kernel that satisfies `wanted`, those of Debian's
    /// stable releases first; nothing is downloaded but package indices.
    pub fn newest(&self, wanted: impl Fn(&Offered) -> bool) -> Result<Option<Offered>> {
        Ok(kernel::newest(&self.kernels()?, wanted).cloned())
    }

    /// Boots and runs the command; `output` gets what it writes, as it comes.
    ///
    /// An error means that the run could not be made. The [`Outcome`] says how it went.
    pub fn run(&self, run: &Run, output: &mut dyn FnMut(Stream, &[u8])) -> Result<Outcome> {
        let accelerator = self.accelerator(&run.kernel)?;
        self.run_alone(accelerator, run, output)
    }

    /// Boots a cluster and runs its driver's command to the end; `output` gets what that
    /// writes, as it comes. Errors as of [`Lab::run`].
    pub fn run_cluster(
        &self,
        cluster: &Cluster,
        output: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<ClusterOutcome> {
        let accelerator = self.accelerator(&cluster.driver.kernel)?;
        let mut members = Vec::new();
        for (run, devices) in cluster.members()? {
            members.push(Member {
                layers: self.layers(run)?,
                run,
                devices,
            });
        }
        let outcomes = run::see_through(&self.tools, accelerator, members, output)?;
        ClusterOutcome::of(outcomes)
    }

    fn run_alone(
        &self,
        accelerator: Accelerator,
        run: &Run,
        output: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<Outcome> {
        let member = Member {
            run,
            layers: self.layers(run)?,
            devices: Devices::default(),
        };
        let outcomes = run::see_through(&self.tools, accelerator, vec![member], output)?;
        let outcome = outcomes.into_iter().next();
        outcome.context("a run without an outcome")
    }

    /// A shell in the guest, on this terminal; `run`'s command is ignored.
    pub fn shell(&self, run: &Run) -> Result<()> {
        let accelerator = self.accelerator(&run.kernel)?;
        run::shell(&self.tools, &self.layers(run)?, accelerator, run)
    }

    fn layers(&self, run: &Run) -> Result<Vec<PathBuf>> {
        let mut layers = vec![self.userland.clone()];
        if run.bpf_tools {
            layers.push(rootfs::bpf_tools(&self.cache, &self.apt)?);
        }
        if let Some(manager) = run.manager {
            layers.push(rootfs::manager(&self.cache, &self.apt, manager)?);
        }
        layers.extend(run.kernel.modules.clone());
        Ok(layers)
    }

    /// KVM where it boots a kernel, found out once per boot of this machine;
    /// `NLMFO_ACCEL` (kvm, tcg) decides without trying.
    fn accelerator(&self, kernel: &Kernel) -> Result<Accelerator> {
        match env::var("NLMFO_ACCEL").as_deref() {
            Ok("kvm") => return Ok(Accelerator::Kvm),
            Ok("tcg") => return Ok(Accelerator::Tcg),
            Ok(other) => bail!("NLMFO_ACCEL is {other}: use kvm or tcg"),
            Err(_) => {}
        }
        let usable = kernel.arch == Arch::HERE
            && fs::File::options()
                .read(true)
                .write(true)
                .open("/dev/kvm")
                .is_ok();
        if !usable {
            return Ok(Accelerator::Tcg);
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("read this machine's boot id")?;
        let verdict = self.cache.once(&format!("accel/{}", boot.trim()), |to| {
            let mut run = Run::new(kernel.clone(), ["true"]);
            run.deadline = KVM_DEADLINE;
            let works = crate::progress::step("trying KVM", || {
                self.run_alone(Accelerator::Kvm, &run, &mut |_, _| {})
            })?
            .succeeded();
            fs::write(to, if works { "kvm" } else { "tcg" }).context("keep the verdict on KVM")
        })?;
        Ok(match fs::read_to_string(verdict)?.as_str() {
            "kvm" => Accelerator::Kvm,
            _ => Accelerator::Tcg,
        })
    }

    fn has(&self, kernel: &Offered) -> bool {
        let entry = image::entry(&kernel.release, &kernel.package_version);
        self.cache.path(entry).exists()
    }
}
