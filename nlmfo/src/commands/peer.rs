//! The arguments that name another node.

use crate::cli::{PeerArgs, RemoteArgs};
use crate::exit::{Exit, Failure};
use crate::failover::nodes::peer::Peer;
use crate::failover::pair::rsh::Rsh;

/// How to run nlmfo on HOST.
///
/// # Errors
/// With [`Exit::Usage`] if COMMAND of `--rsh` cannot be split into words.
pub fn rsh(remote: &RemoteArgs, host: &str) -> Result<Rsh, Failure> {
    let rsh = Rsh::new(&remote.rsh, host, &remote.remote_nlmfo);
    rsh.map_err(|error| Failure::new(Exit::Usage, error))
}

/// The node to compare with, if one is named.
pub fn of(args: &PeerArgs) -> Result<Option<Peer>, Failure> {
    let Some(host) = &args.peer else {
        return Ok(None);
    };
    let rsh = rsh(&args.remote, host)?;
    Ok(Some(Peer::new(rsh)))
}
