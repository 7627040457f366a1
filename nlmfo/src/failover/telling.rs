//! Telling the VIPs' clients to reclaim while their grace is followed: on a thread of its
//! own, as following blocks, and a client that is dead must hold nobody up.

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

use super::record::Record;
use super::takeover_report::Told;
use crate::kernel::netns;
use crate::notify::book::Book;
use crate::notify::config::Config;
use crate::notify::names;
use crate::notify::number::Numbers;
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

/// Between two looks whether a VIP is up.
const LOOK: Duration = Duration::from_millis(100);

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
    /// Begins to tell each VIP's clients as soon as the VIP is an address of this node,
    /// until `until` at the latest.
    pub fn start(
        teller: &Teller,
        vips: &[IpAddr],
        record: Option<&Record>,
        until: Instant,
    ) -> anyhow::Result<Self> {
        let jobs = jobs(teller, vips, record)?;
        let (sender, receiver) = watch::channel(until);
        let (done, outcomes) = oneshot::channel();
        let thread = match jobs.is_empty() {
            true => None,
            false => Some(spawn(jobs, receiver, done)?),
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

/// What is to be done for one VIP.
#[derive(Debug)]
enum Job {
    Run {
        program: PathBuf,
        vip: IpAddr,
    },
    Tell {
        vip: IpAddr,
        clients: Vec<IpAddr>,
        state: StateDir,
        config: Config,
    },
}

impl Job {
    fn vip(&self) -> IpAddr {
        match self {
            Job::Run { vip, .. } | Job::Tell { vip, .. } => *vip,
        }
    }
}

fn jobs(teller: &Teller, vips: &[IpAddr], record: Option<&Record>) -> anyhow::Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for &vip in vips {
        match teller {
            Teller::Nobody => {}
            Teller::Program(program) => jobs.push(Job::Run {
                program: program.clone(),
                vip,
            }),
            Teller::Own { state, config } => {
                let book = Book::read(state, vip)?.book;
                let recorded = record.into_iter().flat_map(|record| record.clients_of(vip));
                let booked = book.clients().map(|client| client.address);
                let clients: BTreeSet<IpAddr> = recorded.chain(booked).collect();
                if !clients.is_empty() {
                    jobs.push(Job::Tell {
                        vip,
                        clients: clients.into_iter().collect(),
                        state: state.clone(),
                        config: config.clone(),
                    });
                }
            }
        }
    }
    Ok(jobs)
}

fn spawn(
    jobs: Vec<Job>,
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
                let told = tell_or_end(job, until.clone()).await;
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

async fn tell_or_end(job: &Job, until: watch::Receiver<Instant>) -> Told {
    let vip = job.vip();
    let prepared = match job {
        Job::Run { program, .. } => Prepared::Run(program),
        Job::Tell {
            clients,
            state,
            config,
            ..
        } => {
            let names = names::of(vip, &[], config).await;
            match Numbers::new(state).claim(vip, &netns::node()) {
                Ok(state) => Prepared::Tell(Order {
                    vip,
                    clients: clients.clone(),
                    names,
                    state,
                    deadline: None,
                }),
                Err(error) => return Told::failed(error.to_string()),
            }
        }
    };
    match wait_for_address(vip, until.clone()).await {
        Ok(true) => {}
        Ok(false) => {
            return Told::failed(format!("{vip} was no address of this node in all the time"));
        }
        Err(error) => return Told::failed(format!("reading this node's addresses: {error}")),
    }
    match prepared {
        Prepared::Run(program) => run(program, vip, until).await,
        Prepared::Tell(order) => match tell::run(&order, ended(until)).await {
            Ok(report) => Told::by_us(report),
            Err(error) => Told::failed(error.to_string()),
        },
    }
}

enum Prepared<'a> {
    Run(&'a Path),
    Tell(Order),
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

async fn wait_for_address(vip: IpAddr, until: watch::Receiver<Instant>) -> std::io::Result<bool> {
    let up = async {
        while !netns::has_address(vip)? {
            sleep(LOOK).await;
        }
        Ok(true)
    };
    tokio::select! {
        biased;
        up = up => up,
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
                String::from_utf8_lossy(&output.stderr).trim_end()
            )),
        },
        () = ended(until) => Told::failed(format!("{program} {vip} did not end within the grace")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::record::ClientLine;
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
        }
    }

    #[test]
    fn a_vips_monitored_clients_are_told_once_each() {
        let folder = tempfile::tempdir().unwrap();
        let teller = Teller::Own {
            state: StateDir::new(folder.path()),
            config: Config::default(),
        };
        let other = "192.0.2.2".parse().unwrap();
        let record = record(vec![
            client(vip(), "10.77.1.1", "c1"),
            client(vip(), "10.77.1.1", "c1"),
            client(vip(), "10.77.1.2", ""),
            client(other, "10.77.1.3", "c3"),
        ]);
        let jobs = jobs(&teller, &[vip()], Some(&record)).unwrap();
        let [
            Job::Tell {
                vip: of, clients, ..
            },
        ] = &jobs[..]
        else {
            panic!("{jobs:?}");
        };
        assert_eq!(
            (*of, &clients[..]),
            (vip(), &["10.77.1.1".parse().unwrap()][..])
        );
        assert!(super::jobs(&teller, &[other], None).unwrap().is_empty());
        assert!(
            super::jobs(&Teller::Nobody, &[vip()], Some(&record))
                .unwrap()
                .is_empty()
        );
    }

    #[tokio::test]
    async fn a_vip_that_does_not_come_is_waited_for_until_the_end() {
        let teller = Teller::Program("/bin/true".into());
        let until = Instant::now() + Duration::from_secs(600);
        let telling = Telling::start(&teller, &[vip()], None, until).unwrap();
        let mut outcomes = telling.finish(Instant::now()).await;
        let told = outcomes.remove(&vip()).unwrap();
        assert!(!told.done);
        assert!(told.error.unwrap().contains("no address of this node"));
    }

    #[tokio::test]
    async fn a_program_tells_by_how_it_ends_and_is_ended_with_the_time() {
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        let far = Instant::now() + Duration::from_secs(600);
        for (program, words) in [
            ("/bin/true", None),
            ("/bin/false", Some("ended with exit status: 1")),
            ("/nonexistent", Some("cannot be run")),
        ] {
            let teller = Teller::Program(program.into());
            let telling = Telling::start(&teller, &[here], None, far).unwrap();
            let told = telling.finish(far).await.remove(&here).unwrap();
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
        let telling = Telling::start(&Teller::Program(endless), &[here], None, far).unwrap();
        let told = telling
            .finish(Instant::now() + LOOK)
            .await
            .remove(&here)
            .unwrap();
        assert!(told.error.unwrap().contains("did not end within the grace"));
    }
}
