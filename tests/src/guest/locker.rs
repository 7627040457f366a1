//! Processes that hold real `fcntl` locks, and the handle to steer them.
//!
//! A locker is one process, so one POSIX lock owner, and one svid on the wire.
//! It speaks JSON lines over its standard input and output: each request has
//! an id, each answer names it. A waiting lock is taken on a thread of the
//! locker's own, so a blocked request does not hold up others. When the locker
//! ends, the kernel drops its locks, as it does for any program.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde::{Deserialize, Serialize};

pub use nlmfo::observe::table::Mode;
pub use nlmfo::testbed::range::Range;

use super::wait::DEADLINE;

/// What a locker is asked to do to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Action {
    /// `F_SETLK`: held or refused, at once.
    Lock(Mode),
    /// `F_SETLKW`: held, sooner or later.
    LockWait(Mode),
    /// `F_SETLK` with `F_UNLCK`.
    Unlock,
    /// `F_GETLK`: would a lock of this mode be refused?
    Test(Mode),
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    id: u64,
    file: PathBuf,
    range: Range,
    action: Action,
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Held,
    Refused,
    Unlocked,
    /// Nothing stands against the lock that was tested.
    Free,
    /// The system call and what the kernel said.
    Failed(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    id: u64,
    outcome: Outcome,
}

/// A locker process. Dropping it kills the process.
pub struct Locker {
    child: Child,
    requests: Mutex<(ChildStdin, u64)>,
    answers: Arc<Answers>,
}

#[derive(Default)]
struct Answers {
    inbox: Mutex<Inbox>,
    arrived: Condvar,
}

#[derive(Default)]
struct Inbox {
    by_id: HashMap<u64, Outcome>,
    /// The locker closed its output: no more answers will come.
    ended: bool,
}

impl Answers {
    /// A panicking reader leaves the inbox consistent, so poisoning is ignored.
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Locker {
    /// Starts a locker with `command`, which runs `lab-guest locker` in the
    /// client's namespaces.
    pub fn spawn(mut command: Command) -> Result<Locker> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        let answers = Arc::new(Answers::default());
        let inbox = Arc::clone(&answers);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(io::Result::ok) {
                if let Ok(answer) = serde_json::from_str::<Answer>(&line) {
                    inbox.inbox().by_id.insert(answer.id, answer.outcome);
                    inbox.arrived.notify_all();
                }
            }
            inbox.inbox().ended = true;
            inbox.arrived.notify_all();
        });
        Ok(Locker {
            child,
            requests: Mutex::new((stdin, 0)),
            answers,
        })
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `F_SETLK`: [`Outcome::Held`] or [`Outcome::Refused`].
    pub fn lock(&self, file: &Path, range: Range, mode: Mode) -> Result<Outcome> {
        self.ask(file, range, Action::Lock(mode))
    }

    /// `F_SETLKW`, without waiting for it.
    pub fn lock_wait(&self, file: &Path, range: Range, mode: Mode) -> Result<Waiter<'_>> {
        Ok(Waiter {
            locker: self,
            id: self.send(file, range, Action::LockWait(mode))?,
        })
    }

    pub fn unlock(&self, file: &Path, range: Range) -> Result<()> {
        match self.ask(file, range, Action::Unlock)? {
            Outcome::Unlocked => Ok(()),
            other => bail!("unlock of {}: {other:?}", file.display()),
        }
    }

    /// `F_GETLK`: [`Outcome::Free`] or [`Outcome::Refused`].
    pub fn test(&self, file: &Path, range: Range, mode: Mode) -> Result<Outcome> {
        self.ask(file, range, Action::Test(mode))
    }

    fn ask(&self, file: &Path, range: Range, action: Action) -> Result<Outcome> {
        let id = self.send(file, range, action)?;
        match self.answer(id, DEADLINE)? {
            Some(Outcome::Failed(why)) => bail!("{action:?} of {}: {why}", file.display()),
            Some(outcome) => Ok(outcome),
            None => bail!(
                "{action:?} of {}: no answer in {DEADLINE:?}",
                file.display()
            ),
        }
    }

    fn send(&self, file: &Path, range: Range, action: Action) -> Result<u64> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let (stdin, last_id) = &mut *requests;
        *last_id += 1;
        let request = Request {
            id: *last_id,
            file: file.into(),
            range,
            action,
        };
        writeln!(stdin, "{}", serde_json::to_string(&request)?).context("locker has ended")?;
        Ok(request.id)
    }

    /// The answer to a request, or `None` if it has not come within `limit`.
    fn answer(&self, id: u64, limit: Duration) -> Result<Option<Outcome>> {
        let (mut inbox, _) = self
            .answers
            .arrived
            .wait_timeout_while(self.answers.inbox(), limit, |inbox| {
                !inbox.by_id.contains_key(&id) && !inbox.ended
            })
            .unwrap_or_else(PoisonError::into_inner);
        match inbox.by_id.remove(&id) {
            None if inbox.ended => Err(anyhow!("the locker ended before it answered")),
            outcome => Ok(outcome),
        }
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        // Not waited for: dropping NFS locks may take as long as the timeout for a dead server.
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}

