//! Commands on another machine of the cluster, as `ssh` runs them: standard input, output
//! and error pass through, and the exit status comes back. There is no secret in the lab,
//! and under emulation a handshake would take longer than most commands.
//!
//! A connection carries one command. Both sides send frames: a byte of [`Kind`], a length
//! of four bytes (big endian), and as many bytes. The caller begins with
//! [`Kind::Command`] (a JSON array of program and arguments); the agent ends with
//! [`Kind::Exit`]. As with `ssh`, a command whose caller is gone lives on without it: its
//! input ends and its output breaks.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::guest::node::TestNode;

/// This program, on every machine of a cluster.
pub const AGENT: &str = "/lab-guest";

const PORT: u16 = 7077;

/// A machine that is up answers within this, however busy it is; one that is dead never.
const CONNECT: Duration = Duration::from_secs(10);

/// What `ssh` exits with when it is its own failure, not the command's.
pub const UNREACHABLE: i32 = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Command = 1,
    /// An empty frame is the end of the input.
    Stdin = 2,
    Stdout = 3,
    Stderr = 4,
    /// Four bytes, big endian: the exit status as a shell counts it.
    Exit = 5,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        use Kind::{Command, Exit, Stderr, Stdin, Stdout};
        [Command, Stdin, Stdout, Stderr, Exit]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Another machine of the cluster, whose agent listens on this address.
pub fn node(name: &str, address: IpAddr) -> TestNode {
    let runner = [AGENT, "rsh", "--exact", &address.to_string()].map(OsString::from);
    TestNode::remote(name, runner.into())
}

fn send(to: &mut impl Write, kind: Kind, bytes: &[u8]) -> io::Result<()> {
    let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut frame = vec![kind as u8];
    frame.extend(size.to_be_bytes());
    frame.extend(bytes);
    to.write_all(&frame)
}

/// The next frame; `None` where the stream ends between frames.
fn receive(from: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut head = [0; 5];
    match from.read_exact(&mut head[..1]) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    from.read_exact(&mut head[1..])?;
    let [kind, size @ ..] = head;
    let kind = Kind::of(kind).ok_or_else(|| io::Error::other(format!("frame of kind {kind}")))?;
    let mut bytes = vec![0; u32::from_be_bytes(size) as usize];
    from.read_exact(&mut bytes)?;
    Ok(Some((kind, bytes)))
}

/// Runs commands of any caller, until the machine ends.
pub fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("the agent's port")?;
    for stream in listener.incoming() {
        let stream = stream.context("a connection to the agent")?;
        thread::spawn(move || {
            if let Err(error) = answer(&stream) {
                eprintln!("agent: {error:#}");
            }
        });
    }
    Ok(())
}

fn answer(mut stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let Some((Kind::Command, words)) = receive(&mut stream)? else {
        // Somebody has looked whether we are up.
        return Ok(());
    };
    let words: Vec<String> = serde_json::from_slice(&words).context("a command")?;
    let (program, arguments) = words.split_first().context("an empty command")?;
    let out = Mutex::new(stream);
    let started = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let status = match started {
        Ok(child) => attend(child, stream, &out)?,
        Err(error) => {
            let text = format!("cannot start {program}: {error}\n");
            send(&mut *lock(&out), Kind::Stderr, text.as_bytes())?;
            127
        }
    };
    send(&mut *lock(&out), Kind::Exit, &status.to_be_bytes())?;
    Ok(())
}

/// Passes the child's streams on until it has ended, and returns its exit status.
fn attend(mut child: Child, stream: &TcpStream, out: &Mutex<&TcpStream>) -> Result<i32> {
    let stdin = child.stdin.take().expect("stdin is piped");
    let stdout = child.stdout.take().expect("stdout is piped");
    let stderr = child.stderr.take().expect("stderr is piped");
    let input = stream.try_clone()?;
    // It ends by itself with the connection, at the latest.
    thread::spawn(move || feed(input, stdin));
    // The child's end, for those who poll: a pipe whose other end is closed.
    let (over, alive) = io::pipe()?;
    let status = thread::scope(|scope| {
        let output = scope.spawn(|| pump(stdout, &over, out, Kind::Stdout));
        let errors = scope.spawn(|| pump(stderr, &over, out, Kind::Stderr));
        let status = child.wait();
        drop(alive);
        // A caller that is gone does not want the output.
        for pump in [output, errors] {
            drop(pump.join().expect("a pump does not panic"));
        }
        status
    })?;
    Ok(code(status))
}

/// Copies until the end of the stream, or until the child has ended and nothing is left:
/// a daemon that it leaves behind may keep the stream open for ever.
fn pump(
    mut from: impl Read + AsFd,
    over: &impl AsFd,
    to: &Mutex<&TcpStream>,
    kind: Kind,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let readable = {
            let mut fds = [
                PollFd::new(from.as_fd(), PollFlags::POLLIN),
                PollFd::new(over.as_fd(), PollFlags::POLLIN),
            ];
            poll(&mut fds, PollTimeout::NONE)?;
            fds[0].any().unwrap_or(true)
        };
        let size = match readable {
            true => from.read(&mut buffer)?,
            false => 0,
        };
        if size == 0 {
            return Ok(());
        }
        send(&mut *lock(to), kind, &buffer[..size])?;
    }
}

