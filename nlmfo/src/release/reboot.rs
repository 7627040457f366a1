//! SM_NOTIFY to this node's lockd, as if a client had rebooted.
//!
//! It takes a client's locks on **all** VIPs, so that it is only for clients that use no
//! other, and only on request. lockd knows a client by the cookie that it gave statd
//! with SM_MON, and statd keeps it in a file of its `sm` folder: a client that is not
//! monitored cannot be released this way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Error, HostReport, Job, Report, Target, Way, WayKind};
use crate::observe::host::{NlmVersion, Transport};
use crate::rpc::nsm::{self, Cookie};
use crate::rpc::portmap::LockdPorts;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Reboot {
    /// statd's folder of monitored hosts: `/var/lib/nfs/sm`, or where the
    /// distribution keeps it.
    pub records: PathBuf,
    /// Clients that hold or wait for something through another VIP as well.
    pub elsewhere: BTreeSet<IpAddr>,
    /// Time for each call.
    pub deadline: Duration,
}

impl Way for Reboot {
    fn kind(&self) -> WayKind {
        WayKind::Reboot
    }

    async fn release(&self, job: &Job<'_>) -> Result<Report, Error> {
        let start = Instant::now();
        let records = read_records(&self.records)
            .map_err(|error| Error::StatdRecords(self.records.clone(), error))?;
        let ports = LockdPorts::look_up(self.deadline)
            .await
            .map_err(Error::Ports)?;
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (transport, port) = [Transport::Udp, Transport::Tcp]
            .into_iter()
            .find_map(|transport| {
                let port = ports.port(loopback, NlmVersion::V4, transport)?;
                Some((transport, port))
            })
            .ok_or(Error::NoLockd)?;
        let mut hosts = Vec::new();
        for target in job.targets {
            let start = Instant::now();
            let outcome = match self.record_of(target, &records) {
                Err(reason) => Err(reason),
                Ok((name, cookie)) => {
                    nsm::notify(transport, port, name, fresh_state(), cookie, self.deadline)
                        .await
                        .map(|()| format!("SM_NOTIFY for {name}"))
                        .map_err(|error| error.to_string())
                }
            };
            hosts.push(HostReport {
                host: target.host,
                outcome,
                took: start.elapsed(),
            });
        }
        Ok(Report {
            way: self.kind(),
            action: format!("SM_NOTIFY to lockd in the name of {} hosts", hosts.len()),
            hosts,
            took: start.elapsed(),
        })
    }
}

impl Reboot {
    fn record_of<'r>(
        &self,
        target: &Target,
        records: &'r BTreeMap<String, Cookie>,
    ) -> Result<(&'r str, &'r Cookie), String> {
        let client = target.host.client;
        if self.elsewhere.contains(&client) {
            return Err(format!(
                "{client} uses other addresses of this node too, and would lose those locks as well"
            ));
        }
        // By default lockd has statd monitor addresses, with `nsm_use_hostnames` names.
        let is_it =
            |name: &str| name.parse() == Ok(client) || target.caller.as_deref() == Some(name);
        records
            .iter()
            .find(|(name, _)| is_it(name))
            .map(|(name, cookie)| (name.as_str(), cookie))
            .ok_or_else(|| {
                format!(
                    "statd has no record of {client} in {}",
                    self.records.display()
                )
            })
    }
}

/// A state number that this client's hosts have not seen: lockd passes over those that
/// have. statd's real numbers count reboots and stay far below the time of day.
fn fresh_state() -> u32 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_secs() as u32 | 1
}

fn read_records(folder: &Path) -> io::Result<BTreeMap<String, Cookie>> {
    let mut records = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            records.extend(fs::read_to_string(&path)?.lines().filter_map(parse_record));
        }
    }
    Ok(records)
}

/// A line of a statd record, as nfs-utils writes it: whom to tell (address, program,
/// version, procedure, all in hex), the cookie in hex, the host's name, this node's.
fn parse_record(line: &str) -> Option<(String, Cookie)> {
    let mut words = line.split_ascii_whitespace().skip(4);
    let digits = words.next()?;
    let name = words.next()?;
    let mut cookie = Cookie::default();
    if digits.len() != 2 * cookie.len() || !digits.is_ascii() {
        return None;
    }
    for (i, byte) in cookie.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).ok()?;
    }
    Some((name.to_owned(), cookie))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::host::Host;

    const LINE: &str = "0100007f 000186b5 00000003 00000010 \
                        00112233445566778899aabbccddeeff 10.77.0.11 server\n";

    fn target(client: &str, caller: Option<&str>) -> Target {
        Target {
            host: Host {
                vip: "10.77.0.1".parse().unwrap(),
                client: client.parse().unwrap(),
                version: NlmVersion::V4,
                transport: Transport::Tcp,
                netns: 1,
            },
            caller: caller.map(str::to_owned),
            requests: Vec::new(),
        }
    }

    fn way() -> Reboot {
        Reboot {
            records: "/var/lib/nfs/sm".into(),
            elsewhere: ["10.77.0.12".parse().unwrap()].into(),
            deadline: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_record_gives_name_and_cookie() {
        let (name, cookie) = parse_record(LINE).unwrap();
        assert_eq!(name, "10.77.0.11");
        assert_eq!(cookie[..3], [0x00, 0x11, 0x22]);
        assert_eq!(cookie[15], 0xff);
    }

    #[test]
    fn what_is_no_record_is_passed_over() {
        assert_eq!(parse_record(""), None);
        assert_eq!(parse_record("1 2 3 4 zz c1 server"), None);
        assert_eq!(parse_record("1 2 3 4 0011 c1 server"), None);
        assert_eq!(
            parse_record(&format!("1 2 3 4 {} c1 server", "é".repeat(16))),
            None
        );
    }

    #[test]
    fn a_client_is_found_by_address_or_name_and_spared_if_it_is_used_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), LINE).unwrap();
        fs::write(folder.path().join("b"), LINE.replace("10.77.0.11", "c3")).unwrap();
        let records = read_records(folder.path()).unwrap();
        let name = |target: &Target| way().record_of(target, &records).map(|(name, _)| name);
        assert_eq!(name(&target("10.77.0.11", None)), Ok("10.77.0.11"));
        assert_eq!(name(&target("10.77.0.13", Some("c3"))), Ok("c3"));
        assert!(
            name(&target("10.77.0.12", None))
                .unwrap_err()
                .contains("other addresses")
        );
        assert!(
            name(&target("10.77.0.14", None))
                .unwrap_err()
                .contains("no record")
        );
    }
}
