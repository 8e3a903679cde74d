//! Every search against a plain list that is filtered.

use xbus_core::store::{Change, Query, Settlement, Store};

use super::sim::{Random, SimDisk};
use super::*;

fn expected(model: &[JournalEntry], query: &Query) -> Vec<MessageId> {
    let matching = model.iter().rev().filter(|entry| {
        query.id.is_none_or(|id| entry.id == id)
            && query
                .route
                .as_ref()
                .is_none_or(|route| entry.route == *route)
            && query.outcome.is_none_or(|outcome| entry.outcome == outcome)
            && query.since.is_none_or(|since| entry.received_at >= since)
            && query.until.is_none_or(|until| entry.received_at < until)
            && query.key.as_ref().is_none_or(|(name, value)| {
                let mut keys = entry.keys.iter();
                keys.any(|(known, is)| **known == **name && is == value)
            })
    });
    matching.map(|entry| entry.id).take(query.limit).collect()
}

#[test]
fn searches_find_what_a_plain_list_would() {
    for seed in 0..6 {
        let mut random = Random::new(7000 + seed);
        let disk = SimDisk::default();
        let mut store = open(&disk, small());
        let mut model: Vec<JournalEntry> = Vec::new();
        for step in 0..500i64 {
            match random.below(12) {
                0..8 => {
                    let one = message(&format!("m{step}"));
                    let outcomes = [
                        Outcome::Delivered,
                        Outcome::Pending,
                        Outcome::Pending,
                        Outcome::Failed,
                        Outcome::InDoubt,
                        Outcome::Filtered,
                    ];
                    let outcome = outcomes[random.below(6) as usize];
                    let route = format!("r{}", random.below(4));
                    let mut entry = journal(one.id, &route, outcome);
                    entry.received_at = Timestamp::from_micros(1_000_000 + step * 10);
                    entry.keys = vec![("n".into(), random.below(20).to_string())];
                    let mut changes = Vec::new();
                    if outcome == Outcome::Pending {
                        entry.targets = vec![target("t", Outcome::Queued)];
                        if random.chance(70) {
                            changes.push(put("q", "", &one, "t"));
                        }
                    }
                    changes.push(Change::Journal(entry.clone()));
                    commit(&store, changes).unwrap();
                    model.push(entry);
                }
                8 => {
                    if let Some(head) = store.head("q", "").unwrap() {
                        let dropped = random.chance(30);
                        let how = match dropped {
                            true => Settlement::Dropped,
                            false => Settlement::Delivered,
                        };
                        let change = Change::Settle {
                            at: head.at.clone(),
                            how,
                            attempts: 2,
                            error: None,
                        };
                        commit(&store, vec![change]).unwrap();
                        let mut entries = model.iter_mut();
                        let entry = entries.find(|e| e.id == head.message.id).unwrap();
                        let outcome = match dropped {
                            true => Outcome::Failed,
                            false => Outcome::Delivered,
                        };
                        entry.outcome = outcome;
                        entry.targets[0].outcome = outcome;
                    }
                }
                9 => {
                    // A message whose target waits elsewhere is told to be done, or it is written anew.
                    let n = random.below(model.len().max(1) as u64) as usize;
                    let Some(entry) = model.get(n).cloned() else {
                        continue;
                    };
                    if entry.outcome == Outcome::Pending
                        && store.entry("q", entry.id).unwrap().is_none()
                    {
                        let outcomes = [Outcome::Delivered, Outcome::Failed, Outcome::InDoubt];
                        let outcome = outcomes[random.below(3) as usize];
                        let change = Change::Target {
                            id: entry.id,
                            target: target("t", outcome),
                        };
                        commit(&store, vec![change]).unwrap();
                        model[n].outcome = outcome;
                        model[n].targets[0].outcome = outcome;
                    } else if entry.outcome == Outcome::InDoubt {
                        let mut entry = model.remove(n);
                        entry.outcome = Outcome::Delivered;
                        commit(&store, vec![Change::Journal(entry.clone())]).unwrap();
                        model.push(entry);
                    }
                }
                10 => {
                    if random.chance(15) {
                        store.close().wait();
                        store = open(&disk, small());
                    } else if random.chance(15) {
                        store.kill();
                        store = open(&disk, small());
                    }
                }
                _ => {
                    let mut query = Query {
                        limit: 1 + random.below(30) as usize,
                        ..Query::default()
                    };
                    if random.chance(40) {
                        query.route = Some(format!("r{}", random.below(5)).into());
                    }
                    if random.chance(60) {
                        let outcome = Outcome::ALL[random.below(9) as usize];
                        query.outcome = Some(outcome);
                    }
                    if random.chance(25) {
                        query.key = Some(("n".into(), random.below(22).to_string()));
                    }
                    if random.chance(25) {
                        let since = 1_000_000 + random.below(5000) as i64;
                        query.since = Some(Timestamp::from_micros(since));
                    }
                    if random.chance(25) {
                        let until = 1_000_000 + random.below(5000) as i64;
                        query.until = Some(Timestamp::from_micros(until));
                    }
                    if random.chance(10) && !model.is_empty() {
                        query.id = Some(model[random.below(model.len() as u64) as usize].id);
                    }
                    let found = store.find(&query).unwrap();
                    let ids: Vec<MessageId> = found.iter().map(|entry| entry.id).collect();
                    assert_eq!(ids, expected(&model, &query), "seed {seed}: {query:?}");
                    for entry in found {
                        let known = model.iter().find(|known| known.id == entry.id).unwrap();
                        let outcomes = |entry: &JournalEntry| -> Vec<Outcome> {
                            entry.targets.iter().map(|target| target.outcome).collect()
                        };
                        assert_eq!(outcomes(&entry), outcomes(known));
                    }
                }
            }
        }
    }
}