/// Gives the child its input; dropping `stdin` is its end.
fn feed(mut from: TcpStream, mut stdin: impl Write) {
    while let Ok(Some((Kind::Stdin, bytes))) = receive(&mut from) {
        if bytes.is_empty() || stdin.write_all(&bytes).is_err() {
            return;
        }
    }
}

fn lock<'a, 'b>(stream: &'a Mutex<&'b TcpStream>) -> std::sync::MutexGuard<'a, &'b TcpStream> {
    stream.lock().expect("no panic while a frame is sent")
}

/// As a shell counts: 128 + the signal, where there was one.
fn code(status: ExitStatus) -> i32 {
    let signal = || 128 + status.signal().unwrap_or_default();
    status.code().unwrap_or_else(signal)
}

/// A word for a shell that stands for just this text.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Runs a command on `host`, with our own standard streams, and returns its exit status.
pub fn call(host: IpAddr, words: &[String]) -> Result<i32> {
    let mut stream = TcpStream::connect_timeout(&(host, PORT).into(), CONNECT)
        .with_context(|| format!("the agent on {host} does not answer"))?;
    stream.set_nodelay(true)?;
    send(&mut stream, Kind::Command, &serde_json::to_vec(words)?)?;
    let mut input = stream.try_clone()?;
    thread::spawn(move || -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let size = io::stdin().read(&mut buffer)?;
            send(&mut input, Kind::Stdin, &buffer[..size])?;
            if size == 0 {
                return Ok(());
            }
        }
    });
    while let Some((kind, bytes)) = receive(&mut stream).context("the connection broke")? {
        match kind {
            Kind::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&bytes).and_then(|()| out.flush())?;
            }
            Kind::Stderr => io::stderr().write_all(&bytes)?,
            Kind::Exit => {
                let bytes = bytes.try_into();
                return bytes
                    .map(i32::from_be_bytes)
                    .or_else(|bytes: Vec<u8>| bail!("an exit status of {} bytes", bytes.len()));
            }
            Kind::Command | Kind::Stdin => bail!("the agent sent a frame of kind {kind:?}"),
        }
    }
    bail!("{host} ended before the command")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_pass_and_end() {
        let mut wire = Vec::new();
        send(&mut wire, Kind::Stdout, b"abc").unwrap();
        send(&mut wire, Kind::Stdin, b"").unwrap();
        let mut wire = wire.as_slice();
        let next = |wire: &mut &[u8]| receive(wire).unwrap();
        assert_eq!(next(&mut wire), Some((Kind::Stdout, b"abc".to_vec())));
        assert_eq!(next(&mut wire), Some((Kind::Stdin, Vec::new())));
        assert_eq!(next(&mut wire), None);
        assert!(receive(&mut [9, 0, 0, 0, 0].as_slice()).is_err());
    }

    /// What an agent sends for these words, as (kind, bytes).
    fn answered(words: &[&str], input: &[u8]) -> Vec<(Kind, Vec<u8>)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let agent = thread::spawn(move || answer(&listener.accept().unwrap().0).unwrap());
        let mut stream = TcpStream::connect(address).unwrap();
        send(
            &mut stream,
            Kind::Command,
            &serde_json::to_vec(words).unwrap(),
        )
        .unwrap();
        send(&mut stream, Kind::Stdin, input).unwrap();
        send(&mut stream, Kind::Stdin, b"").unwrap();
        let mut frames = Vec::new();
        while let Some(frame) = receive(&mut stream).unwrap() {
            let last = frame.0 == Kind::Exit;
            frames.push(frame);
            if last {
                break;
            }
        }
        agent.join().unwrap();
        frames
    }

    #[test]
    fn streams_and_status_pass_through() {
        let frames = answered(&["sh", "-c", "cat; echo no >&2; exit 3"], b"in");
        for expected in [
            (Kind::Stdout, b"in".to_vec()),
            (Kind::Stderr, b"no\n".to_vec()),
            (Kind::Exit, 3_i32.to_be_bytes().to_vec()),
        ] {
            assert!(frames.contains(&expected), "{expected:?} not in {frames:?}");
        }
    }

    #[test]
    fn a_daemon_left_behind_does_not_hold_us_up() {
        let started = std::time::Instant::now();
        let frames = answered(&["sh", "-c", "sleep 20 & echo up"], b"");
        assert!(frames.contains(&(Kind::Stdout, b"up\n".to_vec())));
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_signal_and_a_missing_program_have_a_status() {
        let status = |words: &[&str]| answered(words, b"").pop().map(|(_, bytes)| bytes);
        let bytes = |code: i32| Some(code.to_be_bytes().to_vec());
        assert_eq!(status(&["sh", "-c", "kill -9 $$"]), bytes(137));
        assert_eq!(status(&["/nonesuch"]), bytes(127));
    }
}
