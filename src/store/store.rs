//! [`LogStore`]: the [`Store`] that the rest of the bus sees.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque, vec_deque};
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use xbus_core::store::{
    Change, Commit, Durability, EntryRef, JournalEntry, LaneStatus, Query, QueueStatus, Queued,
    Store, StoreError,
};
use xbus_core::{Message, MessageId, Timestamp};

use crate::Options;
use crate::codec::Reader;
use crate::disk::{Disk, RealDisk};
use crate::keeper::Keeper;
use crate::kept::Record;
use crate::lock::DirLock;
use crate::log::{Inner, LogWriter, lock};
use crate::open::open;
use crate::pages::Place;
use crate::record::{EntryOf, PutView, Tag, View, view};
use crate::segment::read_change;
use crate::state::{Queue, State, Tries};

/// Figures for metrics and benchmarks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// Syncs of the log since opening.
    pub syncs: u64,
    /// Lazy journal records dropped since opening, because the disk was full.
    pub dropped: u64,
    /// Places of entries that are held in memory.
    pub places_in_memory: u64,
    /// Bytes of waiting messages that are held in memory.
    pub kept_in_memory: u64,
}

/// The store on a segmented log.
pub struct LogStore {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    damage: Vec<String>,
    _lock: Option<DirLock>,
}

impl LogStore {
    /// Opens the store in a folder, which is made when it is not there.
    ///
    /// # Errors
    /// `Locked` when another process has it open, `Full` when there is no room even to begin,
    /// `Corrupt` when its format is another one, `Failed` for whatever else the file system says.
    /// Damage does not keep it from opening: see [`LogStore::damage`].
    pub fn open(dir: &Path, options: Options) -> Result<Arc<Self>, StoreError> {
        std::fs::create_dir_all(dir)
            .map_err(|error| StoreError::Failed(format!("{}: {error}", dir.display())))?;
        let lock = DirLock::take(dir)?;
        Self::open_on(Arc::new(RealDisk::new(dir)), options, Some(lock))
    }

    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        options: Options,
        lock: Option<DirLock>,
    ) -> Result<Arc<Self>, StoreError> {
        let opened = open(disk, options)?;
        let inner = Arc::new(opened.inner);
        let writer = LogWriter::new(inner.clone(), opened.tail, opened.has_reserve);
        let keeper = Keeper::new(
            inner.clone(),
            opened.known,
            opened.next_checkpoint,
            opened.emptied,
        );
        let failed = |error: io::Error| StoreError::Failed(format!("no thread: {error}"));
        let threads = vec![
            std::thread::Builder::new()
                .name("xbus-log".into())
                .spawn(move || writer.run())
                .map_err(failed)?,
            std::thread::Builder::new()
                .name("xbus-keeper".into())
                .spawn(move || keeper.run())
                .map_err(failed)?,
        ];
        Ok(Arc::new(Self {
            inner,
            threads: Mutex::new(threads),
            damage: opened.damage,
            _lock: lock,
        }))
    }

    /// Damage that opening found, in words; empty when there was none.
    pub fn damage(&self) -> &[String] {
        &self.damage
    }

    /// Figures since opening.
    pub fn statistics(&self) -> Statistics {
        let state = lock(&self.inner.state);
        let lanes = state.queues.values().flat_map(|queue| queue.lanes.values());
        Statistics {
            syncs: self.inner.syncs.load(Ordering::Relaxed),
            dropped: self.inner.dropped.load(Ordering::Relaxed),
            places_in_memory: lanes.map(|lane| lane.in_memory() as u64).sum(),
            kept_in_memory: state.kept.bytes() as u64,
        }
    }

    /// Ends the threads, the log written and synced, a checkpoint made.
    fn shut(&self) {
        let threads = std::mem::take(&mut *lock(&self.threads));
        self.inner.begin_closing();
        join(&self.inner, threads);
    }

    /// Ends as a kill would: what is not written is lost, no checkpoint is made.
    #[cfg(test)]
    pub(crate) fn kill(&self) {
        self.inner.fail(StoreError::Failed("killed".into()));
        self.shut();
    }

    /// Checks that what a commit is about is there, and finds what the journal must be told.
    fn resolve(&self, commit: &Commit) -> Result<Vec<Option<EntryOf>>, StoreError> {
        let mut found = Vec::new();
        for (index, change) in commit.changes.iter().enumerate() {
            let (at, wanted, reads) = match change {
                Change::Settle { at, .. } | Change::Attempt { at, .. } => (at, None, true),
                Change::Park { at, .. } => (at, Some(false), false),
                Change::Release { at } => (at, Some(true), false),
                _ => continue,
            };
            let (place, kept) = {
                let state = lock(&self.inner.state);
                let parked = state
                    .queues
                    .get(&*at.queue)
                    .is_some_and(|queue| queue.parked.contains_key(&at.seq));
                let place = if wanted.is_some_and(|wanted| wanted != parked) {
                    None
                } else {
                    state.locate(&at.queue, &at.key, at.seq).map_err(damaged)?
                };
                let reads = reads && place.is_some();
                (place, reads.then(|| state.record(at.seq)).flatten())
            };
            let Some(place) = place else {
                return Err(StoreError::NotFound(format!(
                    "queue '{}' has no such entry: number {}",
                    at.queue, at.seq
                )));
            };
            if !reads {
                continue;
            }
            // An entry that cannot be read can be settled all the same.
            let body = match kept {
                Some(kept) => Some(kept.body),
                None => match read_change(&self.inner.files, place) {
                    Ok((Tag::Put | Tag::Moved, body)) => Some(body),
                    _ => None,
                },
            };
            if let Some(body) = body
                && let Some(put) = PutView::read(&mut Reader::new(&body))
            {
                found.resize_with(index, || None);
                found.push(Some(EntryOf {
                    id: put.id,
                    target: put.target.into(),
                }));
            }
        }
        Ok(found)
    }

    /// Reads entries, each from memory where that keeps it.
    fn read_all(&self, found: Vec<Found>) -> Result<Vec<Queued>, StoreError> {
        let read = |(found, kept): Found| match kept {
            Some(kept) => decode(found, Some(&kept.body)).map(|(queued, _)| queued),
            None => self.read(found),
        };
        found.into_iter().map(read).collect()
    }

    fn read(&self, found: Located) -> Result<Queued, StoreError> {
        let (tag, body) = read_change(&self.inner.files, found.place)?;
        let is_put = matches!(tag, Tag::Put | Tag::Moved);
        decode(found, is_put.then_some(&body)).map(|(queued, _)| queued)
    }
}

