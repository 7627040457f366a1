//! NFSv4 state: listed as the kernel has it, with its VIPs, and never overlooked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::counters::nfs4::{CounterProbes4, Counters4};
use nlmfo::observe::host::Transport;
use nlmfo::observe::programs::Programs;
use serde_json::Value;

use super::nfs4_waiters::{self, Mounted};
use super::{Context, End, Machine, Scenario};
use crate::guest::client::{Client, Mount};
use crate::guest::command::run;
use crate::guest::known::ensure_same;
use crate::guest::lab::Lab;
use crate::guest::locker::{Locker, Mode, Outcome, Range};
use crate::guest::pty::Pty;
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "v4-seen-not-confirmed",
    claim: "opens, locks and delegations of 4.0, 4.1 and 4.2 clients are listed with every VIP; \
            the release of a VIP with such state, or possibly with it, is not confirmed, except \
            with --nfs 3; what the kernel queues is listed with whom it waits for",
    run: seen_not_confirmed,
    machine: Machine::Own("nfsd keeps its NFSv4 clients for longer than their mounts"),
    ..Scenario::DEFAULT
}];

const VIPS: [&str; 4] = ["10.77.0.1", "10.77.0.2", "10.77.0.3", "fd77::1"];

/// Clients with NFSv4 mounts, and the owners that hold something through them.
struct Holders {
    clients: Vec<Client>,
    /// Of each, the first.
    mounts: Vec<Mount>,
    lockers: Vec<Locker>,
    /// By the last part of a client's address.
    vips: BTreeMap<u8, BTreeSet<IpAddr>>,
}

impl Holders {
    /// 4.0 through the first VIP, 4.1 through the second, 4.2 through the IPv6 one, and
    /// one 4.1 client with connections to the first and the second. Each has a file of its
    /// own open, locked in part, and a lock on a file that all have open, so that nobody
    /// has a delegation of it; one file is open without any lock.
    fn up(lab: &Lab) -> Result<Holders> {
        run(Command::new("modprobe").arg("nfsv4"))?;
        let [one, two, _, six] = lab.vips[..] else {
            anyhow::bail!("the scenario wants four VIPs");
        };
        let mut holders = Holders {
            clients: Vec::new(),
            mounts: Vec::new(),
            lockers: Vec::new(),
            vips: BTreeMap::new(),
        };
        for (number, minor, vips) in [
            (2, 0, vec![one]),
            (3, 1, vec![two]),
            (4, 2, vec![six]),
            (5, 1, vec![one, two]),
        ] {
            let client = Client::join(&lab.server, number)?;
            let mut mounts: Vec<Mount> = (vips.iter())
                .map(|&vip| client.mount_nfs4(&lab.server, vip, minor))
                .collect::<Result<_>>()?;
            let locker = client.locker()?;
            let start = 10 * u64::from(number);
            for file in [format!("own-{number}"), "shared".to_owned()] {
                let range = Range::new(start, 5);
                let outcome = locker.lock(&mounts[0].path(&file), range, Mode::Write)?;
                ensure!(outcome == Outcome::Held, "{file}: {outcome:?}");
            }
            let last = mounts.last().context("no mount")?;
            locker.test(
                &last.path(&format!("open-{number}")),
                Range::WHOLE,
                Mode::Read,
            )?;
            holders.vips.insert(number, vips.into_iter().collect());
            holders.mounts.push(mounts.swap_remove(0));
            holders.clients.push(client);
            holders.lockers.push(locker);
        }
        Ok(holders)
    }
}

/// Counts from here on. The counters are in the kernel for as long as both are kept.
fn count() -> Result<(Programs, CounterProbes4)> {
    let mut programs = Programs::load(&nlmfo::kernel::layout::load()?)?;
    let counters = CounterProbes4::attach(&mut programs)?.context("nfsd is not loaded")?;
    Ok((programs, counters))
}

