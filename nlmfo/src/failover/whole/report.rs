//! The report of a restart, as JSON and as text.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::changes::Change;
use super::coverage::Part;
use crate::exit::Exit;
use crate::failover::record::Record;
use crate::failover::takeover_report::Notified;
use crate::foreign::Name;
use crate::kernel::grace::Grace;
use crate::observe::states::Kind;

/// `nlmfo restart --json`: one object, `schema` "nlmfo.restart/1". Addresses are text, times in
/// milliseconds.
#[derive(Debug, Serialize)]
pub struct RestartReport {
    pub schema: &'static str,
    pub node: String,
    pub kernel: String,
    /// Whether leases are paused for a start by another program: they are if a record waits for it
    /// that has no delegations. Null unless this run only prepares.
    pub prepared: Option<bool>,
    /// Null if this run did not stop the server.
    pub stop: Option<StopReport>,
    /// Null if this run did not start the server.
    pub start: Option<StartReport>,
    /// From the stop until both grace periods were over: no client got a new lock meanwhile. Null if
    /// this run did not do both.
    pub stood_still_ms: Option<f64>,
    pub took_ms: f64,
}

/// What was held, and the stop.
#[derive(Clone, Debug, Serialize)]
pub struct StopReport {
    /// How the server is stopped and started.
    pub server: String,
    /// Where the record is.
    pub record: PathBuf,
    /// Clients of NFSv3 that hold, wait for or have reserved something.
    pub clients: usize,
    pub locks: usize,
    pub shares: usize,
    /// NFSv4 clients that hold something, with their opens, locked ranges and delegations.
    pub nfs4_clients: usize,
    pub opens: usize,
    pub nfs4_locks: usize,
    pub delegations: usize,
    /// Of these, what only the record of an interrupted restart had.
    pub recalled: usize,
    /// Locks changed while they were recorded: more may be held than is recorded.
    pub changing: bool,
    /// NFSv4 clients that nfsdcld does not know, which cannot reclaim.
    pub unknown: Vec<Name>,
    /// NFSv4 clients that nfsdcld did not know and that nlmfo added to its records.
    pub added: Vec<Name>,
    pub notes: Vec<String>,
    /// Null if this run only records.
    pub stopped_after_ms: Option<f64>,
    /// Nothing is left.
    pub stopped: bool,
    /// What is left after the stop, as text.
    pub left: Vec<String>,
    pub took_ms: f64,
}

/// How the kernel's grace ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// By nlmfo, after everything in the record was back.
    Early,
    /// By the kernel, after its time or after all NFSv4.1 clients had reclaimed.
    ByItself,
    /// It continues.
    NotYet,
}

/// The start, and what came back.
#[derive(Debug, Serialize)]
pub struct StartReport {
    pub server: String,
    /// Whether there was a record of what had been held.
    pub has_record: bool,
    /// When the record was taken, in seconds since 1970.
    pub recorded_at: Option<u64>,
    /// Services that do not run and that reclaims need.
    pub not_ready: Vec<String>,
    /// The grace after the start; all false if reclaims were not possible.
    pub grace: Grace,
    /// What cannot come back because of the configuration.
    pub changes: Vec<Change>,
    /// Locks, shares, and NFSv4 opens and locked ranges of the record.
    pub expected: usize,
    pub missing: Part,
    /// What clients gave up (UNLOCK, LOCKU, CLOSE) instead of reclaiming it.
    pub given_up: Part,
    /// Files on which a client had a delegation and has none: locks behind it may be lost.
    pub hidden: usize,
    /// Why it is not known what is back.
    pub unseen: Option<String>,
    /// Each address whose clients were notified, and the result.
    pub notified: Vec<VipNotified>,
    /// When the last of the record was back, counted from the start of the server.
    pub back_after_ms: Option<f64>,
    pub ended: Ended,
    pub notes: Vec<String>,
    pub took_ms: f64,
}

/// How the clients of one VIP were notified.
#[derive(Debug, Serialize)]
pub struct VipNotified {
    pub vip: IpAddr,
    #[serde(flatten)]
    pub notified: Notified,
}

impl StopReport {
    pub fn new(server: String, record: PathBuf) -> Self {
        StopReport {
            server,
            record,
            clients: 0,
            locks: 0,
            shares: 0,
            nfs4_clients: 0,
            opens: 0,
            nfs4_locks: 0,
            delegations: 0,
            recalled: 0,
            changing: false,
            unknown: Vec::new(),
            added: Vec::new(),
            notes: Vec::new(),
            stopped_after_ms: None,
            stopped: false,
            left: Vec::new(),
            took_ms: 0.0,
        }
    }

