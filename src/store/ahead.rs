//! The next segment's file, written with zeros before it is needed.
//!
//! Room that is only reserved has to be marked as written in the file system's own journal when
//! something is put there, and each sync of the log waits for that: it takes about twice as long as
//! one of a file that was written before. So the keeper writes a file of zeros when a segment is
//! half full, by bytes or by rows of the journal, and the writer goes on in it when the segment is full.
//! It is as long as the next segment will be if messages stay as they are.
//!
//! Absent: any promise. Where there is no such file, not in time or for want of room, the writer
//! makes a segment of reserved room. What is left of one is swept at the next opening.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::Options;
use crate::disk::{Disk, DiskFile, is_full};
use crate::log::lock;

/// Its name until it is a segment.
pub const AHEAD: &str = "ahead.new";
/// Bytes that are written and synced at once, so that the log's own syncs are not held up by all of it.
const PIECE: usize = 1 << 20;
/// So much is written to a segment of reserved room before it gives way to one of zeros. An idle
/// bus makes none.
const GIVES_WAY: u64 = 1 << 20;
/// The shortest file that is made, unless segments are shorter.
const LEAST: u64 = 4 << 20;

/// Where the keeper leaves the file for the writer.
#[derive(Default)]
pub struct Ahead {
    file: Mutex<Option<(Arc<dyn DiskFile>, u64)>>,
    is_there: AtomicBool,
}

impl Ahead {
    /// Whether there is a file.
    pub fn is_there(&self) -> bool {
        self.is_there.load(Ordering::Acquire)
    }

    /// Makes a file of `len` bytes. What keeps it from being made is told to the log only: whoever
    /// writes meets the same when it matters.
    pub fn make(&self, disk: &dyn Disk, len: u64) {
        if self.is_there() {
            return;
        }
        match zeros(disk, len) {
            Ok(file) => {
                *lock(&self.file) = Some((file, len));
                self.is_there.store(true, Ordering::Release);
            }
            Err(error) => {
                let _ = disk.remove(AHEAD);
                if !is_full(&error) {
                    tracing::warn!(%error, "no segment could be made ahead");
                }
            }
        }
    }

    /// Its length, 0 where there is none.
    pub fn len(&self) -> u64 {
        lock(&self.file).as_ref().map_or(0, |(_, len)| *len)
    }

    /// Takes the file, if something of `least` bytes goes into it; its length beside it.
    pub fn take(&self, least: u64) -> Option<(Arc<dyn DiskFile>, u64)> {
        let taken = lock(&self.file).take_if(|(_, len)| *len >= least);
        if taken.is_some() {
            self.is_there.store(false, Ordering::Relaxed);
        }
        taken
    }

    /// Removes the file, if there is one.
    pub fn remove(&self, disk: &dyn Disk) {
        if self.take(0).is_some() {
            let _ = disk.remove(AHEAD);
        }
    }
}

fn zeros(disk: &dyn Disk, len: u64) -> io::Result<Arc<dyn DiskFile>> {
    let file = disk.open(AHEAD, true)?;
    // All of the room first, so that it lies together, and is refused at once when there is not enough.
    file.allocate(len)?;
    let piece = vec![0; PIECE.min(len as usize)];
    let mut at = 0;
    while at < len {
        let part = piece.len().min((len - at) as usize);
        file.write_at(&piece[..part], at)?;
        file.sync()?;
        at += part as u64;
    }
    Ok(file)
}

/// What is known of how the segment that is being written came to be.
#[derive(Clone, Copy)]
pub struct Ground {
    /// Its room was written before.
    pub is_written: bool,
    /// Its length when writing it began.
    pub from: u64,
    /// The next one has been asked for.
    pub asked: bool,
}

impl Ground {
    /// Of a segment of reserved room whose writing begins at `from`.
    pub fn reserved(from: u64) -> Self {
        Self {
            is_written: false,
            from,
            asked: false,
        }
    }

    /// Of a segment whose room was written before.
    pub fn written() -> Self {
        Self {
            is_written: true,
            from: 0,
            asked: false,
        }
    }

    /// Whether it is time to ask for the next, in a segment that has `len` bytes of `capacity`, and `rows` rows of
    /// the journal; once. Gives how long it should be, in bytes.
    pub fn asks(&mut self, len: u64, capacity: u64, rows: usize, options: &Options) -> Option<u64> {
        let half = len >= capacity / 2 || rows >= options.segment_rows / 2;
        let due = half || (!self.is_written && len - self.from >= GIVES_WAY);
        if !due || std::mem::replace(&mut self.asked, true) {
            return None;
        }
        // What so many rows will take, and a quarter more.
        let share = rows.max(1) as u64;
        let expected = len.saturating_mul(options.segment_rows as u64) / share;
        let wanted = expected.saturating_add(expected / 4).max(LEAST);
        Some(wanted.min(options.segment_size))
    }
}
