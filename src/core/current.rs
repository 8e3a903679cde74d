//! Which message the task that runs now is about, so that whatever is logged meanwhile can say so.
//!
//! Absent on purpose: a span. It would be formatted for each message, and most log nothing.

use std::sync::Arc;

use crate::MessageId;

tokio::task_local! {
    static CURRENT: (MessageId, Arc<str>);
}

/// Runs `future` as work on a message of a route. No async function: that would hold the work twice,
/// as it came and as it runs.
pub(crate) fn about<F: Future>(
    id: MessageId,
    route: Arc<str>,
    future: F,
) -> impl Future<Output = F::Output> {
    CURRENT.scope((id, route), future)
}

/// The message that the running task is about, and its route; nothing elsewhere.
pub fn message() -> Option<(MessageId, Arc<str>)> {
    CURRENT.try_with(Clone::clone).ok()
}
