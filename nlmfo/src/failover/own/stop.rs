//! The stop of a server of its own on this node.

use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::anyhow;
use serde::Serialize;

use super::no_runtime;
use crate::exit::{Exit, Failure};
use crate::failover::watch::observe;
use crate::failover::whole::report::StopReport;
use crate::failover::whole::{leases, own};
use crate::files::lock::Held;
use crate::runtime;
use crate::server::{self, Others, Server};
use crate::times::milliseconds;

/// What a stop did.
#[derive(Debug, Serialize)]
pub struct Stopped {
    /// Other servers that were disturbed and should not have been.
    pub disturbed: Vec<String>,
    /// What the clients held; null if the server had stopped before.
    pub release: Option<StopReport>,
    /// Devices that nothing on this node uses any more.
    pub free: Vec<PathBuf>,
    pub took_ms: f64,
    /// When packets from clients were dropped.
    #[serde(skip)]
    pub fenced: Instant,
    #[serde(skip)]
    _beside: Beside,
}

/// Work that continues in parallel, and is waited for at the end.
#[derive(Debug)]
struct Beside(Vec<JoinHandle<()>>);

impl Drop for Beside {
    fn drop(&mut self) {
        for thread in self.0.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Stopped {
    pub const SCHEMA: &str = "nlmfo.server.stop/1";

    /// Nothing of the server is here, and nothing was done.
    fn new(server: &Server, began: Instant) -> Self {
        let filesystems = server.description.filesystems.iter();
        Stopped {
            disturbed: Vec::new(),
            release: None,
            free: filesystems.map(|one| one.device.clone()).collect(),
            took_ms: milliseconds(began.elapsed()),
            fenced: began,
            _beside: Beside(Vec::new()),
        }
    }

    pub fn exit(&self) -> Exit {
        match self.is_proved() && self.disturbed.is_empty() {
            true => Exit::Done,
            false => Exit::NotConfirmed,
        }
    }

    /// Whether nothing is left.
    pub fn is_proved(&self) -> bool {
        is_proved(self.release.as_ref())
    }
}

/// Whether nothing is left.
fn is_proved(release: Option<&StopReport>) -> bool {
    release.is_none_or(|report| report.left.is_empty())
}

/// Stops the server. If it is not on this node, only checks that nothing of it is left.
///
/// # Errors
/// It may continue to serve: see [`Server::is_here`].
pub fn stop(server: &Server) -> Result<Stopped, Failure> {
    stop_held(server, &server.lock()?)
}

/// [`stop`] for a caller that holds the server's lock.
///
/// # Errors
/// Like [`stop`].
pub fn stop_held(server: &Server, _: &Held) -> Result<Stopped, Failure> {
    let began = Instant::now();
    let others = Others::than(server.name())?;
    if !server.is_here() {
        server::stop::remove(server)?;
        return Ok(Stopped::new(server, began));
    }
    let pins = server::stop::pins(server);
    if !pins.is_empty() {
        let name = server.name();
        let error = anyhow!(
            "server {name} was not stopped, because its devices would stay busy: {}; end these processes \
             first",
            pins.join("; ")
        );
        return Err(error.into());
    }
    let paused = runtime::run(leases::pause()).map_err(no_runtime)?;
    let stopped = server.within(|| runtime::run(own::stop(server, observe)).map_err(no_runtime));
    drop(paused);
    let own::Stopped {
        report: release,
        fenced,
        watch,
    } = stopped???;
    let beside = Beside(vec![
        thread::spawn(server::wake_lockd),
        thread::spawn(move || drop(watch)),
    ]);
    // Another node must not start it while a device is mounted here.
    if is_proved(release.as_ref()) && server::stop::pins(server).is_empty() {
        server.within(|| own::give_up(server))??;
    }
    server::stop::remove(server)?;
    let after = Others::than(server.name())?;
    Ok(Stopped {
        disturbed: others.disturbed(&after),
        release,
        fenced,
        _beside: beside,
        ..Stopped::new(server, began)
    })
}
