//! Messages: the journal searched and shown, replay, and the decision on unknown outcomes.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as QueryString, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use xbus_core::bus::Bus;
use xbus_core::spec::parse_duration;
use xbus_core::store::{JournalEntry, Outcome, Query, Store, StoreError};
use xbus_core::{Arrival, Format, Message, MessageId, Timestamp};

use crate::Shared;
use crate::error::ApiError;
use crate::listener::Peer;
use crate::queues::{json_body, path};
use crate::routes;

/// So many are listed when nothing else is asked for, and at most.
const SHOWN: usize = 100;
const SHOWN_AT_MOST: usize = 10_000;
/// Characters of a text payload that are shown, in bytes.
const PREVIEW: usize = 64 * 1024;

/// What to list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filters {
    route: Option<String>,
    outcome: Option<String>,
    key: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<usize>,
}

impl Filters {
    fn query(self) -> Result<Query, ApiError> {
        let outcome = match self.outcome {
            None => None,
            Some(name) => Some(Outcome::from_name(&name).ok_or_else(|| {
                let hint = xbus_core::problem::suggest(
                    &name,
                    ["delivered", "failed", "pending", "filtered", "in-doubt"],
                );
                ApiError::wrong(format!("'{name}' is not an outcome; {hint}"))
            })?),
        };
        let key = match self.key {
            None => None,
            Some(key) => match key.split_once('=') {
                Some((name, value)) => Some((name.to_owned(), value.to_owned())),
                None => return Err(ApiError::wrong("'key' is written NAME=VALUE")),
            },
        };
        if self.limit == Some(0) {
            return Err(ApiError::wrong("'limit' is at least 1"));
        }
        let now = Timestamp::now();
        let time = |text: Option<String>| text.map(|text| moment(&text, now)).transpose();
        Ok(Query {
            id: None,
            route: self.route.map(Arc::from),
            outcome,
            key,
            since: time(self.since)?,
            until: time(self.until)?,
            limit: self.limit.unwrap_or(SHOWN).min(SHOWN_AT_MOST),
        })
    }
}

/// A time: RFC 3339, a day (its beginning in UTC), or how long ago (`1h`).
fn moment(text: &str, now: Timestamp) -> Result<Timestamp, ApiError> {
    if let Ok(ago) = parse_duration(text) {
        return Ok(now.before(ago));
    }
    text.parse()
        .or_else(|_| format!("{text}T00:00:00Z").parse())
        .map_err(|_: String| {
            ApiError::wrong(format!(
                "'{text}' is not a time: write 2026-11-22T08:00:00Z, 2026-11-22, or how long ago, such as 1h"
            ))
        })
}

/// `GET /api/v1/messages`, newest first.
pub(crate) async fn list(
    State(app): State<Shared>,
    filters: Result<QueryString<Filters>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let QueryString(filters) = filters.map_err(|error| ApiError::wrong(error.body_text()))?;
    let query = filters.query()?;
    if let Some(route) = query.route.clone() {
        // A route that is gone has messages still; one that never was is a slip.
        let found = search(&app.bus, query).await?;
        if found.is_empty() {
            routes::find(&app.bus, &route)?;
        }
        return Ok(Json(found.iter().map(line).collect()));
    }
    let found = search(&app.bus, query).await?;
    Ok(Json(found.iter().map(line).collect()))
}

/// Searching ten million entries takes its time: not on a thread that serves others.
async fn search(bus: &Bus, query: Query) -> Result<Vec<JournalEntry>, ApiError> {
    bus.catch_up().await;
    let store: Arc<dyn Store> = bus.store().clone();
    let mut found = tokio::task::spawn_blocking(move || store.find(&query)).await??;
    // The store gives what was written last first; a message that took long was written late.
    found.sort_by_key(|entry| std::cmp::Reverse((entry.received_at, entry.id)));
    Ok(found)
}

