//! The router: one message through its route.

use std::sync::Arc;

use crate::bus::Bus;
use crate::plan::Route;
use crate::{Arrival, Code, Fault, Reply};

/// Runs `route` for one message, to its end.
pub(crate) async fn run(
    _bus: &Arc<Bus>,
    _route: &Arc<Route>,
    _arrival: Arrival,
) -> Result<Reply, Fault> {
    Err(Fault::new(Code::Internal, "not wired"))
}
