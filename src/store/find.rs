//! Searching the journal. Indexes give places in the log that may match; each is read, folded with
//! what was said of the message later, and checked against the whole query.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use xbus_core::store::{JournalEntry, Outcome, Query, Settlement, StoreError, TargetEntry};
use xbus_core::{Message, MessageId};

use crate::codec::{Reader, hash_id, hash_key};
use crate::index::{IdRow, IndexFile, PENDING_IN_LANES, RowFilter, class_bit};
use crate::lane::Lane;
use crate::log::{Inner, lock};
use crate::pages::read_page;
use crate::record::{PutView, Tag, View, read_journal, read_message, view};
use crate::segment::read_change;
use crate::state::position;

/// How many candidates are looked at together.
const CHUNK: usize = 256;
/// How many are found when the query does not say.
const DEFAULT_LIMIT: usize = 100;

/// What a chunk of candidates is known by.
enum Candidates {
    /// Places of journal records.
    Records(Vec<u64>),
    Ids(Vec<MessageId>),
}

/// What matched so far, each message once.
#[derive(Default)]
struct Found {
    entries: Vec<(u64, JournalEntry)>,
    ids: HashSet<MessageId>,
}

impl Found {
    fn add(&mut self, place: u64, entry: JournalEntry) {
        if self.ids.insert(entry.id) {
            self.entries.push((place, entry));
        }
    }

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn newest(mut self, limit: usize) -> Vec<JournalEntry> {
        self.entries.sort_by_key(|(place, _)| Reverse(*place));
        self.entries.truncate(limit);
        self.entries.into_iter().map(|(_, entry)| entry).collect()
    }
}

impl Inner {
    /// Journal entries that match, newest first.
    pub fn find(&self, query: &Query) -> Result<Vec<JournalEntry>, StoreError> {
        let limit = match query.limit {
            0 => DEFAULT_LIMIT,
            limit => limit,
        };
        let mut found = Found::default();
        if let Some(id) = query.id {
            self.check(Candidates::Ids(vec![id]), query, &mut found)?;
        } else if let Some((name, value)) = &query.key {
            self.by_key(hash_key(name, value), query, limit, &mut found)?;
        } else {
            if query.outcome == Some(Outcome::Pending) {
                self.by_lanes(query, limit, &mut found)?;
            }
            let more = limit + found.len();
            self.by_rows(query, more, &mut found)?;
        }
        Ok(found.newest(limit))
    }

    /// What the journal says now of these messages.
    pub fn journal_of(&self, ids: &[MessageId]) -> Result<Vec<JournalEntry>, StoreError> {
        let mut found = Found::default();
        for chunk in ids.chunks(CHUNK) {
            let ids = Candidates::Ids(chunk.to_vec());
            self.check(ids, &Query::default(), &mut found)?;
        }
        Ok(found.newest(usize::MAX))
    }

