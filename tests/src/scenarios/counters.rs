//! The counters against what was really done: known numbers of NLM calls over
//! several VIPs. What lockd drops by itself is in `counters_released`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::counters::Counters;
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::rpc::nlm::{Status, Test};

use super::{Context, End, Scenario};
use crate::guest::command::run;
use crate::guest::counted::Counted;
use crate::guest::handles::FileHandle;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Outcome, Range};
use crate::guest::node::TestNode;
use crate::guest::raw::{RawClient, RawNet};
use crate::guest::wait::{Seen, until, until_for};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "counters-calls",
        claim: "every LOCK, UNLOCK, TEST and CANCEL counts once, for its VIP, by its answer",
        run: calls,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "counters-linux",
        claim: "the NLM calls of a Linux client's fcntl calls count for the VIP that it mounted",
        run: linux,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "counters-blocked",
        claim: "a request that is granted later counts once, even if GRANTED is repeated",
        run: blocked,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "counters-grace",
        claim: "refusals because of grace, and reclaims, have their own counts",
        run: grace,
        ..Scenario::DEFAULT
    },
];

const VIPS: [&str; 3] = ["10.77.0.1", "10.77.0.2", "fd77::1"];

/// Versions and transports that a raw client speaks.
const KINDS: [(NlmVersion, Transport); 6] = [
    (NlmVersion::V1, Transport::Tcp),
    (NlmVersion::V1, Transport::Udp),
    (NlmVersion::V3, Transport::Tcp),
    (NlmVersion::V3, Transport::Udp),
    (NlmVersion::V4, Transport::Tcp),
    (NlmVersion::V4, Transport::Udp),
];

fn calls(_: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 0)?;
    let net = RawNet::join(&lab.server)?;
    let mut clients = Vec::new();
    for (v, vip) in lab.vips.iter().enumerate() {
        let file = net.file(&lab.server, *vip, &format!("file{v}"))?;
        for (version, transport) in KINDS {
            let number = clients.len() as u16 + 1;
            net.introduce(number, *vip, &file)?;
            let client = net.client(number, *vip, version, transport)?;
            clients.push((v, u64::from(number), file.clone(), client));
        }
    }
    let mut watch = Counted::attach()?;
    for (v, number, file, client) in &mut clients {
        // Other numbers for each VIP, so that none can stand in for another.
        drive(client, file, 1000 * *number, *v as u64 + 1)?;
    }
    let kinds = KINDS.len() as u64;
    let expected = (lab.vips.iter().zip(1..)).map(|(vip, times)| {
        let counters = Counters {
            granted: 5 * times * kinds,
            unlocked: 4 * times * kinds,
            tested: 3 * times * kinds,
            denied: 2 * times * kinds,
            cancelled: times * kinds,
            ..Counters::default()
        };
        (*vip, counters)
    });
    watch.expect("calls of every kind", &expected.collect::<Vec<_>>())?;
    Ok(End::Pass)
}

/// Per `times`: 5 locks, 4 of them given back, 3 tests and 2 refused locks of
/// what is held, and 1 cancel of nothing.
fn drive(client: &mut RawClient, file: &FileHandle, start: u64, times: u64) -> Result<()> {
    const OWNER: u32 = 1;
    const OTHER: u32 = 2;
    let range = |i: u64| Range::new(start + 10 * i, 5);
    for i in 0..5 * times {
        client.granted(|raw| raw.lock(file, OWNER, range(i), Mode::Write))?;
    }
    for _ in 0..3 * times {
        let test = client.test(file, OTHER, range(0), Mode::Read)?;
        ensure!(matches!(test, Test::Held(_)), "TEST of a lock: {test:?}");
    }
    for _ in 0..2 * times {
        let status = client.lock(file, OTHER, range(0), Mode::Read)?;
        ensure!(status == Status::Denied, "LOCK of a lock: {status:?}");
    }
    for i in 0..times {
        client.cancel(file, OTHER, range(i), Mode::Read)?;
    }
    for i in 0..4 * times {
        client.granted(|raw| raw.unlock(file, OWNER, range(i)))?;
    }
    Ok(())
}

