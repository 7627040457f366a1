//! A node to run commands on: this machine's root namespaces, a network, mount and UTS namespace
//! of its own, or another machine.
//!
//! A namespace needs its own `/run` and `/var/lib/nfs`: rpcbind's socket, statd's records and
//! exportfs's tables would be shared otherwise; and a configuration without the node's own,
//! which may name ports and addresses. It is kept alive by a holder process. The holder ends
//! with the [`TestNode`], or with the process that made it, for whatever reason. It then ends
//! the node's NFS server and processes, and restores lockd's settings for the whole machine.

use std::env;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sethostname};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::SIGTERM;

use super::command::{run, run_with_input, tool};
use super::server::{NLM_GRACE_PERIOD, NLM_TIMEOUT};
use super::wait::{Seen, until_for};
use crate::kernel::mounts::{Mount, mounts};
use crate::kernel::processes::{self, Process};
use crate::output;

/// The hidden command of every program that creates nodes: it calls [`hold`].
pub const COMMAND: &str = "hold";

/// Where nfsd's files are mounted, and the BPF filesystem.
const NFSD: &str = "/proc/fs/nfsd";
const BPF: &str = "/sys/fs/bpf";

/// Maximum time for each step at the end.
const STEP_TIMEOUT: Duration = Duration::from_secs(3);

/// The line that a holder prints once its namespaces can be used.
const READY: &str = "ready";

/// Where commands run. Dropping a node that is not the root ends its namespaces, with their
/// interfaces and mounts.
pub struct TestNode {
    name: String,
    kind: Kind,
}

enum Kind {
    Root,
    Namespaces(Holder),
    /// The program, with its first arguments, that runs a command there.
    Remote(Vec<OsString>),
}

struct Holder {
    child: Child,
    /// The holder runs until this closes, so it ends with us.
    stdin: Option<ChildStdin>,
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

impl TestNode {
    /// This machine's own namespaces.
    pub fn root() -> TestNode {
        TestNode {
            name: "root".into(),
            kind: Kind::Root,
        }
    }

    /// Another machine, on which `runner` (a program with its first arguments, as
    /// `ssh host`) runs the program and the arguments that it is given.
    pub fn remote(name: &str, runner: Vec<OsString>) -> TestNode {
        TestNode {
            name: name.into(),
            kind: Kind::Remote(runner),
        }
    }

    /// New namespaces with `name` as host name, loopback up and nothing else.
    ///
    /// # Errors
    /// If the namespaces cannot be made, as without root.
    #[expect(clippy::missing_panics_doc, reason = "the child's pipes are there")]
    pub fn create(name: &str) -> Result<TestNode> {
        let mut child = Command::new(env::current_exe()?)
            .args([COMMAND, name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A terminal interrupts a whole process group, but the holder must clean up.
            .process_group(0)
            .spawn()
            .with_context(|| format!("holder of namespace {name}"))?;
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let holder = Holder {
            child,
            stdin: Some(stdin),
        };
        if line.trim() != READY {
            bail!("cannot create namespace {name}; its holder's errors are above");
        }
        let node = TestNode {
            name: name.into(),
            kind: Kind::Namespaces(holder),
        };
        run(node.command("ip").args(["link", "set", "lo", "up"]))?;
        Ok(node)
    }

    /// Its host name; of [`TestNode::root`], `root`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process whose namespaces these are, where it is one of this machine's.
    pub fn pid(&self) -> u32 {
        match &self.kind {
            Kind::Namespaces(holder) => holder.child.id(),
            Kind::Root | Kind::Remote(_) => 1,
        }
    }

    /// A command that will run here.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        match &self.kind {
            Kind::Root => tool(program.as_ref()),
            Kind::Remote(runner) => {
                let mut words = runner.iter().map(OsString::as_os_str);
                let mut command = Command::new(words.next().unwrap_or_default());
                command.args(words).arg(program.as_ref());
                command
            }
            Kind::Namespaces(holder) => {
                let mut command = tool("nsenter");
                command
                    .args(["-t", &holder.child.id().to_string(), "-n", "-m", "-u", "--"])
                    .arg(program.as_ref());
                command
            }
        }
    }

