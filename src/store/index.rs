//! What finds things in a segment: by message, by route, outcome and time, by business key.
//!
//! For the segment that is being written it is rows in memory; a sealed segment has a file of
//! sorted rows beside it. Rows only point into the log: whoever finds something reads it there and
//! checks it. An index can be lost without harm, it is made anew from its segment.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use ahash::AHashMap as HashMap;
use xbus_core::store::{Outcome, Settlement};
use xbus_core::{MessageId, Timestamp};

use crate::codec::{Reader, hash_id, hash_key, put_str, put_u64};
use crate::disk::{Disk, DiskFile, OpenFiles};
use crate::record::{Tag, View};

const MAGIC: [u8; 8] = *b"xbusix01";
/// Every how many sorted rows memory knows a hash.
const FENCE: usize = 256;
/// Size of every row but the notable ones.
const ROW: usize = 16;
const NOTABLE: usize = 17;
/// How many journal rows one read takes.
const ROWS_AT_ONCE: usize = 4096;
/// The class of a pending message whose targets wait in lanes of this store.
pub const PENDING_IN_LANES: u8 = 9;
/// A route's number when there are more routes than numbers.
const ANY_ROUTE: u16 = u16::MAX;

/// Something that is said of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRow {
    pub hash: u64,
    pub offset: u32,
    pub tag: u8,
}

/// A journal entry.
#[derive(Clone, Copy, Debug)]
pub struct JournalRow {
    pub received: i64,
    pub offset: u32,
    pub route: u16,
    pub class: u8,
}

#[derive(Clone, Copy, Debug)]
struct KeyRow {
    hash: u64,
    offset: u32,
}

/// What is known of a segment without reading its index.
#[derive(Clone, Debug)]
pub struct Summary {
    pub routes: Vec<Arc<str>>,
    pub classes: [u64; 10],
    pub received: (i64, i64),
    /// Of the ids that rows are about, in milliseconds.
    pub made: (u64, u64),
    /// Puts, moved entries and protocol records: what may keep the segment.
    pub pins: u64,
    /// When the last of it was written.
    pub newest: i64,
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            routes: Vec::new(),
            classes: [0; 10],
            received: (i64::MAX, i64::MIN),
            made: (u64::MAX, 0),
            pins: 0,
            newest: 0,
        }
    }
}

/// What rows are asked for.
#[derive(Clone, Debug, Default)]
pub struct RowFilter {
    pub route: Option<Arc<str>>,
    /// Which classes, one bit each; 0 for all.
    pub classes: u16,
    pub since: Option<i64>,
    pub until: Option<i64>,
}

impl Summary {
    /// Whether rows of the segment may be about this message.
    pub fn may_know(&self, id: MessageId) -> bool {
        let made = made(id);
        self.made.0 <= made && made <= self.made.1
    }

    /// Whether journal entries of the segment may pass; `Some` is the route's number.
    pub fn may_pass(&self, filter: &RowFilter) -> Option<Option<u16>> {
        if filter.since.is_some_and(|since| self.received.1 < since)
            || filter.until.is_some_and(|until| self.received.0 >= until)
        {
            return None;
        }
        if filter.classes != 0
            && !(0..10).any(|at| filter.classes & (1 << at) != 0 && self.classes[at] > 0)
        {
            return None;
        }
        match &filter.route {
            None => Some(None),
            Some(route) => match self.routes.iter().position(|known| known == route) {
                Some(at) => Some(Some(at as u16)),
                None if self.routes.len() >= usize::from(ANY_ROUTE) => Some(Some(ANY_ROUTE)),
                None => None,
            },
        }
    }
}

fn made(id: MessageId) -> u64 {
    (id.as_u128() >> 80) as u64
}

/// The bit of an outcome's class.
pub fn class_bit(outcome: Outcome) -> u16 {
    1 << class_of(outcome)
}

fn class_of(outcome: Outcome) -> u8 {
    Outcome::ALL
        .iter()
        .position(|other| *other == outcome)
        .unwrap_or_default() as u8
}

