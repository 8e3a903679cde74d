//! The last of accepted files: they are moved to `done`, and their keys are forgotten when the moves
//! are durable.
//!
//! This goes on beside the taking of further files, a group at a time: whatever was accepted while one
//! group was moved is the next, and one sync of a folder serves a whole group. A crash finds a file
//! either still claimed, with its key remembered, or moved.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;
use xbus_core::Stop;

use crate::claim::Busy;
use crate::folders::{self, Done};
use crate::take::{Claimed, Door, Rules, blocking, shown};

/// A file whose message was accepted.
pub(crate) struct Accepted {
    pub(crate) file: Claimed,
    /// What is remembered of it.
    pub(crate) key: Arc<str>,
    /// Until it is moved nobody else takes it up.
    pub(crate) busy: Busy,
}

/// Files of one receiver that are to be moved.
#[derive(Default)]
struct Group {
    waiting: Vec<Accepted>,
    /// Keys of those that were moved.
    moved: Vec<Arc<str>>,
    /// Where those moves have to be made durable.
    folders: BTreeSet<PathBuf>,
}

impl Group {
    /// Moves what can be moved, and syncs. Says what cannot be done; for the rest it is done. Blocks.
    fn settle(&mut self, done: &Done) -> Result<(), String> {
        let what = match done {
            Done::Delete => "delete",
            Done::Move(_) => "move to the done folder",
        };
        let mut failed = Ok(());
        for accepted in std::mem::take(&mut self.waiting) {
            let file = &accepted.file;
            match folders::finish(&file.at, &file.path, done) {
                Ok(folder) => {
                    self.folders.extend(file.at.parent().map(Path::to_owned));
                    self.folders.extend(folder);
                    self.moved.push(accepted.key);
                    drop(accepted.busy);
                }
                Err(error) => {
                    let path = shown(&file.path);
                    failed = failed.and(Err(format!("cannot {what}: {path}: {error}")));
                    self.waiting.push(accepted);
                }
            }
        }
        self.sync().and(failed)
    }

    fn sync(&mut self) -> Result<(), String> {
        while let Some(folder) = self.folders.first() {
            folders::sync(folder)
                .map_err(|error| format!("cannot sync {}: {error}", folder.display()))?;
            self.folders.pop_first();
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        self.waiting.is_empty() && self.folders.is_empty()
    }
}

/// Settles what comes until nothing more does, or, while it fails, until `stop`. As many files as the
/// route takes at once may wait for another attempt; then those that are accepted wait, too.
pub(crate) async fn settle(
    door: Arc<dyn Door>,
    rules: Arc<Rules>,
    mut accepted: mpsc::Receiver<Accepted>,
    stop: Stop,
) {
    let mut group = Group::default();
    let (mut failures, mut again) = (0, Instant::now());
    let mut open = true;
    while open || !group.is_settled() {
        let room = accepted.max_capacity().saturating_sub(group.waiting.len());
        let due = tokio::time::sleep_until(again);
        tokio::select! {
            count = accepted.recv_many(&mut group.waiting, room), if open && room > 0 => {
                open = count > 0;
            }
            () = due, if !group.is_settled() => {}
            // They stay claimed and remembered, and are only moved at the next start.
            () = stop.cancelled(), if !group.is_settled() => return,
        }
        let rules = rules.clone();
        let settled = blocking(move || {
            let result = group.settle(&rules.done);
            (group, result)
        })
        .await;
        let result;
        (group, result) = match settled {
            Ok(settled) => settled,
            Err(error) => (Group::default(), Err(error.to_string())),
        };
        // While a sync fails it is not known which of the moves are durable.
        if group.folders.is_empty() && !group.moved.is_empty() {
            door.forget(&std::mem::take(&mut group.moved)).await;
        }
        match result {
            Ok(()) if failures > 0 => {
                failures = 0;
                door.works();
            }
            Ok(()) => {}
            Err(error) => {
                if Instant::now() >= again {
                    failures += 1;
                    again = Instant::now() + door.retry().wait(failures);
                }
                door.fails(&error);
            }
        }
    }
}
