//! Resets a machine between two scenarios to its state after boot, and finds what nlmfo left
//! behind.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::programs::loaded_programs;
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, delete_module};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::command::{finish, finish_within, run};
use super::node::TestNode;
use super::tool::{Tool, exit};
use super::traces::Traces;
use super::wait::{Seen, until_for};

/// Maximum time for each step of a sweep. A machine that needs longer is not used again.
const LIMIT: Duration = Duration::from_secs(10);

/// A step of a sweep that takes longer is reported.
const NOTEWORTHY: Duration = Duration::from_secs(5);

/// Where the files of a fresh machine are kept.
const KEPT: &str = "/lab/kept";

/// Directories of the root that a scenario does not write to, or that are not files.
const NOT_KEPT: [&str; 5] = ["dev", "lab", "proc", "sys", "usr"];

/// Settings that change by themselves.
const VOLATILE: [&str; 2] = ["/proc/sys/kernel/ns_last_pid", "/proc/sys/kernel/random"];

/// The NFS server's and client's modules. What they hold in the kernel is gone with them,
/// and they cannot go while nlmfo or a scenario still holds one. The others stay: sunrpc
/// must, as it frees its memory pools while RCU callbacks still use them (6.12.117: an oops
/// in `mempool_free` from `rcu_do_batch`, with `sunrpc(-)`).
const UNLOADED: [&str; 8] = [
    "nfs_layout_flexfiles",
    "nfs_layout_nfsv41_files",
    "nfsd",
    "nfsv3",
    "nfsv4",
    "nfs",
    "lockd",
    "grace",
];

const CGROUPS: &str = "/sys/fs/cgroup";
const KPROBES: &str = "/sys/kernel/tracing/kprobe_events";

/// A machine after its boot.
pub struct Fresh {
    nlmfo: PathBuf,
    processes: BTreeSet<i32>,
    mounts: BTreeSet<PathBuf>,
    /// Names in `/`.
    root: BTreeSet<String>,
    links: BTreeSet<String>,
    settings: BTreeMap<PathBuf, String>,
    before: Before,
}

/// What was in the kernel before nlmfo did anything.
pub struct Before {
    programs: BTreeSet<u32>,
    traces: Traces,
}

impl Before {
    /// Reads the current state.
    pub fn look() -> Result<Before> {
        Ok(Before {
            programs: programs()?.into_keys().collect(),
            traces: Traces::of(&TestNode::root())?,
        })
    }

    /// What is in the kernel now that only nlmfo can have put there.
    pub fn of_nlmfo(&self) -> Result<Option<String>> {
        let mut left: Vec<String> = Vec::new();
        for (id, name) in programs()? {
            if !self.programs.contains(&id) {
                left.push(format!("BPF program {name}"));
            }
        }
        left.extend(
            links()?
                .into_iter()
                .filter(|link| link.contains("nlmfo"))
                .map(|link| format!("device {link}")),
        );
        left.extend(Traces::of(&TestNode::root())?.of_nlmfo_beyond(&self.traces));
        Ok((!left.is_empty()).then(|| left.join(", ")))
    }
}

/// The result of a sweep.
pub enum Swept {
    Clean,
    /// What `nlmfo cleanup` left behind.
    Left(String),
}

impl Fresh {
    /// Inspects the machine, which must be fresh. `nlmfo` is the path of the binary.
    pub fn machine(nlmfo: &Path) -> Result<Fresh> {
        let root = names("/")?;
        fs::create_dir_all(KEPT).context(KEPT)?;
        for folder in kept(&root) {
            run(Command::new("cp").args(["-a", &format!("/{folder}"), KEPT]))?;
        }
        Ok(Fresh {
            nlmfo: nlmfo.into(),
            processes: processes()?,
            mounts: mounts()?.into_iter().collect(),
            root,
            links: links()?,
            settings: settings()?,
            before: Before::look()?,
        })
    }

    /// Ends everything that a scenario has started, and restores what it has changed.
    ///
    /// # Errors
    /// The machine cannot be reset.
    pub fn sweep(&self) -> Result<Swept> {
        timed("the scenario's namespaces", || self.wait_for_holders())?;
        let left = timed("nlmfo cleanup", || self.clean_up())?;
        timed("stopping the server", stop_server)?;
        timed("the scenario's processes", || self.end_processes())?;
        timed("its mounts", || self.unmount())?;
        timed("its devices", || self.unlink())?;
        forget_probes()?;
        timed("unloading", unload)?;
        timed("files", || self.restore_files())?;
        self.restore_settings()?;
        // For scenarios that read the kernel's log.
        run(Command::new("dmesg").arg("--clear"))?;
        if let Some(left) = left {
            return Ok(Swept::Left(left));
        }
        Traces::of(&TestNode::root())?.ensure_as(&self.before.traces)?;
        Ok(Swept::Clean)
    }

    /// The part of a sweep that even a machine that is not used again needs.
    ///
    /// # Errors
    /// The machine cannot be inspected.
    pub fn look_for_leftovers(&self) -> Result<Swept> {
        self.wait_for_holders()?;
        Ok(match self.clean_up()? {
            Some(left) => Swept::Left(left),
            None => Swept::Clean,
        })
    }

