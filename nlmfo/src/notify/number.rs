//! NSM state numbers: odd, growing across the cluster, and never the same twice.
//!
//! A client acts on SM_NOTIFY only if the number differs from the last that it saw under that name
//! (`sm_notify_1_svc` of nfs-utils' statd; `next_host_state` in fs/lockd/host.c, 6.1), so that VIPs
//! that move at different times must not have the same one. VIPs that move together must have the same
//! one: a client that knows several of them by one name reclaims through all of them at the first
//! notification, and must not start again at the second, when their grace may be over. Each number is
//! claimed by a file of its name, which makes it safe for nodes that share the directory; nodes that do
//! not share it are kept apart by the clock, as no number is below the seconds since 1970.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::debug;

use super::state_dir::{self, Readers, StateDir};
use crate::files::{self, LIMIT, PRIVATE};
use crate::times;

/// statd's own number, four bytes in the machine's order (nfs-utils,
/// `nsm_get_state`): where it may be.
const STATD: [&str; 2] = ["/var/lib/nfs/statd/state", "/var/lib/nfs/state"];

/// How many numbers of a VIP are kept, for diagnosis.
const KEPT: usize = 3;

/// Digits of a file's name, so that the order of names is that of numbers.
const DIGITS: usize = 10;

/// Why there is no state number.
#[derive(Debug, thiserror::Error)]
pub enum NumberError {
    #[error("cannot claim a state number in {}", folder.display())]
    Io { folder: PathBuf, source: io::Error },
    #[error(
        "no state number is left above {highest}: remove {}/{highest:010}, which is too high to be \
         from nlmfo", folder.display()
    )]
    Exhausted { folder: PathBuf, highest: u32 },
}

/// What a number's file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// In order.
    pub vips: Vec<IpAddr>,
    pub node: String,
    /// Seconds since 1970.
    pub at: u64,
    /// The release whose locks were to be reclaimed, where it is known
    /// ([`Record::id`](crate::failover::record::Record::id)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
}

impl Claim {
    /// Of now.
    pub fn new(vips: &[IpAddr], node: String, release: Option<String>) -> Self {
        let mut vips = vips.to_vec();
        vips.sort_unstable();
        Claim {
            vips,
            node,
            at: times::now(),
            release,
        }
    }

    /// The number of an identical claim, if none of the VIPs has a newer one.
    fn continued(&self, claims: &BTreeMap<u32, Claim>, within: Duration) -> Option<u32> {
        let concerns = |claim: &Claim| claim.vips.iter().any(|vip| self.vips.contains(vip));
        let (&number, last) = claims.iter().rev().find(|(_, claim)| concerns(claim))?;
        let is_same = self.release.is_some()
            && (&last.vips, &last.node, &last.release) == (&self.vips, &self.node, &self.release);
        let age = self.at.saturating_sub(last.at);
        (is_same && age < within.as_secs()).then_some(number)
    }
}

/// Seconds, up to two minutes, by which VIPs are kept apart that are moved at the same moment by nodes
/// that share no directory: they may have one name. The value of a VIP is the same on every node, so
/// that its own numbers grow with the clock.
fn apart(vip: IpAddr) -> u32 {
    2 * (crc32fast::hash(vip.to_string().as_bytes()) % 64)
}

/// The directory of the claimed numbers, created when it is first needed.
#[derive(Clone, Debug)]
pub struct Numbers {
    folder: PathBuf,
}

impl Numbers {
    pub fn new(state: &StateDir) -> Self {
        Numbers {
            folder: state.numbers(),
        }
    }

    /// A new number for the VIPs: higher than every number in the directory, the number of this node's
    /// statd, and the time of day. It is durable on return.
    pub fn claim(&self, claim: &Claim) -> Result<u32, NumberError> {
        self.claim_above(floor(claim), claim)
    }

    /// The number of [`Numbers::claim`] without writing it: another node may use it too.
    pub fn by_clock(&self, claim: &Claim) -> u32 {
        let claimed = self.claimed().unwrap_or_default();
        let highest = claimed.last_key_value().map_or(0, |(&number, _)| number);
        next(highest.max(floor(claim))).unwrap_or(u32::MAX)
    }

