//! Telling the VIPs' clients to reclaim while their grace is followed: on a thread of its
//! own, as following blocks, and a client that is dead must hold nobody up.

mod number;

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::join_all;
use tokio::process::Command;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout_at};
use tracing::warn;

use self::number::{Claimed, Number};
use super::record::Record;
use super::takeover_report::Told;
use crate::causes::chain;
use crate::failover::pair::rsh::said;
use crate::kernel::exports::exported;
use crate::kernel::netns;
use crate::notify::book::Book;
use crate::notify::config::Config;
use crate::notify::names::{self, Name};
use crate::notify::state_dir::StateDir;
use crate::notify::tell::{self, Order};

/// Who tells the clients.
#[derive(Clone, Debug)]
pub enum Teller {
    /// This program, run for each VIP with the VIP as its argument.
    Program(PathBuf),
    /// nlmfo itself, by SM_NOTIFY: those whom the record or the client book knows.
    Own { state: StateDir, config: Config },
    /// Somebody else.
    Nobody,
}

/// Between two looks whether a VIP is up, and its filesystem exported.
const LOOK: Duration = Duration::from_millis(100);

/// Clients of each VIP that have everything back already, and are not told: they would
/// begin anew, and grace may end meanwhile.
pub type Settled = BTreeMap<IpAddr, BTreeSet<IpAddr>>;

/// What came of it, for each VIP that somebody was to be told of.
pub type Outcomes = BTreeMap<IpAddr, Told>;

/// Clients being told. Dropping it ends that.
#[derive(Debug)]
pub struct Telling {
    /// When to stop.
    until: watch::Sender<Instant>,
    /// None where nobody is to be told by us.
    thread: Option<JoinHandle<()>>,
    outcomes: oneshot::Receiver<Outcomes>,
}

impl Telling {
    /// Begins to tell each VIP's clients, but those that are settled, as soon as the VIP is
    /// an address of this node, until `until` at the latest.
    pub fn start(
        teller: &Teller,
        vips: &[IpAddr],
        record: Option<&Record>,
        settled: &Settled,
        until: Instant,
    ) -> anyhow::Result<Self> {
        let within = until.saturating_duration_since(Instant::now());
        let number = Number::new(vips, record.map(Record::id), within);
        let jobs = jobs(teller, vips, record, settled);
        let (sender, receiver) = watch::channel(until);
        let (done, outcomes) = oneshot::channel();
        let thread = match jobs.is_empty() {
            true => None,
            false => Some(spawn(jobs, number, receiver, done)?),
        };
        Ok(Telling {
            until: sender,
            thread,
            outcomes,
        })
    }

    /// How it went, at `until` at the latest, or when it was to end anyway.
    pub async fn finish(mut self, until: Instant) -> Outcomes {
        self.end(until);
        // Without a thread there is no sender.
        (&mut self.outcomes).await.unwrap_or_default()
    }

    fn end(&self, until: Instant) {
        self.until.send_modify(|end| *end = until.min(*end));
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.end(Instant::now());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("telling does not panic");
        }
    }
}

/// The clients that nlmfo itself would tell of a VIP, or why it knows none.
pub fn clients(
    vip: IpAddr,
    record: Option<&Record>,
    settled: &Settled,
    state: &StateDir,
    config: &Config,
) -> Result<Vec<IpAddr>, String> {
    Tell::new(vip, record, settled, state, config).clients()
}

/// What is to be done for one VIP.
#[derive(Debug)]
enum Job {
    Run { program: PathBuf, vip: IpAddr },
    Tell(Tell),
}

