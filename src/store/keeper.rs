//! The thread that tidies up: indexes of sealed segments, checkpoints, retention.
//!
//! Nothing is deleted before a checkpoint that no longer needs it is on the disk, and nothing that
//! holds an entry that has not left, an open protocol, or damage. A few old entries do not keep a
//! segment for ever: they are copied to the end of the log, with what the journal knows of them.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use xbus_core::Timestamp;
use xbus_core::store::{Change, StoreError};

use crate::checkpoint;
use crate::codec::Reader;
use crate::disk::is_full;
use crate::index::{Rows, index_file};
use crate::log::{Inner, lock};
use crate::pages::page_file;
use crate::record::{Changes, FRAME_HEAD, PutView, SEGMENT_HEAD, Tag, encode, encode_moved};
use crate::segment::{scan, segment_file};
use crate::state::{position, segment_of};

/// Name of the file that keeps room for a checkpoint on a full disk.
pub const CHECKPOINT_RESERVE: &str = "reserve-checkpoint";
/// Bytes that are copied at most to free a segment, as a part of its length.
const COPY_AT_MOST: u64 = 4;

/// A checkpoint on disk.
#[derive(Clone, Copy)]
pub struct Known {
    pub number: u32,
    pub applied: u64,
}

/// The keeper's own memory.
pub struct Keeper {
    inner: Arc<Inner>,
    /// The checkpoints on disk, oldest first.
    known: Vec<Known>,
    next_checkpoint: u32,
    last_size: u64,
    live: BTreeMap<u32, u64>,
    /// Side files that are no longer needed once as many more checkpoints are written.
    emptied: Vec<(u8, u32)>,
    unwritten: Vec<Arc<Rows>>,
    /// The segment being written, and since when it is known to be that.
    tail: (u32, Instant),
    pages_unsynced: Vec<Arc<dyn crate::disk::DiskFile>>,
}

impl Keeper {
    pub fn new(inner: Arc<Inner>, known: Vec<Known>, next: u32, emptied: Vec<u32>) -> Self {
        // Opening synced the log, so what it says has left has left for good.
        let live = lock(&inner.state).live.clone();
        Self {
            inner,
            known,
            next_checkpoint: next,
            last_size: 0,
            live,
            emptied: emptied.into_iter().map(|file| (2, file)).collect(),
            unwritten: Vec::new(),
            tail: (0, Instant::now()),
            pages_unsynced: Vec::new(),
        }
    }

