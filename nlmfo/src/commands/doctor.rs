//! `nlmfo doctor`: what an operator asks before a move, on one page.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::{self, Write};
use std::net::IpAddr;

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};

use super::peer::{self, Compared, Peer};
use super::{check, require_root};
use crate::causes::chain;
use crate::cli::DoctorArgs;
use crate::cli::version::{COMMIT, VERSION};
use crate::exit::{Exit, Failure};
use crate::failover::nodes::outlook::{Half, Outlook};
use crate::failover::nodes::settings::NodeFacts;
use crate::failover::nodes::{Difference, Topic, clock_difference, compare};
use crate::failover::options::Options;
use crate::failover::run::dry;
use crate::failover::services::blockers;
use crate::failover::watch::{Watch, observe};
use crate::kernel::preflight::Facts;
use crate::notify::config::Config;
use crate::notify::state_dir::StateDir;
use crate::server::{Server, check as needs, status};
use crate::times::{now_milliseconds, whole_milliseconds};
use crate::{output, runtime};

/// One node's side of the page, also as another node reads it.
#[derive(Serialize, Deserialize)]
struct Side {
    node: NodeFacts,
    /// What this kernel and node lack for a failover, each with what to do.
    missing: Vec<String>,
    outlooks: Vec<Outlook>,
}

/// The JSON of `nlmfo doctor`.
#[derive(Serialize)]
struct Page {
    schema: &'static str,
    #[serde(flatten)]
    here: Side,
    peer: Option<PeerPage>,
}

/// The comparison with another node.
#[derive(Serialize)]
struct PeerPage {
    #[serde(flatten)]
    compared: Compared<Side>,
    /// How far its clock is off, if it is far.
    clock_ms: Option<u64>,
    /// VIPs that are on both nodes.
    on_both: Vec<IpAddr>,
}

pub fn run(args: &DoctorArgs) -> Result<Exit, Failure> {
    require_root()?;
    let here = look(args)?;
    let peer = match Peer::of(&args.peer)? {
        Some(peer) => Some(compared(&here, &peer, args)?),
        None => None,
    };
    let page = Page {
        schema: "nlmfo.doctor/1",
        here,
        peer,
    };
    let exit = page.exit();
    match args.json {
        true => output::list_json(&page).map(drop)?,
        false => output::list(|out| page.print(out, exit))?,
    }
    Ok(exit)
}

fn look(args: &DoctorArgs) -> Result<Side, Failure> {
    let checked = check::look(&args.vip, &args.state, None)?;
    let kernel = blockers(&checked.kernel);
    let services = blockers(&checked.services);
    let mut side = Side {
        node: NodeFacts::gather(&format!("{VERSION} ({COMMIT})")),
        missing: [&kernel[..], &services[..]].concat(),
        outlooks: Vec::new(),
    };
    // What is wrong with their description is said already.
    let servers = Server::all().unwrap_or_default();
    let is_own = |vip: &IpAddr| servers.iter().any(|one| one.description.has_vip(*vip));
    let is_wanted = |one: &&Server| {
        args.vip.is_empty() || args.vip.iter().any(|vip| one.description.has_vip(*vip))
    };
    for server in servers.iter().filter(is_wanted) {
        let seen = status::of(server).and_then(|status| Ok((status, needs::missing(server)?)));
        match seen {
            Ok((status, missing)) => side.outlooks.push(Outlook::of_server(&status, missing)),
            Err(error) => {
                let unread = format!("server {}: {}", server.name(), chain(&error));
                side.node.unread.push(unread);
            }
        }
    }
    let observed = observe().and_then(|(facts, mut watch)| {
        let mut vips = match args.vip.is_empty() {
            true => known(args, &mut watch)?,
            false => args.vip.iter().copied().collect(),
        };
        vips.retain(|vip| !is_own(vip));
        shared(args, vips.into_iter().collect(), &facts, watch)
    });
    match observed {
        Ok(planned) => {
            let outlooks = planned.into_iter().map(|(release, takeover)| {
                Outlook::of_vip(&release, &takeover, &services, &kernel)
            });
            side.outlooks.extend(outlooks);
        }
        // What is missing says why.
        Err(_) if !kernel.is_empty() || !services.is_empty() => {}
        Err(failure) => side
            .node
            .unread
            .push(format!("the locks: {:#}", failure.error)),
    }
    Ok(side)
}

type Planned = (
    crate::failover::report::VipReport,
    crate::failover::takeover_plan::VipPlan,
);

