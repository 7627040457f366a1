//! Commands that are killed or interrupted after any of their steps: the next run or `nlmfo
//! cleanup` removes what is left, and nobody gets a lock that another client holds.

use std::fs;
use std::iter::successors;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::rpc::nlm::Status;
use serde_json::Value;

use super::{Context, End, Kernels, Scenario};
use crate::guest::command::finish;
use crate::guest::gated::processes;
use crate::guest::handles::FileHandle;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::raw::RawNet;
use crate::guest::step::{Stepped, signal_after};
use crate::guest::sweep::Before;
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "stepped-killed",
        claim: "after SIGKILL at any step of any command, no lock is lost to another client, and \
                the next run or cleanup leaves nothing",
        run: killed,
        kernels: Kernels::One("the long form runs on all of them"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "stepped-signals",
        claim: "SIGINT, SIGTERM and SIGQUIT at any step end a command with 3 and a sentence; it \
                goes on over SIGHUP",
        run: interrupted,
        kernels: Kernels::One("the long form runs on all of them"),
        ..Scenario::DEFAULT
    },
];

/// The first is released by the kernel's own method where that works, the second by FREE_ALL
/// except on kernels that know IPv6; the third is not touched.
const VIPS: [&str; 3] = ["10.77.0.1", "fd77::1", "10.77.0.2"];

/// Where the records of releases are, and statd's records for `clients --import`.
const RECORDS: &str = "/tmp/records";
const MONITORED: &str = "/tmp/monitored";

/// Clients that hold a lock through each VIP, and the one that tries to take it.
const HOLDERS: [u16; 2] = [1, 2];
const THIEF: u16 = 9;

/// The state directory, and where nlmfo keeps what does not outlive a boot.
const FOLDERS: [&str; 4] = ["/run/nlmfo", "/var/lib/nlmfo", RECORDS, MONITORED];

struct Node<'a> {
    lab: Lab,
    net: RawNet,
    files: Vec<FileHandle>,
    nlmfo: &'a Path,
    before: Before,
}

/// A command that changes something.
struct Command {
    line: String,
    /// The VIP that it is about, by its place.
    vip: usize,
    /// How it may end if nobody hinders it.
    codes: &'static [i32],
    /// What is so before it, besides that the locks are held.
    first: Option<String>,
}

impl Command {
    fn is_release(&self) -> bool {
        self.line.contains("--phase release")
    }

    /// Whether a signal makes it say what stands. The others leave nothing to say.
    fn is_under_signals(&self) -> bool {
        let words = ["failover", "grace", "cleanup"];
        words.iter().any(|word| self.line.starts_with(word))
    }

    fn arguments(&self) -> Vec<&str> {
        self.line.split(' ').collect()
    }
}

fn record(vip: usize) -> String {
    format!("{RECORDS}/{vip}.json")
}

/// Releases first: what they record, the takeovers expect.
fn commands() -> Vec<Command> {
    let command = |line: String, vip, codes| Command {
        line,
        vip,
        codes,
        first: None,
    };
    let release = |vip: usize| {
        let line = format!(
            "failover --phase release --vip {} --record {}",
            VIPS[vip],
            record(vip)
        );
        command(line, vip, &[exit::CONFIRMED])
    };
    let takeover = format!(
        "failover --phase takeover --vip {} --expect {} --grace 60s --no-notify",
        VIPS[1],
        record(1)
    );
    let open = format!("grace --vip {} --for 60s", VIPS[0]);
    vec![
        release(0),
        release(1),
        command(takeover, 1, &[exit::CONFIRMED]),
        command(open.clone(), 0, &[exit::CONFIRMED]),
        Command {
            first: Some(open.clone()),
            // None is open if the killed one has ended it, and there is nothing to judge.
            ..command(
                format!("grace --end --vip {}", VIPS[0]),
                0,
                &[exit::CONFIRMED],
            )
        },
        Command {
            first: Some(open),
            ..command("cleanup".into(), 0, &[exit::CONFIRMED])
        },
        command(
            format!("notify --vip {} --client 10.78.0.1 --deadline 1s", VIPS[0]),
            0,
            &[exit::INCOMPLETE],
        ),
        command(
            format!("clients --vip {} --import {MONITORED}", VIPS[0]),
            0,
            &[exit::CONFIRMED],
        ),
    ]
}

