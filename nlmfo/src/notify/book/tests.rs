use std::fs;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::writer::Writer;
use super::*;

const VIP: &str = "10.77.0.1";

fn vip() -> IpAddr {
    VIP.parse().unwrap()
}

fn client(number: u32, at: u64) -> Client {
    Client {
        address: IpAddr::V4((0x0a4e_0000 + number).into()),
        name: format!("c{number}").into(),
        version: Some(NlmVersion::V4),
        transport: Some(Transport::Tcp),
        first_seen: at,
        last_seen: at,
    }
}

fn state() -> (tempfile::TempDir, StateDir) {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::new(folder.path());
    (folder, state)
}

fn names(state: &StateDir) -> Vec<String> {
    let book = Book::read(state, vip()).unwrap().book;
    book.clients()
        .map(|client| client.name.to_string())
        .collect()
}

#[test]
fn what_was_noted_is_read_by_anybody() {
    let (_folder, state) = state();
    assert!(Book::read(&state, vip()).unwrap().owner.is_none());
    let mut writer = Writer::open(&state, vip(), "a").unwrap();
    writer.note(&[client(1, 100), client(2, 100)]).unwrap();
    let mut second = Writer::open(&state, vip(), "a").unwrap();
    second.note(&[client(3, 100)]).unwrap();
    writer.note(&[client(4, 100)]).unwrap();
    writer.forget(client(2, 0).address).unwrap();
    assert_eq!(names(&state), ["c1", "c3", "c4"]);
    let owner = Book::read(&state, vip()).unwrap().owner.unwrap();
    assert_eq!((owner.node.as_str(), owner.term), ("a", 1));
}

#[test]
fn who_was_struck_off_by_another_process_is_noted_when_it_locks_again() {
    let (_folder, state) = state();
    let mut serving = Writer::open(&state, vip(), "a").unwrap();
    serving.note(&[client(1, 100)]).unwrap();
    let mut other = Writer::open(&state, vip(), "a").unwrap();
    other.forget(client(1, 0).address).unwrap();
    assert!(names(&state).is_empty());
    serving.note(&[client(1, 101)]).unwrap();
    assert_eq!(names(&state), ["c1"]);
}

#[test]
fn a_client_is_found_by_its_name_and_its_address() {
    let (_folder, state) = state();
    let mut writer = Writer::open(&state, vip(), "a").unwrap();
    writer.note(&[client(1, 100), client(2, 100)]).unwrap();
    let mut writer = Writer::take_over(&state, vip(), "b").unwrap();
    writer.forget(client(2, 0).address).unwrap();
    let has = |name: &str| Book::has_client(&state, vip(), name).unwrap();
    assert!(has("c1") && has("10.78.0.1") && has("::ffff:10.78.0.1"));
    assert!(!has("c") && !has("c2") && !has("10.78.0.2") && !has("clients") && !has("tcp"));
}

#[test]
fn a_sighting_is_news_once_in_a_while() {
    let mut book = Book::default();
    let first = client(1, 1000);
    assert_eq!(book.news(&first), Some(first.clone()));
    book.apply(&Line::Client(first.clone()));
    assert_eq!(book.news(&client(1, 1000 + NOTED_AGAIN - 1)), None);
    let later = book.news(&client(1, 1000 + NOTED_AGAIN)).unwrap();
    assert_eq!(
        (later.first_seen, later.last_seen),
        (1000, 1000 + NOTED_AGAIN)
    );
    // One that comes late, of a time before, moves nothing back.
    let renamed = Client {
        name: "other".into(),
        ..client(1, 500)
    };
    let news = book.news(&renamed).unwrap();
    assert_eq!((news.first_seen, news.last_seen), (500, 1000));
    assert_eq!(news.name, "other");
}

#[test]
fn only_the_owner_writes_and_a_stale_one_is_told() {
    let (_folder, state) = state();
    let mut a = Writer::open(&state, vip(), "a").unwrap();
    a.note(&[client(1, 100)]).unwrap();
    let refused = Writer::open(&state, vip(), "b").unwrap_err();
    assert!(
        refused.to_string().contains("belongs to node a"),
        "{refused}"
    );

    let mut b = Writer::take_over(&state, vip(), "b").unwrap();
    assert_eq!(b.book().len(), 1);
    b.note(&[client(2, 100)]).unwrap();
    let stale = a.note(&[client(3, 100)]).unwrap_err();
    assert!(
        matches!(stale, BookError::Owned { ref node, term: 2, .. } if node == "b"),
        "{stale}"
    );
    assert_eq!(names(&state), ["c1", "c2"]);

    // And back again.
    let mut a = Writer::take_over(&state, vip(), "a").unwrap();
    a.note(&[client(3, 100)]).unwrap();
    assert_eq!(names(&state), ["c1", "c2", "c3"]);
    b.note(&[client(4, 100)]).unwrap_err();
}

