//! Bugs that kernels are known to have: with each the checks that find it, the kernels
//! that have it, and how that is known.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::version::Version;
use crate::kernel::unlock_bug;

/// A known bug as reports name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub id: String,
    pub title: String,
    pub evidence: String,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.id, self.title, self.evidence)
    }
}

/// What is known of the kernel that is probed.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// None where neither release nor version tells.
    pub version: Option<Version>,
    /// What the running code of `unlock_ip` says of itself.
    pub unlock_ip: unlock_bug::Verdict,
}

struct Bug {
    id: &'static str,
    title: &'static str,
    evidence: &'static str,
    /// Checks whose names begin so fail by it.
    checks: &'static [&'static str],
    has: fn(&Kernel) -> bool,
}

const BUGS: &[Bug] = &[
    // Before the next: an IPv6 address never gets as far as the comparison.
    Bug {
        id: "unlock_ip-ipv6",
        title: "unlock_ip of procfs takes no IPv6 address but a link-local one with its scope",
        evidence: "fs/nfsd/nfsctl.c gives rpc_pton() a length that counts the newline, so that it \
                   looks for a scope id; seen on 6.1.176, 6.12.107, 7.2.12 and 7.3.4",
        checks: &["unlock-procfs-ipv6"],
        has: |_| true,
    },
    Bug {
        id: "CVE-2026-93231",
        title: "unlock_ip says success and releases nothing: nlmsvc_match_ip() takes its \
                arguments the wrong way round",
        evidence: "the running function's code, which compares the host with the address's \
                   h_srcaddr; fixed in 6.1.191, 6.12.112, 6.18.50, 7.2 and 7.3",
        checks: &["unlock-procfs-", "unlock-netlink-"],
        has: |kernel| matches!(kernel.unlock_ip, unlock_bug::Verdict::Broken { .. }),
    },
    Bug {
        id: "blocked-not-queued",
        title: "a LOCK that blocks is answered with `blocked` and never queued: the client has \
                to ask again",
        evidence: "no waiter in lockd's lists on 6.12.95 to 6.12.117; 6.1 and 6.18 queue it",
        checks: &["blocked-"],
        has: |kernel| kernel.is_from((6, 7), (6, 18)),
    },
    Bug {
        id: "test-ignores-mode",
        title: "TEST takes no notice of the lock's mode: a read lock looks free to a writer",
        evidence: "nlmsvc_testlock() of fs/lockd/svclock.c gives vfs_test_lock() a lock without a \
                   type, which counts as a read lock: read in 6.1.192 and 6.12.117, seen on \
                   6.1.192, 6.12.111 and 7.3.4",
        checks: &["test-read-lock"],
        has: |kernel| kernel.is_from((6, 1), (7, 4)),
    },
];

impl Kernel {
    /// Whether its line is in `from..to`.
    fn is_from(&self, from: (u32, u32), to: (u32, u32)) -> bool {
        self.version.is_some_and(|version| {
            let line = (version.major, version.minor);
            (from..to).contains(&line)
        })
    }
}

/// The known bug of this kernel that makes this check fail.
pub fn name(check: &str, kernel: &Kernel) -> Option<Named> {
    BUGS.iter()
        .find(|bug| bug.checks.iter().any(|prefix| check.starts_with(prefix)) && (bug.has)(kernel))
        .map(|bug| Named {
            id: bug.id.to_owned(),
            title: bug.title.to_owned(),
            evidence: bug.evidence.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(version: Version, is_broken: bool) -> Kernel {
        let proof = String::new();
        Kernel {
            version: Some(version),
            unlock_ip: match is_broken {
                true => unlock_bug::Verdict::Broken { proof },
                false => unlock_bug::Verdict::Fixed { proof },
            },
        }
    }

    fn id(check: &str, kernel: &Kernel) -> Option<String> {
        name(check, kernel).map(|named| named.id)
    }

    #[test]
    fn a_bug_is_named_on_kernels_that_have_it() {
        let old = kernel(Version::new(6, 12, 107), true);
        assert_eq!(
            id("unlock-procfs-ipv4", &old).as_deref(),
            Some("CVE-2026-93231")
        );
        assert_eq!(
            id("blocked-granted", &old).as_deref(),
            Some("blocked-not-queued")
        );
        assert_eq!(id("free-all-ipv4-tcp-v4", &old), None);
    }

    #[test]
    fn the_same_failure_elsewhere_is_news() {
        let new = kernel(Version::new(7, 3, 4), false);
        assert_eq!(id("unlock-procfs-ipv4", &new), None);
        assert_eq!(id("blocked-granted", &new), None);
        let later = kernel(Version::new(7, 4, 0), false);
        assert_eq!(id("test-read-lock", &later), None);
    }
}