/// Whether the calls of [`Holders::up`] were counted: three opens of each client, two locks, of
/// which that on its own file may be behind a delegation.
fn ensure_counted((_, counters): &(Programs, CounterProbes4), lab: &Lab) -> Result<()> {
    let counted = counters.read()?;
    for vip in [lab.vips[0], lab.vips[1], lab.vips[3]] {
        let of_vip = counted.get(&vip).copied().unwrap_or_default();
        ensure!(of_vip.opens >= 3 && of_vip.locks >= 1, "{vip}: {of_vip:?}");
    }
    let unused = counted.get(&lab.vips[2]).copied().unwrap_or_default();
    let mut sum = Counters4::default();
    counted.values().for_each(|of_vip| sum += *of_vip);
    ensure!(
        unused == Counters4::default() && sum.opens >= 12 && (4..=8).contains(&sum.locks),
        "{counted:?}"
    );
    let others =
        sum.opens_reclaimed + sum.opens_in_grace + sum.locks_reclaimed + sum.locks_in_grace;
    ensure!(others == 0 && sum.locks_denied == 0, "{counted:?}");
    Ok(())
}

fn seen_not_confirmed(context: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 0)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let first = Client::join(&lab.server, 1)?;
    let (mut held, mut mounts) = (Vec::new(), Vec::new());
    for (start, vip) in [(1, lab.vips[0]), (3, lab.vips[2])] {
        let mount = first.mount(&lab.server, vip, Transport::Tcp)?;
        held.push(first.lock(&mount, "shared", Range::new(start, 1), Mode::Write)?);
        mounts.push(mount);
    }
    ensure!(
        tool.json(exit::CONFIRMED, &["locks"])?["nfs4"]["states"] == Value::Array(Vec::new()),
        "NFSv4 state without an NFSv4 client"
    );

    let counted = count()?;
    let holders = Holders::up(&lab)?;
    ensure_counted(&counted, &lab)?;
    let listing = tool.json(exit::CONFIRMED, &["locks"])?;
    if let Some(reason) = listing["nfs4"]["reason"].as_str() {
        // State that cannot be read does not count as none.
        let arguments = ["failover", "--phase", "release", "--vip", VIPS[1]];
        let report = tool.json(exit::NOT_CONFIRMED, &arguments)?;
        ensure!(report["vips"][0]["nfs4"]["state"] == "unknown", "{report}");
        return Ok(End::Unsupported(reason.to_owned()));
    }
    let listing = listed(&tool, &lab, &holders)?;
    views(&tool, &lab, &listing)?;
    watched(&tool, &lab, &listing)?;
    let mounted = |client, mount, nfs| Mounted { client, mount, nfs };
    let of = |nth: usize, nfs| mounted(&holders.clients[nth], &holders.mounts[nth], nfs);
    let (one, two) = (
        mounted(&first, &mounts[1], "3"),
        mounted(&first, &mounts[0], "3"),
    );
    nfs4_waiters::listed(
        &tool,
        &lab,
        &[one, of(1, "4.1"), two, of(0, "4.0"), of(3, "4.1")],
    )?;
    releases(&tool, &lab)?;
    not_connected(&tool, &lab)?;
    drop((held, holders));
    Ok(End::Pass)
}