/// A crash while a file is written leaves any beginning of what was to be written.
#[test]
fn a_crash_at_any_moment_loses_nothing_and_tears_nothing() {
    let (_folder, state) = state();
    let mut writer = Writer::open(&state, vip(), "a").unwrap();
    writer.note(&[client(1, 100)]).unwrap();
    let path = state.vip(vip()).join("clients.0000000001");
    let durable = fs::read(&path).unwrap().len();
    writer.note(&[client(2, 100), client(3, 100)]).unwrap();
    drop(writer);
    let whole = fs::read(&path).unwrap();
    for end in durable..=whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        let read = Book::read(&state, vip()).unwrap();
        assert!((1..=3).contains(&read.book.len()), "cut at {end}");
        let mut after = Writer::open(&state, vip(), "a").unwrap();
        after.note(&[client(9, 100)]).unwrap();
        let names = names(&state);
        assert!(names.contains(&"c1".to_owned()) && names.contains(&"c9".to_owned()));
        let torn = Book::read(&state, vip()).unwrap().torn.len();
        assert!(torn <= 1, "cut at {end}: {torn} lines torn");
    }
}

/// A node that dies between the new term's first file and the last line carried over.
#[test]
fn a_crash_while_taking_over_loses_nothing() {
    let (_folder, state) = state();
    let mut a = Writer::open(&state, vip(), "a").unwrap();
    a.note(&[client(1, 100), client(2, 100)]).unwrap();
    let mut b = Writer::take_over(&state, vip(), "b").unwrap();
    b.note(&[client(3, 100)]).unwrap();
    let path = state.vip(vip()).join("clients.0000000002");
    let whole = fs::read(&path).unwrap();
    let carried = String::from_utf8(whole.clone())
        .unwrap()
        .find("\"complete\"")
        .unwrap();
    let head = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    for end in head..carried {
        fs::write(&path, &whole[..end]).unwrap();
        assert_eq!(names(&state), ["c1", "c2"], "cut at {end}");
    }
    fs::write(&path, &whole[..head]).unwrap();
    let third = Writer::take_over(&state, vip(), "c").unwrap();
    assert_eq!(third.book().len(), 2);
    Writer::open(&state, vip(), "c").unwrap();
    assert_eq!(names(&state), ["c1", "c2"]);
}

/// Three nodes, two processes each, that take a book from each other all the time: what a
/// `note` returned for is in the book ever after.
#[test]
fn nothing_that_counted_is_lost_among_nodes() {
    const EACH: u32 = 25;
    let (_folder, state) = state();
    let refused = AtomicU32::new(0);
    thread::scope(|scope| {
        for number in 0..6u32 {
            let (state, refused) = (&state, &refused);
            scope.spawn(move || {
                let node = ["a", "b", "c"][number as usize % 3];
                let noted = |seen: &Client| {
                    let result = Writer::take_over(state, vip(), node)
                        .and_then(|mut writer| writer.note(std::slice::from_ref(seen)));
                    match result {
                        Ok(()) => true,
                        Err(BookError::Owned { .. }) => false,
                        Err(error) => panic!("{error}"),
                    }
                };
                for n in 0..EACH {
                    let seen = client(number * 1000 + n, 100);
                    while !noted(&seen) {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    assert!(
                        names(state).contains(&seen.name.to_string()),
                        "{} is lost",
                        seen.name
                    );
                }
            });
        }
    });
    assert_eq!(names(&state).len(), 6 * EACH as usize);
    assert!(refused.into_inner() > 0, "nobody was in anybody's way");
}

#[test]
fn a_file_that_has_grown_long_is_begun_anew() {
    let (_folder, state) = state();
    let mut writer = Writer::open(&state, vip(), "a").unwrap();
    for n in 0..2000 {
        writer
            .note(&[client(n % 3, u64::from(n) * NOTED_AGAIN)])
            .unwrap();
    }
    let folder = state.vip(vip());
    let files: Vec<u64> = fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .collect();
    assert!(
        files.len() == 2 && files.iter().sum::<u64>() < 200_000,
        "{files:?}"
    );
    let read = Book::read(&state, vip()).unwrap();
    assert_eq!(read.book.len(), 3);
    assert!(
        read.book
            .clients()
            .all(|client| client.last_seen >= 1997 * NOTED_AGAIN)
    );
}

#[test]
fn damage_is_told_from_a_crash() {
    let (_folder, state) = state();
    let mut writer = Writer::open(&state, vip(), "a").unwrap();
    writer.note(&[client(1, 100), client(2, 100)]).unwrap();
    let path = state.vip(vip()).join("clients.0000000001");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"c1\"", "\"cX\"")).unwrap();
    let read = Book::read(&state, vip()).unwrap();
    assert_eq!(read.book.len(), 1);
    assert_eq!(read.torn.len(), 1, "{:?}", read.torn);
    fs::write(&path, "no book\n").unwrap();
    let error = Book::read(&state, vip()).unwrap_err();
    assert!(matches!(error, BookError::Damaged { .. }), "{error}");
}
