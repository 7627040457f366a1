//! nlmfo's own grace, for one VIP: the gate on this kernel.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};

use super::{Check, Done, for_both};
use crate::bed::command::Finished;
use crate::bed::range::Range;
use crate::exit::Exit;
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::table::Mode;
use crate::probe::stage::{Family, Stage, answered};
use crate::rpc::nlm::Status;

pub fn checks() -> Vec<Check> {
    let mut checks: Vec<Check> = for_both(|family| {
        Check::new(
            format!("gate-{family}"),
            "in a VIP's window its new locks are refused and its reclaims granted, over TCP and \
             UDP, by NLM v3 and v4; another VIP's new locks are granted",
            move |stage| window(stage, family),
        )
    })
    .collect();
    checks.push(Check::new(
        "gate-waiter",
        "a request that waited before the window is not granted in it",
        waiter,
    ));
    checks
}

/// Does `work` in a window of the VIP's: its answer, or why this node has no window.
fn in_window(
    stage: &mut Stage,
    vip: IpAddr,
    work: impl FnOnce(&mut Stage) -> Result<()>,
) -> Result<Done> {
    let vip = vip.to_string();
    let Finished { status, stderr, .. } = stage.nlmfo(&["grace", "--vip", &vip, "--for", "90s"])?;
    if status.code() == Some(Exit::Lacking as i32) {
        return Ok(Done::Unsupported(stderr.trim().to_owned()));
    }
    ensure!(
        status.success(),
        "nlmfo grace --vip {vip}: {}",
        stderr.trim()
    );
    let worked = work(stage).context("in the window");
    let ended = stage.nlmfo_done(&["grace", "--vip", &vip, "--end"]);
    worked.and(ended)?;
    Ok(Done::Shown)
}

fn window(stage: &mut Stage, family: Family) -> Result<Done> {
    let [vip, other] = family.vips();
    let file = stage.file(vip)?;
    let range = |slot: usize| Range::new(10 * slot as u64, 5);
    // A connection that is older than the gate cannot be followed, and may be closed.
    let mut older = stage.client(vip, NlmVersion::V4, Transport::Tcp)?;
    let mut clients = Vec::new();
    let done = in_window(stage, vip, |stage| {
        for version in [NlmVersion::V3, NlmVersion::V4] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let name = format!("by NLM {version} over {transport}");
                clients.push((name, stage.client(vip, version, transport)?));
            }
        }
        for (slot, (name, client)) in clients.iter_mut().enumerate() {
            let status = client.lock(&file, 7, range(slot), Mode::Write)?;
            let what = format!("a new lock {name}");
            answered(&what, status, Status::DeniedGracePeriod)?;
            let status = client.reclaim(&file, 7, range(slot), Mode::Write)?;
            answered(&format!("a reclaim {name}"), status, Status::Granted)?;
        }
        if let Ok(status) = older.lock(&file, 7, range(50), Mode::Write) {
            let what = "a new lock over an older connection";
            answered(what, status, Status::DeniedGracePeriod)?;
        }
        let mut bystander = stage.client(other, NlmVersion::V4, Transport::Tcp)?;
        let status = bystander.lock(&file, 7, range(60), Mode::Write)?;
        answered("another VIP's new lock", status, Status::Granted)
    })?;
    let mut afterwards = || -> Result<()> {
        for (slot, (name, client)) in clients.iter_mut().enumerate() {
            let status = client.lock(&file, 7, range(slot + 10), Mode::Write)?;
            answered(&format!("a new lock {name}"), status, Status::Granted)?;
        }
        for (name, client) in &mut clients {
            let status = client.reclaim(&file, 7, range(70), Mode::Read)?;
            let what = format!("a reclaim {name}");
            answered(&what, status, Status::DeniedGracePeriod)?;
        }
        Ok(())
    };
    afterwards().context("after the window")?;
    Ok(done)
}

fn waiter(stage: &mut Stage) -> Result<Done> {
    let [vip, other] = Family::Ipv4.vips();
    let file = stage.file(vip)?;
    let mut holder = stage.client(other, NlmVersion::V4, Transport::Tcp)?;
    holder.granted(|raw| raw.lock(&file, 1, Range::WHOLE, Mode::Write))?;
    let mut waiter = stage.client(vip, NlmVersion::V4, Transport::Tcp)?;
    let status = waiter.wait(&file, 2, Range::WHOLE, Mode::Write)?;
    answered("a LOCK that has to wait", status, Status::Blocked)?;
    if stage.held(vip)?.waiters.is_empty() {
        return Ok(Done::Unsupported(
            "this kernel queues no NLM request".into(),
        ));
    }
    in_window(stage, vip, |stage| {
        let held = stage.held(vip)?;
        ensure!(held.is_empty(), "{held} when it had opened");
        holder.granted(|raw| raw.unlock(&file, 1, Range::WHOLE))?;
        let held = stage.held(vip)?;
        ensure!(held.is_empty(), "{held} when the lock was freed");
        Ok(())
    })
}
