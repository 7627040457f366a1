use super::*;
use nlmfo_common::record::FH_MAX;
use nlmfo_common::state::kind;
use proptest::prelude::*;

const HERE: u32 = 1;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn client(address: u64, minor: u32, vips: &[&str]) -> ReadClient {
    let vip = |text: &&str| Addr::from(ip(text));
    let mut name = [0; OWNER_MAX];
    name[..2].copy_from_slice(b"c1");
    ReadClient {
        number: address,
        record: ClientRecord {
            kind: kind::CLIENT,
            minor,
            client: address,
            flags: 0,
            id: [7, address as u32],
            netns: HERE,
            name_len: 2,
            address: Addr::from(ip("10.77.1.1")),
            vip: match minor {
                0 => vips.first().map(vip).unwrap_or_default(),
                _ => Addr::default(),
            },
            name,
        },
        connections: (vips.iter())
            .map(|text| ConnectionRecord {
                kind: kind::CONNECTION,
                pad: 0,
                client: address,
                vip: vip(text),
                peer: Addr::from(ip("10.77.1.1")),
            })
            .collect(),
        states: Vec::new(),
    }
}

fn state(client: u64, stid: u64, class: u32) -> StateRecord {
    StateRecord {
        kind: kind::STATE,
        class,
        status: 0,
        access: 1 << 3,
        deny: 0,
        delegation: 2,
        stid,
        client,
        id: [stid as u8; 16],
        owner: if class <= 2 { stid + 1 } else { 0 },
        file: 900,
        ino: 5,
        dev: 8 << 20 | 1,
        fh_len: 4,
        owner_len: 3,
        pad: 0,
        fh: [9; FH_MAX],
        owner_name: [b'o'; OWNER_MAX],
    }
}

fn range(client: u64, holder: u64, start: u64) -> RangeRecord {
    RangeRecord {
        kind: kind::RANGE,
        mode: 1,
        fl: holder << 8 | start,
        holder,
        client,
        ino: 5,
        start,
        end: start + 9,
        dev: 8 << 20 | 1,
        netns: HERE,
        lease: 0,
        waits: 0,
    }
}

fn lease(client: u64, stid: u64) -> RangeRecord {
    RangeRecord {
        lease: 1,
        ..range(client, stid, 0)
    }
}

fn put(clients: &[ReadClient], ranges: &[RangeRecord]) -> (StateTable, bool) {
    assemble(clients, &HashMap::new(), ranges, None, true)
}

#[test]
fn locks_get_their_ranges_and_delegations_need_their_lease() {
    let mut one = client(10, 1, &["10.77.0.2", "10.77.0.1", "10.77.0.2"]);
    one.states = vec![state(10, 100, 1), state(10, 200, 2), state(10, 300, 4)];
    let ranges = [range(10, 201, 50), lease(10, 300), range(10, 201, 0)];
    let (table, agree) = put(&[one.clone()], &ranges);
    assert!(agree);
    let seen = &table.clients[0];
    assert_eq!(seen.vips, [ip("10.77.0.1"), ip("10.77.0.2")]);
    assert_eq!((seen.connections, seen.vip_unknown), (Some(3), false));
    assert_eq!(seen.name, Name::from("c1"));
    let starts: Vec<u64> = table.states[1]
        .ranges
        .iter()
        .map(|(_, r)| r.start)
        .collect();
    assert_eq!(starts, [0, 50]);
    assert_eq!(
        table.states[2].access,
        Access {
            read: true,
            write: true
        }
    );
    assert_eq!(
        table.counts().to_string(),
        "1 client with 1 open, 2 locks, 1 delegation"
    );

    // A delegation whose lease is missing, a lock of an unknown owner or client.
    assert!(!put(&[one.clone()], &ranges[..1]).1);
    assert!(!put(&[one.clone()], &[lease(10, 300), range(10, 999, 0)]).1);
    assert!(!put(&[one], &[lease(10, 300), range(77, 999, 0)]).1);
}

#[test]
fn a_client_without_a_connection_may_use_any_vip() {
    let mut lone = client(10, 1, &[]);
    lone.states = vec![state(10, 100, 1)];
    let mut old = client(20, 0, &["10.77.0.2"]);
    old.states = vec![state(20, 200, 1)];
    let mut mute = client(30, 0, &[]);
    mute.states = vec![state(30, 300, 4)];
    let (table, _) = put(&[lone, old, mute], &[]);
    let of = |vip: &str| {
        let held = table.held_through(ip(vip));
        held.clients
            .iter()
            .map(|client| client.number)
            .collect::<Vec<_>>()
    };
    assert_eq!(of("10.77.0.1"), [10, 30]);
    assert_eq!(of("10.77.0.2"), [10, 20, 30]);
}

