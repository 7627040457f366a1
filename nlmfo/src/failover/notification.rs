//! Notifies the VIPs' clients while their reclaims are followed, on its own thread:
//! following blocks, and an unreachable client must not delay anything.

mod number;

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout_at};
use tracing::warn;

use self::number::{Claimed, Number};
use super::record::Record;
use super::takeover_report::Notified;
use crate::causes::chain;
use crate::failover::pair::rsh::said;
use crate::kernel::exports::exported;
use crate::kernel::netns;
use crate::notify::book::Book;
use crate::notify::config::Config;
use crate::notify::names::{self, Name};
use crate::notify::state_dir::StateDir;
use crate::notify::tell::{self, Order};

/// Who notifies the clients.
#[derive(Clone, Debug)]
pub enum Notifier {
    /// This program, run for each VIP with the VIP as its argument.
    Program(PathBuf),
    /// nlmfo, by SM_NOTIFY: the clients in the record and in the client book.
    Own { state: StateDir, config: Config },
    /// Another program does (`--no-notify`).
    Disabled,
}

/// Time between two checks whether a VIP is up and its filesystem is exported.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Clients of each VIP that hold all their locks again. They are not notified: they would
/// start again, and grace may end before they finish.
pub type Settled = BTreeMap<IpAddr, BTreeSet<IpAddr>>;

/// The result for each VIP.
pub type Outcomes = BTreeMap<IpAddr, Notified>;

/// A running notification. Dropping it ends it.
#[derive(Debug)]
pub struct Notification {
    /// When to stop.
    until: watch::Sender<Instant>,
    task: JoinSet<Outcomes>,
}

impl Notification {
    /// Starts to notify each VIP's clients, except the settled ones, as soon as the VIP is an
    /// address of this node, until `until` at the latest.
    pub fn start(
        notifier: &Notifier,
        vips: &[IpAddr],
        record: Option<&Record>,
        settled: &Settled,
        until: Instant,
    ) -> Self {
        let within = until.saturating_duration_since(Instant::now());
        let number = Number::new(vips, record.map(Record::id), within);
        let jobs = jobs(notifier, vips, record, settled);
        let (sender, receiver) = watch::channel(until);
        let mut task = JoinSet::new();
        task.spawn(notify_all(jobs, number, receiver));
        Notification {
            until: sender,
            task,
        }
    }

    /// Waits for the results until `until`, or until the notification's own deadline.
    pub async fn finish(mut self, until: Instant) -> Outcomes {
        self.until.send_modify(|end| *end = until.min(*end));
        let outcomes = self.task.join_next().await;
        outcomes.and_then(Result::ok).unwrap_or_default()
    }
}

/// The clients that nlmfo would notify of a VIP, or why it knows none.
pub fn clients(
    vip: IpAddr,
    record: Option<&Record>,
    settled: &Settled,
    state: &StateDir,
    config: &Config,
) -> Result<Vec<IpAddr>, String> {
    Tell::new(vip, record, settled, state, config).clients()
}

/// What to do for one VIP.
#[derive(Debug)]
enum Job {
    Run { program: PathBuf, vip: IpAddr },
    Tell(Tell),
}

/// The clients that nlmfo notifies of a VIP.
#[derive(Clone, Debug)]
struct Tell {
    vip: IpAddr,
    /// The clients of the record; none if there is no record.
    recorded: Option<BTreeSet<IpAddr>>,
    settled: BTreeSet<IpAddr>,
    /// Whether the VIP had a client book before this takeover.
    has_book: bool,
    state: StateDir,
    config: Config,
}

impl Tell {
    fn new(
        vip: IpAddr,
        record: Option<&Record>,
        settled: &Settled,
        state: &StateDir,
        config: &Config,
    ) -> Self {
        Tell {
            vip,
            settled: settled.get(&vip).cloned().unwrap_or_default(),
            recorded: record.map(|record| record.clients_of(vip).collect()),
            // A book that cannot be read now may be readable later.
            has_book: Book::read(state, vip).is_ok_and(|read| read.owner.is_some()),
            state: state.clone(),
            config: config.clone(),
        }
    }

