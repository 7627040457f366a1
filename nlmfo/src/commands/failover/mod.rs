//! `nlmfo failover`: move a VIP's locks.

mod outcome;
mod pair;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tokio::time::sleep;

use self::outcome::Outcome;
use super::interrupted::or_interrupt;
use super::require_root;
use crate::cli::{FailoverArgs, Phase, ReleaseArgs};
use crate::exit::{Exit, Failure};
use crate::failover::exclusive::Working;
use crate::failover::record::Record;
use crate::failover::release::Begun;
use crate::failover::report::ReleaseReport;
use crate::failover::services::{self, Purpose, look};
use crate::failover::takeover_plan::PlanReport;
use crate::failover::takeover_report::TakeoverReport;
use crate::failover::telling::Teller;
use crate::failover::watch::Watch;
use crate::failover::{release, takeover, window};
use crate::files::Place;
use crate::grace::fence::{self, Fences};
use crate::grace::gate::Gate;
use crate::grace::{scope, standing, way};
use crate::kernel::lockd::{self, LockdError};
use crate::kernel::path::PathFinder;
use crate::kernel::preflight::{Capability, Facts};
use crate::kernel::{self, netns};
use crate::notify::config::Config;
use crate::notify::state_dir::StateDir;
use crate::observe::programs::{ObserveError, Programs, probed_functions};
use crate::observe::snapshot::Snapshots;
use crate::rpc::local::pass_queue;
use crate::{interrupt, output};

pub fn run(args: &FailoverArgs) -> Result<Exit, Failure> {
    require_root()?;
    let mut vips = args.vip.clone();
    vips.sort_unstable();
    vips.dedup();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the asynchronous runtime")?;
    let mut outcome = Outcome::new(args, &vips);
    let exit = runtime.block_on(work(args, &mut outcome));
    // A write to the kernel that a signal found under way ends by itself.
    runtime.shutdown_background();
    outcome.end(exit.map_err(|failure| with_standing(failure, &vips)))
}

/// The failure with what still stands for the VIPs, if anything does.
fn with_standing(failure: Failure, vips: &[IpAddr]) -> Failure {
    match standing::of(vips) {
        // What a signal leaves is said already.
        _ if interrupt::came().is_some() => failure,
        Ok(standing) if standing.is_empty() => failure,
        _ => {
            let standing = standing::words(vips);
            Failure::new(failure.exit, anyhow!("{:#}; {standing}", failure.error))
        }
    }
}

/// Waits until nobody else works on the VIPs; none for a dry run. What a takeover waits for,
/// it waits for in grace: the VIPs may be up at any moment.
async fn working(args: &FailoverArgs, vips: &[IpAddr]) -> Result<Option<Working>, Failure> {
    if args.release.dry_run {
        return Ok(None);
    }
    let begun = match args.phase {
        Some(Phase::Takeover) => match Working::begin(vips, Duration::ZERO).await {
            Err(error) if error.is_busy() => {
                let plan = window_plan(args, vips)?;
                if plan.lockd_later {
                    let (facts, _) = observe()?;
                    window::begin(&plan, &facts).await?;
                } else {
                    ensure_ready(args, vips).await?;
                    let (facts, mut watch) = observe()?;
                    window::open(&plan, &facts, &mut watch).await?;
                }
                Working::begin(vips, args.takeover.grace).await
            }
            begun => begun,
        },
        _ => Working::begin(vips, args.release.deadline).await,
    };
    (begun.map(Some)).map_err(|error| Failure::new(Exit::CouldNotRun, error))
}

/// The window of a takeover.
fn window_plan(args: &FailoverArgs, vips: &[IpAddr]) -> Result<way::Plan, Failure> {
    Ok(way::Plan {
        vips: vips.to_vec(),
        lasting: args.takeover.grace,
        scope: scope::of_folders(&args.takeover.filesystem)?,
        lockd_later: args.takeover.wait_services.is_some(),
    })
}

/// Between two looks whether lockd is in the kernel.
const LOCKD_POLL_INTERVAL: Duration = Duration::from_millis(200);

const RELEASING: &str = "locks may be released in part: run it again";
const TAKING: &str = "clients may not have all their locks yet: run the takeover again, or \
                      `nlmfo grace --end` ends the grace";

