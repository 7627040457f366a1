//! The grace gate's life: devices that appear, a lockd that restarts, processes of the
//! tool that are killed. The window holds through all of it.

use std::cell::Cell;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use serde_json::Value;

use super::{Context, End, Kernels, Scenario};
use crate::guest::command::run;
use crate::guest::gated::{
    ensure_answers, ensure_gone, ensure_one_filter_each, filters_on, kill_all, open, window,
};
use crate::guest::handles::FileHandle;
use crate::guest::lab::Lab;
use crate::guest::locker::Range;
use crate::guest::node::TestNode;
use crate::guest::raw::{RawNet, address};
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};
use crate::guest::wire::{Answer, Ask, Caller, Datagrams, Stream};
use crate::guest::wired::{GRANTED, OTHER, REFUSED, VIP, VIP6};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "gate-devices",
        claim: "a device that appears during a window is covered, whatever its type; so is lo",
        run: devices,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "gate-lockd-restart",
        claim: "a restart of lockd during a window, with its own grace, causes no wrong grant or refusal",
        run: lockd_restart,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "gate-killed",
        claim: "a window holds, ends in time and is cleaned up even if every nlmfo process is killed",
        run: killed,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "gate-takes-over",
        claim: "a second window after a kill takes over the gate with all its counts",
        run: takes_over,
        kernels: Kernels::One("gate-killed leaves a gate to another process on every kernel"),
        ..Scenario::DEFAULT
    },
];

const NEW: Ask = Ask::NmLock { reclaim: false };
const RECLAIM: Ask = Ask::NmLock { reclaim: true };

/// A server, raw clients, and one file that each question locks another part of.
struct Scene {
    lab: Lab,
    net: RawNet,
    file: FileHandle,
    asked: Cell<u64>,
}

impl Scene {
    fn up() -> Result<Scene> {
        Self::of(Lab::up(&[VIP, OTHER, VIP6], 0)?)
    }

    fn of(lab: Lab) -> Result<Scene> {
        let net = RawNet::join(&lab.server)?;
        let file = net.file(&lab.server, lab.vips[1], "file")?;
        Ok(Scene {
            lab,
            net,
            file,
            asked: Cell::new(0),
        })
    }

    /// The answer to one NLM v4 call that a new client sends from `source` in `place`.
    fn ask_from(
        &self,
        node: &TestNode,
        source: Option<IpAddr>,
        vip: IpAddr,
        transport: Transport,
        ask: Ask,
    ) -> Result<Answer> {
        self.asked.set(self.asked.get() + 1);
        let range = Range::new(10 * self.asked.get(), 5);
        let caller = Caller::new(node.name(), NlmVersion::V4);
        let call = caller.call(ask, &self.file, range)?;
        let peer = self.net.lockd(vip, NlmVersion::V4, transport)?;
        match transport {
            Transport::Tcp => Stream::connect(node, source, peer)?.ask(&call),
            Transport::Udp => Datagrams::connect(node, source, peer)?.ask(&call),
        }
        .with_context(|| format!("{ask:?} from {} to {peer} over {transport}", node.name()))
    }

    /// Asks by both transports for a new lock and for a reclaim.
    fn ensure_in_grace(&self, node: &TestNode, source: Option<IpAddr>, vip: IpAddr) -> Result<()> {
        for transport in [Transport::Tcp, Transport::Udp] {
            for (ask, expected) in [(NEW, REFUSED), (RECLAIM, GRANTED)] {
                let answer = self.ask_from(node, source, vip, transport, ask)?;
                ensure!(
                    answer == expected,
                    "{ask:?} from {} to {vip} over {transport}: {answer:?}",
                    node.name()
                );
            }
        }
        Ok(())
    }
}

/// Waits until the gate is on a device, as it is soon after the device appears.
fn await_cover(device: &str) -> Result<()> {
    until(&format!("the gate on {device}"), || {
        Ok(match filters_on(device)? {
            1 => Seen::Yes(()),
            filters => Seen::No(format!("{filters} filters")),
        })
    })
}

