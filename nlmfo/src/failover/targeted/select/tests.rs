use super::*;
use crate::failover::evidence::{Items, items};
use crate::observe::states::{Kind, sample};
use crate::observe::table::{FileId, FileInfo, HostId, HostInfo, Lock, Mode, Range, Share, Waiter};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn host(vip: &str, client: &str) -> HostInfo {
    HostInfo {
        key: Host::sample(ip(vip), ip(client)),
        name: "c".into(),
        nsm_name: "".into(),
        nsm_priv: [0; 16],
        expires: 0,
    }
}

fn file(ino: u64, minor: u32) -> FileInfo {
    FileInfo {
        major: 8,
        minor,
        ino,
        fh: vec![ino as u8; 8],
    }
}

fn lock(host: u32, file: u32, svid: u32, start: u64) -> Lock {
    Lock {
        host: HostId(host),
        file: FileId(file),
        svid,
        mode: Mode::Write,
        range: Range {
            start,
            end: start + 4,
        },
    }
}

/// Client 11 through two VIPs and client 12 through one, on two files of a filesystem and one
/// of another.
fn nlm() -> LockTable {
    LockTable {
        hosts: vec![
            host("10.77.0.1", "10.77.1.11"),
            host("10.77.0.2", "10.77.1.11"),
            host("10.77.0.1", "10.77.1.12"),
        ],
        files: vec![file(1, 1), file(2, 1), file(3, 2)],
        locks: vec![
            lock(0, 0, 7, 0),
            lock(0, 0, 8, 10),
            lock(1, 1, 7, 20),
            lock(2, 0, 7, 30),
            lock(2, 2, 7, 40),
        ],
        waiters: vec![Waiter {
            host: HostId(2),
            file: FileId(0),
            svid: 9,
            mode: Mode::Write,
            range: Range { start: 0, end: 4 },
            granted: false,
        }],
        shares: Vec::new(),
    }
}

fn nfs4(client: &str, vips: &[&str], ino: u64) -> StateTable {
    let client = Nfs4Client {
        address: ip(client),
        ..sample::client(vips)
    };
    let state = State {
        file: Some(file(ino, 1)),
        ranges: vec![(Mode::Write, Range { start: 0, end: 4 })],
        id: [5; 16],
        ..sample::state(0, Kind::Lock)
    };
    StateTable {
        clients: vec![client],
        states: vec![state],
        ..StateTable::default()
    }
}

fn asked(wanted: Wanted) -> Asked {
    Asked {
        wanted,
        vips: Vec::new(),
        nfs3: true,
        nfs4: true,
        all_vips: false,
        whole: None,
    }
}

fn of_file() -> Asked {
    asked(Wanted::File {
        on: On::File(8, 1, 1),
        client: None,
    })
}

fn starts(table: &LockTable) -> Vec<u64> {
    table.locks.iter().map(|lock| lock.range.start).collect()
}

#[test]
fn a_client_goes_as_a_whole_or_through_the_vips_that_are_named() {
    let all = asked(Wanted::Client(ip("10.77.1.11")));
    let chosen = select(&all, &nlm(), None).unwrap();
    assert_eq!(starts(&chosen.nlm), [0, 10, 20]);
    assert!(chosen.nlm.waiters.is_empty());
    let one = Asked {
        vips: vec![ip("10.77.0.2")],
        ..all
    };
    let chosen = select(&one, &nlm(), None).unwrap();
    assert_eq!(starts(&chosen.nlm), [20]);
    assert_eq!(chosen.vips(), [ip("10.77.0.2")]);
}

#[test]
fn an_nfs4_client_is_known_by_each_address_of_its_connections() {
    let mut states = nfs4("10.77.1.11", &["10.77.0.1"], 1);
    states.clients[0].peers = vec![ip("10.77.1.11"), ip("fd77::1:11")];
    for address in ["10.77.1.11", "fd77::1:11"] {
        let all = asked(Wanted::Client(ip(address)));
        let chosen = select(&all, &LockTable::default(), Some(&states)).unwrap();
        assert_eq!(chosen.nfs4.clients.len(), 1);
        let on_file = asked(Wanted::File {
            on: On::File(8, 1, 1),
            client: Some(ip(address)),
        });
        let refused = select(&on_file, &LockTable::default(), Some(&states)).unwrap_err();
        assert!(matches!(refused, Refusal::StateOnFile { .. }));
    }
}

#[test]
fn a_file_goes_for_all_or_for_one_client_and_no_other_file_does() {
    let chosen = select(&of_file(), &nlm(), None).unwrap();
    assert_eq!(starts(&chosen.nlm), [0, 10, 30]);
    assert_eq!(chosen.nlm.waiters.len(), 1);
    let one = asked(Wanted::File {
        on: On::File(8, 1, 1),
        client: Some(ip("10.77.1.12")),
    });
    assert_eq!(starts(&select(&one, &nlm(), None).unwrap().nlm), [30]);
}

