//! A command that gets a signal at a certain step: after its n-th system call of those that
//! change something outside of it.
//!
//! The command is traced (ptrace(2)), and so are its threads, but not the processes that it
//! starts: those outlive it as they would without a tracer.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The result of a command.
#[derive(Debug)]
pub struct Stepped {
    /// The change after which it got its signal, as text; none if it made fewer changes and ended by
    /// itself.
    pub at: Option<String>,
    /// Its exit code, or 128 + the signal that ended it.
    pub code: i32,
    /// What it wrote to its standard output and error.
    pub said: String,
}

/// Runs a command and sends it a signal after its `nth` change, counted from 1.
pub fn signal_after(command: &mut Command, nth: usize, signal: Signal) -> Result<Stepped> {
    // Of a tracer's thread, `wait` reports what that thread has started and nothing else.
    thread::scope(|scope| {
        let traced = scope.spawn(|| Traced::run(command, nth, signal));
        traced.join().expect("the tracer does not panic")
    })
}

struct Traced {
    process: Pid,
    /// Changes left until the signal.
    left: usize,
    signal: Signal,
    /// What each thread is about to change.
    entered: BTreeMap<Pid, String>,
    at: Option<String>,
}

impl Traced {
    fn run(command: &mut Command, nth: usize, signal: Signal) -> Result<Stepped> {
        let mut output = tempfile::tempfile().context("a file for the command's output")?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?);
        // SAFETY: it calls ptrace(2) alone, which may be called between fork and exec.
        unsafe { command.pre_exec(|| ptrace::traceme().map_err(io::Error::from)) };
        let child = command.spawn().context("starting the traced command")?;
        let process = Pid::from_raw(i32::try_from(child.id())?);
        let mut traced = Traced {
            process,
            left: nth,
            signal,
            entered: BTreeMap::new(),
            at: None,
        };
        let code = match traced.follow() {
            Ok(code) => code,
            Err(error) => {
                // It may have ended.
                let _ = kill(process, Signal::SIGKILL);
                return Err(error);
            }
        };
        let mut said = String::new();
        output.rewind()?;
        output.read_to_string(&mut said)?;
        let at = traced.at;
        Ok(Stepped { at, code, said })
    }

    /// To the end of the command: its exit code.
    fn follow(&mut self) -> Result<i32> {
        // As it is executed.
        waitpid(self.process, Some(WaitPidFlag::__WALL)).context("waiting for the command")?;
        ptrace::setoptions(
            self.process,
            Options::PTRACE_O_TRACESYSGOOD
                | Options::PTRACE_O_TRACECLONE
                | Options::PTRACE_O_EXITKILL,
        )
        .context("tracing the command")?;
        self.resume(self.process, None);
        loop {
            let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            match waitpid(None, Some(flags)).context("waiting for the command's threads")? {
                WaitStatus::Exited(thread, code) if thread == self.process => return Ok(code),
                WaitStatus::Signaled(thread, signal, _) if thread == self.process => {
                    return Ok(128 + signal as i32);
                }
                WaitStatus::PtraceSyscall(thread) => {
                    self.at_call(thread)?;
                    self.resume(thread, None);
                }
                // The one is a thread's first stop, the other an exec's.
                WaitStatus::Stopped(thread, Signal::SIGSTOP | Signal::SIGTRAP) => {
                    self.resume(thread, None);
                }
                WaitStatus::Stopped(thread, signal) => self.resume(thread, Some(signal)),
                WaitStatus::PtraceEvent(thread, ..) => self.resume(thread, None),
                _ => {}
            }
        }
    }

    /// A thread that was killed meanwhile cannot be resumed, and need not.
    fn resume(&self, thread: Pid, signal: Option<Signal>) {
        let _ = match self.at {
            None => ptrace::syscall(thread, signal),
            Some(_) => ptrace::cont(thread, signal),
        };
    }

    /// At the beginning or the end of a system call.
    fn at_call(&mut self, thread: Pid) -> Result<()> {
        let info = match ptrace::syscall_info(thread) {
            Ok(info) => info,
            // It has been killed.
            Err(nix::errno::Errno::ESRCH) => return Ok(()),
            Err(error) => bail!("reading a system call: {error}"),
        };
        match info.op {
            libc::PTRACE_SYSCALL_INFO_ENTRY => {
                // SAFETY: `op` says which one it is.
                let entry = unsafe { info.u.entry };
                if let Some(change) = change(self.process, entry.nr, &entry.args) {
                    self.entered.insert(thread, change);
                }
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => {
                // SAFETY: as above.
                let exit = unsafe { info.u.exit };
                let Some(change) = self.entered.remove(&thread) else {
                    return Ok(());
                };
                if exit.is_error == 0 && self.at.is_none() {
                    self.left -= 1;
                    if self.left == 0 {
                        self.at = Some(change);
                        kill(self.process, self.signal).context("sending the signal")?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// What a system call changes outside of the process, in words; none if nothing.
fn change(process: Pid, number: u64, args: &[u64; 6]) -> Option<String> {
    let number = i64::try_from(number).ok()?;
    let path = |at: usize| text(process, args[at]);
    Some(match number {
        libc::SYS_bpf => match args[0] {
            2 => "bpf: a map's value".into(),
            3 => "bpf: a map's value removed".into(),
            6 => "bpf: a pin".into(),
            8 => "bpf: a program attached".into(),
            9 => "bpf: a program detached".into(),
            10 => "bpf: a program run".into(),
            17 => "bpf: a tracepoint".into(),
            28 => "bpf: a link".into(),
            34 => "bpf: a link detached".into(),
            _ => return None,
        },
        libc::SYS_perf_event_open => "perf_event_open".into(),
        libc::SYS_openat if is_for_writing(args[2]) => format!("open {}", path(1)),
        libc::SYS_renameat | libc::SYS_renameat2 | libc::SYS_linkat => format!("name {}", path(3)),
        libc::SYS_unlinkat => format!("unlink {}", path(1)),
        libc::SYS_mkdirat => format!("mkdir {}", path(1)),
        libc::SYS_mount | libc::SYS_umount2 => "a mount".into(),
        libc::SYS_setns | libc::SYS_unshare => "a namespace".into(),
        libc::SYS_ftruncate | libc::SYS_fchmod | libc::SYS_fchown | libc::SYS_flock => {
            format!("call {number} on {}", descriptor(process, args[0])?)
        }
        libc::SYS_bind | libc::SYS_connect => "a socket's address".into(),
        libc::SYS_write
        | libc::SYS_writev
        | libc::SYS_pwrite64
        | libc::SYS_sendto
        | libc::SYS_sendmsg
        | libc::SYS_sendmmsg => format!("write to {}", descriptor(process, args[0])?),
        libc::SYS_clone if is_process(args[0]) => "a process".into(),
        libc::SYS_clone3 if is_process(memory(process, args[0])?) => "a process".into(),
        _ => return old_change(process, number, args),
    })
}

/// The same of calls that x86-64 has from older days; newer architectures do without.
#[cfg(target_arch = "x86_64")]
fn old_change(process: Pid, number: i64, args: &[u64; 6]) -> Option<String> {
    let path = |at: usize| text(process, args[at]);
    Some(match number {
        libc::SYS_open if is_for_writing(args[1]) => format!("open {}", path(0)),
        libc::SYS_rename | libc::SYS_link | libc::SYS_symlink => format!("name {}", path(1)),
        libc::SYS_unlink | libc::SYS_rmdir => format!("unlink {}", path(0)),
        libc::SYS_mkdir => format!("mkdir {}", path(0)),
        libc::SYS_fork | libc::SYS_vfork => "a process".into(),
        _ => return None,
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn old_change(_: Pid, _: i64, _: &[u64; 6]) -> Option<String> {
    None
}

fn is_for_writing(flags: u64) -> bool {
    flags & (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT) as u64 != 0
}

fn is_process(clone_flags: u64) -> bool {
    clone_flags & libc::CLONE_THREAD as u64 == 0
}

/// Where a descriptor leads, if out of the process: nobody else sees what goes through its
/// own pipes and event counters.
fn descriptor(process: Pid, number: u64) -> Option<String> {
    let target = fs::read_link(format!("/proc/{process}/fd/{number}")).ok()?;
    let target = target.to_string_lossy().into_owned();
    let is_inner = ["anon_inode:", "pipe:"]
        .iter()
        .any(|kind| target.starts_with(kind));
    (!is_inner && number > 2).then_some(target)
}

fn text(process: Pid, address: u64) -> String {
    let mut bytes = [0; 256];
    let memory = File::open(format!("/proc/{process}/mem"));
    let length = memory.and_then(|memory| memory.read_at(&mut bytes, address));
    let read = &bytes[..length.unwrap_or_default()];
    let end = read
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(read.len());
    String::from_utf8_lossy(&read[..end]).into_owned()
}

fn memory(process: Pid, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    let memory = File::open(format!("/proc/{process}/mem")).ok()?;
    memory.read_exact_at(&mut bytes, address).ok()?;
    Some(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, nth: usize, signal: Signal) -> Stepped {
        signal_after(Command::new("sh").args(["-c", script]), nth, signal).unwrap()
    }

    #[test]
    fn a_command_is_killed_after_the_change_that_was_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let script = format!(": >{0}/a; : >{0}/b; : >{0}/c", folder.path().display());
        let killed = shell(&script, 2, Signal::SIGKILL);
        assert_eq!(killed.code, 128 + 9, "{killed:?}");
        let at = killed.at.unwrap();
        assert!(at.ends_with("/b"), "{at}");
        assert!(file("a").exists() && file("b").exists() && !file("c").exists());
    }

    #[test]
    fn a_command_with_fewer_changes_ends_by_itself() {
        let ended = shell("echo said; exit 7", 1000, Signal::SIGKILL);
        assert_eq!((ended.at, ended.code), (None, 7));
        assert_eq!(ended.said, "said\n");
    }

    #[test]
    fn a_signal_that_is_handled_ends_nothing() {
        let script = "trap 'echo heard' TERM; : >/dev/null; : >/dev/null; exit 3";
        let ended = shell(script, 1, Signal::SIGTERM);
        assert_eq!((ended.code, &*ended.said), (3, "heard\n"), "{:?}", ended.at);
    }
}