fn devices(context: &Context) -> Result<End> {
    /// Of the server's ends of the late networks.
    const MACVLAN: &str = "02:00:00:00:00:50";
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let lab = Lab::up(&[VIP, OTHER, VIP6], 0)?;
    open(&tool, &[VIP, OTHER])?;

    // A port of the bridge.
    let scene = Scene::of(lab)?;
    await_cover("vraw")?;
    let vip = scene.lab.vips[0];
    scene.ensure_in_grace(scene.net.node(), Some(address(1, vip)), vip)?;

    // A network of its own, and a macvlan in front of the same device.
    let late = TestNode::create("late")?;
    root.ip(&format!(
        "link add vlate type veth peer name eth0 netns {pid}\n\
         link set vlate up\n\
         addr add 10.79.0.254/24 dev vlate\n\
         link add mvlate link vlate address {MACVLAN} type macvlan mode bridge\n\
         link set mvlate up\n\
         addr add 10.80.0.254/24 dev mvlate\n\
         link add dummylate type dummy\n\
         link set dummylate up\n",
        pid = late.pid()
    ))?;
    late.ip(&format!(
        "link set eth0 up\n\
         addr add 10.79.0.1/24 dev eth0\n\
         addr add 10.80.0.1/24 dev eth0\n\
         neigh add 10.80.0.254 lladdr {MACVLAN} dev eth0 nud permanent\n\
         route add {VIP} via 10.79.0.254\n\
         route add {OTHER} via 10.80.0.254\n"
    ))?;
    for device in ["vlate", "mvlate", "dummylate"] {
        await_cover(device)?;
    }
    scene.ensure_in_grace(&late, Some("10.79.0.1".parse()?), vip)?;
    scene.ensure_in_grace(&late, Some("10.80.0.1".parse()?), scene.lab.vips[1])?;

    // The server itself.
    scene.ensure_in_grace(&root, None, vip)?;

    // What came by the bridge's port passed the gate twice, on the bridge too, and by
    // the macvlan's lower device as well; it was counted as one call each time.
    let opened = open(&tool, &[VIP])?;
    let covered = opened["devices"]["covered"].as_array();
    let covered: Vec<&Value> = covered.into_iter().flatten().collect();
    for device in ["lo", "br0", "vraw", "vlate", "mvlate", "dummylate"] {
        ensure!(
            covered.iter().any(|one| one["name"] == device),
            "{device} is not covered: {opened}"
        );
    }
    ensure_one_filter_each()?;
    for (vip, ways) in [(VIP, 3), (OTHER, 1)] {
        let window = window(&tool, vip)?;
        ensure_answers(&window, 2 * ways, 2 * ways)?;
        ensure!(
            window["gate"]["new_locks"] == 2 * ways && window["gate"]["reclaims"] == 2 * ways,
            "{window}"
        );
    }
    Ok(End::Pass)
}

fn lockd_restart(context: &Context) -> Result<End> {
    const ROUNDS: usize = 10;
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut scene = Scene::up()?;
    open(&tool, &[VIP, VIP6])?;
    kill_all()?;
    let kinds = [
        (0, Transport::Tcp),
        (0, Transport::Udp),
        (2, Transport::Tcp),
        (2, Transport::Udp),
    ];
    let ports = |scene: &Scene| -> Result<Vec<u16>> {
        kinds
            .iter()
            .map(|(vip, transport)| {
                let peer = (scene.net).lockd(scene.lab.vips[*vip], NlmVersion::V4, *transport);
                Ok(peer?.port())
            })
            .collect()
    };
    let before = ports(&scene)?;

    // Calls that a client sends once more when lockd is there again.
    let vip = scene.lab.vips[0];
    let source = Some(address(2, vip));
    let lockd = scene.net.lockd(vip, NlmVersion::V4, Transport::Udp)?;
    let datagrams = Datagrams::connect(scene.net.node(), source, lockd)?;
    let caller = Caller::new("again", NlmVersion::V4);
    let new = caller.call(NEW, &scene.file, Range::new(5, 1))?;
    let reclaim = caller.call(RECLAIM, &scene.file, Range::new(8, 1))?;
    let ensure_again = |when: &str| -> Result<()> {
        for (call, expected) in [(&new, REFUSED), (&reclaim, GRANTED)] {
            let answer = datagrams.ask(call)?;
            ensure!(answer == expected, "call {}, {when}: {answer:?}", call.xid);
        }
        Ok(())
    };
    ensure_again("before the restart")?;

    // A long window: the test ends it, between two calls.
    root.write("/proc/sys/fs/nfs/nlm_grace_period", "90")?;
    scene.lab.server.stop_nfsd()?;
    run(root.command("rpc.nfsd").args(["--tcp", "--udp", "4"]))?;
    scene.net.look_up_ports(&scene.lab.server)?;
    let after = ports(&scene)?;
    ensure!(
        before
            .iter()
            .zip(&after)
            .all(|(before, after)| before != after),
        "lockd still listens where it did: {before:?}, {after:?}"
    );
    for kernels_grace in [true, false] {
        if !kernels_grace {
            scene.lab.server.end_grace()?;
        }
        datagrams.redirect(scene.net.lockd(vip, NlmVersion::V4, Transport::Udp)?)?;
        ensure_again(match kernels_grace {
            true => "in the kernel's grace",
            false => "after it",
        })?;
        for _ in 0..ROUNDS {
            for vip in [0, 2].map(|index| scene.lab.vips[index]) {
                let source = Some(address(1, vip));
                scene
                    .ensure_in_grace(scene.net.node(), source, vip)
                    .with_context(|| format!("kernel in grace: {kernels_grace}"))?;
            }
        }
    }
    // By TCP and UDP, in the kernel's grace and after it. What was sent again is the
    // same call for the gate, and another one for lockd.
    let calls = 4 * ROUNDS as u64;
    for (vip, before, again) in [(VIP, 1, 2), (VIP6, 0, 0)] {
        let window = window(&tool, vip)?;
        ensure_answers(&window, calls + before + again, calls + before + again)?;
        ensure!(
            window["gate"]["left_to_kernel_grace"] == calls
                && window["gate"]["new_locks"] == calls / 2 + before
                && window["gate"]["reclaims"] == calls / 2 + before,
            "{window}"
        );
    }
    Ok(End::Pass)
}

