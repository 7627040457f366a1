//! Chooses the next release method: a pure decision from what the node offers and what was
//! tried.
//!
//! | method | on | skipped if |
//! |---|---|---|
//! | `nlm_unlock` | kernels patched with the RFC | the VIP is a server address of another network namespace too |
//! | `unlock_ip` | every kernel, but before 6.1.191, 6.12.112, 6.18.50 and 7.2.12 it releases nothing (CVE-2026-93231) | the same; IPv6 without netlink |
//! | FREE_ALL | every kernel | - |
//! | `unlock_filesystem` | every kernel | the operator named no filesystem |
//! | SM_NOTIFY | every kernel | the operator did not ask for it |
//! The next method is tried only if a snapshot after the last one still shows something of the
//! VIP. While nfsd is stopped nothing is tried: kernels before 6.19 crash on some of these
//! writes, and lockd answers FREE_ALL without acting on it.

use std::fmt;
use std::net::IpAddr;

use super::{METHODS, MethodRef, Reach, Suitability};
use crate::kernel::preflight;
use crate::kernel::unlock_bug::Verdict;

/// The facts for the choice.
#[derive(Clone, Debug)]
pub struct Facts {
    pub vip: IpAddr,
    /// Threads of nfsd in this network namespace; 0 means stopped.
    pub nfsd_threads: u32,
    /// `/proc/fs/nfsd/nlm_unlock` exists.
    pub rfc_file: bool,
    pub unlock_ip: UnlockIp,
    /// The VIP is a server address in another network namespace as well.
    pub in_other_netns: bool,
    /// Whether filesystems may be released as a whole: absent unless the operator named them.
    pub filesystems: Suitability,
    /// The operator allows SM_NOTIFY for clients that use no other VIP.
    pub reboot_allowed: bool,
    /// Why lockd answers no call. nfsd's files and commands work without it.
    pub lockd_blocked: Option<String>,
}

impl Facts {
    /// What preflight found for one VIP, without the methods that need an option.
    pub fn of_node(node: &preflight::Facts, vip: IpAddr, in_other_netns: bool) -> Self {
        Facts {
            vip,
            nfsd_threads: node.nfsd_threads.unwrap_or(0),
            rfc_file: node.rfc_unlock.is_available(),
            unlock_ip: UnlockIp {
                netlink: node.netlink_unlock_ip.is_available(),
                file: node.procfs_unlock_ip.is_available(),
                verdict: node.unlock_ip.clone(),
            },
            in_other_netns,
            filesystems: Suitability::Absent,
            reboot_allowed: false,
            lockd_blocked: None,
        }
    }

    /// Whether a method that is unfit now may be fit soon: NFSv4 clients give their locks up.
    pub fn may_change(&self) -> bool {
        self.nfsd_threads > 0 && matches!(self.filesystems, Suitability::Unfit(_))
    }
}

/// The kernel's own release by address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnlockIp {
    /// Netlink `NFSD_CMD_UNLOCK_IP` exists. It takes IPv6.
    pub netlink: bool,
    /// `/proc/fs/nfsd/unlock_ip` exists. It takes IPv4 only.
    pub file: bool,
    /// Whether the running code releases locks.
    pub verdict: Verdict,
}

/// A method that was tried, and what snapshots showed before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub method: MethodRef,
    /// Locks, waiting requests and shares of the VIP.
    pub before: usize,
    pub after: usize,
    /// Why the method failed as a whole.
    pub error: Option<String>,
}

/// What a release does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing of the VIP is left.
    Done,
    Go {
        method: MethodRef,
        reason: String,
    },
    GiveUp {
        reason: String,
    },
}

/// What to do next, with `left` locks, waiting requests and shares of the VIP in the
/// newest snapshot.
pub fn next(facts: &Facts, left: usize, tried: &[Attempt]) -> Decision {
    if left == 0 {
        return Decision::Done;
    }
    if facts.nfsd_threads == 0 {
        let reason = "nfsd is stopped in this network namespace: start it (`systemctl start nfs-server`), or \
                      stop lockd too, which releases all of its locks"
            .to_owned();
        return Decision::GiveUp { reason };
    }
    let mut passed_over = Vec::new();
    for method in METHODS {
        match suitability(method, facts, tried) {
            Suitability::Fit => {
                passed_over.extend(method.merit(facts, tried));
                return Decision::Go {
                    method,
                    reason: passed_over.join("; "),
                };
            }
            Suitability::Unfit(reason) => passed_over.push(reason),
            Suitability::Absent => {}
        }
    }
    Decision::GiveUp {
        reason: passed_over.join("; "),
    }
}