/// Makes an entry of the body of its put; says also how much of that comes before the message.
fn decode(found: Located, body: Option<&Bytes>) -> Result<(Queued, usize), StoreError> {
    let wrong = || {
        StoreError::Corrupt(format!(
            "the entry {} of queue '{}' is not where it should be",
            found.at.seq, found.at.queue
        ))
    };
    let body = body.ok_or_else(wrong)?;
    let mut reader = Reader::new(body);
    let put = PutView::read(&mut reader).ok_or_else(wrong)?;
    if put.seq != found.at.seq {
        return Err(wrong());
    }
    let beginning = reader.position();
    let message = reader.message(put.id, body).ok_or_else(wrong)?;
    let tries = found.tries;
    let queued = Queued {
        at: found.at,
        message: Arc::new(message),
        target: Arc::from(put.target),
        since: put.since,
        cause: put.cause,
        attempts: tries.as_ref().map_or(0, |tries| tries.attempts),
        last_error: tries
            .as_ref()
            .and_then(|tries| tries.error.as_deref().map(str::to_owned)),
        next_try: tries.and_then(|tries| tries.next_try),
        parked: found.parked,
    };
    Ok((queued, beginning))
}

/// Waits for the writer, then for the keeper.
fn join(inner: &Inner, threads: Vec<JoinHandle<()>>) {
    for (at, thread) in threads.into_iter().enumerate() {
        if at == 1 {
            lock(&inner.duties).stop = true;
            inner.duty.notify_one();
        }
        if thread.join().is_err() {
            tracing::error!("a thread of the store panicked");
        }
    }
}

