//! `nlmfo failover`: move a VIP's locks.

mod begin;
mod outcome;
mod own;
mod pair;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tokio::time::sleep;

use self::begin::{Begin, begin, end_windows};
use self::outcome::Outcome;
pub use self::pair::rsh;
use super::interrupted::or_interrupt;
use super::require_root;
use crate::cli::{Cli, Command, FailoverArgs, Phase, ReleaseArgs, StateArgs};
use crate::exit::{Exit, Failure};
use crate::failover::exclusive::Working;
use crate::failover::notification::Notifier;
use crate::failover::record::Record;
use crate::failover::release::Begun;
use crate::failover::report::ReleaseReport;
use crate::failover::services::{self, Purpose, look};
use crate::failover::takeover_plan::PlanReport;
use crate::failover::takeover_report::TakeoverReport;
use crate::failover::watch::Watch;
use crate::failover::{release, takeover};
use crate::files::Place;
use crate::grace::fence::{self, Fences};
use crate::grace::gate::Gate;
use crate::grace::{scope, standing};
use crate::kernel::lockd::{self, LockdError};
use crate::kernel::path::PathFinder;
use crate::kernel::preflight::{Capability, Facts};
use crate::kernel::{self, netns};
use crate::notify::config::Config;
use crate::notify::state_dir::StateDir;
use crate::observe::lockd_queue::pass_queue;
use crate::observe::programs::{ObserveError, Programs, probed_functions};
use crate::observe::snapshot::Snapshots;
use crate::{interrupt, output, runtime};

pub fn run(args: &FailoverArgs) -> Result<Exit, Failure> {
    require_root()?;
    let mut vips = args.vip.clone();
    vips.sort_unstable();
    vips.dedup();
    if let Some(server) = own::server_of(&vips)? {
        return own::run(args, &server);
    }
    if args.takeover.after_fencing {
        let error = anyhow!("--after-fencing is for a VIP that is a server of its own");
        return Err(Failure::new(Exit::Usage, error));
    }
    let mut outcome = Outcome::new(args, &vips);
    let exit =
        runtime::run(work(args, &mut outcome)).context("starting the asynchronous runtime")?;
    outcome.end(exit.map_err(|failure| with_standing(failure, &vips)))
}

/// Adds the remaining fences and windows of the VIPs to the failure.
fn with_standing(failure: Failure, vips: &[IpAddr]) -> Failure {
    match standing::of(vips) {
        // After a signal the error contains them already.
        _ if interrupt::came().is_some() => failure,
        Ok(standing) if standing.is_empty() => failure,
        _ => {
            let standing = standing::words(vips);
            Failure::new(failure.exit, anyhow!("{:#}; {standing}", failure.error))
        }
    }
}

/// Time between two checks whether lockd is loaded.
const LOCKD_POLL_INTERVAL: Duration = Duration::from_millis(200);

const RELEASING: &str = "some locks may be released; run the command again";
const TAKING: &str = "clients may not have all their locks yet; run the takeover again, or end grace with \
                      `nlmfo grace --end`";

/// Runs the requested phases. The results are in `outcome`, also after an error.
async fn work(args: &FailoverArgs, outcome: &mut Outcome) -> Result<Exit, Failure> {
    let vips = outcome.vips.clone();
    // Held until the work is done, but not while the report is printed.
    let Begin {
        working,
        has_opened,
    } = or_interrupt(begin(args, &vips), &vips, "no lock was released").await?;
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
            let taken = match expected(args, &vips) {
                Ok(expect) => takeover_phase(args, outcome, expect).await,
                Err(failure) => Err(failure),
            };
            if let Err(failure) = &taken
                && has_opened
                && failure.exit != Exit::NotConfirmed
            {
                // If they stay, it is said with the failure.
                let _ = end_windows(&vips).await;
            }
            taken
        }
        None => both(args, outcome, working.as_ref()).await,
    }
}

