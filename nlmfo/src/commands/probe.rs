//! `nlmfo probe`: test what this kernel's lock manager does.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nlmfo_common::probe::Report;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::require_root;
use crate::cli::{ProbeArgs, ProbeFormat};
use crate::exit::{Exit, Failure};
use crate::failover::exclusive;
use crate::foreign::on_one_line;
use crate::kernel;
use crate::kernel::layout::LayoutError;
use crate::kernel::nfs4_clients::Clients;
use crate::observe::error::ObserveError;
use crate::observe::programs::Programs;
use crate::observe::snapshot::Snapshots;
use crate::probe::baseline::Baseline;
use crate::probe::report::{junit, tap, tap_head};
use crate::probe::run::{self, Missing, Plan};
use crate::probe::{self, Check};
use crate::{output, runtime};

/// Printed before the probe starts.
const WILL_DO: &str = "\
nlmfo probe tests this kernel's lock manager. On this machine it will
  - load the modules of the NFS server, and unload those that were not loaded
  - start an NFS server and raw NLM clients in network namespaces of its own, with this
    machine's nfs-utils
  - set nlm_timeout and nlm_grace_period of the whole machine, and restore them
  - release locks by unlock_ip for 10.77.0.1, 10.77.0.2, fd77::1 and fd77::2 in all
    network namespaces
and restore the machine at the end.";

pub fn run(args: &ProbeArgs) -> Result<Exit, Failure> {
    let checks = chosen(args)?;
    if args.list {
        output::list(|out| {
            (checks.iter()).try_for_each(|check| writeln!(out, "{}: {}", check.name, check.proves))
        })?;
        return Ok(Exit::Done);
    }
    require_root()?;
    let baseline = args.baseline.as_deref().map(Baseline::read).transpose()?;
    let alone = runtime::run(exclusive::alone()).context("starting the asynchronous runtime")?;
    let _alone = alone.map_err(|error| Failure::new(Exit::CouldNotRun, error))?;
    let clients = live_clients()?;
    if !clients.is_empty() && !args.with_live_clients {
        let clients: Vec<&str> = clients.iter().map(String::as_str).collect();
        return Err(anyhow!(
            "this machine is in use: {}; run the probe on a test machine only: it changes lockd's \
             settings, and a kernel bug may release these locks or crash the machine \
             (--with-live-clients runs it anyway)",
            clients.join(", ")
        )
        .into());
    }
    output::warn(WILL_DO);

    let interrupt = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGQUIT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupt))
            .context("a signal's handler")?;
    }
    let in_tap = args.format == ProbeFormat::Tap;
    if in_tap {
        print(&tap_head(checks.len()));
    }
    let plan = Plan {
        checks,
        timeout: args.timeout,
        interrupt,
    };
    let ran = run::run(plan, |number, check| match in_tap {
        true => print(&tap(number, check)),
        false => output::warn(tap(number, check).trim_end()),
    });
    let report = match ran {
        Ok(report) => report,
        Err(error) => {
            if in_tap {
                print(&format!(
                    "Bail out! {}\n",
                    on_one_line(&format!("{error:#}"))
                ));
            }
            return Err(failure(error));
        }
    };
    match args.format {
        ProbeFormat::Tap => {}
        ProbeFormat::Json => output::report_json(None, &report),
        ProbeFormat::Junit => {
            let xml = junit(&report).context("cannot write JUnit XML")?;
            print(&xml);
        }
    }
    Ok(verdict(&report, baseline.as_ref()))
}

/// A lack of this node has its own exit status.
fn failure(error: anyhow::Error) -> Failure {
    let is_unsupported = error.chain().any(|cause| {
        cause.is::<Missing>()
            || cause.is::<LayoutError>()
            || cause
                .downcast_ref()
                .is_some_and(ObserveError::is_unsupported)
    });
    let exit = match is_unsupported {
        true => Exit::Unsupported,
        false => Exit::CouldNotRun,
    };
    Failure::new(exit, error)
}

/// The checks that the arguments choose.
fn chosen(args: &ProbeArgs) -> Result<Vec<Check>, Failure> {
    let mut checks = probe::all();
    let names: Vec<String> = checks.iter().map(|check| check.name.clone()).collect();
    for text in args.only.iter().chain(&args.skip) {
        if !names.iter().any(|name| name.contains(text)) {
            let error = anyhow!("no check has {text:?} in its name; see `nlmfo probe --list`");
            return Err(Failure::new(Exit::Usage, error));
        }
    }
    let names =
        |texts: &[String], check: &Check| texts.iter().any(|text| check.name.contains(text));
    checks.retain(|check| {
        (args.only.is_empty() || names(&args.only, check)) && !names(&args.skip, check)
    });
    if checks.is_empty() {
        let error = anyhow!("--only and --skip leave no check to run");
        return Err(Failure::new(Exit::Usage, error));
    }
    Ok(checks)
}

fn print(text: &str) {
    output::report(None, |out| out.write_str(text));
}

/// The exit status, after a report of what became worse or better.
fn verdict(report: &Report, baseline: Option<&Baseline>) -> Exit {
    let Some(baseline) = baseline else {
        return match report.failed().next() {
            None => Exit::Done,
            Some(_) => Exit::NotConfirmed,
        };
    };
    let changes = baseline.changes(report);
    for change in &changes {
        output::note(change);
    }
    match changes.iter().any(|change| change.is_regression()) {
        true => Exit::NotConfirmed,
        false => Exit::Done,
    }
}

/// The users of this machine's NFS server: the peers of nfsd's TCP connections in this network
/// namespace, clients with NFSv4 state, and clients with a lock in any namespace. Also the addresses of
/// the probe that this machine has itself.
fn live_clients() -> Result<BTreeSet<String>, Failure> {
    let mut clients = BTreeSet::new();
    let peers = kernel::nfsd::peers().context("the TCP connections of nfsd")?;
    clients.extend(peers.into_iter().map(|peer| format!("a client at {peer}")));
    if let Ok(Some(nfs4)) = Clients::open() {
        let numbers = nfs4.numbers().unwrap_or_default().into_iter();
        clients.extend(numbers.map(|number| format!("NFSv4 client {number}")));
    }
    if kernel::lockd::is_loaded() {
        let layout = kernel::layout::load().map_err(ObserveError::from)?;
        let mut snapshots = Snapshots::attach(Programs::load(&layout)?)?;
        let table = snapshots.take(None, Duration::ZERO)?.table;
        for host in table.active_hosts() {
            clients.insert(format!("locks of {}", table.host(host).key));
        }
    }
    for vip in probe::addresses() {
        if kernel::netns::has_address(vip).context("cannot read this machine's addresses")? {
            clients.insert(format!("{vip} is an address of this machine"));
        }
    }
    Ok(clients)
}
