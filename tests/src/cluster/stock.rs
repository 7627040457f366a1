//! The resource agents of the package resource-agents, as their users configure them, in place of
//! nlmfo's.

use anyhow::{Context, Result};

use super::Node;
use super::pacemaker::Resource;
use super::service::Service;
use crate::guest::server::MOUNTD_PORT;

/// The documented group of a service without nlmfo's resources, and with what stands for them. The
/// NFS server runs on every node.
pub fn group(service: &Service) -> Result<Resource> {
    let documented = Resource::group(service)?;
    let (last, notify) = notify(&documented.id, service);
    let primitives = primitives(&documented.xml)?;
    Ok(grouped(documented.id, last, primitives.concat() + &notify))
}

/// One group of all services, which starts and stops the NFS server too. Its state is on the
/// filesystem of the first service.
pub fn group_with_server(services: &[Service]) -> Result<Resource> {
    const ID: &str = "nfs";
    let mut filesystems = String::new();
    let mut others = String::new();
    let mut last = String::new();
    for (number, service) in services.iter().enumerate() {
        let documented = Resource::group(service)?;
        for primitive in primitives(&documented.xml)? {
            match primitive.contains("type=\"Filesystem\"") {
                true => filesystems += &primitive,
                false => others += &primitive,
            }
        }
        let (id, notify) = notify(&format!("{ID}{number}"), service);
        others += &notify;
        last = id;
    }
    let first = services.first().context("no service")?;
    let info = format!("{}/nfsinfo", first.folder().display());
    let server = resource(
        "nfs-server",
        "nfsserver",
        &[
            ("nfs_shared_infodir", &info),
            ("nfs_server_scope", "nfs"),
            ("nfs_no_notify", "true"),
            ("nfs_init_script", INIT_SCRIPT),
            ("rpcpipefs_dir", "/run/rpc_pipefs"),
        ],
    );
    Ok(grouped(
        ID.to_owned(),
        last,
        filesystems + &server + &others,
    ))
}

/// Stops the NFS server that the lab has started, and leaves an init script that `nfsserver` uses.
/// Leases and grace last as long as the kernel's defaults.
pub fn give_server_away(node: &Node) -> Result<()> {
    let script = format!(
        "#!/bin/sh
ended() {{
    killall \"$1\" 2>/dev/null
    # Those of the lab remain as zombies.
    while pgrep -r S,D,R -x \"$1\" >/dev/null; do sleep 0.1; done
}}
case $1 in
start)
    echo 10 >/proc/sys/fs/nfs/nlm_timeout
    echo 0 >/proc/sys/fs/nfs/nlm_grace_period
    echo 90 >/proc/fs/nfsd/nfsv4leasetime
    echo 90 >/proc/fs/nfsd/nfsv4gracetime
    mkdir -p /var/lib/nfs/nfsdcld
    nfsdcld && rpc.nfsd --tcp --udp 4 && rpc.mountd --port {MOUNTD_PORT}
    ;;
stop)
    rpc.nfsd 0
    ended rpc.mountd
    ended nfsdcld
    ;;
status)
    [ \"$(cat /proc/fs/nfsd/threads)\" -gt 0 ] || exit 3
    ;;
esac
"
    );
    node.node().write_program(INIT_SCRIPT, &script)?;
    node.shell(&format!(
        "{INIT_SCRIPT} stop; killall rpc.statd; umount /run/rpc_pipefs"
    ))?;
    Ok(())
}

/// A group of these primitives.
fn grouped(id: String, last: String, primitives: String) -> Resource {
    Resource {
        xml: format!("<group id=\"{id}\">\n{primitives}</group>\n"),
        last,
        id,
    }
}

/// The primitives of a group that are not nlmfo's.
fn primitives(group: &str) -> Result<Vec<String>> {
    const START: &str = "  <primitive";
    let (_, primitives) = group.split_once(START).context("a group of primitives")?;
    let primitives = primitives.replace("</group>\n", "");
    let all = primitives.split(START);
    Ok(all
        .filter(|primitive| !primitive.contains("provider=\"nlmfo\""))
        .map(|primitive| format!("{START}{primitive}"))
        .collect())
}

/// What notifies the clients of a service, and its name.
fn notify(group: &str, service: &Service) -> (String, String) {
    let id = format!("{group}-notify");
    let vip = service.vip.to_string();
    let xml = resource(&id, "nfsnotify", &[("source_host", &vip)]);
    (id, xml)
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

/// Debian's init script of the NFS server has this name. It signals nfsd's threads, which no longer
/// listen, so the lab has one of its own.
const INIT_SCRIPT: &str = "/etc/init.d/nfs-kernel-server";
