//! A command of the tool that is killed at a certain step.

use anyhow::{Context, Result, ensure};

use super::Node;
use super::service::Service;

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
        let folder = service.folder().display();
        Step {
            name: "the locks are gone",
            // stat knows decimal numbers only, /proc/locks is in hexadecimal.
            condition: format!(
                "! grep -q \" $(printf %02x:%02x $(stat -c '%Hd %Ld' {folder})):\" /proc/locks"
            ),
        }
    }

    pub fn grace_open() -> Step {
        Step {
            name: "grace is open",
            condition: "/nlmfo grace --list --json | grep -q '\"open\":true'".into(),
        }
    }
}

impl Node {
    /// Runs the tool until the step and kills it there (SIGKILL); it must not have ended by
    /// itself.
    pub fn kill_at(&self, step: &Step, arguments: &[String]) -> Result<()> {
        let script = format!(
            "{tool} {arguments} >/tmp/killed.out 2>&1 & tool=$!\n\
             until {condition}; do [ -e /proc/$tool/exe ] || break; done\n\
             kill -9 $tool; wait $tool && code=0 || code=$?\n\
             echo $code; cat /tmp/killed.out",
            tool = self.tool.display(),
            arguments = arguments.join(" "),
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
}
