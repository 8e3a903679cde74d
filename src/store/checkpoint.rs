//! Checkpoints: all that is live, in one file, so that opening need not read the whole log. The
//! newest two are kept; each is written beside the others, synced and then renamed.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use ahash::AHashMap as HashMap;
use bytes::Bytes;
use xbus_core::Timestamp;

use crate::codec::{Reader, put_bytes, put_id, put_option, put_str, put_time, put_u64};
use crate::disk::Disk;
use crate::lane::{Lane, PageRef};
use crate::pages::{Pages, Place};
use crate::state::{Parked, Queue, Remembered, State, Tries};

pub const MAGIC: [u8; 8] = *b"xbusck01";

/// Name of a checkpoint.
pub fn checkpoint_file(number: u32) -> String {
    format!("{number:08x}.checkpoint")
}

/// Segments that hold damage, and so are never deleted.
pub type Damaged = Vec<u32>;

/// The bytes of a checkpoint. Keys whose time is over are left out.
pub fn encode(state: &State, damaged: &[u32], now: Timestamp) -> Vec<u8> {
    let mut out = Vec::with_capacity(4096);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 4]);
    put_u64(&mut out, state.applied);
    put_u64(&mut out, state.next);
    put_u64(&mut out, state.pages.capacity as u64);
    put_u64(&mut out, damaged.len() as u64);
    for segment in damaged {
        put_u64(&mut out, u64::from(*segment));
    }
    put_u64(&mut out, state.live.len() as u64);
    for (segment, live) in &state.live {
        put_u64(&mut out, u64::from(*segment));
        put_u64(&mut out, *live);
    }
    put_u64(&mut out, state.queues.len() as u64);
    for (name, queue) in &state.queues {
        put_str(&mut out, name);
        put_queue(&mut out, queue);
    }
    put_u64(&mut out, state.protocols.len() as u64);
    for (id, places) in &state.protocols {
        put_id(&mut out, *id);
        put_u64(&mut out, places.len() as u64);
        for place in places {
            put_u64(&mut out, *place);
        }
    }
    put_u64(&mut out, state.remembered.len() as u64);
    for (scope, keys) in &state.remembered {
        put_str(&mut out, scope);
        let kept = keys
            .iter()
            .filter(|(_, kept)| kept.until.is_none_or(|until| until > now));
        put_u64(&mut out, kept.clone().count() as u64);
        for (key, remembered) in kept {
            put_str(&mut out, key);
            put_bytes(&mut out, &remembered.value);
            put_option(&mut out, remembered.until, put_time);
        }
    }
    put_u64(&mut out, state.values.len() as u64);
    for (name, value) in &state.values {
        put_str(&mut out, name);
        put_bytes(&mut out, value);
    }
    let crc = crc32c::crc32c(&out[12..]);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out
}

fn put_queue(out: &mut Vec<u8>, queue: &Queue) {
    out.push(u8::from(queue.has_targets));
    put_u64(out, queue.depth);
    put_u64(out, queue.lanes.len() as u64);
    for (key, lane) in &queue.lanes {
        put_str(out, key);
        put_u64(out, lane.depth);
        put_window(out, &lane.head);
        put_u64(out, lane.pages.len() as u64);
        for page in &lane.pages {
            put_u64(out, page.first);
            put_u64(out, page.handle);
            put_u64(out, u64::from(page.count));
        }
        put_window(out, &lane.tail);
    }
    put_u64(out, queue.tries.len() as u64);
    for (seq, tries) in &queue.tries {
        put_u64(out, *seq);
        put_u64(out, u64::from(tries.attempts));
        put_option(out, tries.error.as_deref(), put_str);
        put_option(out, tries.next_try, put_time);
    }
    put_u64(out, queue.parked.len() as u64);
    for (seq, parked) in &queue.parked {
        put_u64(out, *seq);
        put_str(out, &parked.key);
        put_u64(out, parked.position);
        put_str(out, &parked.reason);
    }
}

fn put_window(out: &mut Vec<u8>, window: &VecDeque<Place>) {
    put_u64(out, window.len() as u64);
    for (seq, position) in window {
        put_u64(out, *seq);
        put_u64(out, *position);
    }
}

