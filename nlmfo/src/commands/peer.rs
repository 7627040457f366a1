//! The other node of a comparison (`--peer`).

use std::ffi::OsString;

use anyhow::Context;
use serde::de::DeserializeOwned;

use super::failover::rsh;
use crate::causes::chain;
use crate::cli::PeerArgs;
use crate::exit::Failure;
use crate::failover::nodes::Difference;
use crate::failover::pair::REMOTE;
use crate::failover::pair::rsh::Rsh;
use crate::runtime;

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
