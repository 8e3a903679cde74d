//! What the disk is asked for beyond `std::fs`: renames that replace nothing, and folders synced
//! so that a new or moved entry survives a power loss.
//!
//! Everything here blocks.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// A file's identity and state: the same stamp twice means the same, unchanged file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Stamp {
    /// Device number.
    pub(crate) device: u64,
    /// Inode number.
    pub(crate) inode: u64,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Time of the last change in nanoseconds since the epoch.
    pub(crate) modified: i128,
}

impl Stamp {
    /// Of what `stat` said.
    pub(crate) fn of(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        }
    }

    /// The key under which an accepted file is remembered until it has left the watched folder.
    pub(crate) fn key(&self) -> String {
        format!(
            "{},{},{},{}",
            self.device, self.inode, self.size, self.modified
        )
    }
}

/// Syncs of one folder that are under way or wanted.
#[derive(Default)]
struct Syncs {
    /// Held while one runs.
    turn: Mutex<()>,
    /// How many have begun.
    begun: AtomicU64,
    /// The last one that ended well, by its number.
    ended: AtomicU64,
}

/// Writes a folder's entries to the disk. Callers that ask while a sync of the same folder runs
/// share the next one.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    static FOLDERS: LazyLock<Mutex<HashMap<PathBuf, Weak<Syncs>>>> = LazyLock::new(Mutex::default);
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    let syncs = {
        let mut folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        match folders.get(dir).and_then(Weak::upgrade) {
            Some(syncs) => syncs,
            None => {
                folders.retain(|_, syncs| syncs.strong_count() > 0);
                let syncs = Arc::new(Syncs::default());
                folders.insert(dir.to_owned(), Arc::downgrade(&syncs));
                syncs
            }
        }
    };
    let before = syncs.begun.load(Ordering::SeqCst);
    let _turn = syncs.turn.lock().unwrap_or_else(PoisonError::into_inner);
    if syncs.ended.load(Ordering::SeqCst) > before {
        return Ok(());
    }
    let mine = syncs.begun.fetch_add(1, Ordering::SeqCst) + 1;
    File::open(dir)?.sync_all()?;
    syncs.ended.store(mine, Ordering::SeqCst);
    Ok(())
}

/// Makes a folder and what is missing above it, durably. Says whether anything was made.
pub(crate) fn create_dirs(dir: &Path) -> io::Result<bool> {
    match fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => return Ok(false),
        Ok(_) => return Err(Errno::NOTDIR.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let parent = dir.parent().unwrap_or(Path::new(""));
    if !parent.as_os_str().is_empty() {
        create_dirs(parent)?;
    }
    match fs::create_dir(dir) {
        Ok(()) => {
            sync_dir(parent)?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Renames and replaces nothing: `AlreadyExists` when `to` is there. Where the file system cannot
/// do that in one step, a hard link and an unlink do.
pub(crate) fn move_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match fs::hard_link(from, to) {
            Ok(()) => fs::remove_file(from),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
            Err(_) if fs::symlink_metadata(to).is_ok() => Err(Errno::EXIST.into()),
            Err(_) => fs::rename(from, to),
        },
        Err(error) => Err(error.into()),
    }
}

/// Whether something has that name, a dangling symbolic link included.
pub(crate) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Whether an error says that the name is taken.
pub(crate) fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AlreadyExists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "b").unwrap();
        assert!(is_taken(&move_new(&a, &b).unwrap_err()));
        assert_eq!(fs::read(&b).unwrap(), b"b");
        fs::remove_file(&b).unwrap();
        move_new(&a, &b).unwrap();
        assert_eq!(fs::read(&b).unwrap(), b"a");
        assert!(!is_there(&a));
    }

    #[test]
    fn folders_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x/y/z");
        assert!(create_dirs(&deep).unwrap());
        assert!(!create_dirs(&deep).unwrap());
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(create_dirs(&dir.path().join("file/below")).is_err());
    }
}