/// Returns the exit status and the record.
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

/// Release and takeover on one node: the VIP's clients lose and reclaim their locks.
async fn both(
    args: &FailoverArgs,
    outcome: &mut Outcome,
    working: Option<&Working>,
) -> Result<Exit, Failure> {
    let expect = expected(args, &outcome.vips)?;
    if !args.release.dry_run {
        ensure_ready(args, &outcome.vips).await?;
    }
    // Both phases are one move: a repeated run must know what the first phase released.
    let own = own_record(args);
    let mut args = args.clone();
    args.release.record = args.release.record.or_else(|| own.clone());
    let (released, record) = release_phase(&args, outcome, working).await?;
    if released != Exit::Done {
        return Ok(released);
    }
    if !args.release.dry_run {
        // In case this process is killed.
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

/// The record of a failover on this node, unless a file is named: a run that is killed between
/// the phases leaves no other trace of what it released.
fn own_record(args: &FailoverArgs) -> Option<PathBuf> {
    let is_wanted = args.release.record.is_none() && args.takeover.expect.is_none();
    if !is_wanted || args.release.dry_run {
        return None;
    }
    let path = pair::default_record(args).ok()?;
    let is_writable = rustix::fs::access(path.parent()?, rustix::fs::Access::WRITE_OK).is_ok();
    is_writable.then_some(path)
}

/// The record that `--expect` names. An error if it does not cover all the VIPs: the grace of
/// the others would end at once.
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
                "the release record {} does not cover {vip}, only {}",
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

/// The result of a release, and the record for the takeover.
struct Released {
    report: ReleaseReport,
    record: Option<Record>,
}

/// `working` is none in a dry run.
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
        // Since a takeover started here, only reclaims were granted.
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
        // By then lockd has answered what reached it before the fence.
        let passed = pass_queue(args.release.deadline).await;
        plan.blocked = passed.err().map(|error| crate::causes::chain(&error));
    }
    plan.record = record;
    plan.begun = begun;
    let mut paths = PathFinder::new(0).context("cannot read the list of mounted filesystems")?;
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

/// The dry runs of both phases, as `--dry-run` shows them.
pub async fn dry_runs(
    vips: &[IpAddr],
    state: &StateArgs,
    facts: &Facts,
    watch: &mut Watch,
) -> Result<(ReleaseReport, PlanReport), Failure> {
    let words = ["nlmfo", "failover", "--dry-run", "--state-dir"].map(OsString::from);
    let vip = |vip: &IpAddr| ["--vip".into(), vip.to_string().into()];
    let words = (words.into_iter().chain([state.state_dir.clone().into()]))
        .chain(vips.iter().flat_map(vip));
    let parsed = Cli::from_arguments(words).map_err(anyhow::Error::from)?;
    let Command::Failover(args) = parsed.command else {
        return Err(anyhow!("failover is another command").into());
    };
    let mut plan = plan(&args, vips);
    plan.begun = begun(vips)?;
    let mut paths = PathFinder::new(0).context("cannot read the list of mounted filesystems")?;
    let released = release::run(&plan, facts, watch, &mut paths, &mut Fences::default()).await;
    let (released, _) = released.map_err(|error| Failure::new(Exit::CouldNotRun, error))?;
    let plan = takeover_plan(&args, vips, None)?;
    let taken = PlanReport::look(&plan, facts, watch).await;
    Ok((released, taken.map_err(Failure::from)?))
}

/// The VIPs that an earlier run has closed to new locks.
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

/// Where the record goes, if requested; an error if another file is there.
fn record_place(args: &ReleaseArgs) -> Result<Option<Place<Record>>, Failure> {
    let place = args.record.as_deref().map(Record::place).transpose();
    place.map_err(|error| Failure::new(Exit::CouldNotRun, error))
}

/// Fences the VIPs that clients can reach here, unless `--no-fence` is given.
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
        let remedy = "nothing was released: the VIP cannot be fenced; block its lock traffic yourself and \
                      give --no-fence";
        Failure::new(exit, error.context(remedy))
    })
}

