//! The kernel's own release methods: by server address, by filesystem, by a client's reboot.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail, ensure};

use super::{Check, Done, for_both};
use crate::kernel::netlink::{Command, NetlinkError, NfsdNetlink};
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::table::Mode;
use crate::probe::fixture::{Family, Fixture};
use crate::probe::held::Holding;
use crate::probe::known::Symptom;
use crate::rpc::nsm;
use crate::testbed::range::Range;
use crate::testbed::wait::{Seen, until_for};

const UNLOCK_IP: &str = "/proc/fs/nfsd/unlock_ip";
const UNLOCK_FILESYSTEM: &str = "/proc/fs/nfsd/unlock_filesystem";

/// The interface by which the kernel releases an address.
#[derive(Clone, Copy)]
enum By {
    Procfs,
    Netlink,
}

pub fn checks() -> Vec<Check> {
    let mut checks = Vec::new();
    for (by, name, means) in [
        (By::Procfs, "procfs", "/proc/fs/nfsd/unlock_ip"),
        (By::Netlink, "netlink", "netlink NFSD_CMD_UNLOCK_IP"),
    ] {
        checks.extend(for_both(|family| {
            Check::new(
                format!("unlock-{name}-{family}"),
                format!(
                    "{means} releases exactly one {family} VIP's locks, waiters and shares, and reports it \
             correctly"
                ),
                move |fixture| unlock_ip(fixture, family, by),
            )
        }));
    }
    checks.push(Check::new(
        "unlock-ip-bad-strings",
        "unlock_ip refuses invalid addresses, and releases nothing for them or for another address",
        bad_strings,
    ));
    for (by, name, means) in [
        (By::Procfs, "procfs", "/proc/fs/nfsd/unlock_filesystem"),
        (By::Netlink, "netlink", "netlink NFSD_CMD_UNLOCK_FILESYSTEM"),
    ] {
        checks.push(Check::new(
            format!("unlock-filesystem-{name}"),
            format!("{means} releases exactly one filesystem's locks, waiters and shares"),
            move |fixture| unlock_filesystem(fixture, by),
        ));
    }
    checks.extend(for_both(|family| {
        Check::new(
            format!("reboot-notice-{family}"),
            "a client's SM_NOTIFY releases its locks through every VIP, and no other client's",
            move |fixture| reboot_notice(fixture, family),
        )
    }));
    checks
}

impl By {
    fn unlock(self, fixture: &Fixture, vip: IpAddr) -> Result<()> {
        let node = fixture.server.node();
        match self {
            By::Procfs => node.write(UNLOCK_IP, &format!("{vip}\n")),
            By::Netlink => node.within(|| Ok(NfsdNetlink::open()?.unlock_ip(vip)?)),
        }
    }

    fn unlock_export(self, fixture: &Fixture) -> Result<()> {
        match self {
            By::Procfs => fixture.unlock_export(),
            By::Netlink => fixture
                .server
                .node()
                .within(|| Ok(NfsdNetlink::open()?.unlock_filesystem(&fixture.export_path())?)),
        }
    }

    /// Why this kernel does not have it.
    fn missing(self, fixture: &Fixture, command: Command) -> Result<Option<String>> {
        let node = fixture.server.node();
        match self {
            By::Procfs => {
                let file = match command {
                    Command::UnlockIp => UNLOCK_IP,
                    _ => UNLOCK_FILESYSTEM,
                };
                let is_missing = !node.path(file).exists();
                Ok(is_missing.then(|| format!("this kernel has no {file}")))
            }
            By::Netlink => node.within(|| {
                Ok(match NfsdNetlink::open() {
                    Ok(netlink) if netlink.offers(command) => None,
                    Ok(_) => Some("this kernel's nfsd has no such command (requires 7.2)".into()),
                    Err(error @ NetlinkError::NoFamily) => Some(error.to_string()),
                    Err(error) => return Err(error.into()),
                })
            }),
        }
    }
}

fn unlock_ip(fixture: &mut Fixture, family: Family, by: By) -> Result<Done> {
    if let Some(reason) = by.missing(fixture, Command::UnlockIp)? {
        return Ok(Done::Unsupported(reason));
    }
    let [vip, other] = family.vips();
    let (mine, others) = (Holding::take(fixture, vip)?, Holding::take(fixture, other)?);
    let said = by.unlock(fixture, vip);
    let (left, others_left) = (fixture.held(vip)?, fixture.held(other)?);
    ensure!(
        others_left == others.held,
        "it released locks of another address: {} became {others_left}",
        others.held
    );
    match said {
        Ok(()) if left.is_empty() => Ok(Done::Shown),
        Ok(()) if left == mine.held => {
            Err(Error::from(Symptom::NothingReleased).context(format!("{left} remain")))
        }
        Ok(()) => bail!("it reported success, but {left} of {} remain", mine.held),
        Err(error) if left.is_empty() => bail!("it released everything but reported {error:#}"),
        Err(error) if left == mine.held && is_invalid(&error) && vip.is_ipv6() => {
            Err(Error::from(Symptom::Ipv6Refused).context(format!("{error:#}; {left} remain")))
        }
        Err(error) => bail!("it was refused: {error:#}; {left} remain"),
    }
}

