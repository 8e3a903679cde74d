//! Requests that no route has taken: told in the log and counted, and journalled where the route is
//! known and its caller let in. Whoever floods the bus does not flood the log.

use std::sync::Arc;

use http::Uri;
use http::request::Parts;
use xbus_core::log_limit::LogLimit;
use xbus_core::stats::RefusedRequests;
use xbus_core::{Code, Fault, Message, MessageId};

use crate::door::Door;
use crate::heads;
use crate::hub::Connection;
use crate::shape::{self, Refusal};

/// Characters of a path that a line shows.
const PATH: usize = 200;

/// What is known of requests that were refused, on all listeners.
#[derive(Default)]
pub(crate) struct Refusals {
    counts: Arc<RefusedRequests>,
    lines: Arc<LogLimit>,
}

impl Refusals {
    /// The counts, for metrics.
    pub(crate) fn counts(&self) -> &Arc<RefusedRequests> {
        &self.counts
    }

    /// Counts a refusal; says whether it may have a line of its own. In a runtime only.
    fn note(&self, listener: &Arc<str>, kind: &'static str) -> bool {
        self.counts.add(listener, kind);
        self.lines.admits(|more| {
            tracing::warn!(
                more,
                "further requests were refused, see xbus_requests_refused_total"
            );
        })
    }
}

/// Tells of a request that was refused, unless its route has: it may have run.
pub(crate) async fn tell(
    connection: &Arc<Connection>,
    head: &Parts,
    id: MessageId,
    refusal: &Refusal,
) {
    if refusal.delivered {
        return;
    }
    let fault = &refusal.fault;
    // Who is not let in does not write into the journal.
    if let Some(door) = &refusal.door
        && fault.code != Code::Denied
    {
        let message = Message {
            id,
            correlation_id: heads::correlation(head).map(Arc::from),
            headers: heads::headers(connection, &door.config, head),
            ..Message::new("")
        };
        return door.turn_away(message, fault.clone()).await;
    }
    let listener = &connection.listener;
    if !listener.refusals.note(&listener.name, fault.code.name()) {
        return;
    }
    let status = refusal.status.unwrap_or_else(|| shape::status_of(fault));
    tracing::warn!(
        %id,
        listener = &*listener.name,
        client = &*heads::client(connection, &head.headers),
        method = head.method.as_str(),
        path = path(&head.uri),
        route = refusal.door.as_ref().map(|door: &Arc<Door>| &**door.route()),
        status = status.as_u16(),
        code = fault.code.name(),
        error = fault.for_log(),
        "a request was refused"
    );
}

/// Tells of a request whose head could not be read.
pub(crate) fn tell_of_head(connection: &Connection, id: MessageId, status: u16, fault: &Fault) {
    let listener = &connection.listener;
    if listener.refusals.note(&listener.name, fault.code.name()) {
        tracing::warn!(
            %id,
            listener = &*listener.name,
            client = connection.client,
            status,
            code = fault.code.name(),
            error = fault.for_log(),
            "a request was refused"
        );
    }
}

/// Tells of a connection that came to no TLS session.
pub(crate) fn tell_of_tls(
    refusals: &Arc<Refusals>,
    listener: &Arc<str>,
    client: &str,
    error: &str,
) {
    if refusals.note(listener, "tls") {
        tracing::warn!(
            listener = &**listener,
            client,
            error,
            "no TLS session came about"
        );
    }
}

fn path(uri: &Uri) -> &str {
    let path = uri.path();
    // A path is ASCII here, so that it can be cut anywhere.
    path.get(..PATH).unwrap_or(path)
}
