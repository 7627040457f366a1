//! The supervision of a VIP that is an NFS server of its own.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::own_server::{Own, bridge, loop_device};
use super::{Context, End, Kernels, Machine, Scenario};
use crate::guest::busy::{Busy, Wanted};
use crate::guest::client::{Client, HeldLock};
use crate::guest::locker::{Mode, Range};
use crate::guest::node::TestNode;
use crate::guest::tool::{Running, Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "own-server-run",
    claim: "`nlmfo server run` restarts each daemon of a server that is killed or hangs: clients of \
            NFSv3 and 4.1 keep their locks, and new clients mount and lock; SIGTERM stops the server",
    run: supervise,
    kernels: Kernels::One("the daemons are the same for every kernel"),
    only_full: Some("a daemon counts as hung after 15 s"),
    machine: Machine::Own("nfsd of another network namespace"),
    ..Scenario::DEFAULT
}];

const RANGE: Range = Range { start: 0, len: 10 };
const VERSIONS: [Option<u8>; 2] = [None, Some(1)];
const DAEMONS: [&str; 4] = ["rpcbind", "rpc.statd", "nfsdcld", "rpc.mountd"];

const NOTIFY_SOCKET: &str = "/tmp/notify";
const LOG: &str = "/tmp/run.log";

struct Supervised<'a> {
    tool: Tool<'a>,
    bridge: &'a TestNode,
    own: Own,
    /// What systemd would be told.
    notified: Receiver<String>,
    /// The number of the next client.
    next: u8,
}

impl Supervised<'_> {
    /// Starts `nlmfo server run`, and waits until it is ready.
    fn run(&self) -> Result<Running> {
        let mut command = self.tool.command(&["server", "run", "mail"]);
        let log = File::options().create(true).append(true).open(LOG)?;
        command
            .env("NOTIFY_SOCKET", NOTIFY_SOCKET)
            .env("WATCHDOG_USEC", "60000000")
            .stderr(log);
        let running = Tool::spawn(command)?;
        self.told("READY=1")?;
        self.told("WATCHDOG=1")?;
        Ok(running)
    }

    /// Waits until systemd was told this, since it was told what this waited for last.
    fn told(&self, what: &str) -> Result<()> {
        let mut seen = String::new();
        until(&format!("{what} for systemd"), || {
            for text in self.notified.try_iter() {
                if text.contains(what) {
                    return Ok(Seen::Yes(()));
                }
                seen += &format!("{text:?} ");
            }
            Ok(Seen::No(format!("{seen}; {}", log())))
        })
    }

    /// The process of a daemon; none if it does not run.
    fn process(&self, daemon: &str) -> Result<Option<i32>> {
        let finished = self.tool.run(&["server", "status", "mail", "--json"])?;
        let status: serde_json::Value = serde_json::from_str(&finished.stdout)?;
        let all = status["daemons"].as_array().context("no daemons")?;
        let found = all.iter().find(|one| one["program"] == daemon);
        let process = found.context("no such daemon")?["process"].as_i64();
        Ok(process.map(i32::try_from).transpose()?)
    }

    /// Sends a signal to the daemons, and waits until new ones serve and are seen by the others.
    fn replaced(&self, daemons: &[&str], signal: Signal) -> Result<()> {
        let mut last = Vec::new();
        for daemon in daemons {
            let process = self.process(daemon)?.context("it does not run")?;
            last.push((daemon, process));
        }
        for (_, process) in &last {
            kill(Pid::from_raw(*process), signal)?;
        }
        for (daemon, last) in last {
            until(&format!("a new {daemon}"), || {
                Ok(match self.process(daemon)? {
                    Some(process) if process != last => Seen::Yes(()),
                    other => {
                        let log = fs::read_to_string(LOG)?;
                        Seen::No(format!("{other:?} after {last}; {log}"))
                    }
                })
            })?;
        }
        Ok(())
    }

    /// A new client mounts with each version, which asks mountd and rpcbind, and locks, which asks
    /// statd and nfsdcld.
    fn serves(&mut self, what: &str) -> Result<()> {
        let client = Client::join_bridge(self.bridge, self.next)?;
        self.next += 1;
        let before = self.monitored()?;
        for minor in VERSIONS {
            let mount = self.own.mount(&client, minor)?;
            let file = format!("new-{}-{minor:?}", self.next);
            let held = client
                .lock(&mount, &file, RANGE, Mode::Write)
                .with_context(|| format!("after {what}: {}", log()))?;
            if minor.is_none() {
                let after = self.monitored()?;
                ensure!(
                    before > 1 && after == before + 1,
                    "statd's list had {before} lines and has {after} after {what}"
                );
            }
            held.release()?;
        }
        Ok(())
    }

    /// Lines of statd's list.
    fn monitored(&self) -> Result<usize> {
        let list = ["server", "exec", "mail", "ls", "/srv/mail/.nlmfo/statd/sm"];
        let listed = self.tool.expect(exit::CONFIRMED, &list)?;
        Ok(listed.stdout.lines().count())
    }
}

