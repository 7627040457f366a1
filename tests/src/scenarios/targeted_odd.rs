//! `nlmfo locks` and `nlmfo release` where files, clients and locks are out of the ordinary.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::testbed::server::export_folder;
use serde_json::Value;

use super::{Context, End, Machine, Scenario};
use crate::guest::client::Client;
use crate::guest::command::run;
use crate::guest::known::ensure_same;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Outcome, Range};
use crate::guest::raw::{RawNet, address};
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "targeted-odd-files",
        claim: "rows are those of /proc/locks, and exactly what was named goes, on files with control \
                characters in their names, renamed, deleted, with several names, bind mounts and \
                exports, and with thousands of locks before another client's waiter",
        run: files,
        only_full: Some("thousands of locks, one by one"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "targeted-mixed",
        claim: "a dead NFSv4.1 client of two VIPs is found by each of its addresses, and dropped; who \
                waited behind it, by NFSv3 and 4.2, has its locks",
        run: mixed,
        machine: Machine::Own("nfsd keeps its NFSv4 clients for longer than their mounts"),
        only_full: Some("targeted-nfs4 drops clients of two VIPs"),
        ..Scenario::DEFAULT
    },
];

/// Long enough for a Linux client to ask again for a lock that no server has queued.
const NEXT_POLL: Duration = Duration::from_secs(90);

/// Inode, first and last byte, and whether it waits.
type Row = (u64, u64, Option<u64>, bool);

/// Waits until `nlmfo locks` has the rows of `/proc/locks`, and returns both. nfsd drops a request
/// after the time of a lease, and the client asks again.
fn compared(tool: &Tool, lab: &Lab) -> Result<(Value, BTreeSet<Row>)> {
    until("nlmfo locks to agree with /proc/locks", || {
        let kernel = kernel_rows(lab)?;
        let listing = tool.json(exit::CONFIRMED, &["locks"])?;
        let seen = listed_rows(&listing)?;
        Ok(match kernel == seen {
            true => Seen::Yes((listing, kernel)),
            false => Seen::No(format!(
                "only /proc/locks: {:?}, only nlmfo: {:?}",
                kernel.difference(&seen).collect::<Vec<_>>(),
                seen.difference(&kernel).collect::<Vec<_>>()
            )),
        })
    })
}

fn kernel_rows(lab: &Lab) -> Result<BTreeSet<Row>> {
    let all = lab.server.locks()?.into_iter();
    Ok(all
        .map(|lock| (lock.inode, lock.start, lock.end, lock.waiting))
        .collect())
}

fn listed_rows(listing: &Value) -> Result<BTreeSet<Row>> {
    let mut seen = BTreeSet::new();
    let mut add = |row: &Value, range: &Value, waits| -> Result<()> {
        seen.insert((
            row["file"]["ino"].as_u64().context("ino")?,
            range["start"].as_u64().context("start")?,
            range["end"].as_u64(),
            waits,
        ));
        Ok(())
    };
    let list = |rows: &Value| rows.as_array().cloned().unwrap_or_default();
    for row in list(&listing["locks"]) {
        add(&row, &row["range"], false)?;
    }
    let nfs4 = &listing["nfs4"];
    for row in [list(&listing["waiters"]), list(&nfs4["waiters"])].concat() {
        // A granted one is held, until its client has said that it knows.
        if row["granted"] != true {
            add(&row, &row["range"], true)?;
        }
    }
    for state in list(&nfs4["states"]) {
        for range in list(&state["ranges"]) {
            add(&state, &range["range"], false)?;
        }
    }
    Ok(seen)
}

/// Releases this; all of it must be gone.
pub(super) fn release(tool: &Tool, what: &[&str]) -> Result<Value> {
    let quick = ["--answer-within", "500ms"];
    let report = tool.json(exit::CONFIRMED, &[&["release"], what, &quick].concat())?;
    ensure!(
        report["verdict"] == "confirmed" && report["left"] == 0,
        "{report}"
    );
    Ok(report)
}

fn inode(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)
        .with_context(|| path.display().to_string())?
        .ino())
}