    /// The number of a notification that was interrupted less than `within` ago, if this is the same
    /// notification: a client that has begun to reclaim must not start again. Otherwise a new one.
    pub fn continue_or_claim(&self, claim: &Claim, within: Duration) -> Result<u32, NumberError> {
        match claim.continued(&self.claims(BTreeMap::new())?, within) {
            Some(number) => Ok(number),
            None => self.claim(claim),
        }
    }

    fn claim_above(&self, floor: u32, claim: &Claim) -> Result<u32, NumberError> {
        state_dir::create(&self.folder, Readers::Nobody).map_err(|source| self.io(source))?;
        loop {
            let highest = (self.claimed()?.last_key_value()).map_or(0, |(&number, _)| number);
            let number = next(highest.max(floor)).ok_or_else(|| NumberError::Exhausted {
                folder: self.folder.clone(),
                highest,
            })?;
            if !self.create(number, claim)? {
                continue;
            }
            let claimed = self.claimed()?;
            // Another process has chosen a number at the same time, and must not be followed by a lower
            // one.
            if claimed.range(number + 1..).next().is_some() {
                debug!(number, "replaced by a higher one");
                self.remove(number)?;
                continue;
            }
            self.prune(&claimed)?;
            return Ok(number);
        }
    }

    /// The claims of all numbers; no entry for numbers without a claim.
    /// `known` are claims of an earlier call, which are not read again.
    pub fn claims(
        &self,
        mut known: BTreeMap<u32, Claim>,
    ) -> Result<BTreeMap<u32, Claim>, NumberError> {
        let claimed = match self.claimed() {
            Err(NumberError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(BTreeMap::new());
            }
            other => other?,
        };
        let claims = claimed.into_iter().filter_map(|(number, path)| {
            let claim = known.remove(&number).or_else(|| {
                // It was removed, in favour of a higher one.
                let text = files::read(&path, LIMIT).ok()?;
                serde_json::from_slice(&text).ok()
            });
            Some((number, claim?))
        });
        Ok(claims.collect())
    }

    /// The numbers in the directory, with their files.
    fn claimed(&self) -> Result<BTreeMap<u32, PathBuf>, NumberError> {
        let mut claimed = BTreeMap::new();
        for entry in fs::read_dir(&self.folder).map_err(|source| self.io(source))? {
            let path = entry.map_err(|source| self.io(source))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(number) = name.and_then(number_of) {
                claimed.insert(number, path);
            }
        }
        Ok(claimed)
    }

    /// Creates the file completely and durably; false if the number is already claimed.
    fn create(&self, number: u32, claim: &Claim) -> Result<bool, NumberError> {
        let content = serde_json::to_vec(claim).expect("strings and numbers");
        match files::create_new(&self.file(number), &content, PRIVATE, |_| ()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(self.io(error)),
            Ok(()) => Ok(true),
        }
    }

    /// Removes the numbers that are not among the last few of any VIP. The highest number is always
    /// kept.
    fn prune(&self, claimed: &BTreeMap<u32, PathBuf>) -> Result<(), NumberError> {
        let mut seen: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (&number, path) in claimed.iter().rev() {
            let claim = files::read(path, LIMIT).ok();
            let Some(claim) = claim.and_then(|text| serde_json::from_slice::<Claim>(&text).ok())
            else {
                continue;
            };
            let mut is_kept = false;
            for vip in claim.vips {
                let seen = seen.entry(vip).or_default();
                *seen += 1;
                is_kept |= *seen <= KEPT;
            }
            if !is_kept {
                self.remove(number)?;
            }
        }
        Ok(())
    }

    fn remove(&self, number: u32) -> Result<(), NumberError> {
        match fs::remove_file(self.file(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.io(error)),
            _ => Ok(()),
        }
    }

    fn file(&self, number: u32) -> PathBuf {
        self.folder.join(format!("{number:0DIGITS$}"))
    }

    fn io(&self, source: io::Error) -> NumberError {
        NumberError::Io {
            folder: self.folder.clone(),
            source,
        }
    }
}

