//! Opening: the newest checkpoint that is whole, then the log behind it.
//!
//! A torn end of the last segment is cut off: nobody was told that it is kept. Damage anywhere else
//! is said with file and offset, the good frames behind it count, and the segment is never deleted.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use xbus_core::Timestamp;
use xbus_core::store::StoreError;

use crate::Options;
use crate::ahead::Ground;
use crate::checkpoint;
use crate::disk::{Disk, OpenFiles, is_full};
use crate::index::{IndexFile, Rows};
use crate::keeper::Known;
use crate::log::{
    Inner, Journal, RESERVE, Tail, apply_frame, create_segment, ensure_reserve, lock,
};
use crate::pages::Pages;
use crate::record::{SEGMENT_HEAD, SEGMENT_MAGIC};
use crate::segment::{number_of, scan, segment_file};
use crate::state::{State, offset_of, position, segment_of};

/// What opening found and made.
pub struct Opened {
    pub inner: Inner,
    pub tail: Tail,
    pub has_reserve: bool,
    pub known: Vec<Known>,
    pub next_checkpoint: u32,
    pub emptied: Vec<u32>,
    /// Damage that was found, in words.
    pub damage: Vec<String>,
}

struct Folder {
    segments: Vec<u32>,
    checkpoints: Vec<u32>,
    pages: Vec<u32>,
}

fn look(disk: &dyn Disk) -> io::Result<Folder> {
    let mut folder = Folder {
        segments: Vec::new(),
        checkpoints: Vec::new(),
        pages: Vec::new(),
    };
    for name in disk.list()? {
        if name.ends_with(".new") {
            let _ = disk.remove(&name);
        }
        folder.segments.extend(number_of(&name, ".log"));
        folder.checkpoints.extend(number_of(&name, ".checkpoint"));
        folder.pages.extend(number_of(&name, ".pages"));
    }
    folder.segments.sort_unstable();
    folder.checkpoints.sort_unstable();
    folder.pages.sort_unstable();
    Ok(folder)
}

/// Opens what is in the folder, or makes a new store there.
pub fn open(disk: Arc<dyn Disk>, mut options: Options) -> Result<Opened, StoreError> {
    options.segment_size = options.segment_size.clamp(4096, 1 << 30);
    options.page_entries = options.page_entries.clamp(2, 1 << 16);
    let cannot = |error: io::Error| match is_full(&error) {
        true => StoreError::Full(error.to_string()),
        false => StoreError::Failed(error.to_string()),
    };
    let folder = look(&*disk).map_err(cannot)?;
    let files = Arc::new(OpenFiles::new(disk.clone()));
    let has_reserve = match disk.open(RESERVE, false).and_then(|file| file.len()) {
        Ok(len) if len >= options.reserve => true,
        _ => ensure_reserve(&*disk, options.reserve).is_ok(),
    };
    let mut damage = Vec::new();
    let next_page = folder.pages.last().map_or(0, |last| last + 1);
    let new_pages = || Pages::new(disk.clone(), files.clone(), options.page_entries, next_page);
    let (mut state, mut damaged, known) =
        match newest_checkpoint(&*disk, &folder, &new_pages, &mut damage) {
            Some((state, damaged, known)) => (state, damaged, known),
            None => (State::new(new_pages()), Vec::new(), Vec::new()),
        };
    let mut replay = Replay {
        disk: &*disk,
        files: &files,
        folder: &folder,
        journal: Journal::default(),
        sealed: Vec::new(),
        segments: BTreeMap::new(),
        damaged: &mut damaged,
        damage: &mut damage,
        last_end: 0,
        last_number: 0,
    };
    replay
        .run(&mut state)
        .map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let Replay {
        journal,
        sealed,
        segments,
        last_end,
        last_number,
        ..
    } = replay;
    state.next = state.next.max(last_number + 1);
    let mut journal = journal;
    let mut segments = segments;
    let (tail, is_now_full) =
        tail(&*disk, &options, &folder, last_end, &damaged, state.applied).map_err(cannot)?;
    if journal.active.segment != tail.number {
        journal.active = Rows::new(tail.number);
    }
    state.applied = state.applied.max(position(tail.number, tail.len as u32));
    segments.insert(tail.number, tail.capacity);
    let mut sealing = sealed;
    if let Some(at) = sealing.iter().position(|rows| rows.segment == tail.number) {
        let rows = sealing.remove(at);
        if let Ok(rows) = Arc::try_unwrap(rows) {
            journal.active = rows;
        }
    }
    for rows in &sealing {
        journal.sealing.insert(rows.segment, rows.clone());
    }
    let emptied = folder.pages.iter().copied();
    let emptied = emptied.filter(|file| !state.pages.uses(*file)).collect();
    for text in &damage {
        tracing::error!("{text}");
    }
    let inner = Inner::new(
        options,
        disk,
        files.clone(),
        state,
        journal,
        segments,
        damaged,
    );
    lock(&inner.duties).sealed = sealing;
    if is_now_full {
        inner
            .is_full
            .store(true, std::sync::atomic::Ordering::Relaxed);
    }
    Ok(Opened {
        inner,
        tail,
        has_reserve,
        known,
        next_checkpoint: folder.checkpoints.last().map_or(1, |last| last + 1),
        emptied,
        damage,
    })
}

