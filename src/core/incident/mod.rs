//! Incidents: what fails, told to the administrators once when it opens, at most once a digest
//! while it lasts, and once when it is over. An incident is (route, step, kind of failure).
//!
//! Reporting never waits and never fails a message; it only changes what is known here. What is to
//! be told of it, and when, `telling.rs` finds out in a task of its own, so that thousands of
//! failures cost one notice.

mod record;
mod telling;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;

use crate::adapter::SendError;
use crate::notice::{Event, Notice, Report, Waiting};
use crate::outbox::{Accepted, Notifier, Outbox, write_behind};
use crate::store::{Outcome, Query, QueueStatus, Store};
use crate::{MessageId, Stop, Timestamp, secrets};

use telling::Paces;

/// Route and step of incidents of the store.
const STORE: (&str, &str) = ("bus", "store");
/// The kind of a store that has no room.
const DISK_FULL: &str = "disk-full";

/// When administrators are told.
#[derive(Clone, Debug)]
pub struct AlertSettings {
    /// The bus's name.
    pub bus: Arc<str>,
    /// The installation folder, for commands.
    pub dir: Arc<str>,
    /// At most one digest in this time.
    pub digest: Duration,
    /// What opens within this time goes into one notice.
    pub gather: Duration,
    /// Ages at which an incident is told to further people; ascending.
    pub escalate: Vec<Duration>,
}

impl AlertSettings {
    /// The usual settings of a bus.
    pub fn new(bus: &str, dir: &Path) -> Self {
        Self {
            bus: bus.into(),
            dir: dir.to_string_lossy().into(),
            digest: Duration::from_secs(900),
            gather: Duration::from_secs(2),
            escalate: Vec::new(),
        }
    }
}

/// What makes an incident one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key {
    route: Arc<str>,
    step: Arc<str>,
    kind: Arc<str>,
}

/// One incident, open or over since a moment.
#[derive(Clone, PartialEq, Debug)]
struct Incident {
    /// What every notice about it names.
    id: MessageId,
    key: Key,
    opened_at: Timestamp,
    /// Failures since it opened.
    count: u64,
    open: bool,
    /// When it opened or ended last.
    changed_at: Timestamp,
    last_error: String,
    /// The last message that it hit.
    message: Option<MessageId>,
    /// The queue that waits for it.
    queue: Option<Arc<str>>,
    /// Failures since the last notice.
    untold: u64,
    /// Since when its opening is to be told, even if it has ended meanwhile.
    owes_opening: Option<Timestamp>,
    /// Whether the last notice said that it is open.
    told_open: bool,
    /// When the last notice was made.
    told_at: Timestamp,
    /// No notice of an opening before this, unless it has been open for long.
    window_ends: Timestamp,
    /// So often it was told that it opened within the window.
    again: u32,
    /// The notice that told of its opening.
    opening: Option<MessageId>,
    /// So many levels of escalation were told.
    level: u32,
}

/// One way to the administrators, and what waits for it.
struct Way {
    outbox: Outbox,
    notifier: Arc<dyn Notifier>,
}

/// What came of a trial of one way.
pub struct Trial {
    /// The way.
    pub way: &'static str,
    /// Where it goes.
    pub goes_to: String,
    /// What it said.
    pub result: Result<Accepted, SendError>,
}

/// All incidents of the bus.
pub struct Incidents {
    settings: AlertSettings,
    store: Arc<dyn Store>,
    ways: Vec<Way>,
    /// How many are open.
    known: AtomicUsize,
    state: Mutex<BTreeMap<Key, Incident>>,
    paces: Mutex<Paces>,
    /// What waits at brokers, as it was seen last.
    elsewhere: Mutex<HashMap<Arc<str>, QueueStatus>>,
    changed: tokio::sync::Notify,
}

impl Incidents {
    /// Takes up what was open, and what was not yet told, when the bus last ran.
    pub fn new(
        store: Arc<dyn Store>,
        settings: AlertSettings,
        ways: Vec<Arc<dyn Notifier>>,
    ) -> Self {
        let state: BTreeMap<Key, Incident> = store
            .values(record::PREFIX)
            .into_iter()
            .filter_map(|(_, value)| record::decode(value))
            .map(|incident| (incident.key.clone(), incident))
            .collect();
        let names: Vec<&str> = ways.iter().map(|way| way.way()).collect();
        Outbox::forget_others(&store, &names);
        let ways = ways
            .into_iter()
            .map(|notifier| Way {
                outbox: Outbox::new(notifier.way(), store.clone()),
                notifier,
            })
            .collect();
        Self {
            settings,
            store,
            ways,
            known: AtomicUsize::new(state.values().filter(|i| i.open).count()),
            state: Mutex::new(state),
            paces: Mutex::default(),
            elsewhere: Mutex::default(),
            changed: tokio::sync::Notify::new(),
        }
    }

    /// What waits for each way.
    pub fn outboxes(&self) -> impl Iterator<Item = &Outbox> {
        self.ways.iter().map(|way| &way.outbox)
    }

