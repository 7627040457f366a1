//! The client book: noted while clients lock, and asked by statd's callout.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use nlmfo::notify::book::{Book, Client};
use nlmfo::notify::state_dir::StateDir;

use super::{Context, End, Kernels, Scenario};
use crate::guest::command::{finish, run};
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::tool::{Running, Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "clients-book",
        claim: "serve records each client with its VIP, also a second VIP, and survives kill -9",
        run: book,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "clients-callout",
        claim: "statd's callout passes the client's VIP to the site's own at once, also under umask \
                077; other users cannot read the book",
        run: callout,
        kernels: Kernels::One("statd calls a program: it does not depend on the kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "clients-import",
        claim: "statd's records can be imported into a book, and exported from it",
        run: import,
        kernels: Kernels::One("files are read and written: it does not depend on the kernel"),
        ..Scenario::DEFAULT
    },
];

const VIPS: [&str; 2] = ["10.77.0.1", "fd77::1"];
const STATE_DIR: &str = "/var/lib/nlmfo";
const NOBODY: u32 = 65534;

fn book(context: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 2)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let [first, second] = &lab.clients[..] else {
        unreachable!("two clients were asked for");
    };
    let [v4, v6] = [lab.vips[0], lab.vips[1]];
    // Older than the probe.
    let old = first.lock("old", Range::WHOLE)?;
    let serve = serve(&tool)?;
    noted(v4, &[first.client.address_for(v4)])?;

    // statd knows of this client already.
    let _new = (first.client).lock(&first.mounts[1], "new", Range::WHOLE, Mode::Read)?;
    noted(v6, &[first.client.address_for(v6)])?;
    let _other = second.lock("other", Range::new(0, 10))?;
    noted(
        v4,
        &[first.client.address_for(v4), second.client.address_for(v4)],
    )?;
    // What is in the book when it is killed stays there.
    serve.signal(Signal::SIGKILL)?;
    drop(serve);
    noted(
        v4,
        &[first.client.address_for(v4), second.client.address_for(v4)],
    )?;

    let listing = tool.json(exit::CONFIRMED, &["clients", "--vip", VIPS[0]])?;
    let vip = &listing["vips"][0];
    ensure!(
        vip["clients"].as_array().is_some_and(|all| {
            let whole = |client: &&serde_json::Value| {
                client["in_book"] == true
                    && client["held"] == 1
                    && client["version"] == 4
                    && client["transport"] == "tcp"
            };
            all.len() == 2 && all.iter().filter(whole).count() == 2
        }) && vip["clients"][0]["name"] == "c1"
            && vip["owner"]["term"] == 1,
        "{listing}"
    );

    // A new `nlmfo serve` notes clients that hold locks again.
    old.release()?;
    // Two at once: a second one finds the first one's book.
    let _again = self::serve(&tool)?;
    let _beside = self::serve(&tool)?;
    for (client, words) in [
        (second.client.address_for(v4), "has 1 locks"),
        ("192.0.2.9".parse::<IpAddr>()?, "is not in the client book"),
    ] {
        let arguments = ["clients", "--vip", VIPS[0], "--forget", &client.to_string()];
        let refused = tool.expect(exit::COULD_NOT_RUN, &arguments)?.stderr;
        ensure!(refused.contains(words), "{refused}");
    }
    let forgotten = first.client.address_for(v4).to_string();
    tool.expect(
        exit::CONFIRMED,
        &["clients", "--vip", VIPS[0], "--forget", &forgotten],
    )?;
    noted(v4, &[second.client.address_for(v4)])?;
    Ok(End::Pass)
}

/// `nlmfo serve`, as soon as it notes clients.
fn serve(tool: &Tool) -> Result<Running> {
    let mut serve = tool.start(&["serve", "--state-dir", STATE_DIR])?;
    until("nlmfo serve to have its probe", || {
        ensure!(!serve.ended()?, "nlmfo serve has ended");
        let probes = fs::read_to_string("/sys/kernel/debug/kprobes/list").unwrap_or_default();
        Ok(match probes.contains("nsm_monitor") {
            true => Seen::Yes(()),
            false => Seen::No(probes),
        })
    })?;
    Ok(serve)
}

fn clients(vip: IpAddr) -> Result<Vec<Client>> {
    let read = Book::read(&StateDir::new(STATE_DIR), vip)?;
    ensure!(read.torn.is_empty(), "torn lines: {:?}", read.torn);
    Ok(read.book.clients().cloned().collect())
}

/// Waits until exactly these are the VIP's clients.
fn noted(vip: IpAddr, expected: &[IpAddr]) -> Result<()> {
    until(&format!("{expected:?} in the book of {vip}"), || {
        let clients = clients(vip)?;
        let addresses: Vec<IpAddr> = clients.iter().map(|client| client.address).collect();
        Ok(match addresses == expected {
            true => Seen::Yes(()),
            false => Seen::No(format!("{clients:?}")),
        })
    })
}