/// The newest checkpoint that is whole, its pages too, and what checkpoints there are up to it.
fn newest_checkpoint(
    disk: &dyn Disk,
    folder: &Folder,
    new_pages: &dyn Fn() -> Pages,
    damage: &mut Vec<String>,
) -> Option<(State, Vec<u32>, Vec<Known>)> {
    for (at, &number) in folder.checkpoints.iter().enumerate().rev() {
        let name = checkpoint::checkpoint_file(number);
        let read = || -> io::Result<Vec<u8>> {
            let file = disk.open(&name, false)?;
            let mut bytes = vec![0u8; file.len()? as usize];
            file.read_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let decoded = read()
            .ok()
            .and_then(|bytes| checkpoint::decode(&bytes, new_pages()));
        match decoded {
            Some((state, damaged)) if pages_are_whole(&state) => {
                let mut known: Vec<Known> = folder.checkpoints[..at]
                    .iter()
                    .map(|&number| Known { number, applied: 0 })
                    .collect();
                known.push(Known {
                    number,
                    applied: state.applied,
                });
                return Some((state, damaged, known));
            }
            _ => damage.push(format!(
                "{name} is damaged: an older state and the log are read"
            )),
        }
    }
    None
}

fn pages_are_whole(state: &State) -> bool {
    let lanes = state.queues.values().flat_map(|queue| queue.lanes.values());
    lanes.flat_map(|lane| &lane.pages).all(|page| {
        state
            .pages
            .read(page.handle)
            .is_ok_and(|places| places.len() == page.count as usize)
    })
}

struct Replay<'a> {
    disk: &'a dyn Disk,
    files: &'a Arc<OpenFiles>,
    folder: &'a Folder,
    journal: Journal,
    sealed: Vec<Arc<Rows>>,
    segments: BTreeMap<u32, u64>,
    damaged: &'a mut Vec<u32>,
    damage: &'a mut Vec<String>,
    last_end: u64,
    last_number: u64,
}

