//! What the disk is asked for beyond `std::fs`: renames that replace nothing, and folders synced
//! so that a new or moved entry survives a power loss.
//!
//! Everything here blocks.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
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
    /// How many have begun.
    begun: AtomicU64,
    /// Held while one runs: how the last one ended.
    last: Mutex<Last>,
}

/// The end of a sync.
#[derive(Default)]
struct Last {
    /// Which one it was.
    number: u64,
    failed: Option<Errno>,
}

impl Syncs {
    /// Runs `sync`, unless one that began after this was called has been run by somebody else: then
    /// its end counts for both. The disk tells of an error once only, so that whoever relied on the
    /// sync that failed has to learn of it from here.
    fn share(&self, sync: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        self.after(self.begun.load(Ordering::SeqCst), sync)
    }

    /// The same for who asked when `before` syncs had begun.
    fn after(&self, before: u64, sync: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.number <= before {
            let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            let failed = sync().err();
            *last = Last { number, failed };
        }
        last.failed.map_or(Ok(()), Err)
    }
}

/// Writes an opened folder's entries to the disk. Callers that ask while a sync of the same folder
/// runs share the next one.
pub(crate) fn sync_folder(folder: &impl AsFd) -> io::Result<()> {
    /// By device and inode: a folder that is made again under the same path is another one.
    type Folders = HashMap<(u64, u64), Weak<Syncs>>;
    static FOLDERS: LazyLock<Mutex<Folders>> = LazyLock::new(Mutex::default);
    let stat = rustix::fs::fstat(folder)?;
    let syncs = {
        let mut folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        let which = (stat.st_dev, stat.st_ino);
        match folders.get(&which).and_then(Weak::upgrade) {
            Some(syncs) => syncs,
            None => {
                folders.retain(|_, syncs| syncs.strong_count() > 0);
                let syncs = Arc::new(Syncs::default());
                folders.insert(which, Arc::downgrade(&syncs));
                syncs
            }
        }
    };
    Ok(syncs.share(|| rustix::fs::fsync(folder))?)
}

/// The same for a folder's path.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    sync_folder(&File::open(dir)?)
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
    fn those_who_ask_while_a_sync_runs_share_the_next_one_and_its_failure() {
        for end in [Ok(()), Err(Errno::IO)] {
            let syncs = Syncs::default();
            let mut asked = 0;
            let first = syncs.share(|| {
                asked = syncs.begun.load(Ordering::SeqCst);
                Ok(())
            });
            assert_eq!(first, Ok(()));
            let mut ran = 0;
            let mut wait = || {
                syncs.after(asked, || {
                    ran += 1;
                    end
                })
            };
            // The disk would not tell the second one of the failure.
            assert_eq!((wait(), wait(), ran), (end, end, 1));
        }
    }

    #[test]
    fn a_sync_that_failed_is_over_for_who_asks_later() {
        let syncs = Syncs::default();
        assert_eq!(syncs.share(|| Err(Errno::IO)), Err(Errno::IO));
        assert_eq!(syncs.share(|| Ok(())), Ok(()));
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
