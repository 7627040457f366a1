//! NLM FREE_ALL, the call by which a client gives up everything that it has.

use anyhow::{Result, ensure};

use super::{Check, Done, for_both};
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::table::Mode;
use crate::probe::fixture::{Family, Fixture};
use crate::testbed::range::Range;

pub fn checks() -> Vec<Check> {
    let mut checks = Vec::new();
    for version in [NlmVersion::V3, NlmVersion::V4] {
        for transport in [Transport::Tcp, Transport::Udp] {
            checks.extend(for_both(|family| {
                Check::new(
                    format!("free-all-{version}-{transport}-{family}"),
                    format!(
                        "FREE_ALL by NLM {version} over {transport} releases exactly one host of \
                         lockd's: that client, VIP, version and transport"
                    ),
                    move |fixture| free_all(fixture, family, version, transport),
                )
            }));
        }
    }
    checks
}

fn free_all(
    fixture: &mut Fixture,
    family: Family,
    version: NlmVersion,
    transport: Transport,
) -> Result<Done> {
    let [vip, other] = family.vips();
    let file = fixture.file(vip)?;
    let other_version = match version {
        NlmVersion::V4 => NlmVersion::V3,
        NlmVersion::V1 | NlmVersion::V3 => NlmVersion::V4,
    };
    let other_transport = match transport {
        Transport::Tcp => Transport::Udp,
        Transport::Udp => Transport::Tcp,
    };
    // Each of these differs from the host in one property.
    let mut bystanders = [
        fixture.client(vip, version, transport)?,
        fixture.client(other, version, transport)?,
        fixture.same_client(vip, other_version, transport)?,
        fixture.same_client(vip, version, other_transport)?,
    ];
    for (slot, client) in bystanders.iter_mut().enumerate() {
        let range = Range::new(100 + 10 * slot as u64, 5);
        client.granted(|raw| raw.lock(&file, 7, range, Mode::Write))?;
    }
    let kept = (fixture.held(vip)?, fixture.held(other)?);
    let mut client = fixture.same_client(vip, version, transport)?;
    for svid in 1..=3 {
        let range = Range::new(10 * u64::from(svid), 5);
        client.granted(|raw| raw.lock(&file, svid, range, Mode::Write))?;
    }
    client.granted(|raw| raw.share(&file, 1, 0))?;
    client.free_all()?;
    let left = (fixture.held(vip)?, fixture.held(other)?);
    ensure!(
        left == kept,
        "expected {} and {} to remain, found {} and {}",
        kept.0,
        kept.1,
        left.0,
        left.1
    );
    Ok(Done::Shown)
}
