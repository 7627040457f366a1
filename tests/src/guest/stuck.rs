//! Where threads wait, when a step takes suspiciously long. Printed before the step's deadline
//! ends the scenario, and with it what could be seen.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// Well before `wait::DEADLINE`.
const LONG: Duration = Duration::from_secs(90);

/// Frames of a stack that are printed.
const FRAMES: usize = 16;

/// The programs and kernel threads that serve or use NFS; the start of their names.
const OF_NFS: [&str; 7] = [
    "lockd",
    "nfsd",
    "nlmfo",
    "rpc",
    "mount",
    "umount",
    "sm-notify",
];

/// Watches a step until it is dropped.
pub struct Watch {
    _end: Sender<()>,
}

/// Prints where threads wait, each time that [`LONG`] passes.
pub fn watch(step: String) -> Watch {
    let (end, ended) = channel::<()>();
    thread::spawn(move || {
        while ended.recv_timeout(LONG) == Err(RecvTimeoutError::Timeout) {
            eprintln!(
                "{step} takes more than {LONG:?}; threads wait here:\n{}",
                stacks()
            );
        }
    });
    Watch { _end: end }
}

/// The stacks of all threads that serve or use NFS, and of all that are in uninterruptible sleep.
fn stacks() -> String {
    let mut text = String::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let threads = fs::read_dir(process.path().join("task"));
        for thread in threads.into_iter().flatten().flatten() {
            if let Some(line) = stack(&thread.path()) {
                text += &line;
            }
        }
    }
    text
}

fn stack(thread: &Path) -> Option<String> {
    let read = |file: &str| fs::read_to_string(thread.join(file)).ok();
    let name = read("comm")?;
    let is_stuck = read("stat")?.rsplit(") ").next()?.starts_with('D');
    if !is_stuck && !OF_NFS.iter().any(|start| name.starts_with(start)) {
        return None;
    }
    let stack = read("stack")?;
    let frames = stack.lines().take(FRAMES).map(|line| {
        let frame = line.trim_start_matches("[<0>] ");
        frame
            .split_once('+')
            .map_or(frame, |(function, _)| function)
    });
    Some(format!(
        "  {} {}: {}\n",
        thread.file_name()?.display(),
        name.trim(),
        frames.collect::<Vec<_>>().join(" < ")
    ))
}
