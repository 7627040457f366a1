//! `nlmfo server check`: whether a server can start here, and on another node.

use std::ffi::OsString;
use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

use crate::cli::CheckServerArgs;
use crate::commands::peer;
use crate::exit::{Exit, Failure};
use crate::failover::nodes::peer::{Compared, Peer};
use crate::failover::nodes::settings::of_server;
use crate::failover::nodes::{Difference, Setting, compare};
use crate::output;
use crate::server::Server;
use crate::server::check::{Need, needs};

/// One node's answer, also as another node reads it.
#[derive(Serialize, Deserialize)]
struct Checked {
    ready: bool,
    needs: Vec<Need>,
    /// What must be the same wherever the server starts.
    settings: Vec<Setting>,
}

/// The JSON of `nlmfo server check`.
#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    server: &'a str,
    #[serde(flatten)]
    here: Checked,
    peer: Option<Compared<Checked>>,
}

pub fn run(args: &CheckServerArgs) -> Result<Exit, Failure> {
    let server = Server::named(&args.server.name)?;
    let needs = needs(&server)?;
    let here = Checked {
        ready: needs.iter().all(|need| need.missing.is_none()),
        needs,
        settings: of_server(&server.description),
    };
    let peer = match peer::of(&args.peer)? {
        Some(peer) => Some(compared(&here, &peer, server.name())?),
        None => None,
    };
    let report = Report {
        schema: "nlmfo.server.check/1",
        server: server.name(),
        here,
        peer,
    };
    match args.server.json {
        true => output::list_json(&report).map(drop)?,
        false => output::list(|out| report.print(out))?,
    }
    Ok(report.exit())
}

fn compared(here: &Checked, peer: &Peer, name: &str) -> Result<Compared<Checked>, Failure> {
    let arguments = ["server", "check", name, "--json"].map(OsString::from);
    // A node that does not know the server has no answer.
    let mut compared: Compared<Checked> = Compared::of(peer.host(), peer.ask(&arguments)?);
    if let Some(there) = &compared.there {
        compared.differences = compare(&here.settings, &there.settings);
    }
    Ok(compared)
}

impl Checked {
    fn print(&self, out: &mut impl Write, name: &str, node: &str) -> fmt::Result {
        for need in &self.needs {
            match &need.missing {
                None => writeln!(out, "✓ {}", need.what)?,
                Some(missing) => writeln!(out, "✗ {}: {missing}", need.what)?,
            }
        }
        match self.ready {
            true => writeln!(out, "✓ server {name} can start on {node}"),
            false => writeln!(out, "✗ server {name} cannot start on {node}"),
        }
    }
}

impl Report<'_> {
    fn exit(&self) -> Exit {
        let mut exits = vec![self.here.exit()];
        if let Some(peer) = &self.peer {
            exits.push(match &peer.there {
                Some(there) => there.exit(),
                None => Exit::NotConfirmed,
            });
            if peer.differences.iter().any(Difference::loses) {
                exits.push(Exit::Unsupported);
            }
        }
        exits.into_iter().max().unwrap_or(Exit::Done)
    }

    fn print(&self, out: &mut impl Write) -> fmt::Result {
        self.here.print(out, self.server, "this node")?;
        let Some(peer) = &self.peer else {
            return Ok(());
        };
        let host = &peer.host;
        let Some(there) = &peer.there else {
            return writeln!(out, "{}", peer.not_asked());
        };
        writeln!(out, "{host}:")?;
        there.print(out, self.server, host)?;
        for difference in &peer.differences {
            writeln!(out, "{}", difference.marked())?;
        }
        if peer.differences.is_empty() {
            writeln!(
                out,
                "✓ both nodes configure server {} in the same way",
                self.server
            )?;
        }
        Ok(())
    }
}

impl Checked {
    fn exit(&self) -> Exit {
        match self.ready {
            true => Exit::Done,
            false => Exit::Unsupported,
        }
    }
}
