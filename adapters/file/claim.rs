//! The claim folder: `.xbus-claim/NODE/` in the watched folder, held under a lease.
//!
//! The lease is the file `.xbus-claim/.NODE.lease`: locked (`flock`, which the kernel gives back
//! when the process dies) and rewritten every [`BEAT`]. A lease is stale when its last beat is
//! older than [`STALE`] on the file system's own clock, whether its lock is held or not: a process
//! that is frozen holds its lock and does no work. What it has claimed goes to another node; when
//! it wakes up it finds its files gone, and only the message that was in flight may be a duplicate.
//!
//! A node's own lease is had only with its lock: two live processes never share a name. The process
//! that died under the same boot of the same machine is trusted to be dead at once, so that a
//! restart goes on without waiting. Order across nodes is not promised.
//!
//! All receivers of one process that watch the same folder share one lease.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::disk;

/// The claim folders of all nodes, in the watched folder.
pub(crate) const CLAIMS: &str = ".xbus-claim";
/// How often a lease is rewritten.
pub(crate) const BEAT: Duration = Duration::from_secs(2);
/// Age of the last beat at which another node may take over.
pub(crate) const STALE: Duration = Duration::from_secs(10);
/// How long opening waits for a lock that somebody holds only for the moment of a take-over.
const PATIENCE: Duration = Duration::from_secs(2);

/// Leases of this process, by claim folder.
static HELD: LazyLock<Mutex<BTreeMap<PathBuf, Weak<Lease>>>> = LazyLock::new(Mutex::default);

/// Why there is no lease.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Another live process has this node's name.
    Live,
    /// The disk says no.
    Disk(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Disk(error)
    }
}

/// The right to claim files into one node's folder.
pub(crate) struct Lease {
    claims: PathBuf,
    node: String,
    file: Mutex<File>,
    busy: Mutex<HashSet<PathBuf>>,
}

/// Marks a claimed file as being worked on, until dropped.
pub(crate) struct Busy {
    lease: Arc<Lease>,
    path: PathBuf,
}

impl Drop for Busy {
    fn drop(&mut self) {
        lock(&self.lease.busy).remove(&self.path);
    }
}

impl Lease {
    /// The lease of `node` in the watched folder `dir`; shared when this process has it. Blocks,
    /// up to [`STALE`] when another machine's lease has to be watched.
    pub(crate) fn acquire(dir: &Path, node: &str) -> Result<Arc<Self>, Refusal> {
        let claims = fs::canonicalize(dir)?.join(CLAIMS);
        let node = crate::names::fitted(
            crate::names::safe_piece(node).trim_start_matches('.'),
            ".".len() + ".lease".len(),
        );
        let folder = claims.join(&node);
        let mut held = lock(&HELD);
        if let Some(lease) = held.get(&folder).and_then(Weak::upgrade)
            && lease.is_held()
        {
            return Ok(lease);
        }
        make_folder(&claims)?;
        let file = Self::hold(&claims, &node)?;
        make_folder(&folder)?;
        let lease = Arc::new(Self {
            claims,
            node,
            file: Mutex::new(file),
            busy: Mutex::default(),
        });
        lease.beat()?;
        held.retain(|_, lease| lease.strong_count() > 0);
        held.insert(folder, Arc::downgrade(&lease));
        Ok(lease)
    }

    fn hold(claims: &Path, node: &str) -> Result<File, Refusal> {
        let path = lease_path(claims, node);
        let mut waited = Duration::ZERO;
        let step = Duration::from_millis(50);
        loop {
            let (file, locked) = open_locked(&path)?;
            if locked.is_none() {
                if waited >= PATIENCE {
                    return Err(Refusal::Live);
                }
                std::thread::sleep(step);
                waited += step;
                continue;
            }
            if !is_same(&file, &path) {
                continue;
            }
            let before = read_text(&file);
            let trusted = locked == Some(true) && before.contains(boot());
            if before.is_empty() || trusted || age(claims, node, &file)? > STALE {
                return Ok(file);
            }
            // Another machine's lease that beat a moment ago: does it still?
            let mut watched = Duration::ZERO;
            while watched < STALE {
                std::thread::sleep(BEAT / 4);
                watched += BEAT / 4;
                if read_text(&file) != before {
                    return Err(Refusal::Live);
                }
            }
            return Ok(file);
        }
    }

