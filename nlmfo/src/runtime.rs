//! The one asynchronous runtime of a command that does several things at a time.

use std::future::Future;
use std::time::Duration;
use std::{io, thread};

use tokio::runtime::Builder;

/// Maximum time for cancelled tasks to be dropped.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs a command's work. Spawned tasks run on another thread of the runtime: work that reads the
/// kernel's lists blocks its own.
///
/// # Errors
/// If the runtime cannot be started.
pub fn run<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let done = runtime.block_on(work);
    // Programs of cancelled tasks are killed; a write to the kernel that a signal interrupted ends by
    // itself.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    Ok(done)
}

/// Runs something to completion from a `drop`. The caller may be within a runtime, which must not be
/// blocked, so it runs on a thread with a runtime of its own.
///
/// # Errors
/// If that cannot be started, or `work` panics.
pub fn finish<T, F>(work: impl FnOnce() -> F + Send + 'static) -> io::Result<T>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let thread = thread::Builder::new().spawn(|| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(work()))
    })?;
    (thread.join()).unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
}
