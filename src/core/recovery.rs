//! Ends distributions that a crash, an unknown outcome or a destination's trouble has left open.
//!
//! | records | what happens |
//! |---|---|
//! | Decided | staged targets are made visible, again until done |
//! | a call Started and neither Ended nor Refused | in doubt: an administrator decides |
//! | InDoubt | the same |
//! | else | staged targets are undone, what had Ended is compensated, backwards |

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::adapter::Stage;
use crate::bus::Bus;
use crate::distribute::compensate;
use crate::plan::{Retry, Route, Step};
use crate::protocol::{How, Planned, Record};
use crate::router::Compensable;
use crate::store::{
    Change, Commit, Durability, JournalEntry, JournalFault, Outcome, Query, StoreError, TargetEntry,
};
use crate::transform::Context;
use crate::{Message, MessageId, Timestamp};

const AGAIN: Retry = Retry {
    attempts: u32::MAX,
    first: Duration::from_secs(1),
    factor: 2.0,
    max: Duration::from_secs(60),
};

/// A staged target and its name.
type Staged = (Arc<str>, Box<dyn Stage>);

/// A target of a decided distribution that is to be made visible yet. What this process has made visible is
/// not looked for: its reader may have taken it.
pub(crate) struct Left {
    pub(crate) target: Arc<str>,
    /// It may have been made visible: by a process that has died, or when nobody waited for it any more.
    pub(crate) may_be_done: bool,
}

/// What the records of one message say.
struct Story {
    id: MessageId,
    route: Arc<str>,
    received: Arc<Message>,
    targets: Vec<Planned>,
    /// Calls that went out and whose end nobody knows.
    open: Vec<Arc<str>>,
    /// Compensable requests that were answered, in order.
    ended: Vec<(Arc<str>, Arc<Message>, Arc<Message>)>,
    /// Those of which nothing is left to compensate.
    compensated: Vec<Arc<str>>,
    /// Calls that failed for certain.
    refused: Vec<Arc<str>>,
    in_doubt: bool,
    decided: bool,
}

/// Takes up every open distribution. Called once, before receivers open.
pub(crate) async fn recover(bus: &Arc<Bus>) {
    for (id, records) in bus.store().protocols() {
        let Some(story) = Story::read(id, records) else {
            tracing::error!(%id, "the records of a distribution cannot be read; it stays open");
            continue;
        };
        if story.decided {
            story.reopen(bus).await;
            bus.finish_later(id, story.left(true));
        } else if story.in_doubt || !story.open.is_empty() {
            story.keep_in_doubt(bus).await;
        } else {
            story.undo(bus, "the bus stopped in the middle of it").await;
        }
    }
}

/// Makes the staged targets of a decided distribution visible, again until done.
pub(crate) async fn finish(bus: &Arc<Bus>, id: MessageId, mut left: Vec<Left>) {
    let mut failed = 0;
    loop {
        let story = bus
            .store()
            .protocols()
            .into_iter()
            .find(|(known, _)| *known == id)
            .and_then(|(id, records)| Story::read(id, records));
        let Some(story) = story else { return };
        if !story.decided || story.try_to_finish(bus, &mut left).await {
            return;
        }
        failed += 1;
        tokio::select! {
            () = bus.stopping().cancelled() => return,
            () = tokio::time::sleep(AGAIN.wait(failed)) => {}
        }
    }
}

/// An administrator decides what an unknown outcome was.
pub(crate) async fn resolve(
    bus: &Arc<Bus>,
    id: MessageId,
    commit: bool,
) -> Result<JournalEntry, StoreError> {
    let entry =
        find(bus, id)?.ok_or_else(|| StoreError::NotFound(format!("there is no message {id}")))?;
    if entry.outcome != Outcome::InDoubt {
        return Err(StoreError::NotFound(format!(
            "message {id} is not in doubt: it is {}",
            entry.outcome.name()
        )));
    }
    let open = bus
        .store()
        .protocols()
        .into_iter()
        .find(|(known, _)| *known == id)
        .and_then(|(id, records)| Story::read(id, records));
    match open {
        None => resolve_alone(bus, entry, commit).await?,
        Some(story)
            if story
                .route(bus)
                .and_then(|route| story.stages(&route))
                .is_none() =>
        {
            return Err(StoreError::NotFound(format!(
                "the route '{}' is gone, or does not have the targets any more that message {id} was begun with: it can be resolved once they are there again",
                story.route
            )));
        }
        Some(story) if commit => story.decide(bus, entry).await?,
        Some(story) => {
            story
                .undo(bus, "an administrator resolved it as not done")
                .await;
        }
    }
    find(bus, id)?.ok_or_else(|| StoreError::NotFound(format!("there is no message {id}")))
}

