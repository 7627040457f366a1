//! `nlmfo grace`: a VIP alone in grace, and what is left in the kernel.

use anyhow::{Result, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::rpc::nlm::Status;
use serde_json::Value;

use super::{Context, End, Scenario};
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::raw::RawNet;
use crate::guest::tool::{Tool, exit};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "grace-window",
    claim: "in a window, new locks through the VIP are refused and reclaims granted; after it, the reverse",
    run: window,
    ..Scenario::DEFAULT
}];

const VIPS: [&str; 3] = ["10.77.0.1", "10.77.0.2", "fd77::1"];

fn window(context: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 0)?;
    let net = RawNet::join(&lab.server)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let file = net.file(&lab.server, lab.vips[0], "file")?;

    let opened = tool.json(
        exit::CONFIRMED,
        &["grace", "--vip", VIPS[0], "--vip", VIPS[2], "--for", "300s"],
    )?;
    let mut number = 0;
    for (vip, in_grace) in lab.vips.iter().zip([true, false, true]) {
        for version in [NlmVersion::V1, NlmVersion::V3, NlmVersion::V4] {
            for transport in [Transport::Tcp, Transport::Udp] {
                number += 1;
                let mut client = net.client(number, *vip, version, transport)?;
                let range = Range::new(10 * u64::from(number), 5);
                let status = client.lock(&file, 7, range, Mode::Write)?;
                let expected = match in_grace {
                    true => Status::DeniedGracePeriod,
                    false => Status::Granted,
                };
                ensure!(
                    status == expected,
                    "a new lock through {vip} ({version}, {transport}): {status:?}; {opened}"
                );
                if version == NlmVersion::V1 {
                    continue;
                }
                let status = client.reclaim(&file, 7, range, Mode::Write)?;
                let expected = match in_grace {
                    true => Status::Granted,
                    false => Status::DeniedGracePeriod,
                };
                ensure!(
                    status == expected,
                    "a reclaim through {vip} ({version}, {transport}): {status:?}; {opened}"
                );
            }
        }
    }
    let listed = tool.json(exit::CONFIRMED, &["grace", "--list"])?;
    for vip in [VIPS[0], VIPS[2]] {
        let window = of_vip(&listed, vip)?;
        // Over UDP a client asks twice if the first answer takes long, and lockd then
        // answers twice.
        let lockd = &window["lockd"];
        ensure!(
            lockd["reclaimed"].as_u64() >= Some(4)
                && lockd["refused"].as_u64() >= Some(6)
                && window["verdict"]["state"] == "enforced",
            "{window}"
        );
    }
    tool.expect(exit::CONFIRMED, &["grace", "--end", "--vip", VIPS[0]])?;
    let mut client = net.client(100, lab.vips[0], NlmVersion::V4, Transport::Tcp)?;
    client.granted(|raw| raw.lock(&file, 7, Range::new(5000, 1), Mode::Write))?;
    tool.expect(exit::CONFIRMED, &["grace", "--end", "--vip", VIPS[2]])?;
    let left = tool.expect(exit::CONFIRMED, &["cleanup"])?;
    ensure!(left.stdout.contains("nothing"), "{}", left.stdout);
    Ok(End::Pass)
}

fn of_vip<'a>(listed: &'a Value, vip: &str) -> Result<&'a Value> {
    let windows = listed["windows"].as_array().into_iter().flatten();
    windows
        .into_iter()
        .find(|window| window["vip"] == vip)
        .ok_or_else(|| anyhow::anyhow!("no window of {vip} in {listed}"))
}
