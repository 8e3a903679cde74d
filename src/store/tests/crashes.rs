//! Power loss, torn ends, damage, failing syncs.

use std::collections::BTreeMap;

use xbus_core::store::{Change, Query, Store, StoreError};

use super::sim::{Random, SimDisk};
use super::*;
use crate::record::SEGMENT_HEAD;

/// What a run did, so that what a power loss left can be judged.
#[derive(Default)]
struct Model {
    /// By key: bodies in order of acceptance, of commits that were acknowledged or not.
    put: BTreeMap<String, Vec<String>>,
    acknowledged: Vec<String>,
    settle_asked: Vec<String>,
    settled: Vec<String>,
    /// Bodies that entered together.
    together: Vec<Vec<String>>,
}

fn check(model: &Model, store: &LogStore) {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for queued in store.entries("q", false, usize::MAX).unwrap() {
        let key = queued.at.key.to_string();
        found.entry(key).or_default().push(body(&queued));
    }
    let all: Vec<&String> = found.values().flatten().collect();
    for text in &model.acknowledged {
        let here = all.contains(&text);
        if model.settled.contains(text) {
            assert!(!here, "{text} was settled durably and is back");
        } else if !model.settle_asked.contains(text) {
            assert!(here, "{text} was acknowledged and is lost");
        }
    }
    for (key, bodies) in &found {
        let order = &model.put[key];
        let mut places = bodies
            .iter()
            .map(|text| order.iter().position(|known| known == text).unwrap());
        let mut last = None;
        assert!(
            places.all(|place| last.replace(place).is_none_or(|last| last < place)),
            "the order of {key} changed: {bodies:?}"
        );
    }
    for group in &model.together {
        let here = |text: &&String| all.contains(text) || model.settle_asked.contains(text);
        let count = group.iter().filter(here).count();
        assert!(
            count == 0 || count == group.len(),
            "half of a commit: {group:?}"
        );
    }
}

#[test]
fn a_power_loss_at_any_moment_loses_nothing_acknowledged_and_halves_no_commit() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let mut disk = SimDisk::default();
        let mut model = Model::default();
        let mut name = 0;
        for _ in 0..3 {
            let store = open(&disk, small());
            check(&model, &store);
            let mut in_flight = Vec::new();
            for _ in 0..random.below(120) {
                let key = format!("k{}", random.below(3));
                match random.below(10) {
                    0..6 => {
                        let mut changes = Vec::new();
                        let mut group = Vec::new();
                        for _ in 0..1 + random.below(3) {
                            let text = format!("m{name}{}", "x".repeat(random.below(700) as usize));
                            name += 1;
                            changes.push(put("q", &key, &message(&text), "t"));
                            model.put.entry(key.clone()).or_default().push(text.clone());
                            group.push(text);
                        }
                        model.together.push(group.clone());
                        let done = store.commit(changes.into(), Durability::Synced);
                        in_flight.push((group, done));
                    }
                    6 => {
                        let id = MessageId::new();
                        let entry = journal(id, "r", Outcome::Delivered);
                        commit_lazily(&store, vec![Change::Journal(entry)]).unwrap();
                    }
                    7 => {
                        if let Some(head) = store.head("q", &key).unwrap() {
                            let text = body(&head);
                            model.settle_asked.push(text.clone());
                            match commit(&store, vec![settle(&head.at)]) {
                                Ok(()) => model.settled.push(text),
                                // A lazy settle was quicker.
                                Err(StoreError::NotFound(_)) => {}
                                Err(error) => panic!("{error}"),
                            }
                        }
                    }
                    8 => {
                        if let Some(head) = store.head("q", &key).unwrap() {
                            model.settle_asked.push(body(&head));
                            let _ = commit_lazily(&store, vec![settle(&head.at)]);
                        }
                    }
                    _ => {
                        for (group, done) in in_flight.drain(..) {
                            done.wait().unwrap();
                            model.acknowledged.extend(group);
                        }
                    }
                }
            }
            // What was acknowledged before the cut is told by asking before it.
            for (group, done) in in_flight.drain(..) {
                if random.chance(50) {
                    done.wait().unwrap();
                    model.acknowledged.extend(group);
                }
            }
            let after = disk.cut_power(&mut random);
            store.kill();
            disk = after;
        }
        let store = open(&disk, small());
        check(&model, &store);
        assert!(store.damage().is_empty(), "{:?}", store.damage());
    }
}

