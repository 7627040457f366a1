//! The report of a targeted release, as JSON and as text.

use std::fmt;

use serde::Serialize;

use super::alive::Alive;
use super::id::RowId;
use super::proof::Bystander;
use crate::failover::evidence::Fate;
use crate::failover::report::Verdict;
use crate::observe::describe::{FileLine, LockLine, ShareLine, WaiterLine};
use crate::observe::states::describe::{ClientLine4, StateLine};
use crate::release::HostReport;

/// `nlmfo release --json`: one object, `schema` "nlmfo.targeted-release/1". Addresses as text,
/// ranges in bytes with both ends included, times in milliseconds.
#[derive(Debug, Serialize)]
pub struct TargetedReport {
    pub schema: &'static str,
    pub node: String,
    pub kernel: String,
    pub dry_run: bool,
    /// Whether it was done although a client is alive.
    pub forced: bool,
    /// What was asked for, in words.
    pub wanted: String,
    pub verdict: Verdict,
    /// Why it is not confirmed.
    pub blockers: Vec<String>,
    /// What else an operator should know.
    pub warnings: Vec<String>,
    /// Clients that are alive, and how that shows.
    pub alive: Vec<Alive>,
    /// What was released; in a dry run, what would be.
    pub locks: Vec<Row<LockLine>>,
    pub waiters: Vec<Row<WaiterLine>>,
    pub shares: Vec<Row<ShareLine>>,
    /// NFSv4: the clients that were expired, or whose states were revoked.
    pub nfs4: Nfs4Part,
    /// What else was released with a filesystem or export.
    pub besides: Vec<String>,
    /// Calls to lockd that failed.
    pub failed: Vec<HostReport>,
    /// NFSv3 locks, waiters and shares that were to be released and are still there.
    pub left: usize,
    /// What others hold now in place of what was released.
    pub taken: Vec<LockLine>,
    pub nfs4_taken: Vec<StateLine>,
    /// With --file and --lock: what else is on the files.
    pub on_file: OnFile,
    /// Clients outside the release.
    pub others: Others,
    pub took_ms: f64,
}

impl TargetedReport {
    pub const SCHEMA: &str = "nlmfo.targeted-release/1";
}

/// A row of `nlmfo locks`.
#[derive(Clone, Debug, Serialize)]
pub struct Row<T> {
    pub id: RowId,
    #[serde(flatten)]
    pub line: T,
}

/// The NFSv4 clients and state that were released.
#[derive(Debug, Default, Serialize)]
pub struct Nfs4Part {
    /// Why it is not known what NFSv4 clients hold; null if it is, or was left out.
    pub unknown: Option<String>,
    /// Whether it was left out by request (`--nfs 3`).
    pub left_out: bool,
    pub clients: Vec<ClientLine4>,
    pub states: Vec<StateLine>,
}

/// What remains on the files: nlmfo releases none of it.
#[derive(Debug, Default, Serialize)]
pub struct OnFile {
    pub locks: Vec<LockLine>,
    pub nfs4: Vec<StateLine>,
    pub local: Vec<LocalLine>,
}

/// A lock of a process of this node, or of another protocol's server here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LocalLine {
    /// `POSIX`, `FLOCK`, `OFDLCK` or `LEASE`.
    pub class: String,
    pub write: bool,
    pub pid: i32,
    /// Null if the process is gone.
    pub command: Option<String>,
    pub start: u64,
    /// Null: to the end of the file.
    pub end: Option<u64>,
    pub file: FileLine,
}

/// What happened to the clients outside the release.
#[derive(Debug, Default, Serialize)]
pub struct Others {
    /// Clients and VIPs that hold the same as before.
    pub untouched: usize,
    /// Those that do not.
    pub changed: Vec<Bystander>,
}

impl Others {
    pub fn of(all: Vec<Bystander>) -> Others {
        let (same, changed): (Vec<_>, Vec<_>) =
            (all.into_iter()).partition(|one| one.fate == Fate::Untouched);
        Others {
            untouched: same.len(),
            changed,
        }
    }

    pub fn is_disturbed(&self) -> bool {
        self.changed.iter().any(|one| one.fate == Fate::Disturbed)
    }
}

