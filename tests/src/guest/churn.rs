//! A client that locks and unlocks all the time in the background, to check that failovers of other
//! VIPs do not disturb it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Result, bail};

use super::locker::{Locker, Mode, Outcome, Range};
use super::wait::{Seen, until};

/// The background client. Dropping it without [`Churn::stop`] lets it run on
/// until its locker ends.
pub struct Churn {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Churn {
    /// Locks and unlocks `range` of `file`, which no other client uses, until stopped. Returns after
    /// the first round.
    pub fn start(locker: Locker, file: PathBuf, range: Range) -> Result<Churn> {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let thread = thread::spawn({
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    match locker.lock(&file, range, Mode::Write)? {
                        Outcome::Held => locker.unlock(&file, range)?,
                        other => bail!("a lock that no other client uses: {other:?}"),
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
        });
        let churn = Churn {
            stop,
            rounds,
            thread,
        };
        churn.wait_for(1)?;
        Ok(churn)
    }

    /// Rounds done so far.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Waits until `more` rounds have been done from now on.
    pub fn wait_for(&self, more: u64) -> Result<()> {
        let goal = self.rounds() + more;
        until("rounds of lock and unlock", || {
            Ok(match self.rounds() {
                rounds if rounds >= goal => Seen::Yes(()),
                _ if self.thread.is_finished() => bail!("the background client gave up"),
                rounds => Seen::No(format!("{rounds} of {goal}")),
            })
        })
    }

    /// Ends it after its round.
    ///
    /// # Errors
    /// If any lock was refused meanwhile.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client does not panic")?;
        Ok(self.rounds.load(Ordering::Relaxed))
    }
}
