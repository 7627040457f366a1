//! A server of its own whose filesystem is full.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::super::{Context, End};
use super::users::{HELD, VERSIONS, wanted};
use super::{Own, bridge, loop_device};
use crate::guest::client::Client;
use crate::guest::locker::Mode;
use crate::guest::tool::{Tool, exit};

/// Takes all space, root's reserve too, and prints how much is left.
const FILL: &str = "for size in 1M 4k 1; do dd if=/dev/zero bs=$size 2>/dev/null >>/srv/mail/fill; done; \
                    sync; stat -f -c %a /srv/mail";

pub fn full(context: &Context) -> Result<End> {
    let root = bridge()?;
    let veth = "{ kind = \"veth\", bridge = \"br0\" }";
    let (mail, text) = Own::describe(1, "mail", &loop_device("mail")?, veth)?;
    fs::write("/etc/nlmfo.toml", text)?;
    let tool = Tool::new(&context.nlmfo, &root);
    mail.start(&tool)?;
    let mut held = Vec::new();
    for (number, minor) in (1..).zip(VERSIONS) {
        let client = Client::join_bridge(&root, number)?;
        let mount = mail.mount(&client, minor)?;
        let lock = client.lock(&mount, &format!("own-{number}"), HELD, Mode::Write)?;
        held.push((client, lock));
    }
    let thief = Client::join_bridge(&root, 9)?;
    let mount = mail.mount(&thief, Some(1))?;
    let all = (1..=held.len()).map(|number| wanted(&mount, &format!("own-{number}"), HELD));
    let stealing = thief.busy(&all.collect::<Vec<_>>())?;

    // Twice: the first leaves what the second needs.
    for turn in 1..=2 {
        let filled = tool.expect(
            exit::CONFIRMED,
            &["server", "exec", "mail", "sh", "-c", FILL],
        )?;
        ensure!(
            filled.stdout.trim() == "0",
            "{} blocks are free",
            filled.stdout
        );
        let restarted = tool.json(exit::CONFIRMED, &["server", "restart", "mail"])?;
        let reclaim = &restarted["start"]["reclaim"];
        ensure!(
            reclaim["has_record"] == true
                && reclaim["expected"].as_u64() >= Some(4)
                && reclaim["ended"] == "early",
            "restart {turn}: {restarted}"
        );
    }
    for tally in stealing.finish()? {
        ensure!(
            tally.held == 0 && tally.refused > 0,
            "a lock was stolen: {tally:?}"
        );
    }
    for (number, (_, lock)) in (1..).zip(held) {
        lock.release().with_context(|| format!("client {number}"))?;
    }
    mail.stop(&tool)?;
    Ok(End::Pass)
}
