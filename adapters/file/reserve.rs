//! Names that are being written: from staging until the file has its name or was taken back.
//!
//! A staged file is not yet visible under its name, so that the folder alone does not tell of two
//! messages that want the same one. Absent: other processes; what they put there is found by the
//! folder.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::stage::{Exists, Token};

/// Who wants a name.
struct Holder {
    /// Tells message and target (see [`Token::temporary`]).
    who: String,
    exists: Exists,
}

/// Who writes what, in this process.
static NAMES: LazyLock<Mutex<HashMap<PathBuf, Vec<Holder>>>> = LazyLock::new(Mutex::default);

/// A name that is given back when this is dropped, unless it is [kept](Self::keep).
pub(crate) struct Reserved {
    path: PathBuf,
    who: String,
    kept: bool,
}

impl Reserved {
    /// Reserves a token's name. Nothing when the token must not write over others and another one
    /// has the name; the same token may ask again.
    pub(crate) fn of(token: &Token) -> Option<Self> {
        let (path, who) = (path(token, &token.name), token.temporary());
        let mut names = names();
        if token.exists == Exists::Fail
            && let Some(holders) = names.get(&path)
            && holders.iter().any(|holder| holder.who != who)
        {
            return None;
        }
        let holders = names.entry(path.clone()).or_default();
        if holders.iter().all(|holder| holder.who != who) {
            holders.push(Holder {
                who: who.clone(),
                exists: token.exists,
            });
        }
        Some(Self {
            path,
            who,
            kept: false,
        })
    }

    /// The name stays reserved until [`release`].
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.kept {
            give_back(&self.path, &self.who);
        }
    }
}

/// Gives a token's name back; fine when it has none.
pub(crate) fn release(token: &Token) {
    give_back(&path(token, &token.name), &token.temporary());
}

/// Whether another token has reserved `name` in the token's folder for itself alone.
pub(crate) fn is_promised(token: &Token, name: &str) -> bool {
    let who = token.temporary();
    names().get(&path(token, name)).is_some_and(|holders| {
        holders
            .iter()
            .any(|holder| holder.exists == Exists::Fail && holder.who != who)
    })
}

fn give_back(path: &Path, who: &str) {
    let mut names = names();
    if let Some(holders) = names.get_mut(path) {
        holders.retain(|holder| holder.who != who);
        if holders.is_empty() {
            names.remove(path);
        }
    }
}

/// The path of a name in the token's folder, spelled one way.
fn path(token: &Token, name: &str) -> PathBuf {
    let mut path: PathBuf = token
        .dir
        .components()
        .filter(|part| *part != Component::CurDir)
        .collect();
    path.extend(&token.folders);
    path.push(name);
    path
}

fn names() -> MutexGuard<'static, HashMap<PathBuf, Vec<Holder>>> {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner)
}