fn named(mut client: ReadClient, name: &str) -> ReadClient {
    client.record.name = [0; OWNER_MAX];
    client.record.name[..name.len()].copy_from_slice(name.as_bytes());
    client.record.name_len = name.len() as u32;
    client
}

#[test]
fn an_old_client_uses_the_vip_in_its_name_or_that_of_any_of_its_connections() {
    let introduced = |name: &str| {
        let mut client = named(client(10, 0, &["10.77.0.2"]), name);
        client.connections.clear();
        client
    };
    for certain in [
        "Linux NFSv4.0 c1/10.77.0.2",
        "Linux NFSv4.0 c1/a0b1/10.77.0.2",
        "Linux NFSv4.0 10.77.1.1/10.77.0.2 tcp",
    ] {
        let client = introduced(certain);
        assert!(!client.may_use_others(), "{certain}");
        assert_eq!(client.vips(), (vec![ip("10.77.0.2")], false));
    }
    for uncertain in ["Linux NFSv4.0 c1", "Linux NFSv4.0 c1/10.77.0.1", ""] {
        let mut of_name = introduced(uncertain);
        assert!(of_name.may_use_others(), "{uncertain}");
        assert_eq!(of_name.vips(), (vec![ip("10.77.0.2")], true));
        of_name.connections = client(10, 1, &["10.77.0.1"]).connections;
        assert_eq!(
            of_name.vips(),
            (vec![ip("10.77.0.1"), ip("10.77.0.2")], false)
        );
    }
    assert!(!client(10, 1, &[]).may_use_others());
}

#[test]
fn what_is_closed_or_revoked_is_not_held() {
    let mut one = client(10, 2, &["fd77::1"]);
    // A lock's state without a range; an open that was closed; a revoked delegation.
    one.states = vec![state(10, 100, 2), state(10, 200, 1), state(10, 300, 4)];
    one.states[1].status = 1;
    one.states[2].status = 4;
    let (table, agree) = put(&[one.clone()], &[]);
    assert!(agree);
    assert!(table.held_through(ip("fd77::1")).states.is_empty());
    assert_eq!(table.states[2].standing, Standing::AdminRevoked);

    // 6.1 has the same in the type.
    let kinds = |class| kind(&state(10, 1, class), false);
    assert_eq!(kinds(8), (Kind::Open, Standing::Closed));
    assert_eq!(kinds(16), (Kind::Delegation, Standing::Revoked));
    assert_eq!(kinds(64), (Kind::Layout, Standing::Held));
    // What is not known counts as held.
    assert_eq!(kinds(128), (Kind::Other, Standing::Held));
}

#[test]
fn only_the_vips_clients_need_to_hold_still() {
    let first = [client(10, 1, &["10.77.0.1"]), client(20, 1, &["10.77.0.2"])];
    let mut second = first.clone();
    second[1].states.push(state(20, 200, 1));
    assert!(is_same(&first, &second, Some(ip("10.77.0.1"))));
    assert!(!is_same(&first, &second, Some(ip("10.77.0.2"))));
    assert!(!is_same(&first, &second, None));
    // One that has come to the VIP meanwhile.
    second[1] = client(20, 1, &["10.77.0.1", "10.77.0.2"]);
    assert!(!is_same(&first, &second, Some(ip("10.77.0.1"))));
}

proptest! {
    /// Whatever nfsd holds for a client of a VIP is held through it, and through no other
    /// that it does not use.
    #[test]
    fn nothing_held_is_lost(clients in proptest::collection::vec((0u32..3, 0u8..4, 0usize..4), 1..20)) {
        let read: Vec<ReadClient> = (clients.iter().enumerate())
            .map(|(i, (minor, vips, opens))| {
                let address = 1000 * (i as u64 + 1);
                let vips: Vec<&str> = [(1, "10.77.0.1"), (2, "10.77.0.2")].into_iter()
                    .filter(|(bit, _)| vips & bit != 0).map(|(_, vip)| vip).collect();
                let mut one = client(address, *minor, &vips);
                one.states = (0..*opens).map(|n| state(address, address + n as u64, 1)).collect();
                one
            })
            .collect();
        let (table, _) = put(&read, &[]);
        for vip in ["10.77.0.1", "10.77.0.2"] {
            let expected: usize = (table.clients.iter().zip(&clients))
                .filter(|(client, _)| client.vips.is_empty() || client.vips.contains(&ip(vip)))
                .map(|(_, (_, _, opens))| opens)
                .sum();
            let held = table.held_through(ip(vip));
            prop_assert_eq!(held.states.len(), expected);
            prop_assert!(held.states.iter().all(|state| state.client < held.clients.len()));
        }
    }
}
