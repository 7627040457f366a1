//! nlmfo's OCF agents, run by hand as a cluster manager runs them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use super::own_server::{Own, loop_device};
use super::{Context, End, Kernels, Machine, Manager, Scenario};
use crate::guest::client::Client;
use crate::guest::command::{Finished, finish, finish_within, run, silent};
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::node::TestNode;
use crate::guest::server::NLM_GRACE_PERIOD;
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "ocf-agents",
    claim: "nlmfo's OCF agents pass ocf-tester, keep the locks of a VIP of a shared server and of \
            one that is a server of its own, and fail as Pacemaker expects",
    run: agents,
    kernels: Kernels::One("the agents see no kernel"),
    machine: Machine::Own("Pacemaker's packages are installed in it"),
    manager: Some(Manager::Pacemaker),
    only_full: Some("ocf-tester runs each action several times"),
    ..Scenario::DEFAULT
}];

const AGENTS: &str = "/usr/lib/ocf/resource.d/nlmfo";
const VIP: &str = "vip=10.77.0.1";
const MAIL: &str = "name=mail";
/// With a blank and quotes.
const RECORD: &str = "/tmp/it's a \"record\".json";

/// It ends as the environment says. Its path has what shells treat in their own way.
const FAKE: &str = "/tmp/it's a \"fake\" $nlmfo";
const FAKE_PROGRAM: &str = "#!/bin/sh\n\
    case \"$*\" in\n\
    --version) printf 'nlmfo %s\\ntested on Linux 7.3\\n' \"${FAKE_VERSION:-9.9.9}\" ;;\n\
    'server status mail') echo \"- server mail: ${FAKE_STATE:-stopped}\"\n\
    [ \"$FAKE_STATE\" != degraded ] || exit 3 ;;\n\
    *) echo '✗ NOT CONFIRMED: as it was told'; echo '✗ failed; see above'; exit \"$FAKE_EXIT\" ;;\n\
    esac\n";

const SUCCESS: i32 = 0;
const ERROR: i32 = 1;
const UNIMPLEMENTED: i32 = 3;
const NOT_INSTALLED: i32 = 5;
const NOT_CONFIGURED: i32 = 6;
const NOT_RUNNING: i32 = 7;

/// ocf-tester starts and stops a resource several times.
const TESTED: Duration = Duration::from_mins(4);

/// An action with these parameters, and variables in capitals.
fn action(agent: &str, action: &str, parameters: &[&str]) -> Result<Command> {
    let mut command = Command::new(format!("{AGENTS}/{agent}"));
    command
        .arg(action)
        .env("OCF_ROOT", "/usr/lib/ocf")
        .env("OCF_RESOURCE_INSTANCE", "nfs1");
    for parameter in parameters {
        let (name, value) = parameter.split_once('=').context("NAME=VALUE")?;
        match name.starts_with(|first: char| first.is_ascii_uppercase()) {
            true => command.env(name, value),
            false => command.env(format!("OCF_RESKEY_{name}"), value),
        };
    }
    Ok(command)
}

/// Runs an [`action`], which must end with this code.
fn act(agent: &str, action: &str, code: i32, parameters: &[&str]) -> Result<Finished> {
    let mut command = self::action(agent, action, parameters)?;
    let started = Instant::now();
    let finished = finish(&mut command, "")?;
    let took = started.elapsed().as_secs_f64();
    eprintln!("{took:6.1} s: {agent} {action}: {}", finished.code());
    ensure!(
        finished.code() == code,
        "{agent} {action} {parameters:?}: {} where {code} was expected\n{}{}",
        finished.code(),
        finished.stdout,
        finished.stderr
    );
    ensure!(
        matches!(code, SUCCESS | NOT_RUNNING | UNIMPLEMENTED)
            || finished.stderr.contains("ocf-exit-reason:"),
        "{agent} {action} {parameters:?} gives no reason: {}",
        finished.stderr
    );
    Ok(finished)
}

fn agents(context: &Context) -> Result<End> {
    let nlmfo = context.nlmfo.display();
    let install = format!(
        "cp -r /dist/ocf/lib /dist/ocf/resource.d /usr/lib/ocf/; ln -sf {nlmfo} /usr/sbin/nlmfo; \
         mkdir -p /var/lib/nlmfo"
    );
    run(Command::new("sh").args(["-ec", &install]))?;
    let root = TestNode::root();
    root.write_program(FAKE, FAKE_PROGRAM)?;
    let lab = Lab::up(&["10.77.0.1"], 1)?;
    for agent in ["grace", "takeover"] {
        tested(agent, &[VIP, "grace=2s"])?;
    }
    validation()?;
    statuses()?;
    shared(&lab)?;
    own(context)?;
    Ok(End::Pass)
}

