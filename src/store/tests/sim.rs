//! A disk in memory: it fails when told to, fills up, and loses what was not synced when the power
//! is cut, in any order and torn in the middle of a write.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use crate::disk::{Disk, DiskFile};
use crate::log::lock;

/// Random numbers that a seed repeats (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Default)]
struct Data {
    /// What survives for sure.
    durable: Vec<u8>,
    now: Vec<u8>,
    /// Writes and cuts since the last sync, in order.
    pending: Vec<Pending>,
}

#[derive(Clone)]
enum Pending {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Default)]
struct Shared {
    files: BTreeMap<String, Arc<Mutex<Data>>>,
    /// Names as a power loss would leave them at least.
    durable_names: BTreeMap<String, Arc<Mutex<Data>>>,
    capacity: Option<u64>,
    fail_syncs: bool,
    fail_writes: bool,
    off: bool,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<Shared>>);

impl SimDisk {
    /// Bytes for which there is room in all.
    pub fn limit(&self, bytes: Option<u64>) {
        lock(&self.0).capacity = bytes;
    }

    pub fn used(&self) -> u64 {
        used(&lock(&self.0))
    }

    pub fn fail_syncs(&self) {
        lock(&self.0).fail_syncs = true;
    }

    pub fn fail_writes(&self) {
        lock(&self.0).fail_writes = true;
    }

    /// Cuts the power: this disk does nothing more, and another has what survived.
    pub fn cut_power(&self, random: &mut Random) -> SimDisk {
        let mut shared = lock(&self.0);
        shared.off = true;
        let mut after = Shared::default();
        // Each name is as it was synced or as it is now: either may be, name by name.
        let mut names: Vec<String> = shared.files.keys().cloned().collect();
        names.extend(shared.durable_names.keys().cloned());
        names.sort();
        names.dedup();
        for name in names {
            let side = if random.chance(50) {
                shared.files.get(&name)
            } else {
                shared.durable_names.get(&name)
            };
            if let Some(data) = side {
                let data = lock(data);
                let mut left = data.durable.clone();
                for pending in &data.pending {
                    match pending {
                        Pending::Length(len) if random.chance(50) => left.resize(*len, 0),
                        Pending::Write(at, bytes) if random.chance(60) => {
                            // Sectors reach the disk one by one.
                            for (index, sector) in bytes.chunks(512).enumerate() {
                                if random.chance(80) {
                                    put(&mut left, at + index * 512, sector);
                                }
                            }
                        }
                        _ => {}
                    }
                }
                let data = Arc::new(Mutex::new(Data {
                    durable: left.clone(),
                    now: left,
                    pending: Vec::new(),
                }));
                after.files.insert(name.clone(), data.clone());
                after.durable_names.insert(name, data);
            }
        }
        SimDisk(Arc::new(Mutex::new(after)))
    }

    /// Ends a process: all that was written is there.
    pub fn after_kill(&self) -> SimDisk {
        let shared = lock(&self.0);
        let mut after = Shared::default();
        for (name, data) in &shared.files {
            let data = Arc::new(Mutex::new(lock(data).clone()));
            after.files.insert(name.clone(), data.clone());
            after.durable_names.insert(name.clone(), data);
        }
        SimDisk(Arc::new(Mutex::new(after)))
    }

    pub fn names(&self) -> Vec<String> {
        lock(&self.0).files.keys().cloned().collect()
    }

    /// Flips a bit.
    pub fn damage(&self, name: &str, at: usize) {
        let shared = lock(&self.0);
        let mut data = lock(&shared.files[name]);
        data.now[at] ^= 0x40;
        data.durable = data.now.clone();
        data.pending.clear();
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let shared = lock(&self.0);
        lock(&shared.files[name]).now.clone()
    }
}

fn put(to: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if to.len() < at + bytes.len() {
        to.resize(at + bytes.len(), 0);
    }
    to[at..at + bytes.len()].copy_from_slice(bytes);
}

fn used(shared: &Shared) -> u64 {
    shared
        .files
        .values()
        .map(|data| lock(data).now.len() as u64)
        .sum()
}

fn off() -> io::Error {
    io::Error::other("the power is off")
}

impl Disk for SimDisk {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut shared = lock(&self.0);
        if shared.off {
            return Err(off());
        }
        if create {
            // A new file under the name; who has the old one open keeps it.
            shared.files.insert(name.to_owned(), Arc::default());
        }
        let data = shared
            .files
            .get(name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, name.to_owned()))?;
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            data: data.clone(),
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut shared = lock(&self.0);
        if shared.off {
            return Err(off());
        }
        let data = shared
            .files
            .remove(from)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, from.to_owned()))?;
        shared.files.insert(to.to_owned(), data);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut shared = lock(&self.0);
        if shared.off {
            return Err(off());
        }
        match shared.files.remove(name) {
            Some(_) => Ok(()),
            None => Err(io::Error::new(io::ErrorKind::NotFound, name.to_owned())),
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut shared = lock(&self.0);
        if shared.off {
            return Err(off());
        }
        shared.durable_names = shared.files.clone();
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }
}

struct SimFile {
    disk: SimDisk,
    data: Arc<Mutex<Data>>,
}

impl SimFile {
    /// Checks that the file may become so long.
    fn grow(&self, len: usize) -> io::Result<()> {
        let shared = lock(&self.disk.0);
        if shared.off {
            return Err(off());
        }
        if shared.fail_writes {
            return Err(io::Error::other("write error"));
        }
        let now = lock(&self.data).now.len();
        match shared.capacity {
            Some(capacity) if len > now && used(&shared) + (len - now) as u64 > capacity => {
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            _ => Ok(()),
        }
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        match self.read_some(buffer, at)? {
            read if read == buffer.len() => Ok(()),
            _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }

    fn read_some(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let data = lock(&self.data);
        let rest = data.now.get(at as usize..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.grow(at as usize + bytes.len())?;
        let mut data = lock(&self.data);
        put(&mut data.now, at as usize, bytes);
        data.pending
            .push(Pending::Write(at as usize, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let shared = lock(&self.disk.0);
        if shared.off {
            return Err(off());
        }
        if shared.fail_syncs {
            return Err(io::Error::other("sync error"));
        }
        drop(shared);
        let mut data = lock(&self.data);
        data.durable = data.now.clone();
        data.pending.clear();
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.grow(len as usize)?;
        let mut data = lock(&self.data);
        if data.now.len() < len as usize {
            data.now.resize(len as usize, 0);
            data.pending.push(Pending::Length(len as usize));
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.grow(len as usize)?;
        let mut data = lock(&self.data);
        data.now.resize(len as usize, 0);
        data.pending.push(Pending::Length(len as usize));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.data).now.len() as u64)
    }
}
