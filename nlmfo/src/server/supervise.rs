//! Which daemon of a server to restart, and when.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::daemons::Daemon;

/// Time between two checks. The end of a process is noticed at once.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// How many checks in a row must find that a daemon hangs before it is killed: it may be busy, or wait
/// for a name server.
const SILENT_LOOKS: u32 = 3;

/// Time before the second restart of a daemon in a row, doubled before each further one.
const FIRST_DELAY: Duration = Duration::from_secs(5);
const LONGEST_DELAY: Duration = Duration::from_mins(1);

/// A daemon that has served this long after a restart counts as never restarted.
const SETTLED: Duration = Duration::from_mins(10);

/// The state of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Serves,
    /// It runs and does not serve, for this reason.
    Silent(String),
    /// It does not run.
    Ended,
    /// It runs; whether it serves cannot be checked.
    Unknown,
}

/// A daemon in one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub daemon: Daemon,
    pub process: Option<i32>,
    pub health: Health,
}

/// A daemon to restart now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    pub daemon: Daemon,
    /// The process that does not serve; none if it has ended.
    pub process: Option<i32>,
    /// Why it counts as hung; none if it has ended.
    pub silent: Option<String>,
}

impl Restart {
    /// Why it is restarted.
    pub fn cause(&self) -> String {
        let program = self.daemon.program();
        match (&self.silent, self.process) {
            (Some(silent), Some(process)) => {
                format!("{program} (process {process}) hangs: {silent}")
            }
            _ => format!("{program} has ended"),
        }
    }
}

#[derive(Debug, Default)]
struct History {
    /// Looks in a row that found it silent, and the process that they found.
    silent: u32,
    process: Option<i32>,
    /// Restarts in a row, and when the last one was tried.
    restarts: u32,
    last: Option<Instant>,
}

impl History {
    fn delay(&self) -> Duration {
        match self.restarts {
            0 => Duration::ZERO,
            many => (FIRST_DELAY * 2_u32.saturating_pow((many - 1).min(8))).min(LONGEST_DELAY),
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now >= last + self.delay())
    }
}

/// The results of earlier checks and restarts.
#[derive(Debug, Default)]
pub struct Supervisor(BTreeMap<Daemon, History>);

impl Supervisor {
    /// Takes in one look, in the order in which daemons start: the daemon to restart now, if any.
    /// `is_regular`: the look is one of those that count for silence.
    pub fn decide(&mut self, now: Instant, is_regular: bool, seen: &[Seen]) -> Option<Restart> {
        for one in seen {
            let history = self.0.entry(one.daemon).or_default();
            let is_new = history.process != one.process;
            history.process = one.process;
            history.silent = match one.health {
                Health::Silent(_) if is_new => u32::from(is_regular),
                Health::Silent(_) => history.silent + u32::from(is_regular),
                _ => 0,
            };
            let is_settled = history.last.is_some_and(|last| now >= last + SETTLED);
            if is_settled && one.health == Health::Serves {
                (history.restarts, history.last) = (0, None);
            }
        }
        let is_down = |daemon| {
            let rpcbind = seen.iter().find(|one| one.daemon == daemon);
            rpcbind.is_some_and(|rpcbind| rpcbind.health != Health::Serves)
        };
        // They register with rpcbind when they start.
        let waits =
            |daemon| matches!(daemon, Daemon::Statd | Daemon::Mountd) && is_down(Daemon::Rpcbind);
        let restarts = seen.iter().filter_map(|one| {
            let history = self.0.get(&one.daemon)?;
            let silent = match &one.health {
                Health::Ended => None,
                Health::Silent(why) if history.silent >= SILENT_LOOKS => Some(why.clone()),
                _ => return None,
            };
            (history.is_due(now) && !waits(one.daemon)).then_some(Restart {
                daemon: one.daemon,
                process: one.process,
                silent,
            })
        });
        restarts.into_iter().next()
    }

    /// A restart was tried at this time.
    pub fn tried(&mut self, now: Instant, daemon: Daemon) {
        let history = self.0.entry(daemon).or_default();
        history.restarts = history.restarts.saturating_add(1);
        history.last = Some(now);
        history.silent = 0;
    }

