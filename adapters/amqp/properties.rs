//! A message as AMQP properties, headers and body, and back.

use bytes::Bytes;
use lapin::BasicProperties;
use xbus_core::Message;

/// A message as it is published without an envelope.
pub(crate) fn write(message: &Message) -> (BasicProperties, Bytes) {
    let _ = message;
    unimplemented!()
}