impl JournalRow {
    /// Whether the row passes; `route` as [`Summary::may_pass`] says it.
    pub fn passes(&self, filter: &RowFilter, route: Option<u16>) -> bool {
        (filter.classes == 0 || filter.classes & (1 << self.class) != 0)
            && route.is_none_or(|route| self.route == route || self.route == ANY_ROUTE)
            && filter.since.is_none_or(|since| self.received >= since)
            && filter.until.is_none_or(|until| self.received < until)
    }
}

/// The rows of one segment, in the order of the log.
#[derive(Default)]
pub struct Rows {
    pub segment: u32,
    pub ids: Vec<IdRow>,
    pub journal: Vec<JournalRow>,
    keys: Vec<KeyRow>,
    notable: Vec<(u8, u128)>,
    route_numbers: HashMap<Arc<str>, u16>,
    pub summary: Summary,
}

impl Rows {
    pub fn new(segment: u32) -> Self {
        Self {
            segment,
            ..Self::default()
        }
    }

    /// Adds what a change says; `waits` tells whether the targets of a message that are queued
    /// entered lanes in the same commit, from a reader that stands behind the entry's keys.
    pub fn add<'a>(
        &mut self,
        view: &View<'a>,
        offset: u32,
        waits: impl FnOnce(MessageId, Reader<'a>) -> bool,
    ) {
        match view {
            View::Put(put) | View::Moved(put) => {
                self.summary.pins += 1;
                self.add_id(put.id, offset, Tag::Put);
            }
            View::Settle { at, how, .. } => {
                if let Some((id, _)) = at.of.filter(|of| !of.1.is_empty()) {
                    self.add_id(id, offset, Tag::Settle);
                    let class = match how {
                        Settlement::Delivered => return,
                        Settlement::Dropped => class_of(Outcome::Failed),
                        // It waits elsewhere, so that no lane of this store tells of it.
                        Settlement::Forwarded => class_of(Outcome::Pending),
                    };
                    self.notable.push((class, id.as_u128()));
                }
            }
            View::Attempt { at, .. } => {
                if let Some((id, _)) = at.of.filter(|of| !of.1.is_empty()) {
                    self.add_id(id, offset, Tag::Attempt);
                }
            }
            View::Protocol { .. } => self.summary.pins += 1,
            View::Payload { id } => self.add_id(*id, offset, Tag::Payload),
            View::Target { id, target } => {
                self.add_id(*id, offset, Tag::Target);
                if !matches!(
                    target.outcome,
                    Outcome::Delivered | Outcome::Queued | Outcome::Pending
                ) {
                    self.notable.push((class_of(target.outcome), id.as_u128()));
                }
            }
            View::Journal {
                id,
                received_at,
                outcome,
                route,
                keys,
            } => {
                self.add_id(*id, offset, Tag::Journal);
                let received = received_at.as_micros();
                let mut keys = *keys;
                for _ in 0..keys.u64().unwrap_or_default() {
                    // What is not there ends it, whatever the count says.
                    let (Some(name), Some(value)) = (keys.str(), keys.str()) else {
                        break;
                    };
                    let hash = hash_key(name, value);
                    self.keys.push(KeyRow { hash, offset });
                }
                let class = if *outcome == Outcome::Pending && waits(*id, keys) {
                    PENDING_IN_LANES
                } else {
                    class_of(*outcome)
                };
                let route = self.route_number(route);
                self.journal.push(JournalRow {
                    received,
                    offset,
                    route,
                    class,
                });
                let summary = &mut self.summary;
                summary.classes[usize::from(class)] += 1;
                summary.received.0 = summary.received.0.min(received);
                summary.received.1 = summary.received.1.max(received);
            }
            _ => {}
        }
    }

    fn add_id(&mut self, id: MessageId, offset: u32, tag: Tag) {
        let made = made(id);
        self.summary.made.0 = self.summary.made.0.min(made);
        self.summary.made.1 = self.summary.made.1.max(made);
        self.ids.push(IdRow {
            hash: hash_id(id),
            offset,
            tag: tag as u8,
        });
    }

