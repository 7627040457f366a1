//! The kernel's own release by server address: netlink `NFSD_CMD_UNLOCK_IP` where it
//! exists (7.2), else `/proc/fs/nfsd/unlock_ip`.
//!
//! Its success proves nothing (see [`choose`](super::choose)), and it acts on **all** network
//! namespaces. The address is the server's, never a client's: only the VIP of the job is ever written.

use std::net::IpAddr;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use super::{Attempt, Error, Facts, Job, Method, Reach, Report, Suitability, blocking};
use crate::kernel::netlink::{Command, NfsdNetlink};
use crate::kernel::nfsd::{Control, Nfsd, NfsdError};
use crate::kernel::unlock_bug::Verdict;
use crate::observe::counters::Counters;
use crate::observe::host::NlmVersion;

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub struct UnlockIp;

impl Method for UnlockIp {
    fn name(&self) -> &'static str {
        "unlock_ip"
    }

    fn id(&self) -> &'static str {
        "unlock_ip"
    }

    fn reach(&self) -> Reach {
        Reach::VipOfAllNamespaces
    }

    fn suitability(&self, facts: &Facts) -> Suitability {
        let (netlink, file) = (facts.unlock_ip.netlink, facts.unlock_ip.file);
        if !netlink && !file {
            return Suitability::Unfit("this kernel has no unlock_ip".into());
        }
        if !netlink && facts.vip.is_ipv6() {
            let reason = "unlock_ip of this kernel accepts no IPv6 address";
            return Suitability::Unfit(reason.into());
        }
        Suitability::Fit
    }

    fn merit(&self, facts: &Facts, _: &[Attempt]) -> Option<String> {
        Some(match &facts.unlock_ip.verdict {
            Verdict::Unknown { reason } => {
                format!("unknown whether unlock_ip of this kernel works ({reason})")
            }
            // Tried anyway: reading code does not prove what it releases, and the locks are
            // checked in any case.
            Verdict::Broken { .. } => {
                "affected by CVE-2026-93231; trying anyway, the locks are checked again".into()
            }
            Verdict::Fixed { .. } => "unlock_ip of this kernel works".into(),
        })
    }

    fn dropped(&self, seen: &Counters, _: NlmVersion) -> u64 {
        seen.released.unlock_ip
    }

    fn release<'a>(&'a self, job: &'a Job<'a>) -> LocalBoxFuture<'a, Result<Report, Error>> {
        let vip = job.vip;
        blocking(move || unlock(vip).map(Report::whole)).boxed_local()
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
