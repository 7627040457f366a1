//! What happened between two ticks that an operator wants in a log.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::last::Last;
use super::report::{Happened, Kind, Level};
use crate::ticks::detail::Detail;
use crate::ticks::events::{Event, EventKind};
use crate::ticks::tick::Tick;
use crate::ticks::world::World;
use crate::times::whole_milliseconds;

/// Clients that come or go and waits that one look reports at most.
const PER_LOOK: usize = 100;

/// What is remembered between looks.
#[derive(Debug)]
pub struct Watcher {
    long_wait_ms: u64,
    waits: BTreeMap<Wait, Seen>,
    clients: Option<BTreeSet<(IpAddr, IpAddr)>>,
    lasts: Option<Vec<Last>>,
    services: BTreeMap<String, bool>,
}

/// Identifies a wait.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wait {
    vip: IpAddr,
    client: IpAddr,
    /// None of NFSv4.
    svid: Option<u32>,
    file: String,
    start: u64,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    since_ms: u64,
    reported: bool,
}

impl Watcher {
    pub fn new(long_wait: Duration) -> Self {
        Watcher {
            long_wait_ms: whole_milliseconds(long_wait),
            waits: BTreeMap::new(),
            clients: None,
            lasts: None,
            services: BTreeMap::new(),
        }
    }

    /// The events of a tick, which `world` has taken already.
    pub fn look(&mut self, tick: &Tick, world: &World) -> Vec<Happened> {
        let at_ms = tick.at_ms;
        let mut happened: Vec<Happened> = tick.events.iter().map(Happened::from).collect();
        happened.extend(self.waits(at_ms, tick.elapsed_ms, world));
        happened.extend(self.clients(at_ms, world));
        happened
    }

    /// How long the oldest wait of each VIP has been seen, in seconds.
    pub fn oldest_waiters(&self, elapsed_ms: u64) -> BTreeMap<IpAddr, f64> {
        let mut oldest = BTreeMap::new();
        for (wait, seen) in &self.waits {
            let seconds = elapsed_ms.saturating_sub(seen.since_ms) as f64 / 1000.0;
            let longest: &mut f64 = oldest.entry(wait.vip).or_default();
            *longest = longest.max(seconds);
        }
        oldest
    }

    fn waits(&mut self, at_ms: u64, elapsed_ms: u64, world: &World) -> Vec<Happened> {
        let mut waits = BTreeMap::new();
        let mut happened = Vec::new();
        for (wait, holder) in world.details.values().flat_map(waiting) {
            let mut seen = self.waits.get(&wait).copied().unwrap_or(Seen {
                since_ms: elapsed_ms,
                reported: false,
            });
            let waited_ms = elapsed_ms.saturating_sub(seen.since_ms);
            if !seen.reported && waited_ms >= self.long_wait_ms && happened.len() < PER_LOOK {
                seen.reported = true;
                happened.push(long_wait(at_ms, waited_ms, &wait, holder));
            }
            waits.insert(wait, seen);
        }
        self.waits = waits;
        happened
    }

    fn clients(&mut self, at_ms: u64, world: &World) -> Vec<Happened> {
        let details = world.details.values();
        let clients: BTreeSet<(IpAddr, IpAddr)> = details
            .flat_map(|detail| {
                let clients = detail.clients.iter();
                clients.map(|client| (detail.vip, client.client))
            })
            .collect();
        // A client that was there at the first look is not new.
        let before = self
            .clients
            .replace(clients.clone())
            .unwrap_or_else(|| clients.clone());
        let change = |kind, text: &'static str| {
            move |(vip, client): &(IpAddr, IpAddr)| Happened {
                client: Some(*client),
                ..Happened::new(
                    at_ms,
                    Level::Info,
                    kind,
                    Some(*vip),
                    format!("client {client} {text}"),
                )
            }
        };
        let came = clients
            .difference(&before)
            .map(change(Kind::ClientCame, "holds locks now"));
        let gone = before
            .difference(&clients)
            .map(change(Kind::ClientGone, "holds no lock any more"));
        came.chain(gone).take(PER_LOOK).collect()
    }

    /// The operations that began or ended since the last time.
    pub fn lasts(&mut self, at_ms: u64, lasts: &[Last]) -> Vec<Happened> {
        let before = self.lasts.replace(lasts.to_vec());
        // A report from before this process is not an event.
        let Some(before) = before else {
            return Vec::new();
        };
        let new = lasts.iter().filter(|last| !before.contains(last));
        new.map(|last| operation(at_ms, last)).collect()
    }

    /// The services that became ready, or are no longer ready.
    pub fn services(&mut self, at_ms: u64, services: &BTreeMap<String, bool>) -> Vec<Happened> {
        let before = std::mem::replace(&mut self.services, services.clone());
        let changed = services.iter().filter(|(name, ready)| {
            // At first, only a service that is not ready is reported.
            **ready != before.get(*name).copied().unwrap_or(true)
        });
        let changed = changed.map(|(name, ready)| match ready {
            true => Happened::new(
                at_ms,
                Level::Info,
                Kind::Service,
                None,
                format!("{name} is ready"),
            ),
            false => Happened::new(
                at_ms,
                Level::Error,
                Kind::Service,
                None,
                format!("{name} is not ready: run `nlmfo check`"),
            ),
        });
        changed.collect()
    }
}

