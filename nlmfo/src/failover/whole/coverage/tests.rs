use super::*;
use crate::failover::record::sample::{self, lock, state};
use crate::observe::host::Host;
use crate::observe::states::describe::RangeLine;
use crate::observe::states::{self, Nfs4Client, State};
use crate::observe::table::{FileId, FileInfo, HostId, HostInfo, Lock};

const VIPS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

fn record() -> Record {
    sample::record(&VIPS)
}

fn locked(ranges: &[(Mode, u64, u64)]) -> StateLine {
    let line = |&(mode, start, end)| RangeLine {
        mode,
        range: Range { start, end },
    };
    StateLine {
        ranges: ranges.iter().map(line).collect(),
        ..state(Kind::Lock)
    }
}

fn info() -> FileInfo {
    FileInfo {
        major: 0,
        minor: 31,
        ino: 7,
        fh: vec![1, 0xff],
    }
}

fn nlm(range: Range) -> LockTable {
    let host = HostInfo {
        key: Host::sample([10, 77, 0, 1], [10, 77, 1, 1]),
        name: "c1".into(),
        nsm_name: "c1".into(),
        nsm_priv: [0; 16],
        expires: 0,
    };
    LockTable {
        hosts: vec![host],
        files: vec![info()],
        locks: vec![Lock {
            host: HostId(0),
            file: FileId(0),
            svid: 3,
            mode: Mode::Write,
            range,
        }],
        ..LockTable::default()
    }
}

/// Kind, access, and what a lock covers.
type Now<'a> = (Kind, Access, &'a [(Mode, Range)]);

/// What a client of this name holds now.
fn now(name: &str, states: &[Now]) -> StateTable {
    let client = Nfs4Client {
        name: name.into(),
        address: "10.77.1.2".parse().unwrap(),
        ..states::sample::client(&[])
    };
    let states = states.iter().map(|&(kind, access, ranges)| State {
        access,
        file: Some(info()),
        ranges: ranges.to_vec(),
        ..states::sample::state(0, kind)
    });
    StateTable {
        clients: vec![client],
        states: states.collect(),
        ..StateTable::default()
    }
}

const C2: &str = "Linux NFSv4.1 c2";
const READ: Access = Access {
    read: true,
    write: false,
};
const BOTH: Access = Access {
    read: true,
    write: true,
};

fn coverage(record: &Record, locks: &LockTable, states: Option<&StateTable>) -> Coverage {
    Coverage::of(
        record,
        Present {
            locks,
            states,
            given_up: &GivenUp::default(),
            refused_no_reclaim4: false,
        },
    )
}

#[test]
fn a_lock_of_nfs3_is_back_whatever_address_its_client_uses() {
    let mut record = record();
    record.locks = vec![lock(VIPS[1], 10, 19)];
    let back = nlm(Range { start: 10, end: 19 });
    assert!(coverage(&record, &back, None).is_complete());
    let part = nlm(Range { start: 10, end: 18 });
    assert_eq!(coverage(&record, &part, None).missing.locks, record.locks);
}

#[test]
fn an_nfs4_client_is_known_by_its_name_and_its_locks_by_their_bytes() {
    let mut record = record();
    record.nfs4 = vec![
        state(Kind::Open),
        locked(&[(Mode::Write, 0, 9), (Mode::Read, 20, 29)]),
    ];
    let none = LockTable::default();
    let range = |start, end| Range { start, end };
    for (name, ranges, missing) in [
        (
            C2,
            &[(Mode::Write, range(0, 9)), (Mode::Read, range(20, 29))][..],
            0,
        ),
        // Merged, and in two pieces.
        (C2, &[(Mode::Write, range(0, 99))], 0),
        (
            C2,
            &[
                (Mode::Write, range(0, 4)),
                (Mode::Write, range(5, 9)),
                (Mode::Write, range(15, 40)),
            ],
            0,
        ),
        (C2, &[(Mode::Write, range(0, 9))], 1),
        (C2, &[(Mode::Read, range(0, 99))], 1),
        (
            C2,
            &[(Mode::Write, range(0, 4)), (Mode::Write, range(6, 29))],
            1,
        ),
        ("Linux NFSv4.1 c3", &[(Mode::Write, range(0, 99))], 3),
    ] {
        let states = now(name, &[(Kind::Open, BOTH, &[]), (Kind::Lock, BOTH, ranges)]);
        let coverage = coverage(&record, &none, Some(&states));
        assert_eq!(coverage.expected, 3);
        assert_eq!(coverage.missing.len(), missing, "{name} {ranges:?}");
    }
    // What could not be read is not back.
    assert_eq!(coverage(&record, &none, None).missing.len(), 3);
}

