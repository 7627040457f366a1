//! A place to run commands in: the virtual machine's root namespaces, a network +
//! mount + UTS namespace of its own, or another machine of the cluster.
//!
//! A namespace needs its own `/run` and `/var/lib/nfs`: rpcbind's socket,
//! statd's records and exportfs's tables would be shared otherwise. It is kept
//! alive by a holder process, and ends with the [`Place`].

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::sethostname;

use super::command::{run, run_with_input};

/// This program, on every machine of a cluster.
pub const AGENT: &str = "/lab-guest";

/// The line that a holder prints once its namespace can be used.
const READY: &str = "ready";

/// Where commands run. Dropping a place that is not the root ends its
/// namespaces, and with them their interfaces and mounts.
pub struct Place {
    name: String,
    kind: Kind,
}

enum Kind {
    Root,
    Namespaces(Holder),
    /// Where its agent listens.
    Machine(IpAddr),
}

struct Holder {
    child: Child,
    /// The holder lives until this closes, so it never outlives us.
    _stdin: ChildStdin,
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Place {
    /// The virtual machine's own namespaces.
    pub fn root() -> Place {
        Place {
            name: "root".into(),
            kind: Kind::Root,
        }
    }

    /// Another machine of the cluster, whose agent listens on this address.
    pub fn machine(name: &str, address: IpAddr) -> Place {
        Place {
            name: name.into(),
            kind: Kind::Machine(address),
        }
    }

    /// New namespaces with `name` as host name, loopback up and nothing else.
    pub fn create(name: &str) -> Result<Place> {
        let mut child = Command::new(env::current_exe()?)
            .args(["hold", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("holder of namespace {name}"))?;
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let holder = Holder {
            child,
            _stdin: stdin,
        };
        if line.trim() != READY {
            bail!("namespace {name} was not made; its holder's errors are above");
        }
        let place = Place {
            name: name.into(),
            kind: Kind::Namespaces(holder),
        };
        run(place.command("ip").args(["link", "set", "lo", "up"]))?;
        Ok(place)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process whose namespaces these are, where it is one of this machine's.
    pub fn pid(&self) -> u32 {
        match &self.kind {
            Kind::Namespaces(holder) => holder.child.id(),
            Kind::Root | Kind::Machine(_) => 1,
        }
    }

    /// A command that will run here.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        match &self.kind {
            Kind::Root => Command::new(program.as_ref()),
            Kind::Machine(address) => {
                let mut command = Command::new(AGENT);
                command
                    .args(["rsh", "--exact", &address.to_string()])
                    .arg(program.as_ref());
                command
            }
            Kind::Namespaces(holder) => {
                let mut command = Command::new("nsenter");
                command
                    .args(["-t", &holder.child.id().to_string(), "-n", "-m", "-u", "--"])
                    .arg(program.as_ref());
                command
            }
        }
    }

    /// How `path` of this place is reached from the root mount namespace; of another
    /// machine, the path that it has there.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        match &self.kind {
            Kind::Root | Kind::Machine(_) => path.into(),
            Kind::Namespaces(holder) => Path::new("/proc")
                .join(holder.child.id().to_string())
                .join("root")
                .join(path.strip_prefix("/").unwrap_or(path)),
        }
    }

    /// Makes a directory here, with those above it.
    pub fn create_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        if let Kind::Machine(_) = self.kind {
            run(self.command("mkdir").arg("-p").arg(path.as_ref()))?;
            return Ok(());
        }
        let path = self.path(path);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())
    }

    /// Writes to a file of the kernel's, which may act on the network namespace
    /// of whoever writes.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        if let Kind::Machine(_) = self.kind {
            run_with_input(self.command("tee").arg(path), text)?;
            return Ok(());
        }
        let path = self.path(path);
        self.within(|| {
            fs::write(&path, text).with_context(|| format!("{text:?} to {}", path.display()))
        })
    }

    /// Reads a file of the kernel's, of this network namespace.
    pub fn read(&self, path: &str) -> Result<String> {
        if let Kind::Machine(_) = self.kind {
            return run(self.command("cat").arg(path));
        }
        let path = self.path(path);
        self.within(|| fs::read_to_string(&path).with_context(|| path.display().to_string()))
    }

    /// Writes a program that runs here.
    pub fn write_program(&self, path: &str, text: &str) -> Result<()> {
        self.write(path, text)?;
        run(self.command("chmod").args(["755", path]))?;
        Ok(())
    }

    /// Runs several `ip` commands, one a line, in one process.
    pub fn ip(&self, batch: &str) -> Result<()> {
        run_with_input(self.command("ip").args(["-batch", "-"]), batch)
            .with_context(|| format!("in {}: {batch}", self.name))?;
        Ok(())
    }

    /// Runs `work` on a thread in this place's network namespace. Sockets made
    /// there stay there, whoever uses them later. Of another machine there is none.
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

/// The holder process: makes the namespaces, says so, and waits until its
/// standard input ends.
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
    println!("{READY}");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
