//! The state directory: what has to outlive a process, a boot or a node.
//!
//! ```text
//! DIR/vips/10.77.0.1/clients.0000000003   the client book of a VIP, see `book`
//! DIR/numbers/…                           NSM state numbers
//! ```
//!
//! It may lie on storage that a cluster's nodes share. Everybody may read it, so that
//! statd's callout, which is not root, can.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where it is unless somebody says otherwise.
pub const DEFAULT: &str = "/var/lib/nlmfo";

/// A state directory, which need not exist yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        StateDir { root: root.into() }
    }

    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The folder of a VIP.
    pub fn vip(&self, vip: IpAddr) -> PathBuf {
        self.vips_folder().join(vip.to_canonical().to_string())
    }

    /// The VIPs that have a folder, in order.
    pub fn vips(&self) -> io::Result<Vec<IpAddr>> {
        let entries = match fs::read_dir(self.vips_folder()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut vips = Vec::new();
        for entry in entries {
            if let Some(vip) = (entry?.file_name().to_str()).and_then(|name| name.parse().ok()) {
                vips.push(vip);
            }
        }
        vips.sort_unstable();
        Ok(vips)
    }

    fn vips_folder(&self) -> PathBuf {
        self.root.join("vips")
    }
}

/// Creates a folder of the state directory with all above it.
pub fn create(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_vips_are_those_with_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().join("state"));
        assert!(state.vips().unwrap().is_empty());
        let vips: [IpAddr; 2] = ["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()];
        for vip in vips {
            create(&state.vip(vip)).unwrap();
        }
        fs::create_dir(state.vips_folder().join("lost+found")).unwrap();
        assert_eq!(state.vips().unwrap(), vips);
    }
}
