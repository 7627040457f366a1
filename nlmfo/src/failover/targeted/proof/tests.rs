use super::*;
use crate::failover::targeted::on::On;
use crate::failover::targeted::select::Wanted;
use crate::observe::counters::Counters;
use crate::observe::host::Host;
use crate::observe::states::info::Info;
use crate::observe::states::{Kind, sample};
use crate::observe::table::Mode;

const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 1));

fn client(last: u8) -> IpAddr {
    [10, 77, 1, last].into()
}

fn item(last: u8, svid: u32, start: u64) -> Item {
    Item {
        host: Host::sample(VIP, client(last)),
        file: (0, 1, 9),
        what: What::Lock {
            svid,
            mode: Mode::Write,
            range: Range {
                start,
                end: start + 4,
            },
        },
    }
}

fn counted(all: &[Item]) -> Items {
    all.iter().map(|item| (item.clone(), 1)).collect()
}

/// A release of all of client 11, with what is there after it in two looks.
struct Case {
    wanted: Wanted,
    before: Items,
    after: [Items; 2],
    exact: bool,
    counters: Counters,
    ours: Ours,
}

impl Case {
    fn new(before: &[Item], after: &[Item]) -> Case {
        Case {
            wanted: Wanted::Client(client(11)),
            before: counted(before),
            after: [counted(after), counted(after)],
            exact: true,
            counters: Counters::default(),
            ours: Ours::default(),
        }
    }

    fn check<T>(&self, look: impl FnOnce(&Nlm) -> T) -> T {
        let asked = Asked {
            wanted: self.wanted.clone(),
            vips: Vec::new(),
            nfs3: true,
            nfs4: true,
            all_vips: false,
            whole: None,
        };
        let selected = (self.before.iter())
            .filter(|(item, _)| item.host.client == client(11))
            .map(|(item, count)| (item.clone(), *count))
            .collect();
        let look_at = |place: usize| Look {
            items: &self.after[place],
            exact: self.exact,
        };
        look(&Nlm {
            asked: &asked,
            selected: &selected,
            besides: &Items::default(),
            before: &self.before,
            looks: [look_at(0), look_at(1)],
            meanwhile: &[(VIP, self.counters)].into(),
            ours: &[(VIP, self.ours)].into(),
            netns: 1,
        })
    }

    fn fate(&self) -> Fate {
        let bystanders = self.check(|nlm| nlm.bystanders());
        assert_eq!(bystanders.len(), 1, "{bystanders:?}");
        assert_eq!(bystanders[0].client, client(12));
        bystanders[0].fate
    }
}

#[test]
fn gone_in_both_exact_looks_leaves_no_doubt() {
    let case = Case::new(&[item(11, 1, 0), item(12, 1, 9)], &[item(12, 1, 9)]);
    assert!(case.check(|nlm| nlm.blockers()).is_empty());
    assert_eq!(case.fate(), Fate::Untouched);
}

#[test]
fn what_is_left_comes_back_or_moves_is_a_doubt() {
    let mut case = Case::new(&[item(11, 1, 0)], &[item(11, 1, 0)]);
    let blockers = case.check(|nlm| nlm.blockers());
    assert!(blockers[0].contains("still there"), "{blockers:?}");
    // Another lock of the client, taken since.
    case = Case::new(&[item(11, 1, 0)], &[item(11, 2, 50)]);
    assert_eq!(case.check(|nlm| nlm.blockers()).len(), 1);
    case.after[1].clear();
    let blockers = case.check(|nlm| nlm.blockers());
    assert!(blockers[0].contains("second snapshot"), "{blockers:?}");
    case = Case::new(&[item(11, 1, 0)], &[]);
    case.exact = false;
    assert_eq!(case.check(|nlm| nlm.blockers()).len(), 1);
}

#[test]
fn what_its_owner_holds_again_there_is_left() {
    let ranged = |svid, start, end| What::Lock {
        svid,
        mode: Mode::Read,
        range: Range { start, end },
    };
    let waits = What::Waiter {
        svid: 1,
        mode: Mode::Write,
        range: Range { start: 0, end: 4 },
    };
    let waits = Item {
        what: waits,
        ..item(11, 1, 0)
    };
    let again = |first: &Item, what| {
        let what = Item {
            what,
            ..item(11, 1, 0)
        };
        let mut case = Case::new(std::slice::from_ref(first), &[what]);
        case.wanted = Wanted::Row("000000000000".parse().unwrap());
        case.check(|nlm| nlm.left().len())
    };
    for first in [item(11, 1, 0), waits] {
        assert_eq!(again(&first, ranged(1, 3, 9)), 1);
        assert_eq!(again(&first, ranged(1, 5, 9)), 0);
        assert_eq!(again(&first, ranged(2, 3, 9)), 0);
    }
}

