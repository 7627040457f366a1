//! The other node of a comparison (`--peer`).

use std::ffi::OsString;

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Difference;
use crate::causes::chain;
use crate::exit::Failure;
use crate::failover::pair::REMOTE;
use crate::failover::pair::rsh::Rsh;
use crate::runtime;

/// A node's side of a comparison, as JSON.
#[derive(Serialize)]
pub struct Compared<T> {
    pub host: String,
    /// Null if it could not be asked.
    pub there: Option<T>,
    pub error: Option<String>,
    pub differences: Vec<Difference>,
}

impl<T> Compared<T> {
    /// The answer of a node, without the differences.
    pub fn of(host: &str, answer: Result<T, String>) -> Self {
        let (there, error) = match answer {
            Ok(there) => (Some(there), None),
            Err(error) => (None, Some(error)),
        };
        Compared {
            host: host.to_owned(),
            there,
            error,
            differences: Vec::new(),
        }
    }

    /// The line that says that it could not be asked.
    pub fn not_asked(&self) -> String {
        let error = self.error.as_deref().unwrap_or("no answer");
        format!("? {} could not be asked: {error}", self.host)
    }
}

/// The other node, and how to ask it.
pub struct Peer {
    rsh: Rsh,
}

impl Peer {
    pub fn new(rsh: Rsh) -> Self {
        Peer { rsh }
    }

    pub fn host(&self) -> &str {
        &self.rsh.host
    }

    /// The JSON that nlmfo prints there, whatever its exit status. The inner error tells why there
    /// is none.
    ///
    /// # Errors
    /// If the asynchronous runtime cannot be started.
    pub fn ask<T: DeserializeOwned>(
        &self,
        arguments: &[OsString],
    ) -> Result<Result<T, String>, Failure> {
        let asked = runtime::run(self.rsh.nlmfo(arguments, &[], REMOTE));
        let asked = asked.context("starting the asynchronous runtime")?;
        let finished = match asked {
            Ok(finished) => finished,
            Err(error) => return Ok(Err(chain(&error))),
        };
        Ok(
            serde_json::from_str(&finished.stdout).map_err(|error| match finished.stderr.trim() {
                "" => format!("the report of nlmfo there cannot be read: {error}"),
                said => said.to_owned(),
            }),
        )
    }
}
