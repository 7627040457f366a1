//! Which method released a lock, waiter or share. Pure: takes what was seen and counted
//! during a step, returns the method.

use std::collections::HashMap;
use std::time::Duration;

use super::evidence::{Item, What};
use crate::observe::counters::{Counters, Released};
use crate::observe::host::NlmVersion;
use crate::release::MethodKind;

/// What was seen after a method, or at the end.
pub struct Observed {
    /// The method tried since the observation before; none at the end.
    pub method: Option<MethodKind>,
    /// What the counters saw of the VIP since the observation before.
    pub meanwhile: Counters,
    /// Time since the release started.
    pub at: Duration,
    pub left: HashMap<Item, usize>,
}

impl Observed {
    /// The method that released `item` since the observation before; none if its client did.
    pub fn credit(&self, item: &Item) -> Option<MethodKind> {
        let method = self.method?;
        let its_doing = match item.what {
            // NLM v1 has no FREE_ALL: each lock is released by its own call.
            What::Lock { .. }
                if method == MethodKind::FreeAll && item.host.version == NlmVersion::V1 =>
            {
                self.meanwhile.unlocked > 0
            }
            // The number of locks left proves nothing: one client may unlock while another locks.
            What::Lock { .. } => dropped_by(method, &self.meanwhile.released) > 0,
            // No probe counts where lockd drops these.
            What::Waiter { .. } | What::Share { .. } => true,
        };
        its_doing.then_some(method)
    }
}

/// The first observation without `item`.
pub fn missed<'a>(observed: &'a [Observed], item: &Item) -> Option<&'a Observed> {
    observed
        .iter()
        .find(|observed| !observed.left.contains_key(item))
}

/// Owners whose locks lockd dropped for the cause that this method triggers.
fn dropped_by(method: MethodKind, released: &Released) -> u64 {
    match method {
        // Patched kernels only. No probe counts what the patch calls.
        MethodKind::RfcFile => released.unlock_ip + released.other,
        MethodKind::UnlockIp => released.unlock_ip,
        MethodKind::FreeAll => released.free_all,
        MethodKind::Filesystem => released.unlock_filesystem,
        MethodKind::Reboot => released.client_reboot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::host::{Host, Transport};
    use crate::observe::table::{Mode, Range};

    fn item(version: NlmVersion, what: What) -> Item {
        Item {
            host: Host {
                vip: [10, 77, 0, 1].into(),
                client: [10, 77, 0, 11].into(),
                version,
                transport: Transport::Tcp,
                netns: 1,
            },
            file: (0, 1, 9),
            what,
        }
    }

    const RANGE: Range = Range { start: 0, end: 9 };

    fn lock(version: NlmVersion) -> Item {
        let (svid, mode, range) = (1, Mode::Write, RANGE);
        item(version, What::Lock { svid, mode, range })
    }

    fn observed(method: Option<MethodKind>, count: impl FnOnce(&mut Counters)) -> Observed {
        let mut meanwhile = Counters::default();
        count(&mut meanwhile);
        Observed {
            method,
            meanwhile,
            at: Duration::ZERO,
            left: HashMap::new(),
        }
    }

    #[test]
    fn a_lock_is_credited_to_a_method_that_made_lockd_drop_owners() {
        let ours = observed(Some(MethodKind::FreeAll), |seen| seen.released.free_all = 1);
        assert_eq!(
            ours.credit(&lock(NlmVersion::V4)),
            Some(MethodKind::FreeAll)
        );
    }

    #[test]
    fn an_unlock_while_another_locks_is_the_clients_doing() {
        let swapped = observed(Some(MethodKind::UnlockIp), |seen| {
            seen.unlocked = 1;
            seen.granted = 1;
        });
        assert_eq!(swapped.credit(&lock(NlmVersion::V4)), None);
    }

    #[test]
    fn a_clients_own_reboot_is_not_credited_to_unlock_ip() {
        let rebooted = observed(Some(MethodKind::UnlockIp), |seen| {
            seen.released.client_reboot = 1;
        });
        assert_eq!(rebooted.credit(&lock(NlmVersion::V4)), None);
    }

    #[test]
    fn the_unlocks_of_v1_hosts_are_ours_during_free_all_only() {
        let unlocked = |method| observed(Some(method), |seen| seen.unlocked = 1);
        let v1 = lock(NlmVersion::V1);
        let free_all = unlocked(MethodKind::FreeAll);
        assert_eq!(free_all.credit(&v1), Some(MethodKind::FreeAll));
        assert_eq!(free_all.credit(&lock(NlmVersion::V3)), None);
        assert_eq!(unlocked(MethodKind::UnlockIp).credit(&v1), None);
    }

    #[test]
    fn waiters_and_shares_go_with_the_way() {
        let (svid, mode, range) = (1, Mode::Write, RANGE);
        let waiter = item(NlmVersion::V4, What::Waiter { svid, mode, range });
        let quiet = observed(Some(MethodKind::UnlockIp), |_| {});
        assert_eq!(quiet.credit(&waiter), Some(MethodKind::UnlockIp));
    }

    #[test]
    fn what_goes_when_nothing_is_done_nobody_is_credited_for() {
        let last = observed(None, |seen| seen.released.unlock_ip = 1);
        assert_eq!(last.credit(&lock(NlmVersion::V4)), None);
    }

    #[test]
    fn an_item_is_missed_where_it_first_was_not_seen() {
        let gone = lock(NlmVersion::V4);
        let mut first = observed(Some(MethodKind::UnlockIp), |_| {});
        first.left.insert(gone.clone(), 1);
        let observed = [first, observed(Some(MethodKind::FreeAll), |_| {})];
        let method = |item: &Item| missed(&observed, item).map(|observed| observed.method);
        assert_eq!(method(&gone), Some(Some(MethodKind::FreeAll)));
        assert_eq!(
            method(&lock(NlmVersion::V3)),
            Some(Some(MethodKind::UnlockIp))
        );
        assert!(missed(&observed[..1], &gone).is_none());
    }
}
