//! The resource agents of the package resource-agents, as their users configure them, in place of
//! nlmfo's.

use anyhow::{Context, Result};

use super::pacemaker::Resource;
use super::service::Service;

/// What manages the NFS server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// It runs on every node.
    Shared,
    /// The group starts and stops it (`nfsserver`), and its state moves with the filesystem.
    InGroup,
}

/// The documented group without nlmfo's resources, and with what stands for them.
pub fn group(service: &Service, server: Server) -> Result<Resource> {
    let documented = Resource::group(service)?;
    let (head, primitives) = documented
        .xml
        .split_once("  <primitive")
        .context("a group of primitives")?;
    let primitives = primitives.replace("</group>\n", "");
    let mut xml = head.to_owned();
    let kept = primitives
        .split("  <primitive")
        .filter(|primitive| !primitive.contains("provider=\"nlmfo\""));
    for (number, primitive) in kept.enumerate() {
        xml += "  <primitive";
        xml += primitive;
        // After the filesystem, and before exports.
        if number == 0 && server == Server::InGroup {
            let info = format!("{}/nfsinfo", service.folder().display());
            xml += &resource(
                &format!("{}-server", documented.id()),
                "nfsserver",
                &[
                    ("nfs_shared_infodir", &info),
                    ("nfs_no_notify", "true"),
                    ("nfs_init_script", INIT_SCRIPT),
                ],
            );
        }
    }
    let last = format!("{}-notify", documented.id());
    let vip = service.vip.to_string();
    xml += &resource(&last, "nfsnotify", &[("source_host", &vip)]);
    Ok(Resource {
        xml: xml + "</group>\n",
        last,
        id: documented.id,
    })
}

/// With the timeouts that the agents advertise, times ten as all of the lab's.
fn resource(id: &str, agent: &str, parameters: &[(&str, &str)]) -> String {
    let parameters: String = parameters
        .iter()
        .map(|(name, value)| {
            format!("<nvpair id=\"{id}-{name}\" name=\"{name}\" value=\"{value}\"/>")
        })
        .collect();
    let operation = |name, interval| {
        format!(
            "<op id=\"{id}-{name}\" name=\"{name}\" interval=\"{interval}\" timeout=\"900s\"/>\n"
        )
    };
    format!(
        "  <primitive id=\"{id}\" class=\"ocf\" provider=\"heartbeat\" type=\"{agent}\">\n\
         <instance_attributes id=\"{id}-params\">{parameters}</instance_attributes>\n\
         <operations>\n{}{}{}</operations>\n</primitive>\n",
        operation("start", "0"),
        operation("stop", "0"),
        operation("monitor", "30s")
    )
}

/// Debian's init script of the NFS server has this name.
pub const INIT_SCRIPT: &str = "/etc/init.d/nfs-kernel-server";
