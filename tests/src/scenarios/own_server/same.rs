//! `nlmfo server check --peer`.

use anyhow::{Context as _, Result, ensure};

use super::super::Context;
use crate::cluster::Cluster;
use crate::cluster::agent::AGENT;
use crate::guest::command::run;
use crate::guest::tool::exit;

/// What would lose locks in a move is found before it.
pub(super) fn on_both(context: &Context, cluster: &Cluster) -> Result<()> {
    let rsh = format!("{AGENT} rsh");
    let nlmfo = context.nlmfo.to_str().context("no UTF-8")?;
    let peer = [
        "--peer",
        "10.77.2.2",
        "--rsh",
        &rsh,
        "--remote-nlmfo",
        nlmfo,
    ];
    let check = |code: i32| {
        let words = [&["server", "check", "mail"], &peer[..]].concat();
        cluster.a.tool().json(code, &words)
    };
    let scope = |from: &str, to: &str| {
        let edit = format!("s/^scope = \"{from}\"/scope = \"{to}\"/");
        let mut sed = cluster.b.node().command("sed");
        run(sed.args(["-i", &edit, "/etc/nlmfo.toml"]))
    };
    let same = check(exit::CONFIRMED)?;
    ensure!(
        same["peer"]["differences"] == serde_json::json!([]),
        "{same}"
    );
    scope("mail-nfs", "other")?;
    let found = check(exit::UNSUPPORTED)?;
    ensure!(
        found["peer"]["differences"][0]["topic"] == "server_scope",
        "{found}"
    );
    scope("other", "mail-nfs")?;
    Ok(())
}
