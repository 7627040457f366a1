//! NFSv4.0 clients that use another server address than the one through which they introduced
//! themselves last.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{Context, End, Machine, Scenario};
use crate::guest::client::Client;
use crate::guest::command::run;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Outcome, Range};
use crate::guest::tool::{Tool, exit};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "v4-migration",
    claim: "a 4.0 client that mounts through two VIPs with the option migration, and uses one \
            connection, has both, and the release of neither is confirmed",
    run: migration,
    machine: Machine::Own("nfsd keeps its NFSv4 clients for longer than their mounts"),
    ..Scenario::DEFAULT
}];

fn migration(context: &Context) -> Result<End> {
    let lab = Lab::up(&["10.77.0.1", "10.77.0.2", "10.77.0.3"], 0)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    run(Command::new("modprobe").arg("nfsv4"))?;
    let client = Client::join(&lab.server, 4)?;
    let locker = client.locker()?;
    for vip in &lab.vips[..2] {
        let mount = client.mount_nfs4_with(lab.server.export(), *vip, 0, ",migration")?;
        let file = mount.path(&format!("by-{vip}"));
        let outcome = locker.lock(&file, Range::new(0, 5), Mode::Write)?;
        ensure!(outcome == Outcome::Held, "{}: {outcome:?}", file.display());
    }
    // It introduced itself through the second VIP last, and uses the first.
    let listing = tool.json(exit::CONFIRMED, &["locks"])?;
    if let Some(reason) = listing["nfs4"]["reason"].as_str() {
        return Ok(End::Unsupported(reason.to_owned()));
    }
    let clients = listing["nfs4"]["clients"].as_array().context("clients")?;
    ensure!(
        clients.len() == 1 && clients[0]["vips"] == json!(["10.77.0.1", "10.77.0.2"]),
        "{clients:?}"
    );
    let release = |code, vip: &str| {
        let arguments = ["failover", "--phase", "release", "--vip", vip];
        tool.json(code, &arguments)
    };
    for vip in ["10.77.0.1", "10.77.0.2"] {
        let report = release(exit::NOT_CONFIRMED, vip)?;
        let nfs4 = &report["vips"][0]["nfs4"];
        ensure!(nfs4["counts"]["locks"] == 2, "{vip}: {report}");
    }
    release(exit::CONFIRMED, "10.77.0.3")?;
    Ok(End::Pass)
}
