//! The progress of a server, in a file below its own `/run`, which ends with its namespaces. A start or
//! a stop may be killed at any step; the next one reads here where to continue.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ServerError;
use super::mounts::OWN;

/// The progress of a server whose namespaces are on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A start or a stop has begun and did not end.
    Unfinished,
    /// Its addresses are up, and clients may reclaim. `crashed`: what they held is not recorded.
    Reclaiming { crashed: bool },
    /// The reclaims are over.
    Serving,
}

impl Phase {
    fn word(self) -> Option<&'static str> {
        match self {
            Phase::Unfinished => None,
            Phase::Reclaiming { crashed: false } => Some("reclaiming"),
            Phase::Reclaiming { crashed: true } => Some("reclaiming after a crash"),
            Phase::Serving => Some("serving"),
        }
    }
}

fn path() -> PathBuf {
    Path::new(OWN).join("phase")
}

/// Reads it, in the server's namespaces.
pub fn read() -> Phase {
    let found = fs::read_to_string(path()).unwrap_or_default();
    let all = [
        Phase::Reclaiming { crashed: false },
        Phase::Reclaiming { crashed: true },
        Phase::Serving,
    ];
    let mut all = all.into_iter();
    all.find(|phase| phase.word() == Some(&*found))
        .unwrap_or(Phase::Unfinished)
}

/// Stores it, in the server's namespaces.
///
/// # Errors
/// If the file cannot be written or removed.
pub fn set(phase: Phase) -> Result<(), ServerError> {
    let path = path();
    let done = match phase.word() {
        // A truncated file means unfinished too.
        Some(word) => fs::write(&path, word),
        None => match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    };
    done.map_err(ServerError::io("write", &path))
}
