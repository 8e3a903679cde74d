//! Incidents: what fails, told to the administrators once when it opens, in digests while it lasts
//! and once when it is over.

use crate::MessageId;

/// All incidents of the bus.
#[derive(Default)]
pub struct Incidents {}

impl Incidents {
    /// A failure of `step` of `route`.
    pub fn failed(
        &self,
        _route: &str,
        _step: &str,
        _kind: &'static str,
        _error: &str,
        _message: Option<MessageId>,
        _queue: Option<&str>,
    ) {
    }

    /// A success of `step` of `route`: what was open there is over.
    pub fn succeeded(&self, _route: &str, _step: &str) {}
}
