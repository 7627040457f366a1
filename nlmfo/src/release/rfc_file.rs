//! `/proc/fs/nfsd/nlm_unlock`, the file that the RFC for lock failover proposed and
//! that some vendors' kernels carry: the VIP is written to it.

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use super::{Attempt, Error, Facts, Job, Method, Reach, Report, Suitability, blocking};
use crate::kernel::nfsd::{Control, Nfsd};
use crate::observe::counters::Counters;
use crate::observe::host::NlmVersion;

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub struct RfcFile;

impl Method for RfcFile {
    fn name(&self) -> &'static str {
        "nlm_unlock"
    }

    fn id(&self) -> &'static str {
        "rfc_file"
    }

    fn reach(&self) -> Reach {
        Reach::VipOfAllNamespaces
    }

    fn suitability(&self, facts: &Facts) -> Suitability {
        match facts.rfc_file {
            true => Suitability::Fit,
            false => Suitability::Absent,
        }
    }

    fn merit(&self, _: &Facts, _: &[Attempt]) -> Option<String> {
        Some("this kernel has the RFC's nlm_unlock".into())
    }

    /// Patched kernels only. No probe counts what the patch calls.
    fn dropped(&self, seen: &Counters, _: NlmVersion) -> u64 {
        seen.released.unlock_ip + seen.released.other
    }

    fn release<'a>(&'a self, job: &'a Job<'a>) -> LocalBoxFuture<'a, Result<Report, Error>> {
        let vip = job.vip;
        let write = move || {
            let nfsd = Nfsd::mounted()?;
            nfsd.write_address(Control::NlmUnlock, vip)?;
            let path = nfsd.path(Control::NlmUnlock);
            Ok(Report::whole(format!("wrote {vip} to {}", path.display())))
        };
        blocking(write).boxed_local()
    }
}
