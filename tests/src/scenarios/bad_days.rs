//! Bad input and failures: each ends with a message, the right exit status, and nothing of nlmfo left
//! in the kernel.

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::process::CommandExt;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::release::RELEASE;
use super::{Context, End, Kernels, Scenario};
use crate::guest::command::{finish, run};
use crate::guest::lab::Lab;
use crate::guest::load::{self, Holding, Monitoring};
use crate::guest::node::TestNode;
use crate::guest::raw::RawNet;
use crate::guest::tool::{Running, Tool, exit};
use crate::guest::traces::Traces;
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "bad-addresses",
        claim: "names, prefixes and ports are refused with exit 2; an IPv4-mapped VIP is the IPv4 one",
        run: bad_addresses,
        kernels: Kernels::One("arguments are checked before any kernel is asked"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "not-root",
        claim: "without root, every command says so and does nothing",
        run: not_root,
        kernels: Kernels::One("nlmfo checks its own user ID, which does not depend on the kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "no-lockd",
        claim: "without lockd, a release says that lockd is not loaded",
        run: no_lockd,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "nfsd-stopped",
        claim: "with nfsd stopped, a release does not crash the kernel and confirms nothing unknown",
        run: nfsd_stopped,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "record-impossible",
        claim: "if the record cannot be written, nothing is released, and existing files stay",
        run: record_impossible,
        kernels: Kernels::One("the record is written before anything is released"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "cleanup-nothing",
        claim: "cleanup on a clean node succeeds at once, also without lockd",
        run: cleanup_nothing,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "killed",
        claim: "after SIGKILL in the middle of a release, cleanup removes what it left",
        run: killed,
        kernels: Kernels::One("the routing rules that are removed are the same on every kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "two-at-once",
        claim: "a second release of a VIP waits up to its deadline and names the first one",
        run: two_at_once,
        kernels: Kernels::One("only nlmfo's own files are involved"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "check",
        claim: "check reports what this kernel supports and changes no lock",
        run: check,
        ..Scenario::DEFAULT
    },
];

fn bad_addresses(context: &Context) -> Result<End> {
    let (lab, _held) = Lab::with_one_lock()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    for bad in [
        "",
        "vip1",
        "10.77.0",
        "10.77.0.1/24",
        "10.77.0.1:2049",
        "[fd77::1]:2049",
        "10.77.0.1,10.77.0.2",
        " 10.77.0.1",
    ] {
        let arguments = [&RELEASE[..], &["--vip", bad]].concat();
        let finished = tool.expect(exit::USAGE, &arguments)?;
        ensure!(
            finished.stderr.contains("--vip") || finished.stderr.contains("address"),
            "--vip {bad:?}: the error does not say what is wrong: {}",
            finished.stderr
        );
    }
    tool.expect(exit::USAGE, &RELEASE)?;
    ensure!(
        lab.server.locks()?.len() == 1,
        "a bad address released a lock"
    );
    let mapped = [&RELEASE[..], &["--vip", "::ffff:10.77.0.1"]].concat();
    tool.expect(exit::CONFIRMED, &mapped)?;
    ensure!(
        lab.server.locks()?.is_empty(),
        "the IPv4-mapped VIP was confirmed, but its lock is still held"
    );
    Ok(End::Pass)
}

fn not_root(context: &Context) -> Result<End> {
    const NOBODY: u32 = 65534;
    let (lab, _held) = Lab::with_one_lock()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let arguments = [&RELEASE[..], &["--vip", "10.77.0.1"]].concat();
    for arguments in [&arguments[..], &["locks"]] {
        let finished = finish(tool.command(arguments).uid(NOBODY), "")?;
        ensure!(
            finished.code() != exit::CONFIRMED && finished.stderr.contains("root"),
            "{arguments:?} as nobody: exit code {}: {}",
            finished.code(),
            finished.stderr
        );
    }
    ensure!(lab.server.locks()?.len() == 1, "nobody released a lock");
    Ok(End::Pass)
}

fn no_lockd(context: &Context) -> Result<End> {
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let before = Traces::of(&root)?;
    let arguments = [&RELEASE[..], &["--vip", "10.77.0.1"]].concat();
    for arguments in [&arguments[..], &["locks"]] {
        let finished = tool.run(arguments)?;
        ensure!(
            finished.stderr.contains("lockd") || finished.stdout.contains("lockd"),
            "{arguments:?} without lockd does not name it: exit code {}: {}{}",
            finished.code(),
            finished.stdout,
            finished.stderr
        );
        ensure!(
            [exit::CONFIRMED, exit::UNSUPPORTED].contains(&finished.code()),
            "{arguments:?} without lockd: exit code {}",
            finished.code()
        );
    }
    Traces::of(&root)?.ensure_as(&before)?;
    Ok(End::Pass)
}

fn nfsd_stopped(context: &Context) -> Result<End> {
    let lab = Lab::up(&["10.77.0.1"], 0)?;
    lab.server.stop_nfsd()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let before = Traces::of(lab.server.node())?;
    // With nfsd gone so are its clients' locks: nothing is held, and that can
    // be confirmed without a write to nfsd's files.
    let arguments = [&RELEASE[..], &["--vip", "10.77.0.1"]].concat();
    let finished = tool.run(&arguments)?;
    ensure!(
        [exit::CONFIRMED, exit::UNSUPPORTED].contains(&finished.code()),
        "exit code {}: {}",
        finished.code(),
        finished.stderr
    );
    Traces::of(lab.server.node())?.ensure_as(&before)?;
    Ok(End::Pass)
}

fn record_impossible(context: &Context) -> Result<End> {
    let (lab, _held) = Lab::with_one_lock()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let before = Traces::of(lab.server.node())?;
    let (text, link) = ("/tmp/text", "/tmp/link");
    fs::write(text, "other people's")?;
    symlink("/tmp/nowhere", link)?;
    for file in [
        "/nowhere/record.json",
        "/dev/null",
        text,
        link,
        "/tmp",
        "/proc/record",
    ] {
        let phase = ["failover", "--phase", "release", "--vip", "10.77.0.1"];
        let arguments = [&phase[..], &["--record", file]].concat();
        let finished = tool.expect(exit::COULD_NOT_RUN, &arguments)?;
        ensure!(
            finished.stderr.contains(file),
            "the error does not name {file}: {}",
            finished.stderr
        );
        // No fence either.
        Traces::of(lab.server.node())?.ensure_as(&before)?;
    }
    ensure!(
        fs::metadata("/dev/null")?.file_type().is_char_device()
            && fs::read(text)? == b"other people's"
            && fs::symlink_metadata(link)?.is_symlink()
            && !fs::exists("/tmp/nowhere")?,
        "a file that is not ours was changed"
    );
    ensure!(
        lab.server.locks()?.len() == 1,
        "the lock was released without a record of it"
    );
    Ok(End::Pass)
}

fn cleanup_nothing(context: &Context) -> Result<End> {
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let before = Traces::of(&root)?;
    tool.expect(exit::CONFIRMED, &["cleanup"])?;
    Traces::of(&root)?.ensure_as(&before)?;
    Ok(End::Pass)
}

/// Enough lockd hosts behind one VIP to make a release last.
const HOSTS: u16 = 400;

/// A server with [`HOSTS`] clients of an IPv6 VIP, which needs a call in each client's name if the
/// kernel's own method cannot take IPv6.
fn long_release() -> Result<(Lab, RawNet)> {
    let lab = Lab::up(&["fd77::1"], 0)?;
    let net = RawNet::join(&lab.server)?;
    hold_many(&lab, &net)?;
    Ok((lab, net))
}

/// Makes [`HOSTS`] clients hold locks through the first VIP.
pub fn hold_many(lab: &Lab, net: &RawNet) -> Result<()> {
    let names: Vec<_> = (0..16).map(|i| format!("held{i}")).collect();
    let files = net.files(&lab.server, lab.vips[0], &names)?;
    load::hold(
        net,
        &files,
        Holding {
            vips: &lab.vips,
            clients: HOSTS,
            locks: 2,
            monitoring: Monitoring::Unmonitored,
        },
    )
}

/// Starts the release and stops it (SIGSTOP) in its middle; none if the kernel's own method was too
/// fast.
pub fn in_the_middle(tool: &Tool<'_>, lab: &Lab, arguments: &[&str]) -> Result<Option<Running>> {
    let all = lab.server.locks()?.len();
    let mut running = tool.start(arguments)?;
    let caught = until("the release to be in its middle, or over", || {
        if running.ended()? {
            return Ok(Seen::Yes(false));
        }
        let left = lab.server.locks()?.len();
        if left == all {
            return Ok(Seen::No(format!("all {all} locks are held")));
        }
        // Otherwise it could be over before it gets the caller's signal.
        running.pause()?;
        match lab.server.locks()?.len() {
            0 => {
                running.signal(Signal::SIGCONT)?;
                Ok(Seen::No("no lock is held".into()))
            }
            _ => Ok(Seen::Yes(true)),
        }
    })?;
    Ok(caught.then_some(running))
}

/// What [`in_the_middle`] cannot show.
pub fn too_fast() -> End {
    End::Unsupported(
        "the release is over before its middle can be seen: the kernel's own method takes IPv6"
            .into(),
    )
}

fn killed(context: &Context) -> Result<End> {
    let (lab, _net) = long_release()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let before = Traces::of(lab.server.node())?;
    let arguments = [&RELEASE[..], &["--vip", "fd77::1"]].concat();
    let Some(mut running) = in_the_middle(&tool, &lab, &arguments)? else {
        return Ok(too_fast());
    };
    running.signal(Signal::SIGKILL)?;
    let code = running.code()?;
    ensure!(code != exit::CONFIRMED, "SIGKILL and yet exit code 0");
    tool.expect(exit::CONFIRMED, &["cleanup"])?;
    Traces::of(lab.server.node())?.ensure_as(&before)?;

    tool.expect(exit::CONFIRMED, &arguments)?;
    let left = lab.server.locks()?.len();
    ensure!(left == 0, "the second release left {left} locks");
    Ok(End::Pass)
}

fn two_at_once(context: &Context) -> Result<End> {
    let (lab, _net) = long_release()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let arguments = [&RELEASE[..], &["--vip", "fd77::1"]].concat();
    let mut first = tool.start(&arguments)?;
    // Stopped, it holds its lock file for as long as we like; it has taken it
    // before it touches any lock.
    until("the first release to begin", || {
        Ok(match fs_locked_by(first.id())? {
            true => Seen::Yes(()),
            false => Seen::No("it holds no lock file".into()),
        })
    })?;
    first.signal(Signal::SIGSTOP)?;
    let second = tool.run(&[&arguments[..], &["--deadline", "1"]].concat())?;
    first.signal(Signal::SIGCONT)?;
    ensure!(
        second.code() == exit::COULD_NOT_RUN && second.stderr.contains(&first.id().to_string()),
        "the second: exit code {}, and its error must name process {}: {}",
        second.code(),
        first.id(),
        second.stderr
    );
    let code = first.code()?;
    ensure!(code == exit::CONFIRMED, "the first: exit code {code}");
    Ok(End::Pass)
}

/// Whether a process holds any file lock, by `/proc/locks`.
fn fs_locked_by(pid: u32) -> Result<bool> {
    let pid = pid.to_string();
    Ok(fs::read_to_string("/proc/locks")?
        .lines()
        .any(|line| line.split_whitespace().any(|word| word == pid)))
}

fn check(context: &Context) -> Result<End> {
    let (lab, _held) = Lab::with_one_lock()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let before = (Traces::of(lab.server.node())?, lab.server.locks()?);
    let report = tool.json(exit::CONFIRMED, &["check"])?;
    before.0.ensure_as(&Traces::of(lab.server.node())?)?;
    ensure!(
        lab.server.locks()? == before.1,
        "check touched a lock: {report}"
    );

    // Only a test shows it: the kernel's own method, on a lock of the test.
    run(lab
        .server
        .node()
        .command("sh")
        .args(["-c", "echo 10.77.0.1 > /proc/fs/nfsd/unlock_ip"]))?;
    let works = lab.server.locks()?.is_empty();
    let verdict = &report["unlock_ip"]["verdict"];
    let expected = if works { "fixed" } else { "broken" };
    ensure!(
        verdict == expected,
        "unlock_ip is {expected}, and check says: {}",
        report["unlock_ip"]
    );
    Ok(End::Pass)
}
