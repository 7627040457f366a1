//! A command of the tool that is killed at a certain step.

use anyhow::{Context, Result, ensure};

use super::Node;
use super::agent::{AGENT, quoted};
use super::service::Service;
use crate::guest::wait::{Seen, until};

/// A moment in a command's life, as a condition of the node's shell.
pub struct Step {
    /// In words, for errors.
    pub name: &'static str,
    condition: String,
}

impl Step {
    /// The gate is in the kernel, the fence about to rise or just up.
    pub fn gate_loaded() -> Step {
        Step {
            name: "the gate is loaded",
            condition: "[ -e /sys/fs/bpf/nlmfo ]".into(),
        }
    }

    pub fn file_there(path: &str) -> Step {
        Step {
            name: "a file is there",
            condition: format!("[ -e {path} ]"),
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

fn holds(service: &Service) -> String {
    let folder = service.folder().display();
    // stat knows decimal numbers only, /proc/locks is in hexadecimal.
    format!("grep -q \" $(printf %02x:%02x $(stat -c '%Hd %Ld' {folder})):\" /proc/locks")
}

impl Node {
    /// Runs the tool until the step and kills it there (SIGKILL); it must not have ended by
    /// itself.
    pub fn kill_at(&self, step: &Step, arguments: &[String]) -> Result<()> {
        let script = format!(
            "{tool} {arguments} >/tmp/killed.out 2>&1 & tool=$!\n\
             until {condition}; do [ -e /proc/$tool/exe ] || break; done\n\
             kill -9 $tool || true; wait $tool && code=0 || code=$?\n\
             echo $code; cat /tmp/killed.out",
            tool = self.tool.display(),
            arguments = arguments
                .iter()
                .map(|word| quoted(word))
                .collect::<Vec<_>>()
                .join(" "),
            condition = step.condition,
        );
        let said = self.shell(&script).with_context(|| step.name)?;
        ensure!(
            said.starts_with("137\n"),
            "nlmfo {} was to be killed when {}; it ended before: {said}",
            arguments.join(" "),
            step.name
        );
        Ok(())
    }

    /// Waits until nothing of the tool's is in this kernel any more.
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
