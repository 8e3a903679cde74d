//! How the bus is: status, and health for whatever watches over the process.

use std::sync::atomic::Ordering::SeqCst;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};
use xbus_core::Timestamp;
use xbus_core::plan::Plan;
use xbus_core::store::StoreError;

use crate::{App, Shared};

/// `GET /api/v1/status`.
pub(crate) async fn status(State(app): State<Shared>) -> Json<Value> {
    let plan = app.bus.plan();
    let store = app.bus.store();
    let health = store.health();
    let queues = app.bus.queues().await;
    let reasons = why_not_ready(&app);
    Json(json!({
        "name": &*plan.bus,
        "node": &*plan.node,
        "version": app.settings.version,
        "started_at": app.started.to_string(),
        "uptime_seconds": app.started.until(Timestamp::now()).as_secs(),
        "ready": reasons.is_empty(),
        "not_ready_because": reasons,
        "routes": plan.routes.len(),
        "store": {
            "healthy": health.is_ok(),
            "error": health.err().map(|error| error.to_string()),
            "disk_bytes": store.disk_bytes(),
        },
        "queued": queues.iter().map(|queue| queue.status.depth).sum::<u64>(),
        "parked": queues.iter().map(|queue| queue.status.parked).sum::<u64>(),
        "connections": connections(&plan),
        "incidents_open": app.bus.incidents().open_count(),
        "mails_waiting": waiting(&app, "mail"),
        "webhooks_waiting": waiting(&app, "webhook"),
    }))
}

/// How many notices wait for a way to administrators.
pub(crate) fn waiting(app: &App, way: &str) -> usize {
    let outboxes = app.bus.incidents().outboxes();
    let of = outboxes.filter(|outbox| outbox.way() == way);
    of.map(|outbox| outbox.len()).sum()
}

/// The connections that tell how they are doing, and what they tell.
fn connections(plan: &Plan) -> Value {
    let shown = plan.connections.iter().map(|(name, health)| {
        let state = health.state();
        let counters: serde_json::Map<String, Value> = health
            .counters()
            .into_iter()
            .map(|(name, _, value)| (name.to_owned(), json!(value)))
            .collect();
        json!({
            "name": &**name,
            "state": state.phase.name(),
            "since": state.since.to_string(),
            "error": state.error,
            "counters": counters,
        })
    });
    shown.collect()
}

/// `GET /health/live`: the process answers.
pub(crate) async fn live() -> Json<Value> {
    Json(json!({ "status": "live" }))
}

/// `GET /health/ready`: messages are taken now; else 503 and why not.
pub(crate) async fn ready(State(app): State<Shared>) -> Response {
    let reasons = why_not_ready(&app);
    if reasons.is_empty() {
        return Json(json!({ "status": "ready" })).into_response();
    }
    let body = json!({ "status": "not-ready", "reasons": reasons });
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

/// Why no messages are taken, in words that everybody may read (no paths, no addresses).
pub(crate) fn why_not_ready(app: &App) -> Vec<&'static str> {
    let mut reasons = Vec::new();
    if app.bus.stopping().is_cancelled() {
        reasons.push("the bus is stopping");
    } else if !app.settings.ready.load(SeqCst) {
        reasons.push("the receivers are not open");
    }
    match app.bus.store().health() {
        Ok(()) => {}
        Err(StoreError::Full(_)) => reasons.push("the store has no room"),
        Err(_) => reasons.push("the store has failed; the log says why"),
    }
    reasons
}
