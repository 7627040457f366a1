//! Exchanges without a network: what is sent when, and the effect of answers.

use proptest::prelude::*;

use super::*;
use crate::rpc::xdr::Encoder;

const STATD_PORT: u16 = 700;
const STATE: u32 = 4711;

fn client(number: u8) -> IpAddr {
    IpAddr::from([10, 77, 1, number])
}

fn machine(clients: &[u8], names: &[&str]) -> Machine {
    let arguments = names
        .iter()
        .map(|name| nsm::statd_arguments(name, STATE).unwrap())
        .collect();
    let clients = clients.iter().map(|&number| client(number));
    Machine::new(clients, arguments, Pace::default(), 100)
}

fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A reply with this status and these results.
fn reply(call: &Outgoing, status: u32, results: &[u32]) -> Vec<u8> {
    let xid = u32::from_be_bytes(call.datagram[..4].try_into().unwrap());
    let words = [xid, 1, 0, 0, 0, status].into_iter();
    let words = words.chain(results.iter().copied());
    words.flat_map(u32::to_be_bytes).collect()
}

fn port_reply(call: &Outgoing, port: u16) -> Vec<u8> {
    reply(call, 0, &[port.into()])
}

/// Everything that is due.
fn sent(machine: &mut Machine, now: Duration) -> Vec<Outgoing> {
    std::iter::from_fn(|| machine.send(now)).collect()
}

fn one(machine: &mut Machine, now: Duration) -> Outgoing {
    let mut sent = sent(machine, now);
    assert_eq!(sent.len(), 1, "{sent:?}");
    sent.remove(0)
}

fn only(machine: &Machine) -> &Progress {
    machine.progress().next().unwrap()
}

/// The name that SM_NOTIFY carries: after ten words of header, its length and bytes.
fn name(call: &Outgoing) -> String {
    let arguments = &call.datagram[40..];
    let length = u32::from_be_bytes(arguments[..4].try_into().unwrap()) as usize;
    String::from_utf8(arguments[4..4 + length].to_vec()).unwrap()
}

#[test]
fn a_client_is_asked_for_its_statd_and_told_under_each_name() {
    let mut machine = machine(&[1], &["nfs1", "10.77.0.1"]);
    let asked = one(&mut machine, at(0));
    assert_eq!(asked.to, SocketAddr::new(client(1), 111));
    machine.received(at(1), asked.to, &port_reply(&asked, STATD_PORT));
    for (number, expected) in ["nfs1", "10.77.0.1"].into_iter().enumerate() {
        assert!(!machine.is_done());
        let told = one(&mut machine, at(2));
        assert_eq!(told.to, SocketAddr::new(client(1), STATD_PORT));
        assert_eq!(name(&told), expected);
        assert!(told.datagram.ends_with(&STATE.to_be_bytes()));
        machine.received(at(2), told.to, &reply(&told, 0, &[]));
        assert_eq!(only(&machine).names, number + 1);
    }
    assert!(machine.is_done());
    assert_eq!(only(&machine).told, Some(at(2)));
    assert_eq!((only(&machine).sent, machine.next_due()), (3, None));
}

#[test]
fn over_ipv6_rpcbind_is_asked_by_universal_address() {
    let client: IpAddr = "fd77::11".parse().unwrap();
    let arguments = vec![nsm::statd_arguments("fd77::1", STATE).unwrap()];
    let mut machine = Machine::new([client], arguments, Pace::default(), 1);
    let asked = one(&mut machine, at(0));
    let mut results = Encoder::default();
    results.opaque("address", b"::.2.188", 100).unwrap();
    let mut answer = reply(&asked, 0, &[]);
    answer.extend(results.finish());
    machine.received(at(1), asked.to, &answer);
    assert_eq!(
        one(&mut machine, at(1)).to,
        SocketAddr::new(client, STATD_PORT)
    );
}

#[test]
fn who_stays_silent_is_asked_again_ever_slower_with_the_same_call() {
    let mut machine = machine(&[1], &["nfs1"]);
    let first = one(&mut machine, at(0));
    let mut times = Vec::new();
    while let Some(due) = machine.next_due().filter(|&due| due < at(20_000)) {
        assert_eq!(one(&mut machine, due), first);
        assert!(machine.send(due).is_none());
        times.push(due.as_millis());
    }
    assert_eq!(times, [250, 750, 1750, 3750, 7750, 11750, 15750, 19750]);
    assert_eq!(only(&machine).last, Sign::None);
    assert!(!only(&machine).last.is_of_life());
    // The answer to the very first is as good.
    machine.received(at(20_000), first.to, &port_reply(&first, STATD_PORT));
    assert_eq!(one(&mut machine, at(20_000)).to.port(), STATD_PORT);
}

#[test]
fn answers_that_nobody_waits_for_change_nothing() {
    let mut machine = machine(&[1], &["a", "b"]);
    let asked = one(&mut machine, at(0));
    let answer = port_reply(&asked, STATD_PORT);
    let elsewhere = SocketAddr::new(client(2), 111);
    let wrong_port = SocketAddr::new(client(1), 112);
    let mut wrong_xid = answer.clone();
    wrong_xid[3] ^= 1;
    for (from, datagram) in [
        (elsewhere, &answer[..]),
        (wrong_port, &answer),
        (asked.to, &wrong_xid),
        (asked.to, &answer[..3]),
        (asked.to, &[]),
    ] {
        machine.received(at(1), from, datagram);
        assert!(machine.send(at(1)).is_none());
    }
    machine.received(at(1), asked.to, &answer);
    let told = one(&mut machine, at(1));
    // Once more, late.
    machine.received(at(2), asked.to, &answer);
    assert!(machine.send(at(2)).is_none());
    let confirmed = reply(&told, 0, &[]);
    machine.received(at(3), told.to, &confirmed);
    machine.received(at(3), told.to, &confirmed);
    assert_eq!(only(&machine).names, 1);
    assert_eq!(name(&one(&mut machine, at(3))), "b");
}

