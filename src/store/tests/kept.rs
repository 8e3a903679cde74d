//! What memory keeps of waiting messages: it is what the log holds, it is bounded, it goes with the entry, and nothing is
//! lost by its not being there.

use xbus_core::store::{Change, Query, Queued, Store};

use super::sim::SimDisk;
use super::*;

/// Room for a good many small messages.
const ROOM: usize = 32 << 10;

fn roomy() -> Options {
    Options {
        keep_in_memory: ROOM,
        segment_size: 1 << 20,
        ..small()
    }
}

fn kept(store: &LogStore) -> u64 {
    store.statistics().kept_in_memory
}

fn head(store: &LogStore, key: &str) -> Queued {
    store.head("q", key).unwrap().unwrap()
}

/// Makes every put whose message holds `text` unreadable on the disk; says whether there was one.
fn ruin(disk: &SimDisk, text: &str) -> bool {
    let mut found = false;
    for name in disk.names() {
        let bytes = disk.bytes(&name);
        for at in 0..bytes.len() {
            if name.ends_with(".log") && bytes[at..].starts_with(text.as_bytes()) {
                disk.damage(&name, at);
                found = true;
            }
        }
    }
    found
}

/// Puts a message as an async target does.
fn accept(store: &LogStore, key: &str, text: &str) -> MessageId {
    let one = message(text);
    let mut entry = journal(one.id, "r", Outcome::Pending);
    entry.targets = vec![target("t", Outcome::Queued)];
    commit(
        store,
        vec![put("q", key, &one, "t"), Change::Journal(entry)],
    )
    .unwrap();
    one.id
}

fn outcome(store: &LogStore, id: MessageId) -> Outcome {
    let query = Query {
        id: Some(id),
        ..Query::default()
    };
    store.find(&query).unwrap()[0].outcome
}

#[test]
fn what_memory_keeps_is_listed_without_reading_it_back() {
    let disk = SimDisk::default();
    let store = open(&disk, roomy());
    for text in ["first", "second"] {
        accept(&store, "k", text);
    }
    let bodies = |entries: Vec<Queued>| -> Vec<String> {
        let text =
            |entry: &Queued| String::from_utf8_lossy(entry.message.body.bytes()).into_owned();
        entries.iter().map(text).collect()
    };
    let all = store.entries("q", false, 9).unwrap();
    let from = all[1].at.seq;
    assert_eq!(bodies(all), ["first", "second"]);
    assert!(ruin(&disk, "first") && ruin(&disk, "second"));
    assert_eq!(
        bodies(store.entries("q", false, 9).unwrap()),
        ["first", "second"]
    );
    assert_eq!(
        bodies(store.entries_from("q", from, 9).unwrap()),
        ["second"]
    );
}

#[test]
fn what_comes_in_is_delivered_and_settled_without_reading_it_back() {
    let disk = SimDisk::default();
    let store = open(&disk, roomy());
    let ids = [accept(&store, "k", "first"), accept(&store, "k", "second")];
    assert!(ruin(&disk, "first") && ruin(&disk, "second"));
    for (id, text) in ids.into_iter().zip(["first", "second"]) {
        let head = head(&store, "k");
        assert_eq!((head.message.id, body(&head).as_str()), (id, text));
        assert_eq!(head.message.headers.get("content-type"), Some("text/plain"));
        assert_eq!(outcome(&store, id), Outcome::Pending);
        commit(&store, vec![settle(&head.at)]).unwrap();
        assert_eq!(outcome(&store, id), Outcome::Delivered);
    }
    assert_eq!(kept(&store), 0);
    // Of the log itself nothing is made up.
    accept(&store, "k", "third");
    assert!(ruin(&disk, "third"));
    store.close().wait();
    let store = open(&disk, roomy());
    assert_eq!(kept(&store), 0);
    assert!(store.head("q", "k").is_err());
    assert_eq!(store.lanes("q")[0].depth, 1);
}

