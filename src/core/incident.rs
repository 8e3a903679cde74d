//! Incidents: what fails, told to the administrators once when it opens, at most once a digest
//! while it lasts, and once when it is over. An incident is (route, step, kind of failure).
//!
//! Reporting never waits and never fails a message. A step that flaps is told as little: within
//! one digest after its opening there is one OPEN and one RESOLVED at the most; what happens beside
//! that is told at the end of the digest.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::codec::{Decoder, Encoder};
use crate::outbox::{Mail, Outbox};
use crate::store::{Change, Commit, Durability, QueueStatus, Store};
use crate::{MessageId, Stop, Timestamp};

const PREFIX: &str = "incident/";

/// How administrators are told.
#[derive(Clone, Debug)]
pub struct AlertSettings {
    /// The bus's name, for the mail.
    pub bus: Arc<str>,
    /// The installation folder, for the commands in the mail.
    pub dir: PathBuf,
    /// At most one digest in this time.
    pub digest: Duration,
    /// Whether mails are written at all.
    pub enabled: bool,
}

/// What makes an incident one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key {
    route: Arc<str>,
    step: Arc<str>,
    kind: Arc<str>,
}

/// One incident, open or over since a moment.
#[derive(Clone, Debug)]
pub struct Incident {
    /// What the mails of it carry as `X-Xbus-Incident`.
    pub id: MessageId,
    /// The route.
    pub route: Arc<str>,
    /// The step, target or `receive`.
    pub step: Arc<str>,
    /// Kind of failure: `outage`, `rejection`, `in-doubt`, `transform`, `internal`, …
    pub kind: Arc<str>,
    /// Since when.
    pub opened_at: Timestamp,
    /// Failures since then.
    pub count: u64,
    /// Whether it lasts.
    pub open: bool,
    /// The last error, for administrators.
    pub last_error: String,
    /// The last message that it hit.
    pub message: Option<MessageId>,
    /// The queue that waits for it.
    pub queue: Option<Arc<str>>,
    /// Failures since the last mail.
    unmailed: u64,
    /// Whether the last mail said that it is open.
    told_open: bool,
    /// No mail of an opening before this.
    window_ends: Timestamp,
}

/// All incidents of the bus.
pub struct Incidents {
    settings: AlertSettings,
    store: Arc<dyn Store>,
    outbox: Outbox,
    known: AtomicUsize,
    state: Mutex<BTreeMap<Key, Incident>>,
    /// What waits at brokers, as it was seen last.
    elsewhere: Mutex<HashMap<Arc<str>, QueueStatus>>,
    changed: tokio::sync::Notify,
}

impl Incidents {
    /// Takes up what was open when the bus last ran.
    pub fn new(store: Arc<dyn Store>, settings: AlertSettings) -> Self {
        let mut state = BTreeMap::new();
        for (_, value) in store.values(PREFIX) {
            if let Some(incident) = decode(Decoder::new(value)) {
                state.insert(incident.key(), incident);
            }
        }
        Self {
            outbox: Outbox::new(store.clone()),
            settings,
            store,
            known: AtomicUsize::new(state.values().filter(|i: &&Incident| i.open).count()),
            state: Mutex::new(state),
            elsewhere: Mutex::default(),
            changed: tokio::sync::Notify::new(),
        }
    }

    /// The mails that wait to go out.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Takes note of what waits in a queue that a broker keeps, for the mails.
    pub(crate) fn note_queue(&self, status: QueueStatus) {
        self.elsewhere
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(status.name.clone(), status);
    }

    /// What waits in a queue, in the store and elsewhere; nothing for one that neither knows.
    fn waiting(&self, queue: &str) -> Option<(u64, u64, Option<Timestamp>)> {
        let here = self.store.queues().into_iter().find(|q| &*q.name == queue);
        let elsewhere = self
            .elsewhere
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(queue)
            .cloned();
        let both = [elsewhere, here];
        let both = || both.iter().flatten();
        both().next()?;
        Some((
            both().map(|queue| queue.depth).sum(),
            both().map(|queue| queue.parked).sum(),
            both()
                .filter_map(|queue| Some(queue.head.as_ref()?.since))
                .min(),
        ))
    }

