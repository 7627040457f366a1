//! statd's records of monitored clients: a file for each client in its directory `sm`,
//! named as the client is monitored. They do not contain the VIP.
//!
//! A file has a line for each service that monitors the client (nfs-utils, support/nsm/file.c): four
//! numbers and a cookie in hexadecimal, the client's name and our own, with blanks between. lockd's
//! numbers are its loopback address as it lies in memory, its program, its version and the procedure to
//! call.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use super::book::Client;
use super::state_dir::let_statd_read;
use crate::files::{self, PRIVATE};

/// lockd's line as far as its cookie: 127.0.0.1, program 100021, version 3, procedure 16.
const LOCKD: &str = "0100007f 000186b5 00000003 00000010";

/// Maximum size of a record, in bytes.
const LONGEST: u64 = 64 * 1024;

/// A name that statd monitors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitored {
    pub name: OsString,
    /// None if the name is no address and is not known to the resolver.
    pub address: Option<IpAddr>,
}

/// A file in statd's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: OsString,
    /// When statd wrote it last.
    pub written: SystemTime,
}

impl Listed {
    /// Looks up the name, which may take time.
    pub fn look_up(self) -> Monitored {
        let address = self.name.to_str().and_then(address_of);
        Monitored {
            name: self.name,
            address,
        }
    }
}

/// Reads statd's directory and looks up the names, which may take time.
pub fn read(folder: &Path) -> io::Result<Vec<Monitored>> {
    let listed = list(folder)?.into_iter();
    Ok(listed.map(Listed::look_up).collect())
}

/// The records in statd's directory, by name.
pub fn list(folder: &Path) -> io::Result<Vec<Listed>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Ok(text) = files::read(&entry.path(), LONGEST) else {
            continue;
        };
        if is_record(name.as_bytes(), &text) {
            let written = entry.metadata()?.modified()?;
            found.push(Listed { name, written });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Whether a file of this name is a record of the client of this name.
fn is_record(file: &[u8], text: &[u8]) -> bool {
    let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let fields = line.split(u8::is_ascii_whitespace);
    let fields: Vec<&[u8]> = fields.filter(|field| !field.is_empty()).collect();
    let [numbers @ .., cookie, name, _ours] = &fields[..] else {
        return false;
    };
    let is_hex =
        |field: &[u8], digits| field.len() == digits && field.iter().all(u8::is_ascii_hexdigit);
    let is_lockds = numbers.len() == 4 && numbers.iter().all(|field| is_hex(field, 8));
    // The file's name is the monitored one; the line repeats it.
    is_lockds && is_hex(cookie, 32) && *name == file
}

fn address_of(name: &str) -> Option<IpAddr> {
    let address = match name.parse() {
        Ok(address) => address,
        Err(_) => (name, 0).to_socket_addrs().ok()?.next()?.ip(),
    };
    Some(address.to_canonical())
}

/// Writes a record of each client into a directory, for `sm-notify -P`: named by address,
/// with a cookie of zeros, as no lockd gave one. Records that are there stay.
pub fn write<'a>(
    folder: &Path,
    clients: impl Iterator<Item = &'a Client>,
    node: &str,
) -> io::Result<usize> {
    fs::create_dir_all(folder)?;
    let mut written = 0;
    for client in clients {
        let name = client.address.to_string();
        let line = format!("{LOCKD} {:032x} {name} {node}\n", 0);
        match files::create_new(
            &folder.join(&name),
            line.as_bytes(),
            PRIVATE,
            let_statd_read,
        ) {
            Ok(()) => written += 1,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let client = |address: &str| Client {
            address: address.parse().unwrap(),
            name: "c1".into(),
            version: None,
            transport: None,
            first_seen: 1,
            last_seen: 1,
        };
        let clients = [client("10.77.0.11"), client("fd77::11")];
        let twice = clients.iter().chain(&clients);
        assert_eq!(write(folder.path(), twice, "a").unwrap(), 2);
        fs::write(folder.path().join("README"), "no record").unwrap();
        fs::write(folder.path().join("torn"), "0100007f 000186b5 0000").unwrap();
        let read: Vec<_> = read(folder.path())
            .unwrap()
            .into_iter()
            .map(|monitored| monitored.address.unwrap())
            .collect();
        assert_eq!(read, clients.map(|client| client.address));
    }

    #[test]
    fn a_record_is_told_from_other_files() {
        let line = |name| format!("{LOCKD} 0123456789abcdef0123456789abcdef {name} server");
        assert!(is_record(b"c1", line("c1").as_bytes()));
        let foreign = [
            LOCKD.as_bytes(),
            b" 0123456789abcdef0123456789abcdef caf\xe9 server\n",
        ];
        assert!(is_record(b"caf\xe9", &foreign.concat()));
        for (file, text) in [
            ("c1", String::new()),
            ("c1", line("other")),
            ("c1", line("c1").replace("000186b5", "100021")),
            ("c1", line("c1").replace(" server", "")),
        ] {
            assert!(!is_record(file.as_bytes(), text.as_bytes()), "{text:?}");
        }
    }
}
