//! Routes: what there is, how it goes, and a way to hand a message to one.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value, json};
use xbus_core::bus::Bus;
use xbus_core::long;
use xbus_core::plan::Route;
use xbus_core::problem::suggest;
use xbus_core::stats::StepStats;
use xbus_core::{Fault, Headers, Inbox, Message, MessageId, Reply};

use crate::error::ApiError;
use crate::listener::Peer;
use crate::queues::path;
use crate::{App, Shared};

/// How long a request's body may take to come in.
const BODY: Duration = Duration::from_secs(60);
/// Each carries one message header, as `NAME=VALUE`.
const HEADER: &str = "x-xbus-header";

/// `GET /api/v1/routes`.
pub(crate) async fn list(State(app): State<Shared>) -> Json<Value> {
    let plan = app.bus.plan();
    // With a thousand routes some milliseconds.
    Json(long::run(|| {
        plan.routes.values().map(|route| shown(route)).collect()
    }))
}

fn shown(route: &Route) -> Value {
    let stats = &route.stats;
    let steps: Value = route
        .steps
        .iter()
        .map(|step| json!({ "name": &*step.name, "stats": counts(&step.stats) }))
        .collect();
    let targets: Value = route
        .all_targets()
        .map(|target| {
            json!({
                "name": &*target.step.name,
                "queue": target.lane.as_ref().map(|lane| &*lane.queue),
                "stats": counts(&target.step.stats),
            })
        })
        .collect();
    json!({
        "name": &*route.name,
        "description": route.description,
        "enabled": route.enabled,
        "receives": route.receiver.as_ref().and_then(|receiver| receiver.claim()),
        "invoke": steps,
        "distribute": targets,
        "stats": {
            "received": stats.received.get(),
            "acknowledged": stats.acknowledged.get(),
            "failed": stats.failed.get(),
            "filtered": stats.filtered.get(),
            "running": stats.running.get(),
        },
    })
}

fn counts(stats: &StepStats) -> Value {
    json!({ "delivered": stats.delivered.get(), "failed": stats.failed.get() })
}

/// The route of that name.
pub(crate) fn find(bus: &Bus, name: &str) -> Result<Arc<Route>, ApiError> {
    let plan = bus.plan();
    plan.routes.get(name).cloned().ok_or_else(|| {
        let hint = suggest(name, plan.routes.keys().map(|name| &**name));
        ApiError::not_found(format!("there is no route '{name}'; {hint}"))
    })
}

/// The door of a route that runs.
pub(crate) fn door(app: &App, name: &str) -> Result<Inbox, ApiError> {
    if !find(&app.bus, name)?.enabled {
        return Err(ApiError::conflict(format!(
            "route '{name}' is not enabled: it takes no messages"
        )));
    }
    if app.bus.stopping().is_cancelled() {
        return Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the bus is stopping",
        ));
    }
    app.bus
        .inbox(name)
        .ok_or_else(|| ApiError::not_found(format!("there is no route '{name}'")))
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn read(body: Body, limit: u64) -> Result<Bytes, ApiError> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let reading = Limited::new(body, limit).collect();
    match tokio::time::timeout(BODY, reading).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {limit} bytes"),
        )),
        Ok(Err(error)) => Err(ApiError::wrong(format!("the body broke off: {error}"))),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not come within {} s", BODY.as_secs()),
        )),
    }
}

/// `POST /api/v1/routes/{name}/send`: the body is the payload, its content type is the message's;
/// each `X-Xbus-Header: NAME=VALUE` (UTF-8) is a header of it, `X-Correlation-Id` its correlation.
pub(crate) async fn send(
    State(app): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    axum::Extension(Peer(peer)): axum::Extension<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let inbox = door(&app, &path(name)?)?;
    let mut message = Message::new(read(body, app.settings.max_body).await?);
    message.headers = message_headers(&headers)?;
    if let Some(id) = headers.get("x-correlation-id") {
        let id = utf8(id)?;
        message.correlation_id = (!id.is_empty()).then(|| Arc::from(id));
    }
    let id = message.id;
    tracing::info!(
        target: "audit",
        audit = true,
        action = "send",
        %id,
        route = %inbox.route(),
        by = %peer,
        bytes = message.body.bytes().len(),
        "an administrator sends a message"
    );
    let result = inbox.deliver(message).await;
    Ok(answer(id, None, result))
}

fn message_headers(headers: &HeaderMap) -> Result<Headers, ApiError> {
    let mut all = Headers::new();
    if let Some(content_type) = headers.get(header::CONTENT_TYPE) {
        all.set("content-type", utf8(content_type)?);
    }
    for value in headers.get_all(HEADER) {
        let text = utf8(value)?;
        match text.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => all.set(name.trim(), value),
            _ => {
                return Err(ApiError::wrong(format!(
                    "'{text}' is not a header: write NAME=VALUE"
                )));
            }
        }
    }
    Ok(all)
}

fn utf8(value: &http::HeaderValue) -> Result<&str, ApiError> {
    std::str::from_utf8(value.as_bytes())
        .map_err(|_| ApiError::wrong("a header is not valid UTF-8"))
}

/// What a route said to a message: `{"id", "status", "reply"}`, or `{"id", "fault"}` with the
/// status that an HTTP caller of the route would get. The fault's detail is for administrators, who
/// alone can ask here.
pub(crate) fn answer(
    id: MessageId,
    cause: Option<MessageId>,
    result: Result<Reply, Fault>,
) -> Response {
    let mut shown = Map::new();
    let (status, id) = match &result {
        Ok(reply) => (StatusCode::OK, reply.id),
        Err(fault) => (http_status(fault), id),
    };
    shown.insert("id".into(), json!(id.to_string()));
    if let Some(cause) = cause {
        shown.insert("cause".into(), json!(cause.to_string()));
    }
    match &result {
        Ok(reply) => {
            shown.insert("status".into(), json!(reply.status.name()));
            shown.insert("reply".into(), reply_of(reply));
        }
        Err(fault) => {
            shown.insert("fault".into(), fault_of(fault));
        }
    }
    (status, Json(Value::Object(shown))).into_response()
}

fn reply_of(reply: &Reply) -> Value {
    let Some(message) = &reply.message else {
        return Value::Null;
    };
    let bytes = message.body.bytes();
    let (encoding, body) = match std::str::from_utf8(bytes) {
        Ok(text) => ("utf-8", text.to_owned()),
        Err(_) => (
            "base64",
            base64::engine::general_purpose::STANDARD.encode(bytes),
        ),
    };
    let headers: Map<String, Value> = reply
        .headers
        .iter()
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    json!({
        "content_type": message.content_type(),
        "http_status": reply.http_status,
        "headers": headers,
        "encoding": encoding,
        "body": body,
    })
}

fn fault_of(fault: &Fault) -> Value {
    json!({
        "code": fault.code.name(),
        "reason": fault.reason,
        "step": fault.step.as_deref(),
        "detail": fault.detail,
        "retry_after": fault.retry_after.map(|after| after.as_secs_f64()),
    })
}

/// The status that an HTTP caller gets for a fault.
fn http_status(fault: &Fault) -> StatusCode {
    StatusCode::from_u16(fault.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