impl fmt::Display for TargetedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.verdict {
            Verdict::Planned => "to be released",
            _ => "-",
        };
        writeln!(f, "{}:", self.wanted)?;
        for alive in &self.alive {
            writeln!(f, "  ! alive: {alive}")?;
        }
        for Row { id, line } in &self.locks {
            writeln!(f, "  {sign} {id} {}", lock(line))?;
        }
        for Row { id, line } in &self.waiters {
            writeln!(f, "  {sign} {id} waiter for {}", lock(&line.lock))?;
        }
        for Row { id, line } in &self.shares {
            writeln!(f, "  {sign} {id} {}", share(line))?;
        }
        for client in &self.nfs4.clients {
            writeln!(
                f,
                "  {sign} NFSv4.{} client {} ({}), {}",
                client.minor,
                client.client,
                client.client_name,
                client.vips_text()
            )?;
        }
        for state in &self.nfs4.states {
            writeln!(f, "  {sign} NFSv4 {state}")?;
        }
        for besides in &self.besides {
            writeln!(f, "  {sign} besides: {besides}")?;
        }
        for failed in &self.failed {
            if let Err(error) = &failed.outcome {
                writeln!(f, "  ! {}: {error}", failed.host)?;
            }
        }
        for line in &self.taken {
            writeln!(f, "  now held by {}", lock(line))?;
        }
        for state in &self.nfs4_taken {
            writeln!(f, "  now held by {state}")?;
        }
        self.on_file.fmt(f)?;
        self.others.fmt(f)?;
        for warning in &self.warnings {
            writeln!(f, "  note: {warning}")?;
        }
        self.write_verdict(f)
    }
}

impl TargetedReport {
    fn write_verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nothing = self.locks.is_empty()
            && self.waiters.is_empty()
            && self.shares.is_empty()
            && self.nfs4.clients.is_empty();
        let by = match self.nfs4.left_out {
            true => " by NFSv3",
            false => "",
        };
        match self.verdict {
            Verdict::Planned if nothing => writeln!(f, "- nothing is held{by}, nothing to do"),
            Verdict::Planned => writeln!(f, "- dry run, nothing was done"),
            Verdict::Confirmed if nothing => {
                writeln!(f, "✓ confirmed: nothing is held{by}, nothing to do")
            }
            Verdict::Confirmed => writeln!(
                f,
                "✓ confirmed: two identical snapshots show that it is gone; other clients are unchanged, or \
                 have changed by their own requests"
            ),
            Verdict::NotConfirmed => {
                writeln!(f, "✗ NOT CONFIRMED: {}", self.blockers.join("; "))
            }
        }
    }
}

impl fmt::Display for OnFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.locks {
            writeln!(f, "  not released: {}", lock(line))?;
        }
        for state in &self.nfs4 {
            writeln!(f, "  not released: NFSv4 {state}")?;
        }
        for line in &self.local {
            let end = line.end.map_or("EOF".to_owned(), |end| end.to_string());
            writeln!(
                f,
                "  not released: {} {} {}-{end} of {}, process {} ({}) of this node",
                line.class,
                if line.write { "write" } else { "read" },
                line.start,
                line.file,
                line.pid,
                line.command.as_deref().unwrap_or("gone")
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.untouched > 0 {
            writeln!(f, "  ✓ {} other clients: untouched", self.untouched)?;
        }
        for one in &self.changed {
            let through = one
                .vip
                .map_or(" by NFSv4".to_owned(), |vip| format!(" via {vip}"));
            let what = format!(
                "{}{through}: {} gone and {} new of {}",
                one.client, one.gone, one.new, one.before
            );
            match one.fate {
                Fate::Disturbed => writeln!(
                    f,
                    "  ✗ {what}: DISTURBED: no request of its own accounts for it"
                )?,
                _ => writeln!(f, "  ✓ {what}, by requests of clients")?,
            }
        }
        Ok(())
    }
}

fn lock(line: &LockLine) -> String {
    format!(
        "{} ({}) via {}: {} lock {} of {}, svid {}",
        line.host.client,
        line.host.client_name,
        line.host.vip,
        line.mode,
        line.range,
        line.file,
        line.svid
    )
}

fn share(line: &ShareLine) -> String {
    format!(
        "{} ({}) via {}: share of {}, access {} deny {}",
        line.host.client, line.host.client_name, line.host.vip, line.file, line.access, line.deny
    )
}
