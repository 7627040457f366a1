//! Reboot notifications: SM_NOTIFY between statds, and lockd's private SM_NOTIFY, which statd
//! sends in response.
//!
//! [`tell`] tells a client that its server has rebooted, so that it reclaims its locks. [`notify`]
//! tells this node's lockd the same about a client: it is procedure 16 of the NLM program, and not the
//! SM_NOTIFY that statds send each other. lockd takes it from a loopback address and a reserved port
//! only, finds the client by the cookie that it gave statd with `SM_MON`, and gives up **all** of that
//! client's locks, on every VIP and of every version (`nlm_host_rebooted`, fs/lockd/host.c, 6.1 to
//! 6.12).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;

use super::client::{Client, Endpoint, Error, Source};
use super::message::{Credential, Procedure};
use super::nlm::PROGRAM;
use super::portmap;
use super::xdr::{self, Encoder};
use nlmfo_common::protocol::Transport;

/// Longest name of a monitored host (`SM_MAXSTRLEN`, include/linux/lockd/xdr.h).
pub(crate) const MAX_NAME: usize = 1024;

/// The cookie by which lockd knows a monitored client (`SM_PRIV_SIZE` bytes, in statd's record of the
/// client).
pub type Cookie = [u8; 16];

const SM_NOTIFY: Procedure = Procedure {
    program: PROGRAM,
    program_name: "NLM",
    version: 4,
    number: 16,
    name: "SM_NOTIFY (private)",
};

/// The network status monitor (statd): its program, and the call that says that a host
/// has rebooted (X/Open XNFS, chapter 11).
pub const STATD: Procedure = Procedure {
    program: 100_024,
    program_name: "NSM",
    version: 1,
    number: 6,
    name: "SM_NOTIFY",
};

/// Tells a client's statd, from the address `vip`, that the server it knows as `name` has rebooted and
/// has the state number `state`: odd for a server that is up. A client that has already seen this
/// number does nothing. False if there is no statd.
///
/// The answer is empty, and the same whether the client monitors that name or not.
///
/// # Errors
/// If the client's rpcbind or statd does not answer in time, or refuses the call.
pub async fn tell(
    client: IpAddr,
    vip: IpAddr,
    name: &str,
    state: u32,
    deadline: Duration,
) -> Result<bool, Error> {
    let source = Source::Reserved(vip);
    let (program, version) = (STATD.program, STATD.version);
    let Some(port) = portmap::port_at(client, source, program, version, deadline).await? else {
        return Ok(false);
    };
    let mut rpc = Client::connect(Endpoint {
        peer: SocketAddr::new(client, port),
        transport: Transport::Udp,
        source,
        credential: Credential::Null,
        deadline,
    })
    .await?;
    let arguments = statd_arguments(name, state).map_err(|error| rpc.error(&STATD, error))?;
    rpc.call(&STATD, &arguments).await?;
    Ok(true)
}

/// The arguments of [`STATD`]: the name that has rebooted, and its state number.
pub(crate) fn statd_arguments(name: &str, state: u32) -> Result<Bytes, xdr::Error> {
    let mut arguments = Encoder::default();
    arguments.opaque("the server's name", name.as_bytes(), MAX_NAME)?;
    arguments.u32(state);
    Ok(arguments.finish().freeze())
}

/// Tells the lockd of this network namespace that a client has rebooted.
///
/// `lockd_port` is its port for `transport` over IPv4. `state` is the client's NSM state number: lockd
/// skips hosts that already have that number. The answer is empty, and the same for a cookie that lockd
/// does not know.
pub(crate) async fn notify(
    transport: Transport,
    lockd_port: u16,
    name: &[u8],
    state: u32,
    cookie: &Cookie,
    deadline: Duration,
) -> Result<(), Error> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut client = Client::connect(Endpoint {
        peer: SocketAddr::new(loopback, lockd_port),
        transport,
        source: Source::Reserved(loopback),
        credential: Credential::Null,
        deadline,
    })
    .await?;
    let mut arguments = Encoder::default();
    arguments
        .opaque("the client's name", name, MAX_NAME)
        .map_err(|error| client.error(&SM_NOTIFY, error))?;
    arguments.u32(state);
    arguments.fixed(cookie);
    client.call(&SM_NOTIFY, &arguments.finish()).await?;
    Ok(())
}
