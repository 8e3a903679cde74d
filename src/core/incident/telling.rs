//! When administrators are told of incidents, and what in one notice.
//!
//! - What opens within `gather` of the first is told together, and so is what ends: up to two with a
//!   notice each, more in one. Between two such times there are 15 s, doubling to 5 minutes while they keep coming (never more
//!   than `digest`), so that a fault that spreads over hundreds of steps is a handful of notices.
//! - Digests of all incidents are told together too, at most once each `digest`.
//! - A step that flaps has one opening and one end told in each `digest`; what happens beside that is
//!   told in the next digest. What stays open for half a minute, doubling each time, does not flap.
//! - Levels of escalation are told once each, by the age of the oldest message that waits, or of the
//!   incident where no queue waits.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{DISK_FULL, Incident, Incidents, Key, Queues, STORE, record};
use crate::notice::{Event, Notice, Report};
use crate::outbox::write_synced;
use crate::store::{Change, StoreError};
use crate::{MessageId, Timestamp};

/// Shortest time between two notices of one event, at first.
const FIRST: Duration = Duration::from_secs(15);
/// And at most.
const LONGEST: Duration = Duration::from_secs(300);
/// How often the age of waiting messages is looked at, at least.
const LOOK: Duration = Duration::from_secs(60);
/// How often the store is looked at.
const LOOK_AT_STORE: Duration = Duration::from_secs(10);
/// So many incidents get notices of their own; more go into one.
const APART: usize = 2;
/// So many incidents of a notice are told in full.
const DETAILED: usize = 50;
/// Characters of an error where a notice tells of several.
const SHORT: usize = 400;

/// When the next notice of each event may be made.
#[derive(Default)]
pub(super) struct Paces {
    opened: Pace,
    escalated: Pace,
    resolved: Pace,
    digest: Timestamp,
}

#[derive(Default)]
struct Pace {
    next: Timestamp,
    wait: Duration,
}

impl Pace {
    /// A notice is made now. After a digest's time without one it begins anew.
    fn told(&mut self, now: Timestamp, digest: Duration) {
        let quiet = self.next.after(digest) <= now;
        let wait = if quiet { FIRST } else { self.wait * 2 };
        self.wait = wait.min(LONGEST).min(digest);
        self.next = now.after(self.wait);
    }

    /// The clock may have been set back: what it showed before holds up nothing.
    fn keep_to(&mut self, now: Timestamp) {
        self.next = self.next.min(now.after(self.wait));
    }
}

impl Incident {
    /// The same for what an incident remembers, here or from before a restart.
    fn keep_to(&mut self, now: Timestamp, digest: Duration) {
        for at in [&mut self.opened_at, &mut self.changed_at, &mut self.told_at] {
            *at = (*at).min(now);
        }
        self.owes_opening = self.owes_opening.map(|at| at.min(now));
        self.window_ends = self.window_ends.min(now.after(digest));
    }
}

impl Incidents {
    /// Tells what is due at `now`. Gives when there may be something to tell next.
    pub(super) fn tell(&self, now: Timestamp) -> Timestamp {
        let mut state = self.lock();
        let mut paces = self
            .paces
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let (paces, digest) = (&mut *paces, self.settings.digest);
        for pace in [&mut paces.opened, &mut paces.escalated, &mut paces.resolved] {
            pace.keep_to(now);
        }
        paces.digest = paces.digest.min(now.after(digest));
        for incident in state.values_mut() {
            incident.keep_to(now, digest);
        }
        self.look_at_store(&mut state, now);
        let mut telling = Telling {
            incidents: self,
            queues: Queues::new(self),
            now,
            next: now.after(LOOK_AT_STORE),
        };
        telling.openings(&mut state, &mut paces.opened);
        telling.escalations(&mut state, &mut paces.escalated);
        telling.ends(&mut state, &mut paces.resolved);
        telling.digests(&mut state, &mut paces.digest);
        telling.forget(&mut state);
        telling.next
    }

