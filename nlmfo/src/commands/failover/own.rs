//! The failover of a server of its own: it moves as a whole, with all its VIPs.

use std::ffi::OsString;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use serde::Serialize;
use serde_json::Value;

use super::pair::words;
use crate::cli::{FailoverArgs, Phase};
use crate::commands::server::{Stopped, print_started, print_stopped, start_here, stop_here};
use crate::exit::{Exit, Failure};
use crate::failover::pair::rsh::{Finished, Rsh};
use crate::failover::pair::{HandOverError, hand_over};
use crate::foreign::Shown;
use crate::kernel::netns;
use crate::server::Server;
use crate::times::milliseconds;
use crate::{interrupt, output, runtime};

/// Maximum time for a command on the other node, besides its grace.
const REMOTE: Duration = Duration::from_secs(120);

/// The described server that these VIPs are. None if none of them is one's.
pub fn server_of(vips: &[IpAddr]) -> Result<Option<Server>, Failure> {
    let mut found: Option<Server> = None;
    for &vip in vips {
        let server = Server::of_vip(vip).map_err(anyhow::Error::from)?;
        let is_first = vips.first() == Some(&vip);
        let name = |server: &Option<Server>| server.as_ref().map(|one| one.name().to_owned());
        if !is_first && name(&server) != name(&found) {
            let error = anyhow!(
                "{vip} does not belong to the same server as {}: move them one after the other",
                vips.first().map(IpAddr::to_string).unwrap_or_default()
            );
            return Err(Failure::new(Exit::Usage, error));
        }
        found = server;
    }
    Ok(found)
}

pub fn run(args: &FailoverArgs, server: &Server) -> Result<Exit, Failure> {
    if args.release.dry_run {
        let error = anyhow!(
            "{} is a server of its own, which has no plan to show: run `nlmfo server check {0}`",
            server.name()
        );
        return Err(Failure::new(Exit::Usage, error));
    }
    match (&args.pair.to, args.phase) {
        (Some(host), _) => to(args, server, host),
        (None, Some(Phase::Release)) => release(args, server).map(|(exit, _)| exit),
        (None, Some(Phase::Takeover)) => takeover(args, server),
        (None, None) => {
            let (exit, _) = release(args, server)?;
            match exit {
                Exit::Done => takeover(args, server),
                _ => Ok(exit),
            }
        }
    }
}

#[derive(Serialize)]
struct Report<'a, T> {
    schema: &'static str,
    server: &'a str,
    #[serde(flatten)]
    report: &'a T,
}

fn release(args: &FailoverArgs, server: &Server) -> Result<(Exit, Stopped), Failure> {
    let stopped = stop_here(server)?;
    let report = Report {
        schema: "nlmfo.server.stop/1",
        server: server.name(),
        report: &stopped,
    };
    match args.json {
        true => output::report_json(None, &report),
        false => output::report(None, |out| print_stopped(out, server, &stopped)),
    }
    Ok((stopped.exit(), stopped))
}

fn takeover(args: &FailoverArgs, server: &Server) -> Result<Exit, Failure> {
    let started = start_here(server, args.takeover.after_fencing)?;
    let exit = started.exit();
    interrupt::only_words_are_left(exit as u8);
    let report = Report {
        schema: "nlmfo.server.start/1",
        server: server.name(),
        report: &started,
    };
    match args.json {
        true => output::report_json(None, &report),
        false => output::report(None, |out| print_started(out, server, &started)),
    }
    Ok(exit)
}

/// The JSON of a move to another node.
#[derive(Serialize)]
struct Moved<'a> {
    schema: &'static str,
    server: &'a str,
    from: String,
    to: &'a str,
    stop: &'a Stopped,
    /// What the other node's `nlmfo server start` reported.
    start: Value,
    /// Why the other node did not start it.
    error: Option<String>,
    /// The server serves on this node again.
    back: bool,
    /// From the moment that clients heard nothing any more until the start was over.
    stood_still_ms: f64,
}