fn files(context: &Context) -> Result<End> {
    let many = if context.full { 10_000 } else { 300 };
    let lab = Lab::up(&["10.77.0.1"], 0)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let (net, vip, export) = (RawNet::join(&lab.server)?, lab.vips[0], lab.server.export());
    let control = "odd\n\u{1b}[31m\tname";
    let names = [control, "old-name", "deleted", "linked", "many"].map(str::to_owned);
    let handles = net.files(&lab.server, vip, &names)?;
    let mut dead = net.client(1, vip, NlmVersion::V4, Transport::Tcp)?;
    let mut other = net.client(2, vip, NlmVersion::V4, Transport::Tcp)?;
    let write = Mode::Write;
    for handle in &handles[..4] {
        dead.granted(|raw| raw.lock(handle, 1, Range::new(0, 5), write))?;
        other.granted(|raw| raw.lock(handle, 1, Range::new(100, 5), write))?;
    }
    for nth in 0..many {
        dead.granted(|raw| raw.lock(&handles[4], 1, Range::new(10 * nth, 5), write))?;
    }
    other.wait(&handles[4], 2, Range::new(10, 5), write)?;

    // One inode by two exports: the ranges merge.
    let inner = export.join("inner");
    fs::create_dir(&inner)?;
    export_folder(lab.server.node(), &inner, 4711)?;
    fs::hard_link(export.join("linked"), inner.join("linked"))?;
    let by_inner = net.files_in(&inner, &lab.server, vip, &["linked".to_owned()])?;
    ensure!(by_inner[0].0 != handles[3].0, "one handle for both exports");
    dead.granted(|raw| raw.lock(&by_inner[0], 1, Range::new(5, 5), write))?;

    let deleted = inode(&export.join("deleted"))?;
    fs::rename(export.join("old-name"), export.join("new-name"))?;
    fs::remove_file(export.join("deleted"))?;
    fs::create_dir_all("/run/bound")?;
    run(Command::new("mount")
        .arg("--bind")
        .arg(export)
        .arg("/run/bound"))?;

    let (listing, mut expected) = compared(&tool, &lab)?;
    let client = address(1, vip).to_string();
    let text = tool.expect(exit::CONFIRMED, &["locks"])?.stdout;
    ensure!(
        !text.contains('\u{1b}') && text.contains(r"odd\n"),
        "{text}"
    );
    let row = (listing["locks"].as_array().context("locks")?.iter())
        .find(|row| row["file"]["ino"] == deleted && row["client"] == *client)
        .context("the lock on the deleted file")?;
    let of_deleted = row["id"].as_str().context("id")?.to_owned();

    let file = |path: &Path| path.to_str().map(str::to_owned).context("no UTF-8");
    let odd = export.join(control);
    let new = export.join("new-name");
    let bound = Path::new("/run/bound/linked");
    let gone = |ino, end, expected: &mut BTreeSet<Row>| {
        ensure!(
            expected.remove(&(ino, 0, Some(end), false)),
            "no lock of {ino} to {end}"
        );
        Ok(())
    };
    release(&tool, &["--file", &file(&odd)?, "--client", &client])?;
    gone(inode(&odd)?, 4, &mut expected)?;
    ensure_same("odd name", &expected, &compared(&tool, &lab)?.1)?;
    release(&tool, &["--file", &file(&new)?, "--client", &client])?;
    gone(inode(&new)?, 4, &mut expected)?;
    ensure_same("new name", &expected, &compared(&tool, &lab)?.1)?;
    release(&tool, &["--lock", &of_deleted])?;
    gone(deleted, 4, &mut expected)?;
    ensure_same("deleted", &expected, &compared(&tool, &lab)?.1)?;
    release(&tool, &["--file", &file(bound)?, "--client", &client])?;
    gone(inode(bound)?, 9, &mut expected)?;
    ensure_same(
        "two names, exports and mounts",
        &expected,
        &compared(&tool, &lab)?.1,
    )?;

    // The rest, in one; the waiter is another's.
    let queued = expected.iter().any(|row| row.3);
    let report = release(&tool, &["--client", &client])?;
    ensure!(
        report["locks"].as_array().map(Vec::len) == Some(many as usize),
        "{}",
        report["locks"]
    );
    let many = inode(&export.join("many"))?;
    expected.retain(|row| row.0 != many);
    if queued {
        let taken = report["taken"].as_array().context("taken")?;
        ensure!(
            taken.len() == 1 && taken[0]["client"] == address(2, vip).to_string(),
            "{taken:?}"
        );
        expected.insert((many, 10, Some(14), false));
    }
    ensure_same("all of it", &expected, &compared(&tool, &lab)?.1)?;
    run(Command::new("umount").arg("/run/bound"))?;
    run(Command::new("exportfs").args(["-u", &format!("*:{}", inner.display())]))?;
    Ok(End::Pass)
}

