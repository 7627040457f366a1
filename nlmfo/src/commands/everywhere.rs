//! `locks` and `clients` of every server of the node. A child process with the same arguments lists
//! each server: it enters the server's namespaces while it has only one thread.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::Context;
use serde_json::{Value, json};

use crate::causes::chain;
use crate::exit::{Exit, Failure};
use crate::kernel::connections;
use crate::kernel::nfsd::Nfsd;
use crate::server::description::NODE;
use crate::{output, server};

const NFS_PORT: u16 = 2049;

/// Enters the namespaces of the server that was asked for, unless it is the node's own. The process
/// must have only one thread.
pub fn enter(name: &str) -> Result<(), Failure> {
    match name {
        NODE => Ok(()),
        name => Ok(server::enter(name)?),
    }
}

/// Lists all servers, and returns the exit status. None if the caller is to list only the server of its
/// own namespaces: the node has no other servers, or `--server` was given.
///
/// With `path`, only servers that have this path are listed.
pub fn list(asked: Option<&str>, json: bool, path: Option<&Path>) -> Result<Option<Exit>, Failure> {
    let own = server::running();
    if asked.is_some() || own.is_empty() {
        return Ok(None);
    }
    let mut all = own;
    if node_serves() {
        all.insert(0, NODE.to_owned());
    }
    if let Some(path) = path {
        all.retain(|name| match &**name {
            NODE => path.exists(),
            name => server::within(name, || path.exists()).unwrap_or(true),
        });
        if all.is_empty() {
            return Ok(None);
        }
    }
    let parts = ask_all(&all);
    for part in &parts {
        for line in &part.errors {
            output::note(format_args!("server {}: {line}", part.server));
        }
    }
    let exit = worst(parts.iter().map(|part| part.exit));
    match json {
        true => output::list_json(&merged(parts)).map(|_| ())?,
        false => output::list(|out| {
            use std::fmt::Write;
            for part in &parts {
                writeln!(out, "SERVER {}\n{}", part.server, part.said)?;
            }
            Ok(())
        })?,
    }
    Ok(Some(exit))
}

/// Whether the node has an NFS server of its own: `rpc.nfsd` needs nfsd's files mounted to start one.
fn node_serves() -> bool {
    Nfsd::mounted().is_ok() || connections::listens(NFS_PORT).unwrap_or(true)
}

/// One server's listing.
struct Part {
    server: String,
    exit: Exit,
    said: String,
    errors: Vec<String>,
}

/// In parallel: each takes a while to attach its probes.
fn ask_all(names: &[String]) -> Vec<Part> {
    thread::scope(|scope| {
        let asked: Vec<_> = (names.iter())
            .map(|name| (name, scope.spawn(|| ask(name))))
            .collect();
        let parts = asked.into_iter().map(|(name, asking)| {
            (asking.join()).unwrap_or_else(|_| Part {
                server: name.clone(),
                exit: Exit::NotConfirmed,
                said: String::new(),
                errors: vec!["its list was not read".to_owned()],
            })
        });
        parts.collect()
    })
}

fn ask(name: &str) -> Part {
    let asked = || {
        let program = env::current_exe().context("cannot find the program of this process")?;
        let mut child = Command::new(program);
        child.args(env::args_os().skip(1)).args(["--server", name]);
        let asked = child.stdin(Stdio::null()).output();
        asked.context("cannot run nlmfo")
    };
    let mut part = Part {
        server: name.to_owned(),
        exit: Exit::NotConfirmed,
        said: String::new(),
        errors: Vec::new(),
    };
    match asked() {
        Ok(finished) => {
            part.exit = exit_of(finished.status.code());
            part.said = String::from_utf8_lossy(&finished.stdout).into_owned();
            let errors = String::from_utf8_lossy(&finished.stderr).into_owned();
            let lines = errors.lines();
            let lines = lines.map(|line| line.strip_prefix("nlmfo: ").unwrap_or(line).to_owned());
            part.errors.extend(lines);
            if part.exit != Exit::Done && part.errors.is_empty() {
                part.errors.push(finished.status.to_string());
            }
        }
        Err(error) => part.errors.push(chain(&*error)),
    }
    part
}

fn exit_of(code: Option<i32>) -> Exit {
    let known = [
        Exit::Done,
        Exit::CouldNotRun,
        Exit::Usage,
        Exit::NotConfirmed,
        Exit::Unsupported,
        Exit::Incomplete,
    ];
    let found = known.into_iter().find(|exit| code == Some(*exit as i32));
    found.unwrap_or(Exit::NotConfirmed)
}

