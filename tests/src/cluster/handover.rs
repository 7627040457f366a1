//! A planned move of a service by the tool's two phases, with the cluster manager's part
//! done by hand.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Node;
use super::agent::AGENT;
use super::service::Service;
use crate::guest::tool::exit;
use crate::guest::wait::{Seen, until};

/// Where a release's record is, on either node.
pub const RECORD: &str = "/tmp/record.json";

/// What moves where.
pub struct Handover<'a> {
    pub service: &'a Service,
    pub from: &'a Node,
    pub to: &'a Node,
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
            self.service.stop(self.from)?;
            self.service.start(self.to)
        })?;
        Ok(HandedOver {
            released,
            taken,
            took: began.elapsed(),
        })
    }

    /// The same by one command, given on the node that gives up.
    pub fn run_in_one(&self) -> Result<HandedOver> {
        let began = Instant::now();
        let command = self.pair_command()?;
        let mut report = self.from.tool().json(exit::CONFIRMED, &words(&command))?;
        Ok(HandedOver {
            released: report["release"].take(),
            taken: report["takeover"].take(),
            took: began.elapsed(),
        })
    }

    /// The tool's arguments for a failover of both nodes; the service moves by its hand-over
    /// program.
    pub fn pair_command(&self) -> Result<Vec<String>> {
        let vip = self.service.vip;
        let to = self.to.address;
        let program = self.service.hand_over_program(self.from)?;
        let tool = self.to.tool.display();
        let mut words = command(&format!(
            "failover --vip {vip} --to {to} --remote-nlmfo {tool} --hand-over {program}"
        ));
        words.extend(["--rsh".to_owned(), format!("{AGENT} rsh")]);
        Ok(words)
    }

    /// Releases on the node that gives up, and brings the record over.
    pub fn release(&self) -> Result<Value> {
        let release = self.release_command();
        let released = self.from.tool().json(exit::CONFIRMED, &words(&release))?;
        let record = self.from.node().read(RECORD)?;
        self.to.node().write(RECORD, &record)?;
        Ok(released)
    }

    /// The tool's arguments for the release.
    pub fn release_command(&self) -> Vec<String> {
        let vip = self.service.vip;
        command(&format!(
            "failover --vip {vip} --phase release --record {RECORD}"
        ))
    }

    /// The tool's arguments for the takeover, with the program that tells the clients.
    pub fn takeover_command(&self, notify: &str) -> Vec<String> {
        let vip = self.service.vip;
        command(&format!(
            "failover --vip {vip} --phase takeover --expect {RECORD} --wait-address 60s \
             --notify {notify}"
        ))
    }

    /// The program over there that tells the clients of the record.
    pub fn notifier(&self) -> Result<&'static str> {
        self.to.notifier(&format!("--record {RECORD}"))
    }

    /// Takes over with the record; `hand_over` runs when grace stands, and is to start the
    /// service here. The takeover must end with `code`.
    pub fn take_over(
        &self,
        code: i32,
        options: &[&str],
        hand_over: impl FnOnce() -> Result<()>,
    ) -> Result<Value> {
        let program = self.notifier()?;
        let takeover = self.takeover_command(program);
        let takeover = [words(&takeover), options.to_vec()].concat();
        thread::scope(|scope| {
            let takeover = scope.spawn(|| self.to.tool().json(code, &takeover));
            self.to.wait_for_grace(self.service.vip)?;
            hand_over()?;
            takeover.join().expect("running nlmfo does not panic")
        })
        .with_context(|| format!("{} to {}", self.service.vip, self.to.name()))
    }
}

fn command(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// As [`crate::guest::tool::Tool`] takes them.
pub fn words(command: &[String]) -> Vec<&str> {
    command.iter().map(String::as_str).collect()
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
