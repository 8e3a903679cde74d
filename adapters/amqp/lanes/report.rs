//! What became of a message, on its way to the journal of the node that accepted it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::time::Instant;
use xbus_core::Stop;
use xbus_core::broker::{LaneWorker, Report};

use super::failure::{CALL, Failure, call, close};
use super::nodes::Nodes;
use super::wire::Reported;
use super::{keep, names};
use crate::link::{Link, Publish};

/// So many reports of other nodes are taken at once.
const PREFETCH: u16 = 64;

/// Sends a report to the node that waits for it; `Ok` once it is durable at the broker.
pub(super) async fn send(
    link: &Arc<Link>,
    node: &str,
    lane: &str,
    report: &Report,
) -> Result<(), Failure> {
    let body = serde_json::to_vec(&Reported::of(lane, report)).unwrap_or_default();
    keep::publish(
        link,
        Publish {
            exchange: Arc::from(""),
            routing_key: names::reports(node),
            properties: BasicProperties::default()
                .with_content_type("application/json".into())
                .with_type("xbus.report".into()),
            body: body.into(),
        },
        names::kept_arguments,
    )
    .await
}

/// Writes into a node's own journal; a store that is full is tried again. False: stopped before.
pub(super) async fn write(worker: &Arc<dyn LaneWorker>, report: &Report, stop: &Stop) -> bool {
    loop {
        match worker.report(report.clone()).await {
            Ok(()) => return true,
            Err(error) => tracing::error!(
                id = %report.id,
                %error,
                "a delivery cannot be noted in the journal; trying again"
            ),
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = stop.cancelled() => return false,
        }
    }
}

/// Reads this node's own reports until `stop`.
pub(super) async fn receive(nodes: Arc<Nodes>, stop: Stop) {
    let mut told = String::new();
    while !stop.is_cancelled() {
        let mut wait = Duration::from_millis(100);
        if let Err(failure) = session(&nodes, &stop).await {
            let text = failure.to_string();
            if text != told {
                tracing::warn!(error = text, "reports of other nodes cannot be read");
                told = text;
            }
            wait = Duration::from_secs(2);
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn session(nodes: &Arc<Nodes>, stop: &Stop) -> Result<(), Failure> {
    let channel = tokio::select! {
        channel = nodes.link.channel(Instant::now() + CALL) => channel?,
        () = stop.cancelled() => return Ok(()),
    };
    let name = names::reports(nodes.link.node());
    let queue = names::short(&name)?;
    call(
        &format!("declaring queue '{name}'"),
        channel.queue_declare(
            queue.clone(),
            QueueDeclareOptions::durable(),
            names::kept_arguments(),
        ),
    )
    .await?;
    call(
        "limiting what is sent at once",
        channel.basic_qos(PREFETCH, BasicQosOptions::default()),
    )
    .await?;
    let mut consumer = call(
        &format!("consuming queue '{name}'"),
        channel.basic_consume(
            queue,
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        ),
    )
    .await?;
    loop {
        let delivery = tokio::select! {
            item = consumer.next() => match item {
                Some(Ok(delivery)) => delivery,
                Some(Err(error)) => return Err(Failure::of(&format!("queue '{name}'"), &error)),
                None => return Err(Failure::new(format!("queue '{name}' was deleted"))),
            },
            () = stop.cancelled() => {
                close(&channel).await;
                return Ok(());
            }
        };
        let reported = serde_json::from_slice::<Reported>(&delivery.data).ok();
        let report = reported
            .as_ref()
            .and_then(|reported| Some((reported.lane(), reported.report()?)));
        if let Some((lane, report)) = report {
            let seats = nodes.seats(None);
            // The journal is the node's; whichever lane's worker writes it.
            let seat = seats
                .iter()
                .find(|seat| &*seat.lane.queue == lane)
                .or(seats.first());
            let Some(seat) = seat else {
                close(&channel).await;
                return Ok(());
            };
            if !write(&seat.worker, &report, stop).await {
                close(&channel).await;
                return Ok(());
            }
        } else {
            tracing::warn!(queue = %name, "a report cannot be read; it is dropped");
        }
        call(
            "acknowledging a report",
            delivery.ack(BasicAckOptions::default()),
        )
        .await?;
    }
}
