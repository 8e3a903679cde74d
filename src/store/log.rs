//! The way into the log: commits gather in one buffer, one thread writes and syncs it.
//!
//! A producer encodes its commit outside any lock, then takes its number and place in the buffer
//! under a short one; that is the order of acceptance. The writer takes the whole buffer at once,
//! writes it with one call, syncs it once for all who wait (while it does, the next batch gathers),
//! applies it to what is in memory, and wakes them. So nothing is visible that is not written, and
//! nothing synced is told that is not synced.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use xbus_core::store::{Change, Commit, Durability, Outcome, StoreError};
use xbus_core::{MessageId, Timestamp};

use crate::Options;
use crate::ahead::{AHEAD, Ahead, Ground};
use crate::codec::Reader;
use crate::disk::{Disk, DiskFile, OpenFiles, is_full};
use crate::hope::Hope;
use crate::index::{IndexFile, Rows};
use crate::record::{
    CHANGE_HEAD, Changes, EntryOf, FRAME_HEAD, SEGMENT_HEAD, Tag, begin_frame, count_targets,
    encode, is_put_of, place_frame, seal_frame, view,
};
use crate::segment::{segment_file, segment_head};
use crate::state::{State, position};

/// Told to whoever waits for a commit.
pub type Answer = Result<(), StoreError>;

/// One commit in the buffer.
struct Frame {
    start: usize,
    len: usize,
    essential: bool,
}

/// What gathers until the writer takes it.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    frames: Vec<Frame>,
    waiters: Vec<(usize, oneshot::Sender<Answer>)>,
    wants_sync: bool,
    /// Somebody waits until it is written.
    wants_write: bool,
}

/// What the writer is doing, for those who may have to wake it.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Writer {
    #[default]
    Busy,
    /// Waits for those whom it has just answered to come back.
    Filling,
    /// Waits for more lazy commits.
    Gathering,
    Asleep,
}

#[derive(Default)]
struct Gate {
    batch: Batch,
    next: u64,
    writer: Writer,
    refuses: Option<StoreError>,
    closing: bool,
    /// How many waiters the writer hopes for while it is filling.
    expected: usize,
    /// The writer has ended: nothing that is handed in would ever be answered.
    ended: bool,
    last_probe: Option<Instant>,
}

/// The journal's indexes: of the segment being written, of those being sealed, of sealed ones.
#[derive(Default)]
pub struct Journal {
    pub active: Rows,
    pub sealing: BTreeMap<u32, Arc<Rows>>,
    pub sealed: BTreeMap<u32, Arc<IndexFile>>,
}

/// What the keeper thread is to do.
#[derive(Default)]
pub struct Duties {
    pub sealed: Vec<Arc<Rows>>,
    pub checkpoint: bool,
    /// The next segment's file is to be made ahead, with so many bytes.
    pub ahead: Option<u64>,
    pub stop: bool,
}

/// Everything that the store's threads and callers share.
pub struct Inner {
    pub options: Options,
    pub disk: Arc<dyn Disk>,
    pub files: Arc<OpenFiles>,
    gate: Mutex<Gate>,
    wake: Condvar,
    pub state: Mutex<State>,
    pub journal: RwLock<Journal>,
    /// Segments on disk and their lengths.
    pub segments: Mutex<BTreeMap<u32, u64>>,
    pub damaged: Mutex<Vec<u32>>,
    pub duties: Mutex<Duties>,
    pub duty: Condvar,
    pub ahead: Ahead,
    /// Bytes of everything but segments and indexes.
    pub other_bytes: AtomicU64,
    pub is_full: AtomicBool,
    /// The writer is to begin a new segment when it next writes.
    pub roll_wanted: AtomicBool,
    /// Counted since opening.
    pub syncs: AtomicU64,
    pub dropped: AtomicU64,
}

/// Takes a lock; what a panicking thread left is still whole, as no change is left half done.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In place of a frame's number: the waiter only waits for a sync.
const NO_FRAME: usize = usize::MAX;
/// How often a refused store looks whether there is room again.
const PROBE: Duration = Duration::from_millis(200);
/// Bytes that gather before a sleeping writer is woken for lazy commits.
const GATHERED: usize = 256 << 10;