/// Reads a checkpoint back; `None` when it is damaged or of another format.
pub fn decode(bytes: &[u8], mut pages: Pages) -> Option<(State, Damaged)> {
    let mut reader = Reader::new(bytes);
    if reader.fixed::<8>()? != MAGIC {
        return None;
    }
    let crc = reader.u32_fixed()?;
    if crc32c::crc32c(bytes.get(12..)?) != crc {
        return None;
    }
    let applied = reader.u64()?;
    let next = reader.u64()?;
    pages.capacity = reader.u64()? as usize;
    let mut state = State::new(pages);
    state.applied = applied;
    state.next = next;
    let mut damaged = Vec::new();
    for _ in 0..reader.u64()? {
        damaged.push(reader.u32()?);
    }
    for _ in 0..reader.u64()? {
        let segment = reader.u32()?;
        state.live.insert(segment, reader.u64()?);
    }
    for _ in 0..reader.u64()? {
        let name = Arc::from(reader.str()?);
        let queue = read_queue(&mut reader, &mut state.pages)?;
        state.queues.insert(name, queue);
    }
    for _ in 0..reader.u64()? {
        let id = reader.id()?;
        let mut places = Vec::new();
        for _ in 0..reader.u64()? {
            places.push(reader.u64()?);
        }
        state.protocols.insert(id, places);
    }
    for _ in 0..reader.u64()? {
        let scope = Arc::from(reader.str()?);
        let mut keys = HashMap::new();
        for _ in 0..reader.u64()? {
            let key = Arc::from(reader.str()?);
            let value = Box::from(reader.bytes()?);
            let until = reader.option(Reader::time)?;
            keys.insert(key, Remembered { value, until });
        }
        if !keys.is_empty() {
            state.remembered.insert(scope, keys);
        }
    }
    for _ in 0..reader.u64()? {
        let name = Arc::from(reader.str()?);
        state
            .values
            .insert(name, Bytes::copy_from_slice(reader.bytes()?));
    }
    reader.is_at_end().then_some((state, damaged))
}

fn read_queue(reader: &mut Reader<'_>, pages: &mut Pages) -> Option<Queue> {
    let mut queue = Queue {
        has_targets: reader.u8()? != 0,
        depth: reader.u64()?,
        ..Queue::default()
    };
    for _ in 0..reader.u64()? {
        let key = Arc::from(reader.str()?);
        let mut lane = Lane {
            depth: reader.u64()?,
            head: read_window(reader)?,
            ..Lane::default()
        };
        for _ in 0..reader.u64()? {
            let first = reader.u64()?;
            let handle = reader.u64()?;
            let count = reader.u32()?;
            pages.adopt(handle);
            lane.pages.push_back(PageRef {
                first,
                handle,
                count,
            });
        }
        lane.tail = read_window(reader)?;
        queue.lanes.insert(key, lane);
    }
    for _ in 0..reader.u64()? {
        let seq = reader.u64()?;
        let attempts = reader.u32()?;
        let error = reader.option(Reader::str)?.map(Box::from);
        let next_try = reader.option(Reader::time)?;
        queue.tries.insert(
            seq,
            Tries {
                attempts,
                error,
                next_try,
            },
        );
    }
    for _ in 0..reader.u64()? {
        let seq = reader.u64()?;
        let key = Arc::from(reader.str()?);
        let position = reader.u64()?;
        let reason = Box::from(reader.str()?);
        queue.parked.insert(
            seq,
            Parked {
                key,
                position,
                reason,
            },
        );
    }
    Some(queue)
}

fn read_window(reader: &mut Reader<'_>) -> Option<VecDeque<Place>> {
    let mut window = VecDeque::new();
    for _ in 0..reader.u64()? {
        window.push_back((reader.u64()?, reader.u64()?));
    }
    Some(window)
}

/// Writes a checkpoint so that it is there whole or not at all.
pub fn write(disk: &dyn Disk, number: u32, bytes: &[u8]) -> io::Result<()> {
    let name = checkpoint_file(number);
    let temporary = format!("{name}.new");
    let written = (|| {
        let file = disk.open(&temporary, true)?;
        file.write_at(bytes, 0)?;
        file.sync()
    })();
    if let Err(error) = written {
        let _ = disk.remove(&temporary);
        return Err(error);
    }
    disk.rename(&temporary, &name)?;
    disk.sync_dir()
}