    /// This node's folder.
    pub(crate) fn folder(&self) -> PathBuf {
        self.claims.join(&self.node)
    }

    /// Rewrites the lease.
    pub(crate) fn beat(&self) -> io::Result<()> {
        let text = format!(
            "{{\"node\":{:?},\"boot\":\"{}\",\"pid\":{},\"beat\":\"{}\"}}\n",
            self.node,
            boot(),
            std::process::id(),
            xbus_core::Timestamp::now()
        );
        let file = lock(&self.file);
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(text.len() as u64)
    }

    /// Whether the lease's file is still the one that is locked; not so when somebody removed the
    /// watched folder, or it is another file system now.
    pub(crate) fn is_held(&self) -> bool {
        is_same(&lock(&self.file), &lease_path(&self.claims, &self.node))
    }

    /// Marks a path beneath the claim folder as being worked on; nothing when it is already.
    pub(crate) fn busy(self: &Arc<Self>, path: &Path) -> Option<Busy> {
        lock(&self.busy).insert(path.to_owned()).then(|| Busy {
            lease: self.clone(),
            path: path.to_owned(),
        })
    }

    /// Moves what nodes with a stale lease have claimed into this node's folder, where `wanted`
    /// (asked with the path beneath the claim folder) says so. Gives the number of files.
    pub(crate) fn take_over(&self, wanted: &dyn Fn(&Path) -> bool) -> io::Result<usize> {
        let mut taken = 0;
        for entry in fs::read_dir(&self.claims)? {
            let name = entry?.file_name();
            let Some(node) = name.to_str() else { continue };
            if node.starts_with('.') || node == self.node {
                continue;
            }
            taken += self.take_over_from(node, wanted)?;
        }
        Ok(taken)
    }

    fn take_over_from(&self, node: &str, wanted: &dyn Fn(&Path) -> bool) -> io::Result<usize> {
        let path = lease_path(&self.claims, node);
        let folder = self.claims.join(node);
        let beaten = match fs::metadata(&path) {
            Ok(meta) => meta.modified()?,
            Err(_) => fs::metadata(&folder)?.modified()?,
        };
        let now = lock(&self.file).metadata()?.modified()?;
        if now.duration_since(beaten).unwrap_or_default() <= STALE {
            return Ok(0);
        }
        let (file, locked) = open_locked(&path)?;
        if !is_same(&file, &path) {
            return Ok(0);
        }
        let mut taken = 0;
        for path in crate::scan::files_beneath(&folder)? {
            if !wanted(&path) {
                continue;
            }
            let to = self.folder().join(&path);
            if let Some(parent) = to.parent() {
                disk::create_dirs(parent)?;
            }
            match disk::move_new(&folder.join(&path), &to) {
                Ok(()) => taken += 1,
                Err(error) if disk::is_taken(&error) => {}
                // Its owner woke up and is through with it, or a third node was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // While the lock is held nobody else uses the folder; one that is not empty stays. The
        // lease and the folder of a process that is only frozen are there when it wakes up.
        if locked.is_some() && fs::remove_dir(&folder).is_ok() {
            fs::remove_file(&path)?;
        }
        Ok(taken)
    }
}

fn lease_path(claims: &Path, node: &str) -> PathBuf {
    claims.join(format!(".{node}.lease"))
}

/// Like `create_dir`, and content when it is there.
fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if disk::is_taken(&error) => Ok(()),
        other => other,
    }
}

/// Opens and locks: `Some(true)` locked, `Some(false)` where the file system knows no locks,
/// nothing when somebody else has the lock.
fn open_locked(path: &Path) -> io::Result<(File, Option<bool>)> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    let locked = match file.try_lock() {
        Ok(()) => Some(true),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(_)) => Some(false),
    };
    Ok((file, locked))
}