/// Does what is asked for. What came of it is in `outcome`, whatever is returned.
async fn work(args: &FailoverArgs, outcome: &mut Outcome) -> Result<Exit, Failure> {
    let vips = outcome.vips.clone();
    // Kept until the work is done; not while the report is printed.
    let working = or_interrupt(working(args, &vips), &vips, "no lock was released").await?;
    if let Some(host) = &args.pair.to {
        let standing = pair::if_interrupted(args, &vips, host);
        let moved = pair::run(args, &vips, host, working, &mut outcome.pair);
        return or_interrupt(moved, &vips, &standing).await;
    }
    match args.phase {
        Some(Phase::Release) => release_phase(args, outcome, working.as_ref())
            .await
            .map(|(exit, _)| exit),
        Some(Phase::Takeover) => {
            let expect = expected(args, &vips)?;
            takeover_phase(args, outcome, expect).await
        }
        None => both(args, outcome, working.as_ref()).await,
    }
}

/// With how it ended, what it recorded.
async fn release_phase(
    args: &FailoverArgs,
    outcome: &mut Outcome,
    working: Option<&Working>,
) -> Result<(Exit, Option<Record>), Failure> {
    let vips = outcome.vips.clone();
    let done = or_interrupt(release(args, &vips, working), &vips, RELEASING).await?;
    let exit = match is_good(&done.report) {
        true => Exit::Done,
        false => Exit::NotConfirmed,
    };
    outcome.release = Some(done.report);
    Ok((exit, done.record))
}

async fn takeover_phase(
    args: &FailoverArgs,
    outcome: &mut Outcome,
    expect: Option<Record>,
) -> Result<Exit, Failure> {
    let vips = outcome.vips.clone();
    if args.release.dry_run {
        outcome.plan = Some(plan_takeover(args, &vips, expect).await?);
        return Ok(Exit::Done);
    }
    let report = or_interrupt(takeover(args, &vips, expect), &vips, TAKING).await?;
    let exit = report.exit();
    outcome.takeover = Some(report);
    Ok(exit)
}

/// Release and takeover on one node: the VIP's clients get their locks anew.
async fn both(
    args: &FailoverArgs,
    outcome: &mut Outcome,
    working: Option<&Working>,
) -> Result<Exit, Failure> {
    let expect = expected(args, &outcome.vips)?;
    if !args.release.dry_run {
        ensure_ready(args, &outcome.vips).await?;
    }
    // Two phases are one move: of what the first has released, a second run is to know.
    let own = own_record(args);
    let mut args = args.clone();
    args.release.record = args.release.record.or_else(|| own.clone());
    let (released, record) = release_phase(&args, outcome, working).await?;
    if released != Exit::Done {
        return Ok(released);
    }
    if !args.release.dry_run {
        // Should this process be killed meanwhile.
        outcome.keep(None, None);
        output::progress(format_args!(
            "{}: released; taking over",
            listed(&outcome.vips)
        ));
    }
    let exit = takeover_phase(&args, outcome, expect.or(record)).await?;
    if let Some(record) = own
        && matches!(exit, Exit::Done | Exit::Incomplete)
    {
        pair::forget_record(&record);
    }
    Ok(exit)
}

/// Where a failover on this node records what is to come back, if nobody has named a file and
/// one can be written: a run that is killed between the phases leaves nothing else to go by.
fn own_record(args: &FailoverArgs) -> Option<PathBuf> {
    let is_wanted = args.release.record.is_none() && args.takeover.expect.is_none();
    if !is_wanted || args.release.dry_run {
        return None;
    }
    let path = pair::default_record(args).ok()?;
    let is_writable = rustix::fs::access(path.parent()?, rustix::fs::Access::WRITE_OK).is_ok();
    is_writable.then_some(path)
}

/// The record that is named, if one is; an error if it is not of all the VIPs: of others
/// nothing would be expected, and their grace would end at once.
fn expected(args: &FailoverArgs, vips: &[IpAddr]) -> Result<Option<Record>, Failure> {
    let Some(path) = args.takeover.expect.as_deref() else {
        return Ok(None);
    };
    let record = Record::read(path).map_err(|error| Failure::new(Exit::CouldNotRun, error))?;
    match vips.iter().find(|vip| !record.vips.contains(vip)) {
        None => Ok(Some(record)),
        Some(vip) => Err(Failure::new(
            Exit::CouldNotRun,
            anyhow!(
                "the record {} is not of {vip}, but of {}",
                path.display(),
                listed(&record.vips)
            ),
        )),
    }
}