/// The dry runs of both phases for each VIP.
fn shared(
    args: &DoctorArgs,
    vips: Vec<IpAddr>,
    facts: &Facts,
    mut watch: Watch,
) -> Result<Vec<Planned>, Failure> {
    if vips.is_empty() {
        return Ok(Vec::new());
    }
    let options = Options::dry_run(vips, StateDir::new(&args.state.state_dir));
    let planned = runtime::run(dry::both(&options, facts, &mut watch));
    let (release, takeover) = planned.context("starting the asynchronous runtime")??;
    Ok(release.vips.into_iter().zip(takeover.vips).collect())
}

/// The VIPs with locks, a client book or configured names.
fn known(args: &DoctorArgs, watch: &mut Watch) -> Result<BTreeSet<IpAddr>, Failure> {
    let state = StateDir::new(&args.state.state_dir);
    let books = (state.vips()).with_context(|| format!("list {}", state.path().display()))?;
    let mut vips: BTreeSet<IpAddr> = books.into_iter().collect();
    // If it is invalid, that is said already.
    vips.extend(Config::read(None).unwrap_or_default().vips());
    let table = watch.snapshot(None).map_err(Failure::from)?.table;
    let hosts = table
        .active_hosts()
        .into_iter()
        .map(|id| table.host(id).key);
    vips.extend(
        hosts
            .filter(|host| watch.is_ours(host))
            .map(|host| host.vip),
    );
    Ok(vips)
}

/// Asks the other node for its side.
fn compared(here: &Side, peer: &Peer, args: &DoctorArgs) -> Result<PeerPage, Failure> {
    let mut arguments: Vec<OsString> = ["doctor", "--json", "--state-dir"].map(Into::into).into();
    arguments.push(args.state.state_dir.clone().into());
    for vip in here.outlooks.iter().flat_map(|outlook| &outlook.vips) {
        arguments.extend(["--vip".into(), vip.to_string().into()]);
    }
    let asked = now_milliseconds();
    let compared: Compared<Side> = Compared::of(peer, peer.ask(&arguments)?);
    let answered = now_milliseconds();
    let mut page = PeerPage {
        compared,
        clock_ms: None,
        on_both: Vec::new(),
    };
    if let Some(there) = &page.compared.there {
        if there.node.boot == here.node.boot {
            let error = anyhow!("{} is this node itself: name the other one", peer.host());
            return Err(Failure::new(Exit::Usage, error));
        }
        let off = clock_difference(asked, answered, there.node.clock_ms);
        page.clock_ms = off.map(whole_milliseconds);
        page.on_both = on_both(&here.outlooks, &there.outlooks);
        page.compared.differences = compare(&here.node.settings, &there.node.settings);
    }
    Ok(page)
}

/// The VIPs that both nodes have: as an address, or with locks or state held through them.
fn on_both(here: &[Outlook], there: &[Outlook]) -> Vec<IpAddr> {
    let given_up = |side: &[Outlook]| -> BTreeSet<IpAddr> {
        let held = side.iter().filter(|outlook| outlook.half == Half::GiveUp);
        held.flat_map(|outlook| outlook.vips.clone()).collect()
    };
    let (here, there) = (given_up(here), given_up(there));
    here.intersection(&there).copied().collect()
}

impl Side {
    fn exit(&self) -> Exit {
        let hindered = self.outlooks.iter().any(|one| !one.hindered.is_empty());
        let lost = self.outlooks.iter().any(|one| !one.lost.is_empty());
        match () {
            () if hindered || !self.missing.is_empty() => Exit::Unsupported,
            () if lost || !self.node.unread.is_empty() => Exit::NotConfirmed,
            () => Exit::Done,
        }
    }

    fn print(&self, out: &mut impl Write, node: &str) -> fmt::Result {
        let value = |topic| self.node.value(topic).unwrap_or("unknown");
        writeln!(
            out,
            "{}: nlmfo {}, Linux {}, nfs-utils {}",
            self.node.name,
            value(Topic::Nlmfo),
            value(Topic::Kernel),
            value(Topic::NfsUtils)
        )?;
        for missing in &self.missing {
            writeln!(out, "  ✗ missing: {missing}")?;
        }
        for unread in &self.node.unread {
            writeln!(out, "  ? not known: {unread}")?;
        }
        (self.outlooks.iter()).try_for_each(|outlook| outlook.write(out, node))
    }
}

impl Page {
    /// The worst of what was found.
    fn exit(&self) -> Exit {
        let mut exits = vec![self.here.exit()];
        if let Some(peer) = &self.peer {
            let there = peer.compared.there.as_ref();
            exits.push(there.map_or(Exit::NotConfirmed, Side::exit));
            let mut differences = peer.compared.differences.iter();
            if differences.any(Difference::loses) || !peer.on_both.is_empty() {
                exits.push(Exit::Unsupported);
            }
        }
        exits.into_iter().max().unwrap_or(Exit::Done)
    }