fn find(bus: &Bus, id: MessageId) -> Result<Option<JournalEntry>, StoreError> {
    let query = Query {
        id: Some(id),
        limit: 1,
        ..Query::default()
    };
    Ok(bus.store().find(&query)?.into_iter().next())
}

/// A message with one target has no protocol: its entry is all there is.
async fn resolve_alone(bus: &Bus, mut entry: JournalEntry, commit: bool) -> Result<(), StoreError> {
    let outcome = if commit {
        Outcome::Delivered
    } else {
        Outcome::Failed
    };
    for target in &mut entry.targets {
        if target.outcome == Outcome::InDoubt {
            target.outcome = outcome;
            target.at = Timestamp::now();
        }
    }
    entry.outcome = outcome;
    bus.store()
        .commit(Commit::of(Change::Journal(entry)), Durability::Synced)
        .await
}

impl Story {
    fn read(id: MessageId, records: Vec<Bytes>) -> Option<Self> {
        let mut records = records.into_iter().map(Record::decode);
        let Some(Some(Record::Begin { route, received })) = records.next() else {
            return None;
        };
        let mut story = Self {
            id,
            route,
            received,
            targets: Vec::new(),
            open: Vec::new(),
            ended: Vec::new(),
            compensated: Vec::new(),
            refused: Vec::new(),
            in_doubt: false,
            decided: false,
        };
        for record in records {
            match record? {
                Record::Begin { .. } => return None,
                Record::Targets(targets) => story.targets = targets,
                Record::Started { step } => story.open.push(step),
                Record::Ended {
                    step,
                    request,
                    response,
                } => {
                    story.open.retain(|open| *open != step);
                    story.ended.push((step, request, response));
                }
                Record::Refused { step } => {
                    story.open.retain(|open| *open != step);
                    story.refused.push(step);
                }
                Record::InDoubt => story.in_doubt = true,
                Record::Decided => story.decided = true,
                Record::Compensated { step } => {
                    story.ended.retain(|(ended, ..)| *ended != step);
                    story.compensated.push(step);
                }
            }
        }
        Some(story)
    }

    /// The route as it is now; nothing when it is gone.
    fn route(&self, bus: &Bus) -> Option<Arc<Route>> {
        bus.plan().routes.get(&self.route).cloned()
    }

    /// The staged targets, as far as their routes still know them.
    fn stages(&self, route: &Route) -> Option<Vec<Staged>> {
        let mut stages = Vec::new();
        for planned in &self.targets {
            if let How::Staged(token) = &planned.how {
                let step = step_named(route, &planned.target)?;
                stages.push((planned.target.clone(), step.sender.resume(token)?));
            }
        }
        Some(stages)
    }

    /// The entry in the journal, or one made from the records when a crash came before it.
    fn entry(&self, bus: &Bus) -> JournalEntry {
        find(bus, self.id)
            .ok()
            .flatten()
            .unwrap_or_else(|| JournalEntry {
                id: self.id,
                correlation_id: self.received.correlation_id.clone(),
                cause: None,
                route: self.route.clone(),
                received_at: self.received.received_at,
                took_micros: 0,
                outcome: Outcome::Pending,
                keys: Vec::new(),
                targets: Vec::new(),
                fault: None,
            })
    }

    /// The decision's entry says that all is delivered; until it is, the message is pending.
    async fn reopen(&self, bus: &Arc<Bus>) {
        let mut entry = self.entry(bus);
        let why = "the bus stopped before it was visible";
        for planned in &self.targets {
            if matches!(planned.how, How::Staged(_)) {
                set(&mut entry, &planned.target, Outcome::Queued, Some(why));
            }
        }
        entry.outcome = Outcome::Pending;
        commit(bus, vec![Change::Journal(entry)]).await;
    }

    /// What is known of a target before anything is decided.
    fn came_to(&self, planned: &Planned) -> Outcome {
        let name = &planned.target;
        if self.open.contains(name) {
            Outcome::InDoubt
        } else if self.compensated.contains(name) {
            Outcome::Compensated
        } else if self.refused.contains(name) {
            Outcome::Failed
        } else if self.ended.iter().any(|(ended, ..)| ended == name) {
            Outcome::Delivered
        } else if matches!(planned.how, How::Called) {
            Outcome::Skipped
        } else {
            Outcome::Queued
        }
    }

