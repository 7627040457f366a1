//! `nlmfo grace`: grace periods for single VIPs.

use std::fmt::{self, Write};
use std::net::IpAddr;

use anyhow::Context;
use serde::Serialize;

use super::require_root;
use crate::causes::chain;
use crate::cli::GraceArgs;
use crate::exit::{Exit, Failure};
use crate::failover::interrupted::or_interrupt;
use crate::failover::watch::observe;
use crate::failover::window;
use crate::grace::devices::Coverage;
use crate::grace::gate::Gate;
use crate::grace::leftovers::{Ended, LastReport};
use crate::grace::method::Plan;
use crate::grace::report::WindowReport;
use crate::grace::standing::{self, Standing};
use crate::grace::{keeper, leftovers, scope};
use crate::kernel::grace::SeenGrace;
use crate::kernel::path::PathFinder;
use crate::server::description::NODE;
use crate::{interrupt, output, runtime, server};

/// Maximum number of directory entries to read to find the file of a violation.
const SEARCH_LIMIT: usize = 50_000;

/// The JSON of `nlmfo grace`, for all its actions.
#[derive(Debug, Serialize)]
struct Listing {
    schema: &'static str,
    windows: Vec<WindowReport>,
    /// Reports of ended windows whose gate is gone; only without a gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<LastReport>,
    /// The VIPs whose lock traffic is dropped; only for `--list`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fences: Vec<Fence>,
    /// Of the node's own server; null if that was not asked for.
    kernel_grace: Option<SeenGrace>,
    /// Servers in namespaces of their own, which have the kernel's grace only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    servers: Vec<ServerGrace>,
    /// Only if a window was opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    devices: Option<Coverage>,
    /// Waiters of the VIPs that were cancelled; only if a window was opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiters_cancelled: Option<usize>,
    /// Waiters that could not be cancelled, as text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    still_waiting: Vec<String>,
}

/// The grace of a server in namespaces of its own.
#[derive(Debug, Serialize)]
struct ServerGrace {
    server: String,
    /// Null if it cannot be read.
    kernel_grace: Option<SeenGrace>,
    error: Option<String>,
}

/// A fence as JSON has it.
#[derive(Debug, Serialize)]
struct Fence {
    vip: IpAddr,
    /// Milliseconds until it ends, at most.
    left_ms: u64,
}

pub fn run(args: &GraceArgs) -> Result<Exit, Failure> {
    require_root()?;
    let work = async {
        match args.duration {
            Some(lasting) => {
                let plan = Plan {
                    vips: args.vip.clone(),
                    lasting,
                    scope: scope::of_folders(&args.filesystem)?,
                    lockd_later: false,
                };
                or_interrupt(open(args, &plan), &args.vip, "grace may not be in force").await
            }
            None if args.end => or_interrupt(end(args), &args.vip, "run the command again").await,
            None => list(args).await,
        }
    };
    runtime::run(work).context("starting the asynchronous runtime")?
}

/// The hidden command of the keeper process.
pub fn keep() -> Result<Exit, Failure> {
    // It outlives the session that opened the window. An error means that this process leads a
    // session already.
    let _ = rustix::process::setsid();
    runtime::run(keeper::keep()).context("starting the asynchronous runtime")??;
    Ok(Exit::Done)
}

async fn open(args: &GraceArgs, plan: &Plan) -> Result<Exit, Failure> {
    let (facts, mut watch) = observe()?;
    let opened = window::open(plan, &facts, &mut watch).await?;
    // Its probes are no longer needed.
    drop(watch);
    let Some(coverage) = opened.coverage else {
        return by_rfc_file(args);
    };
    let mut listing = listing(&args.vip, Some(coverage))?;
    listing.ended = None;
    listing.waiters_cancelled = Some(opened.cancelled);
    listing.still_waiting = opened.waiting;
    let failed = |coverage: &Coverage| coverage.uncovered.iter().any(|one| one.failed);
    let doubtful =
        listing.devices.as_ref().is_some_and(failed) || !listing.still_waiting.is_empty();
    let exit = match doubtful {
        true => Exit::NotConfirmed,
        false => verdict(&listing),
    };
    interrupt::work_is_done(exit as u8);
    match args.json {
        true => output::report_json(None, &listing),
        false => output::report(None, |out| print_opened(out, plan, &listing)),
    }
    Ok(exit)
}

