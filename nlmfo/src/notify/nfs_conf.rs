//! nfs-utils' configuration, as far as its `sm-notify` is concerned, as nfs-utils itself
//! reads it (`nfsconf`, of nfs-utils 2.5 and newer).

use std::io;
use std::process::Command;

const PROGRAM: &str = "nfsconf";

/// Whether sm-notify lifts lockd's grace early: it does unless it is told not to (nfs.conf(5)). A value
/// that is neither yes nor no has no effect.
///
/// # Errors
/// If `nfsconf` cannot be run.
pub fn lifts_grace() -> io::Result<bool> {
    let asked = Command::new(PROGRAM)
        .args(["--get", "sm-notify", "lift-grace"])
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{PROGRAM}: {error}")))?;
    // Without a value it prints nothing, and fails.
    Ok(!is_no(&asked.stdout))
}

/// The values that nfs-utils reads as no (`conf_get_bool`, support/nfs/conffile.c).
fn is_no(value: &[u8]) -> bool {
    const NO: [&[u8]; 6] = [b"0", b"f", b"false", b"n", b"no", b"off"];
    let value = value.trim_ascii();
    NO.iter().any(|no| value.eq_ignore_ascii_case(no))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_no_keeps_the_grace() {
        for no in ["n\n", "No\n", "0", "off"] {
            assert!(is_no(no.as_bytes()), "{no}");
        }
        for other in ["", "\n", "y\n", "none\n"] {
            assert!(!is_no(other.as_bytes()), "{other}");
        }
    }
}
