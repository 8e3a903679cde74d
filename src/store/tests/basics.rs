//! What every method of the store promises, and that it outlives a restart.

use bytes::Bytes;
use futures_util::FutureExt;
use xbus_core::store::{Change, Outcome, Query, Settlement, Store, StoreError};
use xbus_core::{Attachment, MessageId, Timestamp};

use super::sim::SimDisk;
use super::*;
use crate::LogStore;

#[test]
fn a_lane_keeps_order_through_retry_park_release_and_restart() {
    let disk = SimDisk::default();
    let mut store = open(&disk, small());
    let messages: Vec<_> = (0..30).map(|n| message(&format!("m{n}"))).collect();
    for message in &messages {
        commit(&store, vec![put("q", "k", message, "erp")]).unwrap();
    }
    let first = store.head("q", "k").unwrap().unwrap();
    assert_eq!((body(&first).as_str(), first.attempts), ("m0", 0));
    assert_eq!(
        first.message.headers.get("content-type"),
        Some("text/plain")
    );
    let next_try = Timestamp::from_micros(77);
    commit(
        &store,
        vec![Change::Attempt {
            at: first.at.clone(),
            attempts: 3,
            error: "refused".into(),
            next_try,
        }],
    )
    .unwrap();
    for round in 0..2 {
        let head = store.head("q", "k").unwrap().unwrap();
        assert_eq!(head.at, first.at);
        assert_eq!((head.attempts, head.next_try), (3, Some(next_try)));
        assert_eq!(head.last_error.as_deref(), Some("refused"));
        assert_eq!(head.since, first.since);
        let lanes = store.lanes("q");
        assert_eq!((lanes[0].depth, lanes[0].attempts), (30, 3));
        if round == 0 {
            store.close().wait();
            store = open(&disk, small());
        }
    }
    let park = Change::Park {
        at: first.at.clone(),
        reason: "bad".into(),
    };
    commit(&store, vec![park.clone()]).unwrap();
    assert!(matches!(
        commit(&store, vec![park]),
        Err(StoreError::NotFound(_))
    ));
    assert_eq!(body(&store.head("q", "k").unwrap().unwrap()), "m1");
    let queues = store.queues();
    assert_eq!((queues[0].depth, queues[0].parked), (29, 1));
    let parked = store.entries("q", true, 10).unwrap();
    assert_eq!(parked[0].parked.as_deref(), Some("bad"));
    assert_eq!(parked[0].attempts, 3);
    let second = store.head("q", "k").unwrap().unwrap();
    commit(&store, vec![settle(&second.at)]).unwrap();
    let release = Change::Release {
        at: first.at.clone(),
    };
    commit(&store, vec![release]).unwrap();
    let waiting = store.entries("q", false, 100).unwrap();
    let bodies: Vec<String> = waiting.iter().map(body).collect();
    let expected: Vec<String> = [0]
        .into_iter()
        .chain(2..30)
        .map(|n| format!("m{n}"))
        .collect();
    assert_eq!(bodies, expected);
    let by_id = store.entry("q", messages[17].id).unwrap().unwrap();
    assert_eq!(body(&by_id), "m17");
    assert!(store.entry("q", messages[1].id).unwrap().is_none());
    for _ in 0..29 {
        let head = store.head("q", "k").unwrap().unwrap();
        commit(&store, vec![settle(&head.at)]).unwrap();
    }
    assert!(store.head("q", "k").unwrap().is_none());
    assert!(store.queues().is_empty() && store.lanes("q").is_empty());
}

#[test]
fn a_kill_loses_nothing_that_was_acknowledged() {
    let disk = SimDisk::default();
    let mut expected = Vec::new();
    let mut disk_now = disk;
    for round in 0..20 {
        let store = open(&disk_now, small());
        let found: Vec<String> = store
            .entries("q", false, 10_000)
            .unwrap()
            .iter()
            .map(body)
            .collect();
        assert_eq!(found, expected);
        for n in 0..37 {
            let text = format!("r{round}n{n}");
            commit(&store, vec![put("q", "", &message(&text), "")]).unwrap();
            expected.push(text);
        }
        for _ in 0..20 {
            let head = store.head("q", "").unwrap().unwrap();
            assert_eq!(body(&head), expected[0]);
            commit(&store, vec![settle(&head.at)]).unwrap();
            expected.remove(0);
        }
        store.kill();
        disk_now = disk_now.after_kill();
    }
}

