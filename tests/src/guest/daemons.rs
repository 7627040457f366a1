//! Kills, stops and restarts the server's daemons.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nlmfo::rpc::message::{Credential, Procedure, decode_reply, encode_call};
use nlmfo::rpc::xdr::{Decoder, Encoder};
use serde_json::Value;

use super::command::run;
use super::node::TestNode;
use super::tool::Tool;
use super::wait::{Seen, until};

/// Processes of this name in the root network namespace.
fn named(name: &str) -> Result<Vec<Pid>> {
    let here = fs::read_link("/proc/self/ns/net")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // It may end in the meantime.
        let is = fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
        let dead = fs::read_to_string(path.join("stat")).is_ok_and(|stat| stat.contains(") Z "));
        if is && !dead && fs::read_link(path.join("ns/net")).is_ok_and(|net| net == here) {
            let pid = path
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok());
            found.push(Pid::from_raw(pid.context("a process has a number")?));
        }
    }
    Ok(found)
}

/// Sends a signal to the daemon of the root network namespace; there must be one.
pub fn signal(name: &str, signal: Signal) -> Result<()> {
    let found = named(name)?;
    ensure!(!found.is_empty(), "no {name} runs");
    for pid in found {
        kill(pid, signal).with_context(|| format!("{signal} to {name}"))?;
    }
    Ok(())
}

/// Kills the daemon, as a crash does, and waits until it is gone.
pub fn crash(name: &str) -> Result<()> {
    signal(name, Signal::SIGKILL)?;
    until(&format!("the end of {name}"), || {
        Ok(match named(name)?.len() {
            0 => Seen::Yes(()),
            left => Seen::No(format!("{left} left")),
        })
    })
}

/// Waits until lockd there waits for a statd that hangs: it asks statd before it grants a client its
/// first lock.
pub fn wait_lockd_blocked(tool: &Tool) -> Result<()> {
    until("lockd to be blocked", || {
        let report: Value = serde_json::from_str(&tool.run(&["check", "--json"])?.stdout)?;
        let checks = report["checks"].as_array().into_iter().flatten();
        let mut answers = checks.filter(|check| check["name"] == "lockd_answers");
        let reason = answers.next().map(|check| check["reason"].to_string());
        Ok(match reason {
            Some(reason) if reason.contains("it waits for rpc.statd (nsm_mon") => Seen::Yes(()),
            other => Seen::No(format!("{other:?}")),
        })
    })
}

/// Starts an rpcbind without the earlier registrations.
pub fn cold_rpcbind() -> Result<()> {
    let _ = fs::remove_dir_all("/run/rpcbind");
    fs::create_dir_all("/run/rpcbind")?;
    run(&mut TestNode::root().command("rpcbind")).map(drop)
}

/// Registers a program with rpcbind as any local user may.
pub fn register(program: u32, version: u32, netid: &str, address: &str) -> Result<()> {
    const LONGEST: usize = 255;
    let set = Procedure {
        program: 100_000,
        program_name: "rpcbind",
        version: 3,
        number: 1,
        name: "SET",
    };
    let mut arguments = Encoder::default();
    arguments.u32(program);
    arguments.u32(version);
    for text in [netid, address, "anybody"] {
        arguments.opaque("text", text.as_bytes(), LONGEST)?;
    }
    let call = encode_call(7, &set, &Credential::Null, &arguments.finish());
    let mut socket = UnixStream::connect("/run/rpcbind.sock").context("/run/rpcbind.sock")?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    socket.write_all(&call)?;
    let mut reply = vec![0; 1024];
    let length = socket.read(&mut reply)?;
    reply.truncate(length);
    let results = decode_reply(reply.into())?;
    let done = Decoder::new(&results).bool("whether it is registered")?;
    ensure!(done, "rpcbind did not register {program} v{version}");
    Ok(())
}
