//! Frames and changes as they stand in the log.
//!
//! A frame is one commit: `length u32, crc32c u32, number u64, synced u32`, then its changes. The
//! checksum covers everything behind it. `number` ascends strictly. `synced` says how much of the
//! segment was known to be synced when the frame was written: damage before that point cannot be a
//! torn write. A change is `tag u8, length u32, crc32c u32`, then its body, so that one change can
//! be read and checked by itself. The number of a put is not in its own checksum: it is set when
//! the commit takes its place in the log.

use std::sync::Arc;

use bytes::Bytes;
use xbus_core::store::{
    Change, EntryRef, JournalEntry, JournalFault, Outcome, Settlement, TargetEntry,
};
use xbus_core::{Message, MessageId, Timestamp};

use crate::codec::{
    Reader, put_bytes, put_id, put_message, put_option, put_str, put_time, put_u64,
};

/// Bytes before a frame's changes.
pub const FRAME_HEAD: usize = 20;
/// Bytes before a change's body.
pub const CHANGE_HEAD: usize = 9;
/// Bytes at the start of a segment: magic, version, segment number.
pub const SEGMENT_HEAD: usize = 16;
/// Longest text of an error that is kept, in bytes.
const LONGEST_ERROR: usize = 8 * 1024;

/// What begins a segment; the last two digits are the version of the format.
pub const SEGMENT_MAGIC: [u8; 12] = *b"xbus-log-v01";

/// What a change is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Tag {
    Put = 1,
    Settle = 2,
    Attempt = 3,
    Park = 4,
    Release = 5,
    Journal = 6,
    Payload = 7,
    Target = 8,
    Protocol = 9,
    ProtocolEnd = 10,
    Remember = 11,
    Forget = 12,
    Value = 13,
    Moved = 14,
}

impl Tag {
    pub fn from_u8(tag: u8) -> Option<Self> {
        Some(match tag {
            1 => Tag::Put,
            2 => Tag::Settle,
            3 => Tag::Attempt,
            4 => Tag::Park,
            5 => Tag::Release,
            6 => Tag::Journal,
            7 => Tag::Payload,
            8 => Tag::Target,
            9 => Tag::Protocol,
            10 => Tag::ProtocolEnd,
            11 => Tag::Remember,
            12 => Tag::Forget,
            13 => Tag::Value,
            14 => Tag::Moved,
            _ => return None,
        })
    }

    fn crc_from(self) -> usize {
        // Only puts have a number that is set later.
        if self == Tag::Put { 8 } else { 0 }
    }
}

/// The message and target behind an entry, for the journal's sake.
pub struct EntryOf {
    pub id: MessageId,
    pub target: Arc<str>,
}

