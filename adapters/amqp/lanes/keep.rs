//! Publishing into the queues beside a lane, which are declared when the first message comes.

use std::sync::Arc;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::time::Instant;
use xbus_core::SendError;

use super::failure::{self, CALL, Failure};
use super::names;
use crate::link::{Link, Publish};

/// Publishes into the queue that the routing key names. `Ok`: it is there, durably. The queue is
/// declared when it is missing, which a mandatory message tells.
pub(super) async fn publish(
    link: &Arc<Link>,
    publish: Publish,
    arguments: fn() -> FieldTable,
) -> Result<(), Failure> {
    let again = publish.clone();
    let first: SendError = match link.publish(publish, Instant::now() + CALL).await {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    if first.class == xbus_core::adapter::Class::Unknown {
        return Err(first.into());
    }
    declare(link, &again.routing_key, arguments()).await?;
    link.broker().nodes.tell_made(&again.routing_key);
    Ok(link.publish(again, Instant::now() + CALL).await?)
}

/// Declares a queue on a channel of its own, which a refusal closes.
pub(super) async fn declare(
    link: &Arc<Link>,
    queue: &str,
    arguments: FieldTable,
) -> Result<(), Failure> {
    let channel = link.channel(Instant::now() + CALL).await?;
    failure::call(
        &format!("declaring queue '{queue}'"),
        channel.queue_declare(
            names::short(queue)?,
            QueueDeclareOptions::durable(),
            arguments,
        ),
    )
    .await?;
    failure::close(&channel).await;
    Ok(())
}
