//! A systemd that runs the units of the machine's packages, in a PID namespace of its own: the machine's
//! first process is the lab's.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result};

use super::command::{finish, run, silent, tool};
use super::sweep::remove_cgroups;
use super::wait::{Seen, until};

const MACHINE_ID: &str = "/etc/machine-id";

/// A running systemd. Its end ends all that it has started, as SIGKILL does.
pub struct Systemd {
    /// `unshare`, which dies together with its child.
    holder: Child,
    /// systemd's process.
    pid: String,
}

impl Systemd {
    /// Starts it, up to its basic target.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start() -> Result<Systemd> {
        // Without one, this would be the first boot, which asks on the console.
        fs::write(MACHINE_ID, "00000000000000000000000000006c6d\n").context(MACHINE_ID)?;
        let mut unshare = silent(tool("unshare"));
        unshare.args([
            "--pid",
            "--fork",
            "--kill-child",
            "--mount",
            "--mount-proc",
            "--cgroup",
        ]);
        unshare.args(["env", "container=lab", "/usr/lib/systemd/systemd"]);
        unshare.args(["--system", "--unit=basic.target"]);
        let holder = unshare.spawn().context("cannot start systemd")?;
        let id = holder.id();
        let mut systemd = Systemd {
            holder,
            pid: String::new(),
        };
        systemd.pid = until("systemd's process", || {
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
            Ok(match children.split_whitespace().next() {
                Some(child) => Seen::Yes(child.to_owned()),
                None => Seen::No("unshare has no child".into()),
            })
        })?;
        until("systemd to be up", || {
            let asked = finish(
                &mut systemd.command("systemctl", &["is-system-running"]),
                "",
            )?;
            Ok(match asked.stdout.trim() {
                // The lab lacks what some units of the machine's packages want.
                "running" | "degraded" => Seen::Yes(()),
                state => Seen::No(format!("{state} {}", asked.stderr)),
            })
        })?;
        Ok(systemd)
    }

    /// A command that runs among its processes.
    pub fn command(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Command {
        let mut command = tool("nsenter");
        command.args(["--target", &self.pid, "--pid", "--mount", "--cgroup"]);
        command.arg(program.as_ref()).args(arguments);
        command
    }

    /// What `systemctl` prints.
    ///
    /// # Errors
    /// If it fails.
    pub fn systemctl(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.command("systemctl", arguments))
    }

    /// Waits until the unit is in this state.
    ///
    /// # Errors
    /// If it is not within the deadline.
    pub fn wait_for(&self, unit: &str, state: &str) -> Result<()> {
        until(&format!("{unit} to be {state}"), || {
            let now = self.systemctl(&["show", "--property=ActiveState", "--value", unit])?;
            Ok(match now.trim() == state {
                true => Seen::Yes(()),
                false => Seen::No(now),
            })
        })
    }

    /// The journal of a unit, for a person who reads what went wrong.
    pub fn journal(&self, unit: &str) -> String {
        let mut journal = self.command("journalctl", &["--no-pager", "--unit", unit]);
        match journal.output() {
            Ok(read) => String::from_utf8_lossy(&read.stdout).into_owned(),
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        // Programs that systemd attached to control groups would stay.
        let _ = remove_cgroups();
    }
}
