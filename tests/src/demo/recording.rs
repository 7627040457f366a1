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

/// What stands for a tick while the server is not there.
const GONE: &str = "gone";

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

    fn line(&self, mut line: Value) -> Result<()> {
        let Some(out) = &self.out else {
            return Ok(());
        };
        line["at_ms"] = json!(self.began.elapsed().as_millis() as u64);
        writeln!(out.lock().expect("no panic while held"), "{line}").context("the recording")
    }

    /// A line of what the operator sees.
    pub(super) fn said(&self, line: &str) -> Result<()> {
        self.line(json!({ "said": line }))
    }

    pub(super) fn clients(&self, clients: &[ClientSeen]) -> Result<()> {
        self.line(json!({ "clients": clients }))
    }

    /// Records what `nlmfo watch` shows of a server on a node, each time that it is there. Returns
    /// once it has said whether it is.
    pub(super) fn watch(&self, node: &Node, nlmfo: &Path, server: &str) -> Result<Option<Watch>> {
        if self.out.is_none() {
            return Ok(None);
        }
        let nlmfo = nlmfo.display();
        let watch = format!("{nlmfo} watch --json --server {server} 2>/dev/null");
        // Its output breaks once nobody reads it.
        let again = format!("while {watch} || :; do echo {GONE} || exit; sleep 0.2; done");
        let mut command = node.node().command("sh");
        command.args(["-c", &again]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("nlmfo watch")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let first = lines.next().context("nlmfo watch says nothing")??;
        let (this, node) = (self.clone(), node.name().to_owned());
        thread::spawn(move || -> Result<()> {
            for line in std::iter::once(Ok(first)).chain(lines) {
                let line = line?;
                let tick = match line == GONE {
                    true => Value::Null,
                    false => serde_json::from_str(&line)?,
                };
                this.line(json!({ "watch": { "node": node, "tick": tick } }))?;
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