fn suitability(method: MethodRef, facts: &Facts, tried: &[Attempt]) -> Suitability {
    let suitability = method.suitability(facts);
    if suitability == Suitability::Absent {
        return suitability;
    }
    if let Some(last) = tried.iter().rfind(|attempt| attempt.method == method)
        && !worth_repeating(method, tried)
    {
        return Suitability::Unfit(last.to_string());
    }
    if let Some(blocked) = &facts.lockd_blocked
        && method.calls_lockd()
    {
        return Suitability::Unfit(format!("{method} needs lockd, but {blocked}"));
    }
    if method.reach() == Reach::VipOfAllNamespaces && facts.in_other_netns {
        return Suitability::Unfit(format!(
            "{method} acts in all network namespaces, and {} is a server address in another one too",
            facts.vip
        ));
    }
    suitability
}

fn worth_repeating(method: MethodRef, tried: &[Attempt]) -> bool {
    let mut rounds = tried.iter().filter(|attempt| attempt.method == method);
    rounds.clone().count() < method.rounds()
        && rounds.all(|round| round.error.is_none() && round.after < round.before)
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Attempt {
            method,
            before,
            after,
            error,
        } = self;
        match error {
            Some(error) => write!(f, "{method} failed: {error}"),
            None => write!(f, "{method} left {after} of {before}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RFC_FILE: MethodRef = METHODS[0];
    const UNLOCK_IP: MethodRef = METHODS[1];
    const FREE_ALL: MethodRef = METHODS[2];
    const FILESYSTEM: MethodRef = METHODS[3];
    const REBOOT: MethodRef = METHODS[4];

    fn by_file(verdict: Verdict) -> UnlockIp {
        UnlockIp {
            netlink: false,
            file: true,
            verdict,
        }
    }

    fn fixed() -> UnlockIp {
        by_file(Verdict::Fixed {
            proof: "it reads h_srcaddr of the host".into(),
        })
    }

    fn broken() -> UnlockIp {
        by_file(Verdict::Broken {
            proof: "it reads h_srcaddr of the address".into(),
        })
    }

    fn unknown() -> UnlockIp {
        by_file(Verdict::Unknown {
            reason: "no kcore".into(),
        })
    }

    fn netlink() -> UnlockIp {
        UnlockIp {
            netlink: true,
            ..fixed()
        }
    }

    fn facts(vip: &str, unlock_ip: UnlockIp) -> Facts {
        Facts {
            vip: vip.parse().unwrap(),
            nfsd_threads: 8,
            rfc_file: false,
            unlock_ip,
            in_other_netns: false,
            filesystems: Suitability::Absent,
            reboot_allowed: false,
            lockd_blocked: None,
        }
    }

    fn attempt(method: MethodRef, before: usize, after: usize) -> Attempt {
        Attempt {
            method,
            before,
            after,
            error: None,
        }
    }

    fn method(decision: Decision) -> Option<MethodRef> {
        match decision {
            Decision::Go { method, reason } => {
                assert!(!reason.is_empty(), "{method} without a reason");
                Some(method)
            }
            _ => None,
        }
    }

    const V4: &str = "10.77.0.1";
    const V6: &str = "fd77::1";

    #[test]
    fn the_first_method_on_each_kind_of_node() {
        let rfc = |vip| Facts {
            rfc_file: true,
            ..facts(vip, broken())
        };
        let elsewhere = |facts| Facts {
            in_other_netns: true,
            ..facts
        };
        let absent = UnlockIp {
            netlink: false,
            file: false,
            ..unknown()
        };
        let table = [
            ("RFC kernel", rfc(V4), RFC_FILE),
            ("RFC kernel, IPv6", rfc(V6), RFC_FILE),
            ("RFC kernel, other netns", elsewhere(rfc(V4)), FREE_ALL),
            ("7.3", facts(V4, netlink()), UNLOCK_IP),
            ("7.3, IPv6", facts(V6, netlink()), UNLOCK_IP),
            (
                "7.3, other netns",
                elsewhere(facts(V4, netlink())),
                FREE_ALL,
            ),
            ("6.1 fixed", facts(V4, fixed()), UNLOCK_IP),
            ("6.1 fixed, IPv6", facts(V6, fixed()), FREE_ALL),
            ("6.12 broken", facts(V4, broken()), UNLOCK_IP),
            ("6.12 broken, IPv6", facts(V6, broken()), FREE_ALL),
            ("unknown kernel", facts(V4, unknown()), UNLOCK_IP),
            ("no unlock_ip at all", facts(V4, absent), FREE_ALL),
        ];
        for (name, facts, expected) in table {
            let decision = next(&facts, 6, &[]);
            assert_eq!(method_or_panic(&decision), expected, "{name}");
        }
    }

    fn method_or_panic(decision: &Decision) -> MethodRef {
        method(decision.clone()).unwrap_or_else(|| panic!("no method: {decision:?}"))
    }

    #[test]
    fn nothing_left_is_done_even_on_a_stopped_node() {
        let stopped = Facts {
            nfsd_threads: 0,
            ..facts(V4, netlink())
        };
        assert_eq!(next(&stopped, 0, &[]), Decision::Done);
    }

    #[test]
    fn a_stopped_nfsd_is_never_written_to() {
        let stopped = Facts {
            nfsd_threads: 0,
            rfc_file: true,
            filesystems: Suitability::Fit,
            reboot_allowed: true,
            ..facts(V4, netlink())
        };
        let Decision::GiveUp { reason } = next(&stopped, 1, &[]) else {
            panic!()
        };
        assert!(reason.contains("nfsd is stopped"), "{reason}");
    }

    #[test]
    fn a_method_that_left_locks_is_followed_by_the_next() {
        let facts = Facts {
            filesystems: Suitability::Fit,
            reboot_allowed: true,
            ..facts(V4, unknown())
        };
        let mut tried = Vec::new();
        let mut seen = Vec::new();
        while let Decision::Go { method, .. } = next(&facts, 6, &tried) {
            seen.push(method);
            tried.push(attempt(method, 6, 6));
        }
        let expected = [UNLOCK_IP, FREE_ALL, FILESYSTEM, REBOOT];
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_reason_tells_what_the_last_method_left() {
        let decision = next(&facts(V4, unknown()), 6, &[attempt(UNLOCK_IP, 6, 6)]);
        let reason = "unlock_ip left 6 of 6".to_owned();
        assert_eq!(
            decision,
            Decision::Go {
                method: FREE_ALL,
                reason
            }
        );
    }

    #[test]
    fn the_inexact_methods_need_an_option() {
        let tried = [attempt(UNLOCK_IP, 2, 2), attempt(FREE_ALL, 2, 2)];
        let Decision::GiveUp { reason } = next(&facts(V4, unknown()), 2, &tried) else {
            panic!()
        };
        assert_eq!(reason, "unlock_ip left 2 of 2; FREE_ALL left 2 of 2");
    }

    #[test]
    fn free_all_goes_on_while_it_gets_somewhere() {
        // IPv6 through procfs: FREE_ALL is the first method.
        let facts = facts(V6, broken());
        let round = |before, after| attempt(FREE_ALL, before, after);
        assert_eq!(method(next(&facts, 1, &[round(9, 1)])), Some(FREE_ALL));
        assert_eq!(method(next(&facts, 1, &[round(9, 1), round(1, 1)])), None);
        let three = [round(9, 5), round(5, 2), round(2, 1)];
        assert_eq!(method(next(&facts, 1, &three)), None);
    }

    #[test]
    fn a_method_that_failed_is_not_tried_again() {
        let error = Some("permission denied".to_owned());
        let tried = [Attempt {
            error,
            ..attempt(UNLOCK_IP, 3, 3)
        }];
        let decision = next(&facts(V4, fixed()), 3, &tried);
        let reason = "unlock_ip failed: permission denied".to_owned();
        assert_eq!(
            decision,
            Decision::Go {
                method: FREE_ALL,
                reason
            }
        );
    }

    #[test]
    fn only_a_filesystem_that_is_unfit_may_change() {
        let with = |filesystems| Facts {
            filesystems,
            ..facts(V4, broken())
        };
        assert!(!with(Suitability::Absent).may_change());
        assert!(!with(Suitability::Fit).may_change());
        let mut unfit = with(Suitability::Unfit("a client has locks".into()));
        assert!(unfit.may_change());
        unfit.nfsd_threads = 0;
        assert!(!unfit.may_change());
    }
}
