//! What happened between two ticks, as text.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::tick::{Server, Tick, VipTick};
use crate::grace::report::WindowReport;
use crate::observe::counters::Released;
use crate::observe::counters::nfs4::Counters4;

/// Events that one tick has at most; more are summed up in one.
const PER_TICK: usize = 100;

/// An event for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since 1970; when it was seen.
    pub at_ms: u64,
    /// None for an event of the whole node.
    pub vip: Option<IpAddr>,
    pub kind: EventKind,
    pub text: String,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Grants refused because of grace.
    Refused,
    /// Locks that lockd dropped by itself.
    Released,
    Reclaimed,
    /// NFSv4 delegations that another client's request took back.
    Recalled,
    /// NFSv4 clients that are gone, with what they held.
    Ended,
    /// A VIP's grace began or ended.
    Grace,
    /// A VIP's fence was raised or removed.
    Fence,
    /// The kernel's own grace.
    KernelGrace,
    Violation,
    /// A VIP's clients were notified.
    Notify,
    /// Serving stopped or began.
    Server,
    /// There were more events than are listed.
    More,
}

/// The events since `before`. The first tick has none: it reports the current state.
pub fn between(before: Option<&Tick>, after: &Tick) -> Vec<Event> {
    let mut events = Events {
        at_ms: after.at_ms,
        list: Vec::new(),
    };
    events.of_node(before, after);
    for vip in &after.vips {
        let before = before.and_then(|before| before.vip(vip.vip));
        events.of_vip(before, vip);
    }
    let more = events.list.len().saturating_sub(PER_TICK);
    if more > 0 {
        events.list.truncate(PER_TICK);
        events.add(None, EventKind::More, format!("and {more} more"));
    }
    events.list
}

struct Events {
    at_ms: u64,
    list: Vec<Event>,
}

impl Events {
    fn add(&mut self, vip: Option<IpAddr>, kind: EventKind, text: impl Into<String>) {
        self.list.push(Event {
            at_ms: self.at_ms,
            vip,
            kind,
            text: text.into(),
        });
    }

    fn of_node(&mut self, before: Option<&Tick>, after: &Tick) {
        let server = before.map_or(Server::Serving, |before| before.server);
        if server != after.server {
            self.add(
                None,
                EventKind::Server,
                match after.server {
                    Server::Serving => "lockd serves again",
                    Server::Stopped => "nfsd has stopped, lockd serves no client",
                    Server::NotLoaded => "lockd was unloaded",
                },
            );
        }
        let graces = |tick: &Tick| [tick.kernel_grace.lockd, tick.kernel_grace.nfsd];
        let then = before.map_or([None; 2], graces);
        for ((who, then), now) in ["lockd", "nfsd"].into_iter().zip(then).zip(graces(after)) {
            let text = match (then, now) {
                (Some(false) | None, Some(true)) => "is in grace: new locks are refused",
                (Some(true), Some(false)) => "has ended grace",
                _ => continue,
            };
            self.add(None, EventKind::KernelGrace, format!("{who} {text}"));
        }
    }

    fn of_vip(&mut self, before: Option<&VipTick>, after: &VipTick) {
        let vip = Some(after.vip);
        if before.is_some_and(|before| before.fenced) != after.fenced {
            self.add(
                vip,
                EventKind::Fence,
                match after.fenced {
                    true => "fenced: packets to lockd are dropped",
                    false => "fence removed",
                },
            );
        }
        if let (Some(before), Some(number)) = (before, after.state_number)
            && before.state_number != Some(number)
        {
            let text = format!("clients notified, state number {number}");
            self.add(vip, EventKind::Notify, text);
        }
        let counted = match before {
            Some(before) => after.counters - before.counters,
            None => after.counters,
        };
        for (cause, owners) in causes(&counted.released) {
            if owners > 0 {
                let text = format!("released by {cause}: the locks of {}", owner_files(owners));
                self.add(vip, EventKind::Released, text);
            }
        }
        let window = after.window.as_ref();
        self.of_window(
            vip,
            before.and_then(|before| before.window.as_ref()),
            window,
        );
        if counted.reclaimed > 0 {
            self.add(
                vip,
                EventKind::Reclaimed,
                plural(counted.reclaimed, "lock") + " reclaimed",
            );
        }
        if counted.denied_grace > 0 {
            let text = plural(counted.denied_grace, "LOCK call") + " refused because of grace";
            self.add(vip, EventKind::Refused, text);
        }
        let nothing = Counters4::default();
        let before = before.and_then(|before| before.nfs4).unwrap_or(nothing);
        self.of_nfs4(vip, &before, &after.nfs4.unwrap_or(nothing));
    }

    fn of_nfs4(&mut self, vip: Option<IpAddr>, before: &Counters4, after: &Counters4) {
        let counted = |of: fn(&Counters4) -> u64| of(after).saturating_sub(of(before));
        for (count, kind, what, then) in [
            (
                counted(|counters| counters.opens_reclaimed + counters.locks_reclaimed),
                EventKind::Reclaimed,
                "NFSv4 state",
                "reclaimed",
            ),
            (
                counted(|counters| counters.opens_in_grace + counters.locks_in_grace),
                EventKind::Refused,
                "NFSv4 call",
                "refused because of grace",
            ),
            (
                counted(|counters| counters.reclaims_refused),
                EventKind::Refused,
                "NFSv4 reclaim",
                "refused",
            ),
            (
                counted(|counters| counters.recalled),
                EventKind::Recalled,
                "NFSv4 delegation",
                "recalled",
            ),
            (
                counted(|counters| counters.clients_ended),
                EventKind::Ended,
                "NFSv4 client",
                "gone, with what it held",
            ),
        ] {
            if count > 0 {
                self.add(vip, kind, plural(count, what) + " " + then);
            }
        }
    }