    fn route_number(&mut self, route: &str) -> u16 {
        if let Some(number) = self.route_numbers.get(route) {
            return *number;
        }
        let number = self.summary.routes.len();
        if number >= usize::from(ANY_ROUTE) {
            return ANY_ROUTE;
        }
        let name: Arc<str> = route.into();
        self.summary.routes.push(name.clone());
        self.route_numbers.insert(name, number as u16);
        number as u16
    }

    /// What is said of messages with these hashes.
    pub fn of_ids(&self, hashes: &HashSet<u64>, found: &mut Vec<IdRow>) {
        found.extend(self.ids.iter().filter(|row| hashes.contains(&row.hash)));
    }

    /// Offsets of journal entries with this key, newest first.
    pub fn of_key(&self, hash: u64) -> Vec<u32> {
        let rows = self.keys.iter().rev().filter(|row| row.hash == hash);
        rows.map(|row| row.offset).collect()
    }

    /// Messages of which a later record said this outcome.
    pub fn notable(&self, outcome: Outcome) -> Vec<MessageId> {
        let class = class_of(outcome);
        let rows = self.notable.iter().filter(|row| row.0 == class);
        rows.map(|row| MessageId::from_u128(row.1)).collect()
    }

    /// Rough number of bytes that the rows take.
    pub fn len(&self) -> usize {
        self.ids.len() + self.journal.len() + self.keys.len()
    }

    /// Writes the index file of a sealed segment and opens it.
    pub fn write(
        &self,
        disk: &Arc<dyn Disk>,
        files: &Arc<OpenFiles>,
        newest: Timestamp,
    ) -> io::Result<IndexFile> {
        let ids = sorted(&self.ids, |row| (row.hash, row.offset));
        let ids = || ids.iter().map(|at| &self.ids[*at as usize]);
        let keys = sorted(&self.keys, |row| (row.hash, row.offset));
        let keys = || keys.iter().map(|at| &self.keys[*at as usize]);
        let name = index_file(self.segment);
        let temporary = format!("{name}.new");
        let file = disk.open(&temporary, true)?;
        // In pieces: all of it at once would be as much again as the rows.
        let mut out = Pieces::new(&*file);
        out.put(&MAGIC)?;
        out.put(&[0; 8])?;
        for row in ids() {
            out.put(&row.hash.to_le_bytes())?;
            out.put(&row.offset.to_le_bytes())?;
            out.put(&u32::from(row.tag).to_le_bytes())?;
        }
        for row in keys() {
            out.put(&row.hash.to_le_bytes())?;
            out.put(&u64::from(row.offset).to_le_bytes())?;
        }
        for row in &self.journal {
            out.put(&row.received.to_le_bytes())?;
            out.put(&row.offset.to_le_bytes())?;
            out.put(&row.route.to_le_bytes())?;
            out.put(&[row.class, 0])?;
        }
        for (class, id) in &self.notable {
            out.put(&[*class])?;
            out.put(&id.to_le_bytes())?;
        }
        let at = out.write()?;
        let mut out = Vec::with_capacity(4096);
        for count in [
            self.ids.len(),
            self.keys.len(),
            self.journal.len(),
            self.notable.len(),
        ] {
            put_u64(&mut out, count as u64);
        }
        let summary = &self.summary;
        put_u64(&mut out, summary.routes.len() as u64);
        for route in &summary.routes {
            put_str(&mut out, route);
        }
        for count in summary.classes {
            put_u64(&mut out, count);
        }
        for edge in [summary.received.0, summary.received.1, newest.as_micros()] {
            out.extend_from_slice(&edge.to_le_bytes());
        }
        for edge in [summary.made.0, summary.made.1, summary.pins] {
            put_u64(&mut out, edge);
        }
        for hash in ids().step_by(FENCE).map(|row| row.hash) {
            out.extend_from_slice(&hash.to_le_bytes());
        }
        for hash in keys().step_by(FENCE).map(|row| row.hash) {
            out.extend_from_slice(&hash.to_le_bytes());
        }
        let length = out.len() as u32;
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&MAGIC);
        file.write_at(&out, at)?;
        file.sync()?;
        disk.rename(&temporary, &name)?;
        // A damaged one may be open under the name.
        files.forget(&name);
        IndexFile::open(files.clone(), self.segment)
    }
}