fn is_same(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn read_text(file: &File) -> String {
    let mut buffer = [0; 1024];
    let length = file.read_at(&mut buffer, 0).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// How long ago a file was written, by the file system's own clock.
fn age(claims: &Path, node: &str, file: &File) -> io::Result<Duration> {
    let probe = claims.join(format!(".{node}.probe"));
    fs::write(&probe, b"?")?;
    let now = fs::metadata(&probe)?.modified()?;
    fs::remove_file(&probe)?;
    Ok(now
        .duration_since(file.metadata()?.modified()?)
        .unwrap_or_default())
}

/// Identifies this boot of this machine (proc(5)); a name that nobody has where there is none.
fn boot() -> &'static str {
    static BOOT: LazyLock<String> = LazyLock::new(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            .ok()
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| xbus_core::MessageId::new().to_string())
    });
    &BOOT
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn everything(_: &Path) -> bool {
        true
    }

    #[test]
    fn one_process_shares_and_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let lease = Lease::acquire(dir.path(), "a").unwrap();
        assert!(Arc::ptr_eq(
            &lease,
            &Lease::acquire(dir.path(), "a").unwrap()
        ));
        // Another process's view: the lock cannot be had.
        let claims = fs::canonicalize(dir.path()).unwrap().join(CLAIMS);
        assert!(matches!(Lease::hold(&claims, "a"), Err(Refusal::Live)));
        drop(lease);
        Lease::hold(&claims, "a").unwrap();
    }

    #[test]
    fn a_folder_that_vanished_loses_the_lease() {
        let dir = tempfile::tempdir().unwrap();
        let watched = dir.path().join("in");
        fs::create_dir(&watched).unwrap();
        let lease = Lease::acquire(&watched, "a").unwrap();
        assert!(lease.is_held());
        fs::remove_dir_all(&watched).unwrap();
        assert!(!lease.is_held());
        fs::create_dir(&watched).unwrap();
        assert!(Lease::acquire(&watched, "a").unwrap().is_held());
    }

    #[test]
    fn only_a_stale_lease_is_taken_over_and_a_held_lock_does_not_keep_it() {
        let dir = tempfile::tempdir().unwrap();
        let dead = Lease::acquire(dir.path(), "dead").unwrap();
        let mine = Lease::acquire(dir.path(), "mine").unwrap();
        fs::write(dead.folder().join("x.xml"), "x").unwrap();
        assert_eq!(mine.take_over(&everything).unwrap(), 0, "it lives");

        let old = SystemTime::now() - STALE * 2;
        lock(&dead.file).set_modified(old).unwrap();
        assert_eq!(mine.take_over(&|_| false).unwrap(), 0, "not wanted");
        assert_eq!(mine.take_over(&everything).unwrap(), 1, "it is frozen");
        assert!(mine.folder().join("x.xml").exists());
        // It wakes up, has its lease and its folder, and works on.
        assert!(dead.is_held());
        dead.beat().unwrap();
        fs::write(dead.folder().join("y.xml"), "y").unwrap();
        assert_eq!(mine.take_over(&everything).unwrap(), 0, "it beats again");
        // Its name stays its own.
        let claims = fs::canonicalize(dir.path()).unwrap().join(CLAIMS);
        lock(&dead.file).set_modified(old).unwrap();
        assert!(matches!(Lease::hold(&claims, "dead"), Err(Refusal::Live)));

        let folder = dead.folder();
        drop(dead);
        assert_eq!(mine.take_over(&everything).unwrap(), 1);
        assert!(mine.folder().join("y.xml").exists() && !folder.exists());
    }

    #[test]
    fn a_claimed_file_is_worked_on_once() {
        let dir = tempfile::tempdir().unwrap();
        let lease = Lease::acquire(dir.path(), "a").unwrap();
        let busy = lease.busy(Path::new("x")).unwrap();
        assert!(lease.busy(Path::new("x")).is_none());
        drop(busy);
        assert!(lease.busy(Path::new("x")).is_some());
    }
}
