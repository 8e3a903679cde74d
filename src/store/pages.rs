//! Pages: the middle parts of long lanes, as positions in side files.
//!
//! Pages hold nothing that the log does not say; they are written once, never changed, and synced
//! by the checkpoint that refers to them. What is written after the last checkpoint is made anew
//! when the log is replayed.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile, OpenFiles};

/// An entry's number and the place of its put in the log.
pub type Place = (u64, u64);

/// A page's place: file number and slot.
pub type Handle = u64;

/// Pages of one side file.
const SLOTS: u32 = 1024;

/// All side files.
pub struct Pages {
    disk: Arc<dyn Disk>,
    files: Arc<OpenFiles>,
    /// Entries a page has room for.
    pub capacity: usize,
    live: BTreeMap<u32, u32>,
    current: u32,
    next_slot: u32,
    writing: Option<Arc<dyn DiskFile>>,
    unsynced: BTreeMap<u32, Arc<dyn DiskFile>>,
    emptied: Vec<u32>,
}

/// Name of a side file.
pub fn page_file(number: u32) -> String {
    format!("{number:08x}.pages")
}

impl Pages {
    /// `current` is a number that no side file on the disk has.
    pub fn new(disk: Arc<dyn Disk>, files: Arc<OpenFiles>, capacity: usize, current: u32) -> Self {
        Self {
            disk,
            files,
            capacity,
            live: BTreeMap::new(),
            current,
            next_slot: 0,
            writing: None,
            unsynced: BTreeMap::new(),
            emptied: Vec::new(),
        }
    }

    fn slot_size(&self) -> u64 {
        8 + self.capacity as u64 * 16
    }

    /// Writes a page.
    pub fn write(&mut self, places: impl ExactSizeIterator<Item = Place>) -> io::Result<Handle> {
        let mut bytes = Vec::with_capacity(self.slot_size() as usize);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(places.len() as u32).to_le_bytes());
        for (seq, position) in places {
            bytes.extend_from_slice(&seq.to_le_bytes());
            bytes.extend_from_slice(&position.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[4..]);
        bytes[0..4].copy_from_slice(&crc.to_le_bytes());
        if self.next_slot == SLOTS {
            self.writing = None;
            self.retire(self.current);
            self.current += 1;
            self.next_slot = 0;
        }
        let file = match &self.writing {
            Some(file) => file.clone(),
            None => {
                let file = self.disk.open(&page_file(self.current), true)?;
                self.writing = Some(file.clone());
                file
            }
        };
        file.write_at(&bytes, u64::from(self.next_slot) * self.slot_size())?;
        self.unsynced.entry(self.current).or_insert(file);
        *self.live.entry(self.current).or_default() += 1;
        let handle = u64::from(self.current) << 32 | u64::from(self.next_slot);
        self.next_slot += 1;
        Ok(handle)
    }

    /// Reads a page back.
    pub fn read(&self, handle: Handle) -> io::Result<Vec<Place>> {
        read_page(&self.files, self.capacity, handle)
    }

    /// Says that nothing refers to a page any more.
    pub fn free(&mut self, handle: Handle) {
        let file = (handle >> 32) as u32;
        if let Some(live) = self.live.get_mut(&file) {
            *live = live.saturating_sub(1);
            self.retire(file);
        }
    }

    fn retire(&mut self, file: u32) {
        if self.live.get(&file) == Some(&0) && (file != self.current || self.next_slot == SLOTS) {
            self.live.remove(&file);
            self.emptied.push(file);
        }
    }

    /// Counts a page that a checkpoint refers to.
    pub fn adopt(&mut self, handle: Handle) {
        *self.live.entry((handle >> 32) as u32).or_default() += 1;
    }

    /// Whether any page refers to the file.
    pub fn uses(&self, file: u32) -> bool {
        self.live.contains_key(&file) || (file == self.current && self.next_slot > 0)
    }

    /// Files that must be synced before a checkpoint counts.
    pub fn take_unsynced(&mut self) -> Vec<Arc<dyn DiskFile>> {
        std::mem::take(&mut self.unsynced).into_values().collect()
    }

    /// Files that nothing refers to any more, but for older checkpoints.
    pub fn take_emptied(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.emptied)
    }

    /// Bytes of the side files in use, about.
    pub fn bytes(&self) -> u64 {
        self.live.len() as u64 * u64::from(SLOTS) * self.slot_size()
    }
}

/// Reads a page without the lock of [`Pages`].
pub fn read_page(files: &OpenFiles, capacity: usize, handle: Handle) -> io::Result<Vec<Place>> {
    let name = page_file((handle >> 32) as u32);
    let at = (handle & 0xffff_ffff) * (8 + capacity as u64 * 16);
    let file = files.get(&name)?;
    let mut head = [0u8; 8];
    file.read_at(&mut head, at)?;
    let crc = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let count = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    let damaged = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{name}: page at {at} is damaged"),
        )
    };
    if count > capacity {
        return Err(damaged());
    }
    let mut bytes = vec![0u8; 4 + count * 16];
    bytes[..4].copy_from_slice(&head[4..]);
    file.read_at(&mut bytes[4..], at + 8)?;
    if crc32c::crc32c(&bytes) != crc {
        return Err(damaged());
    }
    Ok(bytes[4..]
        .chunks_exact(16)
        .map(|pair| {
            let mut seq = [0u8; 8];
            let mut position = [0u8; 8];
            seq.copy_from_slice(&pair[..8]);
            position.copy_from_slice(&pair[8..]);
            (u64::from_le_bytes(seq), u64::from_le_bytes(position))
        })
        .collect())
}
