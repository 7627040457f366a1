//! Known kernel bugs: the checks that find each, the kernels that have it, and the
//! evidence.

use nlmfo_common::probe::Known;
use nlmfo_common::version::Version;

use crate::kernel::locks::queues_requests;
use crate::kernel::unlock_bug;

/// What is known of the kernel that is probed.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// None if neither the release nor the version string has one.
    pub version: Option<Version>,
    /// The verdict on the running code of `unlock_ip`.
    pub unlock_ip: unlock_bug::Verdict,
}

/// What a known bug looks like to a check. A failure of any other kind is never one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Symptom {
    #[error("it reported success and released nothing")]
    NothingReleased,
    #[error("an IPv6 address was refused")]
    Ipv6Refused,
    #[error("the server answered that the request waits, but queued nothing")]
    NotQueued,
    #[error("TEST told a writer that the range is free, but a read lock is held")]
    ReadLockFree,
}

struct Bug {
    id: &'static str,
    title: &'static str,
    evidence: &'static str,
    symptom: Symptom,
    has: fn(&Kernel) -> bool,
}

const BUGS: &[Bug] = &[
    Bug {
        id: "unlock_ip-ipv6",
        title: "unlock_ip of procfs accepts no IPv6 address except a link-local one with its scope",
        evidence: "fs/nfsd/nfsctl.c passes rpc_pton() a length that includes the newline, so that it \
                   expects a scope ID: read in 6.1.192 and 6.12.117, seen on 6.1, 6.12 and 7.3",
        symptom: Symptom::Ipv6Refused,
        has: |kernel| kernel.is_from((6, 1), (7, 4)),
    },
    Bug {
        id: "CVE-2026-93231",
        title: "unlock_ip reports success and releases nothing: nlmsvc_match_ip() swaps its arguments",
        evidence: "the code of the running function compares the host with the h_srcaddr of the address; \
                   fixed in 6.1.191, 6.12.112, 6.18.50 and 7.3, and in 7.2.12 or before",
        symptom: Symptom::NothingReleased,
        has: |kernel| matches!(kernel.unlock_ip, unlock_bug::Verdict::Broken { .. }),
    },
    Bug {
        id: "blocked-not-queued",
        title: "a LOCK that blocks is answered with `blocked` but never queued: the client has to ask \
                again",
        evidence: "no waiter in lockd's lists on 6.12.95 to 6.12.117, and by the sources since 6.7; 6.1 \
                   and 7.3 queue it",
        symptom: Symptom::NotQueued,
        has: |kernel| !kernel.queues(),
    },
    Bug {
        id: "test-ignores-mode",
        title: "TEST ignores the mode of the lock: a read lock looks free to a writer",
        evidence: "nlmsvc_testlock() of fs/lockd/svclock.c gives vfs_test_lock() a lock without a \
                   type, which counts as a read lock: read in 6.1.192 and 6.12.117, seen on \
                   6.1.176, 6.1.192, 6.12.107 to 6.12.117, 7.2.12 and 7.3.4",
        symptom: Symptom::ReadLockFree,
        has: |kernel| {
            [(6, 1), (6, 12), (7, 2), (7, 3)]
                .iter()
                .any(|line| kernel.is_of(*line))
        },
    },
];

impl Kernel {
    /// Whether a request that blocks is really queued.
    pub fn queues(&self) -> bool {
        queues_requests(self.version)
    }

    /// Whether its series is in `from..to`.
    fn is_from(&self, from: (u32, u32), to: (u32, u32)) -> bool {
        self.line().is_some_and(|line| (from..to).contains(&line))
    }

    fn is_of(&self, line: (u32, u32)) -> bool {
        self.line() == Some(line)
    }

    fn line(&self) -> Option<(u32, u32)> {
        self.version.map(|version| (version.major, version.minor))
    }
}

/// The known bug of this kernel with this symptom.
pub fn name(symptom: Symptom, kernel: &Kernel) -> Option<Known> {
    BUGS.iter()
        .find(|bug| bug.symptom == symptom && (bug.has)(kernel))
        .map(|bug| Known {
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

    fn id(symptom: Symptom, kernel: &Kernel) -> Option<String> {
        name(symptom, kernel).map(|named| named.id)
    }

    #[test]
    fn a_bug_is_named_on_kernels_that_have_it() {
        let old = kernel(Version::new(6, 12, 107), true);
        for (symptom, bug) in [
            (Symptom::NothingReleased, "CVE-2026-93231"),
            (Symptom::NotQueued, "blocked-not-queued"),
            (Symptom::ReadLockFree, "test-ignores-mode"),
            (Symptom::Ipv6Refused, "unlock_ip-ipv6"),
        ] {
            assert_eq!(id(symptom, &old).as_deref(), Some(bug));
        }
    }

    #[test]
    fn the_same_failure_elsewhere_is_news() {
        let new = kernel(Version::new(7, 3, 4), false);
        assert_eq!(id(Symptom::NothingReleased, &new), None);
        assert_eq!(id(Symptom::NotQueued, &new), None);
        let later = kernel(Version::new(7, 4, 0), false);
        assert_eq!(id(Symptom::ReadLockFree, &later), None);
        assert_eq!(id(Symptom::Ipv6Refused, &later), None);
    }

    #[test]
    fn a_kernel_of_unknown_version_is_taken_for_a_good_one() {
        let unknown = Kernel {
            version: None,
            ..kernel(Version::new(6, 12, 1), false)
        };
        assert!(unknown.queues());
        assert_eq!(id(Symptom::ReadLockFree, &unknown), None);
    }
}
