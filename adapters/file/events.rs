//! File-system events: a hint that the next scan should come now. Network shares send none, and
//! nothing depends on them.

use std::path::Path;
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// Events of one folder for as long as it lives.
pub(crate) struct Events {
    _watcher: RecommendedWatcher,
}

impl Events {
    /// Has `hint` told whenever a file may have become complete in `dir`. Nothing when the system
    /// gives no events: the polling scan does without.
    pub(crate) fn of(dir: &Path, recursive: bool, hint: Arc<Notify>) -> Option<Self> {
        let told = move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            // What leaves the folder, as each file does when it is claimed, makes none complete.
            let complete = match event.kind {
                EventKind::Modify(ModifyKind::Name(mode)) => mode != RenameMode::From,
                EventKind::Create(_) => true,
                kind => kind == EventKind::Access(AccessKind::Close(AccessMode::Write)),
            };
            let ours = |path: &Path| {
                path.components()
                    .any(|part| part.as_os_str().as_encoded_bytes().starts_with(b".xbus-"))
            };
            if complete && !event.paths.iter().all(|path| ours(path)) {
                hint.notify_one();
            }
        };
        let mode = if recursive {
            RecursiveMode::Recursive
        } else {
            RecursiveMode::NonRecursive
        };
        let mut watcher = notify::recommended_watcher(told)
            .inspect_err(|error| tracing::debug!(%error, "no file-system events"))
            .ok()?;
        watcher
            .watch(dir, mode)
            .inspect_err(|error| tracing::debug!(%error, "no file-system events"))
            .ok()?;
        Some(Self { _watcher: watcher })
    }
}
