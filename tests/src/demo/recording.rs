//! A recording of a move for `cargo xtask picture`: a JSON object a line, each with the milliseconds
//! since the recording began.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::nfsv4::ClientSeen;
use crate::cluster::Node;

/// Writes from several threads. Without a file, it writes nothing.
#[derive(Clone)]
pub(super) struct Recording {
    out: Option<Arc<Mutex<File>>>,
    began: Instant,
}

/// `nlmfo watch` on a node. Dropping it ends it.
pub(super) struct Watch(Child);

impl Recording {
    pub(super) fn create(path: Option<&Path>) -> Result<Recording> {
        let file = path
            .map(|path| File::create(path).with_context(|| path.display().to_string()))
            .transpose()?;
        Ok(Recording {
            out: file.map(|file| Arc::new(Mutex::new(file))),
            began: Instant::now(),
        })
    }

    fn line(&self, what: &str, value: &Value) -> Result<()> {
        let Some(out) = &self.out else {
            return Ok(());
        };
        let at = self.began.elapsed().as_millis() as u64;
        let line = json!({ "at_ms": at, what: value });
        writeln!(out.lock().expect("no panic while held"), "{line}").context("the recording")
    }

    /// A line of what the operator sees.
    pub(super) fn said(&self, line: &str) -> Result<()> {
        self.line("said", &json!(line))
    }

    pub(super) fn clients(&self, clients: &[ClientSeen]) -> Result<()> {
        self.line("clients", &serde_json::to_value(clients)?)
    }

    /// Records what `nlmfo watch` shows of a node, from its first record on.
    pub(super) fn watch(&self, node: &Node) -> Result<Option<Watch>> {
        if self.out.is_none() {
            return Ok(None);
        }
        let mut command = node.tool().command(&["watch", "--json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("nlmfo watch")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut ticks = BufReader::new(stdout).lines();
        let first = ticks.next().context("nlmfo watch says nothing")??;
        let this = self.clone();
        thread::spawn(move || -> Result<()> {
            this.line("tick", &serde_json::from_str(&first)?)?;
            for tick in ticks {
                this.line("tick", &serde_json::from_str(&tick?)?)?;
            }
            Ok(())
        });
        Ok(Some(Watch(child)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
