//! Chooses the next release method: a pure decision from what the node offers and what was
//! tried.
//!
//! | method | on | skipped if |
//! |---|---|---|
//! | `nlm_unlock` | kernels patched with the RFC | the VIP is a server address of another network namespace too |
//! | `unlock_ip` | every kernel, but before 6.1.191, 6.12.112 and 7.2 it releases nothing (CVE-2026-93231) | the same; IPv6 without netlink |
//! | FREE_ALL | every kernel | - |
//! | `unlock_filesystem` | every kernel | the operator named no filesystem |
//! | SM_NOTIFY | every kernel | the operator did not ask for it |
//! The next method is tried only if a snapshot after the last one still shows something of the
//! VIP. While nfsd is stopped nothing is tried: kernels before 6.19 crash on some of these
//! writes, and lockd answers FREE_ALL without acting on it.

use std::net::IpAddr;

use super::MethodKind;
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
    /// The operator named filesystems that may be released as a whole.
    pub filesystems_named: bool,
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
            filesystems_named: false,
            reboot_allowed: false,
            lockd_blocked: None,
        }
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
    pub method: MethodKind,
    /// Locks, waiting requests and shares of the VIP.
    pub before: usize,
    pub after: usize,
    /// Why the method failed as a whole.
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing of the VIP is left.
    Done,
    Go {
        method: MethodKind,
        reason: String,
    },
    GiveUp {
        reason: String,
    },
}