impl<'a> Node<'a> {
    fn up(context: &'a Context) -> Result<Node<'a>> {
        let lab = Lab::up(&VIPS, 0)?;
        let net = RawNet::join(&lab.server)?;
        let files = (lab.vips.iter().enumerate())
            .map(|(at, vip)| net.file(&lab.server, *vip, &format!("file-{at}")))
            .collect::<Result<Vec<_>>>()?;
        fs::create_dir_all(RECORDS)?;
        fs::create_dir_all(MONITORED)?;
        let cookie = "0123456789abcdef0123456789abcdef";
        let line = format!("0100007f 000186b5 00000003 00000010 {cookie} 10.78.0.1 server\n");
        fs::write(format!("{MONITORED}/10.78.0.1"), line)?;
        let node = Node {
            before: Before::look()?,
            lab,
            net,
            files,
            nlmfo: &context.nlmfo,
        };
        for vip in 0..VIPS.len() {
            node.hold(vip)?;
        }
        Ok(node)
    }

    fn tool(&self) -> Tool<'_> {
        Tool::new(self.nlmfo, self.lab.server.node())
    }

    fn vip(&self, vip: usize) -> IpAddr {
        self.lab.vips[vip]
    }

    fn range(holder: u16) -> Range {
        Range::new(10 * u64::from(holder), 5)
    }

    /// The holders of a VIP have their locks, by asking again if they have lost them.
    fn hold(&self, vip: usize) -> Result<()> {
        for holder in HOLDERS {
            let mut raw =
                (self.net).client(holder, self.vip(vip), NlmVersion::V4, Transport::Udp)?;
            let (file, range) = (&self.files[vip], Self::range(holder));
            raw.granted(|raw| raw.nm_lock(file, 7, range, Mode::Write))?;
        }
        Ok(())
    }

    fn prepare(&self, command: &Command) -> Result<()> {
        self.hold(command.vip)?;
        if let Some(first) = &command.first {
            let arguments: Vec<&str> = first.split(' ').collect();
            self.tool().expect(exit::CONFIRMED, &arguments)?;
        }
        Ok(())
    }

    /// Another client gets nothing of what the VIP's clients hold, or are to get back.
    fn ensure_not_taken(&self, vip: usize) -> Result<()> {
        let mut raw = (self.net).client(THIEF, self.vip(vip), NlmVersion::V4, Transport::Udp)?;
        // Behind a fence nobody answers.
        raw.set_deadline(Duration::from_secs(1));
        for holder in HOLDERS {
            let answer = raw.nm_lock(&self.files[vip], 8, Self::range(holder), Mode::Write);
            ensure!(
                !matches!(answer, Ok(Status::Granted)),
                "another client took the lock of client {holder} through {}",
                VIPS[vip]
            );
        }
        Ok(())
    }

    /// Nothing of nlmfo's is left: in the kernel, of processes, of files that were being
    /// written.
    fn ensure_clean(&self, folders: &[&str]) -> Result<()> {
        self.tool().expect(exit::CONFIRMED, &["cleanup"])?;
        until("nothing of nlmfo's to be left", || {
            let mut left: Vec<String> = self.before.of_nlmfo()?.into_iter().collect();
            left.extend(processes()?.iter().map(|pid| format!("process {pid}")));
            Ok(match left.is_empty() {
                true => Seen::Yes(()),
                false => Seen::No(left.join(", ")),
            })
        })?;
        // Not all of the folders need be there.
        let mut find = self.lab.server.node().command("find");
        let found = finish(find.args(folders).args(["-name", ".nlmfo-*"]), "")?.stdout;
        ensure!(found.is_empty(), "files are left: {found}");
        Ok(())
    }

    /// How many locks are held through all VIPs.
    fn locks(&self) -> Result<usize> {
        Ok(self.lab.server.locks()?.len())
    }

    fn step(&self, command: &Command, nth: usize, signal: Signal) -> Result<Stepped> {
        let mut tool = self.tool().command(&command.arguments());
        let stepped = signal_after(&mut tool, nth, signal)?;
        eprintln!(
            "nlmfo {}: step {nth}, {}: exit code {}",
            command.line,
            stepped.at.as_deref().unwrap_or("its end"),
            stepped.code
        );
        Ok(stepped)
    }

