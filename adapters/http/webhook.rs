//! `alerts.webhook` of xbus.yaml: notices to administrators as HTTP POST with JSON, for chat systems
//! and on-call services. The request is an `http` sender's, so that connections, certificates and
//! credentials are the same as in routes.
//!
//! Absent: redirects, templates. What receives it maps the JSON.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::time::Instant;
use xbus_core::notice::{Event, Notice, Report};
use xbus_core::outbox::{Accepted, Notifier};
use xbus_core::spec::{Args, Field, Type};
use xbus_core::{Context, Message, Request, SendError, Sender};

use crate::sender::{HttpSender, POST_FIELDS, build_post};

/// The version of the JSON. Keys may be added within a version, and none goes or changes its meaning.
const VERSION: u32 = 1;

/// The way's name, and what its idempotency keys end with.
const WAY: &str = "webhook";

/// What can stand under `alerts.webhook`.
pub static WEBHOOK_FIELDS: &[Field] = &[
    POST_FIELDS[0],
    POST_FIELDS[1],
    POST_FIELDS[2],
    POST_FIELDS[3],
    Field::new("timeout", Type::Duration, "How long one request may take.").default("10s"),
];

/// Posts notices to one address.
pub struct Webhook {
    sender: HttpSender,
    timeout: Duration,
}

impl Webhook {
    /// Reads [`WEBHOOK_FIELDS`]; nothing when something is wrong, which is reported. Does no I/O but
    /// reading certificates.
    pub fn build(args: Args<'_>) -> Option<Self> {
        let sender = build_post(args, WAY);
        let timeout = args.duration("timeout")?;
        if timeout.is_zero() {
            args.build.problems.error(
                &args.place("timeout"),
                "bad-value",
                "no request can be made in no time",
                "write a time such as 10s",
            );
            return None;
        }
        Some(Self {
            sender: sender?,
            timeout,
        })
    }

    async fn post(&self, notice: &Notice) -> Result<Accepted, SendError> {
        let mut message = Message::new(body(notice).to_string());
        message.id = notice.id;
        message.headers.set("content-type", "application/json");
        let message = Arc::new(message);
        let context = Context::new(Arc::from(""), message.clone());
        let failed = |fault: xbus_core::Fault| SendError::rejected(fault.for_admin());
        let Request::Call(call) = self.sender.make(message, &context).map_err(failed)? else {
            return Err(SendError::rejected("a webhook is called"));
        };
        let answer = call.run(Instant::now() + self.timeout).await?;
        let status = answer.headers.get("http.status").unwrap_or_default();
        Ok(Accepted {
            said: format!("HTTP {status}"),
            refused: Vec::new(),
        })
    }
}

impl Notifier for Webhook {
    fn way(&self) -> &'static str {
        WAY
    }

    fn goes_to(&self) -> String {
        self.sender.destination()
    }

    /// Waits up to `timeout`.
    fn notify<'a>(&'a self, notice: &'a Notice) -> BoxFuture<'a, Result<Accepted, SendError>> {
        Box::pin(async move {
            self.post(notice).await.map_err(|mut error| {
                error.detail = self.sender.without_path(&error.detail);
                if let Some(answer) = error.answer.take() {
                    error.detail = format!("{}: {answer}", error.detail);
                }
                error
            })
        })
    }
}

/// The notice as JSON.
fn body(notice: &Notice) -> Value {
    let subject = notice.subject();
    let mut all = json!({
        "version": VERSION,
        "id": notice.id.to_string(),
        "event": notice.event.name(),
        "at": notice.at.to_string(),
        "bus": &*notice.bus,
        "subject": subject,
        "text": format!("{subject}\n{}", notice.sentence()),
    });
    if notice.event == Event::Escalated {
        all["level"] = json!(notice.level);
    }
    all["incidents"] = notice
        .incidents
        .iter()
        .map(|report| incident(notice, report))
        .collect();
    all["more"] = json!(notice.more);
    all
}

fn incident(notice: &Notice, report: &Report) -> Value {
    json!({
        "id": report.id.to_string(),
        "route": &*report.route,
        "step": &*report.step,
        "kind": &*report.kind,
        "opened_at": report.opened_at.to_string(),
        "resolved_at": report.resolved_at.map(|at| at.to_string()),
        "failures": report.count,
        "level": report.level,
        "last_error": report.last_error,
        "message": report.message.map(|id| id.to_string()),
        "waiting": report.waiting.as_ref().map(|waiting| json!({
            "queue": &*waiting.queue,
            "depth": waiting.depth,
            "parked": waiting.parked,
            "oldest": waiting.oldest.map(|at| at.to_string()),
        })),
        "commands": report.commands(&notice.dir),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, with_build};
    use xbus_core::{MessageId, Timestamp};

    fn notice(event: Event) -> Notice {
        Notice {
            id: MessageId::from_u128(1),
            at: Timestamp::from_micros(5_000_000),
            event,
            bus: "acme".into(),
            dir: "/srv/bus".into(),
            level: 2,
            incidents: vec![Report {
                id: MessageId::from_u128(7),
                route: "orders".into(),
                step: "erp".into(),
                kind: "outage".into(),
                opened_at: Timestamp::from_micros(1_000_000),
                resolved_at: None,
                count: 3,
                last_error: String::from("re\"fused"),
                message: None,
                undecided: false,
                waiting: None,
                opening: None,
                level: 2,
            }],
            more: 0,
        }
    }

    #[test]
    fn the_form_of_the_json_is_a_promise() {
        assert_eq!(
            body(&notice(Event::Escalated)),
            json!({
                "version": 1,
                "id": "00000000-0000-0000-0000-000000000001",
                "event": "escalated",
                "at": "1970-01-01T00:00:05.000Z",
                "bus": "acme",
                "subject": "[xbus] ESCALATED orders/erp: outage",
                "text": "[xbus] ESCALATED orders/erp: outage\nA step of the bus fails and nobody has mended it for 4 s.",
                "level": 2,
                "incidents": [{
                    "id": "00000000-0000-0000-0000-000000000007",
                    "route": "orders",
                    "step": "erp",
                    "kind": "outage",
                    "opened_at": "1970-01-01T00:00:01.000Z",
                    "resolved_at": null,
                    "failures": 3,
                    "level": 2,
                    "last_error": "re\"fused",
                    "message": null,
                    "waiting": null,
                    "commands": [],
                }],
                "more": 0,
            })
        );
    }

    #[test]
    fn what_cannot_be_posted_to_is_said() {
        let with = |key: &str, value: Value| {
            let mut all = json!({ "url": "http://u:p@a/b" });
            all[key] = value;
            all
        };
        let cases = [
            (json!({ "url": "ftp://a/b" }), "'ftp' is not http or https"),
            (json!({ "url": "hooks" }), "no scheme"),
            (
                with("headers", json!({ "Host": "x" })),
                "set by HTTP itself",
            ),
            (with("headers", json!({ "a b": "x" })), "not a header name"),
            (
                json!({ "url": "https://a/b", "timeout": "0s" }),
                "in no time",
            ),
            (
                with("headers", json!({ "X-A": "a\nb" })),
                "control character",
            ),
            (
                with("auth", json!({ "bearer": "t" })),
                "credentials stand twice",
            ),
        ];
        for (value, expected) in cases {
            let node = node(value);
            let (made, problems) = with_build(|build| {
                Webhook::build(Args::new(Some(&node), WEBHOOK_FIELDS, build)).is_some()
            });
            assert!(!made, "{expected}");
            assert!(problems[0].message.contains(expected), "{problems:?}");
        }
    }
}