/// The requests that wait, each with a client that holds the lock.
fn waiting(detail: &Detail) -> Vec<(Wait, Option<IpAddr>)> {
    let of_nfs3 = detail.waiters.iter().filter(|line| !line.granted);
    let of_nfs3 = of_nfs3.filter_map(|line| {
        let wait = Wait {
            vip: detail.vip,
            client: detail.clients.get(line.client)?.client,
            svid: Some(line.svid),
            file: line.file.clone(),
            start: line.range.start,
        };
        Some((wait, line.holder))
    });
    let of_nfs4 = detail.nfs4.iter().flat_map(|client| {
        client.waiters.iter().map(|line| {
            let wait = Wait {
                vip: detail.vip,
                client: client.client,
                svid: None,
                file: line.file.clone(),
                start: line.range.start,
            };
            (wait, line.holder)
        })
    });
    of_nfs3.chain(of_nfs4).collect()
}

fn long_wait(at_ms: u64, waited_ms: u64, wait: &Wait, holder: Option<IpAddr>) -> Happened {
    let Wait {
        vip, client, file, ..
    } = wait;
    let seconds = waited_ms as f64 / 1000.0;
    let behind = match holder {
        Some(holder) => format!("behind {holder}"),
        None => "behind a local process".to_owned(),
    };
    Happened {
        client: Some(*client),
        file: Some(file.clone()),
        behind: holder,
        seconds: Some(seconds),
        ..Happened::new(
            at_ms,
            Level::Warning,
            Kind::LongWait,
            Some(*vip),
            format!("client {client} has waited {seconds:.0} s for a lock on {file}, {behind}"),
        )
    }
}

fn operation(at_ms: u64, last: &Last) -> Happened {
    let (level, verdict) = match last.exit_status {
        None => (Level::Info, "started"),
        Some(0) => (Level::Info, "confirmed"),
        Some(3) => (Level::Error, "not confirmed"),
        Some(5) => (
            Level::Warning,
            "confirmed, with clients not notified or reclaims missing",
        ),
        Some(_) => (Level::Error, "could not run"),
    };
    let mut text = format!("{} {verdict}", last.operation);
    if let (Some(seconds), true) = (last.seconds, last.exit_status.is_some()) {
        text += &format!(" after {seconds:.1} s");
    }
    if let Some(error) = &last.error {
        text += &format!(": {error}");
    }
    Happened {
        operation: Some(last.operation.clone()),
        exit_status: last.exit_status,
        seconds: last.seconds,
        ..Happened::new(at_ms, level, Kind::Operation, Some(last.vip), text)
    }
}

