//! The machine as it was before the probe, to be put back and compared with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::log;
use crate::bed::command::{finish, run};
use crate::bed::wait::{Seen, until_for};

/// Network namespaces are taken apart by the kernel in its own time.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a probe could change for good.
#[derive(Debug)]
pub struct Before {
    state: State,
    /// The number of the kernel's last log line.
    logged: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    /// How often each module of the NFS server is used.
    modules: BTreeMap<String, u64>,
    /// eBPF programs, by the kernel's number.
    programs: BTreeMap<u32, String>,
    rules: String,
    /// What is pinned in the root of the BPF filesystem.
    pins: BTreeSet<String>,
}

/// Modules whose uses count locks, servers and namespaces. Of the others it counts whether
/// they are loaded.
const COUNTED: &[&str] = &["lockd", "nfsd", "grace", "nfs_acl"];

impl Before {
    pub fn look() -> Result<Before> {
        Ok(Before {
            state: State::look()?,
            logged: log::lines().last().map(|line| line.number),
        })
    }

    /// Unloads what was not loaded before, and tells what else is not as it was. lockd's
    /// settings are the place's to put back, see [`place`](crate::bed::place).
    pub fn restore(&self) -> Result<Vec<String>> {
        let mut changes = Vec::new();
        let waited = until_for(PATIENCE, "the machine as it was", || {
            self.unload();
            changes = self.state.changes(&State::look()?);
            Ok(match changes.is_empty() {
                true => Seen::Yes(()),
                false => Seen::No(changes.join("; ")),
            })
        });
        match waited {
            Err(error) if changes.is_empty() => Err(error),
            _ => {
                let complaints = log::complaints(log::lines(), self.logged);
                Ok(changes.into_iter().chain(complaints).collect())
            }
        }
    }

    /// Unloads what was not loaded. One that is still in use is tried again later.
    fn unload(&self) {
        let Ok(now) = modules() else { return };
        for module in now
            .keys()
            .filter(|name| !self.state.modules.contains_key(*name))
        {
            let _ = finish(Command::new("rmmod").arg(module), "");
        }
    }
}

impl State {
    fn look() -> Result<State> {
        let rules = [["rule", "show"].as_slice(), &["-6", "rule", "show"]]
            .iter()
            .map(|arguments| run(Command::new("ip").args(*arguments)))
            .collect::<Result<String>>()?;
        Ok(State {
            modules: modules()?,
            programs: programs(),
            rules,
            pins: pins(),
        })
    }

    /// What is not as it was, in words.
    fn changes(&self, now: &State) -> Vec<String> {
        let mut changes = Vec::new();
        for (module, uses) in &now.modules {
            match self.modules.get(module) {
                None => changes.push(format!("the module {module} stays, {uses} uses")),
                Some(before) if before != uses && COUNTED.contains(&module.as_str()) => {
                    changes.push(format!("the module {module} has {uses} uses, had {before}"));
                }
                Some(_) => {}
            }
        }
        for (id, name) in &now.programs {
            if !self.programs.contains_key(id) {
                changes.push(format!("the eBPF program {name} ({id}) stays"));
            }
        }
        for pin in now.pins.difference(&self.pins) {
            changes.push(format!("{pin} stays in the BPF filesystem"));
        }
        if self.rules != now.rules {
            changes.push(format!(
                "the routing rules were\n{}and are\n{}",
                self.rules, now.rules
            ));
        }
        changes
    }
}

/// Loaded modules, and how often each is used.
fn modules() -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string("/proc/modules").context("/proc/modules")?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (name, _size, uses) = (words.next()?, words.next()?, words.next()?);
            Some((name.to_owned(), uses.parse().ok()?))
        })
        .collect())
}

/// Every eBPF program in the kernel, by the kernel's number.
pub fn programs() -> BTreeMap<u32, String> {
    aya::programs::loaded_programs()
        .filter_map(|program| {
            let program = program.ok()?;
            let name = program.name_as_str().unwrap_or("?").to_owned();
            Some((program.id(), name))
        })
        .collect()
}

fn pins() -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir("/sys/fs/bpf") else {
        return BTreeSet::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            modules: BTreeMap::from([("lockd".into(), 2), ("bridge".into(), 0)]),
            programs: BTreeMap::from([(7, "theirs".into())]),
            rules: "0: from all lookup local\n".into(),
            pins: BTreeSet::new(),
        }
    }

    #[test]
    fn nothing_changed_is_nothing_to_tell() {
        let mut now = state();
        // In use by others than the NFS server.
        now.modules.insert("bridge".into(), 1);
        assert_eq!(state().changes(&now), Vec::<String>::new());
    }

    #[test]
    fn what_stays_is_named() {
        let mut now = state();
        now.modules.insert("lockd".into(), 3);
        now.modules.insert("nfsd".into(), 1);
        now.programs.insert(9, "gate".into());
        now.pins.insert("nlmfo".into());
        assert_eq!(
            state().changes(&now),
            [
                "the module lockd has 3 uses, had 2",
                "the module nfsd stays, 1 uses",
                "the eBPF program gate (9) stays",
                "nlmfo stays in the BPF filesystem",
            ]
        );
    }
}