    /// The kept payload: the one kept for the journal, else a lane entry's.
    pub fn payload(&self, id: MessageId) -> Result<Option<Message>, StoreError> {
        let mut rows = self
            .rows_of(&[id])?
            .remove(&hash_id(id))
            .unwrap_or_default();
        rows.retain(|(_, tag)| matches!(tag, Tag::Payload | Tag::Put));
        rows.sort_by_key(|(place, tag)| (*tag == Tag::Payload, *place));
        for (place, _) in rows.into_iter().rev() {
            let Ok((tag, body)) = read_change(&self.files, place) else {
                continue;
            };
            // What an async target was made to send is not what was received.
            if let Some(View::Put(put) | View::Moved(put)) = view(tag, &body)
                && !put.target.is_empty()
            {
                continue;
            }
            if let Some(message) = read_message(tag, &body)
                && message.id == id
            {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Places of the puts of a message, newest first.
    pub fn puts_of(&self, id: MessageId) -> Result<Vec<u64>, StoreError> {
        let mut rows = self
            .rows_of(&[id])?
            .remove(&hash_id(id))
            .unwrap_or_default();
        rows.retain(|(_, tag)| *tag == Tag::Put);
        rows.sort_by_key(|(place, _)| Reverse(*place));
        Ok(rows.into_iter().map(|(place, _)| place).collect())
    }

    fn sealed(&self) -> Vec<(u32, Arc<IndexFile>)> {
        let journal = self.journal.read().unwrap_or_else(PoisonError::into_inner);
        let sealed = journal.sealed.iter().rev();
        sealed.map(|(at, index)| (*at, index.clone())).collect()
    }

    /// Everything that is said of these messages: place and kind, by the hash of the id.
    fn rows_of(&self, ids: &[MessageId]) -> Result<HashMap<u64, Vec<(u64, Tag)>>, StoreError> {
        let mut found: HashMap<u64, Vec<(u64, Tag)>> = HashMap::new();
        let mut take = |segment: u32, rows: &[IdRow]| {
            for row in rows {
                if let Some(tag) = Tag::from_u8(row.tag) {
                    let place = position(segment, row.offset);
                    found.entry(row.hash).or_default().push((place, tag));
                }
            }
        };
        let all: HashSet<u64> = ids.iter().map(|id| hash_id(*id)).collect();
        let mut rows = Vec::new();
        let sealed: Vec<(u32, Arc<IndexFile>)> = {
            let journal = self.journal.read().unwrap_or_else(PoisonError::into_inner);
            journal.active.of_ids(&all, &mut rows);
            take(journal.active.segment, &rows);
            for (segment, sealing) in &journal.sealing {
                rows.clear();
                sealing.of_ids(&all, &mut rows);
                take(*segment, &rows);
            }
            let sealed = journal.sealed.iter();
            sealed.map(|(at, index)| (*at, index.clone())).collect()
        };
        for (segment, index) in sealed {
            let some = ids.iter().filter(|id| index.summary.may_know(**id));
            let some: HashSet<u64> = some.map(|id| hash_id(*id)).collect();
            if !some.is_empty() {
                rows.clear();
                match index.of_ids(&some, &mut rows) {
                    Ok(()) => take(segment, &rows),
                    // Deleted meanwhile.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(StoreError::Corrupt(error.to_string())),
                }
            }
        }
        Ok(found)
    }

    /// Reads and folds candidates, and keeps those that match.
    fn check(
        &self,
        candidates: Candidates,
        query: &Query,
        found: &mut Found,
    ) -> Result<(), StoreError> {
        let mut read: HashMap<u64, JournalEntry> = HashMap::new();
        let ids = match candidates {
            Candidates::Ids(ids) => ids,
            Candidates::Records(places) => {
                let mut ids = Vec::with_capacity(places.len());
                for place in places {
                    if let Some(entry) = self.read_entry(place)
                        && matches_fixed(&entry, query)
                    {
                        ids.push(entry.id);
                        read.insert(place, entry);
                    }
                }
                ids
            }
        };
        let mut rows = self.rows_of(&ids)?;
        for id in ids {
            let Some(rows) = rows.get_mut(&hash_id(id)) else {
                continue;
            };
            rows.sort_unstable_by_key(|row| row.0);
            let newest = rows.iter().rev().filter(|row| row.1 == Tag::Journal);
            let entry = newest
                .filter_map(|(place, _)| {
                    let entry = read.get(place).cloned();
                    Some((*place, entry.or_else(|| self.read_entry(*place))?))
                })
                .find(|(_, entry)| entry.id == id);
            if let Some((place, mut entry)) = entry {
                self.fold(&mut entry, place, rows);
                if matches(&entry, query) {
                    found.add(place, entry);
                }
            }
        }
        Ok(())
    }

    fn read_entry(&self, place: u64) -> Option<JournalEntry> {
        let (tag, body) = read_change(&self.files, place).ok()?;
        (tag == Tag::Journal).then(|| read_journal(&body))?
    }

    /// Adds what was said of the targets apart from the entry.
    fn fold(&self, entry: &mut JournalEntry, place: u64, rows: &[(u64, Tag)]) {
        for (at, tag) in rows {
            if !matches!(tag, Tag::Settle | Tag::Attempt | Tag::Target) {
                continue;
            }
            let Ok((tag, body)) = read_change(&self.files, *at) else {
                continue;
            };
            let Some((id, update)) = view(tag, &body).and_then(update_of) else {
                continue;
            };
            if id != entry.id {
                continue;
            }
            match entry
                .targets
                .iter_mut()
                .find(|known| known.name == update.name)
            {
                Some(known) => {
                    let queued = known.outcome == Outcome::Queued;
                    // An attempt says nothing of what has left its lane.
                    if queued || (*at > place && tag != Tag::Attempt) {
                        *known = update;
                    }
                }
                None => entry.targets.push(update),
            }
        }
        entry.outcome = shown(entry);
    }

    fn by_key(
        &self,
        hash: u64,
        query: &Query,
        limit: usize,
        found: &mut Found,
    ) -> Result<(), StoreError> {
        let mut places = Vec::new();
        {
            let journal = self.journal.read().unwrap_or_else(PoisonError::into_inner);
            let sealing = journal.sealing.values().rev().map(|rows| &**rows);
            for rows in std::iter::once(&journal.active).chain(sealing) {
                let of_key = rows.of_key(hash).into_iter();
                places.extend(of_key.map(|offset| position(rows.segment, offset)));
            }
        }
        for chunk in places.chunks(CHUNK) {
            self.check(Candidates::Records(chunk.to_vec()), query, found)?;
        }
        for (segment, index) in self.sealed() {
            if found.len() >= limit {
                return Ok(());
            }
            let offsets = index.of_key(hash).unwrap_or_default();
            for chunk in offsets.chunks(CHUNK) {
                let places = chunk.iter().map(|offset| position(segment, *offset));
                self.check(Candidates::Records(places.collect()), query, found)?;
                if found.len() >= limit {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// By route, outcome and time: the rows of the segments, newest first.
    fn by_rows(&self, query: &Query, limit: usize, found: &mut Found) -> Result<(), StoreError> {
        let waiting = 1u16 << PENDING_IN_LANES;
        let classes = match query.outcome {
            None => 0,
            Some(Outcome::Delivered) => {
                class_bit(Outcome::Delivered) | class_bit(Outcome::Pending) | waiting
            }
            Some(outcome) => class_bit(outcome),
        };
        let filter = RowFilter {
            route: query.route.clone(),
            classes,
            since: query.since.map(|time| time.as_micros()),
            until: query.until.map(|time| time.as_micros()),
        };
        let extra = match query.outcome {
            Some(outcome) if outcome != Outcome::Delivered => self.notable(outcome)?,
            _ => BTreeMap::new(),
        };
        let none = HashSet::new();
        let mut places: Vec<u64> = Vec::new();
        {
            let journal = self.journal.read().unwrap_or_else(PoisonError::into_inner);
            let sealing = journal.sealing.values().rev().map(|rows| &**rows);
            for rows in std::iter::once(&journal.active).chain(sealing) {
                let extra = extra.get(&rows.segment).unwrap_or(&none);
                let route = rows.summary.may_pass(&filter);
                let passing = rows.journal.iter().rev().filter(|row| {
                    route.is_some_and(|route| row.passes(&filter, route))
                        || extra.contains(&row.offset)
                });
                places.extend(passing.map(|row| position(rows.segment, row.offset)));
            }
        }
        if self.check_until(&places, query, limit, found)? {
            return Ok(());
        }
        for (segment, index) in self.sealed() {
            let extra = extra.get(&segment).unwrap_or(&none);
            let route = index.summary.may_pass(&filter);
            if route.is_none() && extra.is_empty() {
                continue;
            }
            let mut filter = filter.clone();
            if query.outcome == Some(Outcome::Delivered) {
                // Nothing of the segment has left its lanes: nothing of it that waited is done.
                let live = lock(&self.state).live.get(&segment).copied();
                if live.is_some_and(|live| live >= index.summary.pins) {
                    filter.classes &= !waiting;
                    if index.summary.may_pass(&filter).is_none() {
                        continue;
                    }
                }
            }
            // An index that is gone was deleted meanwhile.
            let offsets = index.passing(&filter, route, extra).unwrap_or_default();
            places.clear();
            places.extend(offsets.into_iter().map(|offset| position(segment, offset)));
            if self.check_until(&places, query, limit, found)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn check_until(
        &self,
        places: &[u64],
        query: &Query,
        limit: usize,
        found: &mut Found,
    ) -> Result<bool, StoreError> {
        // Few at first: most searches end after a handful.
        let mut rest = places;
        let mut chunk = limit.clamp(16, CHUNK);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(chunk.min(rest.len()));
            self.check(Candidates::Records(now.to_vec()), query, found)?;
            if found.len() >= limit {
                return Ok(true);
            }
            rest = later;
            chunk = (chunk * 2).min(4096);
        }
        Ok(false)
    }

    /// Journal records of messages that a later record gave this outcome, by segment.
    fn notable(&self, outcome: Outcome) -> Result<BTreeMap<u32, HashSet<u32>>, StoreError> {
        let mut ids = Vec::new();
        {
            let journal = self.journal.read().unwrap_or_else(PoisonError::into_inner);
            ids.extend(journal.active.notable(outcome));
            for rows in journal.sealing.values() {
                ids.extend(rows.notable(outcome));
            }
        }
        for (_, index) in self.sealed() {
            ids.extend(index.notable(outcome).unwrap_or_default());
        }
        let mut places: BTreeMap<u32, HashSet<u32>> = BTreeMap::new();
        for chunk in ids.chunks(4096) {
            for rows in self.rows_of(chunk)?.into_values() {
                for (place, _) in rows.iter().filter(|row| row.1 == Tag::Journal) {
                    let segment = crate::state::segment_of(*place);
                    places
                        .entry(segment)
                        .or_default()
                        .insert(crate::state::offset_of(*place));
                }
            }
        }
        Ok(places)
    }

    /// Pending messages, from what waits in lanes or is parked: newest first.
    fn by_lanes(&self, query: &Query, limit: usize, found: &mut Found) -> Result<(), StoreError> {
        let (mut walks, capacity) = {
            let state = lock(&self.state);
            let queues = state.queues.values().filter(|queue| queue.has_targets);
            let mut walks = Vec::new();
            for queue in queues {
                walks.extend(queue.lanes.values().cloned().map(Walk::new));
                let mut parked: Vec<u64> = queue.parked.values().map(|p| p.position).collect();
                parked.sort_unstable();
                walks.push(Walk {
                    lane: Lane::default(),
                    ready: parked,
                });
            }
            (walks, state.pages.capacity)
        };
        let mut heap = BinaryHeap::new();
        for (at, walk) in walks.iter_mut().enumerate() {
            heap.extend(walk.next(&self.files, capacity).map(|place| (place, at)));
        }
        let mut seen = HashSet::new();
        let mut ids = Vec::new();
        loop {
            let next = heap.pop();
            if let Some((place, at)) = next {
                heap.extend(
                    walks[at]
                        .next(&self.files, capacity)
                        .map(|place| (place, at)),
                );
                if let Ok((_, body)) = read_change(&self.files, place)
                    && let Some(put) = PutView::read(&mut Reader::new(&body))
                    && seen.insert(put.id)
                {
                    ids.push(put.id);
                }
            }
            if ids.len() >= CHUNK.min(2 * limit) || next.is_none() {
                self.check(Candidates::Ids(std::mem::take(&mut ids)), query, found)?;
                if found.len() >= limit || next.is_none() {
                    return Ok(());
                }
            }
        }
    }
}

/// A lane walked from its end.
struct Walk {
    lane: Lane,
    /// The next is the last.
    ready: Vec<u64>,
}

impl Walk {
    fn new(mut lane: Lane) -> Self {
        let ready = lane.tail.drain(..).map(|place| place.1).collect();
        Self { lane, ready }
    }

    fn next(&mut self, files: &crate::disk::OpenFiles, capacity: usize) -> Option<u64> {
        loop {
            if let Some(place) = self.ready.pop() {
                return Some(place);
            }
            match self.lane.pages.pop_back() {
                // A page that is gone was delivered meanwhile.
                Some(page) => {
                    let places = read_page(files, capacity, page.handle).unwrap_or_default();
                    self.ready = places.into_iter().map(|place| place.1).collect();
                }
                None if self.lane.head.is_empty() => return None,
                None => self.ready = self.lane.head.drain(..).map(|place| place.1).collect(),
            }
        }
    }
}

/// What a record says of one target.
fn update_of(view: View<'_>) -> Option<(MessageId, TargetEntry)> {
    match view {
        View::Settle {
            at,
            attempts,
            error,
            time,
            how,
        } => {
            let (id, target) = at.of?;
            let outcome = match how {
                Settlement::Delivered => Outcome::Delivered,
                Settlement::Dropped => Outcome::Failed,
                Settlement::Forwarded => return None,
            };
            Some((id, entry(target, outcome, attempts, error, time)))
        }
        View::Attempt {
            at,
            attempts,
            error,
            time,
            ..
        } => {
            let (id, target) = at.of?;
            Some((id, entry(target, Outcome::Queued, attempts, error, time)))
        }
        View::Target { id, target } => Some((id, target)),
        _ => None,
    }
}

fn entry(
    name: &str,
    outcome: Outcome,
    attempts: u32,
    error: Option<&str>,
    at: xbus_core::Timestamp,
) -> TargetEntry {
    TargetEntry {
        name: name.into(),
        outcome,
        attempts,
        error: error.map(str::to_owned),
        at,
    }
}

/// The outcome of a message as it is shown.
fn shown(entry: &JournalEntry) -> Outcome {
    let any = |outcome| entry.targets.iter().any(|target| target.outcome == outcome);
    if entry.outcome != Outcome::Pending
        || entry.targets.is_empty()
        || any(Outcome::Queued)
        || any(Outcome::Pending)
    {
        entry.outcome
    } else if any(Outcome::Failed) {
        Outcome::Failed
    } else if any(Outcome::InDoubt) {
        Outcome::InDoubt
    } else {
        Outcome::Delivered
    }
}

/// What later records cannot change.
fn matches_fixed(entry: &JournalEntry, query: &Query) -> bool {
    query.id.is_none_or(|id| entry.id == id)
        && query.since.is_none_or(|since| entry.received_at >= since)
        && query.until.is_none_or(|until| entry.received_at < until)
}

fn matches(entry: &JournalEntry, query: &Query) -> bool {
    let has_key = |(name, value): &(String, String)| {
        let mut keys = entry.keys.iter();
        keys.any(|(known, is)| **known == **name && is == value)
    };
    matches_fixed(entry, query)
        && query
            .route
            .as_ref()
            .is_none_or(|route| entry.route == *route)
        && query.outcome.is_none_or(|outcome| entry.outcome == outcome)
        && query.key.as_ref().is_none_or(has_key)
}