    async fn keep_in_doubt(&self, bus: &Arc<Bus>) {
        let mut entry = self.entry(bus);
        if entry.outcome != Outcome::InDoubt {
            let why = "the bus stopped before the outcome was known";
            for planned in &self.targets {
                set(&mut entry, &planned.target, self.came_to(planned), None);
            }
            for (step, ..) in &self.ended {
                set(&mut entry, step, Outcome::Delivered, None);
            }
            for step in &self.open {
                set(&mut entry, step, Outcome::InDoubt, Some(why));
            }
            entry.outcome = Outcome::InDoubt;
            entry.fault = Some(JournalFault {
                code: Arc::from("in-doubt"),
                step: self.open.first().cloned(),
                reason: why.to_owned(),
            });
            let changes = vec![
                Record::InDoubt.change(self.id),
                Change::Journal(entry),
                Change::Payload(self.received.clone()),
            ];
            commit(bus, changes).await;
        }
        let step = self.open.first().map_or("distribute", |step| &**step);
        bus.incidents().failed(
            &self.route,
            step,
            "in-doubt",
            "what the destination did is unknown; decide it with 'xbus messages resolve'",
            Some(self.id),
            None,
        );
    }

    async fn undo(&self, bus: &Arc<Bus>, why: &str) {
        let mut entry = self.entry(bus);
        let clean = match self.route(bus) {
            Some(route) => self.undo_in(bus, &route, &mut entry).await,
            None => false,
        };
        if !clean {
            bus.incidents().failed(
                &self.route,
                "distribute",
                "in-doubt",
                "a distribution could not be undone: see the journal entry and the log",
                Some(self.id),
                None,
            );
            entry.outcome = Outcome::InDoubt;
            commit(bus, vec![Change::Journal(entry)]).await;
            return;
        }
        for target in &mut entry.targets {
            if target.outcome == Outcome::InDoubt {
                target.outcome = Outcome::Failed;
                target.at = Timestamp::now();
            }
        }
        entry.outcome = Outcome::Failed;
        entry.fault.get_or_insert_with(|| JournalFault {
            code: Arc::from("internal"),
            step: None,
            reason: why.to_owned(),
        });
        let changes = vec![
            Change::Journal(entry),
            Change::Payload(self.received.clone()),
            Change::ProtocolEnd { id: self.id },
        ];
        commit(bus, changes).await;
        tracing::warn!(id = %self.id, route = %self.route, why, "a distribution was undone");
    }

    async fn undo_in(&self, bus: &Arc<Bus>, route: &Route, entry: &mut JournalEntry) -> bool {
        let Some(stages) = self.stages(route) else {
            return false;
        };
        for (target, stage) in stages.iter().rev() {
            if let Err(error) = stage.undo().await {
                tracing::error!(id = %self.id, %target, error = %error.detail, "a staged target could not be undone");
                return false;
            }
            set(entry, target, Outcome::Undone, None);
        }
        for planned in &self.targets {
            match planned.how {
                How::Put { .. } => set(entry, &planned.target, Outcome::Undone, None),
                How::Called => {
                    let outcome = self.came_to(planned);
                    if matches!(outcome, Outcome::Skipped | Outcome::Failed) {
                        let error = known_error(entry, &planned.target);
                        set(entry, &planned.target, outcome, error.as_deref());
                    }
                }
                How::Staged(_) => {}
            }
        }
        for name in &self.compensated {
            set(entry, name, Outcome::Compensated, None);
        }
        let context = Context::new(route.name.clone(), self.received.clone());
        for (name, request, response) in self.ended.iter().rev() {
            let Some(step) = step_named(route, name) else {
                return false;
            };
            let done = Compensable {
                step,
                request: request.clone(),
                response: response.clone(),
            };
            if let Err(fault) = compensate(bus, route, &context, &done).await {
                let error = format!("the compensation failed: {fault}");
                set(entry, name, Outcome::InDoubt, Some(&error));
                return false;
            }
            set(entry, name, Outcome::Compensated, None);
            let step = name.clone();
            commit(bus, vec![Record::Compensated { step }.change(self.id)]).await;
        }
        true
    }

