//! The facts as a list for the operator.

use std::fmt;

use serde::Serialize;

use super::{Capability, Facts};
use crate::kernel::unlock_bug::Verdict;

impl Facts {
    /// What the kernel gives, as a list; of its services others look.
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
            check(
                "kernel_reads",
                "reading the kernel's lock lists",
                Required,
                &self.kernel_reads,
            ),
            check(
                "symbols",
                "finding the kernel's functions and lists",
                Required,
                &self.symbols,
            ),
            check("ftrace", "counting and proving", Required, &self.ftrace),
            check("btf", "finding the kernel's fields", Required, &self.btf),
            check("lockd", "the NLM service", Required, &self.lockd),
            check(
                "layouts",
                "reading the kernel's lock lists",
                Required,
                &self.layouts,
            ),
            check("kprobes", "counting and proving", Required, &self.kprobes),
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
                "releasing an IPv4 VIP",
                Option,
                &self.procfs_unlock_ip,
            ),
            check(
                "netlink_unlock_ip",
                "releasing an IPv4 or IPv6 VIP",
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
                "releasing a filesystem, on request",
                Option,
                &self.procfs_unlock_filesystem,
            ),
            check(
                "rfc_unlock",
                "releasing as the RFC proposes",
                Option,
                &self.rfc_unlock,
            ),
            check(
                "rfc_grace",
                "grace as the RFC proposes",
                Option,
                &self.rfc_grace,
            ),
            check(
                "bpffs",
                "a grace period that outlives the command",
                Option,
                &self.bpffs,
            ),
            check(
                "bpf_links",
                "a grace period that outlives the command",
                Option,
                &self.bpf_links,
            ),
            check(
                "grace_list",
                "the per-VIP grace keeping out of the kernel's own",
                Option,
                &self.grace_list,
            ),
            check("tcx", "the per-VIP grace gate", Option, &self.tcx),
            check(
                "clsact",
                "the per-VIP grace gate, without tcx",
                Option,
                &self.clsact,
            ),
        ]);
        checks
    }
}

/// The verdict on `unlock_ip` in the words of a capability.
pub(super) fn unlock_ip_works(verdict: &Verdict) -> Capability {
    match verdict {
        Verdict::Fixed { .. } => Capability::Available,
        Verdict::Broken { proof } => Capability::missing(
            format!(
                "CVE-2026-93231: unlock_ip reports success and releases nothing; proof: {proof}"
            ),
            "nlmfo releases by NLM FREE_ALL instead; the fix is in 6.1.191, 6.12.112, 6.18.50, \
             7.2 and newer kernels of those series",
        ),
        Verdict::Unknown { reason } => Capability::missing(
            format!("whether unlock_ip works is not known: {reason}"),
            "nothing to do: nlmfo looks at the locks afterwards and escalates by what it sees",
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// Without it a failover cannot be done and proved.
    Required,
    /// There is another way.
    Option,
}

impl Check {
    /// Whether a failover fails for the lack of it.
    pub fn is_failed(&self) -> bool {
        self.need == Need::Required && self.is_missing()
    }

    /// Whether this is a cause, as against what rests on one.
    pub fn is_missing(&self) -> bool {
        matches!(self.capability, Capability::Missing { .. })
    }

    /// Whether there is anything to say of it.
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
            purpose: "a grace period that outlives the command",
            need: Need::Option,
            capability: Capability::missing("not mounted", "mount -t bpf bpf /sys/fs/bpf"),
        };
        assert_eq!(
            check.to_string(),
            "– without  bpffs                                 a grace period that outlives the command\n\
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
