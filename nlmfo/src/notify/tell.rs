//! Notifies a VIP's clients: [`Machine`] decides, this module sends and listens.

use std::future::{Future, pending};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::machine::{Machine, Pace};
use super::names::Name;
use super::report::NotifyReport;
use super::socket::VipSocket;
use crate::causes::chain;
use crate::kernel::netns;
use crate::rpc::client::random;
use crate::rpc::nsm;

/// Number of datagrams that are sent between two reads of answers.
const BATCH: usize = 64;

/// Between two tries to bind to a VIP that is not usable yet.
const BIND_AGAIN: Duration = Duration::from_millis(100);

/// The clients to notify, and how.
#[derive(Clone, Debug)]
pub struct Order {
    pub vip: IpAddr,
    pub clients: Vec<IpAddr>,
    /// At least one.
    pub names: Vec<Name>,
    pub state: u32,
    /// Maximum time; `None` means until stopped.
    pub deadline: Option<Duration>,
}

/// Why no client was notified.
#[derive(Debug, thiserror::Error)]
pub enum TellError {
    #[error("{0} is not an address of this node: bring it up first")]
    NotHere(IpAddr),
    #[error("cannot notify {client} from {vip}: one is an IPv4 address, the other is not")]
    Family { client: IpAddr, vip: IpAddr },
    #[error("cannot read this node's addresses")]
    Addresses(#[source] io::Error),
    #[error("cannot send from {vip}")]
    Socket { vip: IpAddr, source: io::Error },
    #[error("cannot send the name {name:?}: {reason}")]
    Name { name: String, reason: String },
}

/// Notifies the clients until all have confirmed, the time is over, or `stop` is ready; then
/// reports the result for each. Dropping it ends it without a report.
pub async fn run(order: &Order, stop: impl Future<Output = ()>) -> Result<NotifyReport, TellError> {
    let began = Instant::now();
    let vip = order.vip;
    check(order)?;
    let arguments = (order.names.iter())
        .map(|Name { name, .. }| {
            nsm::statd_arguments(name, order.state).map_err(|error| TellError::Name {
                name: name.clone(),
                reason: chain(&error),
            })
        })
        .collect::<Result<_, _>>()?;
    let clients = order.clients.iter().copied();
    let mut machine = Machine::new(clients, arguments, Pace::default(), random() as u32);
    if !machine.is_done() {
        let talk = async {
            let socket = bind(vip).await?;
            socket.writable().await?;
            converse(&mut machine, &socket, began).await
        };
        tokio::select! {
            broken = talk => broken.map_err(|source| TellError::Socket { vip, source })?,
            () = after(order.deadline) => {}
            () = stop => {}
        }
    }
    Ok(NotifyReport::new(
        order,
        machine.progress(),
        began.elapsed(),
    ))
}

async fn after(time: Option<Duration>) {
    match time {
        Some(time) => sleep(time).await,
        None => pending().await,
    }
}

fn check(order: &Order) -> Result<(), TellError> {
    let vip = order.vip;
    if !netns::has_address(vip).map_err(TellError::Addresses)? {
        return Err(TellError::NotHere(vip));
    }
    let is_foreign = |client: &&IpAddr| client.is_ipv4() != vip.is_ipv4();
    match order.clients.iter().find(is_foreign) {
        Some(&client) => Err(TellError::Family { client, vip }),
        None => Ok(()),
    }
}

/// A new IPv6 address cannot be used until its duplicate address detection has finished.
async fn bind(vip: IpAddr) -> io::Result<VipSocket> {
    loop {
        match VipSocket::bind(vip) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                sleep(BIND_AGAIN).await;
            }
            bound => return bound,
        }
    }
}

/// Returns when all clients are notified.
async fn converse(machine: &mut Machine, socket: &VipSocket, began: Instant) -> io::Result<()> {
    loop {
        let mut sent = 0;
        while sent < BATCH
            && let Some(outgoing) = machine.send(began.elapsed())
        {
            sent += 1;
            if let Err(error) = socket.send(&outgoing.datagram, outgoing.to) {
                debug!(to = %outgoing.to, %error, "not sent");
                match has_no_room(&error) {
                    true => machine.put_off(began.elapsed(), outgoing.to),
                    false => machine.failed(began.elapsed(), outgoing.to, &error),
                }
            }
        }
        while let Some((to, error)) = socket.failure() {
            debug!(%to, %error, "did not arrive");
            machine.failed(began.elapsed(), to, &error);
        }
        while let Some((from, datagram)) = socket.receive() {
            machine.received(began.elapsed(), from, &datagram);
        }
        if machine.is_done() {
            return Ok(());
        }
        let due = machine.next_due().map(|due| began + due);
        let Some(due) = due.filter(|&due| due > Instant::now()) else {
            tokio::task::yield_now().await;
            continue;
        };
        tokio::select! {
            ready = socket.readable() => ready?,
            () = sleep_until(due) => {}
        }
    }
}

/// The socket's buffer or the table of neighbours is full. "Connection refused" is the error of an
/// earlier datagram: this one was not sent.
fn has_no_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused
    ) || error.raw_os_error() == Some(Errno::ENOBUFS as i32)
}