    /// Counts what is in the record.
    pub fn recorded(&mut self, record: &Record) {
        use std::collections::BTreeSet;
        let clients = record.clients.iter().map(|client| client.host.client);
        self.clients = clients.collect::<BTreeSet<_>>().len();
        self.locks = record.locks.len();
        self.shares = record.shares.len();
        let of = |kind| record.nfs4.iter().filter(move |line| line.kind == kind);
        let clients = record.nfs4.iter().map(|line| &line.client.client_name);
        self.nfs4_clients = clients.collect::<BTreeSet<_>>().len();
        self.opens = of(Kind::Open).count();
        self.nfs4_locks = of(Kind::Lock).map(|line| line.ranges.len()).sum();
        self.delegations = of(Kind::Delegation).count();
        self.changing = record.changing;
    }

    /// Notes why lock calls are not fenced.
    pub fn unfenced(&mut self, reason: Option<String>) {
        let note = reason.map(|reason| format!("lock calls were not fenced: {reason}"));
        self.notes.extend(note);
    }

    fn exit(&self) -> Exit {
        match self.left.is_empty() {
            true => Exit::Done,
            false => Exit::NotConfirmed,
        }
    }
}

impl StartReport {
    /// Why it is not confirmed; empty if it is.
    pub fn blockers(&self) -> Vec<String> {
        let mut blockers = Vec::new();
        if !self.grace.stands() && (self.expected > 0 || !self.has_record) {
            blockers.push(
                "the server was not in grace, so no client was notified and nothing can be \
                 reclaimed; `nlmfo restart` begins a new grace"
                    .to_owned(),
            );
        }
        if !self.has_record {
            blockers.push("there is no record of what was held before the start".to_owned());
        }
        if let Some(reason) = &self.unseen {
            blockers.push(format!("what is held could not be read: {reason}"));
        }
        if self.hidden > 0 {
            blockers.push(format!(
                "delegations of {} files did not come back: it is not known what their clients had \
                 locked",
                self.hidden
            ));
        }
        if self.ended == Ended::NotYet {
            blockers.push("grace has not ended".to_owned());
        }
        blockers
    }

    pub fn exit(&self) -> Exit {
        let is_notified = |one: &VipNotified| {
            let notified = &one.notified;
            let is_back = self.has_record && notified.error.is_none() && self.missing.is_empty();
            notified.state_number_error.is_none() && (notified.done || is_back)
        };
        if !self.blockers().is_empty() {
            Exit::NotConfirmed
        } else if !self.missing.is_empty() || !self.notified.iter().all(is_notified) {
            Exit::Incomplete
        } else {
            Exit::Done
        }
    }
}

impl RestartReport {
    pub const SCHEMA: &str = "nlmfo.restart/1";

    pub fn exit(&self) -> Exit {
        let exits = [
            self.stop.as_ref().map(StopReport::exit),
            self.start.as_ref().map(StartReport::exit),
        ];
        let worst = |exit: &Exit| match exit {
            Exit::NotConfirmed => 2,
            Exit::Incomplete => 1,
            _ => 0,
        };
        let exits = exits.into_iter().flatten();
        exits.max_by_key(worst).unwrap_or(Exit::Done)
    }
}

impl fmt::Display for RestartReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prepared {
            Some(true) => writeln!(
                f,
                "✓ leases are paused until `nlmfo restart --start-only` ends"
            )?,
            Some(false) => writeln!(
                f,
                "nothing to prepare: there is no readable record, or it has delegations"
            )?,
            None => {}
        }
        if let Some(stop) = &self.stop {
            stop.fmt(f)?;
        }
        if let Some(start) = &self.start {
            start.fmt(f)?;
        }
        if let Some(still) = self.stood_still_ms {
            writeln!(f, "  no client got a new lock for {:.1} s", still / 1000.0)?;
        }
        Ok(())
    }
}

