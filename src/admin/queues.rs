//! Queues: what waits in them, and what an administrator does about it.
//!
//! Every action runs in a task of its own, so that a caller who hangs up does not stop it half-way
//! with a lane in its hands. Every action is told to the log (target `audit`).

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as QueryString, State};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use xbus_core::MessageId;
use xbus_core::bus::Bus;
use xbus_core::long;
use xbus_core::problem::suggest;
use xbus_core::queues::QueueView;
use xbus_core::store::{Outcome, Query, Queued, StoreError};

use crate::error::ApiError;
use crate::listener::Peer;
use crate::{App, Shared};

/// So many entries are shown when nothing else is asked for, and at most.
const SHOWN: usize = 100;
const SHOWN_AT_MOST: usize = 10_000;
/// So many messages of a route are looked at to find out what has overtaken a parked one.
const LOOKED_AT: usize = 10_000;

/// `GET /api/v1/queues`.
pub(crate) async fn list(State(app): State<Shared>) -> Json<Value> {
    let queues = app.bus.queues().await;
    // With a thousand queues some milliseconds.
    Json(long::run(|| queues.iter().map(line).collect()))
}

fn line(queue: &QueueView) -> Value {
    let status = &queue.status;
    let mut line = json!({
        "name": &*status.name,
        "depth": status.depth,
        "parked": status.parked,
        "state": state(queue),
        "head": status.head.as_ref().map(|head| json!({
            "id": head.message.id.to_string(),
            "attempts": head.attempts,
            "last_error": head.last_error,
            "next_try": head.next_try.map(|at| at.to_string()),
            "since": head.since.to_string(),
        })),
        "blocked_keys": status.blocked_keys,
    });
    if let Some(connection) = &queue.connection {
        line["connection"] = json!(&**connection);
        match &queue.route {
            Some(route) => line["route"] = json!(&**route),
            None => line["in_store"] = json!(queue.in_store),
        }
    }
    if let Some(trouble) = &queue.trouble {
        line["trouble"] = json!(trouble);
    }
    line
}

/// `blocked`: a head has failed and waits, or nobody takes the queue's messages.
fn state(queue: &QueueView) -> &'static str {
    let status = &queue.status;
    if status.depth == 0 && queue.trouble.is_none() {
        "idle"
    } else if status.blocked_keys > 0 || !queue.attended || queue.trouble.is_some() {
        "blocked"
    } else {
        "delivering"
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limit {
    limit: Option<usize>,
}

/// `GET /api/v1/queues/{name}`: the queue and its messages, oldest first.
pub(crate) async fn show(
    State(app): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    limit: Result<QueryString<Limit>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let name = path(name)?;
    let QueryString(limit) = limit.map_err(|error| ApiError::wrong(error.body_text()))?;
    let limit = limit.limit.unwrap_or(SHOWN).min(SHOWN_AT_MOST);
    let queue = find(&app.bus, &name).await?;
    let mut shown = line(&queue);
    if let Some(owner) = app.bus.plan().lane(&name)
        && let Some(target) = owner.0.all_targets().nth(owner.1)
    {
        shown["route"] = json!(&*owner.0.name);
        shown["target"] = json!(&*target.step.name);
    }
    shown["attended"] = json!(queue.attended);
    for (place, parked) in [("waiting_messages", false), ("parked_messages", true)] {
        let entries = app.bus.queue_entries(&name, parked, limit).await?;
        shown[place] = entries.iter().map(entry).collect();
    }
    Ok(Json(shown))
}

fn entry(entry: &Queued) -> Value {
    json!({
        "id": entry.message.id.to_string(),
        "key": &*entry.at.key,
        "number": entry.at.seq,
        "since": entry.since.to_string(),
        "attempts": entry.attempts,
        "last_error": entry.last_error,
        "next_try": entry.next_try.map(|at| at.to_string()),
        "parked": entry.parked,
        "cause": entry.cause.map(|id| id.to_string()),
        "content_type": entry.message.content_type(),
        "bytes": entry.message.body.bytes().len(),
    })
}

async fn find(bus: &Bus, name: &str) -> Result<QueueView, ApiError> {
    if let Some(found) = bus.queue(name).await {
        return Ok(found);
    }
    let queues = bus.queues().await;
    let hint = suggest(name, queues.iter().map(|queue| &*queue.status.name));
    Err(ApiError::not_found(format!(
        "there is no queue '{name}'; {hint}"
    )))
}

pub(crate) fn path<T>(path: Result<Path<T>, PathRejection>) -> Result<T, ApiError> {
    path.map(|Path(name)| name)
        .map_err(|error| ApiError::wrong(error.body_text()))
}

/// What can be done with messages of a queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Retry,
    Park,
    Release,
    Drop,
}

impl Action {
    const ALL: [Action; 4] = [Action::Retry, Action::Park, Action::Release, Action::Drop];