/// Whom nlmfo itself is to tell of a VIP.
#[derive(Clone, Debug)]
struct Tell {
    vip: IpAddr,
    /// The clients of the record; none if there is no record.
    recorded: Option<BTreeSet<IpAddr>>,
    settled: BTreeSet<IpAddr>,
    /// Whether somebody has kept a book of the VIP, before this takeover began one.
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
            // What cannot be read now may be readable when it counts.
            has_book: Book::read(state, vip).is_ok_and(|read| read.owner.is_some()),
            state: state.clone(),
            config: config.clone(),
        }
    }

    /// Those of the record and those of the book, as it is when the VIP is up: the other
    /// node has noted its last clients by then. An error if nobody can be known.
    fn clients(&self) -> Result<Vec<IpAddr>, String> {
        let mut clients = self.recorded.clone().unwrap_or_default();
        match Book::read(&self.state, self.vip) {
            Ok(read) => {
                let of_family = |client: &IpAddr| client.is_ipv4() == self.vip.is_ipv4();
                let booked = read.book.clients().map(|client| client.address);
                clients.extend(booked.filter(of_family));
            }
            Err(error) if self.recorded.is_some() => {
                warn!(%error, "only the clients of the record are told");
            }
            Err(error) => return Err(chain(&error)),
        }
        if clients.is_empty() && self.recorded.is_none() && !self.has_book {
            return Err(format!(
                "nobody is known: there is no record (--expect), and nobody has kept a client \
                 book of {} in {}",
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

fn jobs(teller: &Teller, vips: &[IpAddr], record: Option<&Record>, settled: &Settled) -> Vec<Job> {
    let job = |&vip: &IpAddr| match teller {
        Teller::Nobody => None,
        Teller::Program(program) => Some(Job::Run {
            program: program.clone(),
            vip,
        }),
        Teller::Own { state, config } => {
            let tell = Tell::new(vip, record, settled, state, config);
            Some(Job::Tell(tell))
        }
    };
    vips.iter().filter_map(job).collect()
}

fn spawn(
    jobs: Vec<Job>,
    number: Number,
    until: watch::Receiver<Instant>,
    done: oneshot::Sender<Outcomes>,
) -> anyhow::Result<JoinHandle<()>> {
    let runtime: Runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the asynchronous runtime that tells the clients")?;
    let work = move || {
        let outcomes = runtime.block_on(async {
            let told = jobs.iter().map(|job| async {
                let told = tell_or_end(job, &number, until.clone()).await;
                (job.vip(), told)
            });
            join_all(told).await.into_iter().collect()
        });
        // Nobody asks any more if the takeover was given up.
        let _ = done.send(outcomes);
    };
    let thread = thread::Builder::new().name("notify".into()).spawn(work);
    thread.context("starting the thread that tells the clients")
}

async fn tell_or_end(job: &Job, number: &Number, until: watch::Receiver<Instant>) -> Told {
    let vip = job.vip();
    // The resolver may take its time: before the VIP is up.
    let names = match job {
        Job::Run { .. } => Vec::new(),
        Job::Tell(tell) => names::of(vip, &[], &tell.config).await,
    };
    match wait_for(|| netns::has_address(vip), until.clone()).await {
        Ok(true) => {}
        Ok(false) => {
            return Told::failed(format!("{vip} was no address of this node in all the time"));
        }
        Err(error) => return Told::failed(format!("reading this node's addresses: {error}")),
    }
    // A client that reclaims on a filesystem that is not there loses the lock.
    match wait_for(|| Ok(!exported()?.is_empty()), until.clone()).await {
        Ok(true) => {}
        Ok(false) => return Told::failed("nothing was ever exported on this node".to_owned()),
        Err(error) => return Told::failed(format!("reading what is exported here: {error}")),
    }
    match job {
        Job::Run { program, .. } => run(program, vip, until).await,
        Job::Tell(job) => {
            let told = tell(job, number, names, until).await;
            told.unwrap_or_else(Told::failed)
        }
    }
}

async fn tell(
    job: &Tell,
    number: &Number,
    names: Vec<Name>,
    until: watch::Receiver<Instant>,
) -> Result<Told, String> {
    let clients = job.clients()?;
    if clients.is_empty() {
        return Ok(Told::done());
    }
    let Claimed { number, unclaimed } = number.get(&job.state);
    let order = Order {
        vip: job.vip,
        clients,
        names,
        state: number,
        deadline: None,
    };
    let report = tell::run(&order, ended(until)).await;
    let told = report.map(Told::by_us).map_err(|error| chain(&error))?;
    Ok(Told { unclaimed, ..told })
}

/// Ready when the time is up, which may come to be earlier.
async fn ended(mut until: watch::Receiver<Instant>) {
    loop {
        let end = *until.borrow_and_update();
        match timeout_at(end.into(), until.changed()).await {
            Err(_) => return,
            Ok(Ok(())) => {}
            // Nobody can change it any more.
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
            sleep(LOOK).await;
        }
        Ok(true)
    };
    tokio::select! {
        biased;
        met = met => met,
        () = ended(until) => Ok(false),
    }
}

async fn run(program: &Path, vip: IpAddr, until: watch::Receiver<Instant>) -> Told {
    let run = Command::new(program)
        .arg(vip.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let program = program.display();
    tokio::select! {
        output = run => match output {
            Err(error) => Told::failed(format!("{program} cannot be run: {error}")),
            Ok(output) if output.status.success() => Told::done(),
            Ok(output) => Told::failed(format!(
                "{program} {vip} ended with {}: {}",
                output.status,
                said(&output.stderr)
            )),
        },
        () = ended(until) => Told::failed(format!("{program} {vip} did not end within the grace")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::record::ClientLine;
    use crate::notify::book::Client;
    use crate::notify::book::writer::Writer;
    use crate::observe::describe::HostLine;
    use crate::observe::host::{NlmVersion, Transport};

    fn vip() -> IpAddr {
        // TEST-NET-1, which this node does not have.
        "192.0.2.1".parse().unwrap()
    }

    fn client(vip: IpAddr, client: &str, nsm_name: &str) -> ClientLine {
        ClientLine {
            host: HostLine {
                vip,
                client: client.parse().unwrap(),
                client_name: "c".into(),
                version: NlmVersion::V4,
                transport: Transport::Tcp,
                netns: 1,
            },
            nsm_name: nsm_name.into(),
        }
    }

    fn record(clients: Vec<ClientLine>) -> Record {
        Record {
            schema: Record::SCHEMA.into(),
            node: "a".into(),
            kernel: "6.1".into(),
            taken_at: 1,
            vips: vec![vip()],
            clients,
            locks: Vec::new(),
            waiters: Vec::new(),
            shares: Vec::new(),
            nfs4: Vec::new(),
        }
    }

    #[test]
    fn a_vips_monitored_clients_are_told_once_each() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path());
        let teller = Teller::Own {
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
        let told = |vip, record, settled| match &jobs(&teller, &[vip], record, settled)[..] {
            [Job::Tell(tell)] => tell.clients(),
            other => panic!("{other:?}"),
        };
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let c1 = address("10.77.1.1");
        assert_eq!(told(vip(), Some(&record), &nobody), Ok(vec![c1]));
        let settled = Settled::from([(vip(), BTreeSet::from([c1]))]);
        assert_eq!(told(vip(), Some(&record), &settled), Ok(Vec::new()));
        assert!(jobs(&Teller::Nobody, &[vip()], Some(&record), &nobody).is_empty());
        let unknown = told(other, None, &nobody).unwrap_err();
        assert!(
            unknown.contains("nobody has kept a client book"),
            "{unknown}"
        );

        // Once somebody keeps a book, it counts that nobody is in it; and it is read late.
        let mut writer = Writer::open(&state, other, "a").unwrap();
        let [Job::Tell(early)] = &jobs(&teller, &[other], None, &nobody)[..] else {
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
        let teller = Teller::Program("/bin/true".into());
        let until = Instant::now() + Duration::from_secs(600);
        let telling = Telling::start(&teller, &[vip()], None, &Settled::new(), until).unwrap();
        let mut outcomes = telling.finish(Instant::now()).await;
        let told = outcomes.remove(&vip()).unwrap();
        assert!(!told.done);
        assert!(told.error.unwrap().contains("no address of this node"));
    }

    #[tokio::test]
    async fn a_program_tells_by_how_it_ends_and_is_ended_with_the_time() {
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        let (sender, until) = watch::channel(Instant::now() + Duration::from_secs(600));
        for (program, words) in [
            ("/bin/true", None),
            ("/bin/false", Some("ended with exit status: 1")),
            ("/nonexistent", Some("cannot be run")),
        ] {
            let told = run(Path::new(program), here, until.clone()).await;
            match words {
                None => assert!(told.done, "{told:?}"),
                Some(words) => assert!(told.error.unwrap().contains(words)),
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let endless = folder.path().join("endless");
        std::fs::write(&endless, "#!/bin/sh\nexec sleep 600\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&endless, mode).unwrap();
        sender.send(Instant::now() + LOOK).unwrap();
        let told = run(&endless, here, until).await;
        assert!(told.error.unwrap().contains("did not end within the grace"));
    }
}
