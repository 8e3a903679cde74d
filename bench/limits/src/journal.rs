//! Fills a store's journal: how a bus feels with millions of messages behind it is asked without sending them.

use std::path::Path;
use std::sync::Arc;

use tokio::runtime;
use xbus_core::store::{
    Change, Commit, Durability, JournalEntry, Outcome, Retention, Store, TargetEntry,
};
use xbus_core::{MessageId, Timestamp};
use xbus_store::{LogStore, Options};

use crate::Fallible;

/// Entries of one commit.
const BATCH: u64 = 500;

/// Journals messages of fifty routes, each with a business key and a target that has it.
pub fn fill(folder: &Path, messages: u64) -> Fallible<()> {
    let runtime = runtime::Builder::new_current_thread().build()?;
    let options = Options {
        retention: Retention {
            max_size: u64::MAX,
            ..Options::default().retention
        },
        ..Options::default()
    };
    let store = LogStore::open(folder, options)?;
    let routes: Vec<Arc<str>> = (0..50).map(|n| format!("route-{n}").into()).collect();
    let (key, target): (Arc<str>, Arc<str>) = ("order-no".into(), "erp".into());
    runtime.block_on(async {
        for first in (0..messages).step_by(BATCH as usize) {
            let entries = (first..(first + BATCH).min(messages)).map(|number| {
                let at = Timestamp::now();
                Change::Journal(JournalEntry {
                    id: MessageId::new(),
                    correlation_id: None,
                    cause: None,
                    route: routes[number as usize % routes.len()].clone(),
                    received_at: at,
                    took_micros: 90,
                    outcome: Outcome::Delivered,
                    keys: vec![(key.clone(), number.to_string())],
                    targets: vec![TargetEntry {
                        name: target.clone(),
                        outcome: Outcome::Delivered,
                        attempts: 1,
                        error: None,
                        at,
                    }],
                    fault: None,
                })
            });
            let commit = Commit::from(entries.collect::<Vec<_>>());
            store.commit(commit, Durability::Lazy).await?;
        }
        store.close().await;
        Ok(())
    })
}
