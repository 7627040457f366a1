//! The result of a notification, client by client, as JSON and as text.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::machine::Progress;
use super::names::Name;
use super::tell::Order;
use crate::exit::Exit;
use crate::kernel::netns;
use crate::times::milliseconds;

/// `nlmfo notify --json`: one object, `schema` "nlmfo.notify/1". Addresses are text, times
/// are in milliseconds since the start.
#[derive(Clone, Debug, Serialize)]
pub struct NotifyReport {
    pub schema: &'static str,
    pub node: String,
    pub vip: IpAddr,
    /// The NSM state number that was sent.
    pub state: u32,
    /// The names that were sent to the clients, in this order.
    pub names: Vec<Name>,
    pub clients: Vec<ClientReport>,
    pub took_ms: f64,
}

/// The result for one client.
#[derive(Clone, Debug, Serialize)]
pub struct ClientReport {
    pub client: IpAddr,
    pub outcome: Outcome,
    /// Names that its statd has confirmed.
    pub names_told: usize,
    /// When it had confirmed the last of them.
    pub told_ms: Option<f64>,
    /// The last answer or error of a client that was not notified.
    pub reason: Option<String>,
    /// Datagrams that were sent to it.
    pub sent: u32,
}

/// The result for one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// Its statd has confirmed every name. It may not have known any of them.
    #[serde(rename = "notified")]
    Notified,
    #[serde(rename = "unreachable")]
    Unreachable,
    /// It answers, but has no statd, or one that does not accept SM_NOTIFY.
    #[serde(rename = "no statd")]
    NoStatd,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Notified => "notified",
            Outcome::Unreachable => "unreachable",
            Outcome::NoStatd => "no statd",
        }
    }
}

impl NotifyReport {
    pub const SCHEMA: &str = "nlmfo.notify/1";

    pub fn new<'a>(
        order: &Order,
        clients: impl Iterator<Item = &'a Progress>,
        took: Duration,
    ) -> Self {
        NotifyReport {
            schema: NotifyReport::SCHEMA,
            node: netns::node(),
            vip: order.vip,
            state: order.state,
            names: order.names.clone(),
            clients: clients.map(ClientReport::of).collect(),
            took_ms: milliseconds(took),
        }
    }

    pub fn is_complete(&self) -> bool {
        self.not_notified().next().is_none()
    }

    pub fn not_notified(&self) -> impl Iterator<Item = &ClientReport> {
        let clients = self.clients.iter();
        clients.filter(|client| client.outcome != Outcome::Notified)
    }

    /// As a part of a takeover's report.
    pub fn summary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, left) = (self.clients.len(), self.not_notified().count());
        let told = all - left;
        writeln!(f, "  notified {told} of {all} clients: {}", self.as_what())?;
        self.blurred(f)
    }

    /// A name that the VIP shares with other addresses.
    fn blurred(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in self.names.iter().filter(|name| !name.others.is_empty()) {
            let others: Vec<String> = name.others.iter().map(IpAddr::to_string).collect();
            let (vip, name, others) = (self.vip, &name.name, others.join(", "));
            writeln!(
                f,
                "  ! {vip} resolves to {name}, which is also {others}: clients take them for one server, \
                 and a client that locks through several of them reclaims only through one; give \
                 each address its own name"
            )?;
        }
        Ok(())
    }

    /// The state number and names of the notification.
    fn as_what(&self) -> String {
        let names: Vec<String> = (self.names.iter())
            .map(|name| format!("{} ({})", name.name, name.from.words()))
            .collect();
        format!("state number {}, names {}", self.state, names.join(", "))
    }

    pub fn exit(&self) -> Exit {
        match self.is_complete() {
            true => Exit::Done,
            false => Exit::Incomplete,
        }
    }
}

impl ClientReport {
    fn of(progress: &Progress) -> Self {
        let outcome = match (progress.told, progress.last.is_of_life()) {
            (Some(_), _) => Outcome::Notified,
            (None, true) => Outcome::NoStatd,
            (None, false) => Outcome::Unreachable,
        };
        ClientReport {
            client: progress.client,
            outcome,
            names_told: progress.names,
            told_ms: progress.told.map(milliseconds),
            reason: (progress.told.is_none()).then(|| progress.last.to_string()),
            sent: progress.sent,
        }
    }
}

impl fmt::Display for NotifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vip = self.vip;
        writeln!(f, "{vip}: {}", self.as_what())?;
        self.blurred(f)?;
        for client in &self.clients {
            client.fmt(f)?;
        }
        let (all, left) = (self.clients.len(), self.not_notified().count());
        match left {
            0 => writeln!(
                f,
                "✓ {vip}: all {all} clients notified in {:.0} ms",
                self.took_ms
            ),
            _ => writeln!(
                f,
                "✗ {vip}: {left} of {all} clients not notified in {:.0} ms",
                self.took_ms
            ),
        }
    }
}

impl fmt::Display for ClientReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (client, word) = (self.client, self.outcome.word());
        match (self.told_ms, &self.reason) {
            (Some(at), _) => writeln!(f, "  ✓ {client}: {word} after {at:.0} ms"),
            (None, reason) => writeln!(
                f,
                "  ✗ {client}: {word}: {} ({} datagrams sent, {} names confirmed)",
                reason.as_deref().unwrap_or("unknown reason"),
                self.sent,
                self.names_told
            ),
        }
    }
}