/// Where each row stands when they are sorted: less than the rows themselves.
fn sorted<R>(rows: &[R], key: impl Fn(&R) -> (u64, u32)) -> Vec<u32> {
    let mut order: Vec<u32> = (0..rows.len() as u32).collect();
    order.sort_unstable_by_key(|at| key(&rows[*at as usize]));
    order
}

/// A file that is written from its beginning, some bytes at a time.
struct Pieces<'f> {
    file: &'f dyn DiskFile,
    at: u64,
    piece: Vec<u8>,
}

impl<'f> Pieces<'f> {
    const SIZE: usize = 256 * 1024;

    fn new(file: &'f dyn DiskFile) -> Self {
        let piece = Vec::with_capacity(Self::SIZE);
        Self { file, at: 0, piece }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.piece.len() + bytes.len() > Self::SIZE {
            self.flush()?;
        }
        self.piece.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(&self.piece, self.at)?;
        self.at += self.piece.len() as u64;
        self.piece.clear();
        Ok(())
    }

    /// Writes what is left, and says where it ended.
    fn write(mut self) -> io::Result<u64> {
        self.flush()?;
        Ok(self.at)
    }
}

/// Name of a segment's index.
pub fn index_file(segment: u32) -> String {
    format!("{segment:08x}.index")
}

/// The index of a sealed segment, on the disk.
pub struct IndexFile {
    files: Arc<OpenFiles>,
    name: String,
    counts: [usize; 4],
    id_fences: Vec<u64>,
    key_fences: Vec<u64>,
    pub summary: Summary,
    /// Bytes on disk.
    pub bytes: u64,
}

