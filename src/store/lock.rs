//! One process has the store open: a lock on the file `lock`, in which its process id stands.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use xbus_core::store::StoreError;

/// Holds the lock until it is dropped.
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock of a folder, or says which process has it.
    pub fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("lock");
        let failed =
            |error: std::io::Error| StoreError::Failed(format!("{}: {error}", path.display()));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                return Err(StoreError::Locked(match pid.trim() {
                    "" => format!("another process has {} open", dir.display()),
                    pid => format!("process {pid} has {} open", dir.display()),
                }));
            }
            Err(error) => return Err(failed(error.into())),
        }
        // On a full disk the number may be missing; the lock holds all the same.
        let _ = file.rewind();
        let _ = file.set_len(0);
        let _ = write!(file, "{}", std::process::id());
        Ok(Self { _file: file })
    }
}
