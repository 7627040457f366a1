//! The options of `nlmfo clients`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::values::{address, vip};
use super::{ServerFilter, StateArgs};

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("action").args(["import", "export", "forget"])))]
#[command(mut_arg("server", |server| server.conflicts_with("action")))]
pub struct ClientsArgs {
    /// Show only clients of this server address (repeatable)
    #[arg(long, value_name = "ADDRESS", value_parser = vip)]
    pub vip: Vec<IpAddr>,
    /// Read only the client book, not lockd
    #[arg(long, conflicts_with = "action")]
    pub book: bool,
    /// Add the clients in statd's directory DIR (`/var/lib/nfs/sm`) to the book of the VIP
    #[arg(long, value_name = "DIR", requires = "vip")]
    pub import: Option<PathBuf>,
    /// Write the VIP's clients to DIR in statd's format, for `sm-notify -P`
    #[arg(long, value_name = "DIR", requires = "vip")]
    pub export: Option<PathBuf>,
    /// Remove a client from the book of the VIP, until it locks again
    #[arg(long, value_name = "ADDRESS", requires = "vip", value_parser = address)]
    pub forget: Option<IpAddr>,
    #[command(flatten)]
    pub filter: ServerFilter,
    #[command(flatten)]
    pub state: StateArgs,
    /// Print one JSON object
    #[arg(long, conflicts_with = "action")]
    pub json: bool,
}
