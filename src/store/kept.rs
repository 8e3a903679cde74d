//! Records of puts that memory keeps, so that a lane that is worked off about as fast as it fills is
//! never read back from the disk.
//!
//! A put is kept when it is written, for as long as it waits in its lane and there is room: a lane
//! may take as much as is still free after it. So a lane whose destination is down leaves room to the
//! others, and among many lanes each gets about the same. What does not fit is read from the log when
//! it has become the head, and is kept from then on, so that nothing is read twice.
//!
//! The room is counted in bytes of records as they stand in the log, which are copied: a message as
//! it came in may hold on to a much larger buffer.
//!
//! Absent: giving up what is kept for what is not. What came in first is delivered first.

use ahash::AHashMap as HashMap;
use bytes::Bytes;

/// Records larger than this are not kept whole: reading them is little beside sending them.
const LARGEST: usize = 64 << 10;
/// What a kept record costs beside its bytes, about.
const OVERHEAD: usize = 128;

/// A record that is kept.
#[derive(Clone)]
pub struct Record {
    /// The body of the put, or only its beginning.
    pub body: Bytes,
    /// Whether the message is there too.
    pub is_whole: bool,
}

/// What is kept, by the number of the entry.
#[derive(Default)]
pub struct Kept {
    records: HashMap<u64, Record>,
    bytes: usize,
    room: usize,
}

fn cost(body: &[u8]) -> usize {
    body.len() + OVERHEAD
}

impl Kept {
    /// From now on so many bytes are kept at most, all lanes together. At first it is none.
    pub fn set_room(&mut self, bytes: usize) {
        self.room = bytes;
    }

    /// Keeps a new entry's record if there is room; `of_lane` are the bytes that are kept of its lane.
    pub fn offer(&mut self, seq: u64, body: &[u8], of_lane: &mut usize) {
        let cost = cost(body);
        let free = self.room.saturating_sub(self.bytes + cost);
        if body.len() <= LARGEST && *of_lane + cost <= free {
            self.insert(seq, Bytes::copy_from_slice(body), true, of_lane);
        }
    }

    /// Keeps the record of a lane's head that was read; without room only its first `beginning`
    /// bytes, which settling it needs. There are no more of those than lanes.
    pub fn keep_head(&mut self, seq: u64, body: &[u8], beginning: usize, of_lane: &mut usize) {
        if self.records.contains_key(&seq) {
            return;
        }
        let is_whole = body.len() <= LARGEST && self.bytes + cost(body) <= self.room;
        let part = match is_whole {
            true => body,
            false => &body[..beginning],
        };
        self.insert(seq, Bytes::copy_from_slice(part), is_whole, of_lane);
    }

    fn insert(&mut self, seq: u64, body: Bytes, is_whole: bool, of_lane: &mut usize) {
        let cost = cost(&body);
        self.bytes += cost;
        *of_lane += cost;
        self.records.insert(seq, Record { body, is_whole });
    }

    /// The record of an entry that waits in a lane.
    pub fn get(&self, seq: u64) -> Option<&Record> {
        self.records.get(&seq)
    }

    /// Forgets an entry that leaves its lane.
    pub fn forget(&mut self, seq: u64, of_lane: &mut usize) {
        if let Some(record) = self.records.remove(&seq) {
            let cost = cost(&record.body);
            self.bytes -= cost;
            *of_lane -= cost;
        }
        if self.records.is_empty() && self.records.capacity() > 1024 {
            self.records = HashMap::new();
        }
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
