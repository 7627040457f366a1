//! `nlmfo server`: servers of single VIPs.

mod check;
mod run;

use std::ffi::OsString;
use std::fmt::{self, Write};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use serde::Serialize;

use super::failover::observe;
use super::interrupted::or_interrupt;
use super::{require_root, table};
use crate::causes::chain;
use crate::cli::{NamedServer, ServerAction, ServerArgs, StartArgs};
use crate::exit::{Exit, Failure};
use crate::failover::whole::report::{StartReport, StopReport};
use crate::failover::whole::{leases, own, start};
use crate::files::lock::Held;
use crate::notify::config::Config;
use crate::notify::state_dir::StateDir;
use crate::server::holder::{self, Last};
use crate::server::status::{self, State, Status};
use crate::server::{self, Others, Server, ServerError};
use crate::times::milliseconds;
use crate::{interrupt, output, runtime};

pub fn run(args: &ServerArgs) -> Result<Exit, Failure> {
    require_root()?;
    match &args.action {
        ServerAction::Start(args) => start(args),
        ServerAction::Stop(args) => stop(args),
        ServerAction::Restart(args) => restart(args),
        ServerAction::Run { name } => run::run(name),
        ServerAction::Status(args) => status(args),
        ServerAction::List { json } => list(*json),
        ServerAction::Exec { name, command } => exec(name, command),
        ServerAction::Check(args) => check::run(args),
    }
}

pub(super) fn could_run<T>(done: Result<T, ServerError>) -> Result<T, Failure> {
    done.map_err(|error| {
        let exit = match error {
            ServerError::Elsewhere { .. } => Exit::Unsupported,
            _ => Exit::CouldNotRun,
        };
        Failure::new(exit, error)
    })
}

/// Becomes the command. Only of a process with one thread.
pub fn exec(name: &str, command: &[OsString]) -> Result<Exit, Failure> {
    require_root()?;
    could_run(Server::named(name).and_then(|server| server.enter()))?;
    let (program, arguments) = command.split_first().context("no command")?;
    let error = Command::new(program).args(arguments).exec();
    let program = program.display();
    Err(anyhow!(error)
        .context(format!("cannot run {program} in server {name}"))
        .into())
}

fn no_runtime(error: io::Error) -> Failure {
    anyhow!(error)
        .context("starting the asynchronous runtime")
        .into()
}

/// A report with its schema.
#[derive(Serialize)]
struct Report<'a, T> {
    schema: &'static str,
    server: &'a str,
    #[serde(flatten)]
    report: &'a T,
}

/// What a start did.
#[derive(Debug, Serialize)]
pub struct Started {
    /// The server was not stopped cleanly: what its clients held is not recorded.
    crashed: bool,
    /// Other servers that should not have noticed, and did.
    disturbed: Vec<String>,
    /// What the clients reclaimed; null if no client is known.
    reclaim: Option<StartReport>,
    took_ms: f64,
}

impl Started {
    pub(super) fn exit(&self) -> Exit {
        let reclaimed = self.reclaim.as_ref().map_or(Exit::Done, StartReport::exit);
        match self.disturbed.is_empty() && !self.crashed {
            true => reclaimed,
            false => Exit::NotConfirmed,
        }
    }
}

/// How much longer to follow the reclaims than the longest grace takes.
const MARGIN: Duration = Duration::from_secs(30);

/// lockd's grace unless it is set otherwise.
const LOCKD_GRACE: Duration = Duration::from_secs(50);

/// `fenced`: the server may have run on another node that did not stop it.
pub(super) fn start_here(server: &Server, fenced: bool) -> Result<Started, Failure> {
    start_held(server, &could_run(server.lock())?, fenced)
}

fn start_held(server: &Server, _: &Held, fenced: bool) -> Result<Started, Failure> {
    let began = Instant::now();
    let plan = start::Plan {
        state: StateDir::new(server.state_dir()),
        config: Config::read(None).map_err(anyhow::Error::from)?,
        // nfsd extends its own up to twice, while clients reclaim.
        deadline: (server.description.grace * 2).max(LOCKD_GRACE) + MARGIN,
    };
    let created = could_run(server::start::create(server, fenced))?;
    let crashed = created.last == Last::Crashed;
    if crashed {
        could_run(server.within(|| own::forget(server)))?;
    }
    let wanted = could_run(server.within(|| own::allows_pause(server)))?;
    // Of the node: the server has a /run of its own.
    let paused = runtime::run(leases::pause_if(wanted, None)).map_err(no_runtime)?;
    let begun = server.within(|| runtime::run(own::begin(server)).map_err(no_runtime));
    let begun = match could_run(begun).flatten().flatten() {
        Ok(begun) => begun,
        Err(failure) => {
            // Without it, the record of the stop stands, for a start here or on another node.
            if !crashed && let Err(error) = server.within(|| holder::remove(server)).flatten() {
                output::note(chain(&error));
            }
            let undone = server::start::undone(server, &chain(&*failure.error));
            return Err(Failure::new(failure.exit, undone));
        }
    };
    let disturbed = could_run(created.disturbed(server))?;
    let followed = server.within(|| {
        let follow = own::follow(server, begun, &plan, observe);
        let state = "the server serves; its clients may not have all their locks yet";
        runtime::run(or_interrupt(follow, &[], state)).map_err(no_runtime)
    });
    drop(paused);
    Ok(Started {
        crashed,
        disturbed,
        reclaim: could_run(followed).flatten().flatten()?,
        took_ms: milliseconds(began.elapsed()),
    })
}

