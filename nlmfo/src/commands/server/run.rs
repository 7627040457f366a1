//! `nlmfo server run`: a server in the foreground, for systemd. Restarts its daemons.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use sd_notify::NotifyState;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::{print_started, print_stopped};
use crate::causes::chain;
use crate::exit::{Exit, Failure};
use crate::failover::own::{start_held, stop_held};
use crate::interrupt::{self, Interrupts};
use crate::server::daemons::{self, Daemon};
use crate::server::health::{self, Look};
use crate::server::supervise::{LOOK_INTERVAL, Restart, Supervisor};
use crate::server::{Server, ServerError};
use crate::{output, runtime};

/// Time between two looks while another command starts or stops the server.
const BUSY_INTERVAL: Duration = Duration::from_secs(1);

/// Why the supervision ended.
enum End {
    /// To stop the server.
    Signal,
    /// Another command stopped it.
    Stopped,
    /// Its namespaces are here, but nfsd has no thread, and no command of ours is at work.
    Halted,
}

pub(super) fn run(name: &str) -> Result<Exit, Failure> {
    let server = Server::named(name)?;
    let _only = server.supervise()?;
    begin(&server)?;
    let systemd = Systemd::new();
    let supervised = Supervised::new(&server, &systemd);
    let end =
        runtime::run(supervised.until_end()).context("starting the asynchronous runtime")??;
    match end {
        End::Signal => stop(&server, &systemd),
        End::Stopped => Ok(stopped_by_another(&server)),
        End::Halted => {
            let error = anyhow!(
                "server {name} serves no longer: nfsd has no thread, and nlmfo did not stop it; \
                 its daemons are not restarted. Run `nlmfo server restart {name}`"
            );
            Err(Failure::new(Exit::NotConfirmed, error))
        }
    }
}

/// The server serves then, or a signal came.
fn begin(server: &Server) -> Result<(), Failure> {
    let name = server.name();
    let held = server.lock()?;
    if server.is_here() {
        output::note(format_args!("server {name} runs already; supervising it"));
        return Ok(());
    }
    match start_held(server, &held, false) {
        Ok(started) => output::report(None, |out| print_started(out, server, &started)),
        // It may serve nevertheless.
        Err(failure) if server.is_here() => output::fail(&failure.error),
        Err(failure) => return Err(failure),
    }
    Ok(())
}

fn stop(server: &Server, systemd: &Systemd) -> Result<Exit, Failure> {
    systemd.tell("STOPPING=1\nSTATUS=stopping");
    // Another command may be stopping it.
    let held = server.lock()?;
    if !server.is_here() {
        return Ok(stopped_by_another(server));
    }
    let stopped = stop_held(server, &held)?;
    output::report(None, |out| print_stopped(out, server, &stopped));
    Ok(stopped.exit())
}

fn stopped_by_another(server: &Server) -> Exit {
    let name = server.name();
    output::note(format_args!(
        "server {name} was stopped by another command and is not on this node any more"
    ));
    Exit::Done
}

/// What systemd is told, on a thread of its own: supervision does not wait for systemd.
struct Systemd(SyncSender<String>);

impl Systemd {
    fn new() -> Self {
        let (sender, told) = sync_channel::<String>(16);
        thread::spawn(move || {
            for text in told {
                let _ = sd_notify::notify(&[NotifyState::Custom(&text)]);
            }
        });
        Systemd(sender)
    }

    fn tell(&self, text: impl Into<String>) {
        let _ = self.0.try_send(text.into());
    }

    fn status(&self, text: &str) {
        // A status is one line.
        self.tell(format!("STATUS={}", text.replace('\n', " ")));
    }
}

/// What is to be done after a look.
enum Next {
    /// Something was changed.
    LookAgain,
    /// Another command starts or stops the server.
    Busy,
    Wait,
    End(End),
}

struct Supervised<'a> {
    server: &'a Server,
    systemd: &'a Systemd,
    supervisor: Supervisor,
    /// How many daemons were restarted, and the last of them.
    restarted: u32,
    last: Option<Daemon>,
    /// What was said last of a look or a registration that failed.
    said: Option<String>,
}

impl<'a> Supervised<'a> {
    fn new(server: &'a Server, systemd: &'a Systemd) -> Self {
        Supervised {
            server,
            systemd,
            supervisor: Supervisor::default(),
            restarted: 0,
            last: None,
            said: None,
        }
    }

    async fn until_end(mut self) -> Result<End, Failure> {
        let mut interrupts = Interrupts::listen().context("cannot install signal handlers")?;
        // Before this.
        if interrupt::came().is_some() {
            return Ok(End::Signal);
        }
        self.systemd.tell("READY=1\nSTATUS=serving");
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_regular = false;
        loop {
            // Each look and each restart has a deadline.
            if sd_notify::watchdog_enabled().is_some() {
                self.systemd.tell("WATCHDOG=1");
            }
            let seen = self.within(health::look);
            let next = match &seen {
                Ok(look) => self.act(look, is_regular),
                Err(error) => self.failed(error),
            };
            let watched = seen.unwrap_or_default().processes();
            let waits = async {
                match next {
                    Next::LookAgain => Ok(false),
                    Next::Busy => {
                        sleep(BUSY_INTERVAL).await;
                        Ok(false)
                    }
                    Next::Wait => Ok(wait(&mut looks, &watched).await),
                    Next::End(end) => Err(end),
                }
            };
            is_regular = tokio::select! {
                waited = waits => match waited {
                    Ok(is_regular) => is_regular,
                    Err(end) => return Ok(end),
                },
                () = interrupts.next() => return Ok(End::Signal),
            };
            watched.iter().for_each(|&process| reap(process));
        }
    }