impl Drop for LogStore {
    fn drop(&mut self) {
        self.shut();
    }
}

impl Inner {
    /// Whether a write or a sync failed.
    pub fn has_failed(&self) -> bool {
        matches!(self.refusal(), Some(StoreError::Failed(text)) if text != "it is closed")
    }
}

fn damaged(error: io::Error) -> StoreError {
    StoreError::Corrupt(error.to_string())
}

/// An entry, found but not read.
struct Located {
    at: EntryRef,
    place: u64,
    tries: Option<Tries>,
    parked: Option<String>,
}

/// An entry with its record, where memory has all of it.
type Found = (Located, Option<Record>);

/// Entries with what memory keeps of them.
fn with_records(state: &State, found: Vec<Located>) -> Vec<Found> {
    let with = |found: Located| {
        let kept = state.record(found.at.seq).filter(|kept| kept.is_whole);
        (found, kept)
    };
    found.into_iter().map(with).collect()
}

fn waiting(name: &Arc<str>, queue: &Queue, key: &Arc<str>, place: Place) -> Located {
    Located {
        at: EntryRef {
            queue: name.clone(),
            key: key.clone(),
            seq: place.0,
        },
        place: place.1,
        tries: queue.tries.get(&place.0).cloned(),
        parked: None,
    }
}

fn parked(name: &Arc<str>, queue: &Queue, seq: u64) -> Option<Located> {
    let parked = queue.parked.get(&seq)?;
    Some(Located {
        at: EntryRef {
            queue: name.clone(),
            key: parked.key.clone(),
            seq,
        },
        place: parked.position,
        tries: queue.tries.get(&seq).cloned(),
        parked: Some(parked.reason.to_string()),
    })
}

/// The oldest entries of a queue whose numbers are not below `from`, at most `limit`.
fn oldest(
    state: &State,
    name: &Arc<str>,
    queue: &Queue,
    from: u64,
    limit: usize,
) -> io::Result<Vec<Located>> {
    fn tail_of(places: &VecDeque<Place>, from: u64) -> vec_deque::Iter<'_, Place> {
        places.range(places.partition_point(|place| place.0 < from)..)
    }
    let mut walks: Vec<_> = queue
        .lanes
        .iter()
        .map(|(key, lane)| {
            // The page before the first that begins beyond it may hold it.
            let pages = lane.pages.partition_point(|page| page.first <= from);
            let parts = (
                tail_of(&lane.head, from),
                lane.pages.range(pages.saturating_sub(1)..),
                tail_of(&lane.tail, from),
            );
            (key, parts, VecDeque::new())
        })
        .collect();
    let mut next = |at: usize| -> io::Result<Option<Place>> {
        let (_, (head, pages, tail), loaded) = &mut walks[at];
        if let Some(place) = head.next() {
            return Ok(Some(*place));
        }
        while loaded.is_empty()
            && let Some(page) = pages.next()
        {
            *loaded = state.pages.read(page.handle)?.into();
            loaded.drain(..loaded.partition_point(|place: &Place| place.0 < from));
        }
        Ok(loaded.pop_front().or_else(|| tail.next().copied()))
    };
    let mut heap = BinaryHeap::new();
    for at in 0..queue.lanes.len() {
        heap.extend(next(at)?.map(|place| Reverse((place, at))));
    }
    let keys: Vec<&Arc<str>> = queue.lanes.keys().collect();
    let mut found = Vec::new();
    while found.len() < limit
        && let Some(Reverse((place, at))) = heap.pop()
    {
        found.push(waiting(name, queue, keys[at], place));
        heap.extend(next(at)?.map(|place| Reverse((place, at))));
    }
    Ok(found)
}

impl Store for LogStore {
    fn commit(
        &self,
        commit: Commit,
        durability: Durability,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let entered = self
            .resolve(&commit)
            .and_then(|entries| self.inner.append(&commit, &entries, durability));
        match entered {
            Err(error) => Box::pin(std::future::ready(Err(error))),
            Ok(None) => Box::pin(std::future::ready(Ok(()))),
            Ok(Some(receiver)) => Box::pin(async move {
                receiver
                    .await
                    .unwrap_or_else(|_| Err(StoreError::Failed("it is closed".into())))
            }),
        }
    }