    fn print(&self, out: &mut impl Write, exit: Exit) -> fmt::Result {
        self.here.print(out, "this node")?;
        if let Some(peer) = &self.peer {
            peer.print(out)?;
        }
        match exit {
            Exit::Done => writeln!(out, "✓ nothing was found that loses locks in a move now"),
            Exit::NotConfirmed => writeln!(
                out,
                "✗ a move now may lose locks; see the lines with ✗ and ? above"
            ),
            _ => writeln!(out, "✗ fix the lines with ✗ above before a move"),
        }
    }
}

impl PeerPage {
    fn print(&self, out: &mut impl Write) -> fmt::Result {
        let differences = &self.compared.differences;
        let Some(there) = &self.compared.there else {
            return writeln!(out, "{}", self.compared.not_asked());
        };
        there.print(out, &there.node.name)?;
        writeln!(out, "compared with {}:", there.node.name)?;
        for vip in &self.on_both {
            writeln!(
                out,
                "  ✗ {vip} is on both nodes: remove it from one of them"
            )?;
        }
        for difference in differences {
            writeln!(out, "  {}", peer::line(difference))?;
        }
        if let Some(off) = self.clock_ms {
            writeln!(
                out,
                "  ! clocks: {:.1} s apart; set them by NTP: times in logs and client books are compared",
                off as f64 / 1000.0
            )?;
        }
        if self.on_both.is_empty() && differences.is_empty() && self.clock_ms.is_none() {
            writeln!(out, "  ✓ no difference")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(outlooks: Vec<Outlook>) -> Side {
        Side {
            node: NodeFacts {
                name: "a".into(),
                boot: "1".into(),
                clock_ms: 0,
                settings: Vec::new(),
                unread: Vec::new(),
            },
            missing: Vec::new(),
            outlooks,
        }
    }

    fn outlook(half: Half) -> Outlook {
        Outlook {
            vips: vec!["10.77.0.1".parse().unwrap()],
            server: None,
            half,
            held: "4 locks".into(),
            hindered: Vec::new(),
            lost: Vec::new(),
            notes: vec!["a note".into()],
        }
    }

    fn page(there: Option<Side>, change: impl Fn(&mut Side, &mut PeerPage)) -> (Exit, String) {
        let mut here = side(vec![outlook(Half::GiveUp)]);
        let mut peer = PeerPage {
            compared: Compared {
                host: "10.77.1.2".into(),
                there,
                error: None,
                differences: Vec::new(),
            },
            clock_ms: None,
            on_both: Vec::new(),
        };
        change(&mut here, &mut peer);
        let page = Page {
            schema: "",
            here,
            peer: Some(peer),
        };
        let (exit, mut text) = (page.exit(), String::new());
        page.print(&mut text, exit).unwrap();
        (exit, text)
    }

    #[test]
    fn only_what_was_seen_to_be_well_is_well() {
        let there = || Some(side(vec![outlook(Half::TakeOver)]));
        let (exit, text) = page(there(), |_, _| {});
        assert_eq!(exit, Exit::Done, "{text}");
        assert!(text.contains("✓ this node can give it up now"), "{text}");
        assert!(text.contains("✓ a can take it over now"), "{text}");
        assert!(text.contains("✓ no difference"), "{text}");
        let found = |there, change: &dyn Fn(&mut Side, &mut PeerPage)| page(there, change).0;
        assert_eq!(found(None, &|_, _| {}), Exit::NotConfirmed);
        let unread = |here: &mut Side, _: &mut PeerPage| here.node.unread.push("x".into());
        assert_eq!(found(there(), &unread), Exit::NotConfirmed);
        let lost = |here: &mut Side, _: &mut PeerPage| here.outlooks[0].lost.push("x".into());
        assert_eq!(found(there(), &lost), Exit::NotConfirmed);
        let both = |_: &mut Side, peer: &mut PeerPage| {
            peer.on_both.push("10.77.0.1".parse().unwrap());
        };
        assert_eq!(found(there(), &both), Exit::Unsupported);
        let mut statd = there();
        statd
            .iter_mut()
            .for_each(|side| side.missing.push("statd: it hangs".into()));
        assert_eq!(found(statd, &lost), Exit::Unsupported);
    }

    #[test]
    fn a_vip_on_both_nodes_is_found() {
        let one = [outlook(Half::GiveUp)];
        assert_eq!(on_both(&one, &one), one[0].vips);
        assert_eq!(
            on_both(&one, &[outlook(Half::TakeOver)]),
            [""; 0].map(|_| one[0].vips[0])
        );
    }
}