/// A number for the claim must be higher than this.
fn floor(claim: &Claim) -> u32 {
    let clock = u32::try_from(claim.at).unwrap_or(u32::MAX);
    let apart = claim.vips.iter().map(|&vip| apart(vip)).max().unwrap_or(0);
    clock.saturating_add(apart).max(statds())
}

/// The next odd number.
fn next(highest: u32) -> Option<u32> {
    Some(highest.checked_add(1)? | 1)
}

fn number_of(name: &str) -> Option<u32> {
    let is_number = name.len() == DIGITS && name.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| name.parse().ok()).flatten()
}

/// The highest number that this node's statd has had; 0 where there is none.
fn statds() -> u32 {
    let numbers = STATD.iter().map(|path| statd_number(Path::new(path)));
    numbers.max().unwrap_or(0)
}

fn statd_number(path: &Path) -> u32 {
    let bytes = fs::read(path).unwrap_or_default();
    let number = bytes.first_chunk().map(|&bytes| i32::from_ne_bytes(bytes));
    // An `int` to statd: a negative one is damaged, and no floor.
    number
        .and_then(|number| number.try_into().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::thread;

    use super::*;

    fn in_folder(folder: &Path) -> Numbers {
        Numbers {
            folder: folder.to_owned(),
        }
    }

    fn claim_for(vip: &str) -> Claim {
        Claim {
            vips: vec![vip.parse().unwrap()],
            node: "a".into(),
            at: 1,
            release: None,
        }
    }

    #[test]
    fn a_number_of_the_clock_is_odd_and_above_those_that_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = in_folder(folder.path());
        let claim = claim_for("10.77.0.1");
        let first = numbers.by_clock(&claim);
        assert!(first % 2 == 1 && first > floor(&claim));
        let claimed = numbers.claim_above(5_000_000, &claim).unwrap();
        assert_eq!(numbers.by_clock(&claim), claimed + 2);
        assert_eq!(
            in_folder(Path::new("/nowhere/at/all")).by_clock(&claim),
            first
        );
    }

    #[test]
    fn an_interrupted_notification_keeps_its_number() {
        let within = Duration::from_secs(90);
        let (vip, other) = ("10.77.0.1".parse().unwrap(), "10.77.0.2".parse().unwrap());
        let claim = |vips: &[IpAddr], node: &str, at, release: Option<&str>| Claim {
            at,
            ..Claim::new(vips, node.into(), release.map(str::to_owned))
        };
        let first = claim(&[other, vip], "b", 1000, Some("a at 1"));
        let again = claim(&[vip, other], "b", 1089, Some("a at 1"));
        let claims = BTreeMap::from([(7, first.clone())]);
        assert_eq!(again.continued(&claims, within), Some(7));
        for different in [
            claim(&[vip, other], "b", 1090, Some("a at 1")),
            claim(&[vip, other], "a", 1001, Some("a at 1")),
            claim(&[vip, other], "b", 1001, Some("a at 2")),
            claim(&[vip, other], "b", 1001, None),
            claim(&[vip], "b", 1001, Some("a at 1")),
        ] {
            assert_eq!(different.continued(&claims, within), None, "{different:?}");
        }
        // Somebody has told of one of them since.
        let later = claim(&[vip], "a", 1005, None);
        let claims = BTreeMap::from([(7, first), (9, later)]);
        assert_eq!(again.continued(&claims, within), None);
        let nobodys = claim(&[vip], "a", 1005, None);
        assert_eq!(nobodys.continued(&claims, within), None);
    }

    #[test]
    fn numbers_are_odd_and_above_everything_known() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = in_folder(folder.path());
        let claim = claim_for("10.77.0.1");
        assert_eq!(numbers.claim_above(100, &claim).unwrap(), 101);
        assert_eq!(numbers.claim_above(100, &claim).unwrap(), 103);
        assert_eq!(numbers.claim_above(103, &claim).unwrap(), 105);
        assert_eq!(numbers.claim_above(200, &claim).unwrap(), 201);
        // The clock went back.
        assert_eq!(numbers.claim_above(50, &claim).unwrap(), 203);
    }

    #[test]
    fn claims_are_told_and_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = in_folder(&folder.path().join("numbers"));
        assert_eq!(numbers.claims(BTreeMap::new()).unwrap(), BTreeMap::new());
        let claim = claim_for("10.77.0.1");
        let number = numbers.claim_above(100, &claim).unwrap();
        let claims = numbers.claims(BTreeMap::new()).unwrap();
        assert_eq!(claims, BTreeMap::from([(number, claim)]));
        fs::write(numbers.file(number), "").unwrap();
        assert_eq!(numbers.claims(claims.clone()).unwrap(), claims);
        assert_eq!(numbers.claims(BTreeMap::new()).unwrap(), BTreeMap::new());
    }

    #[test]
    fn a_number_is_of_today() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = in_folder(folder.path());
        let vips = ["10.77.0.1".parse().unwrap(), "10.77.0.2".parse().unwrap()];
        let claim = Claim::new(&vips, "b".into(), Some("a at 1".into()));
        let number = numbers.claim(&claim).unwrap();
        // 2026.
        assert!(number > 1_767_225_600 && number % 2 == 1, "{number}");
        let within = Duration::from_secs(90);
        assert_eq!(numbers.continue_or_claim(&claim, within).unwrap(), number);
        assert!(numbers.claim(&claim).unwrap() > number);
    }

    #[test]
    fn racing_nodes_never_get_the_same_number_and_each_sees_its_own_grow() {
        const RACERS: usize = 8;
        const CLAIMS: usize = 40;
        let folder = tempfile::tempdir().unwrap();
        let racers: Vec<Vec<u32>> = thread::scope(|scope| {
            let racers: Vec<_> = (0..RACERS)
                .map(|racer| {
                    let numbers = in_folder(folder.path());
                    let claim = claim_for(&format!("10.77.0.{}", racer % 3));
                    let claims = move || {
                        let claims = 0..CLAIMS;
                        claims
                            .map(|_| numbers.claim_above(1000, &claim).unwrap())
                            .collect()
                    };
                    scope.spawn(claims)
                })
                .collect();
            racers
                .into_iter()
                .map(|racer| racer.join().unwrap())
                .collect()
        });
        for claims in &racers {
            assert!(claims.is_sorted_by(|a, b| a < b), "{claims:?}");
            assert!(claims.iter().all(|number| number % 2 == 1), "{claims:?}");
        }
        let distinct: BTreeSet<u32> = racers.iter().flatten().copied().collect();
        assert_eq!(distinct.len(), RACERS * CLAIMS);
        // What is left: the last few of the three VIPs, and nothing unfinished.
        let left = in_folder(folder.path()).claimed().unwrap();
        assert_eq!(left.last_key_value().unwrap().0, distinct.last().unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), left.len());
    }

    #[test]
    fn the_last_few_of_each_vip_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = in_folder(folder.path());
        let other = numbers.claim_above(0, &claim_for("10.77.0.2")).unwrap();
        for _ in 0..10 {
            numbers.claim_above(0, &claim_for("10.77.0.1")).unwrap();
        }
        let left: Vec<u32> = numbers.claimed().unwrap().into_keys().collect();
        assert_eq!(left, [other, 17, 19, 21]);
    }

    #[test]
    fn other_files_are_left_alone_and_a_number_without_successor_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = in_folder(folder.path());
        fs::write(folder.path().join("README"), "").unwrap();
        fs::write(folder.path().join("4294967295"), "").unwrap();
        let error = numbers.claim_above(0, &claim_for("10.77.0.1")).unwrap_err();
        assert!(error.to_string().contains("/4294967295"), "{error}");
        assert!(folder.path().join("README").exists());
    }

    #[test]
    fn statds_number_is_four_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert_eq!(statd_number(&path), 0);
        for (bytes, number) in [
            (41i32.to_ne_bytes().to_vec(), 41),
            ((-41i32).to_ne_bytes().to_vec(), 0),
            (vec![1, 2], 0),
        ] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(statd_number(&path), number);
        }
    }
}