/// Appends one change. `of` says what entry a settle or an attempt is about; the places of numbers
/// to be set are added to `numbers`.
pub fn encode(
    change: &Change,
    of: Option<&EntryOf>,
    now: Timestamp,
    out: &mut Vec<u8>,
    numbers: &mut Vec<usize>,
) {
    let (tag, start) = match change {
        Change::Put {
            queue,
            key,
            message,
            target,
            cause,
        } => {
            let start = begin(out, Tag::Put);
            numbers.push(out.len());
            out.extend_from_slice(&[0; 8]);
            put_id(out, message.id);
            put_str(out, queue);
            put_str(out, key);
            put_str(out, target);
            put_time(out, now);
            put_option(out, *cause, put_id);
            put_message(out, message);
            (Tag::Put, start)
        }
        Change::Settle {
            at,
            how,
            attempts,
            error,
        } => {
            let start = begin(out, Tag::Settle);
            put_entry(out, at, of);
            put_u64(out, u64::from(*attempts));
            put_option(out, error.as_deref().map(shorten), put_str);
            put_time(out, now);
            out.push(match how {
                Settlement::Delivered => 0,
                Settlement::Dropped => 1,
                Settlement::Forwarded => 2,
            });
            (Tag::Settle, start)
        }
        Change::Attempt {
            at,
            attempts,
            error,
            next_try,
        } => {
            let start = begin(out, Tag::Attempt);
            put_entry(out, at, of);
            put_u64(out, u64::from(*attempts));
            put_option(out, Some(shorten(error)), put_str);
            put_time(out, now);
            put_time(out, *next_try);
            (Tag::Attempt, start)
        }
        Change::Park { at, reason } => {
            let start = begin(out, Tag::Park);
            put_entry(out, at, None);
            put_str(out, shorten(reason));
            (Tag::Park, start)
        }
        Change::Release { at } => {
            let start = begin(out, Tag::Release);
            put_entry(out, at, None);
            (Tag::Release, start)
        }
        Change::Journal(entry) => {
            let start = begin(out, Tag::Journal);
            put_journal(out, entry);
            (Tag::Journal, start)
        }
        Change::Payload(message) => {
            let start = begin(out, Tag::Payload);
            put_id(out, message.id);
            put_message(out, message);
            (Tag::Payload, start)
        }
        Change::Target { id, target } => {
            let start = begin(out, Tag::Target);
            put_id(out, *id);
            put_target(out, target);
            (Tag::Target, start)
        }
        Change::Protocol { id, data } => {
            let start = begin(out, Tag::Protocol);
            put_id(out, *id);
            put_bytes(out, data);
            (Tag::Protocol, start)
        }
        Change::ProtocolEnd { id } => {
            let start = begin(out, Tag::ProtocolEnd);
            put_id(out, *id);
            (Tag::ProtocolEnd, start)
        }
        Change::Remember {
            scope,
            key,
            value,
            until,
        } => {
            let start = begin(out, Tag::Remember);
            put_str(out, scope);
            put_str(out, key);
            put_bytes(out, value);
            put_option(out, *until, put_time);
            (Tag::Remember, start)
        }
        Change::Forget { scope, key } => {
            let start = begin(out, Tag::Forget);
            put_str(out, scope);
            put_str(out, key);
            (Tag::Forget, start)
        }
        Change::Value { name, value } => {
            let start = begin(out, Tag::Value);
            put_str(out, name);
            put_option(out, value.as_deref(), put_bytes);
            (Tag::Value, start)
        }
    };
    finish(out, tag, start);
}

/// A copy of a put further ahead in the log; `body` is the put's, its number included.
pub fn encode_moved(body: &[u8], out: &mut Vec<u8>) {
    let start = begin(out, Tag::Moved);
    out.extend_from_slice(body);
    finish(out, Tag::Moved, start);
}

fn begin(out: &mut Vec<u8>, tag: Tag) -> usize {
    let start = out.len();
    out.push(tag as u8);
    out.extend_from_slice(&[0; 8]);
    start
}

fn finish(out: &mut [u8], tag: Tag, start: usize) {
    let body = start + CHANGE_HEAD;
    let length = (out.len() - body) as u32;
    let crc = crc32c::crc32c(&out[body + tag.crc_from()..]);
    out[start + 1..start + 5].copy_from_slice(&length.to_le_bytes());
    out[start + 5..start + 9].copy_from_slice(&crc.to_le_bytes());
}

fn put_entry(out: &mut Vec<u8>, at: &EntryRef, of: Option<&EntryOf>) {
    put_u64(out, at.seq);
    put_str(out, &at.queue);
    put_str(out, &at.key);
    put_option(out, of, |out, of| {
        put_id(out, of.id);
        put_str(out, &of.target);
    });
}

fn shorten(text: &str) -> &str {
    let mut end = text.len().min(LONGEST_ERROR);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn outcome_code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Delivered => 0,
        Outcome::Pending => 1,
        Outcome::Queued => 2,
        Outcome::Failed => 3,
        Outcome::Filtered => 4,
        Outcome::Skipped => 5,
        Outcome::Undone => 6,
        Outcome::Compensated => 7,
        Outcome::InDoubt => 8,
    }
}