fn log() -> String {
    fs::read_to_string(LOG).unwrap_or_default()
}

/// Waits until it is in the log of `nlmfo server run`.
fn said(what: &str) -> Result<()> {
    until(&format!("{what:?} in the log"), || {
        let log = log();
        Ok(match log.contains(what) {
            true => Seen::Yes(()),
            false => Seen::No(log),
        })
    })
}

fn supervise(context: &Context) -> Result<End> {
    let root = bridge()?;
    let veth = "{ kind = \"veth\", bridge = \"br0\" }";
    let (own, text) = Own::describe(1, "mail", &loop_device("mail")?, veth)?;
    // Its device is on another node, or is secondary here.
    let (_, without_device) = Own::describe(2, "far", "/dev/missing", veth)?;
    fs::write("/etc/nlmfo.toml", text + &without_device)?;
    let socket = UnixDatagram::bind(NOTIFY_SOCKET)?;
    let (sender, notified) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = socket.recv(&mut buffer) {
            let _ = sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    });
    let mut mail = Supervised {
        tool: Tool::new(&context.nlmfo, &root),
        bridge: &root,
        own,
        notified,
        next: 3,
    };

    mail.tool
        .expect(exit::CONFIRMED, &["server", "stop", "far"])?;
    let refused = (mail.tool).expect(exit::COULD_NOT_RUN, &["server", "start", "far"])?;
    ensure!(refused.stderr.contains("/dev/missing"), "{refused:?}");
    let mut running = mail.run()?;
    let second = (mail.tool).expect(exit::COULD_NOT_RUN, &["server", "run", "mail"])?;
    ensure!(
        second.stderr.contains("supervises server mail"),
        "{}",
        second.stderr
    );
    let holder = Client::join_bridge(&root, 1)?;
    let thief = Client::join_bridge(&root, 2)?;
    let mut held = Vec::new();
    let mut thieves = Vec::new();
    for minor in VERSIONS {
        let file = format!("held-{minor:?}");
        let mount = mail.own.mount(&holder, minor)?;
        held.push(holder.lock(&mount, &file, RANGE, Mode::Write)?);
        let mount = mail.own.mount(&thief, minor)?;
        let wanted = Wanted {
            file: mount.path(&file),
            range: RANGE,
            mode: Mode::Write,
        };
        thieves.push(thief.busy(&[wanted])?);
    }
    // Its host is monitored too.
    let mount = mail.own.mount(&thief, None)?;
    held.push(thief.lock(&mount, "held-too", RANGE, Mode::Write)?);

    for daemon in DAEMONS {
        mail.replaced(&[daemon], Signal::SIGKILL)?;
        said(&format!("{daemon} has ended; restarted as process"))?;
        mail.told("STATUS=serving; restarted")?;
        mail.serves(daemon)?;
    }
    let hung = ["rpc.statd", "nfsdcld"];
    mail.replaced(&hung, Signal::SIGSTOP)?;
    for daemon in hung {
        said(&format!("{daemon} (process "))?;
    }
    mail.serves("a hang")?;

    // nlmfo is killed, and rpcbind while nobody looks.
    drop(running);
    let rpcbind = mail.process("rpcbind")?.context("no rpcbind")?;
    kill(Pid::from_raw(rpcbind), Signal::SIGKILL)?;
    running = mail.run()?;
    said("server mail already runs")?;
    until("a new rpcbind", || {
        Ok(match mail.process("rpcbind")? {
            Some(process) if process != rpcbind => Seen::Yes(()),
            other => Seen::No(format!("{other:?}; {}", log())),
        })
    })?;
    mail.serves("rpcbind and nlmfo")?;

    running.signal(Signal::SIGTERM)?;
    ensure!(running.code()? == exit::CONFIRMED, "{}", log());
    ensure!(mail.own.status(&mail.tool)?["state"] == "stopped");
    ensure!(
        !Path::new("/run/nlmfo/servers/mail").exists(),
        "namespaces are left"
    );
    running = mail.run()?;
    for tally in thieves.into_iter().map(Busy::finish) {
        for tally in tally? {
            let is_honest = tally.held == 0 && tally.failed.is_empty();
            ensure!(
                is_honest && tally.refused > 0,
                "a lock was stolen: {tally:?}"
            );
        }
    }
    held.into_iter().try_for_each(HeldLock::release)?;

    (mail.tool).expect(exit::CONFIRMED, &["server", "stop", "mail"])?;
    ensure!(running.code()? == exit::CONFIRMED, "{}", log());
    said("server mail was stopped by another command")?;
    eprintln!("{}", log());
    Ok(End::Pass)
}
