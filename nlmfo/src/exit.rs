//! Exit codes, and errors that carry one.

use std::process::ExitCode;

/// The tool's exit codes; scripts rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done and confirmed.
    Done = 0,
    /// Could not run.
    CouldNotRun = 1,
    /// Wrong usage; clap exits with it too.
    Usage = 2,
    /// Ran, but the result is not confirmed.
    NotConfirmed = 3,
    /// This kernel or node lacks something required.
    Unsupported = 4,
    /// Confirmed, but clients were unreachable or reclaims are missing.
    Incomplete = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// An error for the operator, and the exit code that it ends with.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub error: anyhow::Error,
}

impl Failure {
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Failure {
            exit,
            error: error.into(),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::new(Exit::CouldNotRun, error)
    }
}