/// Lists until every connection is there and no delegation is being recalled; compares
/// each row with the kernel's own files.
fn listed(tool: &Tool, lab: &Lab, holders: &Holders) -> Result<Value> {
    let listing = until("every client with its VIPs", || {
        let listing = tool.json(exit::CONFIRMED, &["locks"])?;
        let seen = vips_of(&listing)?;
        Ok(match seen == holders.vips {
            true => Seen::Yes(listing),
            false => Seen::No(format!("expected {:?}, listed {seen:?}", holders.vips)),
        })
    })?;
    let nfs4 = &listing["nfs4"];
    ensure!(nfs4["exact"] == true, "it is not exact: {nfs4}");
    ensure_same(
        "nlmfo locks, states",
        &kernel_states(lab)?,
        &states_of(&listing)?,
    )?;

    let mut ranges = BTreeSet::new();
    for lock in lab.server.locks()? {
        ranges.insert((lock.inode, lock.start, lock.end));
    }
    let mut seen = BTreeSet::new();
    for lock in array(&listing["locks"])? {
        seen.insert(range_of(lock, &lock["range"])?);
    }
    for state in array(&nfs4["states"])? {
        for range in array(&state["ranges"])? {
            seen.insert(range_of(state, &range["range"])?);
        }
    }
    ensure_same("nlmfo locks, ranges of NFSv3 and NFSv4", &ranges, &seen)?;
    for state in array(&nfs4["states"])? {
        let path = state["file"]["path"]
            .as_str()
            .context("a state without a path")?;
        let inode = fs::metadata(path).with_context(|| path.to_owned())?.ino();
        ensure!(
            state["file"]["ino"] == inode,
            "{path} is inode {inode}: {state}"
        );
    }
    Ok(listing)
}

/// What narrows the listing, and its text.
fn views(tool: &Tool, lab: &Lab, listing: &Value) -> Result<()> {
    let shared = lab.server.export().join("shared");
    let inode = fs::metadata(&shared)?.ino();
    let path = shared.to_str().context("no UTF-8")?;
    let narrowed = tool.json(exit::CONFIRMED, &["locks", "--file", path])?;
    let expected: Vec<&Value> = (array(&listing["nfs4"]["states"])?.iter())
        .filter(|state| state["file"]["ino"] == inode)
        .collect();
    let seen = array(&narrowed["nfs4"]["states"])?;
    ensure!(
        !expected.is_empty() && seen.len() == expected.len(),
        "--file {path}: expected {} states, listed {seen:?}",
        expected.len()
    );
    let all = array(&listing["nfs4"]["states"])?.len();
    let export = lab.server.export().to_str().context("no UTF-8")?;
    let busy = tool.json(
        exit::CONFIRMED,
        &["locks", "--nfs", "4", "--filesystem", export],
    )?;
    ensure!(array(&busy["nfs4"]["states"])?.len() == all && array(&busy["locks"])?.is_empty());
    let other = tool.json(exit::CONFIRMED, &["locks", "--filesystem", "/proc"])?;
    ensure!(array(&other["nfs4"]["states"])?.is_empty() && array(&other["locks"])?.is_empty());
    let third = tool.json(exit::CONFIRMED, &["locks", "--vip", VIPS[2]])?;
    ensure!(array(&third["nfs4"]["states"])?.is_empty() && array(&third["locks"])?.len() == 1);
    let text = tool.expect(exit::CONFIRMED, &["locks"])?.stdout;
    for word in [
        "10.77.0.1,10.77.0.2",
        "4.0",
        "4.2",
        "open read-write",
        "lock write",
    ] {
        ensure!(text.contains(word), "{word:?} is not in\n{text}");
    }
    Ok(())
}

