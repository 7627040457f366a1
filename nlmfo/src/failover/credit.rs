//! Which method released a lock, waiter or share. Pure: takes what was seen and counted
//! during a step, returns the method.

use std::time::Duration;

use super::evidence::{Item, Items, What};
use crate::observe::counters::Counters;
use crate::release::MethodRef;

/// What was seen after a method, or at the end.
pub struct Observed {
    /// The method tried since the observation before; none at the end.
    pub method: Option<MethodRef>,
    /// What the counters saw of the VIP since the observation before.
    pub meanwhile: Counters,
    /// Time since the release started.
    pub at: Duration,
    pub left: Items,
}

impl Observed {
    /// The method that released `item` since the observation before; none if its client did.
    pub fn credit(&self, item: &Item) -> Option<MethodRef> {
        let method = self.method?;
        let its_doing = match item.what {
            // The number of locks left proves nothing: one client may unlock while another locks.
            What::Lock { .. } => method.dropped(&self.meanwhile, item.host.version) > 0,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::host::{Host, NlmVersion};
    use crate::observe::table::{Mode, Range};
    use crate::release::free_all::FreeAll;
    use crate::release::unlock_ip::UnlockIp;

    const FREE_ALL: MethodRef = MethodRef(&FreeAll);
    const UNLOCK_IP: MethodRef = MethodRef(&UnlockIp);

    fn item(version: NlmVersion, what: What) -> Item {
        Item {
            host: Host {
                version,
                ..Host::sample([10, 77, 0, 1], [10, 77, 0, 11])
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

    fn observed(method: Option<MethodRef>, count: impl FnOnce(&mut Counters)) -> Observed {
        let mut meanwhile = Counters::default();
        count(&mut meanwhile);
        Observed {
            method,
            meanwhile,
            at: Duration::ZERO,
            left: Items::default(),
        }
    }

    #[test]
    fn a_lock_is_credited_to_a_method_that_made_lockd_drop_owners() {
        let ours = observed(Some(FREE_ALL), |seen| seen.released.free_all = 1);
        assert_eq!(ours.credit(&lock(NlmVersion::V4)), Some(FREE_ALL));
    }

    #[test]
    fn an_unlock_while_another_locks_is_the_clients_doing() {
        let swapped = observed(Some(UNLOCK_IP), |seen| {
            seen.unlocked = 1;
            seen.granted = 1;
        });
        assert_eq!(swapped.credit(&lock(NlmVersion::V4)), None);
    }

    #[test]
    fn a_clients_own_reboot_is_not_credited_to_unlock_ip() {
        let rebooted = observed(Some(UNLOCK_IP), |seen| {
            seen.released.client_reboot = 1;
        });
        assert_eq!(rebooted.credit(&lock(NlmVersion::V4)), None);
    }

    #[test]
    fn the_unlocks_of_v1_hosts_are_ours_during_free_all_only() {
        let unlocked = |method| observed(Some(method), |seen| seen.unlocked = 1);
        let v1 = lock(NlmVersion::V1);
        let free_all = unlocked(FREE_ALL);
        assert_eq!(free_all.credit(&v1), Some(FREE_ALL));
        assert_eq!(free_all.credit(&lock(NlmVersion::V3)), None);
        assert_eq!(unlocked(UNLOCK_IP).credit(&v1), None);
    }

    #[test]
    fn waiters_and_shares_go_with_the_way() {
        let (svid, mode, range) = (1, Mode::Write, RANGE);
        let waiter = item(NlmVersion::V4, What::Waiter { svid, mode, range });
        let quiet = observed(Some(UNLOCK_IP), |_| {});
        assert_eq!(quiet.credit(&waiter), Some(UNLOCK_IP));
    }

    #[test]
    fn what_goes_when_nothing_is_done_nobody_is_credited_for() {
        let last = observed(None, |seen| seen.released.unlock_ip = 1);
        assert_eq!(last.credit(&lock(NlmVersion::V4)), None);
    }

    #[test]
    fn an_item_is_missed_where_it_first_was_not_seen() {
        let gone = lock(NlmVersion::V4);
        let mut first = observed(Some(UNLOCK_IP), |_| {});
        first.left.insert(gone.clone(), 1);
        let observed = [first, observed(Some(FREE_ALL), |_| {})];
        let method = |item: &Item| missed(&observed, item).map(|observed| observed.method);
        assert_eq!(method(&gone), Some(Some(FREE_ALL)));
        assert_eq!(method(&lock(NlmVersion::V3)), Some(Some(UNLOCK_IP)));
        assert!(missed(&observed[..1], &gone).is_none());
    }
}
