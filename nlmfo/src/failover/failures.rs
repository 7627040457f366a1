//! Which exit code an error of a lower room ends a command with.

use super::window::OpenError;
use crate::exit::{Exit, Failure};
use crate::grace::GraceError;
use crate::observe::error::ObserveError;
use crate::server::ServerError;

impl From<GraceError> for Failure {
    fn from(error: GraceError) -> Self {
        let exit = match error {
            // The window was open for a while.
            GraceError::EndedEarly(_) => Exit::NotConfirmed,
            _ if error.is_unsupported() => Exit::Unsupported,
            _ => Exit::CouldNotRun,
        };
        Failure::new(exit, error)
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Grace(error) => error.into(),
            OpenError::Observe(error) => error.into(),
            OpenError::Waiters { .. } => Failure::new(Exit::CouldNotRun, error),
        }
    }
}

impl From<ObserveError> for Failure {
    fn from(error: ObserveError) -> Self {
        let exit = if error.is_unsupported() {
            Exit::Unsupported
        } else {
            Exit::CouldNotRun
        };
        Failure::new(exit, error)
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        let exit = match error.is_elsewhere() {
            true => Exit::Unsupported,
            false => Exit::CouldNotRun,
        };
        Failure::new(exit, error)
    }
}
