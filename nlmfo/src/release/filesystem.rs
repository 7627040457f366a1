//! `/proc/fs/nfsd/unlock_filesystem`, for exports that the operator names.
//!
//! It releases every lock on the filesystem, including those of other addresses, and since
//! 6.9 the NFSv4 state too. So it is used only on request, and only for a filesystem that
//! leaves this node.

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use super::{Attempt, Error, Facts, Job, Method, Reach, Report, Suitability, blocking};
use crate::kernel::nfsd::Nfsd;
use crate::observe::counters::Counters;
use crate::observe::host::NlmVersion;

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub struct Filesystem;

impl Method for Filesystem {
    fn name(&self) -> &'static str {
        "unlock_filesystem"
    }

    fn id(&self) -> &'static str {
        "filesystem"
    }

    fn reach(&self) -> Reach {
        Reach::Filesystems
    }

    fn suitability(&self, facts: &Facts) -> Suitability {
        facts.filesystems.clone()
    }

    fn merit(&self, _: &Facts, _: &[Attempt]) -> Option<String> {
        Some("--unlock-filesystem was given".into())
    }

    fn dropped(&self, seen: &Counters, _: NlmVersion) -> u64 {
        seen.released.unlock_filesystem
    }

    fn release<'a>(&'a self, job: &'a Job<'a>) -> LocalBoxFuture<'a, Result<Report, Error>> {
        let paths = job.filesystems.to_vec();
        let unlock = move || {
            let nfsd = Nfsd::mounted()?;
            let mut released = Vec::new();
            for path in &paths {
                nfsd.unlock_filesystem(path)?;
                released.push(path.display().to_string());
            }
            let action = format!("unlock_filesystem for {}", released.join(", "));
            Ok(Report::whole(action))
        };
        blocking(unlock).boxed_local()
    }
}
