//! A client process that asks for locks all the time and reports the results at its end: it tries
//! to take locks that others hold, or checks that it is not affected by a failover.

use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::locker::{self, Action, Mode, Outcome, Range};
use super::wait::{Seen, until};

/// Pause between an answer and the next request: without it, the requests would occupy an emulated
/// machine.
pub const PACE: Duration = Duration::from_millis(100);

/// The same where many locks are asked for, for minutes, beside much else.
pub const SLOW_PACE: Duration = Duration::from_secs(1);

/// A lock to ask for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wanted {
    pub file: PathBuf,
    pub range: Range,
    pub mode: Mode,
}

/// The results for one lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// A busy process. Dropping it kills it.
pub struct Busy {
    child: Child,
    stdin: Option<ChildStdin>,
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
        Ok(Busy { child, stdin })
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
        let mut said = String::new();
        let mut stdout = self.child.stdout.take().expect("stdout is piped");
        stdout.read_to_string(&mut said)?;
        serde_json::from_str(&said).with_context(|| format!("a busy client said {said:?}"))
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
    let tallies = thread::scope(|scope| -> Result<Vec<Tally>> {
        let threads: Vec<_> = wanted
            .into_iter()
            .map(|wanted| scope.spawn(|| ask(wanted, pace, &over)))
            .collect();
        io::stdin().read_to_end(&mut Vec::new())?;
        over.store(true, Ordering::SeqCst);
        let tallies = threads.into_iter();
        tallies
            .map(|thread| thread.join().expect("asking does not panic"))
            .collect()
    })?;
    println!("{}", serde_json::to_string(&tallies)?);
    Ok(())
}

fn ask(wanted: Wanted, pace: Duration, over: &AtomicBool) -> Result<Tally> {
    let file =
        locker::open(&wanted.file).with_context(|| format!("open {}", wanted.file.display()))?;
    let mut tally = Tally {
        file: wanted.file,
        range: wanted.range,
        refused: 0,
        held: 0,
        failed: Vec::new(),
        slowest: Duration::ZERO,
    };
    loop {
        let last = over.load(Ordering::SeqCst);
        let asked = Instant::now();
        let outcome = locker::act(&file, wanted.range, Action::Lock(wanted.mode));
        tally.slowest = tally.slowest.max(asked.elapsed());
        match outcome {
            Outcome::Refused => tally.refused += 1,
            Outcome::Held => {
                tally.held += 1;
                locker::act(&file, wanted.range, Action::Unlock);
            }
            other => tally.failed.push(format!("{other:?}")),
        }
        if last {
            return Ok(tally);
        }
        thread::sleep(pace);
    }
}
