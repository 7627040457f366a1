//! The demo of a move: a VIP that is an NFS server of its own goes to another node, with the locks
//! of clients of NFSv3, 4.0, 4.1 and 4.2. Runs on the driver of a cluster.
//! The results are checked without nlmfo: against `/proc/locks` of both nodes, and by what the
//! clients were answered.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::utsname::uname;
use serde::Serialize;

use super::heading;
use super::recording::Recording;
use crate::cluster::{Cluster, NODES, Node};
use crate::guest::busy::Tally;
use crate::guest::node::TestNode;
use crate::guest::tool::exit;
use crate::guest::wait::{Seen, until};
use crate::scenarios::own_server::{Asks, User, Users, VERSIONS, failover_to, two_on_a_cluster};

const VIP: &str = "10.77.0.1";

/// Time between two checks of the clients.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A client that waits for longer is reported.
const WAITS: Duration = Duration::from_secs(2);

/// A client at one moment.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ClientSeen {
    name: String,
    nfs: String,
    file: String,
    /// Milliseconds since its last answer through the VIP that moves.
    silent_ms: u64,
    slowest_ms: u64,
    /// Milliseconds since its last answer through the VIP that stays.
    elsewhere_silent_ms: u64,
    /// How often the thief was refused this lock, and how often it got it.
    refused: u64,
    stolen: u64,
}

/// Runs the demo with the binary `nlmfo`; false, with the reason on the last line, if a check
/// fails.
pub fn run(nlmfo: &Path, record: Option<&Path>) -> bool {
    match show(nlmfo, record) {
        Ok(()) => println!(
            "\nDEMO PASSED: {VIP} moved from a to b; no client lost its lock, nobody else got one"
        ),
        Err(error) => {
            println!("\nDEMO FAILED: {error:#}");
            return false;
        }
    }
    true
}

fn show(nlmfo: &Path, record: Option<&Path>) -> Result<()> {
    heading(&format!(
        "Two nodes, a and b, with disks in common (Linux {})",
        uname()?.release().to_string_lossy()
    ));
    let (cluster, mail, data) = two_on_a_cluster(nlmfo)?;
    println!(
        "mail  {VIP}, an NFS server of its own, with its filesystem: it will move\n\
         data  10.77.0.2, another one: it stays"
    );
    for server in ["mail", "data"] {
        typed(&cluster.a, &["server", "start", server])?;
    }

    heading("A client of each version of NFS locks a file, and one more tries to steal the locks");
    let users = Users::start(&TestNode::root(), &mail, &data, &VERSIONS, Asks::OfTheNext)?;
    for user in &users.users {
        println!(
            "{:<3} NFSv{:<4} holds a write lock on bytes 0-9 of {}",
            name(user),
            user.version(),
            user.file
        );
    }
    println!(
        "c{}  asks for all of these locks over and over, by NFSv3 and NFSv4.1: the thief\n\
         Each of the others asks for the lock of the next one too: this shows how long it waits.",
        Users::THIEF
    );
    ensure_holds(&cluster, users.users.len(), 0)?;
    typed(&cluster.a, &["locks", "--server", "mail"])?;

    heading(&format!("{VIP} moves to b, with everybody at work"));
    println!("In brackets: what clients see, and when, in seconds since the command began.");
    move_it(nlmfo, record, &cluster, &users)?;

    heading("The same locks, on b");
    ensure_holds(&cluster, 0, users.users.len())?;
    typed(&cluster.b, &["locks", "--server", "mail"])?;

    heading("What each client saw");
    report(users)
}

fn name(user: &User) -> String {
    format!("c{}", user.number)
}

/// The arguments as a shell takes them.
fn shell_words(arguments: &[&str]) -> String {
    let word = |word: &&str| match word.contains(' ') {
        true => format!("'{word}'"),
        false => (*word).to_owned(),
    };
    arguments.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn typed(node: &Node, arguments: &[&str]) -> Result<()> {
    typed_and_told(node, arguments, |_| Ok(()))
}

/// Runs nlmfo on a node as an operator would, and shows what it prints as it does. It must
/// confirm what it did.
fn typed_and_told(
    node: &Node,
    arguments: &[&str],
    told: impl Fn(&str) -> Result<()>,
) -> Result<()> {
    let line = format!("nlmfo {}", shell_words(arguments));
    println!("\n{}# {line}", node.name());
    let mut command = node.tool().command(arguments);
    let mut child = (command.stdin(Stdio::null()).stdout(Stdio::piped()))
        .spawn()
        .context("start nlmfo")?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        told(&line)?;
    }
    let code = child.wait()?.code();
    ensure!(
        code == Some(exit::CONFIRMED),
        "`{line}` on {} ended with exit code {code:?}",
        node.name()
    );
    Ok(())
}

/// The kernels hold that many of the clients' locks, and say so themselves.
fn ensure_holds(cluster: &Cluster, a: usize, b: usize) -> Result<()> {
    for (node, expected) in [(&cluster.a, a), (&cluster.b, b)] {
        let all = node.shell("cat /proc/locks")?;
        let is_theirs = |line: &&str| line.contains(" WRITE ") && line.ends_with(" 0 9");
        let held = all.lines().filter(is_theirs).count();
        println!("/proc/locks of {}: {held} of these locks", node.name());
        ensure!(held == expected, "{expected} were expected there: {all}");
    }
    Ok(())
}