fn linux(_: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 2)?;
    let mut watch = Counted::attach()?;
    let range = Range::new(3, 4);
    for (v, vip) in lab.vips.iter().enumerate() {
        let [one, two] = [&lab.clients[0], &lab.clients[1]];
        let [here, there] = [one, two].map(|client| client.mounts[v].path(&format!("linux{v}")));
        let held = one
            .client
            .lock(&one.mounts[v], &format!("linux{v}"), range, Mode::Write)?;
        let other = two.client.locker()?;
        let refused = other.lock(&there, range, Mode::Write)?;
        let tested = other.test(&there, range, Mode::Write)?;
        ensure!(
            (&refused, &tested) == (&Outcome::Refused, &Outcome::Refused),
            "behind the lock of {}: F_SETLK {refused:?}, F_GETLK {tested:?}",
            here.display()
        );
        held.release()?;
        let outcome = other.lock(&there, range, Mode::Write)?;
        ensure!(outcome == Outcome::Held, "the lock given back: {outcome:?}");
        let expected = Counters {
            granted: 2,
            denied: 1,
            tested: 1,
            unlocked: 1,
            ..Counters::default()
        };
        watch.expect("fcntl calls", &[(*vip, expected)])?;
        other.unlock(&there, range)?;
        let expected = Counters {
            unlocked: 1,
            ..Counters::default()
        };
        watch.expect("the last unlock", &[(*vip, expected)])?;
    }
    Ok(End::Pass)
}

fn blocked(_: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS[1..], 0)?;
    let net = RawNet::join(&lab.server)?;
    let sent = Sent::watch()?;
    let mut watch = Counted::attach()?;
    let mut holders = Vec::new();
    for (v, vip) in lab.vips.iter().enumerate() {
        let file = net.file(&lab.server, *vip, &format!("file{v}"))?;
        let tcp = |number| net.client(number, *vip, NlmVersion::V4, Transport::Tcp);
        let mut holder = tcp(1)?;
        holder.granted(|raw| raw.nm_lock(&file, 1, Range::new(0, 40), Mode::Write))?;
        let wait = |number: u16| -> Result<RawClient> {
            let mut waiter = tcp(number)?;
            let range = Range::new(10 * u64::from(number - 2), 10);
            let status = waiter.wait(&file, number.into(), range, Mode::Write)?;
            ensure!(status == Status::Blocked, "LOCK behind a lock: {status:?}");
            Ok(waiter)
        };
        let (_granted, _granted_too) = (wait(2)?, wait(3)?);
        wait(4)?.cancel(&file, 4, Range::new(20, 10), Mode::Write)?;
        wait(5)?.unlock(&file, 5, Range::new(30, 10))?;
        let expected = Counters {
            granted: 1,
            blocked: 4,
            cancelled: 1,
            unlocked: 1,
            ..Counters::default()
        };
        watch.expect("blocked requests", &[(*vip, expected)])?;
        holders.push((*vip, file, holder));
    }
    let queued = lab.server.locks()?.iter().any(|lock| lock.waiting);
    for (vip, file, holder) in &mut holders {
        holder.granted(|raw| raw.unlock(file, 1, Range::new(0, 40)))?;
        let expected = Counters {
            unlocked: 1,
            granted_later: if queued { 2 } else { 0 },
            ..Counters::default()
        };
        if queued {
            until("two grants", || {
                let grants = watch.peek(*vip)?.granted_later;
                Ok(match grants {
                    2.. => Seen::Yes(()),
                    _ => Seen::No(format!("{grants} grants")),
                })
            })?;
        }
        watch.expect("the holder's unlock", &[(*vip, expected)])?;
    }
    if !queued {
        return Ok(End::Unsupported(
            "this kernel answers blocked and queues nothing, so that nothing is granted later"
                .into(),
        ));
    }
    // Nobody answers at the waiters' addresses: lockd tells each of them again.
    let grants = 2 * holders.len();
    until_for(Duration::from_secs(90), "more grants sent", || {
        let sent = sent.count()?;
        Ok(match sent > 2 * grants {
            true => Seen::Yes(()),
            false => Seen::No(format!("{sent} sent for {grants} grants")),
        })
    })?;
    watch.expect("grants told again", &[])?;
    Ok(End::Pass)
}

