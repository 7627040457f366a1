//! Notification clients that their server has rebooted, as a takeover's `--notify` program.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use nlmfo::rpc::nsm;
use tokio::runtime::Builder;

use super::node::TestNode;

const DEADLINE: Duration = Duration::from_secs(20);

/// Sends one client SM_NOTIFY from the VIP, by which it knows the server.
pub fn tell(client: IpAddr, vip: IpAddr, state: u32) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let name = vip.to_string();
    let has_statd = runtime.block_on(nsm::tell(client, vip, &name, state, DEADLINE))?;
    ensure!(has_statd, "{client} has no statd");
    Ok(())
}

/// A program on `node` that notifies these clients, for any VIP, with that state number: all at
/// once, since one that is down would delay the others. It fails if any was not notified.
pub fn program(node: &TestNode, clients: &[IpAddr], state: u32) -> Result<&'static str> {
    const PATH: &str = "/tmp/notify";
    let this = std::env::current_exe()?;
    let mut script = String::from("#!/bin/sh\n");
    for client in clients {
        script += &format!("{} reboot {client} {state} \"$1\" &\n", this.display());
        script += "tellers=\"$tellers $!\"\n";
    }
    script += "for teller in $tellers; do wait $teller || failed=1; done\nexit ${failed:-0}\n";
    node.write_program(PATH, &script)?;
    Ok(PATH)
}
