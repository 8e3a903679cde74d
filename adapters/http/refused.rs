//! Requests that no route has taken: told in the log and counted, and journalled where the route is
//! known and its caller let in. Whoever floods the bus does not flood the log.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use http::request::Parts;
use tokio::time::Instant;
use xbus_core::stats::Refused;
use xbus_core::{Code, Fault, Message, MessageId};

use crate::door::Door;
use crate::heads;
use crate::hub::Connection;
use crate::shape::{self, Refusal};

/// Lines in a [`WINDOW`]; what is more is told as a number.
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);
/// Characters of a path that a line shows.
const PATH: usize = 200;

/// What is known of requests that were refused, on all listeners.
#[derive(Default)]
pub(crate) struct Refusals {
    counts: Arc<Refused>,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    since: Option<Instant>,
    lines: u32,
    /// Refusals that got no line, and are to be told together.
    more: u64,
    /// Somebody waits to tell of them.
    gathering: bool,
}

impl Refusals {
    /// The counts, for metrics.
    pub(crate) fn counts(&self) -> &Arc<Refused> {
        &self.counts
    }

    /// Counts a refusal; says whether it may have a line of its own. In a runtime only.
    fn note(self: &Arc<Self>, listener: &Arc<str>, kind: &'static str) -> bool {
        self.counts.add(listener, kind);
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match told.since {
            Some(since) if now.duration_since(since) < WINDOW => since,
            _ => {
                (told.since, told.lines) = (Some(now), 0);
                now
            }
        };
        if told.lines < LINES {
            told.lines += 1;
            return true;
        }
        told.more += 1;
        if !std::mem::replace(&mut told.gathering, true) {
            let all = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep_until(since + WINDOW).await;
                let more = all.gathered();
                tracing::warn!(
                    more,
                    "further requests were refused, see xbus_requests_refused_total"
                );
            });
        }
        false
    }

    fn gathered(&self) -> u64 {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.gathering = false;
        std::mem::take(&mut told.more)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_has_some_lines_and_a_number() {
        let refusals = Arc::new(Refusals::default());
        let listener: Arc<str> = Arc::from("default");
        let mut lines = 0;
        for _ in 0..1000 {
            lines += u32::from(refusals.note(&listener, "not-found"));
        }
        assert_eq!(lines, LINES);
        tokio::task::yield_now().await;
        tokio::time::sleep(WINDOW).await;
        tokio::task::yield_now().await;
        {
            let told = refusals.told.lock().unwrap();
            assert_eq!((told.more, told.gathering), (0, false), "told together");
        }
        assert!(refusals.note(&listener, "denied"));
        assert_eq!(
            refusals.counts().all(),
            [
                (listener.clone(), "denied", 1),
                (listener.clone(), "not-found", 1000)
            ]
        );
    }
}
