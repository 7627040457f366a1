//! Commands on a server of its own that are killed after one of their steps: the same command again
//! goes on, and no client loses a lock.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::super::{Context, End};
use super::moves::{failover_to, two_on_a_cluster};
use super::{HELD, Own, bridge, loop_device, wanted};
use crate::cluster::killed::Step;
use crate::guest::busy::{Busy, Wanted};
use crate::guest::client::{Client, HeldLock};
use crate::guest::command::run;
use crate::guest::locker::Mode;
use crate::guest::node::TestNode;
use crate::guest::server::start_rpc;
use crate::guest::step::signal_after;
use crate::guest::tool::{Tool, exit};

/// A client of NFSv3 and one of 4.2 that hold a lock, and those that want them.
struct Holders {
    held: Vec<HeldLock>,
    thieves: Vec<Busy>,
    clients: Vec<Client>,
}

impl Holders {
    fn start(bridge: &TestNode, own: &Own) -> Result<Holders> {
        let versions = [(1, None), (2, Some(2))];
        let thief = Client::join_bridge(bridge, 9)?;
        let mut holders = Holders {
            held: Vec::new(),
            thieves: Vec::new(),
            clients: Vec::new(),
        };
        for (number, minor) in versions {
            let client = Client::join_bridge(bridge, number)?;
            let mount = own.mount(&client, minor)?;
            let file = format!("file-{number}");
            (holders.held).push(client.lock(&mount, &file, HELD, Mode::Write)?);
            holders.clients.push(client);
        }
        for (_, minor) in versions {
            let mount = own.mount(&thief, minor)?;
            let files = versions.map(|(number, _)| format!("file-{number}"));
            let all: Vec<Wanted> = (files.iter())
                .map(|file| wanted(&mount, file, HELD))
                .collect();
            holders.thieves.push(thief.busy(&all)?);
        }
        holders.clients.push(thief);
        Ok(holders)
    }

    /// No lock was lost at any moment.
    fn finish(self) -> Result<()> {
        for thief in self.thieves {
            for tally in thief.finish()? {
                let is_honest = tally.held == 0 && tally.refused > 0 && tally.failed.is_empty();
                ensure!(is_honest, "a lock was lost: {tally:?}");
            }
        }
        self.held.into_iter().try_for_each(HeldLock::release)
    }
}

/// The steps after which the `nth` command is killed: the first one, and each of them the more
/// apart the later.
fn steps(full: bool, nth: usize) -> impl Iterator<Item = usize> {
    let mut step = 1 + nth;
    std::iter::from_fn(move || {
        let this = step;
        step = if full {
            this + this / 8 + 1
        } else {
            this * 4 + 1
        };
        Some(this)
    })
}

pub(super) fn killed(context: &Context) -> Result<End> {
    let root = bridge()?;
    start_rpc(&root)?;
    let nfsd = Path::new("/proc/fs/nfsd");
    run(root.command("mount").args(["-t", "nfsd", "nfsd"]).arg(nfsd))?;
    fs::write(nfsd.join("threads"), "1\n").context("the node's own NFS server")?;
    let link = "{ kind = \"veth\", bridge = \"br0\" }";
    let (mail, text) = Own::describe(1, "mail", &loop_device("mail")?, link)?;
    fs::write("/etc/nlmfo.toml", text)?;
    let tool = Tool::new(&context.nlmfo, &root);
    mail.start(&tool)?;
    let holders = Holders::start(&root, &mail)?;
    let mut kills = 0;
    for (nth, action) in ["stop", "start", "restart"].into_iter().enumerate() {
        for step in steps(context.full, nth) {
            if action == "start" {
                mail.stop(&tool)?;
            }
            let mut command = tool.command(&["server", action, "mail"]);
            let stepped = signal_after(&mut command, step, Signal::SIGKILL)?;
            let at = stepped.at.as_deref().unwrap_or("its end");
            eprintln!("server {action}: step {step}, {at}: {}", stepped.code);
            let again = || -> Result<()> {
                tool.json(exit::CONFIRMED, &["server", action, "mail"])?;
                if action == "stop" {
                    mail.start(&tool)?;
                }
                let status = mail.status(&tool)?;
                ensure!(status["state"] == "serving", "{status}");
                let threads = fs::read_to_string(nfsd.join("threads"))?;
                ensure!(threads.trim() == "1", "the node's own server: {threads}");
                Ok(())
            };
            again().with_context(|| format!("{action}, killed at step {step}, {at}"))?;
            match stepped.at {
                Some(_) => kills += 1,
                None => break,
            }
        }
    }
    holders.finish()?;
    mail.stop(&tool)?;
    tool.json(exit::CONFIRMED, &["cleanup"])?;
    ensure!(kills >= 5, "killed {kills} times only");
    Ok(End::Pass)
}

/// Each command moves the server back; the commands of a killed one on the other node live on.
pub(super) fn between_nodes(context: &Context) -> Result<End> {
    let (cluster, mail, _) = two_on_a_cluster(&context.nlmfo)?;
    mail.start(&cluster.a.tool())?;
    let holders = Holders::start(&TestNode::root(), &mail)?;
    let (mut from, mut to) = (&cluster.a, &cluster.b);
    let here = [Step::own_changes("mail"), Step::own_gone("mail")];
    let there = || [Step::own_changes("mail"), Step::own_reclaims("mail")];
    let steps = here.into_iter().map(|step| (step, false, false));
    let steps = steps.chain(there().map(|step| (step, true, false)));
    let steps = steps.chain(there().map(|step| (step, true, true)));
    for (step, is_there, kills_other) in steps {
        let step = match is_there {
            true => step.on(to),
            false => step,
        };
        let words = failover_to(&context.nlmfo, &to.address.to_string())?;
        let moved = |what: &str| -> Result<()> {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            from.tool().json(exit::CONFIRMED, &words)?;
            let status = mail.status(&to.tool())?;
            ensure!(status["state"] == "serving", "{what}: {status}");
            let status = mail.status(&from.tool())?;
            ensure!(status["state"] == "stopped", "{what}: {status}");
            Ok(())
        };
        if kills_other {
            let (code, said) = from.other_killed_at(to, &step, &words)?;
            eprintln!("{} there, killed there: {code}: {said}", step.name);
            ensure!(code == exit::NOT_CONFIRMED, "{code}: {said}");
        } else {
            from.kill_at(&step, &words)?;
        }
        moved(step.name).with_context(|| format!("killed when {}", step.name))?;
        (from, to) = (to, from);
    }
    holders.finish()?;
    mail.stop(&from.tool())?;
    for node in [from, to] {
        node.tool().json(exit::CONFIRMED, &["cleanup"])?;
    }
    Ok(End::Pass)
}
