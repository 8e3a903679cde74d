//! Segments: the files of the log. What is read of them, and how the end of the log is found.

use std::cell::RefCell;
use std::io;

use bytes::Bytes;
use xbus_core::store::StoreError;

use crate::disk::{DiskFile, OpenFiles};
use crate::record::{
    CHANGE_HEAD, FRAME_HEAD, FrameHead, SEGMENT_HEAD, SEGMENT_MAGIC, Tag, change_head,
    frame_is_intact, is_intact,
};
use crate::state::{offset_of, segment_of};

/// Name of a segment.
pub fn segment_file(number: u32) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut name = String::with_capacity(12);
    for shift in (0..32).step_by(4).rev() {
        name.push(char::from(DIGITS[(number >> shift & 15) as usize]));
    }
    name.push_str(".log");
    name
}

/// The number in a name such as `0000001f.log`.
pub fn number_of(name: &str, ending: &str) -> Option<u32> {
    let digits = name.strip_suffix(ending)?;
    (digits.len() == 8).then(|| u32::from_str_radix(digits, 16).ok())?
}

/// What a segment begins with.
pub fn segment_head(number: u32) -> [u8; SEGMENT_HEAD] {
    let mut head = [0u8; SEGMENT_HEAD];
    head[..12].copy_from_slice(&SEGMENT_MAGIC);
    head[12..].copy_from_slice(&number.to_le_bytes());
    head
}

/// Bytes that one read takes in the hope that they are enough.
const GUESS: usize = 4096;

thread_local! {
    static GUESSED: RefCell<[u8; GUESS]> = const { RefCell::new([0; GUESS]) };
}

/// Reads the change at `position`, checked.
pub fn read_change(files: &OpenFiles, position: u64) -> Result<(Tag, Bytes), StoreError> {
    let name = segment_file(segment_of(position));
    let at = u64::from(offset_of(position));
    let damaged = |what: &str| StoreError::Corrupt(format!("{name}: {what} at byte {at}"));
    let file = files
        .get(&name)
        .map_err(|error| damaged(&error.to_string()))?;
    let (tag, crc, body) = GUESSED.with_borrow_mut(|guessed| {
        let read = file
            .read_some(guessed, at)
            .map_err(|error| damaged(&error.to_string()))?;
        let bytes = &guessed[..read];
        let head: [u8; CHANGE_HEAD] = bytes
            .get(..CHANGE_HEAD)
            .and_then(|head| head.try_into().ok())
            .ok_or_else(|| damaged("nothing"))?;
        let (tag, length, crc) = change_head(head).ok_or_else(|| damaged("no record"))?;
        let known = &bytes[CHANGE_HEAD..];
        if let Some(body) = known.get(..length) {
            return Ok((tag, crc, Bytes::copy_from_slice(body)));
        }
        let size = file.len().unwrap_or_default();
        if at + (CHANGE_HEAD + length) as u64 > size {
            return Err(damaged("no whole record"));
        }
        let mut body = Vec::with_capacity(length);
        body.extend_from_slice(known);
        body.resize(length, 0);
        file.read_at(&mut body[known.len()..], at + read as u64)
            .map_err(|error| damaged(&error.to_string()))?;
        Ok((tag, crc, Bytes::from(body)))
    })?;
    if !is_intact(tag, &body, crc) {
        return Err(damaged("a damaged record"));
    }
    Ok((tag, body))
}

/// How the frames of a segment end.
#[derive(Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Behind the last good frame.
    pub end: u32,
    /// Where damage begins that is no torn end, with frames behind it that are good.
    pub damage: Vec<u32>,
    /// Whether there is anything but zeros behind `end`.
    pub torn: bool,
}

/// Is handed a frame: offset, head, changes.
pub type Take<'a> = &'a mut dyn FnMut(u32, FrameHead, &[u8]) -> io::Result<()>;

/// Reads the frames of a segment from `from` on and hands each that is good to `take`: offset,
/// head, changes. Numbers must be greater than `after`. In a sealed segment every bad frame is
/// damage; in the last one what is bad is a torn end, unless a later frame proves it was synced.
pub fn scan(
    file: &dyn DiskFile,
    from: u32,
    after: u64,
    sealed: bool,
    take: Take<'_>,
) -> io::Result<Scanned> {
    let size = file.len()?.min(u64::from(u32::MAX));
    let mut window = Window {
        file,
        size,
        start: 0,
        bytes: Vec::new(),
    };
    let mut at = u64::from(from);
    let mut number = after;
    let mut scanned = Scanned {
        end: from,
        damage: Vec::new(),
        torn: false,
    };
    loop {
        match window.frame(at, number)? {
            Some((head, frame)) => {
                number = head.number;
                take(at as u32, head, &frame[FRAME_HEAD..])?;
                at += frame.len() as u64;
                scanned.end = at as u32;
            }
            None => {
                if window.is_zero_from(at)? {
                    return Ok(scanned);
                }
                match window.next_frame(at, number, sealed)? {
                    Some(next) => {
                        scanned.damage.push(at as u32);
                        at = next;
                    }
                    None => {
                        scanned.torn = true;
                        if sealed {
                            scanned.damage.push(at as u32);
                        }
                        return Ok(scanned);
                    }
                }
            }
        }
    }
}

struct Window<'a> {
    file: &'a dyn DiskFile,
    size: u64,
    start: u64,
    bytes: Vec<u8>,
}

/// Bytes that are read at once.
const WINDOW: u64 = 1 << 20;

impl Window<'_> {
    fn get(&mut self, at: u64, len: usize) -> io::Result<Option<&[u8]>> {
        let end = at + len as u64;
        if end > self.size {
            return Ok(None);
        }
        if at < self.start || end > self.start + self.bytes.len() as u64 {
            let want = (len as u64).max(WINDOW).min(self.size - at) as usize;
            self.bytes.resize(want, 0);
            self.file.read_at(&mut self.bytes, at)?;
            self.start = at;
        }
        let from = (at - self.start) as usize;
        Ok(self.bytes.get(from..from + len))
    }

    fn frame(&mut self, at: u64, after: u64) -> io::Result<Option<(FrameHead, &[u8])>> {
        let Some(head) = self.get(at, FRAME_HEAD)?.and_then(FrameHead::read) else {
            return Ok(None);
        };
        if head.number <= after || u64::from(head.synced) > at {
            return Ok(None);
        }
        let whole = FRAME_HEAD + head.length;
        Ok(self
            .get(at, whole)?
            .filter(|frame| frame_is_intact(frame, head))
            .map(|frame| (head, frame)))
    }

    fn is_zero_from(&mut self, at: u64) -> io::Result<bool> {
        let mut at = at;
        while at < self.size {
            let len = WINDOW.min(self.size - at) as usize;
            if self
                .get(at, len)?
                .is_some_and(|part| part.iter().any(|byte| *byte != 0))
            {
                return Ok(false);
            }
            at += len as u64;
        }
        Ok(true)
    }

    /// The next good frame behind damage at `at`; in the last segment only one that was written
    /// when the damaged place was synced already.
    fn next_frame(&mut self, at: u64, after: u64, sealed: bool) -> io::Result<Option<u64>> {
        let mut next = at + 1;
        while next + FRAME_HEAD as u64 <= self.size {
            if let Some((head, _)) = self.frame(next, after)?
                && head.length > 0
                && (sealed || u64::from(head.synced) > at)
            {
                return Ok(Some(next));
            }
            next += 1;
        }
        Ok(None)
    }
}