    fn head(&self, queue: &str, key: &str) -> Result<Option<Queued>, StoreError> {
        let (found, kept) = {
            let state = lock(&self.inner.state);
            let Some((name, queue)) = state.queues.get_key_value(queue) else {
                return Ok(None);
            };
            let Some((key, lane)) = queue.lanes.get_key_value(key) else {
                return Ok(None);
            };
            let Some(place) = lane.front() else {
                return Ok(None);
            };
            let kept = state.record(place.0).filter(|kept| kept.is_whole);
            (waiting(name, queue, key, place), kept)
        };
        if let Some(kept) = kept {
            return decode(found, Some(&kept.body)).map(|(queued, _)| Some(queued));
        }
        let (tag, body) = read_change(&self.inner.files, found.place)?;
        let is_put = matches!(tag, Tag::Put | Tag::Moved);
        let (queued, beginning) = decode(found, is_put.then_some(&body))?;
        lock(&self.inner.state).keep_head(&queued.at, &body, beginning);
        Ok(Some(queued))
    }

    fn lanes(&self, queue: &str) -> Vec<LaneStatus> {
        let state = lock(&self.inner.state);
        let Some(queue) = state.queues.get(queue) else {
            return Vec::new();
        };
        let lanes = queue.lanes.iter().filter_map(|(key, lane)| {
            let (seq, _) = lane.front()?;
            let tries = queue.tries.get(&seq);
            Some(LaneStatus {
                key: key.clone(),
                depth: lane.depth,
                head_seq: seq,
                attempts: tries.map_or(0, |tries| tries.attempts),
                next_try: tries.and_then(|tries| tries.next_try),
            })
        });
        let mut lanes: Vec<LaneStatus> = lanes.collect();
        drop(state);
        lanes.sort_unstable_by_key(|lane| lane.head_seq);
        lanes
    }

    fn queues(&self) -> Vec<QueueStatus> {
        let mut found = Vec::new();
        {
            let state = lock(&self.inner.state);
            for (name, queue) in &state.queues {
                let fronts = queue.lanes.iter();
                let fronts = fronts.filter_map(|(key, lane)| Some((lane.front()?, key)));
                let blocked = fronts
                    .clone()
                    .filter(|(place, _)| queue.tries.contains_key(&place.0));
                let status = QueueStatus {
                    name: name.clone(),
                    depth: queue.depth,
                    parked: queue.parked.len() as u64,
                    blocked_keys: blocked.count() as u64,
                    head: None,
                };
                let head = fronts.min_by_key(|(place, _)| place.0);
                let head = head.map(|(place, key)| waiting(name, queue, key, place));
                found.push((status, head));
            }
        }
        let mut queues: Vec<QueueStatus> = found
            .into_iter()
            .map(|(mut status, head)| {
                status.head = head.and_then(|head| self.read(head).ok());
                status
            })
            .collect();
        queues.sort_by(|a, b| a.name.cmp(&b.name));
        queues
    }

    fn entries(
        &self,
        queue: &str,
        wants_parked: bool,
        limit: usize,
    ) -> Result<Vec<Queued>, StoreError> {
        if !wants_parked {
            return self.entries_from(queue, 0, limit);
        }
        let found = {
            let state = lock(&self.inner.state);
            let Some((name, queue)) = state.queues.get_key_value(queue) else {
                return Ok(Vec::new());
            };
            let numbers = queue.parked.keys().take(limit);
            let found = numbers.filter_map(|seq| parked(name, queue, *seq));
            with_records(&state, found.collect())
        };
        self.read_all(found)
    }