fn outcome_of(code: u8) -> Option<Outcome> {
    Some(match code {
        0 => Outcome::Delivered,
        1 => Outcome::Pending,
        2 => Outcome::Queued,
        3 => Outcome::Failed,
        4 => Outcome::Filtered,
        5 => Outcome::Skipped,
        6 => Outcome::Undone,
        7 => Outcome::Compensated,
        8 => Outcome::InDoubt,
        _ => return None,
    })
}

fn put_target(out: &mut Vec<u8>, target: &TargetEntry) {
    put_str(out, &target.name);
    out.push(outcome_code(target.outcome));
    put_u64(out, u64::from(target.attempts));
    put_option(out, target.error.as_deref().map(shorten), put_str);
    put_time(out, target.at);
}

fn read_target(reader: &mut Reader<'_>) -> Option<TargetEntry> {
    Some(TargetEntry {
        name: reader.str()?.into(),
        outcome: outcome_of(reader.u8()?)?,
        attempts: reader.u32()?,
        error: reader.option(Reader::str)?.map(str::to_owned),
        at: reader.time()?,
    })
}

fn put_journal(out: &mut Vec<u8>, entry: &JournalEntry) {
    // What indexes read comes first.
    put_id(out, entry.id);
    put_time(out, entry.received_at);
    out.push(outcome_code(entry.outcome));
    put_str(out, &entry.route);
    put_u64(out, entry.keys.len() as u64);
    for (name, value) in &entry.keys {
        put_str(out, name);
        put_str(out, value);
    }
    put_u64(out, entry.took_micros);
    put_option(out, entry.correlation_id.as_deref(), put_str);
    put_option(out, entry.cause, put_id);
    put_u64(out, entry.targets.len() as u64);
    for target in &entry.targets {
        put_target(out, target);
    }
    put_option(out, entry.fault.as_ref(), |out, fault| {
        put_str(out, &fault.code);
        put_option(out, fault.step.as_deref(), put_str);
        put_str(out, shorten(&fault.reason));
    });
}

/// Reads a whole journal entry from its change's body.
pub fn read_journal(body: &[u8]) -> Option<JournalEntry> {
    let mut reader = Reader::new(body);
    let id = reader.id()?;
    let received_at = reader.time()?;
    let outcome = outcome_of(reader.u8()?)?;
    let route = reader.str()?.into();
    let mut keys = Vec::new();
    for _ in 0..reader.u64()? {
        let name = reader.str()?.into();
        keys.push((name, reader.str()?.to_owned()));
    }
    let took_micros = reader.u64()?;
    let correlation_id = reader.option(Reader::str)?.map(Arc::from);
    let cause = reader.option(Reader::id)?;
    let mut targets = Vec::new();
    for _ in 0..reader.u64()? {
        targets.push(read_target(&mut reader)?);
    }
    let fault = reader.option(|reader| {
        Some(JournalFault {
            code: reader.str()?.into(),
            step: reader.option(Reader::str)?.map(Arc::from),
            reason: reader.str()?.to_owned(),
        })
    })?;
    Some(JournalEntry {
        id,
        correlation_id,
        cause,
        route,
        received_at,
        took_micros,
        outcome,
        keys,
        targets,
        fault,
    })
}

/// How many of a journal entry's targets have this outcome; the reader stands behind its keys.
pub fn count_targets(mut reader: Reader<'_>, outcome: Outcome) -> Option<usize> {
    let code = outcome_code(outcome);
    reader.u64()?;
    reader.option(Reader::bytes)?;
    reader.option(Reader::id)?;
    let mut found = 0;
    for _ in 0..reader.u64()? {
        reader.bytes()?;
        found += usize::from(reader.u8()? == code);
        reader.u64()?;
        reader.option(Reader::bytes)?;
        reader.time()?;
    }
    Some(found)
}