thread_local! {
    static SCRATCH: RefCell<(Vec<u8>, Vec<usize>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

impl Inner {
    pub fn new(
        options: Options,
        disk: Arc<dyn Disk>,
        files: Arc<OpenFiles>,
        mut state: State,
        journal: Journal,
        segments: BTreeMap<u32, u64>,
        damaged: Vec<u32>,
    ) -> Self {
        let gate = Gate {
            next: state.next,
            ..Gate::default()
        };
        // What was replayed before is read when its turn comes.
        state.kept.set_room(options.keep_in_memory);
        Self {
            options,
            disk,
            files,
            gate: Mutex::new(gate),
            wake: Condvar::new(),
            state: Mutex::new(state),
            journal: RwLock::new(journal),
            segments: Mutex::new(segments),
            damaged: Mutex::new(damaged),
            duties: Mutex::default(),
            duty: Condvar::new(),
            ahead: Ahead::default(),
            other_bytes: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
            roll_wanted: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Puts a commit into the order. What is returned is waited for; `None` needs no waiting.
    pub fn append(
        &self,
        commit: &Commit,
        entries: &[Option<EntryOf>],
        durability: Durability,
    ) -> Result<Option<oneshot::Receiver<Answer>>, StoreError> {
        SCRATCH.with_borrow_mut(|(bytes, numbers)| {
            bytes.clear();
            numbers.clear();
            begin_frame(bytes);
            let now = Timestamp::now();
            for (at, change) in commit.changes.iter().enumerate() {
                let of = entries.get(at).and_then(Option::as_ref);
                encode(change, of, now, bytes, numbers);
            }
            let class = Class::of(commit, durability);
            let answer = self.enter(bytes, numbers, class, durability, false);
            if bytes.capacity() > 1 << 20 {
                *bytes = Vec::new();
            }
            answer
        })
    }

    /// Puts an encoded frame into the order; `inside` is the store itself, also while closing.
    fn enter(
        &self,
        bytes: &mut [u8],
        numbers: &[usize],
        class: Class,
        durability: Durability,
        inside: bool,
    ) -> Result<Option<oneshot::Receiver<Answer>>, StoreError> {
        if bytes.len() as u64 > u64::from(u32::MAX) / 2 {
            return Err(StoreError::Full(format!(
                "a commit of {} bytes is too large",
                bytes.len()
            )));
        }
        let essential = class == Class::Essential;
        let mut guard = lock(&self.gate);
        let gate = &mut *guard;
        if let Some(error) = &gate.refuses {
            return Err(error.clone());
        }
        if gate.ended || (gate.closing && !inside) {
            return Err(StoreError::Failed("it is closed".into()));
        }
        if !essential && self.is_full.load(Ordering::Relaxed) {
            let now = Instant::now();
            if gate.last_probe.is_some_and(|last| now - last < PROBE) {
                if class == Class::Droppable {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                    return Ok(None);
                }
                return Err(no_room());
            }
            gate.last_probe = Some(now);
        }
        let number = gate.next;
        gate.next += 1 + numbers.len() as u64;
        for (at, place) in numbers.iter().enumerate() {
            let seq = number + 1 + at as u64;
            bytes[*place..place + 8].copy_from_slice(&seq.to_le_bytes());
        }
        place_frame(bytes, number);
        let batch = &mut gate.batch;
        batch.frames.push(Frame {
            start: batch.bytes.len(),
            len: bytes.len(),
            essential,
        });
        batch.bytes.extend_from_slice(bytes);
        let synced = durability == Durability::Synced;
        // Puts are visible when they are durable, so there is no point in leaving them unsynced.
        batch.wants_sync |= synced || !numbers.is_empty();
        let written = durability == Durability::Written;
        batch.wants_write |= written;
        let waits = synced || written || batch.bytes.len() > self.options.write_buffer;
        let receiver = waits.then(|| {
            let (sender, receiver) = oneshot::channel();
            batch.waiters.push((batch.frames.len() - 1, sender));
            receiver
        });
        let wake = match gate.writer {
            Writer::Busy => false,
            Writer::Filling => batch.waiters.len() >= gate.expected,
            Writer::Gathering => {
                batch.wants_sync || batch.wants_write || batch.bytes.len() > GATHERED
            }
            Writer::Asleep => true,
        };
        if wake {
            gate.writer = Writer::Busy;
            drop(guard);
            self.wake.notify_one();
        }
        Ok(receiver)
    }

    /// Waits until everything handed in so far is synced. Not for use on an async thread.
    pub fn barrier(&self) -> Result<(), StoreError> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut gate = lock(&self.gate);
            if let Some(error) = &gate.refuses {
                return Err(error.clone());
            }
            if gate.ended {
                return Err(StoreError::Failed("it is closed".into()));
            }
            gate.batch.waiters.push((NO_FRAME, sender));
            gate.batch.wants_sync = true;
            gate.writer = Writer::Busy;
        }
        self.wake.notify_one();
        receiver
            .blocking_recv()
            .unwrap_or_else(|_| Err(StoreError::Failed("it is closed".into())))
    }

    /// Writes a frame of the store's own and waits for it.
    pub fn insert(&self, fill: &mut dyn FnMut(&mut Vec<u8>)) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        begin_frame(&mut bytes);
        fill(&mut bytes);
        match self.enter(&mut bytes, &[], Class::Essential, Durability::Synced, true)? {
            Some(receiver) => receiver
                .blocking_recv()
                .unwrap_or_else(|_| Err(StoreError::Failed("it is closed".into()))),
            None => Ok(()),
        }
    }

    /// Why commits are refused, if they are.
    pub fn refusal(&self) -> Option<StoreError> {
        let gate = lock(&self.gate);
        match &gate.refuses {
            Some(error) => Some(error.clone()),
            None if gate.closing => Some(StoreError::Failed("it is closed".into())),
            None => self.is_full.load(Ordering::Relaxed).then(no_room),
        }
    }

    /// Refuses everything from now on.
    pub fn fail(&self, error: StoreError) {
        tracing::error!(%error, "the store accepts nothing more until it is opened again");
        let mut gate = lock(&self.gate);
        gate.refuses.get_or_insert(error.clone());
        let batch = std::mem::take(&mut gate.batch);
        drop(gate);
        for (_, waiter) in batch.waiters {
            let _ = waiter.send(Err(error.clone()));
        }
        self.wake.notify_one();
    }

    /// Says that the writer has ended, however it did.
    fn writer_ended(&self) {
        let mut gate = lock(&self.gate);
        gate.ended = true;
        if !gate.closing {
            let error = StoreError::Failed("its writer ended".into());
            gate.refuses.get_or_insert(error);
        }
        // Whoever waits for what is left is told by the drop.
        gate.batch = Batch::default();
    }

    /// Tells the writer to end once everything is written.
    pub fn begin_closing(&self) {
        lock(&self.gate).closing = true;
        self.wake.notify_one();
    }

    /// Takes what gathered, waiting for it. `None`: the store is closing and there is nothing.
    fn take(
        &self,
        spare: Batch,
        unsynced_since: Option<Instant>,
        hope: &mut Hope,
    ) -> Option<Batch> {
        let mut gate = lock(&self.gate);
        let lazy_sync = self.options.lazy_sync;
        let mut gathered_since = None;
        loop {
            let ready = gate.refuses.is_some() || gate.closing || gate.batch.wants_sync;
            if ready && gate.refuses.is_some() {
                return None;
            }
            let sync_due = unsynced_since.map(|since| lazy_sync.saturating_sub(since.elapsed()));
            let gather_due = if gate.batch.frames.is_empty() && gate.batch.waiters.is_empty() {
                if gate.closing {
                    return None;
                }
                None
            } else if ready || gate.batch.wants_write || gate.batch.bytes.len() > GATHERED {
                break;
            } else {
                let since = *gathered_since.get_or_insert_with(Instant::now);
                Some(self.options.gather.saturating_sub(since.elapsed()))
            };
            let due = match (gather_due, sync_due) {
                (Some(gather), Some(sync)) => Some(gather.min(sync)),
                (gather, sync) => gather.or(sync),
            };
            if due.is_some_and(|due| due.is_zero()) {
                break;
            }
            gate.writer = match gather_due {
                Some(_) => Writer::Gathering,
                None => Writer::Asleep,
            };
            gate = match due {
                Some(due) => {
                    self.wake
                        .wait_timeout(gate, due)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self.wake.wait(gate).unwrap_or_else(PoisonError::into_inner),
            };
            gate.writer = Writer::Busy;
        }
        if gate.batch.wants_sync
            && let Some((expected, patience)) = hope.waits(gate.batch.waiters.len())
        {
            gate.expected = expected;
            let until = Instant::now() + patience;
            while gate.batch.waiters.len() < expected && !gate.closing {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                gate.writer = Writer::Filling;
                gate = self
                    .wake
                    .wait_timeout(gate, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            hope.waited(gate.batch.waiters.len() >= expected);
        }
        hope.took(gate.batch.waiters.len());
        gate.writer = Writer::Busy;
        Some(std::mem::replace(&mut gate.batch, spare))
    }
}

fn no_room() -> StoreError {
    StoreError::Full("no room on the disk".into())
}

/// What becomes of a commit when the disk is full.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Lets lanes drain and protocols end: it goes into the reserve.
    Essential,
    /// Is refused.
    Refusable,
    /// Journal records that nobody waits for: dropped and counted.
    Droppable,
}

impl Class {
    fn of(commit: &Commit, durability: Durability) -> Self {
        let (mut frees, mut tells) = (false, true);
        for change in &commit.changes {
            match change {
                Change::Journal(_) => {}
                Change::Payload(_) if durability != Durability::Synced => {}
                Change::Put { .. }
                | Change::Payload(_)
                | Change::Remember { .. }
                | Change::Protocol { .. } => return Class::Refusable,
                Change::Value { value, .. } => {
                    if value.as_ref().is_some_and(|value| value.len() > 4096) {
                        return Class::Refusable;
                    }
                    frees = true;
                }
                _ => frees = true,
            }
            tells &= matches!(change, Change::Journal(_) | Change::Payload(_));
        }
        match durability {
            Durability::Lazy | Durability::Written if tells => Class::Droppable,
            _ if frees => Class::Essential,
            _ => Class::Refusable,
        }
    }
}

/// Applies the changes of a frame that stands at `offset` of a segment.
pub fn apply_frame(
    state: Option<&mut State>,
    rows: Option<&mut Rows>,
    segment: u32,
    offset: u32,
    changes: &[u8],
) -> io::Result<()> {
    let base = offset + FRAME_HEAD as u32;
    let (mut state, mut rows) = (state, rows);
    let mut read = 0;
    for (tag, at, body) in Changes::new(changes) {
        let view = view(tag, body).ok_or_else(|| unknown(segment))?;
        let offset = base + at as u32;
        if let Some(state) = &mut state {
            state.apply(&view, body, position(segment, offset))?;
        }
        if let Some(rows) = &mut rows {
            rows.add(&view, offset, |id, rest| waits_in_lanes(changes, id, rest));
        }
        read = at + CHANGE_HEAD + body.len();
    }
    if read != changes.len() {
        return Err(unknown(segment));
    }
    Ok(())
}

fn unknown(segment: u32) -> io::Error {
    let name = segment_file(segment);
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{name}: a record of a kind that this version does not know"),
    )
}

/// Whether all targets of a message that are queued entered lanes in the same commit, so that the
/// lanes tell when it is no longer pending; `entry` reads the entry's targets.
fn waits_in_lanes(changes: &[u8], id: MessageId, entry: Reader<'_>) -> bool {
    let queued = count_targets(entry, Outcome::Queued).unwrap_or_default();
    let puts = || {
        Changes::new(changes)
            .filter(|(tag, _, body)| *tag == Tag::Put && is_put_of(body, id) == Some(true))
    };
    queued > 0 && puts().count() >= queued
}

/// The segment that is being written.
pub struct Tail {
    pub number: u32,
    pub file: Arc<dyn DiskFile>,
    pub len: u64,
    pub capacity: u64,
    pub synced: u64,
    pub ground: Ground,
}

/// The one thread that writes the log.
pub struct LogWriter {
    inner: Arc<Inner>,
    tail: Tail,
    has_reserve: bool,
    unsynced_since: Option<Instant>,
    hope: Hope,
}

/// Tells when the writer ends, a panic included.
struct Ended(Arc<Inner>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.writer_ended();
    }
}

/// Name of the file that keeps room for what must get through on a full disk.
pub const RESERVE: &str = "reserve";

/// Makes a segment in a file that has room for `capacity` bytes.
pub fn create_segment(disk: &dyn Disk, number: u32, capacity: u64) -> io::Result<Tail> {
    const NEW: &str = "segment.new";
    let made = (|| {
        let file = disk.open(NEW, true)?;
        file.allocate(capacity)?;
        let ground = Ground::reserved(SEGMENT_HEAD as u64);
        start_segment(disk, NEW, file, number, capacity, ground)
    })();
    if made.is_err() {
        let _ = disk.remove(NEW);
    }
    made
}

fn start_segment(
    disk: &dyn Disk,
    name: &str,
    file: Arc<dyn DiskFile>,
    number: u32,
    capacity: u64,
    ground: Ground,
) -> io::Result<Tail> {
    file.write_at(&segment_head(number), 0)?;
    file.sync()?;
    disk.rename(name, &segment_file(number))?;
    disk.sync_dir()?;
    Ok(Tail {
        number,
        file,
        len: SEGMENT_HEAD as u64,
        capacity,
        synced: SEGMENT_HEAD as u64,
        ground,
    })
}

/// Makes sure that the reserve is there.
pub fn ensure_reserve(disk: &dyn Disk, bytes: u64) -> io::Result<()> {
    let file = disk.open(RESERVE, true)?;
    let made = file.allocate(bytes).and_then(|()| file.sync());
    if made.is_err() {
        let _ = disk.remove(RESERVE);
    }
    made
}

impl LogWriter {
    pub fn new(inner: Arc<Inner>, tail: Tail, has_reserve: bool) -> Self {
        Self {
            inner,
            tail,
            has_reserve,
            unsynced_since: None,
            hope: Hope::default(),
        }
    }

    /// Runs until the store is closed or fails.
    pub fn run(mut self) {
        let ended = Ended(self.inner.clone());
        self.work();
        drop(ended);
    }

    fn work(&mut self) {
        let mut spare = Batch::default();
        while let Some(mut batch) = self.inner.take(spare, self.unsynced_since, &mut self.hope) {
            if let Err(error) = self.write(&mut batch) {
                let error = StoreError::Failed(error.to_string());
                // Nothing more is accepted by the time that the first is told.
                self.inner.fail(error.clone());
                for (_, waiter) in batch.waiters.drain(..) {
                    let _ = waiter.send(Err(error.clone()));
                }
                return;
            }
            batch.bytes.clear();
            batch.frames.clear();
            if batch.bytes.capacity() > 4 << 20 {
                batch.bytes = Vec::new();
            }
            batch.wants_sync = false;
            batch.wants_write = false;
            spare = batch;
        }
        if self.inner.refusal().is_some() && lock(&self.inner.gate).refuses.is_some() {
            return;
        }
        if let Err(error) = self.sync() {
            self.inner.fail(StoreError::Failed(error.to_string()));
            return;
        }
        let _ = self.tail.file.set_len(self.tail.len);
        lock(&self.inner.segments).insert(self.tail.number, self.tail.len);
    }

    /// Writes, syncs where wanted, applies, answers. An error means that the store failed.
    fn write(&mut self, batch: &mut Batch) -> io::Result<()> {
        let mut placed: Vec<Option<(u32, u32)>> = vec![None; batch.frames.len()];
        let gives_way = !self.tail.ground.is_written && self.inner.ahead.is_there();
        if (self.inner.roll_wanted.swap(false, Ordering::Relaxed) || gives_way)
            && self.tail.len > SEGMENT_HEAD as u64
            && let Err(error) = self.roll(FRAME_HEAD as u64)
            && !is_full(&error)
        {
            return Err(error);
        }
        let mut at = 0;
        let mut tried_room = false;
        while at < batch.frames.len() {
            let frame = &batch.frames[at];
            let full = self.inner.is_full.load(Ordering::Relaxed);
            if full && !frame.essential && (tried_room || !self.leave_full(frame.len as u64)?) {
                tried_room = true;
                at += 1;
                continue;
            }
            let full = self.inner.is_full.load(Ordering::Relaxed);
            // As many frames as go into this segment with one write.
            let (start, mut end, mut next) = (frame.start, frame.start, at);
            while let Some(frame) = batch.frames.get(next) {
                let len = (frame.start + frame.len - start) as u64;
                if self.tail.len + len > self.tail.capacity || (full && !frame.essential) {
                    break;
                }
                end = frame.start + frame.len;
                next += 1;
            }
            if next == at {
                let (len, essential) = (frame.len as u64, frame.essential);
                if !self.make_room(len, essential)? {
                    at += 1;
                }
                continue;
            }
            let offset = self.tail.len;
            for frame in &batch.frames[at..next] {
                let bytes = &mut batch.bytes[frame.start..frame.start + frame.len];
                seal_frame(bytes, self.tail.synced as u32);
            }
            match self.tail.file.write_at(&batch.bytes[start..end], offset) {
                Ok(()) => {}
                Err(error) if is_full(&error) => {
                    // Reserved room that is none: what was written of it must not be read again.
                    self.tail.file.write_at(&[0; FRAME_HEAD], offset)?;
                    self.enter_full();
                    if offset == SEGMENT_HEAD as u64 {
                        // Even a new segment takes nothing.
                        at = next;
                    } else {
                        self.tail.capacity = offset;
                    }
                    continue;
                }
                Err(error) => return Err(error),
            }
            for (index, frame) in batch.frames[at..next].iter().enumerate() {
                let within = offset + (frame.start - start) as u64;
                placed[at + index] = Some((self.tail.number, within as u32));
            }
            self.tail.len += (end - start) as u64;
            self.unsynced_since.get_or_insert_with(Instant::now);
            at = next;
        }
        let overdue = self
            .unsynced_since
            .is_some_and(|since| since.elapsed() >= self.inner.options.lazy_sync);
        if batch.wants_sync || overdue {
            self.sync()?;
        }
        self.apply(batch, &placed)?;
        for (frame, waiter) in batch.waiters.drain(..) {
            let answer = match placed.get(frame) {
                Some(None) => Err(no_room()),
                _ => Ok(()),
            };
            let _ = waiter.send(answer);
        }
        Ok(())
    }

    fn apply(&mut self, batch: &Batch, placed: &[Option<(u32, u32)>]) -> io::Result<()> {
        if placed.is_empty() {
            return Ok(());
        }
        let inner = self.inner.clone();
        let mut state = lock(&inner.state);
        let mut journal = inner
            .journal
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut lost = 0;
        for (frame, place) in batch.frames.iter().zip(placed) {
            let Some((segment, offset)) = *place else {
                lost += 1;
                continue;
            };
            if journal.active.segment != segment {
                let rows = Arc::new(std::mem::replace(&mut journal.active, Rows::new(segment)));
                journal.sealing.insert(rows.segment, rows.clone());
                lock(&inner.duties).sealed.push(rows);
                inner.duty.notify_one();
            }
            let changes = &batch.bytes[frame.start + FRAME_HEAD..frame.start + frame.len];
            apply_frame(
                Some(&mut state),
                Some(&mut journal.active),
                segment,
                offset,
                changes,
            )?;
            state.applied = position(segment, offset + frame.len as u32);
        }
        state.next = lock(&inner.gate).next.max(state.next);
        let stirred = state.take_stirred();
        drop(state);
        for watcher in stirred {
            watcher.notify_one();
        }
        let rows = journal.active.len();
        if rows > inner.options.segment_rows {
            inner.roll_wanted.store(true, Ordering::Relaxed);
        }
        let tail = &mut self.tail;
        if let Some(len) = (tail.ground).asks(tail.len, tail.capacity, rows, &inner.options) {
            lock(&inner.duties).ahead = Some(len);
            inner.duty.notify_one();
        }
        if lost > 0 {
            let waited = batch
                .waiters
                .iter()
                .filter(|(frame, _)| placed.get(*frame).is_some_and(Option::is_none))
                .count() as u64;
            inner.dropped.fetch_add(lost - waited, Ordering::Relaxed);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.tail.synced < self.tail.len {
            let start = Instant::now();
            self.tail.file.sync()?;
            self.hope.synced(start.elapsed());
            self.inner.syncs.fetch_add(1, Ordering::Relaxed);
            self.tail.synced = self.tail.len;
        }
        self.unsynced_since = None;
        Ok(())
    }

    /// Ends the segment and begins the next, with room for a frame of `len` bytes.
    fn roll(&mut self, len: u64) -> io::Result<()> {
        let wanted = len + SEGMENT_HEAD as u64;
        let mut capacity = self.inner.options.segment_size.max(wanted);
        if let Some((file, capacity)) = self.inner.ahead.take(wanted) {
            let disk = self.inner.disk.clone();
            let (number, ground) = (self.tail.number + 1, Ground::written());
            match start_segment(&*disk, AHEAD, file, number, capacity, ground) {
                Ok(tail) => return self.seal(tail),
                Err(error) if is_full(&error) => drop(disk.remove(AHEAD)),
                Err(error) => return Err(error),
            }
        }
        loop {
            match create_segment(&*self.inner.disk, self.tail.number + 1, capacity) {
                Ok(tail) => return self.seal(tail),
                Err(error) if is_full(&error) && capacity / 4 >= wanted.max(1 << 20) => {
                    capacity /= 4;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn seal(&mut self, next: Tail) -> io::Result<()> {
        // Only the last segment may have an end that is not synced.
        self.sync()?;
        // Gives back what was reserved; the end is found again when this is lost.
        let _ = self.tail.file.set_len(self.tail.len);
        let mut segments = lock(&self.inner.segments);
        segments.insert(self.tail.number, self.tail.len);
        segments.insert(next.number, next.capacity);
        self.tail = next;
        Ok(())
    }

    /// Makes room for a frame that does not fit this segment; `false`: there is none.
    fn make_room(&mut self, len: u64, essential: bool) -> io::Result<bool> {
        match self.roll(len) {
            Ok(()) => return Ok(true),
            Err(error) if is_full(&error) => self.enter_full(),
            Err(error) => return Err(error),
        }
        let bytes = self.inner.options.reserve;
        if !essential || !self.has_reserve || len + SEGMENT_HEAD as u64 > bytes {
            return Ok(false);
        }
        self.has_reserve = false;
        let disk = self.inner.disk.clone();
        let file = disk.open(RESERVE, false)?;
        let (number, ground) = (self.tail.number + 1, Ground::reserved(SEGMENT_HEAD as u64));
        let next = start_segment(&*disk, RESERVE, file, number, bytes, ground)?;
        self.seal(next)?;
        Ok(true)
    }

    fn enter_full(&self) {
        if !self.inner.is_full.swap(true, Ordering::Relaxed) {
            tracing::error!("no room on the disk: nothing new is accepted until there is");
        }
    }

    /// Tries whether there is room again: for the reserve first, then for a segment.
    fn leave_full(&mut self, len: u64) -> io::Result<bool> {
        if !self.has_reserve {
            match ensure_reserve(&*self.inner.disk, self.inner.options.reserve) {
                Ok(()) => self.has_reserve = true,
                Err(error) if is_full(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        match self.roll(len) {
            Ok(()) => {
                self.inner.is_full.store(false, Ordering::Relaxed);
                let dropped = self.inner.dropped.load(Ordering::Relaxed);
                tracing::warn!(
                    dropped,
                    "there is room on the disk again; journal records dropped meanwhile are counted"
                );
                Ok(true)
            }
            Err(error) if is_full(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
