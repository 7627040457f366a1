//! The arguments of `nlmfo release`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::NfsVersion;
use super::values::{address, time, vip};

/// What `nlmfo release` takes: the state of a dead client, not of a VIP.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["client", "file", "lock"])))]
pub struct TargetedArgs {
    /// Release all locks, requests, shares and NFSv4 state of this client; with --file, only
    /// those on the file
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub client: Option<IpAddr>,
    /// Release the state on this file, under any of its names
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// Release the one row of `nlmfo locks` that has this ID
    #[arg(long, value_name = "ID", value_parser = row, conflicts_with_all = ["client", "file", "vip", "nfs"])]
    pub lock: Option<String>,
    /// Limit the release to this server address (repeatable)
    #[arg(long, value_name = "ADDRESS", value_parser = vip)]
    pub vip: Vec<IpAddr>,
    /// Limit the release to this NFS version
    #[arg(long, value_name = "VERSION", value_enum)]
    pub nfs: Option<NfsVersion>,
    /// Drop an NFSv4 client even if it uses several server addresses or an unknown one
    #[arg(long, requires = "client", conflicts_with_all = ["file", "lock"])]
    pub all_vips: bool,
    /// With --file: also revoke its NFSv4 state, by revoking all NFSv3 and NFSv4 state on its
    /// filesystem
    #[arg(long, requires = "file", conflicts_with_all = ["nfs", "vip", "client", "unlock_export"])]
    pub unlock_filesystem: bool,
    /// With --file: also revoke its NFSv4 state, by revoking all NFSv4 state under the export
    /// PATH (Linux 7.2 and newer)
    #[arg(long, value_name = "PATH", requires = "file", conflicts_with_all = ["nfs", "vip", "client"])]
    pub unlock_export: Option<PathBuf>,
    /// Release the state even if its client is alive
    #[arg(long)]
    pub force: bool,
    /// Show what would be released and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Maximum time for a client to show that it is alive
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = time)]
    pub answer_within: Duration,
    /// Maximum time to wait for other runs and for lockd
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub deadline: Duration,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The ID of a row, as `nlmfo locks` shows it.
fn row(text: &str) -> Result<String, &'static str> {
    let is_digit = |byte: u8| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase();
    match text.len() == 12 && text.bytes().all(is_digit) {
        true => Ok(text.to_owned()),
        false => Err("give the 12 hexadecimal digits that `nlmfo locks` shows"),
    }
}