#[test]
fn a_head_that_was_read_is_not_read_again() {
    let disk = SimDisk::default();
    let store = open(&disk, roomy());
    let small = accept(&store, "k", "small");
    let large = accept(&store, "l", &format!("large{}", "x".repeat(100 << 10)));
    store.close().wait();
    let store = open(&disk, roomy());
    for (key, id) in [("k", small), ("l", large)] {
        assert_eq!(head(&store, key).message.id, id);
    }
    assert!(ruin(&disk, "small") && ruin(&disk, "large"));
    assert_eq!(body(&head(&store, "k")), "small");
    // Too large to be kept, but what settling needs is known.
    assert!(store.head("q", "l").is_err());
    for lane in store.lanes("q") {
        let at = EntryRef {
            queue: "q".into(),
            key: lane.key,
            seq: lane.head_seq,
        };
        commit(&store, vec![settle(&at)]).unwrap();
    }
    for id in [small, large] {
        assert_eq!(outcome(&store, id), Outcome::Delivered);
    }
    assert_eq!(kept(&store), 0);
}

#[test]
fn what_is_parked_and_released_comes_in_its_place() {
    let disk = SimDisk::default();
    let store = open(&disk, roomy());
    for text in ["one", "two", "three"] {
        accept(&store, "k", text);
    }
    let all = kept(&store);
    let first = head(&store, "k").at;
    let park = Change::Park {
        at: first.clone(),
        reason: "bad".into(),
    };
    commit(&store, vec![park]).unwrap();
    assert_eq!(body(&head(&store, "k")), "two");
    assert!(kept(&store) < all && kept(&store) > 0);
    let release = Change::Release { at: first.clone() };
    commit(&store, vec![release]).unwrap();
    for text in ["one", "two", "three"] {
        let head = head(&store, "k");
        assert_eq!(body(&head), text);
        commit(&store, vec![settle(&head.at)]).unwrap();
    }
    // A parked one is dropped, not having been a head again.
    accept(&store, "k", "four");
    let at = head(&store, "k").at;
    let park = Change::Park {
        at: at.clone(),
        reason: "bad".into(),
    };
    commit(&store, vec![park, settle(&at)]).unwrap();
    assert!(store.queues().is_empty());
    assert_eq!(kept(&store), 0);
}

#[test]
fn a_lane_that_stands_leaves_room_to_the_others_and_all_of_it_is_bounded() {
    let disk = SimDisk::default();
    let store = open(&disk, roomy());
    let text = |n: usize| format!("{n:03}{}", "x".repeat(500));
    for n in 0..200 {
        accept(&store, "dead", &text(n));
    }
    let dead = kept(&store);
    assert!(dead <= ROOM as u64 / 2, "{dead}");
    for n in 0..10 {
        accept(&store, "live", &format!("live {n}"));
    }
    assert!(ruin(&disk, "live "));
    for n in 0..10 {
        let head = head(&store, "live");
        assert_eq!(body(&head), format!("live {n}"));
        commit(&store, vec![settle(&head.at)]).unwrap();
    }
    assert_eq!(kept(&store), dead);
    for n in 0..200 {
        accept(&store, &format!("k{n}"), &text(n));
        assert!(kept(&store) <= ROOM as u64);
    }
    // Reading heads keeps no more than there is room for, but for the little that settling needs.
    for n in 0..200 {
        assert_eq!(body(&head(&store, &format!("k{n}"))), text(n));
    }
    assert!(kept(&store) <= ROOM as u64 + 200 * 256, "{}", kept(&store));
    for lane in store.lanes("q") {
        for _ in 0..lane.depth {
            let at = head(&store, &lane.key).at;
            commit(&store, vec![settle(&at)]).unwrap();
        }
    }
    assert_eq!(kept(&store), 0);
}

#[test]
fn what_retention_moves_is_still_what_memory_keeps() {
    let options = || Options {
        keep_in_memory: ROOM,
        retention: Retention {
            keep: std::time::Duration::from_secs(1 << 32),
            max_size: 64 << 10,
        },
        ..small()
    };
    let disk = SimDisk::default();
    let store = open(&disk, options());
    let id = accept(&store, "k", "waits long");
    until("its segment is gone", || {
        let mut entry = journal(MessageId::new(), "r", Outcome::Delivered);
        entry.keys = vec![("k".into(), "v".repeat(900))];
        commit(&store, vec![Change::Journal(entry)]).unwrap();
        !disk.names().contains(&"00000001.log".to_owned())
    });
    assert!(kept(&store) > 0);
    assert_eq!(body(&head(&store, "k")), "waits long");
    store.close().wait();
    let store = open(&disk, options());
    let head = head(&store, "k");
    assert_eq!((head.message.id, body(&head).as_str()), (id, "waits long"));
    commit(&store, vec![settle(&head.at)]).unwrap();
    assert_eq!(kept(&store), 0);
}
