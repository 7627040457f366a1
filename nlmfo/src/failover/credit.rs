//! Whose doing it is that a lock, waiter or share is gone. Pure: what was seen and
//! counted during a step in, the way to be credited out.

use std::collections::HashMap;
use std::time::Duration;

use super::evidence::{Item, What};
use crate::observe::counters::{Counters, Released};
use crate::observe::host::NlmVersion;
use crate::release::WayKind;

/// A look after a way was gone, or at the end.
pub struct Stage {
    /// The way gone since the look before; none at the end.
    pub way: Option<WayKind>,
    /// What the counters saw of the VIP since the look before.
    pub meanwhile: Counters,
    /// Since the release began.
    pub at: Duration,
    pub left: HashMap<Item, usize>,
}

impl Stage {
    /// The way that made `item` go between the look before and this one; none if
    /// its client gave it up itself.
    pub fn credit(&self, item: &Item) -> Option<WayKind> {
        let way = self.way?;
        let its_doing = match item.what {
            // Each of these is a call of its own to lockd: NLM v1 has no FREE_ALL.
            What::Lock { .. } if way == WayKind::FreeAll && item.host.version == NlmVersion::V1 => {
                self.meanwhile.unlocked > 0
            }
            // How many locks are left proves nothing: a client may unlock one while
            // another takes one.
            What::Lock { .. } => dropped_by(way, &self.meanwhile.released) > 0,
            // lockd drops these where no probe counts them.
            What::Waiter { .. } | What::Share { .. } => true,
        };
        its_doing.then_some(way)
    }
}

/// The first stage at which `item` was missed.
pub fn missed<'a>(stages: &'a [Stage], item: &Item) -> Option<&'a Stage> {
    stages.iter().find(|stage| !stage.left.contains_key(item))
}

/// Owners that lockd dropped for the cause that this way gives.
fn dropped_by(way: WayKind, released: &Released) -> u64 {
    match way {
        // Patched kernels only; what the patch calls, no probe announces.
        WayKind::RfcFile => released.unlock_ip + released.other,
        WayKind::UnlockIp => released.unlock_ip,
        WayKind::FreeAll => released.free_all,
        WayKind::Filesystem => released.unlock_filesystem,
        WayKind::Reboot => released.client_reboot,
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

    fn stage(way: Option<WayKind>, count: impl FnOnce(&mut Counters)) -> Stage {
        let mut meanwhile = Counters::default();
        count(&mut meanwhile);
        Stage {
            way,
            meanwhile,
            at: Duration::ZERO,
            left: HashMap::new(),
        }
    }

    #[test]
    fn a_lock_is_credited_to_a_way_that_made_lockd_drop_owners() {
        let ours = stage(Some(WayKind::FreeAll), |seen| seen.released.free_all = 1);
        assert_eq!(ours.credit(&lock(NlmVersion::V4)), Some(WayKind::FreeAll));
    }

    #[test]
    fn an_unlock_while_another_locks_is_the_clients_doing() {
        let swapped = stage(Some(WayKind::UnlockIp), |seen| {
            seen.unlocked = 1;
            seen.granted = 1;
        });
        assert_eq!(swapped.credit(&lock(NlmVersion::V4)), None);
    }

    #[test]
    fn a_clients_own_reboot_is_not_credited_to_unlock_ip() {
        let rebooted = stage(Some(WayKind::UnlockIp), |seen| {
            seen.released.client_reboot = 1;
        });
        assert_eq!(rebooted.credit(&lock(NlmVersion::V4)), None);
    }

    #[test]
    fn the_unlocks_of_v1_hosts_are_ours_during_free_all_only() {
        let unlocked = |way| stage(Some(way), |seen| seen.unlocked = 1);
        let v1 = lock(NlmVersion::V1);
        let free_all = unlocked(WayKind::FreeAll);
        assert_eq!(free_all.credit(&v1), Some(WayKind::FreeAll));
        assert_eq!(free_all.credit(&lock(NlmVersion::V3)), None);
        assert_eq!(unlocked(WayKind::UnlockIp).credit(&v1), None);
    }

    #[test]
    fn waiters_and_shares_go_with_the_way() {
        let (svid, mode, range) = (1, Mode::Write, RANGE);
        let waiter = item(NlmVersion::V4, What::Waiter { svid, mode, range });
        let quiet = stage(Some(WayKind::UnlockIp), |_| {});
        assert_eq!(quiet.credit(&waiter), Some(WayKind::UnlockIp));
    }

    #[test]
    fn what_goes_when_nothing_is_done_nobody_is_credited_for() {
        let last = stage(None, |seen| seen.released.unlock_ip = 1);
        assert_eq!(last.credit(&lock(NlmVersion::V4)), None);
    }

    #[test]
    fn an_item_is_missed_where_it_first_was_not_seen() {
        let gone = lock(NlmVersion::V4);
        let mut first = stage(Some(WayKind::UnlockIp), |_| {});
        first.left.insert(gone.clone(), 1);
        let stages = [first, stage(Some(WayKind::FreeAll), |_| {})];
        let way = |item: &Item| missed(&stages, item).map(|stage| stage.way);
        assert_eq!(way(&gone), Some(Some(WayKind::FreeAll)));
        assert_eq!(way(&lock(NlmVersion::V3)), Some(Some(WayKind::UnlockIp)));
        assert!(missed(&stages[..1], &gone).is_none());
    }
}