fn print_opened(out: &mut impl Write, plan: &Plan, listing: &Listing) -> fmt::Result {
    for window in &listing.windows {
        writeln!(
            out,
            "{}: in grace for {} s: new locks are refused, reclaims are granted; other addresses are \
             not affected",
            window.vip,
            plan.lasting.as_secs_f64()
        )?;
    }
    if !plan.scope.is_empty() {
        writeln!(
            out,
            "new locks on the filesystem are refused through all addresses"
        )?;
    }
    if let Some(cancelled @ 1..) = listing.waiters_cancelled {
        writeln!(
            out,
            "{cancelled} waiters were cancelled before grace; their clients retry"
        )?;
    }
    for waiting in &listing.still_waiting {
        writeln!(out, "{waiting}: it may be granted during grace")?;
    }
    let coverage = listing.devices.iter();
    for uncovered in coverage.flat_map(|coverage| &coverage.uncovered) {
        writeln!(
            out,
            "not covered by grace: packets that arrive on {}: {}",
            uncovered.device.name, uncovered.reason
        )?;
    }
    print_kernels(out, listing)
}

fn print_kernels(out: &mut impl Write, listing: &Listing) -> fmt::Result {
    (listing.kernel_grace.iter()).try_for_each(|grace| writeln!(out, "{grace}"))
}

/// Only the kernel knows how long such a grace lasts, and which locks it refuses.
fn by_rfc_file(args: &GraceArgs) -> Result<Exit, Failure> {
    interrupt::work_is_done(Exit::Done as u8);
    if args.json {
        output::report_json(None, &Listing::of(Vec::new()));
    } else {
        output::report(None, |out| {
            args.vip.iter().try_for_each(|vip| {
                writeln!(
                    out,
                    "{vip}: in grace, by the kernel, for its own grace time"
                )
            })
        });
    }
    Ok(Exit::Done)
}

async fn end(args: &GraceArgs) -> Result<Exit, Failure> {
    let Ended {
        mut windows,
        not_open,
    } = leftovers::end(&args.vip, 0, &mut paths()?).await?;
    windows.retain(|window| !not_open.contains(&window.vip));
    leftovers::finish_if_over().await?;
    let has_report = |vip: &&IpAddr| windows.iter().any(|window| window.vip == **vip);
    let ended = args.vip.iter().filter(|vip| !not_open.contains(vip));
    let unknown: Vec<IpAddr> = ended.filter(|vip| !has_report(vip)).copied().collect();
    let listing = Listing::of(windows);
    let exit = match unknown.is_empty() {
        true => verdict(&listing),
        false => Exit::NotConfirmed,
    };
    interrupt::work_is_done(exit as u8);
    match args.json {
        true => output::report_json(None, &listing),
        false => output::report(None, |out| {
            for vip in &not_open {
                writeln!(out, "{vip}: not in grace")?;
            }
            for vip in &unknown {
                writeln!(
                    out,
                    "{vip}: grace has ended\n  ✗ NOT CONFIRMED: the gate and its counts were removed meanwhile"
                )?;
            }
            (listing.windows.iter()).try_for_each(|window| write!(out, "{window}"))
        }),
    }
    Ok(exit)
}

/// The grace of each server in namespaces of its own, or of the one that was asked for.
fn servers(args: &GraceArgs) -> Vec<ServerGrace> {
    let names = match args.filter.server.as_deref() {
        Some(NODE) => Vec::new(),
        Some(name) => vec![name.to_owned()],
        None => server::running(),
    };
    let read = |server: String| match server::within(&server, SeenGrace::now) {
        Ok(grace) => ServerGrace {
            server,
            kernel_grace: Some(grace),
            error: None,
        },
        Err(error) => ServerGrace {
            server,
            kernel_grace: None,
            error: Some(chain(&error)),
        },
    };
    names.into_iter().map(read).collect()
}