/// Calls of `nlm_async_call`, counted by the kernel's own probe. Where no NFS
/// client is in the server's place, each is a `GRANTED_MSG`.
struct Sent;

impl Sent {
    const TRACING: &str = "/sys/kernel/tracing";

    fn watch() -> Result<Sent> {
        let tracing = Path::new(Sent::TRACING);
        if !tracing.join("kprobe_events").exists() {
            run(Command::new("mount")
                .args(["-t", "tracefs", "tracefs"])
                .arg(tracing))?;
        }
        let root = TestNode::root();
        root.write(
            &format!("{}/kprobe_events", Sent::TRACING),
            "p:nlmfo_lab/sent nlm_async_call",
        )?;
        root.write(
            &format!("{}/events/nlmfo_lab/sent/enable", Sent::TRACING),
            "1",
        )?;
        Ok(Sent)
    }

    fn count(&self) -> Result<usize> {
        let profile = TestNode::root().read(&format!("{}/kprobe_profile", Sent::TRACING))?;
        let mut words = profile.split_whitespace();
        words
            .find(|word| *word == "sent")
            .and_then(|_| words.next()?.parse().ok())
            .with_context(|| format!("no count of the probe `sent` in {profile:?}"))
    }
}

fn grace(_: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 0)?;
    let server = &lab.server;
    server.stop_nfsd()?;
    server
        .node()
        .write("/proc/sys/fs/nfs/nlm_grace_period", "100")?;
    run(server
        .node()
        .command("rpc.nfsd")
        .args(["--tcp", "--udp", "4"]))?;
    let net = RawNet::join(server)?;
    let mut watch = Counted::attach()?;
    let mut clients = Vec::new();
    for (v, vip) in lab.vips.iter().enumerate() {
        let times = v as u64 + 1;
        let file = net.file(server, *vip, &format!("file{v}"))?;
        let mut client = net.client(times as u16, *vip, NlmVersion::V4, Transport::Tcp)?;
        for i in 0..times {
            let range = Range::new(10 * i, 5);
            client.granted(|raw| raw.reclaim(&file, 1, range, Mode::Write))?;
            for mode in [Mode::Read, Mode::Write] {
                let status = client.lock(&file, 2, Range::new(1000, 1), mode)?;
                ensure!(
                    status == Status::DeniedGracePeriod,
                    "LOCK in grace: {status:?}"
                );
            }
        }
        let expected = Counters {
            reclaimed: times,
            denied_grace: 2 * times,
            ..Counters::default()
        };
        watch.expect("locks in grace", &[(*vip, expected)])?;
        clients.push((*vip, file, client));
    }
    server.end_grace()?;
    for (vip, file, client) in &mut clients {
        let status = client.reclaim(file, 1, Range::new(2000, 1), Mode::Write)?;
        ensure!(
            status == Status::DeniedGracePeriod,
            "a reclaim outside grace: {status:?}"
        );
        client.granted(|raw| raw.lock(file, 1, Range::new(2000, 1), Mode::Write))?;
        let expected = Counters {
            granted: 1,
            denied_grace: 1,
            ..Counters::default()
        };
        watch.expect("locks after grace", &[(*vip, expected)])?;
    }
    Ok(End::Pass)
}
