//! NFSv4 locks that must not be revoked: the kernel would crash on them.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::Transport;

use super::{Context, End, Machine, Scenario};
use crate::guest::client::Client;
use crate::guest::command::run;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Outcome, Range};
use crate::guest::server::Filesystem;
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "revoked-silent",
    claim: "the NFSv4 lock of a silent client is not revoked with its filesystem, on which 6.12 \
            and 7.3 crash; after `release --client` the rest is, and the filesystem can be unmounted",
    run: silent,
    machine: Machine::Own("it unmounts the export, and if it fails it crashes the kernel"),
    ..Scenario::DEFAULT
}];

fn silent(context: &Context) -> Result<End> {
    let lab = Lab::with(Filesystem::Ext4, &["10.77.0.1"], 0)?;
    run(Command::new("modprobe").arg("nfsv4"))?;
    let (vip, node) = (lab.vips[0], lab.server.node());
    let tool = Tool::new(&context.nlmfo, node);
    let file = lab.server.export().join("shared");
    let file = file.to_str().context("no UTF-8")?;
    let export = lab.server.export().to_str().context("no UTF-8")?;

    // lockd has the file open, so that there is no delegation of it.
    let nfs3 = Client::join(&lab.server, 3)?;
    let mount3 = nfs3.mount(&lab.server, vip, Transport::Tcp)?;
    let _held = nfs3.lock(&mount3, "shared", Range::new(30, 5), Mode::Write)?;
    let dead = Client::join(&lab.server, 2)?;
    let mount = dead.mount_nfs4(&lab.server, vip, 2)?;
    let locker = dead.locker()?;
    let outcome = locker.lock(&mount.path("shared"), Range::new(20, 5), Mode::Write)?;
    ensure!(outcome == Outcome::Held, "{outcome:?}");

    let whole = ["release", "--file", file, "--unlock-filesystem", "--force"];
    dead.node().ip("link set eth0 down\n")?;
    let refused = until("the lease to be over", || {
        let finished = tool.run(&[&whole[..], &["--dry-run"]].concat())?;
        Ok(match finished.code() {
            exit::UNSUPPORTED => Seen::Yes(finished.stderr),
            _ => Seen::No(format!("{}{}", finished.stdout, finished.stderr)),
        })
    })?;
    if refused.contains("came with 6.9") {
        return Ok(End::Unsupported(
            "unlock_filesystem of this kernel leaves NFSv4 state".to_owned(),
        ));
    }
    let names = |said: &str| said.contains("nlmfo release --client 10.77.1.2");
    ensure!(names(&refused), "{refused}");
    let refused = tool.expect(exit::UNSUPPORTED, &whole)?.stderr;
    ensure!(names(&refused), "{refused}");
    ensure!(lab.server.locks()?.len() == 2, "{:?}", lab.server.locks()?);

    tool.json(exit::CONFIRMED, &["release", "--client", "10.77.1.2"])?;
    ensure!(lab.server.locks()?.len() == 1, "{:?}", lab.server.locks()?);
    tool.json(exit::CONFIRMED, &whole)?;
    ensure!(lab.server.locks()?.is_empty(), "{:?}", lab.server.locks()?);
    run(node.command("exportfs").arg("-ua"))?;
    until("the filesystem to be free", || {
        Ok(match run(node.command("umount").arg(export)) {
            Ok(_) => Seen::Yes(()),
            Err(error) => Seen::No(format!("{error:#}")),
        })
    })?;
    Ok(End::Pass)
}