#[test]
fn the_journal_shows_what_lanes_did() {
    let disk = SimDisk::default();
    let store = open(&disk, small());
    let one = message("x");
    let mut entry = journal(one.id, "orders", Outcome::Pending);
    entry.targets = vec![
        target("archive", Outcome::Delivered),
        target("erp", Outcome::Queued),
    ];
    entry.keys = vec![("order-no".into(), "4711".into())];
    let changes = vec![
        put("orders.erp", "", &one, "erp"),
        Change::Journal(entry.clone()),
    ];
    commit(&store, changes).unwrap();
    let by = |query: Query| store.find(&query).unwrap();
    let id = Query {
        id: Some(one.id),
        ..Query::default()
    };
    assert_eq!(by(id.clone()), [entry.clone()]);
    let pending = Query {
        outcome: Some(Outcome::Pending),
        ..Query::default()
    };
    assert_eq!(by(pending.clone()), [entry.clone()]);
    let head = store.head("orders.erp", "").unwrap().unwrap();
    let settle = Change::Settle {
        at: head.at,
        how: Settlement::Delivered,
        attempts: 4,
        error: None,
    };
    commit(&store, vec![settle]).unwrap();
    assert!(by(pending).is_empty());
    let shown = by(id).remove(0);
    assert_eq!(shown.outcome, Outcome::Delivered);
    assert_eq!(shown.targets[1].outcome, Outcome::Delivered);
    assert_eq!(shown.targets[1].attempts, 4);
    for query in [
        Query {
            key: Some(("order-no".into(), "4711".into())),
            ..Query::default()
        },
        Query {
            route: Some("orders".into()),
            outcome: Some(Outcome::Delivered),
            ..Query::default()
        },
    ] {
        assert_eq!(by(query).len(), 1);
    }
    let nothing = Query {
        key: Some(("order-no".into(), "4712".into())),
        ..Query::default()
    };
    assert!(by(nothing).is_empty());
    // What an async target was made to send is not what was received.
    assert!(store.payload(one.id).unwrap().is_none());
    let kept = message("y");
    commit(&store, vec![Change::Payload(kept.clone())]).unwrap();
    assert_eq!(store.payload(kept.id).unwrap().unwrap().body.bytes(), "y");
    assert!(store.payload(MessageId::new()).unwrap().is_none());
}

#[test]
fn protocols_keys_and_values_outlive_a_restart() {
    let disk = SimDisk::default();
    let mut store = open(&disk, small());
    let (open_one, ended) = (MessageId::new(), MessageId::new());
    let protocol = |id, data: &'static str| Change::Protocol {
        id,
        data: Bytes::from_static(data.as_bytes()),
    };
    let remember = |key: &str, until| Change::Remember {
        scope: "orders/anna".into(),
        key: key.into(),
        value: Bytes::from_static(b"answer"),
        until,
    };
    let value = |name: &str, value: Option<&'static str>| Change::Value {
        name: name.into(),
        value: value.map(|text| Bytes::from_static(text.as_bytes())),
    };
    let changes = vec![
        protocol(open_one, "begin"),
        protocol(ended, "begin"),
        protocol(open_one, "commit"),
        Change::ProtocolEnd { id: ended },
        remember("a", None),
        remember("b", None),
        remember("over", Some(Timestamp::from_micros(1))),
        Change::Forget {
            scope: "orders/anna".into(),
            key: "b".into(),
        },
        value("incident/1", Some("one")),
        value("incident/2", Some("two")),
        value("incident/1", None),
        value("other", Some("x")),
    ];
    commit(&store, changes).unwrap();
    for round in 0..3 {
        assert_eq!(
            store.protocols(),
            [(open_one, vec![Bytes::from("begin"), Bytes::from("commit")])]
        );
        assert_eq!(store.recall("orders/anna", "a"), Some("answer".into()));
        assert_eq!(store.recall("orders/anna", "b"), None);
        assert_eq!(store.recall("orders/anna", "over"), None);
        assert_eq!(store.recall("orders/bert", "a"), None);
        assert_eq!(
            store.values("incident/"),
            [("incident/2".into(), Bytes::from("two"))]
        );
        if round == 0 {
            store.kill();
            store = open(&disk, small());
        } else {
            store.close().wait();
            store = open(&disk, small());
        }
    }
}

