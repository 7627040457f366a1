//! The supervision of a running server: restarts its daemons until it stops.

use std::io;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::daemons::{self, Daemon};
use super::health::{self, Look};
use super::supervise::{LOOK_INTERVAL, Restart, Supervisor};
use super::systemd::Systemd;
use super::{Server, ServerError};
use crate::causes::chain;
use crate::interrupt::{self, Interrupts};

/// Time between two checks while another command starts or stops the server.
const BUSY_INTERVAL: Duration = Duration::from_secs(1);

/// Why the supervision ended.
pub enum End {
    /// A signal: the server is to be stopped.
    Signal,
    /// Another command stopped it.
    Stopped,
    /// Its namespaces are here, but nfsd has no thread, and no command of ours is at work.
    Halted,
}

/// What follows a check.
enum Next {
    /// Something was changed.
    LookAgain,
    /// Another command starts or stops the server.
    Busy,
    Wait,
    End(End),
}

/// A server under supervision.
pub struct Supervised<'a> {
    server: &'a Server,
    systemd: &'a Systemd,
    /// Reports a line to the operator.
    note: &'a dyn Fn(&str),
    supervisor: Supervisor,
    /// How many daemons were restarted, and the last of them.
    restarted: u32,
    last: Option<Daemon>,
    /// The last message about a failed check or registration.
    said: Option<String>,
}

impl<'a> Supervised<'a> {
    /// `note` reports a line to the operator.
    pub fn new(server: &'a Server, systemd: &'a Systemd, note: &'a dyn Fn(&str)) -> Self {
        Supervised {
            server,
            systemd,
            note,
            supervisor: Supervisor::default(),
            restarted: 0,
            last: None,
            said: None,
        }
    }

    /// Supervises it until it stops or is to be stopped.
    ///
    /// # Errors
    /// If signal handlers cannot be installed.
    pub async fn until_end(mut self) -> io::Result<End> {
        let mut interrupts = Interrupts::listen()?;
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

    /// Runs something in the server's namespaces.
    fn within<T: Send>(
        &self,
        work: impl FnOnce(&Server) -> Result<T, ServerError> + Send,
    ) -> Result<T, ServerError> {
        let server = self.server;
        server.within(|| work(server)).flatten()
    }

    fn say(&mut self, text: String) {
        if self.said.as_ref() != Some(&text) {
            (self.note)(&format!("server {}: {text}", self.server.name()));
            self.said = Some(text);
        }
    }

    /// Handles a check that failed.
    fn failed(&mut self, error: &ServerError) -> Next {
        match self.server.try_lock() {
            Ok(None) => Next::Busy,
            _ if !self.server.is_here() => Next::End(End::Stopped),
            _ => {
                self.say(format!("cannot check it: {}", chain(error)));
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
        // The other command may have stopped it since the check.
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
        let why = restart.cause();
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

/// Waits until one of the processes ends, or for the next regular look. Returns whether it is time
/// for that look.
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