/// The verdicts on VIPs with and without NFSv4 state.
/// `nlmfo watch` shows with each VIP what `nlmfo locks` lists through it.
fn watched(tool: &Tool, lab: &Lab, listing: &Value) -> Result<()> {
    let tick = tool.json(exit::CONFIRMED, &["watch", "--once"])?;
    for vip in lab.vips.iter().map(IpAddr::to_string) {
        let through = |state: &&Value| {
            let vips = state["vips"].as_array().into_iter().flatten();
            state["standing"] == "held" && vips.into_iter().any(|other| *other == *vip)
        };
        // A lock's state counts with each of its ranges.
        let listed = array(&listing["nfs4"]["states"])?.iter().filter(through);
        let lines = |state: &Value| match state["kind"] == "lock" {
            true => state["ranges"].as_array().map_or(0, Vec::len),
            false => 1,
        };
        let listed: usize = listed.map(lines).sum();
        let of_vip = |what: &str| -> Result<&Value> {
            let all = array(&tick[what])?.iter();
            let mut ours = all.filter(|one| one["vip"] == *vip);
            ours.next()
                .with_context(|| format!("no {what} of {vip}: {tick}"))
        };
        if listed == 0 {
            continue;
        }
        let held = &of_vip("vips")?["held4"];
        let counted: u64 = ["opens", "locks", "delegations", "layouts", "others"]
            .iter()
            .filter_map(|what| held[what].as_u64())
            .sum();
        let clients = array(&of_vip("details")?["nfs4"])?.iter();
        let shown = clients.filter_map(|client| client["lines"].as_array());
        let shown: usize = shown.map(Vec::len).sum();
        ensure!(
            counted == listed as u64 && shown == listed,
            "{vip}: {listed} listed, {counted} counted, {shown} shown: {tick} {listing}"
        );
    }
    Ok(())
}

fn releases(tool: &Tool, lab: &Lab) -> Result<()> {
    let release = |code, vip: &str, more: &[&str]| {
        let arguments = ["failover", "--phase", "release", "--vip", vip];
        tool.json(code, &[&arguments, more].concat())
    };
    let clean = release(exit::CONFIRMED, VIPS[2], &[])?;
    ensure!(clean["vips"][0]["nfs4"]["state"] == "none", "{clean}");

    let planned = release(exit::CONFIRMED, VIPS[1], &["--dry-run"])?;
    ensure!(planned["vips"][0]["nfs4"]["state"] == "held", "{planned}");

    let kept = release(
        exit::NOT_CONFIRMED,
        VIPS[0],
        &["--record", "/tmp/v4-record"],
    )?;
    let vip = &kept["vips"][0];
    ensure!(array(&vip["released"])?.len() == 1 && array(&vip["remaining"])?.is_empty());
    // The 4.0 client and the one with two connections.
    ensure!(vip["nfs4"]["counts"]["clients"] == 2, "{vip}");
    let blocker = vip["blockers"][0].as_str().unwrap_or_default();
    ensure!(blocker.contains("one server per VIP"), "{vip}");
    let record: Value = serde_json::from_str(&lab.server.node().read("/tmp/v4-record")?)?;
    ensure!(
        record["nfs4"]
            .as_array()
            .is_some_and(|lines| !lines.is_empty())
    );

    let without = release(exit::CONFIRMED, VIPS[0], &["--nfs", "3"])?;
    ensure!(
        without["vips"][0]["nfs4"]["state"] == "left_out",
        "{without}"
    );
    release(exit::NOT_CONFIRMED, VIPS[3], &[])?;
    Ok(())
}

/// nfsd closes the connections to an address that goes: its client has no VIP any more,
/// and may be any VIP's.
fn not_connected(tool: &Tool, lab: &Lab) -> Result<()> {
    let watch = Pty::spawn(tool.command(&["watch"]), 120, 40)?;
    watch.shows("the 4.2 client's VIP", |text| text.contains(VIPS[3]))?;
    lab.server.remove_vip(lab.vips[3])?;
    watch.shows("where the 4.2 client was last seen", |text| {
        text.contains(&format!("not connected, last seen on {}", VIPS[3]))
    })?;
    drop(watch);
    until("the 4.2 client to be without a connection", || {
        let listing = tool.json(exit::CONFIRMED, &["locks", "--nfs", "4"])?;
        let clients = array(&listing["nfs4"]["clients"])?;
        let lone = clients
            .iter()
            .any(|c| c["minor"] == 2 && c["vip_unknown"] == true);
        Ok(match lone {
            true => Seen::Yes(()),
            false => Seen::No(format!("{clients:?}")),
        })
    })?;
    let arguments = ["failover", "--phase", "release", "--vip", VIPS[2]];
    let unknown = tool.json(exit::NOT_CONFIRMED, &arguments)?;
    ensure!(
        unknown["vips"][0]["nfs4"]["not_connected"] == 1,
        "{unknown}"
    );
    let blocker = unknown["vips"][0]["blockers"][0]
        .as_str()
        .unwrap_or_default();
    ensure!(
        blocker.contains("without a connection, VIP unknown"),
        "{unknown}"
    );
    tool.json(exit::CONFIRMED, &[&arguments[..], &["--nfs", "3"]].concat())?;
    Ok(())
}

