//! A program in a terminal of its own, and what it shows there.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::{Pid, setsid};

use super::wait::{Seen, until};

/// A program in a terminal. Dropping it kills the program.
pub struct Pty {
    child: Child,
    keys: File,
    /// The side of the terminal that the program has.
    terminal: OwnedFd,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Pty {
    /// Starts a program in a terminal of that many columns and lines.
    pub fn spawn(mut command: Command, columns: u16, lines: u16) -> Result<Pty> {
        let cells = |count| NonZero::new(count).context("a terminal without cells");
        let screen = vt100::Parser::new(cells(lines)?, cells(columns)?, 0);
        let size = Winsize {
            ws_row: lines,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let OpenptyResult { master, slave } = openpty(&size, None).context("opening a terminal")?;
        command
            .env("TERM", "xterm-256color")
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(Stdio::from(slave.try_clone()?));
        // SAFETY: setsid and ioctl are async-signal-safe, and nothing else is called.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                control_terminal()
            });
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let screen = Arc::new(Mutex::new(screen));
        let mut output = File::from(master.try_clone()?);
        let parser = Arc::clone(&screen);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                parser
                    .lock()
                    .expect("no reader panics")
                    .process(&bytes[..length]);
            }
        });
        Ok(Pty {
            child,
            keys: File::from(master),
            terminal: slave,
            screen,
        })
    }

    /// The program's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.keys.write_all(keys.as_bytes()).context("typing")
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal}"))
    }

    /// What is on the screen now.
    pub fn text(&self) -> String {
        let screen = self.screen.lock().expect("the reader does not panic");
        screen.screen().contents()
    }

    /// Waits until the screen is as wanted. Returns its content.
    pub fn shows(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        until(what, || {
            let text = self.text();
            Ok(match wanted(&text) {
                true => Seen::Yes(text),
                false => Seen::No(text),
            })
        })
    }

    /// Waits for the program's end: its exit code, and whether the terminal is as it was
    /// before: the ordinary screen, lines edited and echoed by the kernel.
    pub fn ended(&mut self) -> Result<(Option<i32>, bool)> {
        let status = until("the program to end", || {
            Ok(match self.child.try_wait()? {
                Some(status) => Seen::Yes(status),
                None => Seen::No(self.text()),
            })
        })?;
        let modes = tcgetattr(&self.terminal).context("the terminal's modes")?;
        let cooked = LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG;
        // Its last output may still be in the terminal.
        until("the ordinary screen", || {
            let screen = self.screen.lock().expect("the reader does not panic");
            let alternate = screen.screen().alternate_screen() || screen.screen().hide_cursor();
            Ok(match alternate {
                true => Seen::No("the alternate one".to_owned()),
                false => Seen::Yes(()),
            })
        })?;
        Ok((status.code(), modes.local_flags.contains(cooked)))
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes standard input the terminal that controls this session.
fn control_terminal() -> std::io::Result<()> {
    let input = std::io::stdin().as_raw_fd();
    // SAFETY: the call takes a number and no memory.
    match unsafe { nix::libc::ioctl(input, nix::libc::TIOCSCTTY, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
