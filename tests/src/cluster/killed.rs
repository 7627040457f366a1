//! A command of the tool that is killed at a certain step.

use anyhow::{Context, Result};

use super::Node;
use super::agent::{AGENT, quoted};
use super::service::Service;
use crate::guest::wait::{Seen, until};

/// A step of a command, as a condition for the node's shell.
pub struct Step {
    /// In words, for errors.
    pub name: &'static str,
    condition: String,
}

impl Step {
    /// The gate is in the kernel, and the fence is being raised or just up.
    pub fn gate_loaded() -> Step {
        Step {
            name: "the gate is loaded",
            condition: "[ -e /sys/fs/bpf/nlmfo ]".into(),
        }
    }

    /// This holds on the node.
    pub fn when(name: &'static str, condition: String) -> Step {
        Step { name, condition }
    }

    /// The command handles SIGHUP, signal 1.
    pub fn begun() -> Step {
        Step {
            name: "it has begun",
            condition: "grep -qE '^Sig(Ign|Cgt):.*[13579bdf]$' /proc/$tool/status".into(),
        }
    }

    pub fn file_there(path: &str) -> Step {
        Step {
            name: "a file is there",
            condition: format!("[ -e {path} ]"),
        }
    }

    /// A server of its own is being stopped or started.
    pub fn own_changes(server: &str) -> Step {
        Step {
            name: "the server is being stopped or started",
            condition: format!("{} && [ \"{}\" = '' ]", there(server), phase(server)),
        }
    }

    /// Nothing of a server of its own is there.
    pub fn own_gone(server: &str) -> Step {
        Step {
            name: "the server is stopped",
            condition: format!("! {}", there(server)),
        }
    }

    /// Clients of a server of its own may reclaim.
    pub fn own_reclaims(server: &str) -> Step {
        Step {
            name: "clients reclaim",
            condition: format!("[ \"{}\" = reclaiming ]", phase(server)),
        }
    }

    /// The kernel holds no lock on the service's filesystem.
    pub fn locks_gone(service: &Service) -> Step {
        Step {
            name: "the locks are gone",
            condition: format!("! {}", holds(service)),
        }
    }

    /// The kernel holds a lock on the service's filesystem.
    pub fn locks_there(service: &Service) -> Step {
        Step {
            name: "locks are there",
            condition: holds(service),
        }
    }

    pub fn grace_open() -> Step {
        Step {
            name: "grace is open",
            condition: "/nlmfo grace --list --json | grep -q '\"open\":true'".into(),
        }
    }

    /// The same of another node than the command's.
    pub fn on(self, node: &Node) -> Step {
        Step {
            condition: format!("{AGENT} rsh {} {}", node.address, quoted(&self.condition)),
            ..self
        }
    }
}

fn there(server: &str) -> String {
    format!("[ -e /run/nlmfo/servers/{server} ]")
}

fn phase(server: &str) -> String {
    format!("$(/nlmfo server exec {server} cat /run/nlmfo-server/phase 2>/dev/null)")
}

fn holds(service: &Service) -> String {
    let folder = service.folder().display();
    // stat knows decimal numbers only, /proc/locks is in hexadecimal.
    format!("grep -q \" $(printf %02x:%02x $(stat -c '%Hd %Ld' {folder})):\" /proc/locks")
}

impl Node {
    /// Runs the tool until the step and kills it there (SIGKILL); it must not have ended by
    /// itself.
    pub fn kill_at(&self, step: &Step, arguments: &[String]) -> Result<()> {
        self.signal_at(step, arguments, ("KILL", 137)).map(drop)
    }

    /// Runs the tool until the step, and kills the tool on the other node there (SIGKILL), where
    /// this one has started it. Returns the exit status of this one, and what it printed.
    pub fn other_killed_at(
        &self,
        other: &Node,
        step: &Step,
        arguments: &[String],
    ) -> Result<(i32, String)> {
        let kill = format!("{AGENT} rsh {} 'kill -KILL $(pidof nlmfo)'", other.address);
        let said = self.run_until(step, arguments, &kill)?;
        let (code, printed) = said.split_once('\n').context("no exit status")?;
        Ok((code.parse()?, printed.to_owned()))
    }

    /// Runs the tool, sends it this signal at the step, and checks the exit status with which it
    /// ends. Returns what it printed.
    pub fn signal_at(
        &self,
        step: &Step,
        arguments: &[String],
        (signal, code): (&str, u8),
    ) -> Result<String> {
        let said = self.run_until(step, arguments, &format!("kill -{signal} $tool"))?;
        let printed = said.strip_prefix(&format!("{code}\n")).with_context(|| {
            let (command, step) = (arguments.join(" "), step.name);
            format!("nlmfo {command} was to end with {code}, by SIG{signal} when {step}: {said}")
        })?;
        Ok(printed.to_owned())
    }

    /// Runs the tool, does this at the step, and waits for the tool's end. Returns its exit status,
    /// and below it what it printed.
    fn run_until(&self, step: &Step, arguments: &[String], act: &str) -> Result<String> {
        let script = format!(
            "{tool} {arguments} >/tmp/killed.out 2>&1 & tool=$!\n\
             until {condition}; do [ -e /proc/$tool/exe ] || break; done\n\
             {act} || true; wait $tool && code=0 || code=$?\n\
             echo $code; cat /tmp/killed.out",
            tool = self.tool.display(),
            arguments = arguments
                .iter()
                .map(|word| quoted(word))
                .collect::<Vec<_>>()
                .join(" "),
            condition = step.condition,
        );
        self.shell(&script).with_context(|| step.name)
    }

    /// Waits until the tool has nothing left in this kernel.
    pub fn wait_gate_gone(&self) -> Result<()> {
        until(&format!("the gate to be gone from {}", self.name()), || {
            let left = self.shell("find /sys/fs/bpf -mindepth 1")?;
            Ok(match left.is_empty() {
                true => Seen::Yes(()),
                false => Seen::No(left),
            })
        })
    }
}