fn listed(vips: &[IpAddr]) -> String {
    let vips: Vec<String> = vips.iter().map(IpAddr::to_string).collect();
    vips.join(", ")
}

/// A release, and what it has recorded for the takeover.
struct Released {
    report: ReleaseReport,
    record: Option<Record>,
}

/// `working` is ours unless this is a dry run.
async fn release(
    args: &FailoverArgs,
    vips: &[IpAddr],
    working: Option<&Working>,
) -> Result<Released, Failure> {
    // Before anything is changed.
    let record = record_place(&args.release)?;
    let (facts, mut watch) = observe()?;
    let mut begun = begun(vips)?;
    if args.phase.is_none() {
        // Nor was anything but reclaims granted since a takeover here has begun.
        let standing = standing::of(vips)?;
        let in_grace = standing.iter().filter(|one| one.grace.is_some());
        begun.fenced.extend(in_grace.map(|one| one.vip));
    }
    if let Some(working) = working {
        let earlier = record.as_ref().and_then(Place::earlier);
        begun.forget_earlier_moves(vips, earlier, working)?;
    }
    let mut fences = raise_fence(&args.release, vips).await?;
    let mut plan = plan(args, vips);
    if !args.release.dry_run {
        // What had reached lockd before the fence is granted or refused by then.
        let passed = pass_queue(args.release.deadline).await;
        plan.blocked = passed.err().map(|error| crate::causes::chain(&error));
    }
    plan.record = record;
    plan.begun = begun;
    let mut paths = PathFinder::new(0).context("reading the mounted filesystems")?;
    let outcome = release::run(&plan, &facts, &mut watch, &mut paths, &mut fences).await;
    let (mut report, record) = outcome.map_err(|error| {
        let exit = match error {
            release::RunError::Before(_) => Exit::CouldNotRun,
            release::RunError::After(_) => Exit::NotConfirmed,
        };
        Failure::new(exit, error)
    })?;
    let standing = standing::of(&report.fenced).unwrap_or_default();
    let longest = standing.iter().filter_map(|one| one.fence).max();
    report.fenced_for_ms = longest.map_or(0, |left| left.as_millis() as u64);
    Ok(Released { report, record })
}

fn plan(args: &FailoverArgs, vips: &[IpAddr]) -> release::Plan {
    let release = &args.release;
    release::Plan {
        vips: vips.to_vec(),
        record: None,
        state: StateDir::new(&args.state.state_dir),
        keeps_record: args.phase.is_none(),
        begun: Begun::default(),
        dry_run: release.dry_run,
        filesystems: release.unlock_filesystem.clone(),
        reboot_notice: release.reboot_notice,
        without_nfs4: release.nfs.is_some(),
        deadline: release.deadline,
        blocked: None,
    }
}

/// Which of the VIPs an earlier run has closed to new locks.
fn begun(vips: &[IpAddr]) -> Result<Begun, Failure> {
    let fenced = match Gate::in_force()? {
        Some(gate) => gate.fenced()?,
        None => Vec::new(),
    };
    let is_absent = |vip: &&IpAddr| !netns::has_address(**vip).unwrap_or(true);
    Ok(Begun {
        fenced: (vips.iter().copied().filter(|vip| fenced.contains(vip))).collect(),
        absent: vips.iter().filter(is_absent).copied().collect(),
    })
}

/// Where the record goes, if one is asked for; an error if something else is there.
fn record_place(args: &ReleaseArgs) -> Result<Option<Place<Record>>, Failure> {
    let place = args.record.as_deref().map(Record::place).transpose();
    place.map_err(|error| Failure::new(Exit::CouldNotRun, error))
}

/// Fences off those of the VIPs that clients can reach here, unless told not to.
async fn raise_fence(args: &ReleaseArgs, vips: &[IpAddr]) -> Result<Fences, Failure> {
    if args.no_fence || args.dry_run {
        return Ok(Fences::default());
    }
    let is_here = |vip: &&IpAddr| netns::has_address(**vip).unwrap_or(true);
    let here: Vec<IpAddr> = vips.iter().filter(is_here).copied().collect();
    if here.is_empty() {
        return Ok(Fences::default());
    }
    (fence::raise(&here, args.fence, args.deadline).await).map_err(|error| {
        let Failure { exit, error } = error.into();
        let remedy = "nothing was released: the VIP's lock traffic cannot be held off; cut it off \
                      yourself and give --no-fence";
        Failure::new(exit, error.context(remedy))
    })
}