fn move_it(nlmfo: &Path, record: Option<&Path>, cluster: &Cluster, users: &Users) -> Result<()> {
    let recording = Recording::create(record)?;
    let _watched = [
        recording.watch(&cluster.a, nlmfo, "mail")?,
        recording.watch(&cluster.b, nlmfo, "mail")?,
    ];
    let command = failover_to(nlmfo, NODES[1].1)?;
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    thread::scope(|scope| {
        let (over, is_over) = channel();
        let look = scope.spawn(|| look_at(users, &recording, is_over));
        let moved = || -> Result<()> {
            if record.is_some() {
                // Some history before it begins.
                answered_more(users, 40)?;
            }
            recording.said(&format!("nlmfo failover --vip {VIP} --to b"))?;
            typed_and_told(&cluster.a, &command, |line| recording.said(line))?;
            answered_more(users, 2)?;
            if record.is_some() {
                answered_more(users, 40)?;
            }
            Ok(())
        }();
        drop(over);
        look.join().expect("looking does not panic")?;
        moved
    })
}

/// Waits until every client, including the thief, has received that many more answers.
fn answered_more(users: &Users, times: u64) -> Result<()> {
    let asked = || -> Result<Vec<Tally>> {
        let mut all = users.thief().concat();
        for user in &users.users {
            all.push(user.still()?);
        }
        Ok(all)
    };
    let before = asked()?;
    until("every client to be answered", || {
        let now = asked()?;
        let all = before.iter().zip(&now);
        let waiting: Vec<_> = all
            .filter(|(before, now)| now.answers() < before.answers() + times)
            .collect();
        Ok(match waiting.is_empty() {
            true => Seen::Yes(()),
            false => Seen::No(format!("not yet: {waiting:?}")),
        })
    })
}

/// Records the clients until the other end is dropped, and reports which wait and which continue.
fn look_at(users: &Users, recording: &Recording, over: Receiver<()>) -> Result<()> {
    let began = Instant::now();
    let mut waits = vec![false; users.users.len()];
    while over.recv_timeout(POLL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let all = seen(users)?;
        for (client, waits) in all.iter().zip(&mut waits) {
            let silent = Duration::from_millis(client.silent_ms);
            let who = format!("{} (NFSv{})", client.name, client.nfs);
            let at = began.elapsed().as_secs_f64();
            if silent > WAITS && !*waits {
                *waits = true;
                println!("  [{at:4.1} s: {who} waits for an answer]");
            } else if silent < WAITS && *waits {
                *waits = false;
                let stood_still = client.slowest_ms as f64 / 1000.0;
                println!("  [{at:4.1} s: {who} is answered again, after {stood_still:.1} s]");
            }
        }
        recording.clients(&all)?;
    }
    Ok(())
}

fn seen(users: &Users) -> Result<Vec<ClientSeen>> {
    let thief = users.thief();
    let milliseconds = |time: Duration| time.as_millis() as u64;
    let one = |(number, user): (usize, &User)| {
        let still = user.still()?;
        let silent = |tally: &Tally| tally.answered.map_or(Duration::ZERO, |at| at.elapsed());
        let robbed = || thief.iter().filter_map(|all| all.get(number));
        Ok(ClientSeen {
            name: name(user),
            nfs: user.version(),
            file: user.file.clone(),
            silent_ms: milliseconds(silent(&still)),
            slowest_ms: milliseconds(still.slowest),
            elsewhere_silent_ms: milliseconds(silent(&user.elsewhere()?)),
            refused: robbed().map(|tally| tally.refused).sum(),
            stolen: robbed().map(|tally| tally.held).sum(),
        })
    };
    users.users.iter().enumerate().map(one).collect()
}

/// Shows it, and fails if a lock was lost.
fn report(users: Users) -> Result<()> {
    let mut table = format!(
        "{:<8}{:<6}{:<8}{:<8}{:<28}{}\n",
        "CLIENT", "NFS", "LOCK", "BEFORE", "AFTER", "STOOD STILL"
    );
    for client in seen(&users)? {
        let after = match client.stolen {
            0 => format!("held, refused {} times", client.refused),
            stolen => format!("LOST, stolen {stolen} times"),
        };
        writeln!(
            table,
            "{:<8}{:<6}{:<8}{:<8}{after:<28}{:.1} s",
            client.name,
            client.nfs,
            client.file,
            "held",
            client.slowest_ms as f64 / 1000.0
        )?;
    }
    print!("{table}");
    let thief: Vec<Tally> = users.thief().concat();
    println!(
        "The thief asked {} times and got {}.",
        thief.iter().map(Tally::answers).sum::<u64>(),
        match thief.iter().map(|tally| tally.held).sum::<u64>() {
            0 => "nothing".to_owned(),
            locks => format!("{locks} LOCKS"),
        }
    );
    let slowest = users.slowest()?;
    let slowest = slowest.iter().map(|client| client.elsewhere).max();
    println!(
        "Each client locked through 10.77.0.2 as well, all the time: the slowest answer took {:.1} s.",
        slowest.context("no client")?.as_secs_f64()
    );
    Ok(())
}