#[test]
fn what_an_nfs4_client_gave_up_is_told_by_its_stateid() {
    let of = |line: StateLine| StateLine {
        stateid: format!("01000000{}", "07".repeat(12)),
        ..line
    };
    let mut record = record();
    record.nfs4 = vec![
        of(state(Kind::Open)),
        of(locked(&[(Mode::Write, 0, 9), (Mode::Write, 20, 29)])),
    ];
    let none = (LockTable::default(), now(C2, &[]));
    let parts = |state: [u8; 12], range| {
        let present = Present {
            locks: &none.0,
            states: Some(&none.1),
            given_up: &GivenUp {
                nfs3: Vec::new(),
                nfs4: vec![Unlocked4 { state, range }],
            },
            refused_no_reclaim4: false,
        };
        let coverage = Coverage::of(&record, present);
        (coverage.missing.len(), coverage.given_up.len())
    };
    let range = |start, end| Some(Range { start, end });
    assert_eq!(parts([7; 12], range(0, 9)), (2, 1));
    assert_eq!(parts([7; 12], range(0, Range::EOF)), (1, 2));
    // A part of a lock, and another stateid.
    assert_eq!(parts([7; 12], range(0, 8)), (3, 0));
    assert_eq!(parts([8; 12], range(0, 9)), (3, 0));
    assert_eq!(parts([7; 12], None), (2, 1));
}

#[test]
fn a_delegation_covers_opens_and_locks_as_far_as_it_goes() {
    let mut record = record();
    record.nfs4 = vec![state(Kind::Open), locked(&[(Mode::Write, 0, 9)])];
    let none = LockTable::default();
    let missing = |access| {
        let states = now(C2, &[(Kind::Delegation, access, &[])]);
        coverage(&record, &none, Some(&states)).missing.len()
    };
    assert_eq!(missing(BOTH), 0);
    assert_eq!(missing(READ), 2);
    record.nfs4 = vec![locked(&[(Mode::Read, 0, 9)])];
    let states = now(C2, &[(Kind::Delegation, READ, &[])]);
    assert!(coverage(&record, &none, Some(&states)).is_complete());
}

#[test]
fn a_delegation_that_does_not_come_back_may_have_hidden_locks() {
    let mut record = record();
    record.nfs4 = vec![state(Kind::Open), state(Kind::Delegation)];
    let none = LockTable::default();
    let opened = now(C2, &[(Kind::Open, BOTH, &[])]);
    let seen = coverage(&record, &none, Some(&opened));
    assert!(seen.is_complete() && seen.hidden == 1 && seen.expected == 1);
    let both = now(
        C2,
        &[(Kind::Open, BOTH, &[]), (Kind::Delegation, BOTH, &[])],
    );
    assert_eq!(coverage(&record, &none, Some(&both)).hidden, 0);
}

#[test]
fn what_a_client_has_not_reclaimed_may_come_until_it_is_done() {
    let name = "Linux NFSv4.1 c2";
    let may_come = |table: &StateTable| {
        let missing = Part {
            nfs4: vec![state(Kind::Open)],
            ..Part::default()
        };
        missing.may_come(Some(table))
    };
    let (mut done, reclaiming) = (now(name, &[]), now(name, &[]));
    done.clients[0].has_reclaimed = true;
    let mut record = record();
    record.nfs4 = vec![state(Kind::Open)];
    assert!(may_come(&reclaiming) && are_reclaiming(&record, &reclaiming));
    assert!(!may_come(&done) && !are_reclaiming(&record, &done));
    // It is not back yet, or has left an entry behind.
    assert!(!are_reclaiming(&record, &StateTable::default()));
    let mut twice = reclaiming.clone();
    twice.clients[0].info.status = "unconfirmed".into();
    assert!(!are_reclaiming(&record, &twice));
    // Another client is done.
    done.clients[0].name = "Linux NFSv4.1 c3".into();
    assert!(may_come(&done));
}

#[test]
fn what_a_client_has_not_reclaimed_is_given_up_if_it_is_done_and_was_refused_nothing() {
    let mut record = record();
    record.nfs4 = vec![state(Kind::Open), locked(&[(Mode::Write, 0, 9)])];
    let locks = LockTable::default();
    let given_up = |is_done, refused_no_reclaim4| {
        let mut states = now(C2, &[(Kind::Open, BOTH, &[])]);
        states.clients[0].has_reclaimed = is_done;
        let present = Present {
            locks: &locks,
            states: Some(&states),
            given_up: &GivenUp::default(),
            refused_no_reclaim4,
        };
        let coverage = Coverage::of(&record, present);
        assert_eq!(coverage.missing.len() + coverage.given_up.len(), 1);
        coverage.given_up.len() == 1
    };
    assert!(given_up(true, true));
    assert!(!given_up(true, false));
    assert!(!given_up(false, true));
}

#[test]
fn what_the_configuration_keeps_from_coming_back_is_not_given_up() {
    let mut lost = record();
    lost.nfs4 = vec![state(Kind::Open), locked(&[(Mode::Write, 0, 9)])];
    lost.locks = vec![lock(VIPS[0], 0, 9)];
    let mut states = now(C2, &[]);
    states.clients[0].has_reclaimed = true;
    let locks = LockTable::default();
    let present = Present {
        locks: &locks,
        states: Some(&states),
        given_up: &GivenUp::default(),
        refused_no_reclaim4: true,
    };
    let coverage = Coverage::of(&record(), present).and_of_lost(&lost, present);
    assert_eq!(
        (
            coverage.expected,
            coverage.missing.len(),
            coverage.given_up.len()
        ),
        (3, 3, 0)
    );
}
