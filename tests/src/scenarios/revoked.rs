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
    claim: "NFSv4 locks of silent clients, on which 6.12 and 7.3 crash when they are revoked and \
            unmounted, are not revoked with their filesystem; doctor warns of those that were",
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
    let mut dead = Vec::new();
    for number in [2, 4] {
        let client = Client::join(&lab.server, number)?;
        let mount = client.mount_nfs4(&lab.server, vip, 2)?;
        let locker = client.locker()?;
        let range = Range::new(10 * u64::from(number), 5);
        let outcome = locker.lock(&mount.path("shared"), range, Mode::Write)?;
        ensure!(outcome == Outcome::Held, "{outcome:?}");
        client.node().ip("link set eth0 down\n")?;
        dead.push((client, mount, locker));
    }

    let whole = ["release", "--file", file, "--unlock-filesystem", "--force"];
    let refused = until("the lease to be over", || {
        let finished = tool.run(&[&whole[..], &["--dry-run"]].concat())?;
        Ok(match finished.code() {
            exit::UNSUPPORTED => Seen::Yes(finished.stderr),
            _ => Seen::No(format!("{}{}", finished.stdout, finished.stderr)),
        })
    })?;
    if refused.contains("requires 6.9") {
        return Ok(End::Unsupported(
            "unlock_filesystem of this kernel does not revoke NFSv4 state".to_owned(),
        ));
    }
    let names = |said: &str| said.contains("nlmfo release --client 10.77.1.");
    ensure!(names(&refused), "{refused}");
    let drop_client = |client: &str| tool.json(exit::CONFIRMED, &["release", "--client", client]);
    let held = |expected: usize| -> Result<()> {
        let locks = lab.server.locks()?;
        ensure!(locks.len() == expected, "{locks:?}");
        Ok(())
    };
    held(3)?;
    drop_client("10.77.1.2")?;
    held(2)?;
    let refused = tool.expect(exit::UNSUPPORTED, &whole)?.stderr;
    ensure!(refused.contains("10.77.1.4"), "{refused}");
    held(2)?;

    // Somebody does it by hand.
    node.write("/proc/fs/nfsd/unlock_filesystem", &format!("{export}\n"))?;
    held(0)?;
    let warned = tool.expect(exit::UNSUPPORTED, &["doctor"])?.stdout;
    ensure!(
        warned.contains("nlmfo release --client 10.77.1.4"),
        "{warned}"
    );
    drop_client("10.77.1.4")?;
    let well = tool.run(&["doctor"])?.stdout;
    ensure!(!well.contains("revoked"), "{well}");
    tool.json(exit::CONFIRMED, &whole)?;
    run(node.command("exportfs").arg("-ua"))?;
    until("the filesystem to be free", || {
        Ok(match run(node.command("umount").arg(export)) {
            Ok(_) => Seen::Yes(()),
            Err(error) => Seen::No(format!("{error:#}")),
        })
    })?;
    Ok(End::Pass)
}