    /// Does something in the server's namespaces.
    fn within<T: Send>(
        &self,
        work: impl FnOnce(&Server) -> Result<T, ServerError> + Send,
    ) -> Result<T, ServerError> {
        let server = self.server;
        server.within(|| work(server)).flatten()
    }

    fn say(&mut self, text: String) {
        if self.said.as_ref() != Some(&text) {
            output::note(format_args!("server {}: {text}", self.server.name()));
            self.said = Some(text);
        }
    }

    /// It cannot be looked at.
    fn failed(&mut self, error: &ServerError) -> Next {
        match self.server.try_lock() {
            Ok(None) => Next::Busy,
            _ if !self.server.is_here() => Next::End(End::Stopped),
            _ => {
                self.say(format!("cannot look at it: {}", chain(error)));
                Next::Wait
            }
        }
    }

    fn act(&mut self, look: &Look, is_regular: bool) -> Next {
        let now = Instant::now();
        let restart = self.supervisor.decide(now, is_regular, &look.daemons);
        let is_well = restart.is_none() && look.forgotten.is_empty() && look.threads > 0;
        if is_well {
            return Next::Wait;
        }
        // While another command stops the server, its daemons end.
        let held = match self.server.try_lock() {
            Ok(Some(held)) => held,
            Ok(None) => return Next::Busy,
            Err(error) => return self.failed(&error),
        };
        // It may have stopped it since the look.
        let threads = self.within(|_| health::threads());
        let next = match threads {
            _ if !self.server.is_here() => Next::End(End::Stopped),
            Ok(0) => Next::End(End::Halted),
            Err(error) => {
                drop(held);
                return self.failed(&error);
            }
            Ok(_) => match restart {
                Some(restart) => self.restart(&restart),
                None => self.register(look),
            },
        };
        drop(held);
        next
    }

    fn restart(&mut self, restart: &Restart) -> Next {
        let daemon = restart.daemon;
        let what = daemon.program();
        let why = match (&restart.silent, restart.process) {
            (Some(silent), Some(process)) => format!("{what} (process {process}) hangs: {silent}"),
            _ => format!("{what} has ended"),
        };
        self.systemd.status(&format!("{why}; restarting it"));
        let restarted = self.within(|server| daemons::restart(server, daemon));
        self.supervisor.tried(Instant::now(), daemon);
        let (text, status) = match restarted {
            Ok((process, said)) => {
                self.restarted += 1;
                self.last = Some(daemon);
                let said = match said.lines().last() {
                    Some(said) => format!("; it said last: {said}"),
                    None => String::new(),
                };
                let text = format!("{why}; restarted as process {process}{said}");
                (text, self.status())
            }
            Err(error) => {
                let delay = self.supervisor.delay(daemon).as_secs();
                let error = chain(&error);
                let text = format!("{why}; cannot restart it: {error}; next attempt in {delay} s");
                (text.clone(), text)
            }
        };
        self.said = None;
        self.say(text);
        self.systemd.status(&status);
        Next::LookAgain
    }

    fn status(&self) -> String {
        match self.last {
            Some(last) => format!(
                "serving; restarted {} daemons, {} last",
                self.restarted,
                last.program()
            ),
            None => "serving".to_owned(),
        }
    }

    fn register(&mut self, look: &Look) -> Next {
        let registered = self.within(|_| health::register(&look.forgotten));
        let (text, next) = match registered {
            Ok(many) => (
                format!("registered {many} services with rpcbind again"),
                Next::LookAgain,
            ),
            Err(error) => (
                format!("rpcbind has forgotten services: {}", chain(&error)),
                Next::Wait,
            ),
        };
        self.say(text);
        next
    }
}

/// Waits until one of the processes ends, or for the next regular look: whether it is that.
async fn wait(looks: &mut Interval, watched: &[i32]) -> bool {
    let ends = FuturesUnordered::new();
    for &process in watched {
        let opened = Pid::from_raw(process).map(|process| pidfd_open(process, PidfdFlags::empty()));
        let Some(Ok(process)) = opened else {
            // It has ended since the look.
            return false;
        };
        // SAFETY: an OwnedFd is the same descriptor for as long as it exists.
        let process = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) };
        if let Ok(process) = process {
            ends.push(async move { process.readable().await.is_ok() });
        }
    }
    let mut ends = ends.filter(|&ended| std::future::ready(ended));
    tokio::select! {
        Some(_) = ends.next() => false,
        _ = looks.tick() => true,
    }
}

/// A daemon that this process started is its child.
fn reap(process: i32) {
    if let Some(process) = Pid::from_raw(process) {
        let _ = waitpid(Some(process), WaitOptions::NOHANG);
    }
}