    /// Namespaces end by themselves when the scenario's process has ended.
    fn wait_for_holders(&self) -> Result<()> {
        let ours = fs::read_link("/proc/self/ns/net")?;
        wait("the scenario's namespaces to end", || {
            let mut left = Vec::new();
            for process in self.new_processes()? {
                // It may end between listing and reading.
                let theirs = fs::read_link(format!("/proc/{process}/ns/net"));
                if theirs.is_ok_and(|theirs| theirs != ours) {
                    left.push(name_of(process));
                }
            }
            Ok(left)
        })
    }

    /// Runs `nlmfo cleanup` if nlmfo has left something in the kernel, and returns what is still there
    /// after that.
    fn clean_up(&self) -> Result<Option<String>> {
        if self.before.of_nlmfo()?.is_none() {
            return Ok(None);
        }
        let root = TestNode::root();
        let cleanup = Tool::new(&self.nlmfo, &root).run(&["cleanup"])?;
        if cleanup.code() != exit::CONFIRMED {
            return Ok(Some(format!(
                "nlmfo cleanup: exit code {}: {}{}",
                cleanup.code(),
                cleanup.stdout,
                cleanup.stderr
            )));
        }
        // The kernel frees a program a moment after its last user.
        let gone = until_for(LIMIT, "nlmfo's state to be gone", || {
            Ok(match self.before.of_nlmfo()? {
                None => Seen::Yes(()),
                Some(left) => Seen::No(left),
            })
        });
        Ok(gone.err().map(|error| format!("{error:#}")))
    }

    fn new_processes(&self) -> Result<BTreeSet<i32>> {
        Ok(&processes()? - &self.processes)
    }

    fn end_processes(&self) -> Result<()> {
        wait("the scenario's processes to end", || {
            let left = self.new_processes()?;
            for process in &left {
                // It may have ended by itself.
                let _ = kill(Pid::from_raw(*process), Signal::SIGKILL);
            }
            Ok(left.into_iter().map(name_of).collect())
        })
    }

    fn unmount(&self) -> Result<()> {
        wait("the scenario's filesystems to be unmounted", || {
            let new = mounts()?;
            let new = new.iter().rev().filter(|at| !self.mounts.contains(*at));
            let mut left = Vec::new();
            for at in new {
                if let Err(error) = umount2(at, MntFlags::empty()) {
                    left.push(format!("{}: {error}", at.display()));
                }
            }
            Ok(left)
        })
    }

    /// Deletes devices, addresses of the loopback, packet filters and control groups.
    fn unlink(&self) -> Result<()> {
        let mut script = String::new();
        for link in links()?.difference(&self.links) {
            script += &format!("ip link delete {link}\n");
        }
        script += "ip -o addr show dev lo | while read -r _ _ _ address _; do\n\
                   case $address in 127.0.0.1/8|::1/128) ;;\n\
                   *) ip addr del $address dev lo ;; esac; done\n\
                   for kind in root clsact; do tc qdisc del dev lo $kind; done\n\
                   ip neigh flush all\n\
                   ip tcp_metrics flush all\n";
        if Path::new("/sys/module/nf_tables").exists() {
            script += "nft flush ruleset\n";
        }
        // What is not there cannot be deleted.
        finish(Command::new("sh").args(["-c", &script]), "")?;
        remove_cgroups()?;
        wait("the scenario's devices to be deleted", || {
            // Its devices stay as long as the module, which need not be loaded.
            let _ = delete_module(c"ip_gre", DeleteModuleFlags::O_NONBLOCK);
            Ok((&links()? - &self.links).into_iter().collect())
        })
    }

    fn restore_files(&self) -> Result<()> {
        let mut script = String::from("set -e\n");
        for folder in kept(&self.root) {
            script += &format!("find /{folder} -xdev -mindepth 1 -delete\n");
            script += &format!("cp -a {KEPT}/{folder}/. /{folder}/\n");
        }
        script += "find /dev/shm -mindepth 1 -delete\n";
        for new in names("/")?.difference(&self.root) {
            script += &format!("rm -rf '/{new}'\n");
        }
        run(Command::new("sh").args(["-c", &script])).map(drop)
    }

