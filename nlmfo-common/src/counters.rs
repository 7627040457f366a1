//! Counters of what lockd and nfsd did for each VIP: kept in the kernel, summed and reported by
//! the tool.

use core::ops::{AddAssign, Sub};

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// Buckets of the LOCK latency histogram: bucket `i` counts calls that took
/// from 2^i to 2^(i+1) - 1 nanoseconds, the last one all that took longer.
pub const LATENCY_BUCKETS: usize = 36;

/// Why lockd dropped locks without an UNLOCK from the client: the index of a count in
/// [`Released`].
pub mod cause {
    /// `unlock_ip`, by procfs or netlink.
    pub const UNLOCK_IP: usize = 0;
    /// `unlock_filesystem`, by procfs or netlink.
    pub const UNLOCK_FILESYSTEM: usize = 1;
    /// The client's statd reported a reboot.
    pub const CLIENT_REBOOT: usize = 2;
    /// The client, or nlmfo in its name, called FREE_ALL.
    pub const FREE_ALL: usize = 3;
    /// lockd went down.
    pub const SHUTDOWN: usize = 4;
    /// A path that none of the probes for the causes above saw.
    pub const OTHER: usize = 5;
    /// Number of causes, and of the fields of [`Released`].
    pub const COUNT: usize = 6;
}

/// How often lockd dropped all locks of one owner on one file without an UNLOCK, in the order of
/// [`cause`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Released {
    /// See [`cause::UNLOCK_IP`].
    pub unlock_ip: u64,
    /// See [`cause::UNLOCK_FILESYSTEM`].
    pub unlock_filesystem: u64,
    /// See [`cause::CLIENT_REBOOT`].
    pub client_reboot: u64,
    /// See [`cause::FREE_ALL`].
    pub free_all: u64,
    /// See [`cause::SHUTDOWN`].
    pub shutdown: u64,
    /// See [`cause::OTHER`].
    pub other: u64,
}

impl Released {
    /// The sum over all causes.
    pub fn total(&self) -> u64 {
        self.unlock_ip
            + self.unlock_filesystem
            + self.client_reboot
            + self.free_all
            + self.shutdown
            + self.other
    }

    /// The count of a [`cause`]; `None` for a number that is not one.
    #[inline(always)]
    pub fn of_mut(&mut self, cause: usize) -> Option<&mut u64> {
        // SAFETY: `repr(C)`, one u64 for each cause (asserted below).
        let counts = unsafe { &mut *(&raw mut *self).cast::<[u64; cause::COUNT]>() };
        counts.get_mut(cause)
    }
}

/// One VIP's counters, one set per CPU in the kernel; the tool adds them up. They count calls, not
/// locks: POSIX locks of one owner merge and split, so only a snapshot tells how many are held.
///
/// Calls that lockd answers before its lock path are not counted: those with a stale or unknown
/// file handle, those for which lockd has no memory for the host or file, and, in grace, UNLOCK
/// and CANCEL (`nlm4svc_retrieve_args` and its callers, fs/lockd/svc4proc.c, 6.1 and 6.12). None
/// of these changes what is held. SHARE and UNSHARE are not counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Counters {
    /// LOCK calls granted at once, without reclaims.
    pub granted: u64,
    /// Blocked requests that were granted later (`GRANTED_MSG` sent, first try).
    pub granted_later: u64,
    /// LOCK reclaims granted.
    pub reclaimed: u64,
    /// LOCK refused for another reason than grace: a conflicting lock, no locks available, a
    /// deadlock and the like.
    pub denied: u64,
    /// LOCK refused because of grace, reclaims included.
    pub denied_grace: u64,
    /// LOCK answered with `blocked`.
    pub blocked: u64,
    /// CANCEL calls.
    pub cancelled: u64,
    /// UNLOCK calls.
    pub unlocked: u64,
    /// TEST calls.
    pub tested: u64,
    /// Locks that lockd dropped without an UNLOCK.
    pub released: Released,
    /// LOCK calls by latency, see [`LATENCY_BUCKETS`].
    #[cfg_attr(
        feature = "serde",
        serde(serialize_with = "<[u64]>::serialize", deserialize_with = "histogram")
    )]
    pub latency_ns_log2: [u64; LATENCY_BUCKETS],
}

/// serde knows arrays of up to 32.
#[cfg(feature = "serde")]
fn histogram<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<[u64; LATENCY_BUCKETS], D::Error> {
    let buckets = Vec::deserialize(from)?;
    let count = buckets.len();
    (buckets.try_into())
        .map_err(|_| serde::de::Error::invalid_length(count, &"one number for each bucket"))
}

