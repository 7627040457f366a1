//! The release record of a run for which no file is named: on disk, so that an interrupted run can
//! be repeated.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{Access, access};

use crate::exit::Failure;
use crate::failover::options::Options;
use crate::files;
use crate::foreign::Shown;
use crate::notify::state_dir::{self, Readers, StateDir};
use crate::output;

/// Its path, in the state directory, which is created if it is missing.
///
/// # Errors
/// If it cannot be created.
pub fn path(options: &Options) -> Result<PathBuf, Failure> {
    let folder = options.state.path();
    state_dir::create(folder, Readers::Statd)
        .with_context(|| format!("cannot create the state directory {}", folder.display()))?;
    Ok(path_in(&options.state, &options.vips))
}

fn path_in(state: &StateDir, vips: &[IpAddr]) -> PathBuf {
    let names: Vec<String> = vips.iter().map(IpAddr::to_string).collect();
    let name = format!("record-{}.json", names.join("-"));
    state.path().join(name)
}

/// [`path`] for a failover on this node, unless a file is named: a run that is killed between the
/// phases leaves no other trace of what it released.
pub fn of_both(options: &Options) -> Option<PathBuf> {
    let is_wanted = options.release.record.is_none() && options.takeover.expect.is_none();
    if !is_wanted || options.dry_run {
        return None;
    }
    let path = path(options).ok()?;
    let is_writable = access(path.parent()?, Access::WRITE_OK).is_ok();
    is_writable.then_some(path)
}

/// Removes it after the move.
pub fn forget(record: &Path) {
    if let Err(error) = files::remove(record) {
        let path = record.shown();
        output::note(format_args!(
            "could not remove the release record {path}: {error}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_run_finds_the_record_of_its_vips() {
        let vips = ["10.77.0.1", "fd77::1"].map(|vip| vip.parse().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().join("state"));
        let mut options = Options::dry_run(vips.into(), state);
        // A dry run writes nothing.
        assert_eq!(of_both(&options), None);
        assert!(!options.state.path().exists());
        options.dry_run = false;
        let path = options.state.path().join("record-10.77.0.1-fd77::1.json");
        assert_eq!(of_both(&options), Some(path));
        options.release.record = Some("/r".into());
        assert_eq!(of_both(&options), None);
    }
}