#[test]
fn who_refuses_is_asked_again_after_a_while_and_may_have_a_statd_by_then() {
    type Refuse = fn(&mut Machine, &Outgoing);
    let closed: Refuse = |machine, call| {
        machine.failed(at(1), call.to, &io::ErrorKind::ConnectionRefused.into());
    };
    let unknown: Refuse = |machine, call| {
        machine.received(at(1), call.to, &port_reply(call, 0));
    };
    let no_program: Refuse = |machine, call| {
        machine.received(at(1), call.to, &reply(call, 1, &[]));
    };
    for (refuse, sign) in [
        (closed, Sign::NoRpcbind),
        (unknown, Sign::NotRegistered),
        (
            no_program,
            Sign::Refused {
                who: "rpcbind",
                refusal: Refusal::ProgramUnavailable,
            },
        ),
    ] {
        let mut machine = machine(&[1], &["nfs1"]);
        let asked = one(&mut machine, at(0));
        refuse(&mut machine, &asked);
        assert_eq!(only(&machine).last, sign);
        assert!(sign.is_of_life());
        assert_eq!(machine.next_due(), Some(at(2001)));
        let again = one(&mut machine, at(2001));
        assert_ne!(again.datagram, asked.datagram, "a new call");
        machine.received(at(2002), again.to, &port_reply(&again, STATD_PORT));
        let told = one(&mut machine, at(2002));
        machine.received(at(2003), told.to, &reply(&told, 0, &[]));
        assert!(machine.is_done());
    }
}

#[test]
fn a_statd_that_has_gone_or_moved_is_looked_for_anew() {
    let mut machine = machine(&[1], &["a", "b"]);
    let asked = one(&mut machine, at(0));
    machine.received(at(0), asked.to, &port_reply(&asked, STATD_PORT));
    let told = one(&mut machine, at(0));
    machine.received(at(0), told.to, &reply(&told, 0, &[]));
    let told = one(&mut machine, at(0));
    machine.failed(at(1), told.to, &io::ErrorKind::ConnectionRefused.into());
    assert_eq!(only(&machine).last, Sign::Closed(STATD_PORT));
    let asked = one(&mut machine, at(5000));
    assert_eq!(asked.to.port(), 111);
    machine.received(at(5000), asked.to, &port_reply(&asked, 800));
    // The first name is confirmed, and not sent again.
    let told = one(&mut machine, at(5000));
    assert_eq!((told.to.port(), name(&told).as_str()), (800, "b"));
    let mut now = at(5000);
    for _ in 1..TRIES_AT_A_PORT {
        now = machine.next_due().unwrap();
        assert_eq!(one(&mut machine, now), told);
    }
    now = now.max(machine.next_due().unwrap());
    assert_eq!(one(&mut machine, now).to.port(), 111);
    assert_eq!(only(&machine).last, Sign::StatdSilent);
    assert!(!only(&machine).last.is_of_life());
}

#[test]
fn what_the_network_says_is_kept_and_the_pace_too() {
    let mut machine = machine(&[1], &["a"]);
    let asked = one(&mut machine, at(0));
    machine.failed(at(1), asked.to, &io::ErrorKind::HostUnreachable.into());
    assert_eq!(only(&machine).last.to_string(), "host unreachable");
    assert!(!only(&machine).last.is_of_life());
    assert_eq!(machine.next_due(), Some(at(250)));
}

#[test]
fn what_could_not_be_sent_is_sent_soon_and_not_counted() {
    let mut machine = machine(&[1], &["a"]);
    let asked = one(&mut machine, at(0));
    machine.put_off(at(0), asked.to);
    assert_eq!((only(&machine).sent, machine.next_due()), (0, Some(at(10))));
    assert_eq!(one(&mut machine, at(10)), asked);
}

#[test]
fn a_client_named_twice_is_told_once_and_nobody_is_done_at_once() {
    let mut two = machine(&[1, 2, 1], &["a"]);
    assert_eq!(two.progress().count(), 2);
    assert_eq!(sent(&mut two, at(0)).len(), 2);
    assert!(machine(&[], &["a"]).is_done());
}

proptest! {
    /// Whatever comes in, every client that answers is notified in time, even if others are dead.
    #[test]
    fn noise_and_the_dead_hinder_nobody(
        alive in prop::collection::vec(any::<bool>(), 1..20),
        noise in prop::collection::vec((0u8..20, any::<[u8; 24]>()), 0..40),
        lost in prop::collection::vec(any::<bool>(), 60),
    ) {
        let numbers: Vec<u8> = (0..alive.len() as u8).collect();
        let mut machine = machine(&numbers, &["a", "b"]);
        let mut lost = lost.into_iter();
        let mut noise = noise.into_iter();
        let end = at(120_000);
        while let Some(now) = machine.next_due().filter(|&due| due < end) {
            let call = machine.send(now).expect("it is due");
            if let Some((from, datagram)) = noise.next() {
                machine.received(now, SocketAddr::new(client(from), 111), &datagram);
            }
            let IpAddr::V4(v4) = call.to.ip() else { unreachable!() };
            if !alive[usize::from(v4.octets()[3])] || lost.next().unwrap_or(false) {
                continue;
            }
            let answer = match call.to.port() {
                111 => port_reply(&call, STATD_PORT),
                _ => reply(&call, 0, &[]),
            };
            machine.received(now, call.to, &answer);
        }
        let told: Vec<bool> = machine.progress().map(|client| client.told.is_some()).collect();
        prop_assert_eq!(told, alive);
    }
}
