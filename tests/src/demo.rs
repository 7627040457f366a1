//! The demo, inside the virtual machine: what an operator sees when a VIP leaves a node, and the
//! kernel's own list of locks.
//! The results are checked without nlmfo: against the server's `/proc/locks`, and by NLM calls of
//! another client.

pub mod nfsv4;
mod recording;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::utsname::uname;

use crate::guest::client::Mount;
use crate::guest::known::{Known, ensure_kernel_holds};
use crate::guest::lab::{Lab, MountedClient};
use crate::guest::locker::{Locker, Mode, Outcome, Range};
use crate::guest::tool::{Tool, exit};
use crate::guest::traces::Traces;
use crate::guest::wait::{Seen, until};

/// Where nlmfo pins persistent state.
const PINS: &str = "/sys/fs/bpf/nlmfo";

/// The first is the one that moves.
const VIPS: [&str; 3] = ["10.77.0.1", "10.77.0.2", "fd77::1"];

const CLIENTS: u8 = 2;

/// What each client holds through each VIP.
const LOCKS: [(&str, Range, Mode); 3] = [
    ("mailbox", Range::WHOLE, Mode::Write),
    ("table", Range::new(0, 512), Mode::Write),
    ("table", Range::new(4096, 512), Mode::Read),
];

/// A lock as its client knows it.
struct Held {
    client: usize,
    file: String,
    range: Range,
    known: Known,
}

/// Runs the demo with the binary `nlmfo`; false, with the reason on the last line, if a check
/// fails.
pub fn run(nlmfo: &Path) -> bool {
    match show(nlmfo) {
        Ok(released) => println!(
            "\nDEMO PASSED: the {released} locks through {} are released, every other lock is kept",
            VIPS[0]
        ),
        Err(error) => {
            println!("\nDEMO FAILED: {error:#}");
            return false;
        }
    }
    true
}

/// Returns how many locks were released.
fn show(nlmfo: &Path) -> Result<usize> {
    heading(&format!(
        "A server, three VIPs, two NFSv3 clients (Linux {})",
        uname()?.release().to_string_lossy()
    ));
    let lab = Lab::up(&VIPS, CLIENTS)?;
    println!(
        "server  {} (export {})",
        VIPS.join(", "),
        lab.server.export().display()
    );
    for mounted in &lab.clients {
        let addresses = [lab.vips[0], lab.vips[2]].map(|vip| mounted.client.address_for(vip));
        println!(
            "client  {} ({}, {}), one mount through every VIP",
            mounted.client.node().name(),
            addresses[0],
            addresses[1]
        );
    }
    let (_lockers, held) = take(&lab)?;
    println!(
        "{} fcntl locks taken, /proc/locks of the server:",
        held.len()
    );
    ensure_kernel_holds(&lab.server.locks()?, held.iter().map(|lock| &lock.known))
        .context("before the release")?;
    count(&lab, &held)?;
    let before = Traces::of(lab.server.node())?;

    let tool = Tool::new(PathBuf::from(nlmfo), lab.server.node());
    heading("Locks with their client and VIP");
    typed(&tool, &["locks"])?;

    heading(&format!("{} leaves this node", VIPS[0]));
    typed(&tool, &["failover", "--vip", VIPS[0], "--phase", "release"])?;

    heading("The same, from the kernel's own list");
    println!("/proc/locks of the server:");
    count(&lab, &held)?;
    let gone = lab.vips[0];
    let kept = held
        .iter()
        .map(|lock| &lock.known)
        .filter(|known| known.vip != gone);
    ensure_kernel_holds(&lab.server.locks()?, kept).context("after the release")?;
    ask_around(&lab, &held, gone)?;
    lab.server.remove_vip(gone)?;
    until("the fence to go with its address", || {
        Ok(match Path::new(PINS).exists() {
            true => Seen::No(format!("{PINS} is still there")),
            false => Seen::Yes(()),
        })
    })?;
    println!("{gone} was removed from the server, and its fence with it");
    // So that the routes to it are as before.
    lab.server.add_vip(gone)?;
    Traces::of(lab.server.node())?.ensure_as(&before)?;
    println!("rules, routes, probes and pinned objects of the server: as before");
    Ok(held.iter().filter(|lock| lock.known.vip == gone).count())
}