    /// The command has ended by itself: what it was to do is done.
    fn ensure_done(&self, command: &Command, ended: &Stepped) -> Result<()> {
        ensure!(
            command.codes.contains(&ended.code),
            "exit code {}: {}",
            ended.code,
            ended.said
        );
        if !command.is_release() {
            return Ok(());
        }
        let others = HOLDERS.len() * (VIPS.len() - 1);
        ensure!(self.locks()? == others, "{} locks are held", self.locks()?);
        let text = fs::read_to_string(record(command.vip))?;
        let record: Value = serde_json::from_str(&text)?;
        let recorded = record["locks"].as_array().map_or(0, Vec::len);
        ensure!(
            recorded == HOLDERS.len(),
            "{recorded} locks are recorded: {record}"
        );
        Ok(())
    }
}

/// Steps of the `nth` command: the first ones, then the further apart the later, other ones for each
/// command.
fn steps(full: bool, nth: usize) -> impl Iterator<Item = usize> {
    let next = move |&step: &usize| {
        Some(match full {
            true => step + 1 + (step + nth) / 13,
            false => step * 8,
        })
    };
    successors(Some(if full { 1 } else { 2 + nth }), next)
}

fn killed(context: &Context) -> Result<End> {
    let node = Node::up(context)?;
    let mut kills = 0;
    for (nth, command) in commands().iter().enumerate() {
        (kill_at_each(&node, command, steps(context.full, nth), &mut kills))
            .with_context(|| format!("nlmfo {}", command.line))?;
    }
    node.ensure_clean(&FOLDERS)?;
    let least = if context.full { 200 } else { 12 };
    ensure!(kills >= least, "killed {kills} times only");
    eprintln!("killed at {kills} steps");
    Ok(End::Pass)
}

/// Runs the command until it ends by itself, killed one step later each time; in between,
/// what a killed one left meets the next, or `nlmfo cleanup`, by turns.
fn kill_at_each(
    node: &Node,
    command: &Command,
    steps: impl Iterator<Item = usize>,
    kills: &mut usize,
) -> Result<()> {
    node.prepare(command)?;
    for (turn, nth) in steps.enumerate() {
        let stepped = node.step(command, nth, Signal::SIGKILL)?;
        let Some(at) = &stepped.at else {
            node.ensure_done(command, &stepped)?;
            break;
        };
        *kills += 1;
        (|| {
            ensure!(stepped.code == 128 + 9, "exit code {}", stepped.code);
            node.ensure_not_taken(command.vip)?;
            if turn % 2 == 1 {
                node.ensure_clean(&FOLDERS[..2])?;
                node.prepare(command)?;
            }
            Ok(())
        })()
        .with_context(|| format!("killed at step {nth}, {at}"))?;
    }
    node.ensure_clean(&FOLDERS[..2])?;
    node.hold(command.vip)
}

fn interrupted(context: &Context) -> Result<End> {
    const SIGNALS: [Signal; 4] = [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ];
    let node = Node::up(context)?;
    let mut heard = 0;
    let mut turn = 0;
    for (nth, command) in commands().iter().enumerate() {
        if !command.is_under_signals() {
            continue;
        }
        for step in steps(context.full, nth) {
            let signal = SIGNALS[turn % SIGNALS.len()];
            turn += 1;
            node.prepare(command)?;
            let stepped = node.step(command, step, signal)?;
            let at = stepped.at.clone().unwrap_or_else(|| "its end".into());
            (|| {
                heard += usize::from(ensure_heard(command, &stepped, signal)?);
                node.ensure_not_taken(command.vip)?;
                node.ensure_clean(&FOLDERS)
            })()
            .with_context(|| format!("nlmfo {}: {signal} at step {step}, {at}", command.line))?;
            if stepped.at.is_none() {
                break;
            }
        }
        node.hold(command.vip)?;
    }
    let least = if context.full { 100 } else { 6 };
    ensure!(heard >= least, "heard {heard} times only");
    eprintln!("{heard} commands ended by a signal, of {turn}");
    Ok(End::Pass)
}

/// Whether the signal has ended the command; else it must have done its work.
fn ensure_heard(command: &Command, ended: &Stepped, signal: Signal) -> Result<bool> {
    let is_heard = ended.said.contains(&format!("interrupted by {signal}"));
    let codes = match is_heard {
        true => &[exit::NOT_CONFIRMED],
        false => command.codes,
    };
    ensure!(
        codes.contains(&ended.code) && !(is_heard && signal == Signal::SIGHUP),
        "exit code {}: {}",
        ended.code,
        ended.said
    );
    Ok(is_heard)
}