fn start(args: &StartArgs) -> Result<Exit, Failure> {
    let StartArgs {
        server: args,
        after_fencing,
    } = args;
    let server = could_run(Server::named(&args.name))?;
    let started = start_here(&server, *after_fencing)?;
    let exit = started.exit();
    interrupt::only_words_are_left(exit as u8);
    print_or_json(
        args.json,
        "nlmfo.server.start/1",
        &server,
        &started,
        |out| print_started(out, &server, &started),
    );
    Ok(exit)
}

fn print_or_json<T: Serialize>(
    json: bool,
    schema: &'static str,
    server: &Server,
    report: &T,
    print: impl FnOnce(&mut output::Text) -> fmt::Result,
) {
    let server = server.name();
    match json {
        true => output::report_json(
            None,
            &Report {
                schema,
                server,
                report,
            },
        ),
        false => output::report(None, print),
    }
}

pub(super) fn print_started(
    out: &mut impl Write,
    server: &Server,
    started: &Started,
) -> fmt::Result {
    for vip in &server.description.vips {
        writeln!(out, "  {} is up", vip.address)?;
    }
    match &started.reclaim {
        Some(report) => write!(out, "{report}")?,
        None if started.crashed => writeln!(
            out,
            "✗ NOT CONFIRMED: no client is known, and what clients held is not recorded"
        )?,
        None => writeln!(out, "  no client has anything to reclaim")?,
    }
    disturbed(out, &started.disturbed)?;
    let (name, took) = (server.name(), started.took_ms / 1000.0);
    match started.exit() {
        Exit::Done => writeln!(out, "✓ server {name} serves after {took:.1} s"),
        _ => writeln!(out, "✗ server {name} serves after {took:.1} s; see above"),
    }
}

fn disturbed(out: &mut impl Write, disturbed: &[String]) -> fmt::Result {
    (disturbed.iter()).try_for_each(|what| writeln!(out, "  ! {what}"))
}

/// What a stop did.
#[derive(Debug, Serialize)]
pub struct Stopped {
    disturbed: Vec<String>,
    /// What the clients held; null if the server had stopped before.
    release: Option<StopReport>,
    /// Devices that nothing on this node uses any more.
    free: Vec<PathBuf>,
    took_ms: f64,
}

impl Stopped {
    pub(super) fn exit(&self) -> Exit {
        let is_proved = self
            .release
            .as_ref()
            .is_none_or(|report| report.left.is_empty());
        match is_proved && self.disturbed.is_empty() {
            true => Exit::Done,
            false => Exit::NotConfirmed,
        }
    }
}

pub(super) fn stop_here(server: &Server) -> Result<Stopped, Failure> {
    stop_held(server, &could_run(server.lock())?)
}

fn stop_held(server: &Server, _: &Held) -> Result<Stopped, Failure> {
    let began = Instant::now();
    let others = could_run(Others::than(server.name()))?;
    let paused = runtime::run(leases::pause()).map_err(no_runtime)?;
    let stopped = server.within(|| runtime::run(own::stop(server, observe)).map_err(no_runtime));
    drop(paused);
    let release = could_run(stopped).flatten().flatten()?;
    if (release.as_ref()).is_none_or(|report| report.left.is_empty()) {
        could_run(server.within(|| own::give_up(server)).flatten())?;
    }
    could_run(server::stop::remove(server))?;
    let after = could_run(Others::than(server.name()))?;
    let filesystems = server.description.filesystems.iter();
    Ok(Stopped {
        disturbed: others.disturbed(&after),
        release,
        free: filesystems.map(|one| one.device.clone()).collect(),
        took_ms: milliseconds(began.elapsed()),
    })
}

/// What a restart did.
#[derive(Debug, Serialize)]
struct Restarted {
    stop: Stopped,
    start: Started,
    /// From the beginning of the stop until the start was over.
    took_ms: f64,
}