/// The agent passes the tests of resource-agents, which look at its meta-data too.
fn tested(agent: &str, parameters: &[&str]) -> Result<()> {
    let mut tester = Command::new("ocf-tester");
    tester.args(["-n", "nfs1"]);
    for parameter in parameters {
        tester.args(["-o", parameter]);
    }
    let finished = finish_within(TESTED, tester.arg(format!("{AGENTS}/{agent}")), "")?;
    let said = finished.stdout + &finished.stderr;
    ensure!(
        finished.status.success() && said.contains("passed all tests"),
        "ocf-tester: {said}"
    );
    Ok(())
}

/// What is wrong is found before anything is done, with the code that Pacemaker expects.
fn validation() -> Result<()> {
    let gone = "nlmfo=/nonesuch";
    for (agent, code, parameters) in [
        ("takeover", NOT_CONFIGURED, &[][..]),
        ("grace", NOT_CONFIGURED, &["vip=nfs1 it's"]),
        ("takeover", NOT_CONFIGURED, &["vip=10.77.0.1/24"]),
        ("grace", NOT_CONFIGURED, &[VIP, "grace=9 s"]),
        ("takeover", NOT_CONFIGURED, &[VIP, "on_unconfirmed=maybe"]),
        ("takeover", NOT_CONFIGURED, &[VIP, "nfs4=5"]),
        ("takeover", NOT_CONFIGURED, &[VIP, "fence=-1"]),
        ("takeover", NOT_INSTALLED, &[VIP, gone]),
        // It has a version, but is another program.
        ("grace", NOT_INSTALLED, &[VIP, "nlmfo=/usr/bin/true"]),
        ("takeover", SUCCESS, &[VIP]),
        (
            "takeover",
            SUCCESS,
            &["vip=10.77.0.1 fd77::1", "OCF_CHECK_LEVEL=10"],
        ),
        ("server", NOT_CONFIGURED, &[]),
        ("server", NOT_CONFIGURED, &["name=it's \"mail\""]),
        ("server", NOT_CONFIGURED, &["name=../mail"]),
        ("server", NOT_CONFIGURED, &[MAIL, "on_unconfirmed="]),
        ("server", NOT_CONFIGURED, &[MAIL, "fencing=maybe"]),
        ("server", NOT_INSTALLED, &[MAIL, gone]),
        // Not described on this node.
        ("server", NOT_INSTALLED, &[MAIL]),
    ] {
        act(agent, "validate-all", code, parameters)?;
    }
    for (agent, parameter) in [("grace", VIP), ("takeover", VIP), ("server", MAIL)] {
        let gone = [parameter, gone];
        act(agent, "start", NOT_INSTALLED, &gone)?;
        act(agent, "monitor", NOT_RUNNING, &gone)?;
        act(agent, "stop", SUCCESS, &gone)?;
        act(agent, "nonsense", UNIMPLEMENTED, &[parameter])?;
    }
    act("server", "monitor", NOT_RUNNING, &[MAIL])?;
    // One that is older than the agents.
    let fake = format!("nlmfo={FAKE}");
    let old = [&fake, "FAKE_VERSION=0.0.9"];
    for (agent, parameter) in [("grace", VIP), ("takeover", VIP), ("server", MAIL)] {
        let old = [&old[..], &[parameter]].concat();
        for action in ["validate-all", "start"] {
            let said = act(agent, action, NOT_INSTALLED, &old)?.stderr;
            ensure!(said.contains("0.0.9 is too old"), "{said}");
        }
    }
    Ok(())
}