fn killed(context: &Context) -> Result<End> {
    const LASTING: Duration = Duration::from_secs(20);
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let scene = Scene::up()?;
    let (vip, source) = (scene.lab.vips[0], Some(address(1, scene.lab.vips[0])));
    let for_so_long = format!("{}s", LASTING.as_secs());
    let begun = Instant::now();
    tool.expect(
        exit::CONFIRMED,
        &["grace", "--vip", VIP, "--for", &for_so_long],
    )?;
    kill_all()?;
    scene.ensure_in_grace(scene.net.node(), source, vip)?;
    until("a new lock after the window", || {
        let answer = scene.ask_from(scene.net.node(), source, vip, Transport::Tcp, NEW)?;
        Ok(match answer {
            GRANTED => Seen::Yes(()),
            REFUSED => Seen::No("refused".into()),
            other => anyhow::bail!("{other:?}"),
        })
    })?;
    ensure!(
        begun.elapsed() >= LASTING,
        "granted after {:?} of a window of {LASTING:?}",
        begun.elapsed()
    );
    let answer = scene.ask_from(scene.net.node(), source, vip, Transport::Tcp, RECLAIM)?;
    ensure!(answer == REFUSED, "a reclaim after the window: {answer:?}");

    // The window is over, but its gate is still in the kernel: the next command cleans up.
    ensure_one_filter_each()?;
    let listed = tool.json(exit::CONFIRMED, &["grace", "--list"])?;
    ensure_gone()?;
    let ended = &listed["ended"]["windows"][0];
    ensure!(
        ended["vip"] == VIP && ended["lockd"]["reclaimed"] == 2,
        "{listed}"
    );

    // And so does cleanup, in the middle of a window.
    tool.expect(exit::CONFIRMED, &["grace", "--vip", VIP, "--for", "300s"])?;
    kill_all()?;
    ensure_one_filter_each()?;
    tool.expect(exit::CONFIRMED, &["cleanup"])?;
    ensure_gone()?;
    Ok(End::Pass)
}

fn takes_over(context: &Context) -> Result<End> {
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let scene = Scene::up()?;
    let [first, second] = [0, 2].map(|index| scene.lab.vips[index]);
    let ask_all = |vip| scene.ensure_in_grace(scene.net.node(), Some(address(1, vip)), vip);
    open(&tool, &[VIP])?;
    ask_all(first)?;
    let before = window(&tool, VIP)?;
    kill_all()?;
    open(&tool, &[VIP6])?;
    ensure_one_filter_each()?;
    let after = window(&tool, VIP)?;
    for part in ["gate", "lockd", "length_ms"] {
        ensure!(before[part] == after[part], "{before} became {after}");
    }
    ask_all(second)?;
    ask_all(first)?;
    ensure_answers(&window(&tool, VIP6)?, 2, 2)?;
    ensure_answers(&window(&tool, VIP)?, 4, 4)?;
    Ok(End::Pass)
}