#[test]
fn a_torn_end_is_cut_off_wherever_it_is_torn() {
    let disk = SimDisk::default();
    let store = open(&disk, small());
    for text in ["one", "two", "three"] {
        commit(&store, vec![put("q", "", &message(text), "")]).unwrap();
    }
    store.kill();
    let whole = disk.bytes("00000001.log");
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for cut in SEGMENT_HEAD..end {
        let disk = SimDisk::default();
        let mut part = whole[..cut].to_vec();
        part.resize(whole.len(), 0);
        let file = crate::disk::Disk::open(&disk, "00000001.log", true).unwrap();
        file.write_at(&part, 0).unwrap();
        let store = open(&disk, small());
        let left = store.entries("q", false, 10).unwrap();
        let left: Vec<String> = left.iter().map(body).collect();
        assert_eq!(left, ["one", "two", "three"][..left.len()]);
        assert!(left.len() < 3 && store.damage().is_empty());
        commit(&store, vec![put("q", "", &message("next"), "")]).unwrap();
        store.kill();
        let store = open(&disk, small());
        let again = store.entries("q", false, 10).unwrap();
        assert_eq!(again.len(), left.len() + 1);
        assert_eq!(body(&again[left.len()]), "next");
    }
}

#[test]
fn damage_within_the_log_is_said_and_what_is_behind_it_counts() {
    let disk = SimDisk::default();
    let store = open(&disk, small());
    for n in 0..100 {
        let text = format!("m{n:03}{}", "y".repeat(400));
        commit(&store, vec![put("q", "", &message(&text), "")]).unwrap();
    }
    store.kill();
    let disk = disk.after_kill();
    for name in disk.names() {
        if name.ends_with(".checkpoint") {
            crate::disk::Disk::remove(&disk, &name).unwrap();
        }
    }
    disk.damage("00000002.log", 3000);
    let store = open(&disk, small());
    assert_eq!(store.damage().len(), 1);
    assert!(store.damage()[0].contains("00000002.log: damaged at byte"));
    assert_eq!(store.entries("q", false, 1000).unwrap().len(), 99);
    store.close().wait();
    // The damage stays known, and the segment stays.
    let store = open(&disk, small());
    assert_eq!(store.entries("q", false, 1000).unwrap().len(), 99);
    assert!(disk.names().contains(&"00000002.log".to_owned()));
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before_it() {
    let disk = SimDisk::default();
    let mut next = 0;
    for _ in 0..3 {
        let store = open(&disk, small());
        for _ in 0..40 {
            let text = format!("m{next}");
            next += 1;
            commit(&store, vec![put("q", "", &message(&text), "")]).unwrap();
        }
        let remember = Change::Remember {
            scope: "s".into(),
            key: format!("k{next}").into(),
            value: "v".into(),
            until: None,
        };
        commit(&store, vec![remember]).unwrap();
        store.close().wait();
    }
    let mut checkpoints: Vec<String> = disk.names();
    checkpoints.retain(|name| name.ends_with(".checkpoint"));
    assert_eq!(checkpoints.len(), 2);
    for damaged in 1..=2 {
        let disk = disk.after_kill();
        for name in checkpoints.iter().rev().take(damaged) {
            disk.damage(name, 40);
        }
        let store = open(&disk, small());
        assert_eq!(store.damage().len(), damaged);
        let left: Vec<String> = store
            .entries("q", false, 1000)
            .unwrap()
            .iter()
            .map(body)
            .collect();
        let expected: Vec<String> = (0..next).map(|n| format!("m{n}")).collect();
        assert_eq!(left, expected);
        assert!(store.recall("s", &format!("k{next}")).is_some());
    }
}

#[test]
fn a_failed_sync_ends_acceptance_until_the_store_is_opened_again() {
    let disk = SimDisk::default();
    let store = open(&disk, small());
    commit(&store, vec![put("q", "", &message("kept"), "")]).unwrap();
    disk.fail_syncs();
    let failed = commit(&store, vec![put("q", "", &message("lost"), "")]);
    assert!(matches!(failed, Err(StoreError::Failed(_))), "{failed:?}");
    assert!(matches!(store.health(), Err(StoreError::Failed(_))));
    let entry = Change::Journal(journal(MessageId::new(), "r", Outcome::Delivered));
    assert!(commit_lazily(&store, vec![entry]).is_err());
    // What waits is still shown, what was refused is not.
    assert_eq!(store.entries("q", false, 10).unwrap().len(), 1);
    let after = disk.cut_power(&mut Random::new(3));
    drop(store);
    let store = open(&after, small());
    assert_eq!(body(&store.head("q", "").unwrap().unwrap()), "kept");
    store.health().unwrap();
}

#[test]
fn a_failed_write_fails_everyone_who_waits() {
    let disk = SimDisk::default();
    let store = open(&disk, small());
    disk.fail_writes();
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            store.commit(
                vec![put("q", "", &message("x"), "")].into(),
                Durability::Synced,
            )
        })
        .collect();
    for done in waiting {
        assert!(matches!(done.wait(), Err(StoreError::Failed(_))));
    }
    assert!(store.head("q", "").unwrap().is_none());
    assert!(store.find(&Query::default()).unwrap().is_empty());
}