    /// What is open, by route and step.
    pub fn open(&self) -> Vec<Incident> {
        self.lock().values().filter(|i| i.open).cloned().collect()
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
        let now = Timestamp::now();
        let mut state = self.lock();
        let incident = state.entry(key).or_insert_with_key(|key| Incident {
            id: MessageId::new(),
            route: key.route.clone(),
            step: key.step.clone(),
            kind: key.kind.clone(),
            opened_at: now,
            count: 0,
            open: false,
            last_error: String::new(),
            message: None,
            queue: None,
            unmailed: 0,
            told_open: false,
            window_ends: now,
        });
        incident.count += 1;
        incident.unmailed += 1;
        incident.last_error = shorten(error);
        incident.message = message.or(incident.message);
        incident.queue = queue.map(Arc::from).or(incident.queue.take());
        if !incident.open {
            incident.open = true;
            self.known.fetch_add(1, SeqCst);
            tracing::warn!(route, step, kind, error, "incident opened");
            if incident.window_ends <= now {
                self.mail(incident, "OPEN", now);
            }
            self.keep(incident);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// A success of `step` of `route`: what was open there is over.
    pub fn succeeded(&self, route: &str, step: &str) {
        self.over(|incident| &*incident.route == route && &*incident.step == step);
    }

    /// Nothing of `route` is blocked any more, whichever step it was.
    pub fn route_cleared(&self, route: &str) {
        self.over(|incident| &*incident.route == route);
    }

    /// Nothing in `queue` is blocked any more, or somebody takes its messages again.
    pub fn queue_cleared(&self, queue: &str) {
        self.over(|incident| incident.queue.as_deref() == Some(queue));
    }

    fn over(&self, which: impl Fn(&Incident) -> bool) {
        // Asked for every delivery: nothing open costs one load.
        if self.known.load(SeqCst) == 0 {
            return;
        }
        let now = Timestamp::now();
        let mut state = self.lock();
        for incident in state.values_mut().filter(|i| i.open && which(i)) {
            incident.open = false;
            self.known.fetch_sub(1, SeqCst);
            tracing::info!(route = %incident.route, step = %incident.step, kind = %incident.kind, "incident resolved");
            if incident.told_open {
                self.mail(incident, "RESOLVED", now);
            }
            self.keep(incident);
        }
    }

    /// Watches the digests until `stop`.
    pub async fn run(&self, stop: Stop) {
        loop {
            let next = self.lock().values().map(|i| i.window_ends).min();
            let timer = async {
                match next {
                    Some(at) => tokio::time::sleep(Timestamp::now().until(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.changed.notified() => {}
                () = timer => self.end_windows(Timestamp::now()),
            }
        }
    }

    /// What happened since the last mail is told now, where its digest has come.
    fn end_windows(&self, now: Timestamp) {
        let mut state = self.lock();
        let ended: Vec<Key> = state
            .iter()
            .filter(|(_, incident)| incident.window_ends <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in ended {
            let Some(incident) = state.get_mut(&key) else {
                continue;
            };
            match (incident.open, incident.told_open) {
                // While the mail server is down digests do not pile up: the next one says it all.
                (true, true)
                    if incident.unmailed > 0 && !self.outbox.holds(&incident.id.to_string()) =>
                {
                    self.mail(incident, "DIGEST", now);
                }
                (true, true) => incident.window_ends = now.after(self.settings.digest),
                (true, false) => self.mail(incident, "OPEN", now),
                (false, true) => self.mail(incident, "RESOLVED", now),
                (false, false) => {
                    self.forget(incident);
                    state.remove(&key);
                    continue;
                }
            }
            self.keep(incident);
        }
    }

    /// Writes one mail into the outbox, and notes that it was told.
    fn mail(&self, incident: &mut Incident, what: &str, now: Timestamp) {
        if what != "RESOLVED" {
            incident.window_ends = now.after(self.settings.digest);
        }
        incident.told_open = what != "RESOLVED";
        incident.unmailed = 0;
        if self.settings.enabled {
            self.outbox.put(Mail {
                subject: format!(
                    "[xbus] {what} {}/{}: {}",
                    incident.route, incident.step, incident.kind
                ),
                text: self.text(incident, what, now),
                incident: incident.id.to_string(),
            });
        }
    }

    fn text(&self, incident: &Incident, what: &str, now: Timestamp) -> String {
        let mut text = String::new();
        let line = |text: &mut String, name: &str, value: &str| {
            let _ = writeln!(text, "{name:<9} {value}");
        };
        let lasted = human(incident.opened_at.until(now));
        let opening = match what {
            "OPEN" => "A step of the bus has begun to fail.".to_owned(),
            "DIGEST" => format!("A step of the bus has been failing for {lasted}."),
            _ => format!("A step of the bus works again; it failed for {lasted}."),
        };
        let _ = writeln!(text, "{opening}\n");
        line(&mut text, "bus", &self.settings.bus);
        line(&mut text, "route", &incident.route);
        line(&mut text, "step", &incident.step);
        line(&mut text, "failure", &incident.kind);
        line(&mut text, "since", &incident.opened_at.to_string());
        line(&mut text, "failures", &incident.count.to_string());
        if let Some(queue) = &incident.queue {
            line(&mut text, "queue", queue);
            if let Some((depth, parked, oldest)) = self.waiting(queue) {
                let mut waits = format!("{depth} messages");
                if let Some(since) = oldest {
                    let _ = write!(waits, ", the oldest for {}", human(since.until(now)));
                }
                if parked > 0 {
                    let _ = write!(waits, "; {parked} parked");
                }
                line(&mut text, "waiting", &waits);
            }
        }
        if let Some(id) = incident.message {
            line(&mut text, "message", &id.to_string());
        }
        let _ = writeln!(text, "\nLast error:\n");
        for error in incident.last_error.lines() {
            let _ = writeln!(text, "    {error}");
        }
        if what == "RESOLVED" {
            return text;
        }
        let dir = self.settings.dir.display();
        let _ = writeln!(text, "\nTo see it, and to try again now:\n");
        if let Some(id) = incident.message {
            let _ = writeln!(text, "    xbus messages show {id} --dir {dir}");
        }
        let in_doubt = &*incident.kind == "in-doubt";
        if let (true, Some(id)) = (in_doubt, incident.message) {
            let _ = writeln!(text, "    xbus messages resolve {id} --commit --dir {dir}");
            let _ = writeln!(text, "    xbus messages resolve {id} --abort --dir {dir}");
        }
        if let (false, Some(queue)) = (in_doubt, &incident.queue) {
            let _ = writeln!(text, "    xbus queues show {queue} --dir {dir}");
            let parked = self.store.entries(queue, true, 1).unwrap_or_default();
            match parked.first() {
                Some(parked) => {
                    let id = parked.message.id;
                    let _ = writeln!(text, "    xbus queues release {queue} {id} --dir {dir}");
                }
                None => {
                    let _ = writeln!(text, "    xbus queues retry {queue} --dir {dir}");
                }
            }
        }
        text
    }

    fn keep(&self, incident: &Incident) {
        self.value(incident, Some(encode(incident)));
    }

    fn forget(&self, incident: &Incident) {
        self.value(incident, None);
    }

    fn value(&self, incident: &Incident, value: Option<bytes::Bytes>) {
        let name = format!(
            "{PREFIX}{}/{}/{}",
            incident.route, incident.step, incident.kind
        );
        let change = Change::Value {
            name: Arc::from(name),
            value,
        };
        write_behind(&self.store, change);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Incident>> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Commits a change without waiting for it. Handing it over happens here and now, in order; only
/// a full write buffer makes it wait, and then in a task of its own.
pub(crate) fn write_behind(store: &Arc<dyn Store>, change: Change) {
    use futures_util::FutureExt;
    let store = store.clone();
    let mut commit =
        Box::pin(async move { store.commit(Commit::of(change), Durability::Lazy).await });
    match commit.as_mut().now_or_never() {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::warn!(%error, "an incident could not be noted"),
        None => {
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(commit);
            }
        }
    }
}

impl Incident {
    fn key(&self) -> Key {
        Key {
            route: self.route.clone(),
            step: self.step.clone(),
            kind: self.kind.clone(),
        }
    }
}

/// An error's text, short enough for a mail.
fn shorten(error: &str) -> String {
    const MOST: usize = 4000;
    match error.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} …", &error[..end]),
        None => error.to_owned(),
    }
}

/// A duration as people say it.
fn human(duration: Duration) -> String {
    match duration.as_secs() {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

fn encode(incident: &Incident) -> bytes::Bytes {
    let mut out = Encoder::new();
    out.u8(1)
        .id(incident.id)
        .text(&incident.route)
        .text(&incident.step)
        .text(&incident.kind)
        .time(incident.opened_at)
        .u64(incident.count)
        .u8(u8::from(incident.open))
        .text(&incident.last_error)
        .id(incident.message.unwrap_or(MessageId::from_u128(0)))
        .maybe_text(incident.queue.as_deref())
        .u64(incident.unmailed)
        .u8(u8::from(incident.told_open))
        .time(incident.window_ends);
    out.finish()
}

fn decode(mut data: Decoder) -> Option<Incident> {
    (data.u8()? == 1).then_some(())?;
    Some(Incident {
        id: data.id()?,
        route: data.name()?,
        step: data.name()?,
        kind: data.name()?,
        opened_at: data.time()?,
        count: data.u64()?,
        open: data.u8()? == 1,
        last_error: data.text()?,
        message: data.id().map(|id| (id.as_u128() != 0).then_some(id))?,
        queue: data.maybe_text()?.map(Arc::from),
        unmailed: data.u64()?,
        told_open: data.u8()? == 1,
        window_ends: data.time()?,
    })
}
