//! The kernel's own release by server address: netlink `NFSD_CMD_UNLOCK_IP` where it
//! exists (7.2), else `/proc/fs/nfsd/unlock_ip`.
//!
//! Its success means nothing (see [`choose`](super::choose)), and it acts on **all**
//! network namespaces. The address is the server's, never a client's: the VIP of the
//! job is all that is ever given to it.

use std::net::IpAddr;
use std::time::Instant;

use super::{Error, Job, Method, MethodKind, Report, blocking};
use crate::kernel::netlink::{Command, NfsdNetlink};
use crate::kernel::nfsd::{Control, Nfsd, NfsdError};

#[derive(Clone, Copy, Debug)]
pub struct UnlockIp;

impl Method for UnlockIp {
    fn kind(&self) -> MethodKind {
        MethodKind::UnlockIp
    }

    async fn release(&self, job: &Job<'_>) -> Result<Report, Error> {
        let start = Instant::now();
        let vip = job.vip;
        let action = blocking(move || unlock(vip)).await?;
        Ok(Report {
            method: self.kind(),
            action,
            hosts: Vec::new(),
            took: start.elapsed(),
        })
    }
}

fn unlock(vip: IpAddr) -> Result<String, Error> {
    let nfsd = Nfsd::mounted()?;
    let path = nfsd.path(Control::UnlockIp);
    if nfsd.threads()? == 0 {
        return Err(NfsdError::Stopped(path).into());
    }
    if let Ok(netlink) = NfsdNetlink::open()
        && netlink.offers(Command::UnlockIp)
    {
        netlink.unlock_ip(vip)?;
        return Ok(format!("netlink NFSD_CMD_UNLOCK_IP {vip}"));
    }
    nfsd.write_address(Control::UnlockIp, vip)?;
    Ok(format!("wrote {vip} to {}", path.display()))
}
