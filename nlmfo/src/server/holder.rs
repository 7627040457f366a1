//! The node that a server runs on, in a file on the storage that moves along. A start writes it
//! before its addresses are up, and an orderly stop removes it. So a start sees whether the
//! server may still run on another node, and whether there is a record of what was held.
//!
//! It is not a fence: a node that hangs may continue to write after the file was read.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::program::{self, ProgramError, output};
use super::{Server, ServerError};
use crate::causes::chain;
use crate::files;
use crate::foreign::Shown;
use crate::{kernel, times};

const FILE: &str = "holder.json";

/// Maximum size; larger than any such file of nlmfo.
const LIMIT: u64 = 1 << 16;

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    node: String,
    /// The boot ID of its kernel, new at each boot.
    boot: String,
    /// Since 1970, in seconds.
    since: u64,
    /// Whether it was stopped there without a record of what its clients held.
    #[serde(default)]
    stopped: bool,
}

/// How the server ended before this start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// By an orderly stop, or it never ran.
    Stopped,
    /// In a crash of its node, or by force: what its clients held is not recorded.
    Crashed,
}

impl Holder {
    /// Whether it is this node, in this boot or an earlier one.
    fn is_of(&self, here: &Holder) -> bool {
        self.node == here.node || self.boot == here.boot
    }
}

/// The content of the file, or why it cannot be read.
type Found = Result<Option<Holder>, String>;

/// How the server ended, or why it must not start on `here`.
fn judge(found: &Found, here: &Holder, fenced: bool) -> Result<Last, String> {
    let whose = match found {
        Ok(None) => return Ok(Last::Stopped),
        // After a crash of this node, or `nlmfo cleanup`.
        Ok(Some(holder)) if holder.is_of(here) || holder.stopped => return Ok(Last::Crashed),
        _ if fenced => return Ok(Last::Crashed),
        Ok(Some(holder)) => format!(
            "node {} started it {} s ago and did not stop it cleanly",
            holder.node.shown(),
            here.since.saturating_sub(holder.since)
        ),
        Err(error) => format!("it is not known where it ran last ({error})"),
    };
    Err(format!(
        "{whose}; it may still run there and use the filesystem. Fencing is the cluster's job: make \
         sure that the other node is off, or has no access to the storage, then start it with \
         --after-fencing"
    ))
}

fn path(server: &Server) -> PathBuf {
    server.description.state.join(FILE)
}

fn read(path: &Path) -> Found {
    match files::read(path, LIMIT) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| format!("{} is damaged: {error}", path.display())),
        Err(error) if error.is_absence() => Ok(None),
        Err(error) => Err(chain(&error)),
    }
}

/// How the server ended before. Runs in its namespaces, once its filesystem is mounted.
///
/// # Errors
/// If it may still run on another node, unless that was `fenced`.
pub fn last(server: &Server, fenced: bool) -> Result<Last, ServerError> {
    decide(server, &read(&path(server)), fenced)
}

/// [`last`] before anything is mounted, if possible: mounting a filesystem that another node uses
/// damages it. On ext4, debugfs reads a file without writing anything.
///
/// # Errors
/// If it may still run on another node, unless that was `fenced`; or if its device does not answer.
pub fn ahead(server: &Server, fenced: bool) -> Result<(), ServerError> {
    let path = path(server);
    let filesystems = server.description.filesystems.iter();
    let ours = filesystems.filter_map(|one| Some((one, path.strip_prefix(&one.path).ok()?)));
    for (filesystem, path) in ours.filter(|(one, _)| one.kind.starts_with("ext")) {
        let device = filesystem.device.as_os_str();
        let cat = format!("cat \"/{}\"", path.display());
        let arguments: [&OsStr; 3] = ["-R".as_ref(), cat.as_ref(), device];
        let said = match output("debugfs", &arguments, program::LIMIT) {
            Err(error @ ProgramError::Hangs { .. }) => {
                return Err(ServerError::NotStarted {
                    name: server.name().to_owned(),
                    reason: format!("{} cannot be read: {error}", device.shown()),
                    is_elsewhere: false,
                });
            }
            // If debugfs cannot read it, it is read once the filesystem is mounted.
            said => said.unwrap_or_default(),
        };
        let found = serde_json::from_slice(&said).ok();
        decide(server, &Ok(found), fenced)?;
    }
    Ok(())
}

