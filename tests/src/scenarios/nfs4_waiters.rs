//! Blocked requests of NFSv4 clients, and of NFSv3 clients behind them, in `nlmfo locks --waiters`.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context as _, Result, ensure};
use nlmfo::testbed::proc_locks::PosixLock;
use serde_json::Value;

use crate::guest::client::{Client, Mount};
use crate::guest::known::ensure_same;
use crate::guest::lab::Lab;
use crate::guest::locker::{Locker, Mode, Outcome, Range};
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

/// NFS version, client, first byte, and whose lock it waits for.
type Waiting = (String, String, u64, Vec<String>);

/// A client with a mount.
pub struct Mounted<'a> {
    pub client: &'a Client,
    pub mount: &'a Mount,
    pub nfs: &'a str,
}

/// On a file of their own, each holds ten bytes and waits for those of the next, and a local
/// process holds and waits too. What the kernel queues is listed, with whom it waits for.
pub fn listed(tool: &Tool, lab: &Lab, clients: &[Mounted]) -> Result<()> {
    let file = lab.server.export().join("awaited");
    let mut command = lab.server.node().command(env::current_exe()?);
    command.arg("locker");
    let local = Locker::spawn(command)?;
    let taken = |locker: &Locker, path: &std::path::Path, start: u64| -> Result<()> {
        let outcome = locker.lock(path, Range::new(start, 10), Mode::Write)?;
        ensure!(outcome == Outcome::Held, "{start}: {outcome:?}");
        Ok(())
    };
    let last = 10 * clients.len() as u64;
    let mut lockers = Vec::new();
    for (nth, of) in clients.iter().enumerate() {
        let locker = of.client.locker()?;
        taken(&locker, &of.mount.path("awaited"), 10 * nth as u64)?;
        lockers.push(locker);
    }
    taken(&local, &file, last)?;

    // Their processes: an owner does not wait for itself.
    let mut waiting = Vec::new();
    for (nth, of) in clients.iter().enumerate() {
        let locker = of.client.locker()?;
        waiting.push((locker, of.mount.path("awaited"), 10 * (nth as u64 + 1)));
    }
    let mut command = lab.server.node().command(env::current_exe()?);
    command.arg("locker");
    waiting.push((Locker::spawn(command)?, file.clone(), 0));
    for (locker, path, start) in &waiting {
        locker.lock_wait(path, Range::new(*start, 5), Mode::Read)?;
    }

    let inode = fs::metadata(&file)?.ino();
    let queued = || -> Result<BTreeSet<u64>> {
        let all = lab.server.locks()?;
        let waits = |lock: &&PosixLock| lock.waiting && lock.inode == inode && lock.start > 0;
        Ok(all.iter().filter(waits).map(|lock| lock.start).collect())
    };
    let listing = tool.json(exit::CONFIRMED, &["locks", "--waiters"])?;
    if listing["waiters_queued"] == false {
        ensure_same("waiters", &BTreeSet::new(), &waiters(&listing, inode)?)?;
        ensure_same("queued by the kernel", &BTreeSet::new(), &queued()?)?;
        let said = tool
            .expect(exit::CONFIRMED, &["locks", "--waiters"])?
            .stderr;
        ensure!(said.contains("queues no requests"), "{said}");
        drop((waiting, lockers, local));
        return nothing_left(lab, inode);
    }
    // nfsd queues no request of a 4.0 client: it asks again and again.
    let vip = lab.vips[0];
    let name = |nth: usize| match clients.get(nth) {
        Some(of) => format!("{} {}", of.nfs, address(of.client, vip)),
        None => format!("local {}", local.id()),
    };
    let mut expected = BTreeSet::new();
    for (nth, of) in clients.iter().enumerate().filter(|(_, of)| of.nfs != "4.0") {
        let start = 10 * (nth as u64 + 1);
        let client = address(of.client, vip).to_string();
        expected.insert((of.nfs.to_owned(), client, start, vec![name(nth + 1)]));
    }
    let listing = until("every request to be queued", || {
        let listing = tool.json(exit::CONFIRMED, &["locks", "--waiters"])?;
        let seen = waiters(&listing, inode)?;
        Ok(match seen == expected {
            true => Seen::Yes(listing),
            false => Seen::No(format!("expected {expected:?}, listed {seen:?}")),
        })
    })?;
    ensure!(
        listing["nfs4"]["states"] == Value::Array(Vec::new()),
        "--waiters lists states: {listing}"
    );
    // nfsd drops a request after the time of a lease; the client asks again, but later.
    let starts: BTreeSet<u64> = expected.iter().map(|(_, _, start, _)| *start).collect();
    until("/proc/locks to have the requests of clients", || {
        let queued = queued()?;
        Ok(match queued == starts {
            true => Seen::Yes(()),
            false => Seen::No(format!("{queued:?}")),
        })
    })?;
    until("every request in the text", || {
        let text = tool
            .expect(exit::CONFIRMED, &["locks", "--waiters"])?
            .stdout;
        let row = |start: &u64| {
            let range = format!(" {start}-{} ", start + 4);
            let mut rows = text.lines().filter(|line| line.contains(&range));
            rows.any(|row| row.contains("waits read") && row.contains("awaited behind"))
        };
        Ok(match starts.iter().all(row) {
            true => Seen::Yes(()),
            false => Seen::No(text),
        })
    })?;
    watched(tool, &expected)?;
    // Only its client can cancel a waiting request.
    until("the release of a request to be refused", || {
        let listing = tool.json(exit::CONFIRMED, &["locks", "--waiters"])?;
        let Some(id) = listing["nfs4"]["waiters"][0]["id"].as_str() else {
            return Ok(Seen::No(listing.to_string()));
        };
        let finished = tool.run(&["release", "--lock", id])?;
        Ok(match finished.code() {
            exit::UNSUPPORTED if finished.stderr.contains("NFSv4 request") => Seen::Yes(()),
            exit::COULD_NOT_RUN => Seen::No(finished.stderr),
            code => anyhow::bail!("exit code {code}: {}{}", finished.stdout, finished.stderr),
        })
    })?;

    drop((waiting, lockers, local));
    nothing_left(lab, inode)
}