    /// Nobody reports that the store has room again: it is asked. That it has none is found here too
    /// when no message tries.
    fn look_at_store(&self, state: &mut BTreeMap<Key, Incident>, now: Timestamp) {
        let of_store = |key: &Key| {
            (&*key.route, &*key.step) == STORE && matches!(&*key.kind, DISK_FULL | "store")
        };
        let open = |incident: &&mut Incident| incident.open && of_store(&incident.key);
        let known = state.values_mut().any(|incident| open(&incident));
        match self.store.health() {
            Ok(()) if known => self.close(state.values_mut().filter(open), now),
            Err(error @ StoreError::Full(_)) if !known => {
                let key = Key {
                    route: STORE.0.into(),
                    step: STORE.1.into(),
                    kind: DISK_FULL.into(),
                };
                self.note(state, now, key, &error.to_string(), None, None);
            }
            _ => {}
        }
    }
}

/// Whether it is over, and nobody believes that it is open.
fn told_of(incident: &Incident) -> bool {
    !incident.open && !incident.told_open && incident.owes_opening.is_none()
}

/// One look at what is to be told.
struct Telling<'a> {
    incidents: &'a Incidents,
    queues: Queues<'a>,
    now: Timestamp,
    /// When there may be something to tell next.
    next: Timestamp,
}