impl fmt::Display for StopReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  recorded: NFSv3: {} locks of {} clients; NFSv4: {} opens, {} locks and {} \
             delegations of {} clients",
            self.locks,
            self.clients,
            self.opens,
            self.nfs4_locks,
            self.delegations,
            self.nfs4_clients
        )?;
        if self.recalled > 0 {
            writeln!(f, "  {} of them by an interrupted restart", self.recalled)?;
        }
        for name in &self.unknown {
            writeln!(f, "  ! nfsdcld does not know {name}, which cannot reclaim")?;
        }
        for name in &self.added {
            writeln!(f, "  added to nfsdcld's records: {name}")?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        for left in &self.left {
            writeln!(f, "✗ NOT CONFIRMED: {left}")?;
        }
        match (self.stopped, self.stopped_after_ms) {
            (true, Some(took)) => writeln!(f, "✓ stopped after {took:.0} ms, nothing is left"),
            (false, None) => writeln!(f, "✓ stored in {}", self.record.display()),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for StartReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for missing in &self.not_ready {
            writeln!(f, "  ! {missing}")?;
        }
        for Change { what, costs } in &self.changes {
            writeln!(f, "  ! {what}: {costs} locks and opens cannot be reclaimed")?;
        }
        for VipNotified { vip, notified } in &self.notified {
            if let Some(error) = &notified.error {
                writeln!(f, "  ✗ the clients of {vip} were not notified: {error}")?;
            }
            if let Some(error) = &notified.state_number_error {
                writeln!(f, "  ! the state number was made from the clock: {error}")?;
            }
            if let Some(report) = &notified.notify {
                write!(f, "  {vip}:")?;
                report.summary(f)?;
                for client in report.not_notified() {
                    client.fmt(f)?;
                }
            }
        }
        self.missing.fmt(f)?;
        if !self.given_up.is_empty() {
            writeln!(
                f,
                "  {} locks and opens were given up by their clients meanwhile",
                self.given_up.len()
            )?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        match self.ended {
            Ended::Early => writeln!(f, "  both grace periods were ended early")?,
            Ended::ByItself if self.grace.stands() => {
                writeln!(f, "  the kernel ended its grace periods")?;
            }
            Ended::ByItself | Ended::NotYet => {}
        }
        let blockers = self.blockers();
        for blocker in &blockers {
            writeln!(f, "✗ NOT CONFIRMED: {blocker}")?;
        }
        let missing = self.missing.len();
        let expected = self.expected.saturating_sub(self.given_up.len());
        match self.back_after_ms {
            _ if !self.has_record => Ok(()),
            _ if missing > 0 => {
                writeln!(f, "✗ {missing} of {expected} locks and opens not reclaimed")
            }
            Some(at) if blockers.is_empty() => writeln!(
                f,
                "✓ all {expected} locks and opens are back, {at:.0} ms after the start"
            ),
            _ => writeln!(f, "- {expected} locks and opens are back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::record::sample::lock;

    fn started() -> StartReport {
        StartReport {
            server: "s".into(),
            has_record: true,
            recorded_at: Some(1),
            not_ready: Vec::new(),
            grace: Grace {
                lockd: true,
                nfsd: false,
            },
            changes: Vec::new(),
            expected: 1,
            missing: Part::default(),
            given_up: Part::default(),
            hidden: 0,
            unseen: None,
            notified: Vec::new(),
            back_after_ms: Some(1.0),
            ended: Ended::Early,
            notes: Vec::new(),
            took_ms: 2.0,
        }
    }

    fn notified(done: bool) -> VipNotified {
        VipNotified {
            vip: "10.77.0.1".parse().unwrap(),
            notified: Notified {
                done,
                ..Notified::done()
            },
        }
    }

    #[test]
    fn only_what_was_seen_is_confirmed() {
        assert_eq!(started().exit(), Exit::Done);
        let changes: [fn(&mut StartReport); 4] = [
            |report| report.grace = Grace::default(),
            |report| report.has_record = false,
            |report| report.unseen = Some("x".into()),
            |report| report.ended = Ended::NotYet,
        ];
        for change in changes {
            let mut report = started();
            change(&mut report);
            assert_eq!(report.exit(), Exit::NotConfirmed, "{report:?}");
            assert!(report.to_string().contains("NOT CONFIRMED"), "{report}");
        }
    }

    #[test]
    fn an_unreachable_client_matters_if_something_is_missing() {
        let mut report = started();
        report.notified = vec![notified(false)];
        assert_eq!(report.exit(), Exit::Done);
        report.missing.locks = vec![lock("10.77.0.1", 0, 9)];
        assert_eq!(report.exit(), Exit::Incomplete);
        assert!(
            report
                .to_string()
                .contains("1 of 1 locks and opens not reclaimed")
        );
    }

    #[test]
    fn the_worse_half_is_the_result() {
        let mut stop = StopReport::new("s".into(), "/r".into());
        stop.left = vec!["a lock".into()];
        let mut start = started();
        start.missing.locks = vec![lock("10.77.0.1", 0, 9)];
        let mut report = RestartReport {
            prepared: None,
            schema: RestartReport::SCHEMA,
            node: "n".into(),
            kernel: "6.1".into(),
            stop: None,
            start: Some(start),
            stood_still_ms: None,
            took_ms: 1.0,
        };
        assert_eq!(report.exit(), Exit::Incomplete);
        report.stop = Some(stop);
        assert_eq!(report.exit(), Exit::NotConfirmed);
    }
}