    fn restore_settings(&self) -> Result<()> {
        for (path, value) in &self.settings {
            // One may have been a module's.
            let now = fs::read_to_string(path);
            if now.is_ok_and(|now| now != *value) {
                fs::write(path, value)
                    .with_context(|| format!("{value:?} to {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Says which step of a sweep takes long.
fn timed<T>(step: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let done = run();
    let took = started.elapsed();
    if took > NOTEWORTHY {
        eprintln!("the sweep: {step}: {:.1} s", took.as_secs_f64());
    }
    done
}

/// Removes all control groups that no process is in.
pub fn remove_cgroups() -> Result<()> {
    let folders = ["-mindepth", "1", "-depth", "-type", "d"];
    let mut find = Command::new("find");
    find.arg(CGROUPS)
        .args(folders)
        .args(["-exec", "rmdir", "{}", ";"]);
    finish(&mut find, "").map(drop)
}

/// Stops nfsd, and lockd with it, while rpcbind still answers.
fn stop_server() -> Result<()> {
    if Path::new("/proc/fs/nfsd/threads").exists() {
        // It waits for a client of this machine that still waits for the server (60 s, seen on 6.12).
        let stop = ["-c", "echo 0 > /proc/fs/nfsd/threads"];
        let stopped = finish_within(LIMIT, Command::new("sh").args(stop), "")?;
        ensure!(stopped.code() == 0, "stopping nfsd: {}", stopped.stderr);
        run(Command::new("exportfs").args(["-f", "-a", "-u"]))?;
    }
    Ok(())
}

/// Unloads what serves NFS and locks.
fn unload() -> Result<()> {
    // RCU callbacks that are still due would call into what is unloaded. Not every kernel
    // can be told to finish them first.
    let _ = fs::write("/sys/module/rcutree/parameters/do_rcu_barrier", "1");
    wait("the NFS modules to leave the kernel", || {
        let mut left = Vec::new();
        for (name, users) in modules()? {
            let c_name = CString::new(name.as_str())?;
            // Those that others use go in the next round.
            if UNLOADED.contains(&name.as_str())
                && delete_module(&c_name, DeleteModuleFlags::O_NONBLOCK).is_err()
            {
                left.push(format!("{name} ({users} users)"));
            }
        }
        Ok(left)
    })
}

/// Removes probes that were made by writing to tracefs.
fn forget_probes() -> Result<()> {
    if fs::read_to_string(KPROBES).is_ok_and(|probes| !probes.is_empty()) {
        fs::write("/sys/kernel/tracing/events/enable", "0").context("disabling trace events")?;
        fs::write(KPROBES, "").context(KPROBES)?;
    }
    Ok(())
}

/// Waits until `look` finds nothing left.
fn wait(what: &str, mut look: impl FnMut() -> Result<Vec<String>>) -> Result<()> {
    until_for(LIMIT, what, || {
        let left = look()?;
        Ok(match left.is_empty() {
            true => Seen::Yes(()),
            false => Seen::No(left.join(", ")),
        })
    })
}

fn names(folder: impl AsRef<Path>) -> Result<BTreeSet<String>> {
    let folder = folder.as_ref();
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Directories of the root whose files a sweep restores.
fn kept(root: &BTreeSet<String>) -> impl Iterator<Item = &String> {
    root.iter().filter(|name| {
        let is_folder = Path::new("/").join(name).symlink_metadata();
        is_folder.is_ok_and(|meta| meta.is_dir()) && !NOT_KEPT.contains(&name.as_str())
    })
}

/// Processes that are neither the kernel's nor dead.
fn processes() -> Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    for name in names("/proc")? {
        let Ok(id) = name.parse() else { continue };
        // Neither a thread of the kernel's nor a zombie has a program. It may end meanwhile.
        if fs::read_link(format!("/proc/{id}/exe")).is_ok() {
            found.insert(id);
        }
    }
    Ok(found)
}

fn name_of(process: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    format!("{} ({process})", name.trim())
}

/// Where filesystems are mounted, in their order.
fn mounts() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let at = |line: &str| Some(line.split(' ').nth(1)?.replace("\\040", " ").into());
    Ok(table.lines().filter_map(at).collect())
}

fn links() -> Result<BTreeSet<String>> {
    let mut links = names("/sys/class/net")?;
    // A file of bonding's lies there too.
    links.retain(|link| Path::new("/sys/class/net").join(link).is_dir());
    Ok(links)
}

/// Loaded modules, with the number of their users.
fn modules() -> Result<Vec<(String, String)>> {
    let table = fs::read_to_string("/proc/modules").context("/proc/modules")?;
    let module = |line: &str| {
        let mut words = line.split(' ');
        let (name, _, users) = (words.next()?, words.next()?, words.next()?);
        Some((name.to_owned(), users.to_owned()))
    };
    Ok(table.lines().filter_map(module).collect())
}

/// The kernel's settings that can be read and written.
fn settings() -> Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::from("/proc/sys")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if VOLATILE.iter().any(|volatile| path.starts_with(volatile)) {
                continue;
            }
            let meta = path.symlink_metadata()?;
            if meta.is_dir() {
                folders.push(path);
            } else if meta.permissions().mode() & 0o600 == 0o600 {
                // Some cannot be read in this state of the kernel.
                if let Ok(value) = fs::read_to_string(&path) {
                    found.insert(path, value);
                }
            }
        }
    }
    Ok(found)
}

/// BPF programs in the kernel, by their numbers.
fn programs() -> Result<BTreeMap<u32, String>> {
    let mut found = BTreeMap::new();
    for program in loaded_programs() {
        match program {
            Ok(program) => {
                let name = program.name_as_str().unwrap_or("?").to_owned();
                found.insert(program.id(), name);
            }
            // It was freed in the meantime.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error).context("listing BPF programs"),
        }
    }
    Ok(found)
}

fn is_gone(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if io.and_then(io::Error::raw_os_error) == Some(Errno::ENOENT as i32) {
            return true;
        }
        cause = error.source();
    }
    false
}