/// How each exit status of nlmfo ends an action.
fn statuses() -> Result<()> {
    let fake = format!("nlmfo={FAKE}");
    let act = |agent, action, code, status: i32, others: &[&str]| {
        let status = format!("FAKE_EXIT={status}");
        let parameters = [&[&fake, &status, VIP, MAIL], others].concat();
        let said = act(agent, action, code, &parameters)?.stderr;
        let mut reasons = said
            .lines()
            .filter(|line| line.contains("ocf-exit-reason:"));
        ensure!(
            reasons.all(|line| !line.contains("see above")),
            "not the reason: {said}"
        );
        Ok(())
    };
    let warn = ["on_unconfirmed=warn"];
    for (status, grace, takeover, server) in [
        (exit::COULD_NOT_RUN, ERROR, ERROR, ERROR),
        (exit::USAGE, NOT_CONFIGURED, NOT_CONFIGURED, NOT_CONFIGURED),
        // The fake server does not serve.
        (exit::NOT_CONFIRMED, ERROR, SUCCESS, ERROR),
        (
            exit::UNSUPPORTED,
            NOT_INSTALLED,
            NOT_INSTALLED,
            NOT_INSTALLED,
        ),
        (exit::INCOMPLETE, ERROR, SUCCESS, SUCCESS),
    ] {
        act("grace", "start", grace, status, &[])?;
        act("grace", "stop", SUCCESS, status, &[])?;
        act("takeover", "start", takeover, status, &[])?;
        act("takeover", "stop", ERROR, status, &[])?;
        act("takeover", "stop", ERROR, status, &[])?;
        act("takeover", "stop", SUCCESS, status, &warn)?;
        act("takeover", "monitor", NOT_RUNNING, status, &[])?;
        act("server", "start", server, status, &[])?;
        // A server that continues to serve counts as not stopped, whatever is configured.
        for state in ["FAKE_STATE=serving", "FAKE_STATE=degraded"] {
            let others = [state, warn[0]];
            act("server", "stop", ERROR, status, &others)?;
        }
    }
    act("grace", "start", SUCCESS, exit::NOT_CONFIRMED, &warn)?;
    act("grace", "stop", SUCCESS, exit::CONFIRMED, &[])?;
    act("server", "monitor", SUCCESS, 0, &["FAKE_STATE=serving"])?;
    act("server", "monitor", ERROR, 0, &["FAKE_STATE=degraded"])
}

/// The locks of a shared server's VIP go and come back.
fn shared(lab: &Lab) -> Result<()> {
    let held = lab.clients[0].lock("held", Range::WHOLE)?;
    let before = lab.server.locks()?;
    act("takeover", "start", SUCCESS, &[VIP, "grace=1s"])?;
    let record = format!("record={RECORD}");
    let parameters = [VIP, &record, "grace=60s"];
    act("takeover", "start", SUCCESS, &parameters)?;
    act("takeover", "monitor", SUCCESS, &parameters)?;
    mistaken(&parameters)?;
    ensure!(lab.server.locks()? == before, "locks after a mistake");
    for _ in 0..2 {
        act("takeover", "stop", SUCCESS, &parameters)?;
        ensure!(lab.server.locks()?.is_empty(), "locks after a stop");
        act("takeover", "monitor", NOT_RUNNING, &parameters)?;
    }
    // The record says when all are back.
    act("takeover", "start", SUCCESS, &parameters)?;
    let after = lab.server.locks()?;
    ensure!(after == before, "{after:?} where {before:?} was held");
    ensure!(
        !Path::new(RECORD).exists(),
        "the record is there after a start"
    );
    interrupted(&parameters)?;
    let after = lab.server.locks()?;
    ensure!(after == before, "{after:?} where {before:?} was held");

    // The tool is gone: a stop releases nothing, and says so.
    let gone = [VIP, "nlmfo=/nonesuch"];
    act("takeover", "stop", ERROR, &gone)?;
    act("takeover", "monitor", SUCCESS, &gone)?;
    let warned = [VIP, "nlmfo=/nonesuch", "on_unconfirmed=warn"];
    act("takeover", "stop", SUCCESS, &warned)?;
    held.release()
}

/// Another resource with the VIP of the one that runs, and commands by hand that do not say which
/// one they mean: nothing happens to its locks.
fn mistaken(parameters: &[&str]) -> Result<()> {
    for (agent, other) in [
        ("takeover", "OCF_RESOURCE_INSTANCE=other"),
        ("grace", "OCF_RESOURCE_INSTANCE=third"),
    ] {
        act("grace", "start", SUCCESS, parameters)?;
        let both = [parameters, &["vip=10.77.0.2 10.77.0.1", other]].concat();
        let refused = act(agent, "start", NOT_CONFIGURED, &both)?;
        let expected = "10.77.0.1 belongs to the resource nfs1";
        ensure!(refused.stderr.contains(expected), "{}", refused.stderr);
        act(agent, "monitor", NOT_RUNNING, &both)?;
        act(agent, "stop", SUCCESS, &both)?;
        act("grace", "stop", SUCCESS, parameters)?;
    }
    // As from a shell.
    let mut by_hand = action("takeover", "stop", parameters)?;
    for variable in ["OCF_ROOT", "OCF_RESOURCE_INSTANCE"] {
        by_hand.env_remove(variable);
    }
    let finished = finish(&mut by_hand, "")?;
    ensure!(
        finished.code() == SUCCESS && finished.stderr.contains("nothing was done"),
        "{}: {}",
        finished.code(),
        finished.stderr
    );
    act("takeover", "monitor", SUCCESS, parameters).map(drop)
}