/// Whether a put's body is an entry of this message for a target of the journal.
pub fn is_put_of(body: &[u8], id: MessageId) -> Option<bool> {
    let mut reader = Reader::new(body);
    reader.u64_fixed()?;
    if reader.id()? != id {
        return Some(false);
    }
    let (_queue, _key) = (reader.bytes()?, reader.bytes()?);
    Some(!reader.bytes()?.is_empty())
}

/// The message of a put or of a payload.
pub fn read_message(tag: Tag, body: &Bytes) -> Option<Message> {
    let mut reader = Reader::new(body);
    match tag {
        Tag::Put | Tag::Moved => {
            let put = PutView::read(&mut reader)?;
            reader.message(put.id, body)
        }
        Tag::Payload => {
            let id = reader.id()?;
            reader.message(id, body)
        }
        _ => None,
    }
}

/// The beginning of a put.
pub struct PutView<'a> {
    pub seq: u64,
    pub id: MessageId,
    pub queue: &'a str,
    pub key: &'a str,
    pub target: &'a str,
    pub since: Timestamp,
    pub cause: Option<MessageId>,
}

impl<'a> PutView<'a> {
    pub fn read(reader: &mut Reader<'a>) -> Option<Self> {
        Some(Self {
            seq: reader.u64_fixed()?,
            id: reader.id()?,
            queue: reader.str()?,
            key: reader.str()?,
            target: reader.str()?,
            since: reader.time()?,
            cause: reader.option(Reader::id)?,
        })
    }
}

/// Which entry a change is about.
pub struct EntryView<'a> {
    pub seq: u64,
    pub queue: &'a str,
    pub key: &'a str,
    pub of: Option<(MessageId, &'a str)>,
}

fn read_entry<'a>(reader: &mut Reader<'a>) -> Option<EntryView<'a>> {
    Some(EntryView {
        seq: reader.u64()?,
        queue: reader.str()?,
        key: reader.str()?,
        of: reader.option(|reader| Some((reader.id()?, reader.str()?)))?,
    })
}

/// One change as it is applied to what is in memory; it borrows the log's bytes.
pub enum View<'a> {
    Put(PutView<'a>),
    Moved(PutView<'a>),
    Settle {
        at: EntryView<'a>,
        attempts: u32,
        error: Option<&'a str>,
        time: Timestamp,
        how: Settlement,
    },
    Attempt {
        at: EntryView<'a>,
        attempts: u32,
        error: Option<&'a str>,
        time: Timestamp,
        next_try: Timestamp,
    },
    Park {
        at: EntryView<'a>,
        reason: &'a str,
    },
    Release {
        at: EntryView<'a>,
    },
    Journal {
        id: MessageId,
        received_at: Timestamp,
        outcome: Outcome,
        route: &'a str,
        keys: Reader<'a>,
    },
    Payload {
        id: MessageId,
    },
    Target {
        id: MessageId,
        target: TargetEntry,
    },
    Protocol {
        id: MessageId,
        data: &'a [u8],
    },
    ProtocolEnd {
        id: MessageId,
    },
    Remember {
        scope: &'a str,
        key: &'a str,
        value: &'a [u8],
        until: Option<Timestamp>,
    },
    Forget {
        scope: &'a str,
        key: &'a str,
    },
    Value {
        name: &'a str,
        value: Option<&'a [u8]>,
    },
}

/// Reads a change's body.
pub fn view(tag: Tag, body: &[u8]) -> Option<View<'_>> {
    let mut reader = Reader::new(body);
    Some(match tag {
        Tag::Put => View::Put(PutView::read(&mut reader)?),
        Tag::Moved => View::Moved(PutView::read(&mut reader)?),
        Tag::Settle => View::Settle {
            at: read_entry(&mut reader)?,
            attempts: reader.u32()?,
            error: reader.option(Reader::str)?,
            time: reader.time()?,
            how: match reader.u8()? {
                0 => Settlement::Delivered,
                1 => Settlement::Dropped,
                _ => Settlement::Forwarded,
            },
        },
        Tag::Attempt => View::Attempt {
            at: read_entry(&mut reader)?,
            attempts: reader.u32()?,
            error: reader.option(Reader::str)?,
            time: reader.time()?,
            next_try: reader.time()?,
        },
        Tag::Park => View::Park {
            at: read_entry(&mut reader)?,
            reason: reader.str()?,
        },
        Tag::Release => View::Release {
            at: read_entry(&mut reader)?,
        },
        Tag::Journal => View::Journal {
            id: reader.id()?,
            received_at: reader.time()?,
            outcome: outcome_of(reader.u8()?)?,
            route: reader.str()?,
            keys: reader,
        },
        Tag::Payload => View::Payload { id: reader.id()? },
        Tag::Target => View::Target {
            id: reader.id()?,
            target: read_target(&mut reader)?,
        },
        Tag::Protocol => View::Protocol {
            id: reader.id()?,
            data: reader.bytes()?,
        },
        Tag::ProtocolEnd => View::ProtocolEnd { id: reader.id()? },
        Tag::Remember => View::Remember {
            scope: reader.str()?,
            key: reader.str()?,
            value: reader.bytes()?,
            until: reader.option(Reader::time)?,
        },
        Tag::Forget => View::Forget {
            scope: reader.str()?,
            key: reader.str()?,
        },
        Tag::Value => View::Value {
            name: reader.str()?,
            value: reader.option(Reader::bytes)?,
        },
    })
}

