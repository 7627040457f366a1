//! What nlmfo lists on a node with several servers.

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::super::metrics::{LISTEN, scrape};
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

/// The metrics of one server are of that one alone.
fn metrics(tool: &Tool) -> Result<()> {
    let mut serving = tool.start(&["serve", "--server", "mail", "--listen", LISTEN])?;
    until("metrics of the server", || {
        // It may not listen yet.
        let text = scrape().unwrap_or_default();
        let is_of = |vip: &str| text.contains(&format!("nlmfo_nfs4_clients{{vip=\"{vip}\"}}"));
        Ok(
            match text.contains("server=\"mail\"") && is_of("10.77.0.1") {
                true if is_of("10.77.0.2") => bail!("of another server too: {text}"),
                true => Seen::Yes(()),
                false => Seen::No(text),
            },
        )
    })?;
    serving.signal(Signal::SIGTERM)?;
    ensure!(serving.code()? == exit::CONFIRMED, "serve after SIGTERM");
    Ok(())
}

/// What is listed of both servers names them, and one alone can be asked for.
pub(super) fn both(tool: &Tool) -> Result<()> {
    let rows = |value: &Value, server: &str| {
        let rows = value.as_array().into_iter().flatten();
        rows.filter(|row| row["server"] == server).count()
    };
    let all = tool.json(exit::CONFIRMED, &["locks"])?;
    let states = &all["nfs4"]["states"];
    ensure!(
        rows(&all["locks"], "mail") >= 1
            && rows(states, "mail") >= 3
            && rows(states, "data") >= 1
            && rows(&all["locks"], "node") == 0,
        "{all}"
    );
    let data = tool.json(exit::CONFIRMED, &["locks", "--server", "data"])?;
    let states = data["nfs4"]["states"].as_array().context("no states")?;
    let is_mails = |state: &Value| state.to_string().contains("/srv/mail");
    ensure!(!states.is_empty() && !states.iter().any(is_mails), "{data}");
    let text = tool.expect(exit::CONFIRMED, &["locks", "--file", "/srv/mail/own-1"])?;
    ensure!(
        text.stdout.contains("SERVER mail") && !text.stdout.contains("SERVER data"),
        "{}",
        text.stdout
    );
    let clients = tool.json(exit::CONFIRMED, &["clients"])?;
    for server in ["mail", "data"] {
        ensure!(rows(&clients["nfs4"]["clients"], server) >= 3, "{clients}");
    }
    ensure!(rows(&clients["vips"], "mail") >= 1, "{clients}");
    let grace = tool.json(exit::CONFIRMED, &["grace", "--list"])?;
    for server in ["mail", "data"] {
        let found = grace["servers"].as_array().into_iter().flatten();
        let mut found = found.filter(|one| one["server"] == server);
        let one = found.next().context("no such server")?;
        ensure!(one["kernel_grace"]["nfsd"] == false, "{grace}");
    }
    metrics(tool)?;
    let watched = ["watch", "--once", "--server", "mail"];
    let watched = tool.json(exit::CONFIRMED, &watched)?;
    ensure!(
        watched.to_string().contains("10.77.0.1") && !watched.to_string().contains("10.77.0.2"),
        "{watched}"
    );
    let gone = tool.expect(exit::COULD_NOT_RUN, &["locks", "--server", "other"])?;
    ensure!(
        gone.stderr.contains("server other is not running"),
        "{}",
        gone.stderr
    );
    Ok(())
}
