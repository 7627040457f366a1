//! The arguments of `nlmfo serve`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::StateArgs;
use super::values::{interval, time, vip};

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Record only clients of this server address (repeatable)
    #[arg(long, value_name = "ADDRESS", value_parser = vip)]
    pub vip: Vec<IpAddr>,
    /// Serve metrics to Prometheus at http://ADDRESS:PORT/metrics, or on a Unix socket
    #[arg(long, value_name = "[ADDRESS:]PORT|unix:PATH")]
    pub listen: Option<Listen>,
    /// Add metrics of each client; their number grows with the number of clients
    #[arg(long, requires = "listen")]
    pub metrics_per_client: bool,
    /// Append events to FILE, one JSON object per line
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Report a lock request that has waited this long
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub long_wait: Duration,
    /// Time between two snapshots of the locks, for --listen and --events; nlmfo lengthens it
    /// if snapshots use more than 5 % of a core
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = interval)]
    pub interval: Duration,
    /// Serve this server of the node, as `nlmfo server list` names it, instead of the node's own;
    /// its client book is in its own state directory
    #[arg(long, value_name = "NAME", conflicts_with = "state_dir")]
    pub server: Option<String>,
    #[command(flatten)]
    pub state: StateArgs,
}

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("unix: needs a path".to_owned()),
            Some(path) => Ok(Listen::Unix(path.into())),
            None => {
                let loopback = text
                    .parse::<u16>()
                    .map(|port| Listen::Tcp((Ipv4Addr::LOCALHOST, port).into()));
                let tcp = loopback.or_else(|_| text.parse().map(Listen::Tcp));
                tcp.map_err(|_| {
                    "expected PORT (on 127.0.0.1), ADDRESS:PORT, [ADDRESS]:PORT or unix:PATH"
                        .to_owned()
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_on_loopback() {
        let tcp = |text: &str| Ok(Listen::Tcp(text.parse().unwrap()));
        assert_eq!("9814".parse(), tcp("127.0.0.1:9814"));
        assert_eq!("192.0.2.1:80".parse(), tcp("192.0.2.1:80"));
        assert_eq!("[fd77::1]:80".parse(), tcp("[fd77::1]:80"));
        let unix = Listen::Unix("/run/nlmfo/metrics".into());
        assert_eq!("unix:/run/nlmfo/metrics".parse(), Ok(unix));
        for wrong in ["", "unix:", "host:80", "70000", "fd77::1:80"] {
            assert!(wrong.parse::<Listen>().is_err(), "{wrong}");
        }
    }
}