#[test]
fn a_second_process_is_told_who_has_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path(), small()).unwrap();
    let Err(StoreError::Locked(text)) = LogStore::open(dir.path(), small()) else {
        panic!("it is locked");
    };
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    store.close().wait();
    drop(store);
    LogStore::open(dir.path(), small()).unwrap();
}

#[test]
fn a_closed_store_refuses_and_lazy_commits_are_kept_by_close() {
    let disk = SimDisk::default();
    let store = open(&disk, small());
    let id = MessageId::new();
    let entry = journal(id, "r", Outcome::Delivered);
    commit_lazily(&store, vec![Change::Journal(entry.clone())]).unwrap();
    store.close().wait();
    assert!(commit(&store, vec![Change::Journal(entry.clone())]).is_err());
    assert!(store.health().is_err());
    let store = open(&disk, small());
    let query = Query {
        id: Some(id),
        ..Query::default()
    };
    assert_eq!(store.find(&query).unwrap(), [entry]);
}

#[test]
fn attachments_come_back_after_a_restart() {
    let disk = SimDisk::default();
    let store = open(&disk, small());
    let mut sent = xbus_core::Message::new("<a/>");
    sent.attachments = vec![
        Attachment {
            name: Some("ä.pdf".into()),
            content_type: Some("application/pdf".into()),
            content_id: Some("1@x".into()),
            body: Bytes::from_static(&[0, 255]),
        },
        Attachment::default(),
    ]
    .into();
    let sent = std::sync::Arc::new(sent);
    commit(&store, vec![put("q", "", &sent, "t")]).unwrap();
    store.close().wait();
    let store = open(&disk, small());
    let head = store.head("q", "").unwrap().unwrap();
    assert_eq!(head.message.attachments, sent.attachments);
    assert_eq!(body(&head), "<a/>");
}

#[test]
fn who_watches_a_queue_is_told_once_of_all_that_comes_together_and_before_it_is_answered() {
    let disk = SimDisk::default();
    let store = open(&disk, small());
    let wake = Arc::new(tokio::sync::Notify::new());
    let told = || wake.notified().now_or_never().is_some();
    store.watch("q", &wake);
    let (one, two) = (message("one"), message("two"));
    commit(
        &store,
        vec![put("q", "", &one, "t"), put("q", "", &two, "t")],
    )
    .unwrap();
    assert!(told() && !told());
    commit(&store, vec![put("other", "", &one, "t")]).unwrap();
    assert!(!told(), "another queue");
    let at = store.head("q", "").unwrap().unwrap().at;
    let reason = "no".to_owned();
    commit(
        &store,
        vec![Change::Park {
            at: at.clone(),
            reason,
        }],
    )
    .unwrap();
    assert!(!told(), "nothing came");
    commit(&store, vec![Change::Release { at }]).unwrap();
    assert!(told());
    // Another one takes its place, and who is gone is forgotten.
    let next = Arc::new(tokio::sync::Notify::new());
    store.watch("q", &next);
    commit(&store, vec![put("q", "", &one, "t")]).unwrap();
    assert!(!told() && next.notified().now_or_never().is_some());
    drop(next);
    commit(&store, vec![put("q", "", &two, "t")]).unwrap();
    assert_eq!(store.entries("q", false, 9).unwrap().len(), 4);
}
