//! A planned move of a service by the tool's two phases, with the cluster manager's part
//! done by hand.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Node;
use super::service::Service;
use crate::guest::reboot;
use crate::guest::tool::exit;
use crate::guest::wait::{Seen, until};

/// Where a release's record is, on either node.
pub const RECORD: &str = "/tmp/record.json";

/// Who moves where, and who is told.
pub struct Handover<'a> {
    pub service: &'a Service,
    pub from: &'a Node,
    pub to: &'a Node,
    /// The clients that are to reclaim.
    pub clients: &'a [IpAddr],
    /// NSM's: odd, and greater than any that the clients have seen.
    pub state: u32,
}

/// What the tool said, and how long it took.
pub struct HandedOver {
    pub released: Value,
    pub taken: Value,
    /// From the release's start to the takeover's end.
    pub took: Duration,
}

impl Handover<'_> {
    /// Release with a record, grace on the other node, filesystem and address over there;
    /// both phases must be confirmed, with every lock back.
    pub fn run(&self) -> Result<HandedOver> {
        let began = Instant::now();
        let released = self.release()?;
        let taken = self.take_over(exit::CONFIRMED, &["--grace", "90s"], || {
            self.service.stop(self.from)
        })?;
        Ok(HandedOver {
            released,
            taken,
            took: began.elapsed(),
        })
    }

    /// Releases on the node that gives up, and brings the record over.
    pub fn release(&self) -> Result<Value> {
        let vip = self.service.vip.to_string();
        let release = [
            "failover", "--vip", &vip, "--phase", "release", "--record", RECORD,
        ];
        let released = self.from.tool().json(exit::CONFIRMED, &release)?;
        self.bring_record()?;
        Ok(released)
    }

    pub fn bring_record(&self) -> Result<()> {
        let record = self.from.place().read(RECORD)?;
        self.to.place().write(RECORD, &record)
    }

    /// Takes over with the record; `hand_over` runs when grace stands, and then the
    /// service is started. The takeover must end with `code`.
    pub fn take_over(
        &self,
        code: i32,
        options: &[&str],
        hand_over: impl FnOnce() -> Result<()>,
    ) -> Result<Value> {
        let vip = self.service.vip.to_string();
        let program = reboot::program(self.to.place(), self.clients, self.state)?;
        let words = [
            "failover",
            "--vip",
            &vip,
            "--phase",
            "takeover",
            "--expect",
            RECORD,
            "--wait-address",
            "60s",
            "--notify",
            program,
        ];
        let words = [&words, options].concat();
        thread::scope(|scope| {
            let takeover = scope.spawn(|| self.to.tool().json(code, &words));
            self.to.wait_for_grace(self.service.vip)?;
            hand_over()?;
            self.service.start(self.to)?;
            takeover.join().expect("running nlmfo does not panic")
        })
        .with_context(|| format!("{vip} to {}", self.to.name()))
    }
}

impl Node {
    /// Waits until the VIP is in grace here.
    pub fn wait_for_grace(&self, vip: IpAddr) -> Result<()> {
        let vip = vip.to_string();
        until(&format!("the grace of {vip} on {}", self.name()), || {
            let listed = self.tool().json(exit::CONFIRMED, &["grace", "--list"])?;
            let windows = listed["windows"].as_array();
            let is_open = |window: &Value| window["vip"] == vip && window["open"] == true;
            Ok(match windows.is_some_and(|all| all.iter().any(is_open)) {
                true => Seen::Yes(()),
                false => Seen::No(listed.to_string()),
            })
        })
    }
}
