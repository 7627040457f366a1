//! The facts as a list for the operator.

use std::fmt;

use serde::Serialize;

use super::{Capability, Facts};
use crate::kernel::unlock_bug::Verdict;

impl Facts {
    /// The capabilities of the kernel, as a list. `failover::services` checks the services.
    pub fn checks(&self) -> Vec<Check> {
        let check =
            |name: &str, purpose: &'static str, need: Need, capability: &Capability| Check {
                name: name.to_owned(),
                purpose,
                need,
                capability: capability.clone(),
            };
        use Need::{Option, Required};
        let mut checks = vec![
            check("privileges", "everything", Required, &self.privileges),
            check("kernel_reads", "snapshots", Required, &self.kernel_reads),
            check(
                "symbols",
                "addresses of functions and lists",
                Required,
                &self.symbols,
            ),
            check(
                "ftrace",
                "counters and verification",
                Required,
                &self.ftrace,
            ),
            check("btf", "layout of kernel structs", Required, &self.btf),
            check("lockd", "the NLM service", Required, &self.lockd),
            check("layouts", "snapshots", Required, &self.layouts),
            check(
                "kprobes",
                "counters and verification",
                Required,
                &self.kprobes,
            ),
        ];
        for (name, capability) in &self.functions {
            checks.push(check(
                &format!("function {name}"),
                "a probe",
                Required,
                capability,
            ));
        }
        checks.extend([
            check(
                "procfs_unlock_ip",
                "release of an IPv4 VIP",
                Option,
                &self.procfs_unlock_ip,
            ),
            check(
                "netlink_unlock_ip",
                "release of an IPv4 or IPv6 VIP",
                Option,
                &self.netlink_unlock_ip,
            ),
            check(
                "unlock_ip",
                "unlock_ip works",
                Option,
                &self.unlock_ip_works,
            ),
            check(
                "procfs_unlock_filesystem",
                "release of a filesystem, on request",
                Option,
                &self.procfs_unlock_filesystem,
            ),
            check(
                "rfc_unlock",
                "release by the RFC's file",
                Option,
                &self.rfc_unlock,
            ),
            check(
                "rfc_grace",
                "grace by the RFC's file",
                Option,
                &self.rfc_grace,
            ),
            check(
                "bpffs",
                "grace after the command exits",
                Option,
                &self.bpffs,
            ),
            check(
                "bpf_links",
                "grace after the command exits",
                Option,
                &self.bpf_links,
            ),
            check(
                "grace_list",
                "no gate during kernel grace",
                Option,
                &self.grace_list,
            ),
            check("tcx", "the gate", Option, &self.tcx),
            check("clsact", "the gate, without tcx", Option, &self.clsact),
        ]);
        checks
    }
}

/// The verdict on `unlock_ip` as a capability.
pub(super) fn unlock_ip_works(verdict: &Verdict) -> Capability {
    match verdict {
        Verdict::Fixed { .. } => Capability::Available,
        Verdict::Broken { proof } => Capability::missing(
            format!(
                "CVE-2026-93231: unlock_ip reports success and releases nothing; proof: {proof}"
            ),
            "nlmfo uses NLM FREE_ALL instead; fixed in 6.1.191, 6.12.112, 6.18.50, 7.2.12 and newer \
                 kernels of their series, and in 7.3",
        ),
        Verdict::Unknown { reason } => Capability::missing(
            format!("unknown whether unlock_ip works: {reason}"),
            "nothing to do: nlmfo checks the locks afterwards and tries the next method if needed",
        ),
    }
}

/// One line of the list.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: String,
    /// What it is needed for.
    pub purpose: &'static str,
    pub need: Need,
    #[serde(flatten)]
    pub capability: Capability,
}

/// How much a failover needs what is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// Without it, a failover cannot be done and verified.
    Required,
    /// There is an alternative.
    Option,
}

impl Check {
    /// Whether a failover cannot be done without it.
    pub fn is_failed(&self) -> bool {
        self.need == Need::Required && self.is_missing()
    }

    /// Whether it is missing itself, as opposed to unknown because of another one.
    pub fn is_missing(&self) -> bool {
        matches!(self.capability, Capability::Missing { .. })
    }

    /// Whether the result is known.
    pub fn is_known(&self) -> bool {
        !matches!(self.capability, Capability::Unknown { .. })
    }
}

impl fmt::Display for Check {
    /// One line if available, else three: symbol, word, name and purpose, then the
    /// reason and the remedy.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match (&self.capability, self.need) {
            (Capability::Available, _) => "✓ ok     ",
            (Capability::Missing { .. }, Need::Required) => "✗ missing",
            (Capability::Missing { .. }, Need::Option) => "– without",
            (Capability::Unknown { .. }, _) => "? unknown",
        };
        write!(f, "{mark}  {:<36}  {}", self.name, self.purpose)?;
        if let Capability::Missing { reason, remedy } = &self.capability {
            write!(
                f,
                "\n           why:    {reason}\n           remedy: {remedy}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_reads_as_a_list() {
        let mut check = Check {
            name: "bpffs".into(),
            purpose: "grace after the command exits",
            need: Need::Option,
            capability: Capability::missing("not mounted", "mount -t bpf bpf /sys/fs/bpf"),
        };
        assert_eq!(
            check.to_string(),
            "– without  bpffs                                 grace after the command exits\n\
             \x20          why:    not mounted\n\
             \x20          remedy: mount -t bpf bpf /sys/fs/bpf"
        );
        assert!(!check.is_failed());
        check.need = Need::Required;
        assert!(check.is_failed());
        check.capability = Capability::Available;
        assert!(check.to_string().starts_with("✓ ok       bpffs"));
        let json = serde_json::to_value(&check).unwrap();
        assert_eq!(json["state"], "available");
    }
}