    /// Where each way goes, by its name.
    pub fn goes_to(&self, way: &str) -> Option<String> {
        let found = self.ways.iter().find(|known| known.outbox.way() == way);
        found.map(|way| way.notifier.goes_to())
    }

    /// Sends a notice of a test over every way, past the outboxes, and says what came of it.
    pub async fn try_ways(&self) -> Vec<Trial> {
        let notice = Notice {
            id: MessageId::new(),
            at: Timestamp::now(),
            event: Event::Test,
            bus: self.settings.bus.clone(),
            dir: self.settings.dir.clone(),
            level: 0,
            incidents: Vec::new(),
            more: 0,
        };
        let trials = self.ways.iter().map(|way| {
            way.notifier.notify(&notice).map(|result| Trial {
                way: way.notifier.way(),
                goes_to: way.notifier.goes_to(),
                result,
            })
        });
        join_all(trials).await
    }

    /// Takes note of what waits in a queue that a broker keeps, for the notices.
    pub(crate) fn note_queue(&self, status: QueueStatus) {
        self.elsewhere
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(status.name.clone(), status);
    }

    /// How many are open.
    pub fn open_count(&self) -> usize {
        self.known.load(SeqCst)
    }

    /// What is open, by route and step, with what waits behind it.
    pub fn open(&self) -> Vec<Report> {
        let open: Vec<Incident> = self.lock().values().filter(|i| i.open).cloned().collect();
        let mut queues = Queues::new(self);
        open.iter()
            .map(|incident| self.report(incident, &mut queues))
            .collect()
    }

    /// A failure of `step` of `route`; `queue` is what waits for it.
    pub fn failed(
        &self,
        route: &str,
        step: &str,
        kind: &str,
        error: &str,
        message: Option<MessageId>,
        queue: Option<&str>,
    ) {
        let key = Key {
            route: route.into(),
            step: step.into(),
            kind: kind.into(),
        };
        let mut state = self.lock();
        self.note(&mut state, Timestamp::now(), key, error, message, queue);
    }

    fn note(
        &self,
        state: &mut BTreeMap<Key, Incident>,
        now: Timestamp,
        key: Key,
        error: &str,
        message: Option<MessageId>,
        queue: Option<&str>,
    ) {
        let incident = state
            .entry(key)
            .or_insert_with_key(|key| Incident::new(key.clone(), now));
        if !incident.open {
            incident.open(now);
            self.known.fetch_add(1, SeqCst);
            let Key { route, step, kind } = &incident.key;
            tracing::warn!(%route, %step, %kind, error, "incident opened");
            self.changed.notify_one();
        }
        let first = incident.untold == 0;
        incident.count += 1;
        incident.untold += 1;
        incident.last_error = shorten(&secrets::mask(error));
        incident.message = message.or(incident.message);
        incident.queue = queue.map(Arc::from).or(incident.queue.take());
        if first {
            write_behind(&self.store, vec![record::keep(incident)]);
        }
    }

    /// A success of `step` of `route`: what was open there is over.
    pub fn succeeded(&self, route: &str, step: &str) {
        self.over(|key, _| &*key.route == route && &*key.step == step);
    }

    /// One kind of failure at a step has ended.
    pub fn ended(&self, route: &str, step: &str, kind: &str) {
        self.over(|key, _| (&*key.route, &*key.step, &*key.kind) == (route, step, kind));
    }

    /// What was in doubt in `route` is decided, whichever step it was.
    pub fn decided(&self, route: &str) {
        self.over(|key, _| &*key.route == route && &*key.kind == IN_DOUBT);
    }

    /// Nothing in `queue` is blocked any more, or somebody takes its messages again.
    pub fn queue_cleared(&self, queue: &str) {
        self.over(|_, incident| incident.queue.as_deref() == Some(queue));
    }

    /// Ends what is open at places that are not there any more, by route and step: nothing will fail
    /// or succeed there again. What is in doubt stays until it is decided.
    pub(crate) fn keep_only(&self, there: impl Fn(&str, &str) -> bool) {
        self.over(|key, _| {
            let queue = key.step.split('@').next() == Some("queue");
            let own = &*key.route == STORE.0 || queue || &*key.kind == IN_DOUBT;
            !own && !there(&key.route, &key.step)
        });
    }

    fn over(&self, which: impl Fn(&Key, &Incident) -> bool) {
        // Asked for every delivery: nothing open costs one load.
        if self.known.load(SeqCst) == 0 {
            return;
        }
        self.over_at(Timestamp::now(), which);
    }

    fn over_at(&self, now: Timestamp, which: impl Fn(&Key, &Incident) -> bool) {
        let mut state = self.lock();
        let ended = state.values_mut().filter(|i| i.open && which(&i.key, i));
        self.close(ended, now);
    }