fn line(entry: &JournalEntry) -> Value {
    let keys: Map<String, Value> = entry
        .keys
        .iter()
        .map(|(name, value)| (name.to_string(), json!(value)))
        .collect();
    let targets: Value = entry
        .targets
        .iter()
        .map(|target| {
            json!({
                "name": &*target.name,
                "outcome": target.outcome.name(),
                "attempts": target.attempts,
                "error": target.error,
                "at": target.at.to_string(),
            })
        })
        .collect();
    let id = entry.id.to_string();
    json!({
        "id": &id,
        "correlation_id": entry.correlation_id.as_deref().unwrap_or(&id),
        "route": &*entry.route,
        "received_at": entry.received_at.to_string(),
        "outcome": entry.outcome.name(),
        "keys": keys,
        "targets": targets,
    })
}

/// The journal's entry of `id`, which is as the user wrote it.
async fn find(bus: &Bus, id: &str) -> Result<JournalEntry, ApiError> {
    let Ok(parsed) = id.parse::<MessageId>() else {
        return Err(ApiError::not_found(format!(
            "there is no message '{id}' (an id is a UUID)"
        )));
    };
    let query = Query {
        id: Some(parsed),
        limit: 1,
        ..Query::default()
    };
    let found = search(bus, query).await?.into_iter().next();
    found.ok_or_else(|| {
        ApiError::not_found(format!(
            "there is no message {id} in the journal: requests that no route took (404, 405, 401, …) are not journalled, and the journal forgets what is older than its 'keep'"
        ))
    })
}

/// `GET /api/v1/messages/{id}`: everything that is known, the payload included where it is kept.
pub(crate) async fn show(
    State(app): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let entry = find(&app.bus, &path(id)?).await?;
    Ok(Json(full(&app.bus, &entry).await?))
}

async fn full(bus: &Bus, entry: &JournalEntry) -> Result<Value, StoreError> {
    let mut shown = line(entry);
    shown["cause"] = json!(entry.cause.map(|id| id.to_string()));
    shown["took_ms"] = json!(entry.took_micros as f64 / 1000.0);
    shown["fault"] = json!(entry.fault.as_ref().map(|fault| json!({
        "code": &*fault.code,
        "step": fault.step.as_deref(),
        "reason": fault.reason,
    })));
    shown["queued"] = queued(bus, entry).await?;
    let kept = bus.store().payload(entry.id)?;
    shown["payload"] = json!(kept.as_ref().map(payload));
    Ok(shown)
}

/// Where the message waits: one place for each of its targets that has not got it.
async fn queued(bus: &Bus, entry: &JournalEntry) -> Result<Value, StoreError> {
    let plan = bus.plan();
    let Some(route) = plan.routes.get(&entry.route) else {
        return Ok(json!([]));
    };
    let mut places = Vec::new();
    for target in route.all_targets() {
        let Some(lane) = &target.lane else { continue };
        let waits = entry
            .targets
            .iter()
            .any(|known| known.name == target.step.name && known.outcome == Outcome::Queued);
        if !waits {
            continue;
        }
        if let Some(found) = bus.queue_entry(&lane.queue, entry.id).await? {
            places.push(json!({
                "target": &*target.step.name,
                "queue": &*lane.queue,
                "key": &*found.at.key,
                "attempts": found.attempts,
                "last_error": found.last_error,
                "next_try": found.next_try.map(|at| at.to_string()),
                "parked": found.parked,
            }));
        }
    }
    Ok(Value::Array(places))
}

fn payload(message: &Message) -> Value {
    let headers: Map<String, Value> = message
        .headers
        .iter()
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    let bytes = message.body.bytes();
    let text = match message.format() {
        Some(Format::Bytes) => None,
        _ => preview(bytes),
    };
    let attachments: Vec<Value> = message
        .attachments
        .iter()
        .map(|attachment| {
            json!({
                "name": attachment.name.as_deref(),
                "content_type": attachment.content_type.as_deref(),
                "content_id": attachment.content_id.as_deref(),
                "bytes": attachment.body.len(),
            })
        })
        .collect();
    json!({
        "bytes": bytes.len(),
        "attachments": attachments,
        "content_type": message.content_type(),
        "headers": headers,
        "truncated": text.is_some_and(|text| text.len() < bytes.len()),
        "text": text,
    })
}

