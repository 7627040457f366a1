//! Recordings: ticks, one JSON object a line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::RecordingError;
use crate::files::{self, Place};
use crate::ticks::tick::{SCHEMA, Tick};

/// Writes ticks, each as soon as it is there.
#[derive(Debug)]
pub(crate) struct Recorder {
    place: Place<()>,
    /// From the first tick on.
    out: Option<BufWriter<File>>,
}

impl Recorder {
    /// Looks at the place: a recording that is there is replaced when the first tick is written.
    pub fn create(path: &Path) -> Result<Self, RecordingError> {
        let is_recording = |file| Reader::of(path, file).map(drop);
        Ok(Recorder {
            place: Place::look(path, "a recording", is_recording)?,
            out: None,
        })
    }

    pub fn write(&mut self, tick: &Tick) -> Result<(), RecordingError> {
        let failed = |source| RecordingError::Write {
            path: self.place.path().to_owned(),
            source,
        };
        match &mut self.out {
            Some(out) => write_line(out, tick).map_err(failed),
            None => {
                let mut line = Vec::new();
                write_line(&mut line, tick).map_err(failed)?;
                self.out = Some(BufWriter::new(self.place.put(&line)?));
                Ok(())
            }
        }
    }
}

/// A tick as one line, at once.
pub(crate) fn write_line(out: &mut impl Write, tick: &Tick) -> io::Result<()> {
    serde_json::to_writer(&mut *out, tick)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Reads ticks, one after the other.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    lines: BufReader<File>,
    line: usize,
    text: String,
}

impl Reader {
    /// Reads the first tick too, so that a wrong file is told at once.
    ///
    /// # Errors
    /// If the file cannot be read, contains no tick, or has another schema.
    pub fn open(path: &Path) -> Result<(Self, Tick), RecordingError> {
        Reader::of(path, files::open(path)?)
    }

    fn of(path: &Path, file: File) -> Result<(Self, Tick), RecordingError> {
        let mut reader = Reader {
            path: path.to_owned(),
            lines: BufReader::new(file),
            line: 0,
            text: String::new(),
        };
        let empty = || RecordingError::Empty {
            path: path.to_owned(),
        };
        let first = reader.next_tick()?.ok_or_else(empty)?;
        Ok((reader, first))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The next tick; none at the end. A last line that was not written to its end, as
    /// of a watch that was killed, is the end too.
    ///
    /// # Errors
    /// If the file cannot be read any further, or a whole line is no tick.
    pub fn next_tick(&mut self) -> Result<Option<Tick>, RecordingError> {
        self.text.clear();
        self.line += 1;
        let read = self.lines.read_line(&mut self.text);
        read.map_err(|source| RecordingError::Read {
            path: self.path.clone(),
            source,
        })?;
        if !self.text.ends_with('\n') {
            return Ok(None);
        }
        #[derive(Deserialize)]
        struct Head {
            schema: String,
        }
        let damaged = |source| RecordingError::Damaged {
            path: self.path.clone(),
            line: self.line,
            source,
        };
        let Head { schema } = serde_json::from_str(&self.text).map_err(damaged)?;
        if schema != SCHEMA {
            return Err(RecordingError::Foreign {
                path: self.path.clone(),
                line: self.line,
                schema,
            });
        }
        serde_json::from_str(&self.text).map_err(damaged).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticks::samples as ticks;

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recording");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn what_was_written_is_read() {
        let (_folder, path) = written(&format!(
            "{}\n",
            serde_json::to_string(&ticks::one_vip()).unwrap()
        ));
        let ticks = [ticks::one_vip(), ticks::in_grace(), ticks::violation()];
        let mut recorder = Recorder::create(&path).unwrap();
        for tick in &ticks {
            recorder.write(tick).unwrap();
        }
        let (mut reader, first) = Reader::open(&path).unwrap();
        assert_eq!(first, ticks[0]);
        assert_eq!(reader.next_tick().unwrap().as_ref(), Some(&ticks[1]));
        assert_eq!(reader.next_tick().unwrap().as_ref(), Some(&ticks[2]));
        assert_eq!(reader.next_tick().unwrap(), None);
    }

    #[test]
    fn what_is_no_recording_is_not_replaced() {
        for text in ["old", "", "{\"schema\":\"nlmfo.record/1\"}\n"] {
            let (_folder, path) = written(text);
            let error = Recorder::create(&path).unwrap_err().to_string();
            assert!(error.contains("exists and is not a recording"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn a_line_that_was_cut_off_is_the_end() {
        let line = serde_json::to_string(&ticks::one_vip()).unwrap();
        let (_folder, path) = written(&format!("{line}\n{}", &line[..50]));
        let (mut reader, _) = Reader::open(&path).unwrap();
        assert_eq!(reader.next_tick().unwrap(), None);
    }

    #[test]
    fn what_is_no_recording_is_said_with_its_line() {
        let error = |text: &str| {
            let (_folder, path) = written(text);
            Reader::open(&path).unwrap_err().to_string()
        };
        assert!(error("").contains("contains no tick"));
        assert!(error("# text\n").contains("line 1"));
        let record = "{\"schema\":\"nlmfo.record/1\"}\n";
        assert!(error(record).contains("\"nlmfo.record/1\""));
    }
}
