//! A client process that asks for locks all the time and reports the results at its end: it tries
//! to take locks that others hold, or checks that it is not affected by a failover.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::locker::{self, Action, Mode, Outcome, Range};
use super::wait::{Seen, until};

/// Pause between an answer and the next request: without it, the requests would occupy an emulated
/// machine.
pub const PACE: Duration = Duration::from_millis(100);

/// The same for many locks, over minutes, beside other work.
pub const SLOW_PACE: Duration = Duration::from_secs(1);

/// A lock to ask for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wanted {
    pub file: PathBuf,
    pub range: Range,
    pub mode: Mode,
}

/// The results for one lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    pub file: PathBuf,
    pub range: Range,
    pub refused: u64,
    /// How often it was granted; it was unlocked at once.
    pub held: u64,
    /// Errors, by the kernel's name for them.
    pub failed: Vec<String>,
    /// The longest time until an answer.
    pub slowest: Duration,
    /// When the last answer came.
    pub answered: Option<Instant>,
}

impl Tally {
    fn of(wanted: &Wanted) -> Tally {
        Tally {
            file: wanted.file.clone(),
            range: wanted.range,
            refused: 0,
            held: 0,
            failed: Vec::new(),
            slowest: Duration::ZERO,
            answered: None,
        }
    }

    /// How often it was answered.
    pub fn answers(&self) -> u64 {
        self.refused + self.held + self.failed.len() as u64
    }

    fn add(&mut self, answer: Answer) {
        self.slowest = self.slowest.max(answer.took);
        self.answered = Some(Instant::now());
        match answer.outcome {
            Outcome::Refused => self.refused += 1,
            Outcome::Held => self.held += 1,
            other => self.failed.push(format!("{other:?}")),
        }
    }
}

/// What the process writes, a line for each answer.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    /// The lock's place among those that are asked for.
    lock: usize,
    outcome: Outcome,
    took: Duration,
}

/// A busy process. Dropping it kills it.
pub struct Busy {
    child: Child,
    stdin: Option<ChildStdin>,
    tallies: Arc<Mutex<Vec<Tally>>>,
    /// None once it is joined.
    reader: Option<JoinHandle<Result<()>>>,
}

/// A panicking reader leaves the tallies consistent, so poisoning is ignored.
fn locked(tallies: &Mutex<Vec<Tally>>) -> MutexGuard<'_, Vec<Tally>> {
    tallies.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(stdout: ChildStdout, tallies: &Mutex<Vec<Tally>>) -> Result<()> {
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        let answer: Answer = (serde_json::from_str(&line))
            .with_context(|| format!("a busy client said {line:?}"))?;
        let mut tallies = locked(tallies);
        let tally = tallies.get_mut(answer.lock).context("no such lock")?;
        tally.add(answer);
    }
    Ok(())
}

impl Busy {
    /// Starts one with `command`, which runs `lab-guest busy` in the client's namespaces.
    /// Each lock is asked for on a thread of its own, again after each answer and this pause.
    pub fn start(mut command: Command, pace: Duration, wanted: &[Wanted]) -> Result<Busy> {
        let mut child = command
            .arg(serde_json::to_string(&(pace, wanted))?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("stdout is piped")?;
        let tallies = Arc::new(Mutex::new(wanted.iter().map(Tally::of).collect()));
        let theirs = Arc::clone(&tallies);
        Ok(Busy {
            child,
            stdin,
            tallies,
            reader: Some(thread::spawn(move || read(stdout, &theirs))),
        })
    }

    /// The results until now, in order.
    pub fn tallies(&self) -> Vec<Tally> {
        locked(&self.tallies).clone()
    }

    /// Stops it after one more request for every lock, and returns the results in order.
    pub fn finish(mut self) -> Result<Vec<Tally>> {
        drop(self.stdin.take());
        until("a busy client to end", || {
            Ok(match self.child.try_wait()? {
                Some(status) => {
                    ensure!(status.success(), "a busy client ended with {status}");
                    Seen::Yes(())
                }
                None => Seen::No("it still runs".into()),
            })
        })?;
        if let Some(reader) = self.reader.take() {
            reader.join().expect("reading does not panic")?;
        }
        Ok(self.tallies())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}

/// The busy process: asks until standard input ends, then once more, so that the results include
/// an answer after that moment.
pub fn serve(wanted: &str) -> Result<()> {
    let (pace, wanted): (Duration, Vec<Wanted>) =
        serde_json::from_str(wanted).context("locks to ask for")?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let over = &over;
        let threads: Vec<_> = (wanted.iter().enumerate())
            .map(|(lock, wanted)| scope.spawn(move || ask(lock, wanted, pace, over)))
            .collect();
        io::stdin().read_to_end(&mut Vec::new())?;
        over.store(true, Ordering::SeqCst);
        let mut threads = threads.into_iter();
        threads.try_for_each(|thread| thread.join().expect("asking does not panic"))
    })
}

fn ask(lock: usize, wanted: &Wanted, pace: Duration, over: &AtomicBool) -> Result<()> {
    let file =
        locker::open(&wanted.file).with_context(|| format!("open {}", wanted.file.display()))?;
    loop {
        let last = over.load(Ordering::SeqCst);
        let asked = Instant::now();
        let outcome = locker::act(&file, wanted.range, Action::Lock(wanted.mode));
        let took = asked.elapsed();
        if outcome == Outcome::Held {
            locker::act(&file, wanted.range, Action::Unlock);
        }
        let answer = Answer {
            lock,
            outcome,
            took,
        };
        writeln!(io::stdout(), "{}", serde_json::to_string(&answer)?)?;
        if last {
            return Ok(());
        }
        thread::sleep(pace);
    }
}