/// Says what a takeover would do.
async fn plan_takeover(
    args: &FailoverArgs,
    vips: &[IpAddr],
    expect: Option<Record>,
) -> Result<PlanReport, Failure> {
    let (facts, mut watch) = observe()?;
    let plan = takeover_plan(args, vips, expect)?;
    (PlanReport::look(&plan, &facts, &mut watch).await)
        .map_err(|error| Failure::new(Exit::CouldNotRun, error))
}

fn takeover_plan(
    args: &FailoverArgs,
    vips: &[IpAddr],
    expect: Option<Record>,
) -> Result<takeover::Plan, Failure> {
    Ok(takeover::Plan {
        vips: vips.to_vec(),
        expect,
        grace: args.takeover.grace,
        scope: scope::of_folders(&args.takeover.filesystem)?,
        wait_services: args.takeover.wait_services,
        wait_address: args.takeover.wait_address,
        teller: teller(args)?,
        state: StateDir::new(&args.state.state_dir),
    })
}

async fn takeover(
    args: &FailoverArgs,
    vips: &[IpAddr],
    expect: Option<Record>,
) -> Result<TakeoverReport, Failure> {
    if let Some(patience) = args.takeover.wait_services {
        wait_for_lockd(patience).await;
    }
    let (facts, mut watch) = observe()?;
    let plan = takeover_plan(args, vips, expect)?;
    takeover::run(&plan, &facts, &mut watch)
        .await
        .map_err(|error| match error {
            error @ takeover::RunError::NotReady(_) => {
                let context = "nothing was done: no grace is open, and no client was told";
                Failure::new(Exit::Lacking, anyhow::Error::new(error).context(context))
            }
            takeover::RunError::Before(error) => {
                let Failure { exit, error } = error.into();
                Failure::new(exit, error.context("grace was not opened"))
            }
            error => Failure::new(Exit::NotConfirmed, error),
        })
}

/// It comes into the kernel with the NFS server, and what is to observe it then.
async fn wait_for_lockd(patience: Duration) {
    let until = Instant::now() + patience;
    while !lockd::is_loaded() && Instant::now() < until {
        sleep(LOCKD_POLL_INTERVAL).await;
    }
}

/// An error if this node's services would lose the locks that it takes over.
async fn ensure_ready(args: &FailoverArgs, vips: &[IpAddr]) -> Result<(), Failure> {
    let purpose = Purpose {
        vips: vips.to_vec(),
        exports_now: args.takeover.wait_address.is_none(),
        unseen: None,
    };
    let state = StateDir::new(&args.state.state_dir);
    let patience = args.takeover.wait_services.unwrap_or_default();
    let blockers = services::blockers(&look::wait(&state, &purpose, patience).await);
    if blockers.is_empty() {
        return Ok(());
    }
    let error = anyhow::Error::new(takeover::RunError::NotReady(blockers));
    Err(Failure::new(
        Exit::Lacking,
        error.context("nothing was done"),
    ))
}

fn teller(args: &FailoverArgs) -> Result<Teller, Failure> {
    let takeover = &args.takeover;
    if takeover.no_notify {
        return Ok(Teller::Nobody);
    }
    if let Some(program) = &takeover.notify {
        return Ok(Teller::Program(program.clone()));
    }
    let config = Config::read(takeover.config.as_deref());
    Ok(Teller::Own {
        state: StateDir::new(&args.state.state_dir),
        config: config.map_err(|error| Failure::new(Exit::CouldNotRun, error))?,
    })
}

/// What this node is, and the probes on it.
pub fn observe() -> Result<(Facts, Watch), Failure> {
    let functions: Vec<&str> = probed_functions().collect();
    let facts = Facts::gather(&functions);
    if !lockd::is_loaded() {
        return Err(Failure::new(Exit::Lacking, LockdError::NotLoaded));
    }
    if let Capability::Missing { reason, remedy } = &facts.ftrace {
        return Err(Failure::new(Exit::Lacking, anyhow!("{reason}: {remedy}")));
    }
    let layout = match &facts.layout {
        Some(layout) => *layout,
        // Once more, for the error with its reason.
        None => kernel::layout::load().map_err(ObserveError::from)?,
    };
    let snapshots = Snapshots::attach(Programs::load(&layout)?)?;
    let watch = Watch::attach(snapshots, facts.netns as u32)?;
    Ok((facts, watch))
}

fn is_good(report: &ReleaseReport) -> bool {
    report.confirmed || report.dry_run
}
