//! The sender: publishes with confirms, or asks and waits for the reply.

use std::sync::Arc;

use xbus_core::Sender;
use xbus_core::spec::{Args, Field};

/// What can stand under `amqp` in a step or target.
pub(crate) const FIELDS: &[Field] = &[];

/// Builds a sender from what the step says.
pub(crate) fn build(args: Args<'_>) -> Option<Arc<dyn Sender>> {
    let _ = args;
    None
}