    /// Time until the daemon that does not serve is restarted again.
    pub fn delay(&self, daemon: Daemon) -> Duration {
        self.0.get(&daemon).map_or(Duration::ZERO, History::delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Daemon::{Mountd, Nfsdcld, Rpcbind, Statd};

    fn seen(changed: &[(Daemon, Health)]) -> Vec<Seen> {
        let all = [Rpcbind, Statd, Nfsdcld, Mountd].into_iter();
        all.map(|daemon| {
            let change = changed.iter().find(|(one, _)| *one == daemon);
            let health = change.map_or(Health::Serves, |(_, health)| health.clone());
            let process = (health != Health::Ended).then_some(7);
            Seen {
                daemon,
                process,
                health,
            }
        })
        .collect()
    }

    fn silent() -> Health {
        Health::Silent("no answer".into())
    }

    fn decided(
        supervisor: &mut Supervisor,
        now: Instant,
        changed: &[(Daemon, Health)],
    ) -> Option<Daemon> {
        let restart = supervisor.decide(now, true, &seen(changed));
        restart.map(|restart| restart.daemon)
    }

    #[test]
    fn one_that_ended_is_restarted_at_once() {
        let mut supervisor = Supervisor::default();
        let now = Instant::now();
        assert_eq!(decided(&mut supervisor, now, &[]), None);
        let restart = supervisor.decide(now, false, &seen(&[(Nfsdcld, Health::Ended)]));
        assert_eq!(restart.unwrap().cause(), "nfsdcld has ended");
    }

    #[test]
    fn one_is_killed_after_three_silent_looks_in_a_row() {
        let mut supervisor = Supervisor::default();
        let now = Instant::now();
        let hung = [(Statd, silent())];
        for _ in 0..2 {
            assert_eq!(decided(&mut supervisor, now, &hung), None);
        }
        // One because another daemon ended does not count.
        assert_eq!(supervisor.decide(now, false, &seen(&hung)), None);
        assert_eq!(decided(&mut supervisor, now, &[]), None);
        for _ in 0..2 {
            assert_eq!(decided(&mut supervisor, now, &hung), None);
        }
        // What cannot be seen counts for nothing.
        let unknown = [(Statd, Health::Unknown)];
        assert_eq!(decided(&mut supervisor, now, &unknown), None);
        for _ in 0..2 {
            assert_eq!(decided(&mut supervisor, now, &hung), None);
        }
        let restart = supervisor.decide(now, true, &seen(&hung)).unwrap();
        assert_eq!(restart.cause(), "rpc.statd (process 7) hangs: no answer");
    }

    #[test]
    fn a_new_process_is_counted_anew() {
        let mut supervisor = Supervisor::default();
        let now = Instant::now();
        let mut hung = seen(&[(Statd, silent())]);
        for process in [7, 7, 8, 8] {
            hung[1].process = Some(process);
            assert_eq!(supervisor.decide(now, true, &hung), None);
        }
        assert!(supervisor.decide(now, true, &hung).is_some());
    }

    #[test]
    fn rpcbind_comes_first() {
        let mut supervisor = Supervisor::default();
        let now = Instant::now();
        let ended = [
            (Mountd, Health::Ended),
            (Statd, Health::Ended),
            (Rpcbind, Health::Ended),
            (Nfsdcld, Health::Ended),
        ];
        assert_eq!(decided(&mut supervisor, now, &ended), Some(Rpcbind));
        supervisor.tried(now, Rpcbind);
        // It does not serve yet; only nfsdcld needs no rpcbind.
        assert_eq!(decided(&mut supervisor, now, &ended), Some(Nfsdcld));
        supervisor.tried(now, Nfsdcld);
        assert_eq!(decided(&mut supervisor, now, &ended), None);
        assert_eq!(decided(&mut supervisor, now, &ended[..2]), Some(Statd));
        supervisor.tried(now, Statd);
        assert_eq!(decided(&mut supervisor, now, &ended[..1]), Some(Mountd));
    }

    #[test]
    fn one_that_ends_again_and_again_is_restarted_less_and_less_often() {
        let mut supervisor = Supervisor::default();
        let ended = [(Mountd, Health::Ended)];
        let mut now = Instant::now();
        let mut delays = Vec::new();
        for _ in 0..6 {
            assert_eq!(decided(&mut supervisor, now, &ended), Some(Mountd));
            supervisor.tried(now, Mountd);
            let delay = supervisor.delay(Mountd);
            delays.push(delay.as_secs());
            let early = now + delay.saturating_sub(Duration::from_millis(1));
            assert_eq!(decided(&mut supervisor, early, &ended), None);
            now += delay;
        }
        assert_eq!(delays, [5, 10, 20, 40, 60, 60]);
        now += SETTLED;
        // It must have been seen to serve.
        decided(&mut supervisor, now, &[]);
        assert_eq!(supervisor.delay(Mountd), Duration::ZERO);
        assert_eq!(decided(&mut supervisor, now, &ended), Some(Mountd));
    }
}