    /// The clients in the record and in the book. The book is read once the VIP is up: by then
    /// the old node has recorded its last clients. An error if no client can be known.
    fn clients(&self) -> Result<Vec<IpAddr>, String> {
        let mut clients = self.recorded.clone().unwrap_or_default();
        match Book::read(&self.state, self.vip) {
            Ok(read) => {
                let of_family = |client: &IpAddr| client.is_ipv4() == self.vip.is_ipv4();
                let booked = read.book.clients().map(|client| client.address);
                clients.extend(booked.filter(of_family));
            }
            Err(error) if self.recorded.is_some() => {
                warn!(%error, "only the clients in the release record are notified");
            }
            Err(error) => return Err(chain(&error)),
        }
        if clients.is_empty() && self.recorded.is_none() && !self.has_book {
            return Err(format!(
                "no clients are known: there is no release record (--expect) and no client book of {} in \
                 {}",
                self.vip,
                self.state.path().display()
            ));
        }
        Ok(clients.difference(&self.settled).copied().collect())
    }
}

impl Job {
    fn vip(&self) -> IpAddr {
        match self {
            Job::Run { vip, .. } => *vip,
            Job::Tell(tell) => tell.vip,
        }
    }
}

fn jobs(
    notifier: &Notifier,
    vips: &[IpAddr],
    record: Option<&Record>,
    settled: &Settled,
) -> Vec<Job> {
    let job = |&vip: &IpAddr| match notifier {
        Notifier::Disabled => None,
        Notifier::Program(program) => Some(Job::Run {
            program: program.clone(),
            vip,
        }),
        Notifier::Own { state, config } => {
            let tell = Tell::new(vip, record, settled, state, config);
            Some(Job::Tell(tell))
        }
    };
    vips.iter().filter_map(job).collect()
}

async fn notify_all(jobs: Vec<Job>, number: Number, until: watch::Receiver<Instant>) -> Outcomes {
    let notified = jobs.iter().map(|job| async {
        let notified = tell_or_end(job, &number, until.clone()).await;
        (job.vip(), notified)
    });
    join_all(notified).await.into_iter().collect()
}

async fn tell_or_end(job: &Job, number: &Number, until: watch::Receiver<Instant>) -> Notified {
    let vip = job.vip();
    // The resolver may be slow, so start before the VIP is up.
    let names = match job {
        Job::Run { .. } => Vec::new(),
        Job::Tell(tell) => names::of(vip, &[], &tell.config).await,
    };
    match wait_for(|| netns::has_address(vip), until.clone()).await {
        Ok(true) => {}
        Ok(false) => {
            return Notified::failed(format!("{vip} never came up on this node"));
        }
        Err(error) => {
            return Notified::failed(format!("cannot read this node's addresses: {error}"));
        }
    }
    // A client that reclaims on a filesystem that is not exported loses the lock.
    match wait_for(|| Ok(!exported()?.is_empty()), until.clone()).await {
        Ok(true) => {}
        Ok(false) => return Notified::failed("no filesystem was exported on this node".to_owned()),
        Err(error) => {
            return Notified::failed(format!("cannot read the exports of this node: {error}"));
        }
    }
    match job {
        Job::Run { program, .. } => run(program, vip, until).await,
        Job::Tell(job) => {
            let notified = tell(job, number, names, until).await;
            notified.unwrap_or_else(Notified::failed)
        }
    }
}

async fn tell(
    job: &Tell,
    number: &Number,
    names: Vec<Name>,
    until: watch::Receiver<Instant>,
) -> Result<Notified, String> {
    let clients = job.clients()?;
    if clients.is_empty() {
        return Ok(Notified::done());
    }
    let Claimed {
        number,
        state_number_error,
    } = number.get(&job.state);
    let order = Order {
        vip: job.vip,
        clients,
        names,
        state: number,
        deadline: None,
    };
    let report = tell::run(&order, ended(until)).await;
    let notified = report.map(Notified::by_us).map_err(|error| chain(&error))?;
    Ok(Notified {
        state_number_error,
        ..notified
    })
}

/// Ready when the time is over. The time may be shortened.
async fn ended(mut until: watch::Receiver<Instant>) {
    loop {
        let end = *until.borrow_and_update();
        match timeout_at(end.into(), until.changed()).await {
            Err(_) => return,
            Ok(Ok(())) => {}
            // It cannot change any more.
            Ok(Err(_)) => {
                let _ = timeout_at(end.into(), pending::<()>()).await;
                return;
            }
        }
    }
}

async fn wait_for(
    condition: impl Fn() -> std::io::Result<bool>,
    until: watch::Receiver<Instant>,
) -> std::io::Result<bool> {
    let met = async {
        while !condition()? {
            sleep(POLL_INTERVAL).await;
        }
        Ok(true)
    };
    tokio::select! {
        biased;
        met = met => met,
        () = ended(until) => Ok(false),
    }
}

