//! Where events go: the journal with their fields, or standard error; and a file of JSON lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use tracing::dispatcher::{Dispatch, with_default};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;

use crate::files::PRIVATE;

/// Name and version of a line.
pub const SCHEMA: &str = "nlmfo.event/1";

/// Set by systemd for processes that write to the journal.
const JOURNAL: &str = "JOURNAL_STREAM";

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Happened {
    pub schema: &'static str,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub level: Level,
    pub kind: Kind,
    /// None for an event of the whole node.
    pub vip: Option<IpAddr>,
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The client whose lock a request waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind: Option<IpAddr>,
    /// `release`, `takeover`, `failover` or `move`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<u8>,
    /// How long it took or has taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Info,
    Warning,
    Error,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    ClientCame,
    ClientGone,
    /// The VIP's fence was raised or removed.
    Fence,
    /// The VIP's grace began or ended.
    Grace,
    KernelGrace,
    LongWait,
    /// There were more events than are listed.
    More,
    Notify,
    /// A failover or a phase of one began or ended.
    Operation,
    /// NFSv4 delegations were recalled.
    Recalled,
    Reclaimed,
    Refused,
    Released,
    Server,
    /// A service became ready, or is no longer ready.
    Service,
    Violation,
}

impl Kind {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::ClientCame => "client_came",
            Kind::ClientGone => "client_gone",
            Kind::Fence => "fence",
            Kind::Grace => "grace",
            Kind::KernelGrace => "kernel_grace",
            Kind::LongWait => "long_wait",
            Kind::More => "more",
            Kind::Notify => "notify",
            Kind::Operation => "operation",
            Kind::Recalled => "recalled",
            Kind::Reclaimed => "reclaimed",
            Kind::Refused => "refused",
            Kind::Released => "released",
            Kind::Server => "server",
            Kind::Service => "service",
            Kind::Violation => "violation",
        }
    }
}

impl Happened {
    pub fn new(at_ms: u64, level: Level, kind: Kind, vip: Option<IpAddr>, text: String) -> Self {
        Happened {
            schema: SCHEMA,
            at_ms,
            level,
            kind,
            vip,
            text,
            client: None,
            file: None,
            behind: None,
            operation: None,
            exit_status: None,
            seconds: None,
        }
    }

    /// One line for a person.
    pub fn line(&self) -> String {
        match self.vip {
            Some(vip) => format!("{vip}: {}", self.text),
            None => self.text.clone(),
        }
    }
}

/// systemd's journal, if this process writes to it.
pub struct Journal(Dispatch);

impl Journal {
    pub fn open() -> Option<Self> {
        std::env::var_os(JOURNAL)?;
        let layer = tracing_journald::layer().ok()?;
        let layer = layer
            .with_field_prefix(Some("NLMFO".to_owned()))
            .with_syslog_identifier("nlmfo".to_owned());
        Some(Journal(Dispatch::new(Registry::default().with(layer))))
    }

    pub fn write(&self, happened: &Happened) {
        let text = |ip: &Option<IpAddr>| ip.map(|ip| ip.to_string());
        macro_rules! send {
            ($level:ident) => {
                tracing::$level!(
                    event = happened.kind.name(),
                    vip = text(&happened.vip),
                    client = text(&happened.client),
                    file = happened.file,
                    behind = text(&happened.behind),
                    operation = happened.operation,
                    exit_status = happened.exit_status,
                    seconds = happened.seconds,
                    "{}",
                    happened.line()
                )
            };
        }
        with_default(&self.0, || match happened.level {
            Level::Info => send!(info),
            Level::Warning => send!(warn),
            Level::Error => send!(error),
        });
    }
}

/// A file of JSON lines.
#[derive(Debug)]
pub struct Lines(File);

impl Lines {
    /// Appends to a file, which it creates for root alone.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn append(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(PRIVATE);
        options.open(path).map(Lines)
    }

    /// # Errors
    /// It cannot be written.
    pub fn write(&mut self, happened: &Happened) -> io::Result<()> {
        let mut line = serde_json::to_vec(happened).map_err(io::Error::from)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_with_the_fields_that_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let vip = Some("10.77.0.1".parse().unwrap());
        let text = "in grace for 90 s".to_owned();
        let happened = Happened::new(1, Level::Info, Kind::Grace, vip, text);
        for _ in 0..2 {
            Lines::append(&path).unwrap().write(&happened).unwrap();
        }
        let line = concat!(
            r#"{"schema":"nlmfo.event/1","at_ms":1,"level":"info","kind":"grace","#,
            r#""vip":"10.77.0.1","text":"in grace for 90 s"}"#,
            "\n"
        );
        assert_eq!(std::fs::read_to_string(path).unwrap(), line.repeat(2));
        assert_eq!(happened.line(), "10.77.0.1: in grace for 90 s");
    }

    #[test]
    fn names_are_those_of_the_json() {
        for kind in [
            Kind::ClientCame,
            Kind::KernelGrace,
            Kind::LongWait,
            Kind::Violation,
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
