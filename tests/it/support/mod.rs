//! What all tests share: a bus in a folder of its own, destinations, an HTTP client, a RabbitMQ and
//! an AMQP client.

pub mod amqp;
pub mod bus;
pub mod destination;
pub mod dovecot;
pub mod http;
mod ports;
pub mod python;
pub mod rabbit;

use std::time::{Duration, Instant};

pub use bus::{Bus, Installation};
pub use destination::{Answer, Destination};
pub use dovecot::Dovecot;
pub use http::{Response, get, post, request};
pub use ports::{free_port, ports_in_a_row};

/// The longest that a test waits for a condition.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives something; fails with `what` when it does not in time.
#[track_caller]
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