fn array(value: &Value) -> Result<&Vec<Value>> {
    value
        .as_array()
        .with_context(|| format!("no list: {value}"))
}

/// The VIPs of each client, by the last part of its address.
fn vips_of(listing: &Value) -> Result<BTreeMap<u8, BTreeSet<IpAddr>>> {
    let mut seen = BTreeMap::new();
    for client in array(&listing["nfs4"]["clients"])? {
        let address: IpAddr = serde_json::from_value(client["client"].clone())?;
        let number = match address {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(v6) => v6.octets()[15],
        };
        let vips: BTreeSet<IpAddr> = serde_json::from_value(client["vips"].clone())?;
        seen.insert(number, vips);
    }
    Ok(seen)
}

/// Client's number, type, inode and access of a state.
type Known = (u64, String, u64, String);

fn states_of(listing: &Value) -> Result<BTreeSet<Known>> {
    (array(&listing["nfs4"]["states"])?.iter())
        .filter(|state| state["standing"] == "held")
        .map(|state| {
            let may = |what: &str| state["access"][what] == true;
            let kind = state["kind"].as_str().context("kind")?;
            let access = match kind {
                "open" => {
                    let letter = |may, letter| if may { letter } else { "-" };
                    [letter(may("read"), "r"), letter(may("write"), "w")].concat()
                }
                "delegation" if may("write") => "w".to_owned(),
                "delegation" => "r".to_owned(),
                _ => String::new(),
            };
            Ok((
                state["number"].as_u64().context("number")?,
                kind.to_owned(),
                state["file"]["ino"].as_u64().context("ino")?,
                access,
            ))
        })
        .collect()
}

/// The same out of `clients/N/states`.
fn kernel_states(lab: &Lab) -> Result<BTreeSet<Known>> {
    let mut known = BTreeSet::new();
    let clients = lab.server.node().path(Path::new("/proc/fs/nfsd/clients"));
    for entry in fs::read_dir(clients)? {
        let entry = entry?;
        let number = entry.file_name().to_string_lossy().parse()?;
        for line in fs::read_to_string(entry.path().join("states"))?.lines() {
            let value = |key: &str| {
                let (_, rest) = line.split_once(&format!("{key}: "))?;
                Some(
                    rest.split([',', ' '])
                        .next()
                        .unwrap_or(rest)
                        .trim_matches('"'),
                )
            };
            let kind = match value("type") {
                Some("deleg") => "delegation",
                Some(other) => other,
                None => anyhow::bail!("a state without a type: {line}"),
            };
            let Some(superblock) = value("superblock") else {
                continue;
            };
            let inode = superblock.rsplit(':').next().unwrap_or_default().parse()?;
            let access = match kind {
                // From 7.x on with an `a` behind it where times are delegated too.
                "delegation" => value("access").context("no access")?.trim_end_matches('a'),
                "open" => value("access").context("no access")?,
                _ => "",
            };
            known.insert((number, kind.to_owned(), inode, access.to_owned()));
        }
    }
    Ok(known)
}

/// Inode and range of a lock in a report.
fn range_of(lock: &Value, range: &Value) -> Result<(u64, u64, Option<u64>)> {
    Ok((
        lock["file"]["ino"].as_u64().context("ino")?,
        range["start"].as_u64().context("start")?,
        range["end"].as_u64(),
    ))
}