async fn run(program: &Path, vip: IpAddr, until: watch::Receiver<Instant>) -> Notified {
    let run = Command::new(program)
        .arg(vip.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let program = program.display();
    tokio::select! {
        output = run => match output {
            Err(error) => Notified::failed(format!("cannot run {program}: {error}")),
            Ok(output) if output.status.success() => Notified::done(),
            Ok(output) => Notified::failed(format!(
                "{program} {vip} failed with {}: {}",
                output.status,
                said(&output.stderr)
            )),
        },
        () = ended(until) => Notified::failed(format!("{program} {vip} did not finish during grace")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::record::ClientLine;
    use crate::failover::record::sample::{self, client};
    use crate::notify::book::Client;
    use crate::notify::book::writer::Writer;

    fn vip() -> IpAddr {
        // TEST-NET-1, which this node does not have.
        "192.0.2.1".parse().unwrap()
    }

    fn record(clients: Vec<ClientLine>) -> Record {
        Record {
            clients,
            ..sample::record(&[&vip().to_string()])
        }
    }

    #[test]
    fn a_vips_monitored_clients_are_told_once_each() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path());
        let notifier = Notifier::Own {
            state: state.clone(),
            config: Config::default(),
        };
        let other: IpAddr = "192.0.2.2".parse().unwrap();
        let record = record(vec![
            client(vip(), "10.77.1.1", "c1"),
            client(vip(), "10.77.1.1", "c1"),
            client(vip(), "10.77.1.2", ""),
            client(other, "10.77.1.3", "c3"),
        ]);
        let nobody = Settled::new();
        let notified = |vip, record, settled| match &jobs(&notifier, &[vip], record, settled)[..] {
            [Job::Tell(tell)] => tell.clients(),
            other => panic!("{other:?}"),
        };
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let c1 = address("10.77.1.1");
        assert_eq!(notified(vip(), Some(&record), &nobody), Ok(vec![c1]));
        let settled = Settled::from([(vip(), BTreeSet::from([c1]))]);
        assert_eq!(notified(vip(), Some(&record), &settled), Ok(Vec::new()));
        assert!(jobs(&Notifier::Disabled, &[vip()], Some(&record), &nobody).is_empty());
        let unknown = notified(other, None, &nobody).unwrap_err();
        assert!(unknown.contains("no clients are known"), "{unknown}");

        // Once there is a book, an empty one counts; and it is read late.
        let mut writer = Writer::open(&state, other, "a").unwrap();
        let [Job::Tell(early)] = &jobs(&notifier, &[other], None, &nobody)[..] else {
            panic!("a job was expected");
        };
        assert_eq!(early.clients(), Ok(Vec::new()));
        let booked = |client: &str| Client {
            address: address(client),
            name: "c".into(),
            version: None,
            transport: None,
            first_seen: 1,
            last_seen: 1,
        };
        writer
            .note(&[booked("10.77.1.9"), booked("fd77::9")])
            .unwrap();
        assert_eq!(early.clients(), Ok(vec![address("10.77.1.9")]));
    }

    #[tokio::test]
    async fn a_vip_that_does_not_come_is_waited_for_until_the_end() {
        let notifier = Notifier::Program("/bin/true".into());
        let until = Instant::now() + Duration::from_mins(10);
        let notification = Notification::start(&notifier, &[vip()], None, &Settled::new(), until);
        let mut outcomes = notification.finish(Instant::now()).await;
        let notified = outcomes.remove(&vip()).unwrap();
        assert!(!notified.done);
        assert!(
            notified
                .error
                .unwrap()
                .contains("never came up on this node")
        );
    }

    #[tokio::test]
    async fn a_program_tells_by_how_it_ends_and_is_ended_with_the_time() {
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        let (sender, until) = watch::channel(Instant::now() + Duration::from_mins(10));
        for (program, words) in [
            ("/bin/true", None),
            ("/bin/false", Some("failed with exit status: 1")),
            ("/nonexistent", Some("cannot run")),
        ] {
            let notified = run(Path::new(program), here, until.clone()).await;
            match words {
                None => assert!(notified.done, "{notified:?}"),
                Some(words) => assert!(notified.error.unwrap().contains(words)),
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let endless = folder.path().join("endless");
        std::fs::write(&endless, "#!/bin/sh\nexec sleep 600\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&endless, mode).unwrap();
        sender.send(Instant::now() + POLL_INTERVAL).unwrap();
        let notified = run(&endless, here, until).await;
        assert!(
            notified
                .error
                .unwrap()
                .contains("did not finish during grace")
        );
    }
}
