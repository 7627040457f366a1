//! The one asynchronous runtime of a command that does several things at a time.

use std::future::Future;
use std::time::Duration;
use std::{io, thread};

use tokio::runtime::Builder;

/// For tasks that were ended to be dropped.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Does a command's work. What it spawns runs beside it, on a thread of the runtime's: work
/// that looks at the kernel's lists blocks its own.
///
/// # Errors
/// If the runtime cannot be started.
pub fn run<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let done = runtime.block_on(work);
    // Programs of ended tasks are killed; a write to the kernel that a signal found under way
    // ends by itself.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    Ok(done)
}

/// Does something to its end in a `drop`, which may be within a runtime, and that cannot be
/// blocked on: on a thread with a runtime of its own.
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