/// The exit status of all parts if they agree; otherwise, the list is incomplete.
fn worst(mut exits: impl Iterator<Item = Exit>) -> Exit {
    let first = exits.next().unwrap_or(Exit::NotConfirmed);
    match exits.all(|exit| exit == first) {
        true => first,
        false => Exit::NotConfirmed,
    }
}

/// The lists of rows in the JSON of `locks` and `clients`.
const LISTS: [&str; 7] = [
    "/locks",
    "/waiters",
    "/shares",
    "/vips",
    "/nfs4/clients",
    "/nfs4/states",
    "/nfs4/waiters",
];

/// One JSON object with the rows of all, each with its server.
fn merged(parts: Vec<Part>) -> Value {
    let mut all = Value::Null;
    let mut errors = Vec::new();
    for part in parts {
        let server = part.server;
        if let Some(error) = part.errors.last() {
            errors.push(json!({ "server": server, "error": error }));
        }
        let Ok(mut one) = serde_json::from_str::<Value>(&part.said) else {
            continue;
        };
        for list in LISTS {
            let rows = one.pointer_mut(list).and_then(Value::as_array_mut);
            for row in rows.into_iter().flatten().filter_map(Value::as_object_mut) {
                row.insert("server".to_owned(), server.clone().into());
            }
        }
        match all.is_null() {
            true => all = one,
            false => join(&mut all, one),
        }
    }
    if all.is_null() {
        all = json!({});
    }
    all["errors"] = errors.into();
    all
}

fn join(all: &mut Value, mut other: Value) {
    let is_read = |one: &Value| one["nfs4"]["state"] == "read";
    if is_read(&other) && !is_read(all) {
        all["nfs4"] = other["nfs4"].take();
    }
    for list in LISTS {
        let more = other.pointer_mut(list).map(Value::take);
        let rows = all.pointer_mut(list).and_then(Value::as_array_mut);
        if let (Some(rows), Some(Value::Array(more))) = (rows, more) {
            rows.extend(more);
        }
    }
    for exact in ["/exact", "/nfs4/exact"] {
        if other.pointer(exact) == Some(&Value::Bool(false))
            && let Some(all) = all.pointer_mut(exact)
        {
            *all = false.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(server: &str, exit: Exit, said: &Value, error: Option<&str>) -> Part {
        Part {
            server: server.into(),
            exit,
            said: said.to_string(),
            errors: error.map(str::to_owned).into_iter().collect(),
        }
    }

    #[test]
    fn rows_name_their_server() {
        let node = json!({
            "exact": true, "locks": [], "nfs4": { "state": "unknown", "reason": "no nfsd" },
        });
        let of = |svid: u32, exact: bool| {
            json!({
                "exact": exact,
                "locks": [{ "svid": svid }],
                "nfs4": { "state": "read", "exact": true, "states": [{ "id": svid }] },
            })
        };
        let all = merged(vec![
            part("node", Exit::Done, &node, None),
            part("data", Exit::Done, &of(1, true), None),
            part("gone", Exit::CouldNotRun, &Value::Null, Some("not running")),
            part("mail", Exit::Done, &of(2, false), None),
        ]);
        assert_eq!(
            all,
            json!({
                "exact": false,
                "locks": [{ "svid": 1, "server": "data" }, { "svid": 2, "server": "mail" }],
                "nfs4": {
                    "state": "read",
                    "exact": true,
                    "states": [{ "id": 1, "server": "data" }, { "id": 2, "server": "mail" }],
                },
                "errors": [{ "server": "gone", "error": "not running" }],
            })
        );
    }

    #[test]
    fn one_that_fails_is_not_hidden() {
        let worst = |exits: &[Exit]| worst(exits.iter().copied());
        assert_eq!(worst(&[Exit::Done, Exit::Done]), Exit::Done);
        assert_eq!(worst(&[Exit::Done, Exit::CouldNotRun]), Exit::NotConfirmed);
        assert_eq!(worst(&[Exit::Unsupported; 2]), Exit::Unsupported);
        assert_eq!(exit_of(Some(5)), Exit::Incomplete);
        assert_eq!(exit_of(Some(101)), Exit::NotConfirmed);
        assert_eq!(exit_of(None), Exit::NotConfirmed);
    }
}
