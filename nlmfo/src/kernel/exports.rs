//! What this node exports, by nfs-utils' table (`/var/lib/nfs/etab`) and by the
//! kernel's cache of it (`/proc/fs/nfsd/exports`), which has those in use only.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::mounts::unquote;

const TABLES: [&str; 2] = ["/var/lib/nfs/etab", "/proc/fs/nfsd/exports"];

/// An exported directory, in the order of paths, each once.
pub fn exported() -> io::Result<BTreeSet<PathBuf>> {
    let mut folders = BTreeSet::new();
    for table in TABLES {
        match std::fs::read_to_string(table) {
            Ok(text) => folders.extend(parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{table}: {error}"))),
        }
    }
    Ok(folders)
}

/// A line of nfs-utils' table: a directory, exported to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub folder: PathBuf,
    pub client: String,
    /// With commas between them, the defaults too.
    pub options: String,
}

/// nfs-utils' table, which every `exportfs` writes.
pub fn table() -> io::Result<Vec<Export>> {
    match std::fs::read_to_string(TABLES[0]) {
        Ok(text) => Ok(lines(&text).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn lines(table: &str) -> impl Iterator<Item = Export> {
    table.lines().filter_map(|line| {
        let (folder, rest) = line.split_once(['\t', ' '])?;
        let (client, options) = rest.trim_end().split_once('(')?;
        Some(Export {
            folder: unquote(folder),
            client: client.to_owned(),
            options: options.trim_end_matches(')').to_owned(),
        })
    })
}

/// A client that the directory, or one that it lies in, is exported to, as nfs-utils
/// names it: an address, a network, a name, `*`.
pub fn client_of(folder: &Path) -> Option<String> {
    let table = std::fs::read_to_string(TABLES[0]).ok()?;
    client_in(&table, folder)
}

fn client_in(table: &str, folder: &Path) -> Option<String> {
    let exports = lines(table).filter(|export| folder.starts_with(&export.folder));
    // The innermost export is the one that the directory belongs to.
    exports
        .max_by_key(|export| export.folder.components().count())
        .map(|export| export.client)
}

/// Both tables have the directory first, then a blank or tab and what the clients may.
fn parse(table: &str) -> impl Iterator<Item = PathBuf> {
    let lines = table.lines().filter(|line| line.starts_with('/'));
    lines.filter_map(|line| line.split([' ', '\t']).next().map(unquote))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_export_tells_the_client() {
        let etab = "/srv\t*(rw,fsid=0)\n/srv/a\t10.77.0.0/24(rw,sync)\n/other\thost(ro)\n";
        let client = |folder: &str| client_in(etab, Path::new(folder));
        assert_eq!(client("/srv/a/b").as_deref(), Some("10.77.0.0/24"));
        assert_eq!(client("/srv/b").as_deref(), Some("*"));
        assert_eq!(client("/srvx"), None);
    }

    #[test]
    fn a_line_is_a_directory_a_client_and_its_options() {
        let etab = "/srv/my\\040data\t*(rw,sync,fsid=1)\n/srv\thost(ro)\nbroken\n";
        let lines: Vec<Export> = lines(etab).collect();
        let [one, other] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert_eq!(one.folder, Path::new("/srv/my data"));
        assert_eq!((&*one.client, &*one.options), ("*", "rw,sync,fsid=1"));
        assert_eq!((&*other.client, &*other.options), ("host", "ro"));
    }

    #[test]
    fn reads_both_tables() {
        let etab = "/srv/my\\040data\t10.77.0.0/24(rw,sync,fsid=1)\n";
        let cache = "# Version 1.1\n# Path Client(Flags) # IPs\n\
                     /srv/a\t*(rw,no_root_squash,sync,wdelay,uuid=1:2:3:4)\n";
        assert_eq!(
            parse(etab).collect::<Vec<_>>(),
            [PathBuf::from("/srv/my data")]
        );
        assert_eq!(parse(cache).collect::<Vec<_>>(), [PathBuf::from("/srv/a")]);
    }
}
