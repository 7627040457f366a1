//! The scenarios: one file per capability, one function per claim.

mod bad_days;
mod clients;
mod counters;
mod counters_released;
mod ctdb;
mod driven;
mod free_all;
mod gate;
mod gate_life;
mod given_up;
mod grace;
mod grace_end;
mod guard;
mod guard_cookies;
mod half_done;
mod keepalived;
mod last_resorts;
mod locks;
mod metrics;
mod names;
mod nfs4;
mod nfs4_migration;
mod nfs4_waiters;
mod notify;
mod ocf;
mod output;
pub(crate) mod own_server;
mod own_server_run;
mod pacemaker;
mod package;
mod parallel;
mod probe;
mod ready;
mod release;
mod release_contended;
mod restart;
mod restart_reboot;
mod restart_systemd;
mod revoked;
mod stepped;
mod takeover;
mod targeted;
mod targeted_odd;
mod targeted_raw;
mod thousand;
mod topology;
mod two_nodes;
mod watch;
mod watch_unload;
mod whole_server;

use std::path::PathBuf;

use anyhow::{Result, bail};

/// What a scenario may ask about where it runs.
pub struct Context {
    /// The tool under test, inside the virtual machine.
    pub nlmfo: PathBuf,
    /// `uname -r`.
    pub kernel: String,
    /// Run the long form of a scenario that has one (`cargo xtask test --full`).
    pub full: bool,
}

/// How a scenario that did not fail ended.
pub enum End {
    Pass,
    /// Why this kernel or userland cannot show it.
    Unsupported(String),
}

/// A claim about the tool or the lab, shown in a virtual machine.
///
/// Scenarios share a machine: one runs after the other, and between them the machine is
/// made as it was after its boot (`guest::sweep`). A scenario that leaves something of
/// nlmfo's behind which `nlmfo cleanup` does not remove fails.
#[derive(Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    /// One sentence: what holds if it passes.
    pub claim: &'static str,
    /// Returns an error if the claim does not hold: what was expected, and
    /// what was seen.
    pub run: fn(&Context) -> Result<End>,
    pub kernels: Kernels,
    pub machine: Machine,
    /// What its machine, or its cluster, has or does besides what every one does. Such a machine
    /// is its own.
    pub extra: Option<Extra>,
    /// What its machine, or the servers of its cluster, have installed. A single machine that has
    /// one is its own.
    pub manager: Option<Manager>,
    /// It runs with `--full`, or if it is named. Says why.
    pub only_full: Option<&'static str>,
}

/// What few scenarios need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// dpkg, and a deb of this nlmfo as `/nlmfo.deb`.
    Deb,
    /// `/prometheus`, and our rules as `/nlmfo.rules.yml`.
    Prometheus,
    /// A server of the cluster that reboots starts again, with the disks as they are.
    Reboots,
}

/// A manager of clusters or services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    Pacemaker,
    Keepalived,
    Ctdb,
    Systemd,
}

/// The kernels that a scenario runs on; with `--full` it runs on all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    All,
    /// On the first kernel only. Says why another kernel would show nothing new, or which
    /// scenario shows it there.
    One(&'static str),
}

/// The machine that a scenario runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    Shared,
    /// One that no other scenario uses. Says why.
    Own(&'static str),
}

impl Scenario {
    /// For the fields that a scenario does not set.
    pub const DEFAULT: Scenario = Scenario {
        name: "",
        claim: "",
        run: |_| bail!("a scenario without a function"),
        kernels: Kernels::All,
        machine: Machine::Shared,
        extra: None,
        manager: None,
        only_full: None,
    };
}

/// Every scenario, in the order in which they are listed and run.
pub fn all() -> Vec<Scenario> {
    [on_one_machine(), on_a_cluster()].concat()
}

/// Those that run on the driver of a cluster of two servers (`cluster::Cluster`).
pub fn on_a_cluster() -> Vec<Scenario> {
    [
        two_nodes::SCENARIOS,
        driven::SCENARIOS,
        pacemaker::SCENARIOS,
        pacemaker::MEASURED,
        keepalived::SCENARIOS,
        ctdb::SCENARIOS,
        own_server::ON_A_CLUSTER,
        whole_server::ON_A_CLUSTER,
        restart_reboot::ON_A_CLUSTER,
    ]
    .concat()
}

/// Those that run on one machine.
pub fn on_one_machine() -> Vec<Scenario> {
    [
        topology::SCENARIOS,
        locks::SCENARIOS,
        free_all::SCENARIOS,
        grace::SCENARIOS,
        grace_end::SCENARIOS,
        half_done::SCENARIOS,
        stepped::SCENARIOS,
        takeover::SCENARIOS,
        parallel::SCENARIOS,
        thousand::SCENARIOS,
        notify::SCENARIOS,
        probe::SCENARIOS,
        names::SCENARIOS,
        nfs4::SCENARIOS,
        nfs4_migration::SCENARIOS,
        own_server::SCENARIOS,
        own_server_run::SCENARIOS,
        ocf::SCENARIOS,
        gate::SCENARIOS,
        gate_life::SCENARIOS,
        given_up::SCENARIOS,
        guard::SCENARIOS,
        guard_cookies::SCENARIOS,
        release::SCENARIOS,
        release_contended::SCENARIOS,
        targeted::SCENARIOS,
        targeted_odd::SCENARIOS,
        targeted_raw::SCENARIOS,
        restart::SCENARIOS,
        restart_systemd::SCENARIOS,
        last_resorts::SCENARIOS,
        bad_days::SCENARIOS,
        output::SCENARIOS,
        ready::SCENARIOS,
        revoked::SCENARIOS,
        clients::SCENARIOS,
        counters::SCENARIOS,
        counters_released::SCENARIOS,
        metrics::SCENARIOS,
        package::SCENARIOS,
        watch::SCENARIOS,
        watch_unload::SCENARIOS,
    ]
    .concat()
}
