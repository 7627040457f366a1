//! statd's callout program. It adds the VIP, which statd does not know.
//!
//! statd runs it under its own user, one event at a time, and waits until it exits. So it
//! exits at once and runs the site's own program in the background.

use std::ffi::OsStr;
use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use super::book::{Book, BookError};
use super::state_dir::StateDir;
use crate::foreign::is_visible;

/// Maximum time until the client book contains a client that statd has just been asked to
/// monitor: lockd calls statd and triggers `nlmfo serve` at the same moment.
const BOOK_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The events that statd reports (`ha_callout` in utils/statd of nfs-utils).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Event {
    /// statd starts to monitor the client
    AddClient,
    /// statd stops monitoring the client
    DelClient,
    /// sm-notify has notified the client
    SmNotify,
}

impl Event {
    /// The name that statd passes.
    pub fn name(self) -> &'static str {
        match self {
            Event::AddClient => "add-client",
            Event::DelClient => "del-client",
            Event::SmNotify => "sm-notify",
        }
    }
}

/// The VIPs that a client uses, by the name or address that statd monitors.
pub fn vips_of(state: &StateDir, monitored: &OsStr) -> Result<Vec<IpAddr>, BookError> {
    let vips = state.vips().map_err(|source| BookError::File {
        path: state.path().to_owned(),
        source,
    })?;
    let mut used = Vec::new();
    for vip in vips {
        if Book::has_client(state, vip, monitored)? {
            used.push(vip);
        }
    }
    Ok(used)
}

/// [`vips_of`], which waits a little for a client that is new.
pub fn vips_of_new(state: &StateDir, monitored: &OsStr) -> Result<Vec<IpAddr>, BookError> {
    let until = Instant::now() + BOOK_TIMEOUT;
    loop {
        let vips = vips_of(state, monitored)?;
        if !vips.is_empty() || Instant::now() >= until {
            return Ok(vips);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The socket of the system's log, and a daemon's error there (syslog(3)).
const LOG: &str = "/dev/log";
const DAEMON_ERROR: u32 = (3 << 3) | 3;

/// Writes to the system log, if there is one.
pub fn log(text: &str) {
    let visible = |c: char| if is_visible(c) { c } else { ' ' };
    let text: String = text.chars().map(visible).collect();
    let line = format!(
        "<{DAEMON_ERROR}>nlmfo-ha-callout[{}]: {text}",
        std::process::id()
    );
    let send = |socket: UnixDatagram| {
        socket.set_nonblocking(true)?;
        socket.send_to(line.as_bytes(), LOG)
    };
    let _ = UnixDatagram::unbound().and_then(send);
}

/// Starts `program` with these arguments, and does not wait for it.
pub fn start_detached(program: &Path, arguments: &[&OsStr]) -> io::Result<()> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0);
    command.spawn().map(drop)
}