    fn close<'a>(&self, ended: impl Iterator<Item = &'a mut Incident>, now: Timestamp) {
        for incident in ended {
            incident.open = false;
            incident.changed_at = now;
            self.known.fetch_sub(1, SeqCst);
            let Key { route, step, kind } = &incident.key;
            tracing::info!(%route, %step, %kind, "incident resolved");
            write_behind(&self.store, vec![record::keep(incident)]);
            self.changed.notify_one();
        }
    }

    /// Tells what is to be told, over every way, until `stop`.
    pub async fn run(&self, stop: Stop) {
        let ways = self
            .ways
            .iter()
            .map(|way| way.outbox.run(&*way.notifier, stop.clone()));
        tokio::join!(self.watch(stop.clone()), join_all(ways));
    }

    async fn watch(&self, stop: Stop) {
        loop {
            let next = self.tell(Timestamp::now());
            let timer = tokio::time::sleep(Timestamp::now().until(next));
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.changed.notified() => {}
                () = timer => {}
            }
        }
    }

    /// An incident as it is now.
    fn report(&self, incident: &Incident, queues: &mut Queues<'_>) -> Report {
        let waiting = incident
            .queue
            .as_deref()
            .and_then(|queue| queues.waiting(queue));
        Report {
            id: incident.id,
            route: incident.key.route.clone(),
            step: incident.key.step.clone(),
            kind: incident.key.kind.clone(),
            opened_at: incident.opened_at,
            resolved_at: (!incident.open).then_some(incident.changed_at),
            count: incident.count,
            last_error: incident.last_error.clone(),
            message: incident.message,
            undecided: &*incident.key.kind == IN_DOUBT && self.undecided(incident),
            waiting,
            opening: incident.opening,
            level: incident.level,
        }
    }

    /// Whether the journal still has the message in doubt.
    fn undecided(&self, incident: &Incident) -> bool {
        let Some(id) = incident.message else {
            return false;
        };
        let query = Query {
            id: Some(id),
            limit: 1,
            ..Query::default()
        };
        match self.store.find(&query) {
            Ok(found) => found
                .first()
                .is_none_or(|entry| entry.outcome == Outcome::InDoubt),
            Err(_) => true,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Incident>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has been open for so long does not flap.
const LASTING: Duration = Duration::from_secs(30);

/// The kind of what somebody must decide.
const IN_DOUBT: &str = "in-doubt";

impl Incident {
    /// One that has not opened yet.
    fn new(key: Key, now: Timestamp) -> Self {
        Self {
            id: MessageId::new(),
            key,
            opened_at: now,
            count: 0,
            open: false,
            changed_at: now,
            last_error: String::new(),
            message: None,
            queue: None,
            untold: 0,
            owes_opening: None,
            told_open: false,
            told_at: Timestamp::default(),
            window_ends: now,
            again: 0,
            opening: None,
            level: 0,
        }
    }

    /// When its opening is told although it flaps: when its digest is due, or when it has been open
    /// for so long that this is no flapping. The more often that has been so, the longer.
    fn told_again_at(&self) -> Timestamp {
        let lasting = LASTING * 2u32.saturating_pow(self.again.min(16));
        self.window_ends.min(self.changed_at.after(lasting))
    }

    /// Opens it. After one of which the end was told it is a new one, with the last one's digest
    /// still to keep.
    fn open(&mut self, now: Timestamp) {
        if !self.told_open && self.owes_opening.is_none() {
            if self.opening.is_some() {
                *self = Self {
                    untold: self.untold,
                    told_at: self.told_at,
                    window_ends: self.window_ends,
                    again: self.again,
                    ..Self::new(self.key.clone(), now)
                };
            }
            self.owes_opening = (self.window_ends <= now).then_some(now);
            if self.owes_opening.is_some() {
                self.again = 0;
            }
        }
        self.open = true;
        self.changed_at = now;
    }
}

/// What waits in queues, looked up once for many incidents.
struct Queues<'a> {
    incidents: &'a Incidents,
    here: Option<HashMap<Arc<str>, QueueStatus>>,
}

impl<'a> Queues<'a> {
    fn new(incidents: &'a Incidents) -> Self {
        Self {
            incidents,
            here: None,
        }
    }

    /// What waits in a queue, in the store and elsewhere; nothing for one that neither knows.
    fn waiting(&mut self, queue: &str) -> Option<Waiting> {
        let incidents = self.incidents;
        let here = self.here.get_or_insert_with(|| {
            let all = incidents.store.queues().into_iter();
            all.map(|queue| (queue.name.clone(), queue)).collect()
        });
        let elsewhere = incidents
            .elsewhere
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let both = [elsewhere.get(queue), here.get(queue)];
        let both = || both.iter().flatten();
        both().next()?;
        let parked = both().map(|queue| queue.parked).sum();
        let first_parked = match parked {
            0 => None,
            _ => {
                let entries = incidents.store.entries(queue, true, 1).unwrap_or_default();
                entries.first().map(|entry| entry.message.id)
            }
        };
        Some(Waiting {
            queue: queue.into(),
            depth: both().map(|queue| queue.depth).sum(),
            parked,
            oldest: both()
                .filter_map(|queue| Some(queue.head.as_ref()?.since))
                .min(),
            first_parked,
        })
    }
}

/// An error's text, short enough for a notice.
fn shorten(error: &str) -> String {
    const MOST: usize = 4000;
    match error.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} …", &error[..end]),
        None => error.to_owned(),
    }
}