impl Replay<'_> {
    fn run(&mut self, state: &mut State) -> io::Result<()> {
        let from = segment_of(state.applied);
        let mut previous = None;
        for &segment in &self.folder.segments {
            if let Some(previous) = previous
                && segment != previous + 1
                && segment > from
            {
                self.damage.push(format!(
                    "segments {} to {} are missing",
                    segment_file(previous + 1),
                    segment_file(segment - 1)
                ));
            }
            previous = Some(segment);
            let is_last = self.folder.segments.last() == Some(&segment);
            let file = self.disk.open(&segment_file(segment), false)?;
            self.segments.insert(segment, file.len()?);
            if segment < from
                && !is_last
                && let Ok(index) = IndexFile::open(self.files.clone(), segment)
            {
                self.journal.sealed.insert(segment, Arc::new(index));
                continue;
            }
            self.read(segment, &*file, is_last, state)?;
        }
        Ok(())
    }

    fn read(
        &mut self,
        segment: u32,
        file: &dyn crate::disk::DiskFile,
        is_last: bool,
        state: &mut State,
    ) -> io::Result<()> {
        let name = segment_file(segment);
        let mut head = [0u8; SEGMENT_HEAD];
        let read = file.read_some(&mut head, 0)?;
        if read == SEGMENT_HEAD && head[..12] != SEGMENT_MAGIC {
            if head[..10] == SEGMENT_MAGIC[..10] {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{name} is of another version of the format"),
                ));
            }
            self.damage.push(format!("{name}: damaged at byte 0"));
            self.damaged.push(segment);
        }
        let mut rows = Rows::new(segment);
        let applied = state.applied;
        let mut last = self.last_number;
        let scanned = scan(
            file,
            SEGMENT_HEAD as u32,
            self.last_number,
            !is_last,
            &mut |offset, head, changes| {
                last = head.number;
                let place = position(segment, offset);
                let state = (place >= applied).then_some(&mut *state);
                apply_frame(state, Some(&mut rows), segment, offset, changes)
            },
        )?;
        self.last_number = last;
        for at in &scanned.damage {
            self.damage.push(format!(
                "{name}: damaged at byte {at}; what is behind it counts"
            ));
            if !self.damaged.contains(&segment) {
                self.damaged.push(segment);
            }
        }
        let end = position(segment, scanned.end);
        if end < applied && segment_of(applied) == segment {
            self.damage.push(format!(
                "{name}: ends at byte {} and was known to reach {}",
                scanned.end,
                offset_of(applied)
            ));
            if !self.damaged.contains(&segment) {
                self.damaged.push(segment);
            }
        }
        state.applied = applied.max(end);
        let newest = rows.summary.received.1;
        rows.summary.newest = if newest == i64::MIN {
            Timestamp::now().as_micros()
        } else {
            newest
        };
        self.sealed.push(Arc::new(rows));
        if is_last {
            if scanned.torn && scanned.damage.is_empty() {
                tracing::warn!(
                    "{name}: an unfinished write at byte {} was cut off; nothing acknowledged is lost",
                    scanned.end
                );
            }
            self.last_end = u64::from(scanned.end);
        }
        Ok(())
    }
}

/// Where writing goes on: in the last segment when it has room and is whole, else in a new one.
/// Says too whether there was no room for it.
fn tail(
    disk: &dyn Disk,
    options: &Options,
    folder: &Folder,
    end: u64,
    damaged: &[u32],
    applied: u64,
) -> io::Result<(Tail, bool)> {
    let Some(&last) = folder.segments.last() else {
        let number = segment_of(applied) + 1;
        return Ok((create_segment(disk, number, options.segment_size)?, false));
    };
    let file = disk.open(&segment_file(last), false)?;
    let is_whole = !damaged.contains(&last) && segment_of(applied) <= last;
    if is_whole {
        // Zeros again behind the last good frame.
        file.set_len(end)?;
    }
    if is_whole && end < options.segment_size / 4 * 3 {
        let room = file.allocate(options.segment_size);
        file.sync()?;
        match room {
            Ok(()) => {
                let tail = Tail {
                    number: last,
                    file,
                    len: end,
                    capacity: options.segment_size,
                    synced: end,
                    ground: Ground::reserved(end),
                };
                return Ok((tail, false));
            }
            Err(error) if is_full(&error) => {}
            Err(error) => return Err(error),
        }
    }
    file.sync()?;
    let next = last.max(segment_of(applied)) + 1;
    match create_segment(disk, next, options.segment_size) {
        Ok(tail) => Ok((tail, false)),
        // Opening succeeds all the same: lanes can be read, and drained from the reserve.
        Err(error) if is_full(&error) && is_whole => Ok((
            Tail {
                number: last,
                file,
                len: end,
                capacity: end,
                synced: end,
                ground: Ground::reserved(end),
            },
            true,
        )),
        Err(error) => Err(error),
    }
}