    /// Runs until the store is closed; then writes the last checkpoint.
    pub fn run(mut self) {
        loop {
            let inner = self.inner.clone();
            let mut duties = lock(&inner.duties);
            let idle = duties.sealed.is_empty() && !duties.checkpoint && duties.ahead.is_none();
            if idle && !duties.stop {
                duties = inner
                    .duty
                    .wait_timeout(duties, inner.options.prune_every)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            let sealed = std::mem::take(&mut duties.sealed);
            let asked = std::mem::take(&mut duties.checkpoint);
            let ahead = std::mem::take(&mut duties.ahead);
            let stop = duties.stop;
            drop(duties);
            if let Some(len) = ahead.filter(|_| !stop) {
                inner.ahead.make(&*inner.disk, len);
            }
            self.unwritten.extend(sealed);
            self.write_indexes();
            if stop {
                inner.ahead.remove(&*inner.disk);
                if !inner.has_failed()
                    && let Err(error) = self.checkpoint(true)
                {
                    tracing::warn!(%error, "no checkpoint at the end; opening takes longer");
                }
                return;
            }
            self.age_tail();
            let due = asked || self.is_due();
            if due && let Err(error) = self.checkpoint(false) {
                tracing::warn!(%error, "no checkpoint could be written");
                continue;
            }
            self.prune();
        }
    }

    fn write_indexes(&mut self) {
        let inner = &self.inner;
        self.unwritten.retain(|rows| {
            match rows.write(&inner.disk, &inner.files, Timestamp::now()) {
                Ok(index) => {
                    let mut journal = inner
                        .journal
                        .write()
                        .unwrap_or_else(PoisonError::into_inner);
                    journal.sealing.remove(&rows.segment);
                    journal.sealed.insert(rows.segment, Arc::new(index));
                    false
                }
                Err(error) => {
                    let _ = inner
                        .disk
                        .remove(&format!("{}.new", index_file(rows.segment)));
                    if !is_full(&error) {
                        tracing::warn!(%error, segment = rows.segment, "no index could be written");
                    }
                    true
                }
            }
        });
    }

    fn is_due(&self) -> bool {
        let applied = lock(&self.inner.state).applied;
        let Some(last) = self.known.last() else {
            return segment_of(applied) > 1;
        };
        let behind = u64::from(segment_of(applied).saturating_sub(segment_of(last.applied)));
        // The larger the checkpoint, the more of the log may be read again instead.
        let every = (4 * self.last_size / self.inner.options.segment_size).clamp(1, 4);
        behind >= every
    }

    /// Writes a checkpoint of what is applied now; `last` when the writer has ended.
    pub fn checkpoint(&mut self, last: bool) -> Result<(), StoreError> {
        let inner = self.inner.clone();
        let (bytes, applied, live, emptied) = {
            let mut state = lock(&inner.state);
            let now = Timestamp::now();
            for keys in state.remembered.values_mut() {
                keys.retain(|_, kept| kept.until.is_none_or(|until| until > now));
            }
            state.remembered.retain(|_, keys| !keys.is_empty());
            let bytes = checkpoint::encode(&state, &lock(&inner.damaged), now);
            self.pages_unsynced.extend(state.pages.take_unsynced());
            let emptied = state.pages.take_emptied();
            (bytes, state.applied, state.live.clone(), emptied)
        };
        self.emptied
            .extend(emptied.into_iter().map(|file| (2, file)));
        if !last {
            // What the checkpoint says must not be more than the log says after a power loss.
            inner.barrier()?;
        }
        let failed = |error: io::Error| match is_full(&error) {
            true => StoreError::Full(error.to_string()),
            false => StoreError::Failed(error.to_string()),
        };
        for file in &self.pages_unsynced {
            file.sync().map_err(failed)?;
        }
        self.pages_unsynced.clear();
        let number = self.next_checkpoint;
        let disk = &*inner.disk;
        let mut written = checkpoint::write(disk, number, &bytes);
        if written.as_ref().is_err_and(is_full) {
            let _ = disk.remove(CHECKPOINT_RESERVE);
            written = checkpoint::write(disk, number, &bytes);
        } else {
            let _ = keep_reserve(&inner, bytes.len() as u64);
        }
        written.map_err(failed)?;
        self.next_checkpoint += 1;
        self.last_size = bytes.len() as u64;
        self.live = live;
        self.known.push(Known { number, applied });
        while self.known.len() > 2 {
            let _ = disk.remove(&checkpoint::checkpoint_file(self.known.remove(0).number));
        }
        self.emptied.retain_mut(|(wait, file)| {
            *wait -= 1;
            let name = page_file(*file);
            if *wait == 0 {
                inner.files.forget(&name);
                let _ = disk.remove(&name);
            }
            *wait > 0
        });
        let pages = lock(&inner.state).pages.bytes();
        inner.other_bytes.store(
            self.last_size * self.known.len() as u64 + pages,
            Ordering::Relaxed,
        );
        Ok(())
    }

    /// Ends a segment that is old, so that retention can take it in time.
    fn age_tail(&mut self) {
        let inner = &self.inner;
        let segment = segment_of(lock(&inner.state).applied);
        if self.tail.0 != segment {
            self.tail = (segment, Instant::now());
        } else if self.tail.1.elapsed() > inner.options.retention.keep / 8 {
            inner.roll_wanted.store(true, Ordering::Relaxed);
        }
    }

    /// Deletes what retention lets go.
    fn prune(&mut self) {
        loop {
            let Some(oldest) = self.oldest_to_go() else {
                return;
            };
            if lock(&self.inner.state).live.contains_key(&oldest)
                && !self.copy_forward(oldest).unwrap_or(false)
            {
                return;
            }
            // The checkpoint that recovery would fall back to must not need it either.
            let needed = self
                .known
                .first()
                .map_or(0, |known| segment_of(known.applied));
            let live = self.live.contains_key(&oldest) || self.known.is_empty();
            if oldest >= needed || live {
                if self.checkpoint(false).is_err() {
                    return;
                }
                let needed = self
                    .known
                    .first()
                    .map_or(0, |known| segment_of(known.applied));
                if oldest >= needed || self.live.contains_key(&oldest) {
                    return;
                }
            }
            let inner = &self.inner;
            {
                let mut journal = inner
                    .journal
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                journal.sealed.remove(&oldest);
            }
            lock(&inner.segments).remove(&oldest);
            for name in [segment_file(oldest), index_file(oldest)] {
                inner.files.forget(&name);
                if let Err(error) = inner.disk.remove(&name) {
                    tracing::warn!(%error, name, "not deleted");
                }
            }
        }
    }

    /// The oldest segment, when it is past its time or the log is too large.
    fn oldest_to_go(&self) -> Option<u32> {
        let inner = &self.inner;
        let (oldest, total) = {
            let segments = lock(&inner.segments);
            let mut numbers = segments.keys();
            let oldest = *numbers.next()?;
            numbers.next()?;
            (oldest, segments.values().sum::<u64>())
        };
        if lock(&inner.damaged).contains(&oldest) {
            return None;
        }
        let journal = inner.journal.read().unwrap_or_else(PoisonError::into_inner);
        let index = journal.sealed.get(&oldest)?;
        let indexes: u64 = journal.sealed.values().map(|index| index.bytes).sum();
        let retention = inner.options.retention;
        let old = index.summary.newest < Timestamp::now().before(retention.keep).as_micros();
        (old || total + indexes > retention.max_size).then_some(oldest)
    }

    /// Copies the entries that keep a segment to the end of the log, when they are few.
    fn copy_forward(&self, segment: u32) -> Result<bool, StoreError> {
        let inner = &self.inner;
        let failed = |error: io::Error| StoreError::Failed(error.to_string());
        let name = segment_file(segment);
        let file = inner.files.get(&name).map_err(failed)?;
        let at_most = file.len().map_err(failed)? / COPY_AT_MOST;
        let (mut moved, mut ids) = (Vec::new(), Vec::new());
        let mut too_many = false;
        scan(
            &*file,
            SEGMENT_HEAD as u32,
            0,
            true,
            &mut |offset, _, changes| {
                for (tag, at, body) in Changes::new(changes) {
                    if too_many || !matches!(tag, Tag::Put | Tag::Moved) {
                        continue;
                    }
                    let Some(put) = PutView::read(&mut Reader::new(body)) else {
                        continue;
                    };
                    let place = position(segment, offset + (FRAME_HEAD + at) as u32);
                    let known = lock(&inner.state).locate(put.queue, put.key, put.seq)?;
                    if known == Some(place) {
                        encode_moved(body, &mut moved);
                        if !put.target.is_empty() {
                            ids.push(put.id);
                        }
                        too_many = moved.len() as u64 > at_most;
                    }
                }
                Ok(())
            },
        )
        .map_err(failed)?;
        if too_many || moved.is_empty() {
            return Ok(false);
        }
        let (mut numbers, now) = (Vec::new(), Timestamp::now());
        for entry in inner.journal_of(&ids)? {
            encode(&Change::Journal(entry), None, now, &mut moved, &mut numbers);
        }
        inner.insert(&mut |out| out.extend_from_slice(&moved))?;
        Ok(!lock(&inner.state).live.contains_key(&segment))
    }
}

fn keep_reserve(inner: &Inner, last: u64) -> io::Result<()> {
    let wanted = (2 * last).next_multiple_of(64 << 10);
    if let Ok(file) = inner.disk.open(CHECKPOINT_RESERVE, false)
        && file.len()? >= wanted
    {
        return Ok(());
    }
    let file = inner.disk.open(CHECKPOINT_RESERVE, true)?;
    file.allocate(wanted)
}
