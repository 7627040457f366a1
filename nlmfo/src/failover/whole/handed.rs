//! The record of a server that was stopped on another node: found on storage that moved along, or given,
//! and checked against nfsdcld's records, which must have moved along too.

use std::fs;
use std::path::{Path, PathBuf};

use super::Server;
use super::stop::record_path;
use crate::failover::record::{Record, RecordError};
use crate::files::FileError;
use crate::kernel::nfsdcld::{Records, RecordsError};
use crate::notify::state_dir::{self, Readers, StateDir};

/// Why a record is not used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum HandedError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("reading {}", folder.display())]
    Folder {
        folder: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "several records of stops are stored, but only one server is taken over: {}; remove the old ones",
        listed(.0)
    )]
    Several(Vec<PathBuf>),
    #[error(
        "nfsdcld has no database on this node, but had one when the server was stopped: mount /var/lib/nfs"
    )]
    NoRecords,
    #[error("nfsdcld's records cannot be read, and NFSv4 clients cannot reclaim without them")]
    Records(#[from] RecordsError),
    #[error(
        "nfsdcld's records are not those of the recorded stop: {why}; if another server has started since, remove \
         the record {}", record.display()
    )]
    Old { why: &'static str, record: PathBuf },
    #[error(
        "nfsdcld does not have {} open, but another database: it was started before the storage was mounted; \
         stop it, then run the command again", .0.display()
    )]
    OtherDatabase(PathBuf),
}

fn listed(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}

/// Makes the record of the other node's stop this node's record: `given`, or the only one in the state
/// directory. A record that this node already has belongs to an interrupted run, or, if it is older
/// than `given`, to an earlier stop here. None if there is no record.
///
/// # Errors
/// If it is not clear which one it is.
pub fn adopt(state: &StateDir, given: Option<Record>) -> Result<Option<Record>, HandedError> {
    let ours = record_path(state);
    let stored = records(&ours)?;
    let mut same = None;
    let mut others = 0;
    for path in &stored {
        let record = Record::read(path)?;
        let (is_same, is_old) = match &given {
            None => (true, false),
            Some(given) => (
                given.id() == record.id(),
                *path == ours && given.taken_at > record.taken_at,
            ),
        };
        match (is_same, is_old) {
            (true, _) if same.is_none() => same = Some((path, record)),
            (false, true) => {}
            _ => others += 1,
        }
    }
    if others > 0 {
        return Err(HandedError::Several(stored));
    }
    match (same, given) {
        (Some((path, record)), _) => {
            let renamed = fs::rename(path, &ours).map_err(FileError::io("renaming", path));
            renamed.map_err(RecordError::from)?;
            Ok(Some(record))
        }
        (None, Some(mut record)) => {
            if let Some(folder) = ours.parent() {
                let created = state_dir::create(folder, Readers::Nobody);
                created.map_err(|source| HandedError::Folder {
                    folder: folder.to_owned(),
                    source,
                })?;
            }
            record.put(&Record::place(&ours)?)?;
            Ok(Some(record))
        }
        (None, None) => Ok(None),
    }
}

/// The records of all nodes, in order.
fn records(ours: &Path) -> Result<Vec<PathBuf>, HandedError> {
    let folder = ours.parent().unwrap_or(Path::new("/"));
    let failed = |source| HandedError::Folder {
        folder: folder.to_owned(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether nfsd lets the recorded clients reclaim here: nfsdcld's records are those of the stop. `runs`:
/// the server runs here already.
///
/// # Errors
/// If it does not.
pub fn check(
    record: &Record,
    state: &StateDir,
    server: &impl Server,
    runs: bool,
) -> Result<(), HandedError> {
    if record.nfs4.is_empty() && record.epoch.is_none() {
        return Ok(());
    }
    let database = server.nfs4_records().ok_or(HandedError::NoRecords)?;
    let records = Records::open(&database)?;
    let old = |why| {
        let record = record_path(state);
        Err(HandedError::Old { why, record })
    };
    if record
        .epoch
        .is_some_and(|stop| !stop.leads_to(records.epoch(), runs))
    {
        return old("their epoch differs");
    }
    // nfsdcld may have begun to record those that are back.
    if !runs {
        for line in &record.nfs4 {
            if !records.has(&line.client.client_name)? {
                return old("they lack recorded clients");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::record::sample;

    #[test]
    fn only_one_record_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path());
        assert!(adopt(&state, None).unwrap().is_none());
        let of = |node: &str| Record {
            node: node.into(),
            ..sample::record(&["10.77.0.1"])
        };
        let place = |name: &str| folder.path().join("restart").join(name);
        let store = |node: &str| {
            let path = place(&format!("{node}.json"));
            of(node).put(&Record::place(&path).unwrap()).unwrap();
            path
        };
        // Given: it is stored, and found again.
        let ours = record_path(&state);
        for _ in 0..2 {
            let record = adopt(&state, Some(of("one"))).unwrap().unwrap();
            assert_eq!((record.node.as_str(), ours.exists()), ("one", true));
        }
        assert_eq!(adopt(&state, None).unwrap().unwrap().node, "one");
        // Another one is there.
        assert!(matches!(
            adopt(&state, Some(of("two"))),
            Err(HandedError::Several(_))
        ));
        let newer = |node: &str| Record {
            taken_at: 9,
            ..of(node)
        };
        assert_eq!(
            adopt(&state, Some(newer("two"))).unwrap().unwrap().node,
            "two"
        );
        assert_eq!(Record::read(&ours).unwrap().id(), newer("two").id());
        let two = store("two");
        assert!(matches!(adopt(&state, None), Err(HandedError::Several(_))));
        fs::remove_file(&ours).unwrap();
        // Other files are not records.
        fs::write(place("rpc.nfsd"), "8").unwrap();
        fs::write(place("two.damaged"), "").unwrap();
        assert_eq!(adopt(&state, None).unwrap().unwrap().node, "two");
        assert!(ours.exists() && !two.exists());
        fs::write(place("three.json"), "{").unwrap();
        assert!(matches!(adopt(&state, None), Err(HandedError::Record(_))));
    }
}