fn callout(context: &Context) -> Result<End> {
    const CALLOUT: &str = "/tmp/nlmfo-ha-callout";
    const SITES: &str = "/tmp/site-callout";
    const CALLED: &str = "/tmp/called";
    let lab = Lab::up(&VIPS, 2)?;
    let node = lab.server.node();
    let tool = Tool::new(&context.nlmfo, node);
    symlink(&context.nlmfo, CALLOUT).context(CALLOUT)?;
    node.write_program(SITES, &format!("#!/bin/sh\necho \"$*\" >> {CALLED}\n"))?;
    fs::write(CALLED, "")?;
    // statd has given up root when it calls.
    fs::set_permissions(CALLED, fs::Permissions::from_mode(0o666))?;
    // Not the clients', without which their kernels wait a minute before they lock.
    run(node
        .command("pkill")
        .args(["-x", "--ns", "1", "--nslist", "net", "rpc.statd"]))?;
    let mut statd = node.command("rpc.statd");
    statd.args(["--no-notify", "--ha-callout", CALLOUT]);
    statd.env("NLMFO_CALLOUT", SITES);
    until("statd to start again", || {
        Ok(match run(&mut statd) {
            Ok(_) => Seen::Yes(()),
            // Its port is still the old one's.
            Err(error) => Seen::No(format!("{error:#}")),
        })
    })?;
    // The umask does not decide who may read the book.
    let umask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let serve = serve(&tool);
    nix::sys::stat::umask(umask);
    let _serve = serve?;

    for (number, vip) in lab.vips.iter().enumerate() {
        let client = &lab.clients[number];
        let mount = &client.mounts[number];
        let _held = (client.client).lock(mount, "file", Range::WHOLE, Mode::Write)?;
        let monitored = client.client.address_for(*vip);
        let expected = format!("add-client {monitored} {vip}");
        until(&format!("the site's callout: {expected}"), || {
            let called = fs::read_to_string(CALLED)?;
            Ok(match called.lines().any(|line| line == expected) {
                true => Seen::Yes(()),
                false => Seen::No(called),
            })
        })?;
    }
    let printed = tool.expect(
        exit::CONFIRMED,
        &["ha-callout", "del-client", "c1", "server"],
    )?;
    ensure!(printed.stdout.trim() == VIPS[0], "{}", printed.stdout);

    let del_client = |state_dir: &str, user| {
        let arguments = [
            "ha-callout",
            "--state-dir",
            state_dir,
            "del-client",
            "c1",
            "server",
        ];
        finish(tool.command(&arguments).uid(user), "")
    };
    let statd = fs::metadata("/var/lib/nfs/sm")?.uid();
    ensure!(statd != 0, "statd runs as root here");
    let asked = del_client(STATE_DIR, statd)?;
    ensure!(asked.stdout.trim() == VIPS[0], "statd's user: {asked:?}");
    let asked = del_client(STATE_DIR, NOBODY)?;
    ensure!(
        asked.code() == exit::COULD_NOT_RUN,
        "nobody reads the client book: {asked:?}"
    );

    // Failures are in the log.
    const LOG: &str = "/dev/log";
    let _ = fs::remove_file(LOG);
    let log = UnixDatagram::bind(LOG).context(LOG)?;
    fs::set_permissions(LOG, fs::Permissions::from_mode(0o666))?;
    log.set_read_timeout(Some(Duration::from_secs(20)))?;
    del_client(STATE_DIR, NOBODY)?;
    let mut line = [0; 1024];
    let length = log.recv(&mut line).context("nothing is in the log")?;
    fs::remove_file(LOG)?;
    let line = String::from_utf8_lossy(&line[..length]);
    ensure!(
        line.contains("nlmfo-ha-callout") && line.contains(STATE_DIR),
        "in the log: {line}"
    );
    Ok(End::Pass)
}

fn import(context: &Context) -> Result<End> {
    let (lab, _held) = Lab::with_one_lock()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let vip = lab.vips[0].to_string();
    let of_statd = "/var/lib/nfs/sm";
    tool.expect(
        exit::CONFIRMED,
        &["clients", "--vip", &vip, "--import", of_statd],
    )?;
    noted(
        lab.vips[0],
        &[lab.clients[0].client.address_for(lab.vips[0])],
    )?;

    let ours = Path::new("/tmp/sm");
    tool.expect(
        exit::CONFIRMED,
        &["clients", "--vip", &vip, "--export", "/tmp/sm"],
    )?;
    let records = |folder: &Path| -> Result<Vec<Vec<String>>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(folder)? {
            let text = fs::read_to_string(entry?.path())?;
            let fields: Vec<&str> = text.split_whitespace().collect();
            let [numbers @ .., _cookie, client, _node] = &fields[..] else {
                anyhow::bail!("{text:?} is no record");
            };
            records.push(
                [numbers, &[client]]
                    .concat()
                    .iter()
                    .map(|&field| field.into())
                    .collect(),
            );
        }
        Ok(records)
    };
    let (statds, written) = (records(Path::new(of_statd))?, records(ours)?);
    ensure!(
        statds == written,
        "statd has {statds:?}, we wrote {written:?}"
    );
    Ok(End::Pass)
}
