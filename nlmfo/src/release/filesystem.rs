//! `/proc/fs/nfsd/unlock_filesystem`, for exports that the operator names.
//!
//! It releases every lock on the filesystem, including those of other addresses, and since
//! 6.9 the NFSv4 state too. So it is used only on request, and only for a filesystem that
//! leaves this node.

use std::path::PathBuf;
use std::time::Instant;

use super::{Error, Job, Method, MethodKind, Report, blocking};
use crate::kernel::nfsd::Nfsd;

#[derive(Clone, Debug)]
pub struct Filesystem {
    /// A path on each filesystem.
    pub paths: Vec<PathBuf>,
}

impl Method for Filesystem {
    fn kind(&self) -> MethodKind {
        MethodKind::Filesystem
    }

    async fn release(&self, _job: &Job<'_>) -> Result<Report, Error> {
        let start = Instant::now();
        let paths = self.paths.clone();
        let action = blocking(move || {
            let nfsd = Nfsd::mounted()?;
            let mut released = Vec::new();
            for path in &paths {
                nfsd.unlock_filesystem(path)?;
                released.push(path.display().to_string());
            }
            Ok(format!("unlock_filesystem for {}", released.join(", ")))
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