fn decide(server: &Server, found: &Found, fenced: bool) -> Result<Last, ServerError> {
    judge(found, &here(server)?, fenced).map_err(|reason| ServerError::NotStarted {
        name: server.name().to_owned(),
        reason,
        is_elsewhere: true,
    })
}

fn here(server: &Server) -> Result<Holder, ServerError> {
    Ok(Holder {
        node: server.node.clone(),
        boot: kernel::boot().map_err(ServerError::io(
            "identify the boot of",
            Path::new(&server.node),
        ))?,
        since: times::now(),
        stopped: false,
    })
}

/// Stores durably that the server runs here. Runs in its namespaces.
pub fn write(server: &Server) -> Result<(), ServerError> {
    put(server, &here(server)?)
}

/// Stores durably that the server was stopped here, if it ran here: any node may start it, as after a
/// crash. Runs in its namespaces.
pub fn leave(server: &Server) -> Result<(), ServerError> {
    let here = here(server)?;
    match read(&path(server)) {
        Ok(Some(holder)) if holder.is_of(&here) => put(
            server,
            &Holder {
                stopped: true,
                ..holder
            },
        ),
        _ => Ok(()),
    }
}

fn put(server: &Server, holder: &Holder) -> Result<(), ServerError> {
    let path = path(server);
    let failed = |error| ServerError::io("write", &path)(error);
    let text = serde_json::to_vec(holder).map_err(|error| failed(error.into()))?;
    files::write_whole(&path, &text, files::PRIVATE).map_err(failed)?;
    // Written to its place on disk, not only to the journal, which `ahead` does not read.
    let written = fs::File::open(&path).and_then(|file| Ok(rustix::fs::syncfs(file)?));
    written.map_err(failed)
}

/// Removes the file: the server was stopped, and what its clients held is recorded. Runs in its
/// namespaces.
pub fn remove(server: &Server) -> Result<(), ServerError> {
    let path = path(server);
    files::remove(&path).map_err(ServerError::io("remove", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(node: &str, boot: &str, since: u64) -> Holder {
        Holder {
            node: node.into(),
            boot: boot.into(),
            since,
            stopped: false,
        }
    }

    #[test]
    fn only_a_fenced_node_is_succeeded() {
        let here = holder("b", "2", 142);
        let judge = |found: &Found, fenced| judge(found, &here, fenced);
        assert_eq!(judge(&Ok(None), false), Ok(Last::Stopped));
        // A record is of an orderly stop, whatever else was fenced.
        assert_eq!(judge(&Ok(None), true), Ok(Last::Stopped));
        // It has booted since; it has another name.
        for ours in [holder("b", "1", 100), holder("a", "2", 100)] {
            assert_eq!(judge(&Ok(Some(ours)), false), Ok(Last::Crashed));
        }
        let other = Ok(Some(holder("a", "1", 100)));
        let refused = judge(&other, false).unwrap_err();
        for word in ["node a", "42 s ago", "--after-fencing"] {
            assert!(refused.contains(word), "{refused}");
        }
        assert_eq!(judge(&other, true), Ok(Last::Crashed));
        let stopped = Holder {
            stopped: true,
            ..holder("a", "1", 100)
        };
        assert_eq!(judge(&Ok(Some(stopped)), false), Ok(Last::Crashed));
        let damaged = Err("x".to_owned());
        assert!(judge(&damaged, false).unwrap_err().contains("(x)"));
        assert_eq!(judge(&damaged, true), Ok(Last::Crashed));
    }

    #[test]
    fn only_a_file_that_is_not_there_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        assert_eq!(read(&path), Ok(None));
        fs::write(&path, r#"{"node":"a","boot":"1","since":100}"#).unwrap();
        assert_eq!(read(&path), Ok(Some(holder("a", "1", 100))));
        fs::write(&path, "").unwrap();
        assert!(read(&path).unwrap_err().contains(FILE));
    }
}