/// Reports what a takeover would do.
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
        notifier: notifier(args)?,
        state: StateDir::new(&args.state.state_dir),
    })
}

async fn takeover(
    args: &FailoverArgs,
    vips: &[IpAddr],
    expect: Option<Record>,
) -> Result<TakeoverReport, Failure> {
    if let Some(max_wait) = args.takeover.wait_services {
        wait_for_lockd(max_wait).await;
    }
    let (facts, mut watch) = observe()?;
    let plan = takeover_plan(args, vips, expect)?;
    takeover::run(&plan, &facts, &mut watch)
        .await
        .map_err(|error| match error {
            error @ takeover::RunError::NotReady(_) => {
                let context =
                    "nothing was changed: grace was not started, and no client was notified";
                Failure::new(
                    Exit::Unsupported,
                    anyhow::Error::new(error).context(context),
                )
            }
            takeover::RunError::Before(error) => {
                let Failure { exit, error } = error.into();
                Failure::new(exit, error.context("grace was not started"))
            }
            error => Failure::new(Exit::NotConfirmed, error),
        })
}

/// Waits until lockd is loaded, so that it can be observed.
async fn wait_for_lockd(max_wait: Duration) {
    let until = Instant::now() + max_wait;
    while !lockd::is_loaded() && Instant::now() < until {
        sleep(LOCKD_POLL_INTERVAL).await;
    }
}

/// An error if services on this node are not ready.
async fn ensure_ready(args: &FailoverArgs, vips: &[IpAddr]) -> Result<(), Failure> {
    let purpose = Purpose {
        vips: vips.to_vec(),
        exports_now: args.takeover.wait_address.is_none(),
        unseen: None,
    };
    let state = StateDir::new(&args.state.state_dir);
    let max_wait = args.takeover.wait_services.unwrap_or_default();
    let blockers = services::blockers(&look::wait(&state, &purpose, max_wait).await);
    if blockers.is_empty() {
        return Ok(());
    }
    let error = anyhow::Error::new(takeover::RunError::NotReady(blockers));
    Err(Failure::new(
        Exit::Unsupported,
        error.context("nothing was changed"),
    ))
}

fn notifier(args: &FailoverArgs) -> Result<Notifier, Failure> {
    let takeover = &args.takeover;
    if takeover.no_notify {
        return Ok(Notifier::Disabled);
    }
    if let Some(program) = &takeover.notify {
        return Ok(Notifier::Program(program.clone()));
    }
    let config = Config::read(takeover.config.as_deref());
    Ok(Notifier::Own {
        state: StateDir::new(&args.state.state_dir),
        config: config.map_err(|error| Failure::new(Exit::CouldNotRun, error))?,
    })
}

/// Gathers the facts of this node and attaches the probes.
pub fn observe() -> Result<(Facts, Watch), Failure> {
    let functions: Vec<&str> = probed_functions().collect();
    let facts = Facts::gather(&functions);
    if !lockd::is_loaded() {
        return Err(Failure::new(Exit::Unsupported, LockdError::NotLoaded));
    }
    if let Capability::Missing { reason, remedy } = &facts.ftrace {
        return Err(Failure::new(
            Exit::Unsupported,
            anyhow!("{reason}: {remedy}"),
        ));
    }
    let layout = match &facts.layout {
        Some(layout) => *layout,
        // Load it again, for the error.
        None => kernel::layout::load().map_err(ObserveError::from)?,
    };
    let snapshots = Snapshots::attach(Programs::load(&layout)?)?;
    let watch = Watch::attach(snapshots, facts.netns as u32)?;
    Ok((facts, watch))
}

fn is_good(report: &ReleaseReport) -> bool {
    report.confirmed || report.dry_run
}
