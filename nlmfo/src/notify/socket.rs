//! The socket that notifies a VIP's clients, and the network errors of its datagrams.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn6, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::rpc::client::bind_reserved;

/// Buffer size: for datagrams that wait for a hardware address, and for answers of all clients
/// at once.
const BUFFER: usize = 8 << 20;

/// Maximum length of an answer; those of rpcbind and statd have less than 100 bytes.
const LARGEST: usize = 2048;

/// Maximum number of earlier datagrams' errors before a send is given up.
const RETRIES: u32 = 4;

/// A UDP socket bound to a VIP and a reserved port.
#[derive(Debug)]
pub struct VipSocket(UdpSocket);

impl VipSocket {
    /// # Errors
    /// `AddrNotAvailable` while the VIP is no usable address of this node: it is not there, or its
    /// duplicate address detection has not finished.
    pub fn bind(vip: IpAddr) -> io::Result<Self> {
        let domain = Domain::for_address(SocketAddr::new(vip, 0));
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        match vip {
            IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
            IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
        }
        // Beyond the usual limit. If less is granted, the notification is only slower.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
        let _ = setsockopt(&socket, sockopt::SndBufForce, &BUFFER);
        bind_reserved(&socket, vip)?;
        Ok(VipSocket(UdpSocket::from_std(socket.into())?))
    }

    /// Must be awaited once before anything is sent.
    pub async fn writable(&self) -> io::Result<()> {
        self.0.writable().await
    }

    /// Sends now, or fails. The error may belong to an *earlier* datagram, once for each; it is in the
    /// error queue too.
    pub fn send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        let mut tries = 0;
        loop {
            match self.0.try_send_to(datagram, to) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock && tries < RETRIES => {
                    tries += 1;
                }
                sent => return sent.map(drop),
            }
        }
    }

    /// A received datagram and its source.
    pub fn receive(&self) -> Option<(SocketAddr, Vec<u8>)> {
        let mut datagram = vec![0; LARGEST];
        loop {
            match self.0.try_recv_from(&mut datagram) {
                Ok((length, from)) => {
                    datagram.truncate(length);
                    return Some((from, datagram));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                // The error of an earlier datagram, reported once: see `send`.
                Err(_) => {}
            }
        }
    }

    /// A datagram that did not arrive: its destination and the network's error.
    pub fn failure(&self) -> Option<(SocketAddr, io::Error)> {
        let read = || read_error_queue(&self.0).map_err(io::Error::from);
        self.0.try_io(Interest::ERROR, read).ok()
    }

    /// Waits until there may be something to receive, or a failure. Returns at once unless both were
    /// read until there was none.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.ready(Interest::READABLE | Interest::ERROR).await?;
        Ok(())
    }
}

/// One entry of the error queue (ip(7), `IP_RECVERR`): the destination of the datagram,
/// and the error that the ICMP message stands for.
fn read_error_queue(socket: &UdpSocket) -> nix::Result<(SocketAddr, io::Error)> {
    let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    // The datagram itself is not needed.
    let mut payload = [0; 1];
    let mut payload = [IoSliceMut::new(&mut payload)];
    loop {
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut payload, Some(&mut space), flags)?;
        let error = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, _)
            | ControlMessageOwned::Ipv6RecvErr(error, _) => Some(error.ee_errno),
            _ => None,
        });
        let to = message.address.as_ref().and_then(destination);
        if let (Some(to), Some(error)) = (to, error) {
            return Ok((to, io::Error::from_raw_os_error(error as i32)));
        }
    }
}

fn destination(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = (address.as_sockaddr_in()).map(|v4| SocketAddr::new(v4.ip().into(), v4.port()));
    let v6 = |v6: &SockaddrIn6| SocketAddr::new(v6.ip().into(), v6.port());
    v4.or_else(|| address.as_sockaddr_in6().map(v6))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// A port that nobody listens at.
    fn closed(address: IpAddr) -> SocketAddr {
        let socket = std::net::UdpSocket::bind((address, 0)).unwrap();
        socket.local_addr().unwrap()
    }

    /// Whatever comes next: of these two there is one at a time here.
    async fn next(socket: &VipSocket) -> Result<(SocketAddr, Vec<u8>), (SocketAddr, io::Error)> {
        loop {
            if let Some(failure) = socket.failure() {
                return Err(failure);
            }
            if let Some(received) = socket.receive() {
                return Ok(received);
            }
            timeout(TIMEOUT, socket.readable()).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn each_closed_port_is_told_by_itself_and_hinders_nobody() {
        let addresses: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for address in addresses {
            let socket = VipSocket::bind(address).unwrap();
            socket.writable().await.unwrap();
            let (first, second) = (closed(address), closed(address));
            let open = std::net::UdpSocket::bind((address, 0)).unwrap();
            for to in [first, second, open.local_addr().unwrap()] {
                socket.send(b"word", to).unwrap();
            }
            for expected in [first, second] {
                let (to, error) = next(&socket).await.unwrap_err();
                assert_eq!(to, expected);
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            }
            let mut heard = [0; 8];
            open.set_read_timeout(Some(TIMEOUT)).unwrap();
            let (length, from) = open.recv_from(&mut heard).unwrap();
            assert_eq!((&heard[..length], from.ip()), (&b"word"[..], address));
            assert!(from.port() < 1024);
            open.send_to(b"answer", from).unwrap();
            let answer = next(&socket).await.unwrap();
            assert_eq!(answer, (open.local_addr().unwrap(), b"answer".to_vec()));
        }
    }

    #[tokio::test]
    async fn an_address_of_somebody_else_cannot_be_sent_from() {
        // TEST-NET-1.
        let error = VipSocket::bind("192.0.2.1".parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
