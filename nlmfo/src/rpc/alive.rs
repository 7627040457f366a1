//! Whether a client of lockd is alive: its own lockd or its statd answers a NULL call.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nlmfo_common::protocol::{NlmVersion, Transport};
use serde::Serialize;
use tokio::time::timeout;

use super::client::{Cause, Client, Endpoint, Error, Source};
use super::message::{Credential, Procedure};
use super::{nlm, nsm, portmap};

/// What answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    Lockd,
    Statd,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Service::Lockd => "lockd",
            Service::Statd => "statd",
        })
    }
}

/// The first of the client's services that answers within the deadline, over either
/// transport; none if none does. `version` is the NLM version that the client speaks.
pub async fn answering(client: IpAddr, version: NlmVersion, deadline: Duration) -> Option<Service> {
    let lockd = (Service::Lockd, nlm::PROGRAM, version.into());
    let statd = (Service::Statd, nsm::STATD.program, nsm::STATD.version);
    let asked: FuturesUnordered<_> = [Transport::Udp, Transport::Tcp]
        .into_iter()
        .flat_map(|transport| [lockd, statd].map(|service| (transport, service)))
        .map(async |(transport, (service, program, version))| {
            let asked = asks(client, transport, program, version, deadline);
            (timeout(deadline, asked).await == Ok(true)).then_some(service)
        })
        .collect();
    let answers = asked.filter_map(std::future::ready);
    std::pin::pin!(answers).next().await
}

/// Whether the service answers, even with a refusal.
async fn asks(
    client: IpAddr,
    transport: Transport,
    program: u32,
    version: u32,
    deadline: Duration,
) -> bool {
    let port = portmap::port_over(transport, client, program, version, deadline).await;
    let Ok(Some(port)) = port else {
        return false;
    };
    match call_null(
        SocketAddr::new(client, port),
        transport,
        program,
        version,
        deadline,
    )
    .await
    {
        Ok(()) => true,
        Err(error) => matches!(error.cause, Cause::Refused(_)),
    }
}

/// The NULL call, which every service answers.
pub async fn call_null(
    peer: SocketAddr,
    transport: Transport,
    program: u32,
    version: u32,
    deadline: Duration,
) -> Result<(), Error> {
    let mut rpc = Client::connect(Endpoint {
        peer,
        transport,
        source: Source::Any,
        credential: Credential::Null,
        deadline,
    })
    .await?;
    let null = Procedure {
        program,
        program_name: "RPC program",
        version,
        number: 0,
        name: "NULL",
    };
    rpc.call(&null, &[]).await.map(drop)
}
