//! `nlmfo server`: NFS servers in namespaces of their own.

mod check;
mod run;

use std::ffi::OsString;
use std::fmt::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, anyhow};
use serde::Serialize;

use super::{require_root, table};
use crate::cli::{NamedServer, ServerAction, ServerArgs, StartArgs};
use crate::exit::{Exit, Failure};
use crate::failover::own::{self, Restarted, Started, Stopped};
use crate::server::Server;
use crate::server::status::{self, State, Status};
use crate::{interrupt, output};

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

/// Becomes the command. The process must have only one thread.
pub fn exec(name: &str, command: &[OsString]) -> Result<Exit, Failure> {
    require_root()?;
    Server::named(name)?.enter()?;
    let (program, arguments) = command.split_first().context("no command")?;
    let error = Command::new(program).args(arguments).exec();
    let program = program.display();
    Err(anyhow!(error)
        .context(format!("cannot run {program} in server {name}"))
        .into())
}

/// A report with its schema.
#[derive(Serialize)]
struct Report<'a, T> {
    schema: &'static str,
    server: &'a str,
    #[serde(flatten)]
    report: &'a T,
}

fn start(args: &StartArgs) -> Result<Exit, Failure> {
    let StartArgs {
        server: args,
        after_fencing,
    } = args;
    let server = Server::named(&args.name)?;
    let started = own::start(&server, *after_fencing)?;
    let exit = started.exit();
    interrupt::work_is_done(exit as u8);
    print_or_json(args.json, Started::SCHEMA, &server, &started, |out| {
        print_started(out, &server, &started)
    });
    Ok(exit)
}

/// Prints a report.
pub(super) fn print_or_json<T: Serialize>(
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
    if started.already {
        return writeln!(out, "✓ server {} already serves", server.name());
    }
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

fn restart(args: &NamedServer) -> Result<Exit, Failure> {
    let server = Server::named(&args.name)?;
    let restarted = own::restart(&server)?;
    let exit = restarted.exit();
    interrupt::work_is_done(exit as u8);
    print_or_json(args.json, Restarted::SCHEMA, &server, &restarted, |out| {
        print_stopped(out, &server, &restarted.stop)?;
        print_started(out, &server, &restarted.start)
    });
    Ok(exit)
}

fn stop(args: &NamedServer) -> Result<Exit, Failure> {
    let server = Server::named(&args.name)?;
    let stopped = own::stop(&server)?;
    let exit = stopped.exit();
    print_or_json(args.json, Stopped::SCHEMA, &server, &stopped, |out| {
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
    let server = Server::named(&args.name)?;
    let status = status::of(&server)?;
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
    let servers = Server::all()?;
    let all = (servers.iter().map(status::of)).collect::<Result<Vec<Status>, _>>()?;
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
