//! `nlmfo release` of clients of every NLM version and transport, through IPv4 and IPv6 VIPs.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::rpc::nlm::Status;
use serde_json::Value;

use super::targeted_odd::release;
use super::{Context, End, Scenario};
use crate::guest::known::ensure_same;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::raw::{RawNet, address};
use crate::guest::tool::{Tool, exit};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "targeted-raw",
    claim: "of dead clients of NLM v1, v3 and v4, over UDP and TCP, through IPv4 and IPv6, go one \
            lock, one share, one waiter by its ID, and all, and nothing else",
    run: raw,
    ..Scenario::DEFAULT
}];

/// Whoever holds what all wait for.
const HOLDER: u16 = 90;
const READ: u32 = 1;
const WRITE: u32 = 2;

/// What the kernel has: inode, first byte, and whether it waits.
type Row = (u64, u64, bool);

fn rows(lab: &Lab) -> Result<BTreeSet<Row>> {
    let all = lab.server.locks()?;
    let row = |lock: &nlmfo::testbed::proc_locks::PosixLock| (lock.inode, lock.start, lock.waiting);
    Ok(all.iter().map(row).collect())
}

/// The ID of what the client has in a list there.
fn id(listing: &Value, list: &str, client: IpAddr, start: Option<u64>) -> Result<String> {
    let rows = listing[list].as_array().with_context(|| list.to_owned())?;
    let is_it = |row: &&Value| {
        row["client"] == client.to_string()
            && start.is_none_or(|start| row["range"]["start"] == start)
    };
    let row = rows.iter().find(is_it);
    let row = row.with_context(|| format!("no {list} of {client} at {start:?}: {listing}"))?;
    Ok(row["id"].as_str().context("id")?.to_owned())
}

fn count(listing: &Value, list: &str) -> usize {
    listing[list].as_array().map_or(0, Vec::len)
}

fn raw(context: &Context) -> Result<End> {
    let lab = Lab::up(&["10.77.0.1", "fd77::1"], 0)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let net = RawNet::join(&lab.server)?;
    let [four, six] = lab.vips[..] else {
        anyhow::bail!("two VIPs were asked for");
    };
    let mut cases = vec![
        (1, four, NlmVersion::V1, Transport::Udp),
        (2, six, NlmVersion::V3, Transport::Udp),
        (3, six, NlmVersion::V4, Transport::Tcp),
    ];
    if context.full {
        cases.clear();
        for vip in [four, six] {
            for version in [NlmVersion::V1, NlmVersion::V3, NlmVersion::V4] {
                for transport in [Transport::Udp, Transport::Tcp] {
                    cases.push((cases.len() as u16 + 1, vip, version, transport));
                }
            }
        }
    }
    let names = ["raw", "waited", "shared"].map(str::to_owned);
    let inode =
        |name: &str| -> Result<u64> { Ok(fs::metadata(lab.server.export().join(name))?.ino()) };

    let of_four = net.files(&lab.server, four, &names)?;
    let mut holder = net.client(HOLDER, four, NlmVersion::V4, Transport::Tcp)?;
    holder.granted(|raw| raw.lock(&of_four[1], 1, Range::WHOLE, Mode::Write))?;
    let mut clients = Vec::new();
    for &(number, vip, version, transport) in &cases {
        let files = net.files(&lab.server, vip, &names)?;
        let mut client = net.client(number, vip, version, transport)?;
        let start = 100 * u64::from(number);
        for (svid, offset) in [(1, 0), (2, 10), (1, 20)] {
            let range = Range::new(start + offset, 5);
            client.granted(|raw| raw.lock(&files[0], svid, range, Mode::Write))?;
        }
        // NLM v1 has neither shares nor the call by which the lab waits.
        if version != NlmVersion::V1 {
            let waits = client.wait(&files[1], 3, Range::new(start, 5), Mode::Write)?;
            ensure!(waits == Status::Blocked, "{number}: {waits:?}");
            client.granted(|raw| raw.share(&files[2], READ, 0))?;
        }
        clients.push(client);
    }
    // One that denies others what they have not asked for.
    holder.granted(|raw| raw.share(&of_four[2], READ, WRITE))?;

    let before = tool.json(exit::CONFIRMED, &["locks"])?;
    let mut expected = rows(&lab)?;
    let (raw, waited) = (inode("raw")?, inode("waited")?);
    let queued = expected.iter().any(|(_, _, waits)| *waits);
    let newer = cases
        .iter()
        .filter(|(_, _, version, _)| *version != NlmVersion::V1);
    let newer = newer.count();
    ensure!(
        count(&before, "locks") == 3 * cases.len() + 1
            && count(&before, "waiters") == if queued { newer } else { 0 },
        "{before}"
    );
    let mut shares = count(&before, "shares");
    for &(number, vip, version, _) in &cases {
        let client = address(number, vip);
        let start = 100 * u64::from(number);
        release(
            &tool,
            &["--lock", &id(&before, "locks", client, Some(start + 20))?],
        )?;
        expected.remove(&(raw, start + 20, false));
        ensure_same("after one lock", &expected, &rows(&lab)?)?;
        if queued && version != NlmVersion::V1 {
            release(
                &tool,
                &["--lock", &id(&before, "waiters", client, Some(start))?],
            )?;
            expected.remove(&(waited, start, true));
            ensure_same("after one waiter", &expected, &rows(&lab)?)?;
        }
        if version != NlmVersion::V1 {
            let report = release(&tool, &["--lock", &id(&before, "shares", client, None)?])?;
            ensure!(count(&report, "shares") == 1, "{report}");
            ensure_same("after one share", &expected, &rows(&lab)?)?;
            shares -= 1;
        }
    }
    // A share that denies something.
    let denies = id(&before, "shares", address(HOLDER, four), None)?;
    release(&tool, &["--lock", &denies])?;
    let now = tool.json(exit::CONFIRMED, &["locks"])?;
    ensure!(
        count(&now, "shares") == shares - 1 && count(&now, "locks") == 2 * cases.len() + 1,
        "{now}"
    );
    let mut again = net.client(HOLDER + 1, four, NlmVersion::V4, Transport::Udp)?;
    again.granted(|raw| raw.share(&of_four[2], WRITE, READ))?;

    // All of each, of both owners.
    for &(number, vip, ..) in &cases {
        let start = 100 * u64::from(number);
        release(&tool, &["--client", &address(number, vip).to_string()])?;
        expected.remove(&(raw, start, false));
        expected.remove(&(raw, start + 10, false));
        ensure_same("after a whole client", &expected, &rows(&lab)?)?;
    }
    let last = tool.json(exit::CONFIRMED, &["locks"])?;
    ensure!(
        count(&last, "locks") == 1 && count(&last, "waiters") == 0 && count(&last, "shares") == 1,
        "{last}"
    );
    drop(clients);
    Ok(End::Pass)
}
