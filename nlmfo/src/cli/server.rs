//! The options of `nlmfo server`.

use std::ffi::OsString;

use clap::{Args, Subcommand};

use super::PeerArgs;

#[derive(Debug, Args)]
pub struct ServerArgs {
    #[command(subcommand)]
    pub action: ServerAction,
}

#[derive(Debug, Subcommand)]
pub enum ServerAction {
    /// Start a server on this node: filesystem, daemons, grace, then its addresses
    Start(StartArgs),
    /// Stop a server on this node and free its devices; its clients keep their locks until it
    /// starts again, here or on another node
    Stop(NamedServer),
    /// Stop a server on this node and start it again; its clients keep their locks
    Restart(NamedServer),
    /// Start a server on this node, or supervise one that already runs: restart its daemons when
    /// they exit or hang, and stop it on SIGTERM; for systemd (Type=notify)
    Run {
        /// Name of the server, as in `[server.NAME]` of /etc/nlmfo.toml
        name: String,
    },
    /// Show a server: threads, versions, grace, clients, addresses, daemons
    Status(NamedServer),
    /// List the configured servers
    List {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Run a command in the namespaces of a server
    Exec {
        /// Name of the server, as in `[server.NAME]` of /etc/nlmfo.toml
        name: String,
        /// Program and its arguments
        #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Check whether this node can start a server; with --peer, also whether another node can, and
    /// whether both nodes configure it in the same way
    Check(CheckServerArgs),
}

#[derive(Debug, Args)]
pub struct CheckServerArgs {
    #[command(flatten)]
    pub server: NamedServer,
    #[command(flatten)]
    pub peer: PeerArgs,
}

#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    pub server: NamedServer,
    /// Start it even if another node did not stop it cleanly; use this only after that node was
    /// fenced: it is off or has no access to the storage
    #[arg(long)]
    pub after_fencing: bool,
}

#[derive(Debug, Args)]
pub struct NamedServer {
    /// Name of the server, as in `[server.NAME]` of /etc/nlmfo.toml
    pub name: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