/// Whether the kernel said EINVAL.
fn is_invalid(error: &Error) -> bool {
    (error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>()))
    .any(|error| error.kind() == io::ErrorKind::InvalidInput)
}

fn bad_strings(fixture: &mut Fixture) -> Result<Done> {
    if let Some(reason) = By::Procfs.missing(fixture, Command::UnlockIp)? {
        return Ok(Done::Unsupported(reason));
    }
    let [vip, other] = Family::Ipv4.vips();
    let holding = Holding::take(fixture, vip)?;
    let strings = [
        vip.to_string(),
        "\n".into(),
        "nfs1\n".into(),
        "10.77\n".into(),
        format!("{vip}:2049\n"),
        format!("{vip}/32\n"),
        format!("{vip} {other}\n"),
        "::\n".into(),
        "fd77::1::2\n".into(),
    ];
    let taken: Vec<&String> = strings
        .iter()
        .filter(|text| fixture.server.node().write(UNLOCK_IP, text).is_ok())
        .collect();
    ensure!(taken.is_empty(), "it accepted {taken:?} as an address");
    // Unused addresses may be accepted, but must release nothing.
    for text in ["10.77.0.99\n", "0.0.0.0\n"] {
        let _ = fixture.server.node().write(UNLOCK_IP, text);
    }
    let left = fixture.held(vip)?;
    ensure!(
        left == holding.held,
        "none was the address of this VIP, but {} became {left}",
        holding.held
    );
    Ok(Done::Shown)
}

fn unlock_filesystem(fixture: &mut Fixture, by: By) -> Result<Done> {
    if let Some(reason) = by.missing(fixture, Command::UnlockFilesystem)? {
        return Ok(Done::Unsupported(reason));
    }
    let [vip, other] = Family::Ipv4.vips();
    let _here = [Holding::take(fixture, vip)?, Holding::take(fixture, other)?];
    let elsewhere = fixture.file_elsewhere(vip)?;
    let mut client = fixture.client(vip, NlmVersion::V4, Transport::Tcp)?;
    client.granted(|raw| raw.lock(&elsewhere, 7, Range::WHOLE, Mode::Write))?;
    let address = fixture.client_address(vip);

    by.unlock_export(fixture)?;
    let left = fixture.held(other)?;
    ensure!(left.is_empty(), "{left} remain on that filesystem");
    let left = fixture.held(vip)?;
    ensure!(
        left.locks.len() == 1
            && left.locks[0].0.client == address
            && left.waiters.is_empty()
            && left.shares.is_empty(),
        "expected one lock on the other filesystem to remain, found {left}"
    );
    Ok(Done::Shown)
}

fn reboot_notice(fixture: &mut Fixture, family: Family) -> Result<Done> {
    const DEADLINE: Duration = Duration::from_secs(10);
    let [vip, other] = family.vips();
    let file = fixture.file(vip)?;
    let mut bystander = fixture.client(vip, NlmVersion::V4, Transport::Tcp)?;
    bystander.granted(|raw| raw.lock(&file, 7, Range::new(100, 5), Mode::Write))?;
    let kept = fixture.held(vip)?;
    let mut clients = [
        fixture.client(vip, NlmVersion::V4, Transport::Tcp)?,
        fixture.same_client(vip, NlmVersion::V3, Transport::Udp)?,
        fixture.same_client(other, NlmVersion::V4, Transport::Tcp)?,
    ];
    for (slot, client) in clients.iter_mut().enumerate() {
        let range = Range::new(10 * slot as u64, 5);
        client.granted(|raw| raw.lock(&file, 7, range, Mode::Write))?;
    }
    let address = fixture.client_address(vip);
    let notified = fixture.clients_node().within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let name = address.to_string();
        let tell = nsm::tell(vip, address, &name, 3, DEADLINE);
        runtime.block_on(tell).context("SM_NOTIFY to the server")
    })?;
    ensure!(notified, "the server's statd was not found");
    until_for(DEADLINE, "the client's locks to go", || {
        let (left, elsewhere) = (fixture.held(vip)?, fixture.held(other)?);
        Ok(match left == kept && elsewhere.is_empty() {
            true => Seen::Yes(()),
            false => Seen::No(format!(
                "{left} through one VIP and {elsewhere} through the other"
            )),
        })
    })?;
    Ok(Done::Shown)
}
