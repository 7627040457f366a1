//! Sample ticks, as of a node in each state.

use std::net::IpAddr;

use crate::grace::audit::Verdict;
use crate::grace::report::{
    Answers, GateCounts, Reach, ViolationKind, ViolationLine, WindowReport,
};
use crate::kernel::grace::SeenGrace;
use crate::observe::counters::Counters;
use crate::observe::counters::nfs4::Counters4;
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::states::{Access, Counts4, Kind};
use crate::observe::table::{Mode, Range};
use crate::ticks::detail::{ClientLine, Detail, HeldLine, ShareLine, Since, WaitLine};
use crate::ticks::events;
use crate::ticks::judge::VipState;
use crate::ticks::states::{ClientLine4, StateLine4, WaitLine4};
use crate::ticks::tick::{Look, Pace, SCHEMA, Server, Tick, VipTick};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// No client has locked anything.
pub fn empty() -> Tick {
    Tick {
        schema: SCHEMA.into(),
        node: "nfs1".to_owned(),
        at_ms: 1_764_000_000_000,
        elapsed_ms: 65_000,
        pace: Pace {
            asked_ms: 1_000,
            tick_ms: 1_000,
            look_ms: 1_000,
            cpu_percent: 0.4,
        },
        server: Server::Serving,
        kernel_grace: SeenGrace {
            lockd: Some(false),
            nfsd: Some(false),
        },
        look: Look {
            at_ms: 65_000,
            exact: true,
            cost_us: 900,
        },
        vips: Vec::new(),
        not_connected: Vec::new(),
        details: Vec::new(),
        events: Vec::new(),
        troubles: Vec::new(),
    }
}

fn counters() -> Counters {
    let mut counters = Counters {
        granted: 5_120,
        granted_later: 12,
        denied: 3,
        blocked: 13,
        unlocked: 4_300,
        ..Counters::default()
    };
    for (bucket, calls) in [
        (14, 40),
        (15, 900),
        (16, 3_100),
        (17, 800),
        (18, 90),
        (24, 2),
    ] {
        counters.latency_ns_log2[bucket] = calls;
    }
    counters
}

fn vip(vip: IpAddr) -> VipTick {
    VipTick {
        vip,
        state: VipState::Serving,
        held: 812,
        waiters: 1,
        shares: 1,
        clients: 2,
        counters: counters(),
        nfs4: Some(Counters4 {
            opens: 12,
            locks: 7,
            locks_denied: 1,
            delegations: 3,
            ..Counters4::default()
        }),
        held4: Some(Counts4 {
            clients: 1,
            opens: 1,
            locks: 1,
            delegations: 1,
            ..Counts4::default()
        }),
        waiters4: 1,
        last_held4: Counts4::default(),
        fenced: false,
        window: None,
        state_number: None,
    }
}

fn held(client: usize, file: &str, range: (u64, u64), behind: u64) -> HeldLine {
    HeldLine {
        client,
        svid: 4_242,
        mode: Mode::Write,
        range: Range {
            start: range.0,
            end: range.1,
        },
        file: file.to_owned(),
        since: Some(Since {
            ms: 5_000,
            or_before: behind > 0,
        }),
        behind,
    }
}

fn state(kind: Kind, range: Option<Range>, file: &str) -> StateLine4 {
    StateLine4 {
        kind,
        access: Access {
            read: true,
            write: kind != Kind::Delegation,
        },
        deny: Access::default(),
        range,
        file: file.to_owned(),
    }
}

fn detail(vip: IpAddr) -> Detail {
    let client = |client: &str, name: &str, held| ClientLine {
        client: ip(client),
        name: name.to_owned(),
        version: NlmVersion::V4,
        transport: Transport::Tcp,
        held,
    };
    Detail {
        vip,
        clients: vec![
            client("10.77.0.11", "mail1.example.net", 3),
            client("10.77.0.12", "mail2.example.net", 809),
        ],
        locks: vec![
            held(0, "/srv/data/mail/c1-a.mbox", (0, Range::EOF), 1),
            held(0, "/srv/data/index", (4_096, 4_607), 0),
            held(
                0,
                "/srv/data/a/very/long/way/down/to/a/file/that/is/locked",
                (0, 9),
                0,
            ),
            held(1, "/srv/data/mail/c2-a.mbox", (0, Range::EOF), 0),
        ],
        waiters: vec![WaitLine {
            client: 1,
            svid: 17,
            mode: Mode::Write,
            range: Range {
                start: 0,
                end: Range::EOF,
            },
            file: "/srv/data/mail/c1-a.mbox".to_owned(),
            granted: false,
            holder: Some(ip("10.77.0.11")),
        }],
        shares: vec![ShareLine {
            client: 1,
            access: 3,
            deny: 2,
            file: "/srv/data/share".to_owned(),
        }],
        nfs4: vec![ClientLine4 {
            client: ip("10.77.0.13"),
            name: "Linux NFSv4.2 mail3.example.net".to_owned(),
            minor: 2,
            connected: true,
            held: 3,
            lines: vec![
                state(Kind::Open, None, "/srv/data/mail/c3-a.mbox"),
                state(
                    Kind::Lock,
                    Some(Range { start: 0, end: 99 }),
                    "/srv/data/mail/c3-a.mbox",
                ),
                state(Kind::Delegation, None, "/srv/data/index"),
            ],
            waiters: vec![WaitLine4 {
                mode: Mode::Read,
                range: Range { start: 0, end: 99 },
                file: "/srv/data/mail/c1-a.mbox".to_owned(),
                holder: Some(ip("10.77.0.11")),
            }],
        }],
        more: 808,
    }
}