/// FREE_ALL is repeated while it makes progress: a client may have taken a lock between the
/// snapshot and the call.
const FREE_ALL_ROUNDS: usize = 3;

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
    for method in WAYS {
        match suitability(method, facts, tried) {
            Suitability::Fit => {
                passed_over.extend(merit(method, facts, tried));
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

/// In order of preference: made for this purpose, then exact, then not exact.
const WAYS: [MethodKind; 5] = [
    MethodKind::RfcFile,
    MethodKind::UnlockIp,
    MethodKind::FreeAll,
    MethodKind::Filesystem,
    MethodKind::Reboot,
];

enum Suitability {
    Fit,
    Unfit(String),
    /// Not available here, and not worth a message.
    Absent,
}

fn suitability(method: MethodKind, facts: &Facts, tried: &[Attempt]) -> Suitability {
    let absent = match method {
        MethodKind::RfcFile => !facts.rfc_file,
        MethodKind::Filesystem => !facts.filesystems_named,
        MethodKind::Reboot => !facts.reboot_allowed,
        MethodKind::UnlockIp | MethodKind::FreeAll => false,
    };
    if absent {
        return Suitability::Absent;
    }
    if let Some(last) = tried.iter().rfind(|attempt| attempt.method == method)
        && !worth_repeating(method, tried)
    {
        return Suitability::Unfit(outcome(last));
    }
    let calls_lockd = matches!(method, MethodKind::FreeAll | MethodKind::Reboot);
    if let Some(blocked) = &facts.lockd_blocked
        && calls_lockd
    {
        return Suitability::Unfit(format!("{method} needs lockd, but {blocked}"));
    }
    let by_address = matches!(method, MethodKind::RfcFile | MethodKind::UnlockIp);
    if by_address && facts.in_other_netns {
        return Suitability::Unfit(format!(
            "{method} acts in all network namespaces, and {} is a server address in another one too",
            facts.vip
        ));
    }
    if method == MethodKind::UnlockIp
        && let Some(reason) = unlock_ip_is_unfit(facts)
    {
        return Suitability::Unfit(reason);
    }
    Suitability::Fit
}

fn unlock_ip_is_unfit(facts: &Facts) -> Option<String> {
    let UnlockIp { netlink, file, .. } = facts.unlock_ip;
    if !netlink && !file {
        return Some("this kernel has no unlock_ip".into());
    }
    (!netlink && facts.vip.is_ipv6())
        .then(|| "unlock_ip of this kernel accepts no IPv6 address".into())
}

fn worth_repeating(method: MethodKind, tried: &[Attempt]) -> bool {
    let mut rounds = tried.iter().filter(|attempt| attempt.method == method);
    method == MethodKind::FreeAll
        && rounds.clone().count() < FREE_ALL_ROUNDS
        && rounds.all(|round| round.error.is_none() && round.after < round.before)
}

fn outcome(attempt: &Attempt) -> String {
    let Attempt {
        method,
        before,
        after,
        error,
    } = attempt;
    match error {
        Some(error) => format!("{method} failed: {error}"),
        None => format!("{method} left {after} of {before}"),
    }
}

/// Why a method was chosen, beyond the failure of the others.
fn merit(method: MethodKind, facts: &Facts, tried: &[Attempt]) -> Option<String> {
    match method {
        MethodKind::RfcFile => Some("this kernel has the RFC's nlm_unlock".into()),
        MethodKind::UnlockIp => Some(match &facts.unlock_ip.verdict {
            Verdict::Unknown { reason } => {
                format!("unknown whether unlock_ip of this kernel works ({reason})")
            }
            // Tried anyway: reading code does not prove what it releases, and the locks are
            // checked in any case.
            Verdict::Broken { .. } => {
                "affected by CVE-2026-93231; trying anyway, the locks are checked again".into()
            }
            Verdict::Fixed { .. } => "unlock_ip of this kernel works".into(),
        }),
        MethodKind::FreeAll => tried
            .iter()
            .rfind(|attempt| attempt.method == MethodKind::FreeAll)
            .map(|last| format!("{}; it may release the rest", outcome(last))),
        MethodKind::Filesystem => Some("--unlock-filesystem was given".into()),
        MethodKind::Reboot => Some("--reboot-notice was given".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            filesystems_named: false,
            reboot_allowed: false,
            lockd_blocked: None,
        }
    }

    fn attempt(method: MethodKind, before: usize, after: usize) -> Attempt {
        Attempt {
            method,
            before,
            after,
            error: None,
        }
    }

    fn method(decision: Decision) -> Option<MethodKind> {
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
            ("RFC kernel", rfc(V4), MethodKind::RfcFile),
            ("RFC kernel, IPv6", rfc(V6), MethodKind::RfcFile),
            (
                "RFC kernel, other netns",
                elsewhere(rfc(V4)),
                MethodKind::FreeAll,
            ),
            ("7.3", facts(V4, netlink()), MethodKind::UnlockIp),
            ("7.3, IPv6", facts(V6, netlink()), MethodKind::UnlockIp),
            (
                "7.3, other netns",
                elsewhere(facts(V4, netlink())),
                MethodKind::FreeAll,
            ),
            ("6.1 fixed", facts(V4, fixed()), MethodKind::UnlockIp),
            ("6.1 fixed, IPv6", facts(V6, fixed()), MethodKind::FreeAll),
            ("6.12 broken", facts(V4, broken()), MethodKind::UnlockIp),
            (
                "6.12 broken, IPv6",
                facts(V6, broken()),
                MethodKind::FreeAll,
            ),
            ("unknown kernel", facts(V4, unknown()), MethodKind::UnlockIp),
            (
                "no unlock_ip at all",
                facts(V4, absent),
                MethodKind::FreeAll,
            ),
        ];
        for (name, facts, expected) in table {
            let decision = next(&facts, 6, &[]);
            assert_eq!(method_or_panic(&decision), expected, "{name}");
        }
    }

    fn method_or_panic(decision: &Decision) -> MethodKind {
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
            filesystems_named: true,
            reboot_allowed: true,
            ..facts(V4, netlink())
        };
        let Decision::GiveUp { reason } = next(&stopped, 1, &[]) else {
            panic!()
        };
        assert!(reason.contains("nfsd is stopped"), "{reason}");
    }

    #[test]
    fn a_way_that_left_locks_is_followed_by_the_next() {
        let facts = Facts {
            filesystems_named: true,
            reboot_allowed: true,
            ..facts(V4, unknown())
        };
        let mut tried = Vec::new();
        let mut seen = Vec::new();
        while let Decision::Go { method, .. } = next(&facts, 6, &tried) {
            seen.push(method);
            tried.push(attempt(method, 6, 6));
        }
        let expected = [
            MethodKind::UnlockIp,
            MethodKind::FreeAll,
            MethodKind::Filesystem,
            MethodKind::Reboot,
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_reason_tells_what_the_last_method_left() {
        let decision = next(
            &facts(V4, unknown()),
            6,
            &[attempt(MethodKind::UnlockIp, 6, 6)],
        );
        let reason = "unlock_ip left 6 of 6".to_owned();
        assert_eq!(
            decision,
            Decision::Go {
                method: MethodKind::FreeAll,
                reason
            }
        );
    }

    #[test]
    fn the_inexact_methods_need_an_option() {
        let tried = [
            attempt(MethodKind::UnlockIp, 2, 2),
            attempt(MethodKind::FreeAll, 2, 2),
        ];
        let Decision::GiveUp { reason } = next(&facts(V4, unknown()), 2, &tried) else {
            panic!()
        };
        assert_eq!(reason, "unlock_ip left 2 of 2; FREE_ALL left 2 of 2");
    }

    #[test]
    fn free_all_goes_on_while_it_gets_somewhere() {
        // IPv6 through procfs: FREE_ALL is the first method.
        let facts = facts(V6, broken());
        let round = |before, after| attempt(MethodKind::FreeAll, before, after);
        assert_eq!(
            method(next(&facts, 1, &[round(9, 1)])),
            Some(MethodKind::FreeAll)
        );
        assert_eq!(method(next(&facts, 1, &[round(9, 1), round(1, 1)])), None);
        let three = [round(9, 5), round(5, 2), round(2, 1)];
        assert_eq!(method(next(&facts, 1, &three)), None);
    }

    #[test]
    fn a_method_that_failed_is_not_tried_again() {
        let error = Some("permission denied".to_owned());
        let tried = [Attempt {
            error,
            ..attempt(MethodKind::UnlockIp, 3, 3)
        }];
        let decision = next(&facts(V4, fixed()), 3, &tried);
        let reason = "unlock_ip failed: permission denied".to_owned();
        assert_eq!(
            decision,
            Decision::Go {
                method: MethodKind::FreeAll,
                reason
            }
        );
    }
}