impl From<&Event> for Happened {
    fn from(event: &Event) -> Self {
        let (level, kind) = match event.kind {
            EventKind::Refused => (Level::Info, Kind::Refused),
            EventKind::Released => (Level::Info, Kind::Released),
            EventKind::Reclaimed => (Level::Info, Kind::Reclaimed),
            EventKind::Recalled => (Level::Info, Kind::Recalled),
            EventKind::Ended => (Level::Info, Kind::ClientGone),
            EventKind::Grace => (Level::Info, Kind::Grace),
            EventKind::Fence => (Level::Info, Kind::Fence),
            EventKind::KernelGrace => (Level::Info, Kind::KernelGrace),
            EventKind::Violation => (Level::Error, Kind::Violation),
            EventKind::Notify => (Level::Info, Kind::Notify),
            EventKind::Server => (Level::Warning, Kind::Server),
            EventKind::More => (Level::Info, Kind::More),
        };
        Happened::new(event.at_ms, level, kind, event.vip, event.text.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticks::samples;

    fn texts(happened: &[Happened]) -> Vec<&str> {
        happened.iter().map(|one| &*one.text).collect()
    }

    fn later(tick: &Tick, ms: u64) -> Tick {
        let mut later = tick.clone();
        later.elapsed_ms += ms;
        later.at_ms += ms;
        later.events.clear();
        later
    }

    #[test]
    fn a_long_wait_is_reported_once_with_the_holder() {
        let mut watcher = Watcher::new(Duration::from_secs(30));
        let mut world = World::default();
        let first = samples::one_vip();
        let mut look = |tick: &Tick| {
            world.take(tick.clone());
            let happened = watcher.look(tick, &world);
            (happened, watcher.oldest_waiters(tick.elapsed_ms))
        };
        assert!(look(&first).0.is_empty());
        assert!(look(&later(&first, 29_000)).0.is_empty());
        let (happened, oldest) = look(&later(&first, 31_000));
        let [wait, of_nfs4] = &happened[..] else {
            panic!("{happened:?}")
        };
        assert_eq!(of_nfs4.client, Some("10.77.0.13".parse().unwrap()));
        assert_eq!(of_nfs4.behind, Some("10.77.0.11".parse().unwrap()));
        assert_eq!((wait.kind, wait.seconds), (Kind::LongWait, Some(31.0)));
        assert!(
            wait.behind.is_some() && wait.text.contains("behind"),
            "{}",
            wait.text
        );
        assert_eq!(oldest[&first.vips[0].vip], 31.0);
        assert!(look(&later(&first, 60_000)).0.is_empty());
    }

    #[test]
    fn clients_come_and_go_but_not_at_the_first_look() {
        let mut watcher = Watcher::new(Duration::from_secs(30));
        let mut world = World::default();
        let tick = samples::one_vip();
        world.take(tick.clone());
        assert!(watcher.look(&tick, &world).is_empty());
        let mut without = later(&tick, 1_000);
        without.details[0].clients.truncate(1);
        without.details[0].locks.clear();
        without.details[0].waiters.clear();
        world.take(without.clone());
        let happened = watcher.look(&without, &world);
        assert_eq!(
            texts(&happened),
            ["client 10.77.0.12 holds no lock any more"]
        );
        let again = later(&tick, 2_000);
        world.take(again.clone());
        let happened = watcher.look(&again, &world);
        assert_eq!(texts(&happened), ["client 10.77.0.12 holds locks now"]);
    }

    #[test]
    fn an_operation_is_reported_when_it_starts_and_when_it_ends() {
        let mut watcher = Watcher::new(Duration::from_secs(30));
        let mut last = Last {
            vip: "10.77.0.1".parse().unwrap(),
            operation: "release".to_owned(),
            at: 1,
            exit_status: None,
            seconds: None,
            missing: None,
            error: None,
        };
        assert!(watcher.lasts(0, &[]).is_empty());
        let happened = watcher.lasts(0, std::slice::from_ref(&last));
        assert_eq!(texts(&happened), ["release started"]);
        assert!(watcher.lasts(0, std::slice::from_ref(&last)).is_empty());
        (last.exit_status, last.seconds) = (Some(3), Some(30.0));
        let happened = watcher.lasts(0, &[last]);
        assert_eq!(texts(&happened), ["release not confirmed after 30.0 s"]);
        assert_eq!(happened[0].level, Level::Error);
    }

    #[test]
    fn a_service_is_reported_when_it_dies_and_when_it_is_back() {
        let mut watcher = Watcher::new(Duration::from_secs(30));
        let services = |ready| [("statd".to_owned(), ready)].into();
        assert!(watcher.services(0, &services(true)).is_empty());
        assert_eq!(
            texts(&watcher.services(0, &services(false))),
            ["statd is not ready: run `nlmfo check`"]
        );
        assert!(watcher.services(0, &services(false)).is_empty());
        assert_eq!(
            texts(&watcher.services(0, &services(true))),
            ["statd is ready"]
        );
    }
}
