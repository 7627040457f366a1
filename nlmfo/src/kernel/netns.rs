//! The namespaces of this process, and the addresses of its node.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use nix::sys::socket::SockaddrStorage;
use rustix::fs::{major, minor};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::foreign::escaped;

/// Where `ip netns add` mounts network namespaces.
const NAMED: &str = "/run/netns";

/// A namespace as the kernel numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Device of the kernel's namespace filesystem, (major, minor).
    pub device: (u32, u32),
    /// The number in `/proc/PID/ns/*`; of a network namespace also `net.ns.inum`.
    pub inode: u64,
}

/// The network namespace of this thread.
///
/// # Errors
/// If procfs is not mounted on `/proc`.
pub fn network() -> io::Result<Namespace> {
    namespace("/proc/thread-self/ns/net")
}

/// The number that the kernel gives a network namespace for as long as it runs: it
/// is never given again, as inode numbers are. Of the namespace of this thread;
/// Linux 5.14 and newer.
pub(crate) fn cookie() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, which lives until
    // the call returns.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(cookie),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The cookies of the network namespaces that some thread is in, or that are mounted
/// where `ip netns` mounts them. One that only an open file or socket keeps alive is
/// not among them.
pub(crate) fn existing_cookies() -> io::Result<BTreeSet<u64>> {
    let mut living = BTreeSet::from([cookie()?]);
    let mut seen = BTreeSet::from([network()?.inode]);
    let threads = threads()?.map(|thread| thread.join("ns/net"));
    let named = std::fs::read_dir(NAMED).into_iter().flatten().flatten();
    for path in threads.chain(named.map(|entry| entry.path())) {
        // Processes come and go, and those of the kernel have none.
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if seen.insert(file.metadata()?.ino()) {
            living.insert(cookie_of(file)?);
        }
    }
    Ok(living)
}

/// The directories of all threads of all processes.
fn threads() -> io::Result<impl Iterator<Item = PathBuf>> {
    let processes = std::fs::read_dir("/proc")?.flatten();
    let tasks = processes.filter_map(|process| std::fs::read_dir(process.path().join("task")).ok());
    Ok(tasks.flat_map(|tasks| tasks.flatten().map(|task| task.path())))
}

/// By a thread of its own, which goes there.
fn cookie_of(namespace: File) -> io::Result<u64> {
    let visit = std::thread::spawn(move || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind)?;
        cookie()
    });
    visit.join().expect("asking does not panic")
}

fn namespace(path: &str) -> io::Result<Namespace> {
    let metadata = std::fs::metadata(path)?;
    Ok(Namespace {
        device: (major(metadata.dev()), minor(metadata.dev())),
        inode: metadata.ino(),
    })
}

/// Has the kernel announce the addresses of this interface, of this network namespace, to its
/// neighbours when it comes up: gratuitous ARP, unsolicited neighbour advertisements. IPv6 may
/// be off.
pub(crate) fn announce(interface: &str) -> io::Result<()> {
    std::fs::write(
        format!("/proc/sys/net/ipv4/conf/{interface}/arp_notify"),
        "1",
    )?;
    let v6 = format!("/proc/sys/net/ipv6/conf/{interface}/ndisc_notify");
    match std::fs::write(v6, "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether an interface of this name is in this network namespace.
pub(crate) fn has_interface(name: &str) -> bool {
    nix::net::if_::if_nametoindex(name).is_ok()
}

/// The file of a network namespace that `ip netns` has named.
pub(crate) fn named(name: &str) -> PathBuf {
    PathBuf::from(NAMED).join(name)
}

/// The name of this node, for reports.
pub(crate) fn node() -> String {
    let uname = rustix::system::uname();
    escaped(uname.nodename().to_bytes()).into_owned()
}

/// Whether `address` is one of an interface of this network namespace. Asked of
/// the interfaces, because nodes of a cluster often have `ip_nonlocal_bind` set,
/// and then a socket can be bound to any address.
pub(crate) fn has_address(address: IpAddr) -> io::Result<bool> {
    let address = address.to_canonical();
    let interfaces = nix::ifaddrs::getifaddrs().map_err(io::Error::from)?;
    Ok(interfaces
        .filter_map(|interface| ip(&interface.address?))
        .any(|found| found == address))
}

/// The addresses of this network namespace's interfaces that clients on other machines may use.
pub(crate) fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs().map_err(io::Error::from)?;
    let addresses = interfaces.filter_map(|interface| ip(&interface.address?));
    Ok(addresses
        .map(|address| address.to_canonical())
        .filter(|address| !address.is_loopback())
        .collect())
}

/// The IP address that it is, if it is one.
pub(super) fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_numbered() {
        let net = network().unwrap();
        let link = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(link.to_string_lossy(), format!("net:[{}]", net.inode));
        assert_ne!(namespace("/proc/self/ns/pid").unwrap().inode, net.inode);
    }

    #[test]
    fn a_cookie_stays() {
        assert_ne!(cookie().unwrap(), 0);
        assert_eq!(cookie().unwrap(), cookie().unwrap());
    }

    #[test]
    fn this_namespace_lives() {
        assert!(existing_cookies().unwrap().contains(&cookie().unwrap()));
    }

    #[test]
    fn an_address_is_here_or_not() {
        assert!(has_address("127.0.0.1".parse().unwrap()).unwrap());
        assert!(has_address("::1".parse().unwrap()).unwrap());
        assert!(has_address("::ffff:127.0.0.1".parse().unwrap()).unwrap());
        // TEST-NET-1, which no node has.
        assert!(!has_address("192.0.2.1".parse().unwrap()).unwrap());
        assert!(!has_address("0.0.0.0".parse().unwrap()).unwrap());
    }
}