#[test]
fn a_row_is_one_owners_range() {
    let table = nlm();
    let id = RowId::of(&evidence::locks(&table).nth(1).unwrap());
    let chosen = select(&asked(Wanted::Row(id)), &table, None).unwrap();
    assert_eq!(starts(&chosen.nlm), [10]);
    assert!(chosen.nlm.waiters.is_empty());
    let waiter = RowId::of(&evidence::waiters(&table).next().unwrap());
    let chosen = select(&asked(Wanted::Row(waiter)), &table, None).unwrap();
    assert_eq!((chosen.nlm.locks.len(), chosen.nlm.waiters.len()), (0, 1));
    let nobody: RowId = "000000000000".parse().unwrap();
    let refused = select(&asked(Wanted::Row(nobody)), &table, None).unwrap_err();
    assert_eq!(refused, Refusal::NoRow(nobody));
}

#[test]
fn two_rows_of_one_id_are_not_guessed_between() {
    let mut table = nlm();
    table.locks.push(table.locks[0]);
    let id = RowId::of(&evidence::locks(&table).next().unwrap());
    let refused = select(&asked(Wanted::Row(id)), &table, None).unwrap_err();
    assert_eq!(refused, Refusal::Ambiguous { id, rows: 2 });
}

#[test]
fn nfs4_state_is_refused_by_row_and_by_file() {
    let states = nfs4("10.77.1.13", &["10.77.0.1"], 1);
    let id = ids_of(&states, &states.states[0]).next().unwrap();
    let refused = select(&asked(Wanted::Row(id)), &nlm(), Some(&states)).unwrap_err();
    assert!(refused.is_unsupported() && matches!(refused, Refusal::OneState { .. }));
    let refused = select(&of_file(), &nlm(), Some(&states)).unwrap_err();
    assert!(refused.is_unsupported() && matches!(refused, Refusal::StateOnFile { .. }));
    // Of another file it is nobody's business.
    let elsewhere = nfs4("10.77.1.13", &["10.77.0.1"], 2);
    assert!(select(&of_file(), &nlm(), Some(&elsewhere)).is_ok());
    let three = Asked {
        nfs4: false,
        ..of_file()
    };
    assert!(select(&three, &nlm(), Some(&states)).is_ok());
}

#[test]
fn an_nfs4_client_of_several_or_unknown_vips_is_dropped_on_request_alone() {
    let all = asked(Wanted::Client(ip("10.77.1.13")));
    let one = nfs4("10.77.1.13", &["10.77.0.1"], 1);
    assert_eq!(
        select(&all, &nlm(), Some(&one)).unwrap().nfs4.clients.len(),
        1
    );
    let two = nfs4("10.77.1.13", &["10.77.0.1", "10.77.0.2"], 1);
    let refused = select(&all, &nlm(), Some(&two)).unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("10.77.0.1 and 10.77.0.2") && text.contains("--all-vips"),
        "{text}"
    );
    let named = Asked {
        all_vips: true,
        ..all.clone()
    };
    assert_eq!(
        select(&named, &nlm(), Some(&two))
            .unwrap()
            .nfs4
            .states
            .len(),
        1
    );
    // Not connected: all of it is what is asked for, but one VIP's is not known.
    let lone = nfs4("10.77.1.13", &[], 1);
    assert_eq!(
        select(&all, &nlm(), Some(&lone))
            .unwrap()
            .nfs4
            .clients
            .len(),
        1
    );
    let through = Asked {
        vips: vec![ip("10.77.0.1")],
        ..all
    };
    assert!(select(&through, &nlm(), Some(&lone)).is_err());
    let other = Asked {
        vips: vec![ip("10.77.0.3")],
        ..through
    };
    assert!(select(&other, &nlm(), Some(&one)).unwrap().is_empty());
}

#[test]
fn what_a_filesystem_takes_besides_is_named() {
    let states = nfs4("10.77.1.13", &["10.77.0.1"], 2);
    let whole = Asked {
        whole: Some(Whole::Filesystem("/srv/f".into())),
        ..of_file()
    };
    let chosen = select(&whole, &nlm(), Some(&states)).unwrap();
    assert_eq!(starts(&chosen.nlm), [0, 10, 30]);
    assert_eq!(starts(&chosen.besides.nlm), [20]);
    assert_eq!(chosen.besides.nfs4.states.len(), 1);
    let export = Asked {
        whole: Some(Whole::Export("/srv".into())),
        ..of_file()
    };
    let chosen = select(&export, &nlm(), Some(&states)).unwrap();
    assert!(chosen.besides.nlm.is_empty() && chosen.besides.nfs4.states.len() == 1);
}

#[test]
fn a_share_with_more_owner_than_is_known_is_not_released_alone() {
    let mut table = nlm();
    table.shares.push(Share {
        host: HostId(0),
        file: FileId(0),
        access: 1,
        deny: 1,
        owner: vec![1; 64],
    });
    assert!(matches!(
        select(&of_file(), &table, None),
        Err(Refusal::LongOwner(_))
    ));
    let client = asked(Wanted::Client(ip("10.77.1.11")));
    assert!(select(&client, &table, None).is_ok());
}

/// A client's new lock is to go too, and a file's is not: it is a newcomer's.
#[test]
fn later_locks_are_the_clients_but_not_the_files() {
    let table = nlm();
    let item = evidence::locks(&table).next().unwrap();
    let nothing = Items::default();
    assert!(asked(Wanted::Client(ip("10.77.1.11"))).covers(&item, &nothing));
    assert!(!of_file().covers(&item, &nothing));
    assert!(of_file().covers(&item, &items(&table)));
}
