//! Queues, what fills them, and how quick the broker alone is.

use std::collections::VecDeque;
use std::time::Instant;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

use crate::{Fallible, body};

/// How many confirms [`fill`] waits for at once.
const IN_FLIGHT: usize = 500;

/// A connection and a channel of it.
pub async fn open(amqp: &str) -> Fallible<(Connection, Channel)> {
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

pub fn name(text: &str) -> Fallible<ShortString> {
    Ok(ShortString::try_new(text)?)
}

/// What a message is published with, so that it is not lost.
pub fn properties() -> BasicProperties {
    BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type("text/plain".into())
}

pub fn mandatory() -> BasicPublishOptions {
    BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    }
}

/// Only this is a success: the broker has it, and did not give it back.
pub fn confirmed(confirmation: Confirmation) -> Fallible<()> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("not confirmed: {other:?}").into()),
    }
}

async fn done(connection: Connection) -> Fallible<()> {
    Ok(connection.close(200, "done".into()).await?)
}

/// `lane`: as the bus declares the queue of a lane.
pub async fn declare(amqp: &str, queue: &str, kind: &str) -> Fallible<()> {
    let mut arguments = FieldTable::default();
    if kind != "classic" {
        arguments.insert(
            "x-queue-type".into(),
            AMQPValue::LongString("quorum".into()),
        );
    }
    if kind == "lane" {
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(i32::MAX));
    }
    let (connection, channel) = open(amqp).await?;
    channel
        .queue_declare(name(queue)?, QueueDeclareOptions::durable(), arguments)
        .await?;
    done(connection).await
}

pub async fn delete(amqp: &str, queue: &str) -> Fallible<()> {
    let (connection, channel) = open(amqp).await?;
    channel
        .queue_delete(name(queue)?, QueueDeleteOptions::default())
        .await?;
    done(connection).await
}

/// Prints how many messages wait, those that a consumer holds left out.
pub async fn depth(amqp: &str, queue: &str) -> Fallible<()> {
    let (connection, channel) = open(amqp).await?;
    let there = channel
        .queue_declare(
            name(queue)?,
            QueueDeclareOptions::durable().passive(),
            FieldTable::default(),
        )
        .await?;
    println!("{}", there.message_count());
    done(connection).await
}

pub async fn fill(amqp: &str, queue: &str, count: u64, size: usize) -> Fallible<()> {
    let (connection, channel) = open(amqp).await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let mut flying = VecDeque::new();
    for number in 0..count {
        if flying.len() >= IN_FLIGHT
            && let Some(first) = flying.pop_front()
        {
            confirmed(first.await?)?;
        }
        let (options, body) = (mandatory(), body(number, size));
        let made = channel.basic_publish("".into(), name(queue)?, options, &body, properties());
        flying.push_back(made.await?);
    }
    for confirm in flying {
        confirmed(confirm.await?)?;
    }
    done(connection).await
}

/// Prints publications and deliveries a second, each waiting for the one before.
pub async fn trips(amqp: String, queue: String, count: u64, size: usize) -> Fallible<()> {
    let (connection, channel) = open(&amqp).await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let begun = Instant::now();
    for number in 0..count {
        let (options, body) = (mandatory(), body(number, size));
        let made = channel.basic_publish("".into(), name(&queue)?, options, &body, properties());
        confirmed(made.await?.await?)?;
    }
    let publish = count as f64 / begun.elapsed().as_secs_f64();
    channel.basic_qos(1, BasicQosOptions::default()).await?;
    let mut consumer = channel
        .basic_consume(
            name(&queue)?,
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let begun = Instant::now();
    for _ in 0..count {
        let delivery = consumer.next().await.ok_or("cancelled")??;
        delivery.acker.ack(BasicAckOptions::default()).await?;
    }
    let take = count as f64 / begun.elapsed().as_secs_f64();
    println!("{{\"publish\": {publish}, \"take\": {take}}}");
    done(connection).await
}