fn count(list: &Value) -> usize {
    list.as_array().map_or(0, Vec::len)
}

fn mixed(context: &Context) -> Result<End> {
    let lab = Lab::up(&["10.77.0.1", "fd77::1"], 0)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    run(Command::new("modprobe").arg("nfsv4"))?;
    let net = RawNet::join(&lab.server)?;
    let dead = Client::join(&lab.server, 3)?;
    let mounts = [
        dead.mount_nfs4(&lab.server, lab.vips[0], 1)?,
        dead.mount_nfs4(&lab.server, lab.vips[1], 1)?,
    ];
    let waiting = Client::join(&lab.server, 4)?;
    let other = waiting.mount_nfs4(&lab.server, lab.vips[1], 2)?;
    let (holder, waiter) = (dead.locker()?, waiting.locker()?);
    let held = |locker: &crate::guest::locker::Locker, path: &Path, start| -> Result<()> {
        let outcome = locker.lock(path, Range::new(start, 5), Mode::Write)?;
        ensure!(outcome == Outcome::Held, "{}: {outcome:?}", path.display());
        Ok(())
    };
    held(&holder, &mounts[0].path("mixed"), 0)?;
    held(&waiter, &other.path("mixed"), 100)?;
    held(&holder, &mounts[0].path("delegated"), 0)?;
    holder.test(&mounts[1].path("open"), Range::WHOLE, Mode::Read)?;
    let file = net.file(&lab.server, lab.vips[0], "mixed")?;
    let mut raw = net.client(7, lab.vips[0], NlmVersion::V4, Transport::Tcp)?;
    let (first, second) = (Range::new(0, 2), Range::new(2, 3));
    let waits = waiter.lock_wait(&other.path("mixed"), first, Mode::Write)?;
    raw.wait(&file, 1, second, Mode::Write)?;
    ensure!(
        !waits.held_within(Duration::from_millis(500))?,
        "granted twice"
    );
    let (listing, _) = compared(&tool, &lab)?;
    let clients = listing["nfs4"]["clients"].as_array().context("clients")?;
    let trunked = clients
        .iter()
        .find(|client| client["client"] == "10.77.1.3");
    let trunked = trunked.with_context(|| listing.to_string())?;

    // By each address of a connection.
    if trunked["vips"].as_array().map(Vec::len) == Some(2) {
        let said = tool.expect(
            exit::COULD_NOT_RUN,
            &["release", "--client", "fd77::1:3", "--dry-run"],
        )?;
        ensure!(said.stderr.contains("10.77.0.1 and fd77::1"), "{said:?}");
    }
    dead.node().ip("link set eth0 down\n")?;
    // When its lease is over, nfsd drops it itself for the next who asks for its lock: nobody may.
    // Its cable is cut at the server's end, so that it keeps its IPv6 address.
    let cable = |state| lab.server.node().ip(&format!("link set vc4 {state}\n"));
    cable("down")?;
    let report = tool.json(
        exit::CONFIRMED,
        &["release", "--client", "10.77.1.3", "--all-vips", "--force"],
    )?;
    cable("up")?;
    let (dropped, states) = (&report["nfs4"]["clients"], &report["nfs4"]["states"]);
    ensure!(
        count(dropped) == 1 && dropped[0]["client"] == "10.77.1.3" && count(states) >= 3,
        "the client and its states were not there to be dropped: {report}"
    );
    ensure!(
        waits.held_within(NEXT_POLL)?,
        "the 4.2 client did not get it: {report}"
    );
    let (listing, _) = compared(&tool, &lab)?;
    for list in ["clients", "states"] {
        let rows = listing["nfs4"][list].as_array().context(list)?;
        ensure!(
            !rows.iter().any(|row| row["client"] == "10.77.1.3"),
            "{list}: {listing}"
        );
    }
    // Its mounts can be taken down only then.
    dead.node().ip("link set eth0 up\n")?;
    Ok(End::Pass)
}
