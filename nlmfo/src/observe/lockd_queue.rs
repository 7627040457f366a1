//! Null calls to the lockd of this network namespace, to wait for its answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::error::ObserveError;
use super::host::Transport;
use super::lockd_ports::LockdPorts;
use crate::kernel::lockd;
use crate::rpc::client::{self, Client, Endpoint, Source};
use crate::rpc::message::Credential;
use crate::rpc::nlm::NlmClient;

/// Why it is unknown whether lockd has finished earlier calls.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error(transparent)]
    Ports(#[from] ObserveError),
    #[error("lockd does not answer{}", waits(.blocked.as_deref()))]
    Call {
        #[source]
        error: Box<client::Error>,
        /// What its thread waits for.
        blocked: Option<String>,
    },
}

fn waits(blocked: Option<&str>) -> String {
    match blocked {
        Some(blocked) => format!(": it waits for {blocked}"),
        None => String::new(),
    }
}

/// Waits until lockd has answered a call of ours. Since lockd has one thread, it has then finished what
/// it was doing before. Returns false at once if lockd does not listen here.
pub async fn pass_queue(deadline: Duration) -> Result<bool, Unanswered> {
    let ports = LockdPorts::look_up()?;
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let service = loopback.into_iter().find_map(|address| {
        let version = *ports.versions().last()?;
        let transports = [Transport::Tcp, Transport::Udp].into_iter();
        let mut found = transports.filter_map(|transport| {
            let port = ports.port(address, version, transport)?;
            Some((SocketAddr::new(address, port), transport, version))
        });
        found.next()
    });
    let Some((peer, transport, version)) = service else {
        return Ok(false);
    };
    let call = async {
        let client = Client::connect(Endpoint {
            peer,
            transport,
            source: Source::Any,
            credential: Credential::Null,
            deadline,
        });
        NlmClient::new(client.await?, version).null().await
    };
    match call.await {
        Ok(()) => Ok(true),
        Err(error) => Err(Unanswered::Call {
            error: Box::new(error),
            blocked: lockd::blocked_on(),
        }),
    }
}
