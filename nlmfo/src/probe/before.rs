//! The state of the machine before the probe, to restore it and to compare.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use procfs::KernelModule;

use super::log;
use crate::kernel::modules;
use crate::observe::programs;
use crate::testbed::command::{finish, run, tool};
use crate::testbed::server::{NLM_GRACE_PERIOD, NLM_TIMEOUT};

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The kernel removes network namespaces asynchronously.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a probe could change permanently.
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
    /// lockd's settings; none while it is not loaded.
    settings: BTreeMap<&'static str, String>,
}

/// Modules whose uses count locks, servers and namespaces.
const COUNTED: &[&str] = &["lockd", "nfsd", "grace", "nfs_acl"];

/// Modules that a probe loads and can unload again: the kernel counts their uses, so that none is
/// unloaded that another program has begun to use. Modules of network devices do not count their
/// devices, and stay loaded.
const LOADED: &[&str] = &[
    "auth_rpcgss",
    "cls_bpf",
    "dns_resolver",
    "grace",
    "lockd",
    "netfs",
    "fscache",
    "nfs",
    "nfs_acl",
    "nfsd",
    "nfsv3",
    "nfsv4",
    "rpcsec_gss_krb5",
    "sch_ingress",
    "sunrpc",
];

impl Before {
    pub fn look() -> Result<Before> {
        Ok(Before {
            state: State::look()?,
            logged: log::last(),
        })
    }

    /// Unloads what was not loaded before, and returns what else has changed.
    /// [`testbed::node`](crate::testbed::node) restores lockd's settings.
    pub fn restore(&self) -> Vec<String> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            self.unload();
            let mut changes = match State::look() {
                Ok(now) => self.state.changes(&now),
                Err(error) => vec![format!("{error:#}")],
            };
            if changes.is_empty() || Instant::now() >= deadline {
                changes.extend(log::complaints(log::lines(), self.logged, log::FAULTS));
                return changes;
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Unloads what was not loaded. One that is still in use is tried again later.
    fn unload(&self) {
        let Ok(now) = used_modules() else { return };
        let is_new = |name: &&str| !self.state.modules.contains_key(*name);
        let loaded = LOADED.iter().filter(|name| now.contains_key(**name));
        for module in loaded.filter(|name| is_new(name)) {
            let _ = finish(tool("rmmod").arg(module), "");
        }
    }
}

impl State {
    fn look() -> Result<State> {
        let rules = [["rule", "show"].as_slice(), &["-6", "rule", "show"]]
            .iter()
            .map(|arguments| run(tool("ip").args(*arguments)))
            .collect::<Result<String>>()?;
        Ok(State {
            modules: used_modules()?,
            programs: programs::loaded(),
            rules,
            settings: [NLM_TIMEOUT, NLM_GRACE_PERIOD]
                .into_iter()
                .filter_map(|file| Some((file, fs::read_to_string(file).ok()?.trim().to_owned())))
                .collect(),
        })
    }

    /// The differences, as text.
    fn changes(&self, now: &State) -> Vec<String> {
        let mut changes = Vec::new();
        for (module, uses) in &now.modules {
            match self.modules.get(module) {
                None if !LOADED.contains(&module.as_str()) => {}
                None => changes.push(format!("the module {module} is still loaded, {uses} uses")),
                Some(before) if before != uses && COUNTED.contains(&module.as_str()) => {
                    changes.push(format!("the module {module} has {uses} uses, had {before}"));
                }
                Some(_) => {}
            }
        }
        for (id, name) in &now.programs {
            if !self.programs.contains_key(id) {
                changes.push(format!("the eBPF program {name} ({id}) is still loaded"));
            }
        }
        for (file, value) in &self.settings {
            if now.settings.get(file).is_some_and(|now| now != value) {
                changes.push(format!("{file} was {value}"));
            }
        }
        if self.rules != now.rules {
            changes.push(format!(
                "the routing rules were\n{}and are now\n{}",
                self.rules, now.rules
            ));
        }
        changes
    }
}

/// Loaded modules, and how often each is used.
fn used_modules() -> Result<BTreeMap<String, u64>> {
    let uses = |module: KernelModule| u64::try_from(module.refcount).unwrap_or(0);
    let modules = modules::loaded().context("the loaded modules")?.into_iter();
    Ok(modules.map(|(name, module)| (name, uses(module))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            modules: BTreeMap::from([("lockd".into(), 2), ("bridge".into(), 0)]),
            programs: BTreeMap::from([(7, "theirs".into())]),
            rules: "0: from all lookup local\n".into(),
            settings: BTreeMap::from([(NLM_TIMEOUT, "10".into())]),
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
        now.modules.insert("veth".into(), 0);
        now.settings.insert(NLM_TIMEOUT, "3".into());
        assert_eq!(
            state().changes(&now),
            [
                "the module lockd has 3 uses, had 2",
                "the module nfsd is still loaded, 1 uses",
                "the eBPF program gate (9) is still loaded",
                "/proc/sys/fs/nfs/nlm_timeout was 10",
            ]
        );
    }
}
