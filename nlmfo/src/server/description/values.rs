//! Values of a description: paths, exports, versions, times.

use std::path::{Component, Path};
use std::time::Duration;

use super::Version;

/// The times that nfsd accepts, in seconds (`__nfsd4_write_time` in fs/nfsd/nfsctl.c).
const TIMES: std::ops::RangeInclusive<u64> = 10..=3600;

pub(super) fn absolute(what: &str, path: &Path) -> Result<(), String> {
    let is_plain = !(path.components()).any(|part| part == Component::ParentDir);
    match path.is_absolute() && is_plain {
        true => Ok(()),
        false => Err(format!(
            "{what}: {} is not an absolute path without `..`",
            path.display()
        )),
    }
}

/// Checks the form of an export, and that it has an fsid: clients' file handles must be the same on
/// every node, and device numbers differ.
pub(super) fn check_export(line: &str) -> Result<(), String> {
    let mut words = line.split_whitespace();
    let path = words.next().unwrap_or_default();
    let mut clients = words.peekable();
    if !path.starts_with('/') || clients.peek().is_none() || line.contains('\n') {
        return Err(format!(
            "{line:?} is not a line of exports(5): PATH CLIENT(OPTIONS)..."
        ));
    }
    for client in clients {
        let options = client.split_once('(').map_or("", |(_, options)| options);
        let mut options = options.trim_end_matches(')').split(',');
        if !options.any(|option| option.starts_with("fsid=")) {
            return Err(format!(
                "{client:?} of {path} has no fsid=: file handles would differ between nodes"
            ));
        }
    }
    Ok(())
}

pub(super) fn version(value: &toml::Value) -> Result<Vec<Version>, String> {
    let minors = [Version::V4(0), Version::V4(1), Version::V4(2)];
    let minor = |float: f64| {
        minors
            .iter()
            .zip([4.0, 4.1, 4.2])
            .find(|(_, is)| *is == float)
    };
    let found = match value {
        toml::Value::Integer(3) => Some(vec![Version::V3]),
        toml::Value::Integer(4) => Some(minors.to_vec()),
        toml::Value::Float(float) => minor(*float).map(|(version, _)| vec![*version]),
        _ => None,
    };
    found.ok_or_else(|| {
        let given = match value {
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            other => format!("a {}", other.type_str()),
        };
        format!("{given} is none of 3, 4, 4.0, 4.1 and 4.2")
    })
}

pub(super) fn time(what: &str, text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("{what}: {text:?} is not a time ({error})"))?;
    match TIMES.contains(&time.as_secs()) && time.subsec_nanos() == 0 {
        true => Ok(time),
        false => Err(format!(
            "{what}: {text}: nfsd accepts whole seconds from {} to {}",
            TIMES.start(),
            TIMES.end()
        )),
    }
}