    fn entries_from(
        &self,
        queue: &str,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Queued>, StoreError> {
        let found = {
            let state = lock(&self.inner.state);
            let Some((name, queue)) = state.queues.get_key_value(queue) else {
                return Ok(Vec::new());
            };
            let found = oldest(&state, name, queue, from, limit).map_err(damaged)?;
            with_records(&state, found)
        };
        self.read_all(found)
    }

    fn watch(&self, queue: &str, wake: &Arc<Notify>) {
        let mut state = lock(&self.inner.state);
        state.watchers.insert(queue.into(), Arc::downgrade(wake));
    }

    fn entry(&self, queue: &str, id: MessageId) -> Result<Option<Queued>, StoreError> {
        for place in self.inner.puts_of(id)? {
            let Ok((_, body)) = read_change(&self.inner.files, place) else {
                continue;
            };
            let Some(put) = PutView::read(&mut Reader::new(&body)) else {
                continue;
            };
            if put.queue != queue || put.id != id {
                continue;
            }
            let found = {
                let state = lock(&self.inner.state);
                match state.queues.get_key_value(queue) {
                    Some((name, queue)) => match parked(name, queue, put.seq) {
                        Some(found) => Some(found),
                        None => match queue.lanes.get_key_value(put.key) {
                            Some((key, lane)) => lane
                                .find(put.seq, &state.pages)
                                .map_err(damaged)?
                                .map(|place| waiting(name, queue, key, (put.seq, place))),
                            None => None,
                        },
                    },
                    None => None,
                }
            };
            if let Some(found) = found {
                return self.read(found).map(Some);
            }
        }
        Ok(None)
    }

    fn find(&self, query: &Query) -> Result<Vec<JournalEntry>, StoreError> {
        self.inner.find(query)
    }

    fn payload(&self, id: MessageId) -> Result<Option<Message>, StoreError> {
        self.inner.payload(id)
    }

    fn protocols(&self) -> Vec<(MessageId, Vec<Bytes>)> {
        let open: Vec<(MessageId, Vec<u64>)> = lock(&self.inner.state)
            .protocols
            .iter()
            .map(|(id, places)| (*id, places.clone()))
            .collect();
        let read = |place: u64| match read_change(&self.inner.files, place) {
            Ok((_, body)) => match view(Tag::Protocol, &body) {
                Some(View::Protocol { data, .. }) => Some(body.slice(body.len() - data.len()..)),
                _ => None,
            },
            Err(error) => {
                tracing::error!(%error, "a protocol record cannot be read");
                None
            }
        };
        open.into_iter()
            .map(|(id, places)| (id, places.into_iter().filter_map(read).collect()))
            .collect()
    }

    fn recall(&self, scope: &str, key: &str) -> Option<Bytes> {
        let state = lock(&self.inner.state);
        let kept = state.remembered.get(scope)?.get(key)?;
        let in_time = kept.until.is_none_or(|until| until > Timestamp::now());
        in_time.then(|| Bytes::copy_from_slice(&kept.value))
    }

    fn values(&self, prefix: &str) -> Vec<(Arc<str>, Bytes)> {
        let state = lock(&self.inner.state);
        let from: Arc<str> = prefix.into();
        let values = state.values.range(from..);
        values
            .take_while(|(name, _)| name.starts_with(prefix))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn health(&self) -> Result<(), StoreError> {
        self.inner.refusal().map_or(Ok(()), Err)
    }

    fn disk_bytes(&self) -> u64 {
        let segments: u64 = lock(&self.inner.segments).values().sum();
        let journal = self
            .inner
            .journal
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let indexes: u64 = journal.sealed.values().map(|index| index.bytes).sum();
        let ahead = self.inner.ahead.len();
        segments + ahead + indexes + self.inner.other_bytes.load(Ordering::Relaxed)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let (done, wait) = tokio::sync::oneshot::channel();
        self.inner.begin_closing();
        let threads = std::mem::take(&mut *lock(&self.threads));
        let inner = self.inner.clone();
        let ended = std::thread::Builder::new()
            .name("xbus-close".into())
            .spawn(move || {
                join(&inner, threads);
                let _ = done.send(());
            });
        Box::pin(async move {
            if ended.is_ok() {
                let _ = wait.await;
            }
        })
    }
}