fn restart(args: &NamedServer) -> Result<Exit, Failure> {
    let server = could_run(Server::named(&args.name))?;
    let began = Instant::now();
    // One that supervises the server must not find it stopped in between.
    let held = could_run(server.lock())?;
    let stop = stop_held(&server, &held)?;
    let start = start_held(&server, &held, false)?;
    drop(held);
    let restarted = Restarted {
        stop,
        start,
        took_ms: milliseconds(began.elapsed()),
    };
    let Restarted { stop, start, .. } = &restarted;
    let exit = match stop.exit() {
        Exit::Done => start.exit(),
        not_confirmed => not_confirmed,
    };
    interrupt::only_words_are_left(exit as u8);
    let schema = "nlmfo.server.restart/1";
    print_or_json(args.json, schema, &server, &restarted, |out| {
        print_stopped(out, &server, stop)?;
        print_started(out, &server, start)
    });
    Ok(exit)
}

fn stop(args: &NamedServer) -> Result<Exit, Failure> {
    let server = could_run(Server::named(&args.name))?;
    let stopped = stop_here(&server)?;
    let exit = stopped.exit();
    print_or_json(args.json, "nlmfo.server.stop/1", &server, &stopped, |out| {
        print_stopped(out, &server, &stopped)
    });
    Ok(exit)
}

pub(super) fn print_stopped(
    out: &mut impl Write,
    server: &Server,
    stopped: &Stopped,
) -> fmt::Result {
    if let Some(report) = &stopped.release {
        write!(out, "{report}")?;
    }
    for device in &stopped.free {
        writeln!(out, "  {} is free", device.display())?;
    }
    disturbed(out, &stopped.disturbed)?;
    let (name, took) = (server.name(), stopped.took_ms / 1000.0);
    match stopped.exit() {
        Exit::Done => writeln!(
            out,
            "✓ server {name} stopped after {took:.1} s: nothing of it is left here"
        ),
        _ => writeln!(out, "✗ server {name} stopped after {took:.1} s; see above"),
    }
}

fn status(args: &NamedServer) -> Result<Exit, Failure> {
    let server = could_run(Server::named(&args.name))?;
    let status = could_run(status::of(&server))?;
    let report = Report {
        schema: "nlmfo.server.status/1",
        server: server.name(),
        report: &status,
    };
    match args.json {
        true => output::list_json(&report).map(|_| ())?,
        false => output::list(|out| print_status(out, &status))?,
    }
    Ok(match status.state {
        State::Degraded => Exit::NotConfirmed,
        State::Serving | State::Stopped => Exit::Done,
    })
}

fn print_status(out: &mut impl Write, status: &Status) -> fmt::Result {
    let mark = match status.state {
        State::Serving => "✓",
        State::Stopped => "-",
        State::Degraded => "✗",
    };
    writeln!(
        out,
        "{mark} server {}: {}",
        status.name,
        status.state.words()
    )?;
    let vips = status.vips.iter().map(|vip| match vip.up {
        true => format!("{} (up)", vip.vip),
        false => format!("{} (down)", vip.vip),
    });
    writeln!(out, "  VIPs      {}", vips.collect::<Vec<_>>().join(", "))?;
    writeln!(out, "  scope     {}", status.scope)?;
    if status.state != State::Stopped {
        let facts = &status.facts;
        let versions: Vec<String> = facts.versions.iter().map(ToString::to_string).collect();
        writeln!(
            out,
            "  nfsd      {} threads, versions {}",
            facts.threads,
            versions.join(", ")
        )?;
        let on = |on: bool| if on { "in grace" } else { "no grace" };
        writeln!(
            out,
            "  grace     nfsd: {}; lockd: {}",
            on(facts.grace.nfsd),
            on(facts.grace.lockd)
        )?;
        writeln!(out, "  clients   {} by NFSv4", facts.clients)?;
        let daemons = status.daemons.iter().map(|daemon| match daemon.process {
            Some(id) => format!("{} ({id})", daemon.program),
            None => format!("{} (not running)", daemon.program),
        });
        writeln!(
            out,
            "  daemons   {}",
            daemons.collect::<Vec<_>>().join(", ")
        )?;
    }
    (status.problems.iter()).try_for_each(|problem| writeln!(out, "  ! {problem}"))
}

/// The JSON of `nlmfo server list`.
#[derive(Serialize)]
struct Listing<'a> {
    schema: &'static str,
    servers: &'a [Status],
}

fn list(json: bool) -> Result<Exit, Failure> {
    let servers = could_run(Server::all())?;
    let all: Result<Vec<Status>, _> = servers.iter().map(status::of).collect();
    let all = could_run(all)?;
    if json {
        let listing = Listing {
            schema: "nlmfo.server.list/1",
            servers: &all,
        };
        output::list_json(&listing)?;
        return Ok(Exit::Done);
    }
    let rows = all.iter().map(|status| {
        let vips = status.vips.iter().map(|vip| vip.vip.address.to_string());
        [
            status.name.clone(),
            status.state.words().to_owned(),
            status.facts.clients.to_string(),
            vips.collect::<Vec<_>>().join(","),
        ]
    });
    output::list(|out| table::write(out, ["SERVER", "STATE", "NFS4 CLIENTS", "VIPS"], rows))?;
    Ok(Exit::Done)
}
