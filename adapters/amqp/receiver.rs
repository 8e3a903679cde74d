//! The receiver: a queue's messages run through the route and are acknowledged when it is done.

use std::sync::Arc;

use xbus_core::Receiver;
use xbus_core::spec::{Args, Field};

/// What can stand under `receive: { amqp: … }`.
pub(crate) const FIELDS: &[Field] = &[];

/// Builds a receiver from what the route says.
pub(crate) fn build(args: Args<'_>) -> Option<Arc<dyn Receiver>> {
    let _ = args;
    None
}
