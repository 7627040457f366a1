//! The thread that owns the testbed: a check that hangs must not block the probe.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::checks::{Check, Done};
use super::fixture::Fixture;
use super::known::Kernel;

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Maximum time for the testbed to come up, to be reset between two checks, and to go down.
const TESTBED_TIMEOUT: Duration = Duration::from_mins(2);

/// Maximum time for the holders, which only stop nfsd and kill the processes of their node.
const HOLDERS: Duration = Duration::from_secs(20);

enum Event {
    Up,
    Ran {
        done: Result<Done>,
        took: Duration,
    },
    Swept(Result<()>),
    /// What nlmfo and lockd did not release.
    Down(Result<Vec<String>>),
}

/// A testbed on a thread of its own, which runs all checks in their order.
pub struct Worker {
    events: Receiver<Event>,
    /// Ends the worker before its next check.
    stop: Arc<AtomicBool>,
    /// The operator interrupted.
    interrupt: Arc<AtomicBool>,
    holders: Arc<Mutex<Vec<Pid>>>,
}

/// The result of a check.
pub struct Outcome {
    /// An error is what was seen instead of what it proves.
    pub done: Result<Done>,
    pub took: Duration,
    /// Why no further check can run.
    pub broken: Option<String>,
}

impl Worker {
    /// Brings the testbed up.
    pub fn start(
        checks: Arc<Vec<Check>>,
        kernel: Kernel,
        interrupt: Arc<AtomicBool>,
    ) -> Result<Worker> {
        let (sender, events) = channel();
        let worker = Worker {
            events,
            stop: Arc::default(),
            interrupt,
            holders: Arc::default(),
        };
        let (stop, holders) = (Arc::clone(&worker.stop), Arc::clone(&worker.holders));
        thread::spawn(move || {
            let left = work(&checks, &kernel, &stop, &holders, &sender);
            // The receiver may be gone.
            let _ = sender.send(Event::Down(left));
        });
        let up = match worker.next(TESTBED_TIMEOUT) {
            Ok(Some(Event::Up)) => return Ok(worker),
            Ok(Some(Event::Down(Err(error)))) => error.context("the testbed did not come up"),
            Ok(Some(_)) => anyhow!("unexpected event from the testbed's thread"),
            Ok(None) => anyhow!("the testbed did not come up within {TESTBED_TIMEOUT:?}"),
            Err(error) => error,
        };
        let _ = worker.end();
        Err(up)
    }

    /// Waits for the next check's end.
    ///
    /// # Errors
    /// If the operator interrupts.
    pub fn outcome(&self, timeout: Duration) -> Result<Outcome> {
        let hangs =
            |what: &str, limit: Duration| Some(format!("{what} did not finish within {limit:?}"));
        let Some(Event::Ran { done, took }) = self.next(timeout)? else {
            return Ok(Outcome {
                done: Err(anyhow!("it did not finish within {timeout:?}")),
                took: timeout,
                broken: hangs("the previous check", timeout),
            });
        };
        let broken = match self.next(TESTBED_TIMEOUT)? {
            Some(Event::Swept(Ok(()))) => None,
            Some(Event::Swept(Err(error))) => {
                Some(format!("could not reset the server: {error:#}"))
            }
            _ => hangs("the reset of the server", TESTBED_TIMEOUT),
        };
        Ok(Outcome { done, took, broken })
    }

    /// Takes the testbed down. Returns what nlmfo and lockd did not release.
    pub fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + TESTBED_TIMEOUT;
        while let Some(rest) = deadline.checked_duration_since(Instant::now()) {
            match self.events.recv_timeout(rest) {
                Ok(Event::Down(Ok(left))) => return left,
                Ok(Event::Down(Err(error))) => return vec![format!("{error:#}")],
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.end_holders();
        vec!["the testbed hung and was killed".to_owned()]
    }

    /// Ends the holders of the namespaces, even if the worker hangs.
    fn end_holders(&self) {
        let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        for holder in holders.iter() {
            let _ = kill(*holder, Signal::SIGTERM);
        }
        let deadline = Instant::now() + HOLDERS;
        for holder in holders.iter() {
            let lives = || {
                waitpid(*holder, Some(WaitPidFlag::WNOHANG))
                    .is_ok_and(|status| status == nix::sys::wait::WaitStatus::StillAlive)
            };
            while Instant::now() < deadline && lives() {
                thread::sleep(POLL_INTERVAL);
            }
        }
    }

    /// The next event; none if it does not come in time or the worker has ended.
    fn next(&self, limit: Duration) -> Result<Option<Event>> {
        let deadline = Instant::now() + limit;
        loop {
            match self.events.recv_timeout(POLL_INTERVAL) {
                Ok(event) => return Ok(Some(event)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if self.interrupt.load(Ordering::Relaxed) => {
                    return Err(anyhow!("interrupted"));
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// Brings the testbed up, runs every check on it, and takes it down.
fn work(
    checks: &[Check],
    kernel: &Kernel,
    stop: &AtomicBool,
    holders: &Mutex<Vec<Pid>>,
    events: &Sender<Event>,
) -> Result<Vec<String>> {
    let mut fixture = Fixture::up(kernel, |holder| {
        let mut holders = holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.extend(i32::try_from(holder).map(Pid::from_raw));
    })?;
    let _ = events.send(Event::Up);
    for check in checks {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let start = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| check.run(&mut fixture)));
        let done = done.unwrap_or_else(|_| Err(anyhow!("it panicked, see standard error")));
        let took = start.elapsed();
        let _ = events.send(Event::Ran { done, took });
        let swept = fixture.sweep();
        let is_broken = swept.is_err();
        let _ = events.send(Event::Swept(swept));
        if is_broken {
            break;
        }
    }
    fixture.down()
}
