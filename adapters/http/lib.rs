//! HTTP, HTTPS and SOAP: a receiver whose routes share listeners, and a sender that keeps
//! connections to its destinations.
//!
//! [`Hub`] owns the listeners; [`kind`] is what routes see. Absent: HTTP/2 and 3, web sockets,
//! proxies, and of WS-Security signatures and encryption.

mod addressing;
mod auth;
mod body;
mod call;
mod contract;
mod describe;
mod door;
mod fault;
mod form;
#[doc(hidden)]
pub mod fuzz;
mod guard;
mod heads;
mod hub;
mod multipart;
pub mod outline;
mod pack;
mod package;
mod pool;
mod receiver;
mod refused;
mod reply;
pub mod security;
mod sender;
mod serve;
mod settings;
mod shape;
mod soap;
mod splice;
mod table;
mod tls;
mod url;
mod webhook;
mod wellformed;
mod wrap;
pub mod wsdl;
mod xml;

#[cfg(test)]
mod pack_tests;
#[cfg(test)]
mod receiver_tests;
#[cfg(test)]
mod sender_tests;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use xbus_core::Kind;

pub use hub::Hub;
pub use settings::{
    LIMIT_FIELDS, LISTENER_FIELDS, Limits, ListenerSettings, ListenerTls, Network, Settings,
    limits, listener, settings,
};
pub use soap::{Name, Version};
pub use webhook::{WEBHOOK_FIELDS, Webhook};

/// HTTP as routes see it. Its receivers attach to the listeners of `hub`.
pub fn kind(hub: Arc<Hub>) -> Kind {
    Kind {
        name: "http",
        doc: "Receives requests over HTTP and HTTPS, and sends them: plain, or as SOAP 1.1 and 1.2.",
        receiver: Some(receiver::kind(hub)),
        sender: Some(sender::kind()),
        connection: None,
    }
}
