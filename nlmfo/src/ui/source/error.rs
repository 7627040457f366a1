//! Why a recording cannot be written or read.

use std::io;
use std::path::PathBuf;

use crate::files::FileError;
use crate::ticks::tick::SCHEMA;

/// Why a recording cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot write the recording {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read the recording {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the recording {} contains no tick", path.display())]
    Empty { path: PathBuf },
    #[error("{}, line {line}, is damaged or not a recording of nlmfo", path.display())]
    Damaged {
        path: PathBuf,
        line: usize,
        source: serde_json::Error,
    },
    #[error(
        "the recording {}, line {line}, has the schema {schema:?}, but this nlmfo reads {SCHEMA:?}: \
         replay it with the version that wrote it", path.display()
    )]
    Foreign {
        path: PathBuf,
        line: usize,
        schema: String,
    },
}