    fn name(self) -> &'static str {
        match self {
            Action::Retry => "retry",
            Action::Park => "park",
            Action::Release => "release",
            Action::Drop => "drop",
        }
    }

    /// Whether it can be done to "whatever is at the head".
    fn works_on_heads(self) -> bool {
        matches!(self, Action::Retry | Action::Park)
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Chosen {
    #[serde(default)]
    ids: Vec<String>,
    /// Why, for the audit and, of a parked message, for those who look at it later.
    reason: Option<String>,
}

/// `POST /api/v1/queues/{name}/retry|park|release|drop`, `{"ids": ["…"], "reason": "…"}`. Without
/// ids `retry` and `park` take the head. Each message stands for itself: the answer tells for each
/// id whether it was done, and has an error's status as soon as one was not.
pub(crate) async fn act(
    State(app): State<Shared>,
    target: Result<Path<(String, String)>, PathRejection>,
    axum::Extension(Peer(peer)): axum::Extension<Peer>,
    body: axum::body::Body,
) -> Result<Json<Value>, ApiError> {
    let (name, action) = path(target)?;
    let Some(action) = Action::ALL.into_iter().find(|known| known.name() == action) else {
        let hint = suggest(&action, Action::ALL.iter().map(|known| known.name()));
        return Err(ApiError::not_found(format!(
            "there is no action '{action}'; {hint}"
        )));
    };
    let chosen: Chosen = json_body(body).await?;
    let queue = find(&app.bus, &name).await?;
    if action == Action::Retry && queue.status.depth > 0 && !queue.attended {
        return Err(ApiError::conflict(format!(
            "no route takes messages from queue '{name}' now, so that nothing can be retried; they wait until one does"
        )));
    }
    if chosen.ids.is_empty() && !action.works_on_heads() {
        return Err(ApiError::wrong(format!(
            "{} needs the ids of messages: {{\"ids\": [\"…\"]}}",
            action.name()
        )));
    }
    let job = Job {
        app: app.clone(),
        queue: name,
        action,
        reason: chosen.reason,
        by: peer.to_string(),
    };
    app.bus.tasks().spawn(job.run(chosen.ids)).await?
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Destination {
    to: Option<String>,
}

/// `POST /api/v1/queues/{name}/move`, `{"to": "embedded"}` or `{"to": "CONNECTION"}`: carries the lane
/// to the place that the routes name for it, in order. Answers when it is done.
pub(crate) async fn carry(
    State(app): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    axum::Extension(Peer(peer)): axum::Extension<Peer>,
    body: axum::body::Body,
) -> Result<Json<Value>, ApiError> {
    let name = path(name)?;
    let destination: Destination = json_body(body).await?;
    let Some(to) = destination.to else {
        return Err(ApiError::wrong(
            "move needs a place: {\"to\": \"embedded\"} or {\"to\": \"CONNECTION\"}",
        ));
    };
    find(&app.bus, &name).await?;
    let job = {
        let (app, name, to) = (app.clone(), name.clone(), to.clone());
        async move { app.bus.move_lane(&name, &to).await }
    };
    let moved = app.bus.tasks().spawn(job).await?;
    tracing::info!(
        target: "audit",
        audit = true,
        action = "queues move",
        queue = %name,
        to,
        by = %peer,
        messages = moved.as_ref().ok(),
        error = moved.as_ref().err().map(tracing::field::display),
        "an administrator moved a queue"
    );
    Ok(Json(json!({ "queue": name, "to": to, "messages": moved? })))
}

/// Reads a small JSON body; nothing stands for an empty object.
pub(crate) async fn json_body<T: serde::de::DeserializeOwned + Default>(
    body: axum::body::Body,
) -> Result<T, ApiError> {
    let body: Bytes = crate::routes::read(body, 1 << 20).await?;
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&body)
        .map_err(|error| ApiError::wrong(format!("the body is not what is expected here: {error}")))
}

/// One command of an administrator.
struct Job {
    app: Shared,
    queue: String,
    action: Action,
    reason: Option<String>,
    by: String,
}

/// What came of one message.
struct Done {
    id: String,
    result: Result<Value, StoreError>,
}

impl Job {
    async fn run(self, ids: Vec<String>) -> Result<Json<Value>, ApiError> {
        let mut done = Vec::new();
        if ids.is_empty() {
            done.push(self.one(None, "").await);
        } else {
            for (id, text) in self.in_order(ids).await {
                done.push(self.one(id, &text).await);
            }
        }
        self.answer(&done)
    }

    /// The ids in the order of their entries: released one by one, the oldest goes out first.
    async fn in_order(&self, ids: Vec<String>) -> Vec<(Option<MessageId>, String)> {
        let mut keyed = Vec::new();
        for text in ids {
            let id = text.parse::<MessageId>().ok();
            let found = match id {
                Some(id) => self
                    .app
                    .bus
                    .queue_entry(&self.queue, id)
                    .await
                    .ok()
                    .flatten(),
                None => None,
            };
            keyed.push((found.map(|entry| (entry.since, entry.at.seq)), id, text));
        }
        keyed.sort_by_key(|(place, _, _)| *place);
        keyed.dedup_by(|a, b| a.2 == b.2);
        keyed.into_iter().map(|(_, id, text)| (id, text)).collect()
    }

    async fn one(&self, id: Option<MessageId>, text: &str) -> Done {
        let result = if id.is_none() && !text.is_empty() {
            Err(StoreError::NotFound(format!(
                "queue '{}' holds no message {text} (an id is a UUID)",
                self.queue
            )))
        } else {
            self.change(id).await
        };
        let error = result.as_ref().err().map(ToString::to_string);
        let more = result.as_ref().ok();
        tracing::info!(
            target: "audit",
            audit = true,
            action = %format_args!("queues {}", self.action.name()),
            queue = %self.queue,
            id = more.and_then(|more| more["id"].as_str()).unwrap_or(text),
            by = %self.by,
            reason = self.reason.as_deref(),
            overtaken_by = more.and_then(|more| more.get("overtaken_by")).map(tracing::field::display),
            error,
            "an administrator changed a queue"
        );
        Done {
            id: text.to_owned(),
            result,
        }
    }

    async fn change(&self, id: Option<MessageId>) -> Result<Value, StoreError> {
        let bus = &self.app.bus;
        match (self.action, id) {
            (Action::Retry, id) => {
                let heads = bus.queue_retry(&self.queue, id).await?;
                Ok(json!({ "id": id.map(|id| id.to_string()), "heads": heads }))
            }
            (Action::Park, id) => {
                let reason = self
                    .reason
                    .as_deref()
                    .unwrap_or("parked by an administrator");
                let parked = bus.queue_park(&self.queue, id, reason).await?;
                Ok(json!({ "id": parked.to_string() }))
            }
            (Action::Release, Some(id)) => {
                let overtaken = overtaken(&self.app, &self.queue, id).await;
                let keyed = bus.queue_entry(&self.queue, id).await?;
                let key = keyed.map(|entry| entry.at.key).unwrap_or_default();
                bus.queue_release(&self.queue, id).await?;
                let until_stop = bus.is_received(&self.queue);
                Ok(
                    json!({ "id": id.to_string(), "key": &*key, "overtaken_by": overtaken, "until_stop": until_stop }),
                )
            }
            (Action::Drop, Some(id)) => {
                bus.queue_drop(&self.queue, id).await?;
                Ok(json!({ "id": id.to_string() }))
            }
            (_, None) => Err(StoreError::NotFound(String::from("no message was named"))),
        }
    }

    fn answer(&self, done: &[Done]) -> Result<Json<Value>, ApiError> {
        let results: Value = done.iter().map(Done::shown).collect();
        let good = done.iter().filter(|done| done.result.is_ok()).count();
        let mut answer = json!({
            "queue": self.queue,
            "action": self.action.name(),
            "done": good,
            "results": results,
        });
        let Some(error) = done.iter().find_map(|done| done.result.as_ref().err()) else {
            return Ok(Json(answer));
        };
        let mut failure = ApiError::from(error.clone());
        if done.len() > 1 {
            failure.message = format!(
                "{} of {} were not done: {error}",
                done.len() - good,
                done.len()
            );
        }
        if let Some(fields) = answer.as_object_mut() {
            failure.more = std::mem::take(fields);
        }
        Err(failure)
    }
}

impl Done {
    fn shown(&self) -> Value {
        match &self.result {
            Ok(more) => {
                let mut shown = more.clone();
                shown["ok"] = json!(true);
                shown
            }
            Err(error) => {
                let id = (!self.id.is_empty()).then_some(&self.id);
                json!({ "id": id, "ok": false, "error": error.to_string() })
            }
        }
    }
}

/// What has certainly overtaken a parked message: the messages of its route that came in after it
/// had entered its queue and that have been delivered. Nothing where the journal cannot tell: a
/// queue that routes fill by name, and one with several keys, which the journal does not keep.
async fn overtaken(app: &App, queue: &str, id: MessageId) -> Option<Value> {
    let bus = &app.bus;
    let parked = bus.queue_entry(queue, id).await.ok()??;
    let (route, at) = bus.plan().lane(queue)?;
    let target = route.all_targets().nth(at)?;
    if !parked.at.key.is_empty() || target.lane.as_ref()?.order_by.is_some() {
        return None;
    }
    let target = target.step.name.clone();
    let query = Query {
        route: Some(route.name.clone()),
        since: Some(parked.since),
        limit: LOOKED_AT,
        ..Query::default()
    };
    let store = bus.store().clone();
    let found = tokio::task::spawn_blocking(move || store.find(&query))
        .await
        .ok()?
        .ok()?;
    let complete = found.len() < LOOKED_AT;
    let went_by = |entry: &&xbus_core::store::JournalEntry| {
        entry.id != id
            && entry
                .targets
                .iter()
                .any(|known| known.name == target && known.outcome == Outcome::Delivered)
    };
    let ids: Vec<String> = found
        .iter()
        .filter(went_by)
        .map(|entry| entry.id.to_string())
        .collect();
    let count = ids.len();
    let newest: Vec<&String> = ids.iter().take(SHOWN).collect();
    Some(json!({ "count": count, "complete": complete, "newest": newest }))
}