impl Telling<'_> {
    fn later(&mut self, at: Timestamp) {
        self.next = self.next.min(at);
    }

    /// Whether what waits since `since` is told now; else it is noted when.
    fn due(&mut self, since: Option<Timestamp>, pace: &Pace) -> bool {
        let Some(since) = since else { return false };
        let at = since.after(self.incidents.settings.gather).max(pace.next);
        if at > self.now {
            self.later(at);
        }
        at <= self.now
    }

    fn openings(&mut self, state: &mut BTreeMap<Key, Incident>, pace: &mut Pace) {
        let now = self.now;
        for incident in state.values().filter(|i| i.open && !i.told_open) {
            if incident.told_again_at() > now {
                self.later(incident.told_again_at());
            }
        }
        // What opened again within its digest is told when it stays open, or at the digest's end.
        let again = |i: &Incident| i.open && !i.told_open && i.told_again_at() <= now;
        let since = |i: &Incident| i.owes_opening.or(again(i).then_some(i.told_again_at()));
        let first = state.values().filter_map(since).min();
        if !self.due(first, pace) {
            return;
        }
        let digest = self.incidents.settings.digest;
        let mut told = Vec::new();
        for incident in state.values_mut().filter(|i| since(i).is_some()) {
            if incident.owes_opening.take().is_none() {
                incident.again += 1;
            }
            incident.told_open = true;
            incident.window_ends = now.after(digest);
            told.push(incident);
        }
        pace.told(now, digest);
        self.put(Event::Opened, 0, told);
    }

    fn escalations(&mut self, state: &mut BTreeMap<Key, Incident>, pace: &mut Pace) {
        let levels = &self.incidents.settings.escalate;
        let now = self.now;
        let mut reached: Vec<Key> = Vec::new();
        for (key, incident) in state.iter() {
            let next = levels.get(incident.level as usize);
            let (Some(after), true, true) = (next, incident.open, incident.told_open) else {
                continue;
            };
            let at = self.oldest(incident).after(*after);
            if at <= now {
                reached.push(key.clone());
            } else {
                self.later(at.min(now.after(LOOK)));
            }
        }
        if reached.is_empty() {
            return;
        }
        if pace.next > now {
            return self.later(pace.next);
        }
        pace.told(now, self.incidents.settings.digest);
        for (level, after) in levels.iter().enumerate() {
            let told: Vec<&mut Incident> = state
                .iter_mut()
                .filter(|(key, incident)| {
                    reached.contains(key)
                        && incident.level as usize == level
                        && self.oldest(incident).after(*after) <= now
                })
                .map(|(_, incident)| {
                    incident.level += 1;
                    incident
                })
                .collect();
            if !told.is_empty() {
                self.put(Event::Escalated, level as u32 + 1, told);
            }
        }
        self.later(now.after(LOOK));
    }

    /// Since when the oldest message waits for the incident to end; since when it is open where no
    /// queue waits.
    fn oldest(&mut self, incident: &Incident) -> Timestamp {
        let queue = incident.queue.as_deref();
        queue
            .and_then(|queue| self.queues.waiting(queue)?.oldest)
            .filter(|since| *since <= self.now)
            .unwrap_or(incident.opened_at)
    }

    fn ends(&mut self, state: &mut BTreeMap<Key, Incident>, pace: &mut Pace) {
        let ended = |incident: &&mut Incident| {
            !incident.open && incident.told_open && incident.owes_opening.is_none()
        };
        let first = state.values_mut().filter(ended).map(|i| i.changed_at).min();
        if !self.due(first, pace) {
            return;
        }
        pace.told(self.now, self.incidents.settings.digest);
        // Those who were told of it are told of its end, and nobody else.
        let mut by_level: BTreeMap<u32, Vec<&mut Incident>> = BTreeMap::new();
        for incident in state.values_mut().filter(ended) {
            incident.told_open = false;
            by_level.entry(incident.level).or_default().push(incident);
        }
        for (level, told) in by_level {
            self.put(Event::Resolved, level, told);
        }
    }

    fn digests(&mut self, state: &mut BTreeMap<Key, Incident>, next: &mut Timestamp) {
        let (now, digest) = (self.now, self.incidents.settings.digest);
        let lasting = |i: &Incident| i.open && i.told_open;
        let again = |i: &Incident| told_of(i) && i.untold > 0 && i.window_ends <= now;
        let first = state
            .values()
            .filter(|i| lasting(i) || (!i.open && i.untold > 0))
            .map(|i| i.window_ends)
            .min();
        let Some(first) = first else { return };
        let at = first.max(*next);
        if at > now {
            return self.later(at);
        }
        // One that was told of a moment ago is in the next digest.
        let old = |i: &Incident| i.told_at.after(digest / 2) <= now;
        let told: Vec<&mut Incident> = state
            .values_mut()
            .filter(|i| (lasting(i) && i.untold > 0 && old(i)) || again(i))
            .collect();
        *next = now.after(digest);
        self.later(*next);
        if !told.is_empty() {
            self.put(Event::Digest, 0, told);
        }
    }

    /// What has ended and is told of is forgotten when its digest has passed.
    fn forget(&mut self, state: &mut BTreeMap<Key, Incident>) {
        let now = self.now;
        let quiet = |i: &Incident| told_of(i) && i.untold == 0;
        let mut changes = Vec::new();
        state.retain(|key, incident| {
            let over = quiet(incident) && incident.window_ends <= now;
            if over {
                changes.push(record::forget(key));
            }
            !over
        });
        if !changes.is_empty() {
            crate::outbox::write_behind(&self.incidents.store, changes);
        }
        let rest = state.values().filter(|i| quiet(i)).map(|i| i.window_ends);
        if let Some(at) = rest.min() {
            self.later(at);
        }
    }

    /// Tells of incidents, the oldest first: of few apart.
    fn put(&mut self, event: Event, level: u32, mut told: Vec<&mut Incident>) {
        told.sort_by_key(|incident| (incident.opened_at, incident.id));
        if told.len() > APART {
            return self.put_one(event, level, told);
        }
        for incident in told {
            self.put_one(event, level, vec![incident]);
        }
    }

    /// Makes a notice for every way. It and what it changes about the incidents are one commit.
    fn put_one(&mut self, event: Event, level: u32, mut told: Vec<&mut Incident>) {
        let id = MessageId::new();
        for incident in &mut told {
            // An escalation is told to others than the digest is.
            if event != Event::Escalated {
                incident.untold = 0;
                incident.told_at = self.now;
            }
            if event == Event::Opened {
                incident.opening = Some(id);
            }
            if event == Event::Digest {
                incident.opening.get_or_insert(id);
                incident.window_ends = self.now.after(self.incidents.settings.digest);
            }
        }
        let several = told.len() > 1;
        let reports: Vec<Report> = told
            .iter()
            .take(DETAILED)
            .map(|incident| {
                let mut report = self.incidents.report(incident, &mut self.queues);
                if let (true, Some((end, _))) =
                    (several, report.last_error.char_indices().nth(SHORT))
                {
                    report.last_error.truncate(end);
                    report.last_error.push_str(" …");
                }
                report
            })
            .collect();
        let notice = Notice {
            id,
            at: self.now,
            event,
            bus: self.incidents.settings.bus.clone(),
            dir: self.incidents.settings.dir.clone(),
            level,
            more: told.len().saturating_sub(reports.len()) as u64,
            incidents: reports,
        };
        let mut changes: Vec<Change> = Vec::new();
        for outbox in self.incidents.outboxes() {
            changes.extend(outbox.add(&notice));
        }
        changes.extend(told.iter().map(|incident| record::keep(incident)));
        write_synced(&self.incidents.store, changes);
    }
}