/// A start that the cluster manager ends in the middle. What it had not seen come back is in no
/// record of the stop that follows, so that the next grace lasts its full time.
fn interrupted(parameters: &[&str]) -> Result<()> {
    act("takeover", "stop", SUCCESS, parameters)?;
    let mut start = silent(action("takeover", "start", parameters)?).spawn()?;
    let used = format!("{RECORD}.used");
    until("a start that has its record", || {
        Ok(match Path::new(&used).exists() {
            true => Seen::Yes(()),
            false => Seen::No(format!("no {used}")),
        })
    })?;
    killpg(Pid::from_raw(i32::try_from(start.id())?), Signal::SIGKILL)?;
    start.wait()?;
    act("takeover", "stop", SUCCESS, parameters)?;
    for path in [RECORD, &used] {
        ensure!(!Path::new(path).exists(), "{path} is left");
    }
    let parameters = [parameters, &["grace=12s"]].concat();
    act("takeover", "start", SUCCESS, &parameters).map(drop)
}

/// A VIP's own server stops and starts, and one of its daemons dies.
fn own(context: &Context) -> Result<()> {
    let modules = ["-a", "nfsv4", "loop", "veth"];
    run(Command::new("modprobe").args(modules))?;
    let root = TestNode::root();
    root.write(NLM_GRACE_PERIOD, "40")?;
    let veth = "{ kind = \"veth\", bridge = \"br0\" }";
    let device = loop_device("mail")?;
    let (mail, text) = Own::describe(5, "mail", &device, veth)?;
    fs::write("/etc/nlmfo.toml", text)?;
    act(
        "server",
        "validate-all",
        SUCCESS,
        &[MAIL, "OCF_CHECK_LEVEL=10"],
    )?;
    tested("server", &[MAIL])?;

    let tool = Tool::new(&context.nlmfo, &root);
    act("server", "start", SUCCESS, &[MAIL])?;
    // It ends before the server: an unmount waits for it.
    let client = Client::join_bridge(&root, 2)?;
    let mounts = [mail.mount(&client, None)?, mail.mount(&client, Some(1))?];
    let held = [
        client.lock(&mounts[0], "three", Range::WHOLE, Mode::Write)?,
        client.lock(&mounts[1], "four", Range::WHOLE, Mode::Write)?,
    ];
    let nlmfo = context.nlmfo.to_str().context("no UTF-8")?;
    // A delegation may hide the lock of a client of NFSv4: the client looks after it then.
    let ensure_held = |when: &str| -> Result<()> {
        let listing = tool.json(exit::CONFIRMED, &["server", "exec", "mail", nlmfo, "locks"])?;
        let nlm = listing["locks"].as_array().map_or(0, Vec::len);
        let states = listing["nfs4"]["states"].as_array().into_iter().flatten();
        let covers = |state: &Value| state["kind"] == "lock" || state["kind"] == "delegation";
        let nfs4 = states.filter(|state| covers(state)).count();
        ensure!(nlm == 1 && nfs4 >= 1, "{when}: {listing}");
        Ok(())
    };
    ensure_held("before the stop")?;
    act("server", "stop", SUCCESS, &[MAIL])?;
    act("server", "start", SUCCESS, &[MAIL])?;
    ensure_held("after the start")?;

    // As a cluster manager recovers what fails.
    let status = mail.status(&tool)?;
    let daemons = status["daemons"].as_array().context("daemons")?;
    let mountd = daemons.iter().find(|one| one["program"] == "rpc.mountd");
    let id = mountd.and_then(|one| one["process"].as_i64());
    let id = i32::try_from(id.context("rpc.mountd's process")?)?;
    kill(Pid::from_raw(id), Signal::SIGKILL)?;
    let failed = act("server", "monitor", ERROR, &[MAIL])?;
    ensure!(
        failed.stderr.contains("rpc.mountd does not run"),
        "{}",
        failed.stderr
    );
    act("server", "stop", SUCCESS, &[MAIL])?;
    act("server", "start", SUCCESS, &[MAIL])?;
    ensure_held("after a failure")?;
    for lock in held {
        lock.release()?;
    }
    drop(mounts);
    drop(client);
    act("server", "stop", SUCCESS, &[MAIL])?;

    // The state that a crashed node leaves.
    let script = format!(
        "mount {device} /mnt\n\
         echo '{{\"node\":\"b\",\"boot\":\"1\",\"since\":1}}' > /mnt/.nlmfo/holder.json\n\
         umount /mnt"
    );
    run(Command::new("sh").args(["-ec", &script]))?;
    for parameters in [&[MAIL][..], &[MAIL, "fencing=no"]] {
        let refused = act("server", "start", NOT_INSTALLED, parameters)?;
        ensure!(refused.stderr.contains("node b"), "{}", refused.stderr);
    }
    act("server", "start", SUCCESS, &[MAIL, "fencing=yes"])?;
    act("server", "stop", SUCCESS, &[MAIL])?;
    Ok(())
}