const WORDS: usize = 9 + cause::COUNT + LATENCY_BUCKETS;

crate::plain!(Released: 8 * cause::COUNT, Counters: 8 * WORDS);

impl Default for Counters {
    fn default() -> Self {
        // SAFETY: integers only; all-zero bytes are a value of each.
        unsafe { core::mem::zeroed() }
    }
}

impl Counters {
    /// LOCK calls granted: at once, later, or as reclaims.
    pub fn grants(&self) -> u64 {
        self.granted + self.granted_later + self.reclaimed
    }

    /// Calls of the VIP's own clients that change what is held or waited for.
    pub fn client_changes(&self) -> u64 {
        self.grants() + self.blocked + self.cancelled + self.unlocked
    }

    /// Applies `op` to each pair of numbers.
    fn zip(self, other: Self, op: impl Fn(u64, u64) -> u64) -> Self {
        // SAFETY: `repr(C)`, nothing but u64 (asserted above).
        let [one, other]: [[u64; WORDS]; 2] = unsafe { core::mem::transmute([self, other]) };
        let both = core::array::from_fn::<u64, WORDS, _>(|at| op(one[at], other[at]));
        // SAFETY: as above.
        unsafe { core::mem::transmute(both) }
    }
}

/// One VIP's NFSv4 counters, one set per CPU in the kernel. OPEN and LOCK count for the server
/// address that the call came to. A recalled delegation and the end of a client count for one VIP:
/// the first one if the client has several, and `::` if it has no connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Counters4 {
    /// OPEN granted, without reclaims.
    pub opens: u64,
    /// OPEN reclaims granted (`CLAIM_PREVIOUS`).
    pub opens_reclaimed: u64,
    /// OPEN refused because of grace.
    pub opens_in_grace: u64,
    /// LOCK granted, without reclaims.
    pub locks: u64,
    /// LOCK reclaims granted.
    pub locks_reclaimed: u64,
    /// LOCK refused: a conflicting lock, or a reclaim that is not allowed.
    pub locks_denied: u64,
    /// LOCK refused because of grace.
    pub locks_in_grace: u64,
    /// OPEN and LOCK reclaims that were refused: the client has lost that open or lock.
    #[cfg_attr(feature = "serde", serde(default))]
    pub reclaims_refused: u64,
    /// Delegations granted with an OPEN.
    pub delegations: u64,
    /// Delegations recalled because of another client's request.
    pub recalled: u64,
    /// Clients that ended: they left, expired, or were dropped.
    pub clients_ended: u64,
}

const WORDS4: usize = 11;

crate::plain!(Counters4: 8 * WORDS4);

impl AddAssign for Counters4 {
    fn add_assign(&mut self, other: Self) {
        // SAFETY: `repr(C)`, nothing but u64 (asserted above).
        let [one, other]: [[u64; WORDS4]; 2] = unsafe { core::mem::transmute([*self, other]) };
        let sums = core::array::from_fn::<u64, WORDS4, _>(|at| one[at].wrapping_add(other[at]));
        // SAFETY: as above.
        *self = unsafe { core::mem::transmute::<[u64; WORDS4], Counters4>(sums) };
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        *self = self.zip(other, u64::wrapping_add);
    }
}

/// What happened between two readings: `later - earlier`.
impl Sub for Counters {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        self.zip(earlier, u64::saturating_sub)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpus_add_up_and_the_past_is_taken_away() {
        let mut one = Counters {
            granted: 1,
            granted_later: 2,
            reclaimed: 3,
            denied: 4,
            denied_grace: 5,
            blocked: 6,
            cancelled: 7,
            unlocked: 8,
            tested: 9,
            ..Counters::default()
        };
        for cause in 0..cause::COUNT {
            *one.released.of_mut(cause).unwrap() = 10 + cause as u64;
        }
        assert_eq!(one.released.of_mut(cause::COUNT), None);
        one.latency_ns_log2[20] = 5;
        let mut sum = one;
        sum += one;
        assert_eq!(sum.released.free_all, 26);
        assert_eq!(sum.released.total(), 150);
        assert_eq!(sum.grants(), 12);
        assert_eq!(sum.client_changes(), 12 + 12 + 14 + 16);
        assert_eq!(sum.latency_ns_log2[20], 10);
        assert_eq!(sum - one, one);
    }
}
