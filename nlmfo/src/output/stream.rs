//! Standard output and standard error as file descriptors. One that was closed at the start is
//! /dev/null: Rust's runtime opens it, so that no file, socket or map gets its number.
#![expect(clippy::disallowed_methods, reason = "this is the one writer")]

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, write};

/// An output stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

impl Stream {
    pub fn is_terminal(self) -> bool {
        match self {
            Stream::Out => io::stdout().is_terminal(),
            Stream::Err => io::stderr().is_terminal(),
        }
    }

    fn try_write(self, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Stream::Out => write(io::stdout(), bytes),
            Stream::Err => write(io::stderr(), bytes),
        }
    }

    /// Waits until a write would not block, for at most `max_wait`, or for ever without it.
    fn is_ready(self, max_wait: Option<Duration>) -> bool {
        let max_wait = max_wait.and_then(|time| Timespec::try_from(time).ok());
        let (out, err) = (io::stdout(), io::stderr());
        let mut fds = [match self {
            Stream::Out => PollFd::new(&out, PollFlags::OUT),
            Stream::Err => PollFd::new(&err, PollFlags::OUT),
        }];
        // A missing reader counts as ready: the write then fails.
        matches!(poll(&mut fds, max_wait.as_ref()), Ok(ready) if ready > 0)
    }

    /// Writes what the reader accepts within one second in all, and drops the rest: a stopped
    /// terminal or a pipe without a reader must not delay the command.
    pub fn offer(self, bytes: &[u8]) {
        /// A pipe accepts this many bytes at once, or none (`PIPE_BUF`).
        const ATOMIC: usize = 4096;
        static LEFT_MS: AtomicU64 = AtomicU64::new(1000);
        for piece in bytes.chunks(ATOMIC) {
            let left = LEFT_MS.load(Ordering::Relaxed);
            let began = Instant::now();
            let is_ready = self.is_ready(Some(Duration::from_millis(left)));
            let waited = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            LEFT_MS.store(left.saturating_sub(waited), Ordering::Relaxed);
            if !is_ready || !matches!(self.try_write(piece), Ok(taken) if taken == piece.len()) {
                return;
            }
        }
    }
}

/// Waits for the reader without a limit.
impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.try_write(bytes) {
                // Another process that shares the terminal has set O_NONBLOCK.
                Err(Errno::AGAIN) => {
                    self.is_ready(None);
                }
                Err(Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