    fn of_window(
        &mut self,
        vip: Option<IpAddr>,
        before: Option<&WindowReport>,
        after: Option<&WindowReport>,
    ) {
        let open = |window: Option<&WindowReport>| window.is_some_and(|window| window.open);
        match (open(before), open(after)) {
            (false, true) => {
                let left = after.map_or(0, |window| window.left_ms.div_ceil(1000));
                self.add(vip, EventKind::Grace, format!("in grace for {left} s"));
            }
            (true, false) => {
                let reclaimed = |window: &WindowReport| plural(window.lockd.reclaimed, "lock");
                let text = match (after, before) {
                    (Some(window), _) => format!("grace ended, {} reclaimed", reclaimed(window)),
                    // The gate is gone, and with it its last counts.
                    (None, Some(window)) => {
                        format!("grace ended, at least {} reclaimed", reclaimed(window))
                    }
                    (None, None) => "grace ended".to_owned(),
                };
                self.add(vip, EventKind::Grace, text);
            }
            _ => {}
        }
        let Some(after) = after else { return };
        // A new window begins with none.
        let known = before.map_or(0, |before| before.violations.len());
        let known = if known > after.violations.len() {
            0
        } else {
            known
        };
        for violation in &after.violations[known..] {
            self.add(vip, EventKind::Violation, violation.to_string());
        }
    }
}

/// The causes with their names for operators.
pub fn causes(released: &Released) -> [(&'static str, u64); 6] {
    [
        ("unlock_ip", released.unlock_ip),
        ("unlock_filesystem", released.unlock_filesystem),
        ("client reboot", released.client_reboot),
        ("FREE_ALL", released.free_all),
        ("lockd's shutdown", released.shutdown),
        ("lockd", released.other),
    ]
}

/// The unit in which lockd's releases are counted.
fn owner_files(count: u64) -> String {
    match count {
        1 => "1 owner on a file".to_owned(),
        _ => format!("{count} owners on files"),
    }
}

fn plural(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticks::samples as ticks;

    fn texts(before: Option<&Tick>, after: &Tick) -> Vec<String> {
        let events = between(before, after);
        events.into_iter().map(|event| event.text).collect()
    }

    #[test]
    fn a_quiet_tick_has_no_events() {
        let tick = ticks::one_vip();
        assert_eq!(texts(Some(&tick), &tick), [""; 0]);
        assert_eq!(texts(None, &tick), [""; 0]);
    }

    #[test]
    fn a_release_is_told_with_its_cause() {
        let before = ticks::one_vip();
        let mut after = before.clone();
        after.vips[0].fenced = true;
        after.vips[0].counters.released.free_all += 4;
        after.vips[0].counters.released.unlock_ip += 1;
        assert_eq!(
            texts(Some(&before), &after),
            [
                "fenced: packets to lockd are dropped",
                "released by unlock_ip: the locks of 1 owner on a file",
                "released by FREE_ALL: the locks of 4 owners on files",
            ]
        );
    }

    #[test]
    fn a_window_is_told_from_its_beginning_to_its_end() {
        let before = ticks::one_vip();
        let open = ticks::in_grace();
        let said = texts(Some(&before), &open);
        assert!(said.contains(&"in grace for 43 s".to_owned()), "{said:?}");
        let mut over = open.clone();
        over.vips[0].window = None;
        assert_eq!(
            texts(Some(&open), &over),
            ["grace ended, at least 812 locks reclaimed"]
        );
        over.vips[0].window = open.vips[0].window.clone();
        let window = over.vips[0].window.as_mut().unwrap();
        window.open = false;
        assert_eq!(
            texts(Some(&open), &over),
            ["grace ended, 812 locks reclaimed"]
        );
    }

    #[test]
    fn a_new_state_number_is_a_notification() {
        let before = ticks::one_vip();
        let mut after = before.clone();
        after.vips[0].state_number = Some(4_711);
        assert_eq!(
            texts(Some(&before), &after),
            ["clients notified, state number 4711"]
        );
        assert_eq!(texts(Some(&after), &after), [""; 0]);
    }

    #[test]
    fn a_violation_is_told_once_and_by_name() {
        let open = ticks::in_grace();
        let violated = ticks::violation();
        let said = texts(Some(&open), &violated);
        assert!(
            said.iter().any(|text| text.contains("is not a reclaim")),
            "{said:?}"
        );
        assert_eq!(texts(Some(&violated), &violated), [""; 0]);
    }

    #[test]
    fn the_server_going_and_coming_is_told() {
        let before = ticks::one_vip();
        let mut after = before.clone();
        after.server = Server::NotLoaded;
        after.kernel_grace.lockd = None;
        assert_eq!(texts(Some(&before), &after), ["lockd was unloaded"]);
        let mut back = before.clone();
        back.kernel_grace.lockd = Some(true);
        assert_eq!(
            texts(Some(&after), &back),
            [
                "lockd serves again",
                "lockd is in grace: new locks are refused"
            ]
        );
    }

    #[test]
    fn a_thousand_vips_do_not_flood() {
        let mut tick = ticks::many(1000);
        for vip in &mut tick.vips {
            vip.fenced = true;
        }
        let events = between(None, &tick);
        assert_eq!(events.len(), PER_TICK + 1);
        assert_eq!(events[PER_TICK].kind, EventKind::More);
    }
}
