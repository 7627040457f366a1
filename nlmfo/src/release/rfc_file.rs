//! `/proc/fs/nfsd/nlm_unlock`, the file that the RFC for lock failover proposed and
//! that some vendors' kernels carry: the VIP is written to it.

use std::time::Instant;

use super::{Error, Job, Method, MethodKind, Report, blocking};
use crate::kernel::nfsd::{Control, Nfsd};

#[derive(Clone, Copy, Debug)]
pub struct RfcFile;

impl Method for RfcFile {
    fn kind(&self) -> MethodKind {
        MethodKind::RfcFile
    }

    async fn release(&self, job: &Job<'_>) -> Result<Report, Error> {
        let start = Instant::now();
        let vip = job.vip;
        let action = blocking(move || {
            let nfsd = Nfsd::mounted()?;
            nfsd.write_address(Control::NlmUnlock, vip)?;
            Ok(format!(
                "wrote {vip} to {}",
                nfsd.path(Control::NlmUnlock).display()
            ))
        })
        .await?;
        Ok(Report {
            method: self.kind(),
            action,
            hosts: Vec::new(),
            took: start.elapsed(),
        })
    }
}
