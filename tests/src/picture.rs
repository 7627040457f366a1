//! What `cargo xtask picture --record` runs inside the virtual machine: a recording of
//! `nlmfo watch` while real clients lock and a VIP fails over.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};

use crate::guest::churn::Churn;
use crate::guest::lab::Lab;
use crate::guest::locker::Range;
use crate::guest::pty::Pty;
use crate::guest::reboot;
use crate::guest::tool::{Tool, exit};

const VIPS: [&str; 4] = ["10.77.0.1", "10.77.0.2", "10.77.0.3", "fd77::1"];
/// The first client's locks through the VIP that moves, and the second's.
const LOCKS: [u64; 2] = [17, 6];
/// NSM's: another number than any client has seen, and odd.
const STATE: u32 = 4711;
const RECORDING: &str = "/tmp/watch.jsonl";
const RECORD: &str = "/tmp/record.json";

/// The recording's text.
pub fn record(nlmfo: &Path) -> Result<String> {
    let lab = Lab::up(&VIPS, 2)?;
    let tool = Tool::new(nlmfo, lab.server.node());
    let vip = lab.vips[0];
    let mut held = Vec::new();
    for (client, locks) in lab.clients.iter().zip(LOCKS) {
        for number in 0..locks {
            held.push(client.lock(
                "table",
                Range::new(offset(client.client.address_for(vip), number), 5),
            )?);
        }
    }
    let first = &lab.clients[0];
    let second = &lab.clients[1];
    let busy = [(first, 1), (second, 2), (second, 3)].map(|(mounted, mount)| -> Result<Churn> {
        let file = mounted.mounts[mount].path(&format!("busy-{mount}"));
        Churn::start(mounted.client.locker()?, file, Range::WHOLE)
    });
    let mut watch = Pty::spawn(tool.command(&["watch", "--record", RECORDING]), 118, 30)?;
    let total = LOCKS[0] + LOCKS[1];
    row(&watch, vip, &format!(" {total} "))?;
    // Some history before it begins.
    for busy in &busy {
        busy.as_ref()
            .map_err(|error| anyhow::anyhow!("{error:#}"))?
            .wait_for(300)?;
    }
    let release = [
        "failover", "--phase", "release", "--vip", VIPS[0], "--record", RECORD,
    ];
    tool.expect(exit::CONFIRMED, &release)?;
    row(&watch, vip, "released")?;
    let takeover = [
        "failover",
        "--phase",
        "takeover",
        "--vip",
        VIPS[0],
        "--expect",
        RECORD,
        "--grace",
        "90s",
        "--no-notify",
    ];
    thread::scope(|scope| -> Result<()> {
        let taking = scope.spawn(|| tool.expect(exit::CONFIRMED, &takeover));
        row(&watch, vip, "grace")?;
        reboot::tell(first.client.address_for(vip), vip, STATE)?;
        row(&watch, vip, &format!("reclaiming {}/{total}", LOCKS[0]))?;
        reboot::tell(second.client.address_for(vip), vip, STATE)?;
        taking.join().expect("running nlmfo does not panic")?;
        Ok(())
    })?;
    row(&watch, vip, "serving")?;
    for busy in busy {
        busy?.stop()?;
    }
    watch.press("q")?;
    watch.ended()?;
    fs::read_to_string(RECORDING).context(RECORDING)
}

/// Ranges that do not touch.
fn offset(client: IpAddr, number: u64) -> u64 {
    let last = match client {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    1_000 * u64::from(last) + 10 * number
}

fn row(watch: &Pty, vip: IpAddr, word: &str) -> Result<()> {
    let name = format!("{vip} ");
    watch
        .shows(&format!("{vip}: {word}"), |text| {
            text.lines()
                .any(|line| line.starts_with(&name) && line.contains(word))
        })
        .map(drop)
}