/// `nlmfo watch` has the requests of NFSv4 clients too, each with a client that holds the lock.
fn watched(tool: &Tool, expected: &BTreeSet<Waiting>) -> Result<()> {
    let nfs4 = expected.iter().filter(|(nfs, ..)| nfs != "3");
    let nfs4: BTreeSet<(String, u64)> = nfs4
        .map(|(_, client, start, _)| (client.clone(), *start))
        .collect();
    until("every NFSv4 request in nlmfo watch", || {
        let tick = tool.json(exit::CONFIRMED, &["watch", "--once"])?;
        let mut seen = BTreeSet::new();
        for detail in tick["details"].as_array().context("details")? {
            let mut of_vip = 0;
            for client in detail["nfs4"].as_array().context("nfs4")? {
                for waiter in client["waiters"].as_array().context("waiters")? {
                    ensure!(waiter["mode"] == "read", "{waiter}");
                    let client = client["client"].as_str().context("client")?.to_owned();
                    let start = waiter["range"]["start"].as_u64().context("start")?;
                    seen.insert((client, start));
                    of_vip += 1;
                }
            }
            let mut vips = tick["vips"].as_array().context("vips")?.iter();
            let vip = vips.find(|vip| vip["vip"] == detail["vip"]);
            ensure!(vip.context("no VIP")?["waiters4"] == of_vip, "{tick}");
        }
        Ok(match seen == nfs4 {
            true => Seen::Yes(()),
            false => Seen::No(format!("expected {nfs4:?}, seen {seen:?}")),
        })
    })
}

/// The server's clients give up what ended processes had.
fn nothing_left(lab: &Lab, inode: u64) -> Result<()> {
    until("nothing to be left on the file", || {
        let mut all = lab.server.locks()?;
        all.retain(|lock| lock.inode == inode);
        Ok(match all.is_empty() {
            true => Seen::Yes(()),
            false => Seen::No(format!("{all:?}")),
        })
    })
}

fn address(client: &Client, vip: IpAddr) -> IpAddr {
    client.address_for(vip)
}

fn waiters(listing: &Value, inode: u64) -> Result<BTreeSet<Waiting>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_nfs3 = listing["waiters"].as_array().context("waiters")?.iter();
    let of_nfs4 = listing["nfs4"]["waiters"].as_array();
    let of_nfs4 = of_nfs4.with_context(|| listing.to_string())?.iter();
    let rows = of_nfs3
        .map(|row| (None, row))
        .chain(of_nfs4.map(|row| (row["minor"].as_u64(), row)));
    rows.filter(|(_, row)| row["file"]["ino"] == inode)
        .map(|(minor, row)| {
            ensure!(row["mode"] == "read", "{row}");
            ensure!(
                row["file"]["path"]
                    .as_str()
                    .is_some_and(|path| path.ends_with("/awaited")),
                "{row}"
            );
            let behind = row["behind"].as_array().context("behind")?.iter();
            let behind = behind.map(|one| match one["pid"].as_u64() {
                Some(pid) => format!("local {pid}"),
                None => format!("{} {}", text(&one["nfs"]), text(&one["client"])),
            });
            let nfs = minor.map_or_else(|| "3".to_owned(), |minor| format!("4.{minor}"));
            let start = row["range"]["start"].as_u64().context("start")?;
            Ok((nfs, text(&row["client"]), start, behind.collect()))
        })
        .collect()
}
