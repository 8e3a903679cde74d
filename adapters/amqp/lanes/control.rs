//! The control queue: what nodes say to each other. A lane is worked off without it too; it is for
//! administrators, and for sharing lanes between nodes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Consumer, ExchangeKind};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::failure::{CALL, Failure, call, close};
use super::names::{CONTROL, short};
use super::nodes::{Nodes, Out};
use super::wire::{Answer, Said};
use crate::backoff::Backoff;

/// How often a node says that it is there.
const HELLO: Duration = Duration::from_secs(2);
/// A control queue that was there for so long is made again at once when it is lost.
const LASTING: Duration = Duration::from_secs(1);
/// The queue is kept for so long after the last use.
const IDLE: Duration = Duration::from_secs(30);

/// One opening of the control queue.
struct Session {
    nodes: Arc<Nodes>,
    channel: Channel,
    /// To speak on, of the connection that publishes: a broker that is short of memory stops
    /// reading from a connection that publishes, and lanes are to be worked off all the same.
    speaking: Channel,
    queue: ShortString,
}

/// Keeps the control queue open until nothing is worked on and nothing is asked.
pub(super) async fn run(nodes: Arc<Nodes>, mut out: mpsc::UnboundedReceiver<Out>) {
    let mut told = String::new();
    let mut opened = 0u32;
    let mut backoff = Backoff::new();
    loop {
        opened = opened.wrapping_add(1);
        let ended = match Session::open(&nodes, opened).await {
            Ok((session, consumer)) => {
                let since = Instant::now();
                let ended = session.talk(consumer, &mut out).await;
                if since.elapsed() >= LASTING {
                    told.clear();
                    // Another node may be waiting for what this one has to say of a lane.
                    backoff.reset();
                }
                ended
            }
            Err(failure) => Err(failure),
        };
        nodes.set_up(false);
        match ended {
            Ok(()) => return,
            Err(failure) => {
                let text = failure.to_string();
                if text != told {
                    tracing::warn!(
                        error = text,
                        "nodes cannot talk over the broker; lanes are worked off all the same"
                    );
                    told = text;
                }
            }
        }
        tokio::time::sleep(backoff.next()).await;
        while out.try_recv().is_ok() {}
        if nodes.end_control(&out) {
            return;
        }
    }
}

impl Session {
    async fn open(nodes: &Arc<Nodes>, number: u32) -> Result<(Self, Consumer), Failure> {
        let channel = nodes.link.channel(Instant::now() + CALL).await?;
        call(
            "declaring exchange 'xbus.control'",
            channel.exchange_declare(
                CONTROL.into(),
                ExchangeKind::Fanout,
                ExchangeDeclareOptions {
                    durable: true,
                    ..ExchangeDeclareOptions::default()
                },
                FieldTable::default(),
            ),
        )
        .await?;
        // A new name each time: the broker may not have noticed yet that the old one's owner is gone.
        let queue = short(&format!("{CONTROL}.{}.{number}", nodes.instance))?;
        let what = format!("declaring queue '{queue}'");
        call(
            &what,
            channel.queue_declare(
                queue.clone(),
                QueueDeclareOptions::exclusive().auto_delete(),
                FieldTable::default(),
            ),
        )
        .await?;
        call(
            "binding to exchange 'xbus.control'",
            channel.queue_bind(
                queue.clone(),
                CONTROL.into(),
                "".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            ),
        )
        .await?;
        let options = BasicConsumeOptions {
            no_ack: true,
            exclusive: true,
            ..BasicConsumeOptions::default()
        };
        let consumer = call(
            &format!("consuming queue '{queue}'"),
            channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default()),
        )
        .await?;
        let up = nodes
            .link
            .publishing
            .up_until(Instant::now() + CALL)
            .await?;
        let speaking = call("opening a channel", up.connection.create_channel()).await?;
        let session = Self {
            nodes: nodes.clone(),
            channel,
            speaking,
            queue,
        };
        Ok((session, consumer))
    }

    async fn talk(
        &self,
        mut consumer: Consumer,
        out: &mut mpsc::UnboundedReceiver<Out>,
    ) -> Result<(), Failure> {
        self.send(None, &Said::Hello(self.nodes.hello(true)))
            .await?;
        self.nodes.set_up(true);
        let mut ticks = tokio::time::interval(HELLO);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut used = Instant::now();
        loop {
            tokio::select! {
                item = consumer.next() => match item {
                    Some(Ok(delivery)) => self.heard(delivery),
                    Some(Err(error)) => return Err(Failure::of("the control queue", &error)),
                    None => return Err(Failure::new("the control queue was deleted")),
                },
                Some(item) = out.recv() => {
                    used = Instant::now();
                    match item {
                        Out::All(said) => self.send(None, &said).await?,
                        Out::To(queue, said) => self.send(Some(&queue), &said).await?,
                        Out::Hello => self.hello().await?,
                    }
                }
                _ = ticks.tick() => {
                    self.nodes.sweep();
                    self.hello().await?;
                    let over = self.nodes.is_idle() && used.elapsed() > IDLE;
                    if over && self.nodes.end_control(out) {
                        close(&self.speaking).await;
                        close(&self.channel).await;
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Says what this node does; a node that works on nothing is none that others reckon with.
    async fn hello(&self) -> Result<(), Failure> {
        let said = if self.nodes.is_idle() {
            Said::Bye {
                instance: self.nodes.instance.clone(),
            }
        } else {
            Said::Hello(self.nodes.hello(false))
        };
        self.send(None, &said).await
    }

    fn heard(&self, delivery: Delivery) {
        let Ok(said) = serde_json::from_slice::<Said>(&delivery.data) else {
            tracing::debug!("a message of the control exchange cannot be read");
            return;
        };
        match said {
            Said::Hello(hello) => {
                if hello.instance != self.nodes.instance {
                    self.nodes.heard(hello);
                }
            }
            Said::Bye { instance } => self.nodes.left(&instance),
            Said::Made { queue } => self.nodes.made(&queue),
            Said::Answer {
                number,
                instance,
                answer,
            } => self.nodes.answered(number, instance, answer),
            Said::Ask { number, ask } => {
                let reply = delivery.properties.reply_to().clone();
                let Some(reply) = reply.filter(|reply| *reply != self.queue) else {
                    return;
                };
                let nodes = self.nodes.clone();
                tokio::spawn(async move {
                    let answer = |answer: Answer| {
                        let said = Said::Answer {
                            number,
                            instance: nodes.instance.clone(),
                            answer,
                        };
                        nodes.say(Out::To(reply.to_string(), said));
                    };
                    let later = || {
                        answer(Answer {
                            later: true,
                            ..Answer::default()
                        });
                    };
                    let last = nodes.answer(ask, Some(&later)).await;
                    answer(last);
                });
            }
        }
    }

    /// Neither kept nor confirmed: what is lost is said again, or asked again.
    async fn send(&self, queue: Option<&str>, said: &Said) -> Result<(), Failure> {
        if *self.nodes.link.publishing.blocked().borrow() {
            return Ok(());
        }
        let (exchange, key) = match queue {
            Some(queue) => ("", queue),
            None => (CONTROL, ""),
        };
        let body = serde_json::to_vec(said).unwrap_or_default();
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_reply_to(self.queue.clone())
            .with_expiration("60000".into());
        call(
            "speaking to the other nodes",
            self.speaking.basic_publish(
                exchange.into(),
                short(key)?,
                BasicPublishOptions::default(),
                &body,
                properties,
            ),
        )
        .await?;
        Ok(())
    }
}
