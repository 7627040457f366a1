//! Checks everything that a start needs.

use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::daemons;
use super::description::Link;
use super::program::exists;
use super::{Server, ServerError, link, mounts, running};
use crate::kernel::netns;

/// Something that a start needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    pub what: String,
    /// What is missing, and what to do; none if nothing is.
    pub missing: Option<String>,
}

fn need(what: impl Into<String>, missing: Option<String>) -> Need {
    Need {
        what: what.into(),
        missing,
    }
}

/// Checks all of them, in the node's own namespaces.
pub fn needs(server: &Server) -> Result<Vec<Need>, ServerError> {
    let description = &server.description;
    let mut needs = vec![root()];
    let mut programs = vec!["ip", "mount", "exportfs", "rpc.nfsd"];
    programs.extend(daemons::of(server).iter().map(|daemon| daemon.program()));
    for name in programs {
        let missing = (!exists(name)).then(|| {
            "it is in no directory of PATH: install nfs-utils (nfs-kernel-server), rpcbind and \
             iproute2"
                .to_owned()
        });
        needs.push(need(name, missing));
    }
    let exports = Path::new("/etc/exports");
    let missing = (!exports.is_file()).then(|| "it does not exist: create an empty one".into());
    needs.push(need("/etc/exports", missing));
    if let Some(parent) = link::parent(&description.link) {
        let missing = (!netns::has_interface(parent)).then(|| "no such interface here".into());
        needs.push(need(format!("interface {parent}"), missing));
    }
    if let Link::Netns { name, .. } = &description.link {
        let missing = (!netns::named(name).exists()).then(|| "`ip netns add` it first".into());
        needs.push(need(format!("network namespace {name}"), missing));
    }
    let node = netns::node();
    let missing = (node.eq_ignore_ascii_case(&description.scope)).then(|| {
        "it is this node's name: the scope must be the same on every node, and no host's".into()
    });
    needs.push(need(format!("scope {}", description.scope), missing));
    for vip in &description.vips {
        needs.push(need(format!("VIP {}", vip.address), vip_here(vip.address)));
    }
    let is_here = running().iter().any(|name| name == server.name());
    for filesystem in description.filesystems.iter().filter(|_| !is_here) {
        let device = &filesystem.device;
        let missing = match device.exists() {
            false => Some("it does not exist".to_owned()),
            true => mounts::ensure_free(device)
                .err()
                .map(|error| crate::causes::chain(&error)),
        };
        needs.push(need(format!("device {}", device.display()), missing));
    }
    if description.filesystems.is_empty() {
        for path in description.exported() {
            let missing = (!path.is_dir()).then(|| "no such directory".into());
            needs.push(need(path.display().to_string(), missing));
        }
    }
    Ok(needs)
}

fn root() -> Need {
    let is_root = rustix::process::geteuid().is_root();
    need("root", (!is_root).then(|| "run it with sudo".into()))
}

fn vip_here(vip: IpAddr) -> Option<String> {
    match netns::has_address(vip) {
        Ok(false) => None,
        Ok(true) => Some("it is an address of the node itself: remove it there".into()),
        Err(error) => Some(format!("cannot read this node's addresses: {error}")),
    }
}

/// What is missing for a start.
pub fn missing(server: &Server) -> Result<Vec<String>, ServerError> {
    let needs = needs(server)?.into_iter();
    let missing = needs.filter_map(|need| Some(format!("{}: {}", need.what, need.missing?)));
    Ok(missing.collect())
}
