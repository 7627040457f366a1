//! The report of `nlmfo doctor`, on one node or two.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::outlook::{Half, Outlook};
use super::peer::Compared;
use super::side::Side;
use super::{Difference, clock_difference, compare};
use crate::exit::Exit;
use crate::times::whole_milliseconds;

/// The JSON of `nlmfo doctor`.
#[derive(Serialize)]
pub struct Page {
    schema: &'static str,
    #[serde(flatten)]
    here: Side,
    peer: Option<PeerPage>,
}

/// The comparison with another node.
#[derive(Serialize)]
pub struct PeerPage {
    #[serde(flatten)]
    compared: Compared<Side>,
    /// How far its clock is off, if too far.
    clock_ms: Option<u64>,
    /// VIPs that are on both nodes.
    on_both: Vec<IpAddr>,
}

/// The other node is this one.
#[derive(Debug, thiserror::Error)]
#[error("{0} is this node itself: name the other one")]
pub struct SameNode(String);

impl Page {
    pub fn new(here: Side, peer: Option<PeerPage>) -> Self {
        Page {
            schema: "nlmfo.doctor/1",
            here,
            peer,
        }
    }

    /// The exit status of the worst finding.
    pub fn exit(&self) -> Exit {
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

    /// Lines for a person.
    pub fn write(&self, out: &mut impl fmt::Write) -> fmt::Result {
        self.here.write(out, "this node")?;
        if let Some(peer) = &self.peer {
            peer.write(out)?;
        }
        match self.exit() {
            Exit::Done => writeln!(out, "✓ found nothing that would lose locks in a move now"),
            Exit::NotConfirmed => writeln!(
                out,
                "✗ a move now may lose locks; see the lines with ✗ and ? above"
            ),
            _ => writeln!(out, "✗ fix the lines with ✗ above before a move"),
        }
    }
}

impl PeerPage {
    /// Compares this node with the answer of another, which was `asked` and `answered` at these
    /// milliseconds since 1970.
    ///
    /// # Errors
    /// If it is this node.
    pub fn of(
        here: &Side,
        compared: Compared<Side>,
        (asked, answered): (u64, u64),
    ) -> Result<Self, SameNode> {
        let mut page = PeerPage {
            compared,
            clock_ms: None,
            on_both: Vec::new(),
        };
        if let Some(there) = &page.compared.there {
            if there.node.boot == here.node.boot {
                return Err(SameNode(page.compared.host));
            }
            let off = clock_difference(asked, answered, there.node.clock_ms);
            page.clock_ms = off.map(whole_milliseconds);
            page.on_both = on_both(&here.outlooks, &there.outlooks);
            page.compared.differences = compare(&here.node.settings, &there.node.settings);
        }
        Ok(page)
    }

    fn write(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let differences = &self.compared.differences;
        let Some(there) = &self.compared.there else {
            return writeln!(out, "{}", self.compared.not_asked());
        };
        there.write(out, &there.node.name)?;
        writeln!(out, "compared with {}:", there.node.name)?;
        for vip in &self.on_both {
            writeln!(
                out,
                "  ✗ {vip} is on both nodes: remove it from one of them"
            )?;
        }
        for difference in differences {
            writeln!(out, "  {}", difference.marked())?;
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

/// The VIPs that both nodes have: as an address, or with locks or state held through them.
fn on_both(here: &[Outlook], there: &[Outlook]) -> Vec<IpAddr> {
    let given_up = |side: &[Outlook]| -> BTreeSet<IpAddr> {
        let held = side.iter().filter(|outlook| outlook.half == Half::GiveUp);
        held.flat_map(|outlook| outlook.vips.clone()).collect()
    };
    let (here, there) = (given_up(here), given_up(there));
    here.intersection(&there).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::nodes::settings::NodeFacts;

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
            dangers: Vec::new(),
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
        let mut text = String::new();
        page.write(&mut text).unwrap();
        (page.exit(), text)
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
        let danger = |here: &mut Side, _: &mut PeerPage| here.dangers.push("x".into());
        assert_eq!(found(there(), &danger), Exit::Unsupported);
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
    fn another_node_is_compared_and_this_one_is_refused() {
        let compared = |boot: &str, half, clock_ms| {
            let mut there = side(vec![outlook(half)]);
            (there.node.boot, there.node.clock_ms) = (boot.into(), clock_ms);
            let compared = Compared::of("10.77.1.2", Ok(there));
            PeerPage::of(&side(vec![outlook(Half::GiveUp)]), compared, (0, 10))
        };
        let refused = compared("1", Half::TakeOver, 5).err().unwrap();
        assert!(refused.to_string().starts_with("10.77.1.2 is this node"));
        let page = compared("2", Half::TakeOver, 5).unwrap();
        assert_eq!((page.on_both, page.clock_ms), (Vec::new(), None));
        let page = compared("2", Half::GiveUp, 60_010).unwrap();
        let vip: IpAddr = "10.77.0.1".parse().unwrap();
        assert_eq!((page.on_both, page.clock_ms), (vec![vip], Some(60_000)));
    }
}
