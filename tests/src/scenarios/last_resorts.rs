//! `nlmfo failover --phase release` where no exact method is left: clients behind link-local addresses,
//! for which FREE_ALL cannot be called, and which `unlock_ip` does not match, on every kernel (IPv6
//! before 7.2; from then on it compares the link too, and an address alone names none).

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::Transport;

use super::release::{arguments, confirmed};
use super::{Context, End, Kernels, Scenario};
use crate::guest::client::{Client, HeldLock, Mount};
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Outcome, Range};
use crate::guest::report::Releases;
use crate::guest::tool::{Tool, exit};
use crate::guest::traces::Traces;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "release-reboot-notice",
        claim: "--reboot-notice releases what no exact method can, and no other client's locks",
        run: reboot_notice,
        kernels: Kernels::One("counters-released releases by SM_NOTIFY on every kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "release-unlock-filesystem",
        claim: "--unlock-filesystem releases what no exact method can, and reports other VIPs that it changed",
        run: unlock_filesystem,
        kernels: Kernels::One("counters-released releases by unlock_filesystem on every kernel"),
        ..Scenario::DEFAULT
    },
];

const VIP: &str = "fe80::77";
const OTHER_VIP: &str = "10.77.0.1";

/// A server with a link-local VIP. One client holds a lock through it, another one
/// through an ordinary VIP.
struct LinkLocal {
    _held: [HeldLock; 2],
    _mount: Mount,
    vip: IpAddr,
    lab: Lab,
}

impl LinkLocal {
    fn up() -> Result<LinkLocal> {
        let lab = Lab::up(&[OTHER_VIP], 2)?;
        let vip = VIP.parse()?;
        lab.server.add_vip(vip)?;
        let client = &lab.clients[0].client;
        client.node().ip("addr add fe80::11/64 dev eth0 nodad\n")?;
        let mount = client.mount(&lab.server, vip, Transport::Tcp)?;
        let held = [
            client.lock(&mount, "link-local", Range::WHOLE, Mode::Write)?,
            lab.clients[1].lock("ordinary", Range::new(0, 5))?,
        ];
        Ok(LinkLocal {
            _held: held,
            _mount: mount,
            vip,
            lab,
        })
    }

    /// Without an option, the tool uses only exact methods, and says so.
    fn ensure_not_released_unasked(&self, tool: &Tool<'_>) -> Result<()> {
        let arguments = arguments(&[self.vip], &[]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let report = Releases::of(tool.json(exit::NOT_CONFIRMED, &arguments)?)?;
        let release = report.vip(self.vip)?;
        ensure!(
            release.methods().last() == Some(&"free_all") && release.remaining.len() == 1,
            "one lock is to remain after FREE_ALL: {release:#?}"
        );
        self.ensure_held(2)
    }

    /// Where the kernel would revoke an NFSv4 lock, the filesystem is left alone.
    fn ensure_no_nfs4_lock_is_revoked(&self, tool: &Tool<'_>, release: &[&str]) -> Result<()> {
        let client = Client::join(&self.lab.server, 4)?;
        let mount = client.mount_nfs4(&self.lab.server, OTHER_VIP.parse()?, 2)?;
        // lockd has it open, so that there is no delegation of it.
        let lock = client.locker()?;
        let range = Range::new(70, 5);
        let outcome = lock.lock(&mount.path("ordinary"), range, Mode::Read)?;
        let states = &tool.json(exit::CONFIRMED, &["locks", "--nfs", "4"])?["nfs4"]["states"];
        let held = states.as_array().is_some_and(|states| {
            states
                .iter()
                .any(|state| state["kind"] == "lock" && state["standing"] == "held")
        });
        ensure!(outcome == Outcome::Held && held, "{outcome:?}: {states}");
        let report = tool.json(exit::NOT_CONFIRMED, release)?;
        let blockers = report["vips"][0]["blockers"].to_string();
        ensure!(
            blockers.contains("nlmfo release --client 10.77.1.4"),
            "{report}"
        );
        tool.json(
            exit::CONFIRMED,
            &["release", "--client", "10.77.1.4", "--force"],
        )?;
        self.ensure_held(2)
    }

    fn ensure_held(&self, expected: usize) -> Result<()> {
        let held = self.lab.server.locks()?;
        ensure!(
            held.len() == expected,
            "{expected} locks are to be held, the server's list is {held:?}"
        );
        Ok(())
    }
}

fn reboot_notice(context: &Context) -> Result<End> {
    let lab = LinkLocal::up()?;
    let node = lab.lab.server.node();
    let tool = Tool::new(&context.nlmfo, node);
    let before = Traces::of(node)?;
    lab.ensure_not_released_unasked(&tool)?;
    let report = confirmed(&tool, &[lab.vip], &["--reboot-notice"])?;
    ensure_last_method(&report, lab.vip, "reboot")?;
    Traces::of(node)?.ensure_as(&before)?;
    lab.ensure_held(1)?;
    Ok(End::Pass)
}

fn unlock_filesystem(context: &Context) -> Result<End> {
    let lab = LinkLocal::up()?;
    let node = lab.lab.server.node();
    let tool = Tool::new(&context.nlmfo, node);
    let before = Traces::of(node)?;
    lab.ensure_not_released_unasked(&tool)?;
    let export = lab.lab.server.export().to_string_lossy();
    let arguments = arguments(&[lab.vip], &["--unlock-filesystem", &export]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    lab.ensure_no_nfs4_lock_is_revoked(&tool, &arguments)?;
    // The other VIP's lock is on the same filesystem: that is no clean release.
    let report = Releases::of(tool.json(exit::NOT_CONFIRMED, &arguments)?)?;
    ensure_last_method(&report, lab.vip, "filesystem")?;
    let release = report.vip(lab.vip)?;
    ensure!(
        release.verdict == "confirmed" && release.remaining.is_empty(),
        "the VIP's own release: {release:#?}"
    );
    let other = (report.other_vips.iter())
        .find(|other| other.vip.to_string() == OTHER_VIP)
        .context("the other VIP is not in the report")?;
    ensure!(other.fate == "disturbed", "the other VIP: {other:?}");
    Traces::of(node)?.ensure_as(&before)?;
    lab.ensure_held(0)?;
    Ok(End::Pass)
}

/// The lock was released by this method, after the exact ones were tried.
fn ensure_last_method(report: &Releases, vip: IpAddr, method: &str) -> Result<()> {
    let release = report.vip(vip)?;
    let methods = release.methods();
    ensure!(
        methods.ends_with(&["free_all", method]) && release.released.len() == 1,
        "one lock was to be released by {method} after FREE_ALL: {release:#?}"
    );
    Ok(())
}
