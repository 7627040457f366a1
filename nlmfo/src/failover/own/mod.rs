//! A server of its own, from outside its namespaces: it stops, starts and moves as a whole, with
//! all its VIPs.

mod moved;
mod start;
mod stop;

use std::io;
use std::net::IpAddr;
use std::time::Instant;

use anyhow::anyhow;
use serde::Serialize;

pub use self::moved::Moved;
pub use self::start::{Started, start, start_held};
pub use self::stop::{Stopped, stop, stop_held};
use super::options::{Options, Task};
use crate::exit::{Exit, Failure};
use crate::server::Server;
use crate::times::milliseconds;

fn no_runtime(error: io::Error) -> Failure {
    anyhow!(error)
        .context("starting the asynchronous runtime")
        .into()
}

/// The configured server that these VIPs belong to. None if none of them belongs to one.
///
/// # Errors
/// If they belong to several servers.
pub fn server_of(vips: &[IpAddr]) -> Result<Option<Server>, Failure> {
    let mut servers = Vec::new();
    for &vip in vips {
        servers.push(Server::of_vip(vip)?);
    }
    let name = |at: usize| servers[at].as_ref().map(Server::name);
    if let Some(at) = (1..vips.len()).find(|&at| name(at) != name(0)) {
        let (vip, first) = (vips[at], vips[0]);
        let error = anyhow!(
            "{vip} does not belong to the same server as {first}: move them one after the other"
        );
        return Err(Failure::new(Exit::Usage, error));
    }
    Ok(servers.into_iter().next().flatten())
}

/// What a failover has done.
pub enum Done<'a> {
    Stopped(&'a Stopped),
    Started(&'a Started),
    Moved(&'a Moved),
}

/// Runs the failover. `show` gets each report as soon as there is one, and the exit status with the
/// last one.
///
/// # Errors
/// If there is no further report.
pub fn run(
    options: &Options,
    server: &Server,
    show: &mut dyn FnMut(Done<'_>, Option<Exit>),
) -> Result<Exit, Failure> {
    if options.dry_run {
        let error = anyhow!(
            "{} is a server of its own, which has no plan to show: run `nlmfo server check {0}`",
            server.name()
        );
        return Err(Failure::new(Exit::Usage, error));
    }
    if let Task::Move(node) = &options.task {
        return moved::run(server, node, show);
    }
    if matches!(options.task, Task::Release | Task::Both) {
        let stopped = stop(server)?;
        let exit = stopped.exit();
        let goes_on = options.task.takes_over() && exit == Exit::Done;
        show(Done::Stopped(&stopped), (!goes_on).then_some(exit));
        if !goes_on {
            return Ok(exit);
        }
    }
    let started = start(server, options.takeover.after_fencing)?;
    let exit = started.exit();
    show(Done::Started(&started), Some(exit));
    Ok(exit)
}

/// What a restart did.
#[derive(Debug, Serialize)]
pub struct Restarted {
    pub stop: Stopped,
    pub start: Started,
    /// From the beginning of the stop until the start was over.
    took_ms: f64,
}

impl Restarted {
    pub const SCHEMA: &str = "nlmfo.server.restart/1";

    pub fn exit(&self) -> Exit {
        match self.stop.exit() {
            Exit::Done => self.start.exit(),
            not_confirmed => not_confirmed,
        }
    }
}

/// Stops the server and starts it again.
///
/// # Errors
/// If it could not be stopped, or not be started.
pub fn restart(server: &Server) -> Result<Restarted, Failure> {
    let began = Instant::now();
    // A supervising process must not find it stopped in between.
    let held = server.lock()?;
    let stop = stop_held(server, &held)?;
    let start = start_held(server, &held, false)?;
    Ok(Restarted {
        stop,
        start,
        took_ms: milliseconds(began.elapsed()),
    })
}
