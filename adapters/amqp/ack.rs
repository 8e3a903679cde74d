//! Acknowledges by the channel itself.
//!
//! lapin's `Acker` hands each acknowledgement to a task of the connection, which spawns another one for it: every
//! message would be waited for over two tasks and their threads more than the write takes.
//!
//! Absent on purpose: what an `Acker` sees to beside that, that a delivery is acknowledged once. Whoever holds a
//! delivery here settles it once, and a channel is never recovered under the same number.

use lapin::Channel;
use lapin::options::BasicAckOptions;
use lapin::types::DeliveryTag;

/// Acknowledges what `channel` has delivered under `tag`; ends when it has been written to the socket. `false`: the
/// channel was gone before, and the broker has certainly not heard of it.
///
/// # Errors
/// The channel or the connection was lost meanwhile.
pub(crate) async fn ack(channel: &Channel, tag: DeliveryTag) -> lapin::Result<bool> {
    if !channel.status().connected() {
        return Ok(false);
    }
    channel.basic_ack(tag, BasicAckOptions::default()).await?;
    Ok(true)
}
