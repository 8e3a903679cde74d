//! Incidents, the ways by which administrators are told of them, and a trial of those ways.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde_json::{Value, json};
use xbus_core::notice::Report;

use crate::Shared;
use crate::error::ApiError;
use crate::listener::Peer;

/// `GET /api/v1/incidents`: what has failed and is not mended.
pub(crate) async fn incidents(State(app): State<Shared>) -> Json<Value> {
    let open = app.bus.incidents().open();
    Json(open.iter().map(incident).collect())
}

fn incident(report: &Report) -> Value {
    let waiting = report.waiting.as_ref();
    json!({
        "id": report.id.to_string(),
        "route": &*report.route,
        "step": &*report.step,
        "kind": &*report.kind,
        "opened_at": report.opened_at.to_string(),
        "count": report.count,
        "level": report.level,
        "last_error": report.last_error,
        "message": report.message.map(|id| id.to_string()),
        "queue": waiting.map(|waiting| &*waiting.queue),
        "waiting": waiting.map(|waiting| waiting.depth),
        "parked": waiting.map(|waiting| waiting.parked),
        "oldest": waiting.and_then(|waiting| waiting.oldest).map(|at| at.to_string()),
    })
}

/// `GET /api/v1/alerts`: the ways, and how each is doing.
pub(crate) async fn ways(State(app): State<Shared>) -> Json<Value> {
    let incidents = app.bus.incidents();
    let ways = incidents.outboxes().map(|outbox| {
        let state = outbox.way_state();
        json!({
            "way": outbox.way(),
            "to": incidents.goes_to(outbox.way()),
            "waiting": outbox.len(),
            "sent": state.sent,
            "dropped": state.dropped,
            "last_sent": state.last_sent.map(|at| at.to_string()),
            "failing_at": state.failing.as_ref().map(|(at, _)| at.to_string()),
            "error": state.failing.map(|(_, why)| why),
        })
    });
    Json(ways.collect())
}

/// `POST /api/v1/alerts/test`: sends a notice that says that it is a test over every way, now.
pub(crate) async fn test(
    State(app): State<Shared>,
    axum::Extension(Peer(peer)): axum::Extension<Peer>,
) -> Result<Json<Value>, ApiError> {
    if app.bus.incidents().outboxes().next().is_none() {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "nobody is told of incidents: xbus.yaml has neither alerts.mail nor alerts.webhook, or had none when the bus started",
        ));
    }
    tracing::info!(target: "audit", audit = true, action = "alerts test", by = %peer, "an administrator tries the ways of failure notices");
    let bus = app.bus.clone();
    let trials = tokio::spawn(async move { bus.incidents().try_ways().await }).await?;
    let results = trials.into_iter().map(|trial| match trial.result {
        Ok(accepted) => json!({
            "way": trial.way,
            "to": trial.goes_to,
            "ok": accepted.refused.is_empty(),
            "said": accepted.said,
            "refused": accepted.refused,
        }),
        Err(error) => json!({
            "way": trial.way,
            "to": trial.goes_to,
            "ok": false,
            "error": error.detail,
        }),
    });
    Ok(Json(results.collect()))
}
