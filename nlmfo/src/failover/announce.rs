//! A takeover announces its VIPs on the network, as often as RFC 4861 (section 10) allows.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{debug, warn};

use crate::kernel::neighbours;

const TIMES: usize = 3;

const INTERVAL: Duration = Duration::from_secs(1);

/// Announces a VIP that is up, then repeats it in the background. It never fails: the cluster manager
/// announces the VIP too, or clients find out by themselves, later.
pub fn announce(vip: IpAddr) {
    if let Err(error) = neighbours::announce(vip) {
        warn!(%vip, %error, "the VIP was not announced: clients may send to the other node for a while");
    }
    tokio::spawn(async move {
        for _ in 1..TIMES {
            sleep(INTERVAL).await;
            if let Err(error) = neighbours::announce(vip) {
                debug!(%vip, %error, "not announced again");
            }
        }
    });
}