/// Stops the server here and starts it on the other node; if that fails, here again.
fn to(args: &FailoverArgs, server: &Server, host: &str) -> Result<Exit, Failure> {
    let rsh = Rsh {
        program: words(&args.pair.rsh).context("--rsh is not a command")?,
        host: host.to_owned(),
        nlmfo: args.pair.remote_nlmfo.clone(),
    };
    let name = server.name();
    let limit = server.description.grace + REMOTE;
    let checked = there(&rsh, &["server", "check", name], limit)?;
    // A hand-over program may bring what is missing.
    if checked.code != Some(0) && args.pair.hand_over.is_none() {
        let error = anyhow!(
            "{host} cannot start server {name}, nothing was changed: {}",
            said(&checked)
        );
        return Err(Failure::new(Exit::Unsupported, error));
    }
    let began = Instant::now();
    let stopped = stop_here(server)?;
    if stopped.exit() != Exit::Done {
        let error =
            anyhow!("the stop of server {name} is not confirmed: it was not started on {host}");
        output::report(None, |out| print_stopped(out, server, &stopped));
        return Err(Failure::new(Exit::NotConfirmed, error));
    }
    let handed = handed_over(args, server, host);
    let started = handed.and_then(|()| there(&rsh, &["server", "start", name, "--json"], limit));
    let (code, start, error) = match started {
        Ok(finished) => {
            let report = serde_json::from_str(&finished.stdout).unwrap_or(Value::Null);
            let serves = matches!(finished.code, Some(0 | 3 | 5)) && !report.is_null();
            let error = (!serves).then(|| said(&finished));
            (finished.code, report, error)
        }
        Err(failure) => (None, Value::Null, Some(format!("{:#}", failure.error))),
    };
    let still = milliseconds(began.elapsed());
    // One that may have started there must not start here too.
    let is_surely_not_there = error.is_some() && matches!(code, Some(1 | 4));
    let back = is_surely_not_there && start_here(server, false).is_ok();
    let exit = match (&error, code) {
        (None, Some(0)) => Exit::Done,
        (None, Some(5)) => Exit::Incomplete,
        _ => Exit::NotConfirmed,
    };
    interrupt::only_words_are_left(exit as u8);
    let moved = Moved {
        schema: "nlmfo.server.move/1",
        server: name,
        from: netns::node(),
        to: host,
        stop: &stopped,
        start,
        error,
        back,
        stood_still_ms: still,
    };
    match args.json {
        true => output::report_json(None, &moved),
        false => output::report(None, |out| {
            print_stopped(out, server, &stopped)?;
            match (&moved.error, moved.back) {
                (None, _) => writeln!(
                    out,
                    "{} server {name} serves on {host}; clients stood still for at most {:.1} s",
                    if exit == Exit::Done { "✓" } else { "✗" },
                    still / 1000.0
                ),
                (Some(error), true) => {
                    writeln!(out, "✗ {host}: {error}; server {name} serves here again")
                }
                (Some(error), false) => writeln!(
                    out,
                    "✗ {host}: {error}; make sure that server {name} does not run there, then run \
                     `nlmfo server start {name}`"
                ),
            }
        }),
    }
    Ok(exit)
}

fn handed_over(args: &FailoverArgs, server: &Server, host: &str) -> Result<(), Failure> {
    let Some(program) = &args.pair.hand_over else {
        return Ok(());
    };
    let vips = server.description.vips.iter();
    let vips: Vec<IpAddr> = vips.map(|vip| vip.address).collect();
    let done = runtime::run(hand_over(
        program,
        host,
        &vips,
        args.pair.hand_over_deadline,
    ));
    let done = done.context("starting the asynchronous runtime")?;
    done.map_err(|error: HandOverError| Failure::new(Exit::NotConfirmed, error))
}

fn there(rsh: &Rsh, words: &[&str], limit: Duration) -> Result<Finished, Failure> {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    let done = runtime::run(rsh.nlmfo(&words, &[], limit));
    let done = done.context("starting the asynchronous runtime")?;
    Ok(done.map_err(anyhow::Error::from)?)
}

/// What a command on the other node printed, on one line.
fn said(finished: &Finished) -> String {
    let lines = finished
        .stdout
        .lines()
        .filter(|line| !line.starts_with("✓"));
    let out = lines.collect::<Vec<_>>().join("; ");
    let text = [&*finished.stderr, &*out].join(" ");
    text.trim().shown().to_string()
}
