//! The other node of a comparison (`--peer`).

use std::ffi::{OsStr, OsString};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::causes::chain;
use crate::cli::PeerArgs;
use crate::exit::{Exit, Failure};
use crate::failover::nodes::Difference;
use crate::failover::pair::REMOTE;
use crate::failover::pair::rsh::Rsh;
use crate::runtime;

/// How to run nlmfo on HOST.
///
/// # Errors
/// With [`Exit::Usage`] if COMMAND of `--rsh` cannot be split into words.
pub fn rsh(command: &OsStr, host: &str, nlmfo: &OsStr) -> Result<Rsh, Failure> {
    let rsh = Rsh::new(command, host, nlmfo);
    rsh.map_err(|error| Failure::new(Exit::Usage, error))
}

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
    pub fn of(peer: &Peer, answer: Result<T, String>) -> Self {
        let (there, error) = match answer {
            Ok(there) => (Some(there), None),
            Err(error) => (None, Some(error)),
        };
        Compared {
            host: peer.host().to_owned(),
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

/// How to ask it.
pub struct Peer {
    rsh: Rsh,
}

impl Peer {
    /// The one that is named, if one is.
    pub fn of(args: &PeerArgs) -> Result<Option<Self>, Failure> {
        let Some(host) = &args.peer else {
            return Ok(None);
        };
        let rsh = rsh(&args.rsh, host, &args.remote_nlmfo)?;
        Ok(Some(Peer { rsh }))
    }

    pub fn host(&self) -> &str {
        &self.rsh.host
    }

    /// The JSON that nlmfo prints there, whatever its exit status. The inner error tells why there
    /// is none.
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

/// A difference with its mark.
pub fn line(difference: &Difference) -> String {
    match difference.loses() {
        true => format!("✗ {difference}"),
        false => format!("! {difference}"),
    }
}