/// The beginning of what is UTF-8 text, cut between characters.
fn preview(bytes: &[u8]) -> Option<&str> {
    let start = &bytes[..bytes.len().min(PREVIEW)];
    match std::str::from_utf8(start) {
        Ok(text) => Some(text),
        Err(error) if start.len() < bytes.len() && error.error_len().is_none() => {
            std::str::from_utf8(&start[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    }
}

/// `POST /api/v1/messages/{id}/replay`: a new message with the old one's payload, which names the
/// old one as its cause; `once` does not hold it back.
pub(crate) async fn replay(
    State(app): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    axum::Extension(Peer(peer)): axum::Extension<Peer>,
) -> Result<Response, ApiError> {
    let old = find(&app.bus, &path(id)?).await?;
    let Some(kept) = app.bus.store().payload(old.id)? else {
        return Err(ApiError::conflict(format!(
            "no payload of message {} is kept, so that it cannot be replayed; journal.payloads in xbus.yaml says which are",
            old.id
        )));
    };
    let mut message = Message::new(kept.body.clone());
    message.headers = kept.headers.clone();
    message.format = kept.format;
    message.attachments = kept.attachments.clone();
    message.correlation_id = old
        .correlation_id
        .clone()
        .or_else(|| Some(Arc::from(old.id.to_string())));
    let new = message.id;
    let mut arrival = Arrival::from(message);
    arrival.cause = Some(old.id);
    arrival.replayed = true;
    let inbox = routes::door(&app, &old.route)?;
    tracing::info!(
        target: "audit",
        audit = true,
        action = "messages replay",
        id = %old.id,
        new_id = %new,
        route = %old.route,
        by = %peer,
        "an administrator replays a message"
    );
    let result = inbox.deliver(arrival).await;
    Ok(routes::answer(new, Some(old.id), result))
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Decision {
    commit: Option<bool>,
}

/// `POST /api/v1/messages/{id}/resolve`, `{"commit": true}` or false: what an unknown outcome was.
pub(crate) async fn resolve(
    State(app): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    axum::Extension(Peer(peer)): axum::Extension<Peer>,
    body: axum::body::Body,
) -> Result<Json<Value>, ApiError> {
    let decision: Decision = json_body(body).await?;
    let Some(commit) = decision.commit else {
        return Err(ApiError::wrong(
            "say what the outcome was: {\"commit\": true} or {\"commit\": false}",
        ));
    };
    let entry = find(&app.bus, &path(id)?).await?;
    if entry.outcome != Outcome::InDoubt {
        return Err(ApiError::conflict(format!(
            "message {} is not in doubt: it is {}",
            entry.id,
            entry.outcome.name()
        )));
    }
    let bus = app.bus.clone();
    let resolved = app
        .bus
        .tasks()
        .spawn(async move { bus.resolve(entry.id, commit).await })
        .await?;
    tracing::info!(
        target: "audit",
        audit = true,
        action = "messages resolve",
        id = %entry.id,
        commit,
        by = %peer,
        error = resolved.as_ref().err().map(ToString::to_string),
        "an administrator decided an unknown outcome"
    );
    Ok(Json(full(&app.bus, &resolved?).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_moments_days_or_how_long_ago() {
        let now: Timestamp = "2026-11-22T08:00:00Z".parse().unwrap();
        let read = |text: &str| moment(text, now).map(|at| at.to_string()).ok();
        assert_eq!(read("1h").as_deref(), Some("2026-11-22T07:00:00.000Z"));
        assert_eq!(
            read("2026-11-01").as_deref(),
            Some("2026-11-01T00:00:00.000Z")
        );
        assert_eq!(
            read("2026-11-01T10:00:00+02:00").as_deref(),
            Some("2026-11-01T08:00:00.000Z")
        );
        assert_eq!(read("yesterday"), None);
    }

    #[test]
    fn previews_are_cut_between_characters() {
        let long = "é".repeat(PREVIEW);
        let odd = format!("x{long}");
        assert_eq!(preview(odd.as_bytes()).map(str::len), Some(PREVIEW - 1));
        assert_eq!(preview(b"\xff\xfe"), None);
        assert_eq!(preview(b"plain"), Some("plain"));
    }
}