    /// The path by which `path` of this node is reached from the root mount namespace; for another
    /// machine, `path` itself.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        match &self.kind {
            Kind::Root | Kind::Remote(_) => path.into(),
            Kind::Namespaces(holder) => Path::new("/proc")
                .join(holder.child.id().to_string())
                .join("root")
                .join(path.strip_prefix("/").unwrap_or(path)),
        }
    }

    /// Makes a directory here, with those above it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        if let Kind::Remote(_) = self.kind {
            run(self.command("mkdir").arg("-p").arg(path.as_ref()))?;
            return Ok(());
        }
        let path = self.path(path);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())
    }

    /// Writes to a file of the kernel's, which may act on the network namespace
    /// of the process that writes.
    ///
    /// # Errors
    /// If the file cannot be written, or the kernel refuses the text.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        if let Kind::Remote(_) = self.kind {
            run_with_input(self.command("tee").arg(path), text)?;
            return Ok(());
        }
        let path = self.path(path);
        self.within(|| {
            fs::write(&path, text).with_context(|| format!("{text:?} to {}", path.display()))
        })
    }

    /// Reads a file of the kernel's, of this network namespace.
    ///
    /// # Errors
    /// If the file cannot be read, or is not UTF-8.
    pub fn read(&self, path: &str) -> Result<String> {
        if let Kind::Remote(_) = self.kind {
            return run(self.command("cat").arg(path));
        }
        let path = self.path(path);
        self.within(|| fs::read_to_string(&path).with_context(|| path.display().to_string()))
    }

    /// Writes a program that runs here.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_program(&self, path: &str, text: &str) -> Result<()> {
        self.write(path, text)?;
        run(self.command("chmod").args(["755", path]))?;
        Ok(())
    }

    /// Runs several `ip` commands, one a line, in one process.
    ///
    /// # Errors
    /// If one of them fails; those before it have been done.
    pub fn ip(&self, batch: &str) -> Result<()> {
        run_with_input(self.command("ip").args(["-batch", "-"]), batch)
            .with_context(|| format!("in {}: {batch}", self.name))?;
        Ok(())
    }

    /// Runs `work` on a thread in this node's network namespace. Sockets created there belong to
    /// it, whichever thread uses them later. Not for another machine.
    ///
    /// # Errors
    /// If the network namespace cannot be entered, or the work fails.
    ///
    /// # Panics
    /// If the work does.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let net = File::open(format!("/proc/{}/ns/net", self.pid()))
            .with_context(|| format!("network namespace of {}", self.name))?;
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(&net, CloneFlags::CLONE_NEWNET).context("setns")?;
                    work()
                })
                .join()
                .expect("the work does not panic")
        })
    }
}

/// The holder process: makes the namespaces, says so, waits until its standard input
/// ends, and then stops what runs in them.
///
/// # Errors
/// If the namespaces cannot be made, or something in them cannot be stopped at the end.
pub fn hold(name: &str) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .context("unshare of network, mount and UTS namespaces")?;
    sethostname(name).context("sethostname")?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .context("making / private")?;
    // Those of the node, if it has them: not ours to stop at the end.
    while umount2(NFSD, MntFlags::MNT_DETACH).is_ok() {}
    for (directory, subdirectories) in [
        ("/run", &["lock", "rpcbind", "rpc_pipefs"][..]),
        (
            "/var/lib/nfs",
            &["sm", "sm.bak", "v4recovery", "rpc_pipefs", "nfsdcld"][..],
        ),
    ] {
        mount(
            Some("tmpfs"),
            directory,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("tmpfs on {directory}"))?;
        for subdirectory in subdirectories {
            fs::create_dir(Path::new(directory).join(subdirectory))?;
        }
    }
    for table in ["etab", "rmtab"] {
        File::create(Path::new("/var/lib/nfs").join(table))?;
    }
    hide_configuration()?;
    // For its own pins, which end with it.
    if Path::new(BPF).is_dir() {
        let none = MsFlags::empty();
        mount(Some("bpf"), BPF, Some("bpf"), none, None::<&str>)
            .with_context(|| format!("a BPF filesystem on {BPF}"))?;
    }
    // The settings of the whole machine; none while lockd is not loaded.
    let settings: Vec<(&str, String)> = [NLM_TIMEOUT, NLM_GRACE_PERIOD]
        .into_iter()
        .filter_map(|file| Some((file, fs::read_to_string(file).ok()?)))
        .collect();
    let is_told = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGTERM, Arc::clone(&is_told))?;
    output::report(None, |out| writeln!(out, "{READY}"));
    wait_for_end(&is_told)?;
    let has_server = Path::new(NFSD).join("threads").exists();
    let stopped = stop_all();
    // Only a server sets them (`Server::start`); other nodes may find them changed.
    for (file, value) in settings.iter().filter(|_| has_server) {
        fs::write(file, value).with_context(|| format!("{value:?} to {file}"))?;
    }
    stopped
}