/// The changes of a frame: tag, offset of the change within `changes`, body.
pub struct Changes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Changes<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }
}

impl<'a> Iterator for Changes<'a> {
    type Item = (Tag, usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.at;
        let head = self.bytes.get(start..start + CHANGE_HEAD)?;
        let tag = Tag::from_u8(head[0])?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let body = start + CHANGE_HEAD;
        let end = body.checked_add(length)?;
        let bytes = self.bytes.get(body..end)?;
        self.at = end;
        Some((tag, start, bytes))
    }
}

/// Splits a change's head into tag, length and checksum.
pub fn change_head(head: [u8; CHANGE_HEAD]) -> Option<(Tag, usize, u32)> {
    let tag = Tag::from_u8(head[0])?;
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let crc = u32::from_le_bytes([head[5], head[6], head[7], head[8]]);
    Some((tag, length, crc))
}

/// Whether a change's body is what was written.
pub fn is_intact(tag: Tag, body: &[u8], crc: u32) -> bool {
    body.get(tag.crc_from()..)
        .is_some_and(|part| crc32c::crc32c(part) == crc)
}

/// The head of a frame.
#[derive(Clone, Copy, Debug)]
pub struct FrameHead {
    pub length: usize,
    pub crc: u32,
    pub number: u64,
    pub synced: u32,
}

impl FrameHead {
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        Some(Self {
            length: reader.u32_fixed()? as usize,
            crc: reader.u32_fixed()?,
            number: reader.u64_fixed()?,
            synced: reader.u32_fixed()?,
        })
    }
}

/// Makes room for a frame's head.
pub fn begin_frame(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; FRAME_HEAD]);
}

/// Sets length and number once a frame has its place in the order.
pub fn place_frame(frame: &mut [u8], number: u64) {
    let length = (frame.len() - FRAME_HEAD) as u32;
    frame[0..4].copy_from_slice(&length.to_le_bytes());
    frame[8..16].copy_from_slice(&number.to_le_bytes());
}

/// Sets what is known to be synced, and the checksum, last.
pub fn seal_frame(frame: &mut [u8], synced: u32) {
    frame[16..20].copy_from_slice(&synced.to_le_bytes());
    let crc = crc32c::crc32c(&frame[8..]);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Whether a frame (head and changes) is what was written.
pub fn frame_is_intact(frame: &[u8], head: FrameHead) -> bool {
    crc32c::crc32c(&frame[8..]) == head.crc
}