fn heading(text: &str) {
    println!("\n== {text}\n");
}

/// Every client takes its locks through every VIP; each file is used through
/// one VIP only, so that its inode tells the VIP.
fn take(lab: &Lab) -> Result<(Vec<Locker>, Vec<Held>)> {
    let mut lockers = Vec::new();
    let mut held = Vec::new();
    for (client, mounted) in lab.clients.iter().enumerate() {
        for (vip, mount) in lab.vips.iter().zip(&mounted.mounts) {
            let locker = mounted.client.locker()?;
            for (kind, range, mode) in LOCKS {
                let owner = mounted.client.node().name();
                let file = format!("{kind}-{owner}-{vip}").replace(':', "_");
                let outcome = locker.lock(&mount.path(&file), range, mode)?;
                ensure!(
                    outcome == Outcome::Held,
                    "a lock on {file} through {vip}: {outcome:?}"
                );
                let inode = fs::metadata(lab.server.export().join(&file))?.ino();
                let address = mounted.client.address_for(*vip);
                let known = Known::linux(*vip, address, inode, range, mode);
                held.push(Held {
                    client,
                    file,
                    range,
                    known,
                });
            }
            lockers.push(locker);
        }
    }
    Ok((lockers, held))
}

/// Prints how many of each VIP's locks the server's kernel holds.
fn count(lab: &Lab, held: &[Held]) -> Result<()> {
    let kernel = lab.server.locks()?;
    for vip in &lab.vips {
        let taken: Vec<&Held> = held.iter().filter(|lock| lock.known.vip == *vip).collect();
        let there = kernel
            .iter()
            .filter(|lock| taken.iter().any(|taken| taken.known.inode == lock.inode))
            .count();
        println!("  {:<12} {there} of {}", vip.to_string(), taken.len());
    }
    Ok(())
}

/// Runs nlmfo as an operator would, and prints its output.
fn typed(tool: &Tool<'_>, arguments: &[&str]) -> Result<()> {
    let line = format!("nlmfo {}", arguments.join(" "));
    println!("# {line}");
    let finished = tool.run(arguments)?;
    print!("{}{}", finished.stdout, finished.stderr);
    println!("# exit code {}", finished.code());
    ensure!(
        finished.code() == exit::CONFIRMED,
        "`{line}` ended with exit code {}",
        finished.code()
    );
    Ok(())
}

/// Another client asks the server, through a VIP that stays, whether it could lock the same ranges:
/// those that were released are free, all others are refused.
///
/// Of read locks the answer says nothing: 6.12's `nlmsvc_testlock()`
/// (fs/lockd/svclock.c) forgets which type is asked for and tests for reading.
fn ask_around(lab: &Lab, held: &[Held], gone: IpAddr) -> Result<()> {
    let asking = lab
        .clients
        .iter()
        .map(|mounted| mounted.client.locker())
        .collect::<Result<Vec<_>>>()?;
    let (mut free, mut refused) = (0, 0);
    for lock in held.iter().filter(|lock| lock.known.write) {
        let other = (lock.client + 1) % lab.clients.len();
        let file = stays(&lab.clients[other]).path(&lock.file);
        let outcome = asking[other].test(&file, lock.range, Mode::Write)?;
        let expected = match lock.known.vip == gone {
            true => Outcome::Free,
            false => Outcome::Refused,
        };
        ensure!(
            outcome == expected,
            "{:?} of {} through {}: another client's F_GETLK says {outcome:?}, not {expected:?}",
            lock.range,
            lock.file,
            lock.known.vip
        );
        match outcome {
            Outcome::Free => free += 1,
            _ => refused += 1,
        }
    }
    println!(
        "write locks, by F_GETLK of another client through {}: {free} free, {refused} held",
        lab.vips[1]
    );
    Ok(())
}

/// A mount through a VIP that is not the one that moves.
fn stays(mounted: &MountedClient) -> &Mount {
    &mounted.mounts[1]
}
