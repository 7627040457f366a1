//! `nlmfo watch` while lockd leaves the kernel and another one comes.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use nlmfo::observe::host::{NlmVersion, Transport};

use super::watch::row_shows;
use super::{Context, End, Scenario};
use crate::guest::command::{finish, run};
use crate::guest::locker::{Mode, Range};
use crate::guest::node::TestNode;
use crate::guest::pty::Pty;
use crate::guest::raw::RawNet;
use crate::guest::server::{MOUNTD_PORT, Server};
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "watch-unload",
    claim: "the screen continues when lockd is unloaded and loaded again; SIGHUP restores the terminal",
    run: unload,
    ..Scenario::DEFAULT
}];

const VIP: &str = "10.77.0.1";
/// A module's directory is there for as long as it is loaded.
const LOCKD: &str = "/sys/module/lockd";

fn unload(context: &Context) -> Result<End> {
    let vip: IpAddr = VIP.parse()?;
    let server = Server::start(TestNode::root(), Path::new("/export"))?;
    server.add_vip(vip)?;
    // No mount of the kernel's own client, which needs lockd too.
    let mut net = RawNet::join(&server)?;
    let file = net.file(&server, vip, "file")?;
    let lock = |net: &RawNet, svid: u32| -> Result<()> {
        let mut client = net.client(1, vip, NlmVersion::V4, Transport::Tcp)?;
        client.granted(|raw| raw.nm_lock(&file, svid, Range::new(u64::from(svid), 1), Mode::Write))
    };
    lock(&net, 1)?;
    lock(&net, 2)?;
    let tool = Tool::new(&context.nlmfo, server.node());
    let mut watch = Pty::spawn(tool.command(&["watch"]), 80, 24)?;
    row_shows(&watch, vip, &["2", "serving"])?;

    server.stop_nfsd()?;
    take_out(&server, &net)?;
    watch.shows("that lockd is gone", |text| {
        text.contains("lockd was unloaded; waiting for it")
    })?;

    put_in(&server)?;
    net.look_up_ports(&server)?;
    lock(&net, 3)?;
    // Counted and read by probes on the new lockd.
    row_shows(&watch, vip, &["1", "serving"])?;
    watch.press("e")?;
    watch.shows("both in the events", |text| {
        text.contains("lockd was unloaded") && text.contains("lockd serves again")
    })?;
    watch.signal(Signal::SIGHUP)?;
    ensure!(
        watch.ended()? == (Some(exit::CONFIRMED), true),
        "after SIGHUP: {}",
        watch.text()
    );
    Ok(End::Pass)
}

/// Unloads nfsd and lockd, and with them every module that needs them.
pub(super) fn take_out(server: &Server, net: &RawNet) -> Result<()> {
    // It holds files of nfsd's open.
    run(server.node().command("pkill").args(["-x", "rpc.mountd"]))?;
    until("lockd to leave the kernel", || {
        for node in [server.node(), net.node()] {
            // Busy while a watch reads what NFSv4 clients hold.
            let umount = finish(node.command("umount").args(["-a", "-t", "nfsd"]), "")?;
            if umount.code() != 0 {
                return Ok(Seen::No(umount.stderr));
            }
        }
        let mut modprobe = Command::new("modprobe");
        let said = finish(modprobe.args(["-r", "nfsd", "nfsv3", "lockd"]), "")?.stderr;
        Ok(match fs::exists(LOCKD)? {
            false => Seen::Yes(()),
            true => Seen::No(said),
        })
    })
}

/// Loads them again and serves; what is exported, the distribution's tools remember.
pub(super) fn put_in(server: &Server) -> Result<()> {
    let node = server.node();
    run(Command::new("modprobe").arg("nfsd"))?;
    run(node
        .command("mount")
        .args(["-t", "nfsd", "nfsd", "/proc/fs/nfsd"]))?;
    run(node.command("rpc.nfsd").args(["--tcp", "--udp", "4"]))?;
    let port = MOUNTD_PORT.to_string();
    run(node.command("rpc.mountd").args(["--port", &port]))?;
    server.end_grace()
}