/// Returns when standard input ends, or SIGTERM has come.
fn wait_for_end(is_told: &AtomicBool) -> Result<()> {
    const POLL_INTERVAL: Timespec = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    let mut stdin = io::stdin().lock();
    while !is_told.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        match poll(&mut fds, Some(&POLL_INTERVAL)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) if stdin.read(&mut [0; 64])? == 0 => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error).context("waiting for the end of standard input"),
        }
    }
    Ok(())
}

/// Hides the node's own exports and settings behind empty files.
fn hide_configuration() -> Result<()> {
    const EMPTY: &str = "/run/empty";
    const EXPORTS: &str = "/etc/exports";
    File::create(EMPTY)?;
    if !Path::new(EXPORTS).exists() {
        // exportfs needs this file, and the node's own /etc must not be changed.
        run(tool("cp").args(["-a", "/etc", "/run/etc"]))?;
        mount(
            Some("/run/etc"),
            "/etc",
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .context("a copy of /etc on itself")?;
        File::create(EXPORTS)?;
    }
    for file in [EXPORTS, "/etc/nfs.conf", "/etc/nfs.conf.local"] {
        if Path::new(file).is_file() {
            let bind = MsFlags::MS_BIND;
            mount(Some(EMPTY), file, None::<&str>, bind, None::<&str>)
                .with_context(|| format!("hiding {file}"))?;
        }
    }
    for folder in ["/etc/exports.d", "/etc/nfs.conf.d"] {
        if Path::new(folder).is_dir() {
            let none = MsFlags::empty();
            mount(Some("tmpfs"), folder, Some("tmpfs"), none, None::<&str>)
                .with_context(|| format!("hiding {folder}"))?;
        }
    }
    Ok(())
}

/// Stops the NFS server of this network namespace, if it has one, unmounts what it has mounted
/// as a client, and kills its processes.
///
/// The kernel tells statd to forget a server when its last NFSv3 filesystem is unmounted. It
/// holds a lock of all network namespaces while it waits (`nlm_host_mutex`, fs/lockd/host.c): if
/// statd and rpcbind are dying, every other NFSv3 client and server of this machine waits for
/// minutes. They are killed last.
fn stop_all() -> Result<()> {
    // nfsd's threads keep the namespace alive as long as they run.
    let threads = Path::new(NFSD).join("threads");
    if threads.exists() {
        fs::write(&threads, "0").with_context(|| format!("0 to {}", threads.display()))?;
    }
    kill_all(|name| !["rpcbind", "rpc.statd"].contains(&name))?;
    unmount_nfs();
    kill_all(|_| true)?;
    Ok(())
}

/// Kills the other processes of this node with such a name, and waits a while for their end: files that
/// they have open keep filesystems mounted.
fn kill_all(is_chosen: impl Fn(&str) -> bool) -> Result<()> {
    let this = std::process::id();
    let chosen = || -> Result<Vec<Process>> {
        let mut found = processes::beside().context("listing the processes of this place")?;
        found.retain(|one| u32::try_from(one.id) != Ok(this) && is_chosen(&one.name));
        Ok(found)
    };
    for process in chosen()? {
        let _ = kill(Pid::from_raw(process.id), Signal::SIGKILL);
    }
    let _ = until_for(STEP_TIMEOUT, "processes to end", || {
        let left = chosen()?.len();
        Ok(match left {
            0 => Seen::Yes(()),
            _ => Seen::No(format!("{left} left")),
        })
    });
    Ok(())
}

/// Unmounts the NFS filesystems of this mount namespace. Servers that do not answer are not
/// waited for.
fn unmount_nfs() {
    let mounts = mounts().unwrap_or_default();
    let (sender, done) = channel();
    thread::spawn(move || {
        let of_nfs = |mount: &&Mount| ["nfs", "nfs4"].contains(&mount.filesystem.as_str());
        for mount in mounts.iter().rev().filter(of_nfs) {
            let _ = umount2(&mount.mount_point, MntFlags::MNT_DETACH);
        }
        let _ = sender.send(());
    });
    let _ = done.recv_timeout(STEP_TIMEOUT);
}
