//! The few file operations that the store is made of, behind traits so that tests can fail them,
//! fill the disk and cut the power. All names are relative to the store's one folder.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// One open file.
pub trait DiskFile: Send + Sync {
    /// Reads exactly `buffer.len()` bytes; `UnexpectedEof` when the file ends before.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
    /// Reads what there is, at most `buffer.len()` bytes.
    fn read_some(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes all of `bytes`.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Makes what was written survive a power loss (fdatasync).
    fn sync(&self) -> io::Result<()>;
    /// Reserves room up to `len`, so that writes below it need none; the file then has that length.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// The file's length.
    fn len(&self) -> io::Result<u64>;
}

/// The folder.
pub trait Disk: Send + Sync {
    /// Opens a file for reading and writing; `create` makes it new and empty.
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames within the folder, over what is there.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes renames, creations and removals survive a power loss.
    fn sync_dir(&self) -> io::Result<()>;
    /// The names in the folder.
    fn list(&self) -> io::Result<Vec<String>>;
}

/// A folder of the file system.
pub struct RealDisk {
    dir: PathBuf,
}

impl RealDisk {
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
        }
    }
}

impl Disk for RealDisk {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if create {
            options.create(true).truncate(true);
        }
        Ok(Arc::new(RealFile(options.open(self.dir.join(name))?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, at)
    }

    fn read_some(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match self.0.read_at(&mut buffer[read..], at + read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.0)?)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(()),
            // A file system without fallocate: room is taken by writing zeros.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                let zeros = vec![0u8; 1 << 20];
                let mut at = self.0.metadata()?.len();
                while at < len {
                    let piece = zeros.len().min((len - at) as usize);
                    self.0.write_all_at(&zeros[..piece], at)?;
                    at += piece as u64;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

/// Whether an error says that there is no room: the disk's or the quota's.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Files that are read now and then, a bounded number of them open.
pub struct OpenFiles {
    disk: Arc<dyn Disk>,
    open: Mutex<VecDeque<(String, Arc<dyn DiskFile>)>>,
}

/// How many files stay open for reading.
const OPEN_FILES: usize = 64;

impl OpenFiles {
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            open: Mutex::default(),
        }
    }

    /// The file, opened when it was not.
    pub fn get(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|(known, _)| known == name) {
            if at > 8 {
                if let Some(found) = open.remove(at) {
                    open.push_front(found);
                }
                return Ok(open[0].1.clone());
            }
            return Ok(open[at].1.clone());
        }
        let file = self.disk.open(name, false)?;
        open.push_front((name.to_owned(), file.clone()));
        open.truncate(OPEN_FILES);
        Ok(file)
    }

    /// Forgets a file that is about to go.
    pub fn forget(&self, name: &str) {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(known, _)| known != name);
    }
}