/// A pending `F_SETLKW`.
pub struct Waiter<'a> {
    locker: &'a Locker,
    id: u64,
}

impl Waiter<'_> {
    /// Waits for the lock for at most `limit`: true once it is held, false if
    /// it still waits.
    pub fn held_within(&self, limit: Duration) -> Result<bool> {
        match self.locker.answer(self.id, limit)? {
            None => Ok(false),
            Some(Outcome::Held) => Ok(true),
            Some(other) => bail!("waiting lock: {other:?}"),
        }
    }
}

/// The locker process: requests from standard input, answers to standard
/// output, until the input ends.
pub fn serve() -> Result<()> {
    let mut files = HashMap::new();
    for line in io::stdin().lines() {
        let request: Request = serde_json::from_str(&line?).context("request to a locker")?;
        let file = match open_once(&mut files, &request.file) {
            Ok(file) => file,
            Err(error) => {
                say(request.id, Outcome::Failed(format!("open: {error}")));
                continue;
            }
        };
        let act = move || say(request.id, act(&file, request.range, request.action));
        match request.action {
            Action::LockWait(_) => drop(thread::spawn(act)),
            _ => act(),
        }
    }
    Ok(())
}

/// A file stays open once opened: closing any descriptor of it would drop all
/// of the process's locks on it.
fn open_once(files: &mut HashMap<PathBuf, Arc<File>>, path: &Path) -> io::Result<Arc<File>> {
    if let Some(file) = files.get(path) {
        return Ok(Arc::clone(file));
    }
    let file = Arc::new(open(path)?);
    files.insert(path.into(), Arc::clone(&file));
    Ok(file)
}

/// Opens it for locks of either mode, and creates it if it is missing.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// Executes the request, and waits for its result.
pub(super) fn act(file: &File, range: Range, action: Action) -> Outcome {
    let lock_type = match action {
        Action::Unlock => libc::F_UNLCK,
        Action::Lock(mode) | Action::LockWait(mode) | Action::Test(mode) => match mode {
            Mode::Read => libc::F_RDLCK,
            Mode::Write => libc::F_WRLCK,
        },
    };
    let mut flock = libc::flock {
        l_type: lock_type as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start as libc::off_t,
        l_len: range.len as libc::off_t,
        l_pid: 0,
    };
    let result = match action {
        Action::LockWait(_) => fcntl(file, FcntlArg::F_SETLKW(&flock)),
        Action::Test(_) => fcntl(file, FcntlArg::F_GETLK(&mut flock)),
        Action::Lock(_) | Action::Unlock => fcntl(file, FcntlArg::F_SETLK(&flock)),
    };
    match (result, action) {
        (Err(Errno::EAGAIN | Errno::EACCES), _) => Outcome::Refused,
        (Err(errno), _) => Outcome::Failed(format!("fcntl: {errno}")),
        (Ok(_), Action::Lock(_) | Action::LockWait(_)) => Outcome::Held,
        (Ok(_), Action::Unlock) => Outcome::Unlocked,
        (Ok(_), Action::Test(_)) if flock.l_type == libc::F_UNLCK as libc::c_short => Outcome::Free,
        (Ok(_), Action::Test(_)) => Outcome::Refused,
    }
}

/// A requester that has ended does not need the answer.
fn say(id: u64, outcome: Outcome) {
    let line = serde_json::to_string(&Answer { id, outcome }).expect("an answer has no odd keys");
    let _ = writeln!(io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_where_the_kernel_says() {
        assert_eq!(Range::new(5, 10).end(), Some(14));
        assert_eq!(Range::WHOLE.end(), None);
    }

    #[test]
    fn requests_survive_the_wire() {
        let request = Request {
            id: 7,
            file: "/mnt/a".into(),
            range: Range::new(1, 2),
            action: Action::LockWait(Mode::Read),
        };
        let line = serde_json::to_string(&request).unwrap();
        let back: Request = serde_json::from_str(&line).unwrap();
        assert_eq!((back.id, back.action), (7, request.action));
    }

    #[test]
    fn locks_on_a_local_file_are_taken_and_dropped() {
        let file = tempfile::tempfile().unwrap();
        let range = Range::new(0, 4);
        assert_eq!(act(&file, range, Action::Lock(Mode::Write)), Outcome::Held);
        assert_eq!(act(&file, range, Action::Test(Mode::Write)), Outcome::Free);
        assert_eq!(act(&file, range, Action::Unlock), Outcome::Unlocked);
    }
}