impl IndexFile {
    /// Reads the footer; an error when the file is missing or damaged.
    pub fn open(files: Arc<OpenFiles>, segment: u32) -> io::Result<Self> {
        let name = index_file(segment);
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("{name} is damaged"));
        let file = files.get(&name)?;
        let bytes = file.len()?;
        let mut trailer = [0u8; 16];
        file.read_at(&mut trailer, bytes.checked_sub(16).ok_or_else(damaged)?)?;
        let mut reader = Reader::new(&trailer);
        let (length, crc) = match (reader.u32_fixed(), reader.u32_fixed()) {
            (Some(length), Some(crc)) if trailer[8..] == MAGIC => (length, crc),
            _ => return Err(damaged()),
        };
        let at = (bytes - 16)
            .checked_sub(u64::from(length))
            .ok_or_else(damaged)?;
        let mut footer = vec![0u8; length as usize];
        file.read_at(&mut footer, at)?;
        if crc32c::crc32c(&footer) != crc {
            return Err(damaged());
        }
        let (counts, summary, id_fences, key_fences) = read_footer(&footer).ok_or_else(damaged)?;
        Ok(Self {
            files,
            name,
            counts,
            id_fences,
            key_fences,
            summary,
            bytes,
        })
    }

    fn file(&self) -> io::Result<Arc<dyn DiskFile>> {
        self.files.get(&self.name)
    }

    /// Sorted rows with this hash, from the section that begins at row `first`.
    fn sorted(
        &self,
        file: &dyn DiskFile,
        first: usize,
        count: usize,
        fences: &[u64],
        hash: u64,
        mut found: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        // Equal hashes may begin in the block before the first fence that is not less.
        let mut block = fences
            .partition_point(|fence| *fence < hash)
            .saturating_sub(1);
        let mut bytes = [0u8; FENCE * ROW];
        while block * FENCE < count {
            let rows = FENCE.min(count - block * FENCE);
            let part = &mut bytes[..rows * ROW];
            file.read_at(part, (ROW + (first + block * FENCE) * ROW) as u64)?;
            for row in part.chunks_exact(ROW) {
                let known = first_u64(row);
                if known == hash {
                    found(row);
                } else if known > hash {
                    return Ok(());
                }
            }
            block += 1;
        }
        Ok(())
    }

    /// What is said of messages with these hashes.
    pub fn of_ids(&self, hashes: &HashSet<u64>, found: &mut Vec<IdRow>) -> io::Result<()> {
        let file = self.file()?;
        for &hash in hashes {
            self.sorted(&*file, 0, self.counts[0], &self.id_fences, hash, |row| {
                found.push(IdRow {
                    hash,
                    offset: second_u32(row),
                    tag: row[12],
                });
            })?;
        }
        Ok(())
    }

    /// Offsets of journal entries with this key, newest first.
    pub fn of_key(&self, hash: u64) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        if self.counts[1] > 0 {
            let file = self.file()?;
            let first = self.counts[0];
            self.sorted(
                &*file,
                first,
                self.counts[1],
                &self.key_fences,
                hash,
                |row| {
                    found.push(second_u32(row));
                },
            )?;
        }
        found.reverse();
        Ok(found)
    }

    /// Offsets of the journal entries that pass or are among `extra`, newest first. `route` as
    /// [`Summary::may_pass`] says it.
    pub fn passing(
        &self,
        filter: &RowFilter,
        route: Option<Option<u16>>,
        extra: &HashSet<u32>,
    ) -> io::Result<Vec<u32>> {
        let file = self.file()?;
        let first = ROW + (self.counts[0] + self.counts[1]) * ROW;
        let mut bytes = vec![0u8; ROWS_AT_ONCE.min(self.counts[2]) * ROW];
        let mut found = Vec::new();
        let mut end = self.counts[2];
        while end > 0 {
            let rows = ROWS_AT_ONCE.min(end);
            end -= rows;
            let part = &mut bytes[..rows * ROW];
            file.read_at(part, (first + end * ROW) as u64)?;
            for row in part.chunks_exact(ROW).rev() {
                let row = JournalRow {
                    received: first_u64(row) as i64,
                    offset: second_u32(row),
                    route: u16::from_le_bytes([row[12], row[13]]),
                    class: row[14].min(PENDING_IN_LANES),
                };
                if route.is_some_and(|route| row.passes(filter, route))
                    || (!extra.is_empty() && extra.contains(&row.offset))
                {
                    found.push(row.offset);
                }
            }
        }
        Ok(found)
    }

    /// Messages of which a later record said this outcome.
    pub fn notable(&self, outcome: Outcome) -> io::Result<Vec<MessageId>> {
        let mut bytes = vec![0u8; self.counts[3] * NOTABLE];
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.counts[0] + self.counts[1] + self.counts[2];
        self.file()?
            .read_at(&mut bytes, (ROW + first * ROW) as u64)?;
        let class = class_of(outcome);
        let mut found = Vec::new();
        for row in bytes.chunks_exact(NOTABLE).filter(|row| row[0] == class) {
            found.extend(Reader::new(&row[1..]).id());
        }
        Ok(found)
    }
}

fn first_u64(row: &[u8]) -> u64 {
    Reader::new(row).u64_fixed().unwrap_or_default()
}

fn second_u32(row: &[u8]) -> u32 {
    Reader::new(&row[8..]).u32_fixed().unwrap_or_default()
}

type Footer = ([usize; 4], Summary, Vec<u64>, Vec<u64>);

fn read_footer(bytes: &[u8]) -> Option<Footer> {
    let mut reader = Reader::new(bytes);
    let mut counts = [0usize; 4];
    for count in &mut counts {
        *count = reader.u64()? as usize;
    }
    let mut summary = Summary::default();
    for _ in 0..reader.u64()? {
        summary.routes.push(reader.str()?.into());
    }
    for count in &mut summary.classes {
        *count = reader.u64()?;
    }
    summary.received = (reader.u64_fixed()? as i64, reader.u64_fixed()? as i64);
    summary.newest = reader.u64_fixed()? as i64;
    summary.made = (reader.u64()?, reader.u64()?);
    summary.pins = reader.u64()?;
    let mut fences = [Vec::new(), Vec::new()];
    for (fences, count) in fences.iter_mut().zip(counts) {
        for _ in 0..count.div_ceil(FENCE) {
            fences.push(reader.u64_fixed()?);
        }
    }
    let [id_fences, key_fences] = fences;
    Some((counts, summary, id_fences, key_fences))
}