    /// The unknown outcome was a success: everything else is to happen too.
    async fn decide(&self, bus: &Arc<Bus>, mut entry: JournalEntry) -> Result<(), StoreError> {
        let mut changes = vec![Record::Decided.change(self.id)];
        let mut pending = false;
        for planned in &self.targets {
            let outcome = match &planned.how {
                // What was not sent before the outcome was lost is not sent any more.
                How::Called if self.came_to(planned) == Outcome::Skipped => Outcome::Skipped,
                How::Called => Outcome::Delivered,
                How::Staged(_) => Outcome::Queued,
                How::Put { entry, .. } if entry.is_empty() => Outcome::Delivered,
                How::Put { .. } => Outcome::Queued,
            };
            pending |= outcome == Outcome::Queued;
            set(&mut entry, &planned.target, outcome, None);
            changes.extend(planned.how.put());
        }
        for target in &mut entry.targets {
            if target.outcome == Outcome::InDoubt {
                target.outcome = Outcome::Delivered;
            }
        }
        entry.outcome = if pending {
            Outcome::Pending
        } else {
            Outcome::Delivered
        };
        changes.push(Change::Journal(entry));
        bus.store()
            .commit(Commit::from(changes), Durability::Synced)
            .await?;
        for planned in &self.targets {
            if let How::Put { queue, key, .. } = &planned.how {
                bus.wake(queue, key);
            }
        }
        let mut left = self.left(false);
        if !self.try_to_finish(bus, &mut left).await {
            bus.finish_later(self.id, left);
        }
        Ok(())
    }

    /// All that is staged.
    fn left(&self, may_be_done: bool) -> Vec<Left> {
        let staged = |planned: &&Planned| matches!(planned.how, How::Staged(_));
        let staged = self.targets.iter().filter(staged);
        let left = staged.map(|planned| Left {
            target: planned.target.clone(),
            may_be_done,
        });
        left.collect()
    }

    /// Makes what is left of it visible; whether that is done.
    async fn try_to_finish(&self, bus: &Arc<Bus>, left: &mut Vec<Left>) -> bool {
        let Some(stages) = self.route(bus).and_then(|route| self.stages(&route)) else {
            let why = "what was decided cannot be made visible: the route or its target is gone; it is done once it is there again";
            tracing::warn!(id = %self.id, route = %self.route, why);
            let incidents = bus.incidents();
            incidents.failed(
                &self.route,
                "distribute",
                "outage",
                why,
                Some(self.id),
                None,
            );
            return false;
        };
        let mut changes = Vec::new();
        for (target, stage) in &stages {
            let Some(at) = left.iter().position(|left| left.target == *target) else {
                continue;
            };
            let committed = match left[at].may_be_done {
                true => stage.commit_again().await,
                false => stage.commit().await,
            };
            if let Err(error) = committed {
                tracing::warn!(id = %self.id, %target, error = %error.detail, "a decided target is not visible yet");
                bus.incidents().failed(
                    &self.route,
                    target,
                    "outage",
                    &error.detail,
                    Some(self.id),
                    None,
                );
                if !changes.is_empty() {
                    commit(bus, changes).await;
                }
                return false;
            }
            left.remove(at);
            bus.incidents().succeeded(&self.route, target);
            changes.push(Change::Target {
                id: self.id,
                target: TargetEntry {
                    name: target.clone(),
                    outcome: Outcome::Delivered,
                    attempts: 1,
                    error: None,
                    at: Timestamp::now(),
                },
            });
        }
        changes.push(Change::ProtocolEnd { id: self.id });
        commit(bus, changes).await;
        bus.incidents().succeeded(&self.route, "distribute");
        true
    }
}

/// The step or target of that name.
fn step_named<'a>(route: &'a Route, name: &str) -> Option<&'a Step> {
    route
        .steps
        .iter()
        .chain(route.targets.iter().map(|target| &target.step))
        .find(|step| &*step.name == name)
}

fn known_error(entry: &JournalEntry, name: &Arc<str>) -> Option<String> {
    let mut targets = entry.targets.iter();
    let known = targets.find(|target| target.name == *name)?;
    known.error.clone()
}

fn set(entry: &mut JournalEntry, name: &Arc<str>, outcome: Outcome, error: Option<&str>) {
    let known = entry.targets.iter().position(|t| t.name == *name);
    let target = TargetEntry {
        name: name.clone(),
        outcome,
        attempts: known.map_or(0, |at| entry.targets[at].attempts),
        error: error.map(str::to_owned),
        at: Timestamp::now(),
    };
    match known {
        Some(at) => entry.targets[at] = target,
        None => entry.targets.push(target),
    }
}

async fn commit(bus: &Bus, changes: Vec<Change>) {
    let commit = Commit::from(changes);
    if let Err(error) = bus.store().commit(commit, Durability::Synced).await {
        bus.store_failed(&error);
        tracing::error!(%error, "recovery could not be noted; the next start repeats it");
    }
}
