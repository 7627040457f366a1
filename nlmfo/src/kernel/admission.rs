//! The clients that nfsd and lockd accept calls from: sunrpc's cache `auth.unix.ip`.
//!
//! It maps a client's address to the export entry that names it, and is filled by
//! rpc.mountd. A call from an address without one is refused before the service sees
//! it (`svcauth_unix_set_client`, `net/sunrpc/svcauth_unix.c`, 6.1 to 6.12).

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The file is that of this thread's network namespace.
const CHANNEL: &str = "/proc/thread-self/net/rpc/auth.unix.ip/channel";

/// Stands for no export: a client mapped to it can call lockd, but reach no file.
const DOMAIN: &str = "nlmfo";

/// Maximum time of an admission.
const LONGEST: Duration = Duration::from_mins(1);

/// While this exists, a client that no export covers may call lockd.
#[derive(Debug)]
pub struct Admission {
    client: IpAddr,
}

impl Admission {
    /// Only for a client whose call was refused: a client that an export names would lose that export
    /// in the meantime.
    pub fn of_unexported(client: IpAddr) -> io::Result<Self> {
        let client = client.to_canonical();
        write(&format!("nfsd {client} {} {DOMAIN}\n", expiry(LONGEST)))?;
        Ok(Admission { client })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        // Back to "named by no export" for one second; after that, the kernel asks mountd again.
        let line = format!("nfsd {} {}\n", self.client, expiry(Duration::from_secs(1)));
        if let Err(error) = write(&line) {
            tracing::warn!("{CHANNEL} has {} until it expires: {error}", self.client);
        }
    }
}

/// `CLASS ADDRESS EXPIRY [DOMAIN]` and a newline, in one write (`ip_map_parse`).
fn write(line: &str) -> io::Result<()> {
    let mut channel = OpenOptions::new().write(true).open(CHANNEL)?;
    channel.write_all(line.as_bytes())
}

/// The expiry time, in seconds since 1970.
fn expiry(after: Duration) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (now + after).as_secs()
}
