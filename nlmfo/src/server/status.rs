//! The state of a server, by the kernel.

use std::path::Path;

use serde::Serialize;

use super::daemons;
use super::description::Vip;
use super::facts::{self, Facts};
use super::phase::{self, Phase};
use super::{Server, ServerError, stop};
use crate::kernel::mounts as kernel_mounts;
use crate::kernel::netns;

/// A server on this node.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub name: String,
    pub scope: String,
    pub state: State,
    pub vips: Vec<VipStatus>,
    #[serde(flatten)]
    pub facts: Facts,
    pub daemons: Vec<DaemonStatus>,
    pub filesystems: Vec<FilesystemStatus>,
    /// What is not as it should be.
    pub problems: Vec<String>,
}

/// Whether a server runs on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not on this node.
    Stopped,
    Serving,
    /// Its namespaces are here, but something is missing.
    Degraded,
}

impl State {
    pub fn words(self) -> &'static str {
        match self {
            State::Stopped => "stopped",
            State::Serving => "serving",
            State::Degraded => "degraded",
        }
    }
}

/// A VIP of a server, and whether it is up.
#[derive(Clone, Debug, Serialize)]
pub struct VipStatus {
    pub vip: Vip,
    pub up: bool,
}

/// A daemon of a server, and its process if it runs.
#[derive(Clone, Debug, Serialize)]
pub struct DaemonStatus {
    pub program: &'static str,
    pub process: Option<i32>,
}

/// A filesystem of a server, and whether it is mounted.
#[derive(Clone, Debug, Serialize)]
pub struct FilesystemStatus {
    pub path: std::path::PathBuf,
    pub device: std::path::PathBuf,
    pub mounted: bool,
}

/// Reads the state of a server. Runs in the node's own namespaces.
pub fn of(server: &Server) -> Result<Status, ServerError> {
    let is_here = server.is_here();
    let (facts, vips, mounted, phase) = match is_here {
        true => server.within(|| look(server))??,
        false => {
            let vips = server.description.vips.iter();
            let down = vips.map(|&vip| VipStatus { vip, up: false });
            (Facts::default(), down.collect(), Vec::new(), Phase::Serving)
        }
    };
    let processes = match is_here {
        true => (server.namespaces.processes())
            .map_err(server.namespaces_error("list the processes in"))?,
        false => Vec::new(),
    };
    let daemons = daemons::of(server).into_iter().map(|daemon| DaemonStatus {
        program: daemon.program(),
        process: daemons::found(daemon, &processes).map(|process| process.id),
    });
    let filesystems = server.description.filesystems.iter();
    let filesystems = filesystems.map(|filesystem| FilesystemStatus {
        path: filesystem.path.clone(),
        device: filesystem.device.clone(),
        mounted: mounted.contains(&filesystem.path),
    });
    let mut status = Status {
        name: server.name().to_owned(),
        scope: server.description.scope.clone(),
        state: State::Stopped,
        vips,
        facts,
        daemons: daemons.collect(),
        filesystems: filesystems.collect(),
        problems: Vec::new(),
    };
    if is_here {
        status.problems = problems(&status, stop::pins(server));
        if phase == Phase::Unfinished {
            status.problems.push(format!(
                "a start or stop is under way, or was interrupted: `nlmfo server start {}` continues it",
                status.name
            ));
        }
        status.state = match status.problems.is_empty() {
            true => State::Serving,
            false => State::Degraded,
        };
    }
    Ok(status)
}

type Seen = (Facts, Vec<VipStatus>, Vec<std::path::PathBuf>, Phase);

/// Runs in its namespaces.
fn look(server: &Server) -> Result<Seen, ServerError> {
    let addresses = |source| ServerError::Io {
        action: "read the addresses of",
        path: server.name().into(),
        source,
    };
    let mut vips = Vec::new();
    for &vip in &server.description.vips {
        let up = netns::has_address(vip.address).map_err(addresses)?;
        vips.push(VipStatus { vip, up });
    }
    let all = kernel_mounts::mounts();
    let all = all.map_err(ServerError::io("read the mounts of", Path::new("/")))?;
    let paths = all.into_iter().map(|mount| mount.mount_point).collect();
    Ok((facts::here()?, vips, paths, phase::read()))
}

fn problems(status: &Status, mut problems: Vec<String>) -> Vec<String> {
    if status.facts.threads == 0 {
        problems.push("nfsd has no thread".into());
    }
    let down = status.vips.iter().filter(|vip| !vip.up);
    problems.extend(down.map(|vip| format!("VIP {} is down", vip.vip.address)));
    let missing = status
        .daemons
        .iter()
        .filter(|daemon| daemon.process.is_none());
    problems.extend(missing.map(|daemon| format!("{} does not run", daemon.program)));
    let unmounted = (status.filesystems.iter()).filter(|filesystem| !filesystem.mounted);
    problems.extend(
        unmounted.map(|filesystem| format!("{} is not mounted", filesystem.path.display())),
    );
    problems
}
