//! TCP connections to addresses of this node, of this thread's network namespace.

use std::io;
use std::net::{IpAddr, SocketAddr};

use procfs::net::{TcpNetEntries, TcpState};
use procfs::{FromReadSI, current_system_info};
use serde::{Deserialize, Serialize};

/// The list of those over IPv4.
pub const PATH: &str = "/proc/thread-self/net/tcp";

const TABLES: [&str; 2] = [PATH, "/proc/thread-self/net/tcp6"];

/// An established connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Connection {
    pub vip: IpAddr,
    pub port: u16,
    pub client: IpAddr,
    pub client_port: u16,
}

/// Those to one of these addresses.
pub fn established(is_vip: impl Fn(IpAddr) -> bool) -> io::Result<Vec<Connection>> {
    let mut all = entries(TcpState::Established)?;
    all.retain(|connection| is_vip(connection.vip));
    Ok(all)
}

/// Whether anything listens at this port, of the kernel or a process.
pub fn listens(port: u16) -> io::Result<bool> {
    let listening = entries(TcpState::Listen)?;
    Ok(listening.iter().any(|socket| socket.port == port))
}

fn entries(state: TcpState) -> io::Result<Vec<Connection>> {
    let mut all = Vec::new();
    for table in TABLES {
        let read = TcpNetEntries::from_file(table, current_system_info());
        let entries = match read {
            Ok(entries) => entries.0,
            // A kernel without IPv6.
            Err(procfs::ProcError::NotFound(_)) => continue,
            Err(error) => return Err(io::Error::other(error)),
        };
        let wanted = entries.into_iter().filter(|entry| entry.state == state);
        all.extend(wanted.map(|entry| between(entry.local_address, entry.remote_address)));
    }
    Ok(all)
}

fn between(local: SocketAddr, remote: SocketAddr) -> Connection {
    Connection {
        vip: local.ip().to_canonical(),
        port: local.port(),
        client: remote.ip().to_canonical(),
        client_port: remote.port(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn an_established_connection_is_found_by_its_server_address() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let _accepted = server.accept().unwrap();
        let wanted = between(address, client.local_addr().unwrap());
        assert!(listens(address.port()).unwrap());
        drop(server);
        assert!(!listens(address.port()).unwrap());
        let found = |is_vip: fn(IpAddr) -> bool| established(is_vip).unwrap().contains(&wanted);
        assert!(found(|vip| vip.is_loopback()));
        assert!(!found(|vip| !vip.is_loopback()));
    }
}
