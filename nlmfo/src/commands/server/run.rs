//! `nlmfo server run`: a server in the foreground, for systemd. Restarts its daemons.

use anyhow::{Context, anyhow};

use super::{print_started, print_stopped};
use crate::exit::{Exit, Failure};
use crate::failover::own::{start_held, stop_held};
use crate::server::Server;
use crate::server::supervision::{End, Supervised};
use crate::server::systemd::Systemd;
use crate::{output, runtime};

pub(super) fn run(name: &str) -> Result<Exit, Failure> {
    let server = Server::named(name)?;
    let _only = server.supervise()?;
    begin(&server)?;
    let systemd = Systemd::new();
    let note = |text: &str| output::note(text);
    let supervised = Supervised::new(&server, &systemd, &note);
    let end = runtime::run(supervised.until_end()).context("starting the asynchronous runtime")?;
    match end.context("cannot install signal handlers")? {
        End::Signal => stop(&server, &systemd),
        End::Stopped => Ok(stopped_by_another(&server)),
        End::Halted => {
            let error = anyhow!(
                "server {name} no longer serves: nfsd has no thread, and nlmfo did not stop it; \
                 its daemons are not restarted. Run `nlmfo server restart {name}`"
            );
            Err(Failure::new(Exit::NotConfirmed, error))
        }
    }
}

/// On return the server serves, or a signal came.
fn begin(server: &Server) -> Result<(), Failure> {
    let name = server.name();
    let held = server.lock()?;
    match start_held(server, &held, false) {
        Ok(started) if started.already => {
            output::note(format_args!("server {name} already runs; supervising it"));
        }
        Ok(started) => output::report(None, |out| print_started(out, server, &started)),
        // The server may serve nevertheless.
        Err(failure) if server.is_here() => output::fail(&failure.error),
        Err(failure) => return Err(failure),
    }
    Ok(())
}

fn stop(server: &Server, systemd: &Systemd) -> Result<Exit, Failure> {
    systemd.tell("STOPPING=1\nSTATUS=stopping");
    // Another command may be stopping it.
    let held = server.lock()?;
    if !server.is_here() {
        return Ok(stopped_by_another(server));
    }
    let stopped = stop_held(server, &held)?;
    output::report(None, |out| print_stopped(out, server, &stopped));
    Ok(stopped.exit())
}

fn stopped_by_another(server: &Server) -> Exit {
    let name = server.name();
    output::note(format_args!(
        "server {name} was stopped by another command and is no longer on this node"
    ));
    Exit::Done
}