#[test]
fn what_a_client_takes_anew_on_the_file_is_left() {
    let mut case = Case::new(&[item(11, 1, 0)], &[item(11, 2, 50)]);
    case.wanted = Wanted::File {
        on: On::File(0, 1, 9),
        client: Some(client(11)),
    };
    assert_eq!(case.check(|nlm| nlm.left().len()), 1);
    case.wanted = Wanted::File {
        on: On::File(0, 1, 8),
        client: Some(client(11)),
    };
    assert_eq!(case.check(|nlm| nlm.left().len()), 0);
}

#[test]
fn only_its_own_requests_excuse_what_another_client_lost() {
    let before = [item(11, 1, 0), item(12, 1, 9)];
    let mut case = Case::new(&before, &[]);
    assert_eq!(case.fate(), Fate::Disturbed);
    // Our own UNLOCK for client 11 is no request of client 12.
    case.counters.unlocked = 1;
    case.ours.calls = 1;
    assert_eq!(case.fate(), Fate::Disturbed);
    case.counters.unlocked = 2;
    assert_eq!(case.fate(), Fate::ChangedByClients);
    // More owners were dropped than were selected.
    case.ours.owners = 1;
    case.counters.released.free_all = 2;
    assert_eq!(case.fate(), Fate::Disturbed);
    case.counters.released.free_all = 1;
    assert_eq!(case.fate(), Fate::ChangedByClients);
}

#[test]
fn a_waiter_that_gets_the_lock_is_named() {
    let got = item(12, 3, 2);
    let case = Case {
        counters: Counters {
            granted_later: 1,
            ..Counters::default()
        },
        ..Case::new(&[item(11, 1, 0)], &[got.clone(), item(12, 4, 100)])
    };
    let released = released(case.before.keys(), [].iter());
    case.check(|nlm| {
        assert!(nlm.is_taken(&got, &released));
        assert!(!nlm.is_taken(&item(12, 4, 100), &released));
        assert!(!nlm.is_taken(&item(11, 5, 2), &released));
    });
    assert_eq!(case.fate(), Fate::ChangedByClients);
}

fn states(clients: &[(u32, u64, &[u8])]) -> StateTable {
    let mut table = StateTable::default();
    for (place, (id, renewed, states)) in clients.iter().enumerate() {
        table.clients.push(Nfs4Client {
            number: (*id).into(),
            id: [1, *id],
            address: client(*id as u8),
            info: Info {
                renewed_seconds: Some(*renewed),
                ..Info::default()
            },
            ..sample::client(&[&VIP.to_string()])
        });
        table.states.extend(states.iter().map(|other| State {
            id: [*other; 16],
            ..sample::state(place, Kind::Open)
        }));
    }
    table
}

fn nfs4<T>(before: &StateTable, after: &StateTable, look: impl FnOnce(&Nfs4) -> T) -> T {
    let mut selected = before.part(|client| client.id[1] == 11);
    let expired = selected.states.is_empty() || selected.states[0].id[0] != 77;
    selected.states.retain(State::is_held);
    look(&Nfs4 {
        expired,
        selected: &selected,
        besides: &StateTable::default(),
        before,
        looks: [(after, true), (after, true)],
        seconds: 2,
    })
}

#[test]
fn an_expired_client_is_gone_by_its_id_and_may_come_back_as_another() {
    let before = states(&[(11, 200, &[1, 2]), (12, 50, &[3])]);
    let after = states(&[(12, 52, &[3]), (15, 0, &[4])]);
    nfs4(&before, &after, |proof| {
        assert!(proof.blockers().is_empty());
        assert_eq!(proof.bystanders()[0].fate, Fate::Untouched);
    });
    nfs4(&before, &before, |proof| {
        assert!(proof.blockers()[0].contains("still there"));
    });
}

#[test]
fn another_nfs4_client_that_lost_something_must_have_been_heard_of() {
    let before = states(&[(11, 200, &[1]), (12, 50, &[3, 4])]);
    let fate = |after: &StateTable| nfs4(&before, after, |proof| proof.bystanders()[0].fate);
    assert_eq!(fate(&states(&[(12, 52, &[3])])), Fate::Disturbed);
    assert_eq!(fate(&states(&[(12, 1, &[3])])), Fate::ChangedByClients);
    assert_eq!(fate(&states(&[])), Fate::Disturbed);
    let mut revoked = states(&[(12, 1, &[3, 4])]);
    revoked.states[0].standing = Standing::AdminRevoked;
    assert_eq!(fate(&revoked), Fate::Disturbed);
}

#[test]
fn states_that_are_revoked_are_no_longer_held() {
    let before = states(&[(11, 200, &[77])]);
    let mut after = before.clone();
    nfs4(&before, &after, |proof| {
        assert_eq!(proof.blockers().len(), 1);
    });
    after.states[0].standing = Standing::AdminRevoked;
    nfs4(&before, &after, |proof| {
        assert!(proof.blockers().is_empty());
        assert_eq!(proof.bystanders()[0].fate, Fate::Untouched);
    });
}
