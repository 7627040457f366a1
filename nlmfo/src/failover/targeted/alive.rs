//! Whether a client is alive whose state is to be released.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use crate::kernel::nfsd::{Nfsd, NfsdError};
use crate::observe::states::Nfs4Client;
use crate::rpc::alive::Service;

/// Why a client counts as alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alive {
    pub client: IpAddr,
    #[serde(flatten)]
    pub sign: Sign,
}

/// A sign that a client is alive, or that it may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "sign", rename_all = "snake_case")]
pub enum Sign {
    /// It answered a NULL call.
    Answers { service: Service },
    /// What it holds or waits for by NFSv3 changed while it was looked at.
    Changed,
    /// It called lockd meanwhile.
    Called,
    /// It has renewed its NFSv4 lease.
    Renewed { seconds: u64, lease: u64 },
    /// The kernel does not say when it renewed its NFSv4 lease.
    RenewalUnknown,
}

impl fmt::Display for Alive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let client = self.client;
        match &self.sign {
            Sign::Answers { service } => write!(f, "the {service} of {client} answers"),
            Sign::Changed => write!(
                f,
                "what {client} holds or waits for changed while it was looked at"
            ),
            Sign::Called => write!(f, "{client} called lockd while it was looked at"),
            Sign::Renewed { seconds, lease } => write!(
                f,
                "{client} renewed its NFSv4 lease {seconds} s ago, and the lease is {lease} s"
            ),
            Sign::RenewalUnknown => {
                write!(f, "it is not known when {client} renewed its NFSv4 lease")
            }
        }
    }
}

/// The lease time of the node's own server, for [`of_lease`].
///
/// # Errors
/// If nfsd's filesystem is not mounted, or the lease time cannot be read.
pub fn lease() -> Result<Duration, NfsdError> {
    Nfsd::mounted()?.lease()
}

/// The sign that an NFSv4 client gives, if any. None if its lease is over, whether nfsd keeps its
/// state until another client wants it (`courtesy`) or is about to drop it (`expirable`).
pub fn of_lease(client: &Nfs4Client, lease: Duration) -> Option<Alive> {
    if matches!(client.info.status.as_str(), "courtesy" | "expirable") {
        return None;
    }
    let lease = lease.as_secs();
    let sign = match client.info.renewed_seconds {
        Some(seconds) if seconds > lease => return None,
        Some(seconds) => Sign::Renewed { seconds, lease },
        None => Sign::RenewalUnknown,
    };
    Some(Alive {
        client: client.address,
        sign,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::states::info::Info;
    use crate::observe::states::sample;

    fn sign(status: &str, renewed: Option<u64>) -> Option<Sign> {
        let client = Nfs4Client {
            info: Info {
                status: status.into(),
                renewed_seconds: renewed,
                callback: None,
            },
            ..sample::client(&[])
        };
        of_lease(&client, Duration::from_secs(90)).map(|alive| alive.sign)
    }

    #[test]
    fn a_client_is_alive_for_its_lease_and_where_nobody_knows() {
        let renewed = |seconds| Some(Sign::Renewed { seconds, lease: 90 });
        assert_eq!(sign("confirmed", Some(0)), renewed(0));
        assert_eq!(sign("confirmed", Some(90)), renewed(90));
        assert_eq!(sign("confirmed", Some(91)), None);
        assert_eq!(sign("confirmed", None), Some(Sign::RenewalUnknown));
        assert_eq!(sign("courtesy", Some(3)), None);
        assert_eq!(sign("expirable", None), None);
    }
}
