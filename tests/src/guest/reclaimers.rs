//! Any number of clients, without their own kernels, that reclaim their locks as soon as they are
//! notified.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::handles::FileHandle;
use super::listeners::Listeners;
use super::load::{self, Holding};
use super::raw::{RawNet, address};

/// lockd is one thread; that many clients keep it busy.
const AT_ONCE: usize = 8;

/// When the clients were notified, and when they had their locks, since a common start.
#[derive(Debug)]
pub struct Reclaimed {
    pub first_told: Duration,
    pub last_told: Duration,
    pub last_back: Duration,
}

/// Plays the clients of `holding`, which has one VIP, while `failover` runs: each reclaims
/// its locks when it hears SM_NOTIFY for the first time.
pub fn reclaim_while<T: Send>(
    net: &RawNet,
    files: &[FileHandle],
    holding: Holding<'_>,
    failover: impl FnOnce() -> Result<T> + Send,
) -> Result<(T, Reclaimed)> {
    let vip = holding.vips[0];
    let numbers: BTreeMap<IpAddr, u16> = (1..=holding.clients)
        .map(|number| (address(number, vip), number))
        .collect();
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let addresses: Vec<IpAddr> = numbers.keys().copied().collect();
    let listeners = Listeners::start(net.node(), addresses.into_iter(), move |address| {
        let tell = tell.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody hears when the failover is over.
        let _ = tell.send((address, Instant::now()));
    })?;
    let told = Arc::new(Mutex::new(Once {
        told,
        seen: BTreeSet::new(),
    }));
    let began = Instant::now();
    thread::scope(|scope| -> Result<_> {
        let working: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let (told, numbers) = (told.clone(), &numbers);
                scope.spawn(move || -> Result<Vec<(Instant, Instant)>> {
                    let mut done = Vec::new();
                    while let Some((address, at)) = Once::next(&told) {
                        let number = numbers[&address];
                        load::reclaim(net, files, holding, 0, number)?;
                        done.push((at, Instant::now()));
                    }
                    Ok(done)
                })
            })
            .collect();
        let result = failover();
        // With it go the senders, and the workers end.
        drop(listeners);
        let mut times = Vec::new();
        for worker in working {
            times.extend(worker.join().expect("a client does not panic")?);
        }
        let result = result?;
        let since = |at: Option<Instant>| {
            at.map(|at| at - began)
                .ok_or_else(|| anyhow!("no client was notified"))
        };
        let reclaimed = Reclaimed {
            first_told: since(times.iter().map(|(told, _)| *told).min())?,
            last_told: since(times.iter().map(|(told, _)| *told).max())?,
            last_back: since(times.iter().map(|(_, back)| *back).max())?,
        };
        Ok((result, reclaimed))
    })
    .context("clients that reclaim")
}

/// The addresses that were notified, each once.
struct Once {
    told: Receiver<(IpAddr, Instant)>,
    seen: BTreeSet<IpAddr>,
}

impl Once {
    /// Waits for another one; none when no more can come.
    fn next(this: &Mutex<Once>) -> Option<(IpAddr, Instant)> {
        let mut this = this.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (address, at) = this.told.recv().ok()?;
            if this.seen.insert(address) {
                return Some((address, at));
            }
        }
    }
}