fn print_servers(out: &mut impl Write, servers: &[ServerGrace]) -> fmt::Result {
    servers
        .iter()
        .try_for_each(|one| match (&one.kernel_grace, &one.error) {
            (Some(grace), _) => writeln!(out, "server {}: {grace}", one.server),
            (None, error) => {
                let error = error.as_deref().unwrap_or_default();
                writeln!(out, "server {}: unknown: {error}", one.server)
            }
        })
}

fn list_server(args: &GraceArgs) -> Result<Exit, Failure> {
    let listing = Listing {
        servers: servers(args),
        kernel_grace: None,
        ..Listing::of(Vec::new())
    };
    match args.json {
        true => output::list_json(&listing).map(|_| ())?,
        false => output::list(|out| print_servers(out, &listing.servers))?,
    }
    Ok(verdict(&listing))
}

async fn list(args: &GraceArgs) -> Result<Exit, Failure> {
    let server = args.filter.server.as_deref();
    if server.is_some_and(|name| name != NODE) {
        return list_server(args);
    }
    leftovers::finish_if_over().await?;
    let mut listing = listing(&args.vip, None)?;
    listing.servers = servers(args);
    let mut fenced = standing::of(&args.vip).map_err(anyhow::Error::from)?;
    fenced.retain(|one| one.fence.is_some());
    listing.fences = fenced.iter().filter_map(Fence::of).collect();
    if listing.windows.iter().any(|window| window.open) || !fenced.is_empty() {
        // The previous keeper may have been killed.
        keeper::spawn()?;
    }
    if args.json {
        output::list_json(&listing)?;
    } else {
        output::list(|out| {
            for window in &listing.windows {
                write!(out, "{window}")?;
            }
            if let Some(ended) = &listing.ended {
                out.write_str(&ended.text)?;
            }
            for fenced in &fenced {
                writeln!(
                    out,
                    "{}",
                    Standing {
                        grace: None,
                        ..*fenced
                    }
                )?;
            }
            if !listing.windows.iter().any(|window| window.open) {
                writeln!(out, "no VIP is in grace")?;
            }
            print_kernels(out, &listing)?;
            print_servers(out, &listing.servers)
        })?;
    }
    Ok(verdict(&listing))
}

const SCHEMA: &str = "nlmfo.grace/1";

/// With no address: all windows.
fn listing(vips: &[IpAddr], devices: Option<Coverage>) -> Result<Listing, Failure> {
    let gate = Gate::in_force()?;
    let mut windows = match &gate {
        Some(gate) => gate.report(&mut paths()?)?,
        None => Vec::new(),
    };
    windows.retain(|window| vips.is_empty() || vips.contains(&window.vip));
    Ok(Listing {
        ended: match gate {
            Some(_) => None,
            None => leftovers::last_report()?.and_then(|last| last.of(vips)),
        },
        devices,
        ..Listing::of(windows)
    })
}

fn paths() -> Result<PathFinder, Failure> {
    let paths = PathFinder::new(SEARCH_LIMIT);
    Ok(paths.context("reading the list of mounted filesystems")?)
}

impl Listing {
    fn of(windows: Vec<WindowReport>) -> Self {
        Listing {
            schema: SCHEMA,
            windows,
            ended: None,
            fences: Vec::new(),
            kernel_grace: Some(SeenGrace::now()),
            servers: Vec::new(),
            devices: None,
            waiters_cancelled: None,
            still_waiting: Vec::new(),
        }
    }
}

impl Fence {
    fn of(standing: &Standing) -> Option<Self> {
        let left = standing.fence?;
        Some(Fence {
            vip: standing.vip,
            left_ms: left.as_millis().try_into().unwrap_or(u64::MAX),
        })
    }
}

fn verdict(listing: &Listing) -> Exit {
    let is_known = (listing.servers.iter()).all(|one| one.error.is_none());
    let mut windows = listing.windows.iter();
    match is_known && windows.all(|window| window.verdict.is_good()) {
        true => Exit::Done,
        false => Exit::NotConfirmed,
    }
}
