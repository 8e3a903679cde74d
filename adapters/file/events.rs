//! File-system events: a hint that the next scan should come now. Network shares send none, and
//! nothing depends on them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use crate::scan::Watch;

/// Events of one folder for as long as it lives.
pub(crate) struct Events {
    _watcher: RecommendedWatcher,
}

impl Events {
    /// Has `hint` told whenever a file may have become complete in a watched folder. Nothing when the
    /// system gives no events: the polling scan does without.
    pub(crate) fn of(watch: &Watch, hint: Arc<Notify>) -> Option<Self> {
        let skip: Vec<PathBuf> = watch
            .skip
            .iter()
            .filter_map(|folder| std::path::absolute(folder).ok())
            .collect();
        let told = move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            let ours = |path: &Path| {
                let mut skipped = skip.iter();
                skipped.any(|folder| path.starts_with(folder))
                    || path
                        .components()
                        .any(|part| part.as_os_str().as_encoded_bytes().starts_with(b".xbus-"))
            };
            if may_complete(event.kind) && !event.paths.iter().all(|path| ours(path)) {
                hint.notify_one();
            }
        };
        let mode = if watch.recursive {
            RecursiveMode::Recursive
        } else {
            RecursiveMode::NonRecursive
        };
        let mut watcher = notify::recommended_watcher(told)
            .inspect_err(|error| tracing::debug!(%error, "no file-system events"))
            .ok()?;
        watcher
            .watch(&watch.dir, mode)
            .inspect_err(|error| tracing::debug!(%error, "no file-system events"))
            .ok()?;
        Some(Self { _watcher: watcher })
    }
}

/// Whether a file may be complete after such an event. What leaves the folder, as each file does when
/// it is claimed, completes none.
fn may_complete(kind: EventKind) -> bool {
    match kind {
        EventKind::Modify(ModifyKind::Name(mode)) => mode != RenameMode::From,
        EventKind::Create(_) => true,
        kind => kind == EventKind::Access(AccessKind::Close(AccessMode::Write)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_leaves_or_is_read_completes_none() {
        let named = |mode| EventKind::Modify(ModifyKind::Name(mode));
        assert!(may_complete(named(RenameMode::To)));
        assert!(may_complete(named(RenameMode::Any)));
        assert!(!may_complete(named(RenameMode::From)));
        let closed = |mode| EventKind::Access(AccessKind::Close(mode));
        assert!(may_complete(closed(AccessMode::Write)));
        assert!(!may_complete(closed(AccessMode::Read)));
    }
}