pub fn one_vip() -> Tick {
    let address = ip("10.77.0.1");
    Tick {
        vips: vec![vip(address)],
        details: vec![detail(address)],
        ..empty()
    }
}

/// A second later, with some traffic.
pub fn later(before: &Tick) -> Tick {
    let mut tick = before.clone();
    tick.elapsed_ms += 1_000;
    tick.at_ms += 1_000;
    tick.look.at_ms += 1_000;
    for (place, vip) in tick.vips.iter_mut().enumerate() {
        let calls = 40 + 7 * (place as u64 % 13);
        vip.counters.granted += calls;
        vip.counters.unlocked += calls / 2;
        vip.counters.denied += place as u64 % 3;
        vip.counters.latency_ns_log2[16] += calls - 2;
        vip.counters.latency_ns_log2[20] += 2;
    }
    tick
}

fn window(vip: IpAddr, answers: Answers, violations: Vec<ViolationLine>) -> WindowReport {
    let verdict = match answers.violations {
        0 => Verdict::Enforced,
        locks => Verdict::Violated { locks },
    };
    WindowReport {
        vip,
        reach: Reach::Vip,
        open: true,
        left_ms: 42_300,
        length_ms: 90_000,
        until_ns: 0,
        late: false,
        gate: GateCounts::default(),
        lockd: answers,
        violations,
        verdict,
    }
}

/// With its first event: 812 of 1000 are back.
pub fn in_grace() -> Tick {
    let mut tick = later(&one_vip());
    let answers = Answers {
        reclaimed: 812,
        refused: 4,
        ..Answers::default()
    };
    let vip = &mut tick.vips[0];
    vip.window = Some(window(vip.vip, answers, Vec::new()));
    vip.counters.reclaimed = 812;
    vip.counters.denied_grace = 4;
    vip.state = VipState::Reclaiming {
        reclaimed: 812,
        expected: Some(1_000),
        left_ms: 42_300,
    };
    tick.events = events::between(Some(&one_vip()), &tick);
    tick
}

/// One lock was granted that was not a reclaim.
pub fn violation() -> Tick {
    let before = in_grace();
    let mut tick = later(&before);
    let violation = ViolationLine {
        kind: ViolationKind::NewLock,
        client: ip("10.77.0.12"),
        svid: 9,
        mode: Mode::Write,
        range: Range { start: 0, end: 9 },
        fh: "01000601".to_owned(),
        path: Some("/srv/data/index".to_owned()),
        xid: 7,
        port: 1_002,
    };
    let answers = Answers {
        reclaimed: 812,
        refused: 4,
        violations: 1,
        ..Answers::default()
    };
    let vip = &mut tick.vips[0];
    vip.window = Some(window(vip.vip, answers, vec![violation]));
    vip.state = VipState::Violation { locks: 1 };
    tick.events = events::between(Some(&before), &tick);
    tick
}

/// The states in turn, on so many VIPs.
pub fn many(count: u32) -> Tick {
    let states = [
        VipState::Serving,
        VipState::Fenced,
        VipState::Releasing,
        VipState::Released,
        VipState::Grace { left_ms: 42_300 },
        VipState::KernelGrace,
        VipState::Doubtful { calls: 2 },
    ];
    let mut tick = empty();
    for place in 0..count {
        let address = ip("10.77.0.1");
        let IpAddr::V4(first) = address else {
            unreachable!("it is one");
        };
        let mut one = vip(IpAddr::V4((u32::from(first) + place).into()));
        one.state = states[place as usize % states.len()];
        one.held = u64::from(place) * 131;
        tick.vips.push(one);
    }
    tick
}

/// Addresses that do not fit.
pub fn long_names() -> Tick {
    let mut tick = one_vip();
    for address in [
        "2001:db8:85a3:1234:5678:8a2e:370:7334",
        "2001:db8:85a3:1234:5678:8a2e:1370:7334",
    ] {
        let address = ip(address);
        let mut one = vip(address);
        one.held = 1_234_567;
        tick.vips.push(one);
        let mut of_it = detail(address);
        of_it.clients[0].client = ip("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff");
        of_it.clients[0].name = "a-client-with-a-name-of-its-own.example.net".to_owned();
        of_it.locks[0].file = "/srv/日本語/ファイル\u{1b}[31m".to_owned();
        tick.details.push(of_it);
    }
    tick
}
