//! The owner of one partition: one channel, one consumer, one message at a time.
//!
//! The broker gives a partition's messages to one consumer only (single active consumer), and to
//! that one the next only when the one before is acknowledged. A session is one channel; how it
//! ends says what comes next. Closing a channel gives what it holds back to its place.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicGetOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{DeliveryTag, FieldTable};
use lapin::{Channel, Consumer};
use tokio::sync::mpsc;
use tokio::time::Instant;
use xbus_core::store::StoreError;
use xbus_core::{MessageId, Stop};

use super::entry::{Content, Entry};
use super::failure::{CALL, Failure, call, close};
use super::head::{Done, Next};
use super::nodes::Nodes;
use super::seat::{Command, Health, Seat};
use super::state::{States, count};
use super::wire::{Answer, Ended};
use super::{names, put};
use crate::ack::ack;

/// Messages that the broker sends ahead of their acknowledgement. With more than one, a connection
/// that is lost could give all of them a second time.
const PREFETCH: u16 = 1;
/// What was proven to be ours so long ago is proven again before it is tried; or half a heartbeat
/// ago, when that is less.
const FRESH: Duration = Duration::from_secs(1);
/// How long a partition is left alone that was given up for another node.
const AWAY: Duration = Duration::from_secs(1);
/// A partition that came back is not given up again before.
const STAY: Duration = Duration::from_secs(60);
/// How often a partition that gives nothing is looked at.
const IDLE: Duration = Duration::from_secs(10);
/// A session that was lost after so long is a new trouble.
const LASTING: Duration = Duration::from_secs(60);
/// The first and the longest wait before a new session.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// What a broker does that does not keep to [`PREFETCH`].
pub(super) const SECOND: &str = "the broker sent a second message";

/// How a session ends.
pub(super) enum End {
    /// The lane is to be worked on no longer.
    Stopped,
    /// The broker would take the head away soon.
    Renew,
    /// The partition is another node's.
    Left,
    /// The channel is gone or cannot be used.
    Lost(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        End::Lost(failure)
    }
}

/// One partition of one lane, on this node.
pub(super) struct Partition {
    pub(super) nodes: Arc<Nodes>,
    pub(super) seat: Arc<Seat>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) health: Arc<Health>,
    pub(super) stop: Stop,
    pub(super) states: States,
    /// The last of the lane's heads that was dealt with, until the broker is known to have taken
    /// the acknowledgement.
    pub(super) done: Option<Done>,
    /// The same for the front.
    pub(super) done_front: Option<Done>,
    /// What other nodes have delivered and the broker has given again.
    pub(super) elsewhere: Vec<Ended>,
    left: Option<Instant>,
}

/// One channel.
pub(super) struct Session {
    pub(super) channel: Channel,
    pub(super) consumer: Consumer,
    /// When the broker last did something because this channel asked.
    proven: (Instant, SystemTime),
    /// Since when the lane's head is held.
    held_since: Option<Instant>,
    /// The lane's head.
    pub(super) head: Option<MessageId>,
    /// The front's queue exists.
    front: bool,
    fresh: Duration,
    /// What waited when it was last looked at, while nothing came.
    waited: u32,
    /// Whoever had the queue before has let go of it.
    taken: bool,
}

impl Partition {
    pub(super) fn new(
        nodes: Arc<Nodes>,
        seat: Arc<Seat>,
        commands: mpsc::UnboundedReceiver<Command>,
        health: Arc<Health>,
        stop: Stop,
    ) -> Self {
        Self {
            nodes,
            seat,
            commands,
            health,
            stop,
            states: States::default(),
            done: None,
            done_front: None,
            elsewhere: Vec::new(),
            left: None,
        }
    }

    /// Works until it is stopped.
    pub(super) async fn run(mut self) {
        let mut backoff = BACKOFF.0;
        let mut told = String::new();
        while !self.stop.is_cancelled() {
            let opened = Instant::now();
            let end = self.session().await;
            self.seat.set_open(false);
            while let Ok(command) = self.commands.try_recv() {
                refuse(command);
            }
            let wait = match end {
                End::Stopped => return,
                End::Renew => Duration::ZERO,
                End::Left => AWAY,
                End::Lost(failure) => {
                    let queue = &self.seat.queue;
                    let text = failure.to_string();
                    if text != told || opened.elapsed() > LASTING {
                        tracing::warn!(%queue, error = %text, "the lane's channel is gone; opening another");
                        told = text;
                    }
                    if opened.elapsed() > LASTING {
                        backoff = BACKOFF.0;
                    }
                    let wait = match failure.is_deletion() {
                        true => put::AFTER_DELETION,
                        false => backoff,
                    };
                    backoff = (backoff * 2).min(BACKOFF.1);
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    async fn session(&mut self) -> End {
        let opened = tokio::select! {
            opened = self.open() => opened,
            () = self.stop.cancelled() => return End::Stopped,
        };
        let mut session = match opened {
            Ok(session) => session,
            Err(failure) => {
                self.health.broken(self.seat.index, &failure.to_string());
                return End::Lost(failure);
            }
        };
        self.seat.set_open(true);
        self.seat.look_at_front();
        self.health.works(self.seat.index);
        let end = self.consume(&mut session).await;
        if let End::Stopped | End::Renew | End::Left = end {
            tracing::debug!(queue = %self.seat.queue, "gives the lane's head back");
        }
        close(&session.channel).await;
        end
    }

    async fn open(&self) -> Result<Session, Failure> {
        let queue = &self.seat.queue;
        let name = names::short(queue)?;
        let channel = self.nodes.link.channel(Instant::now() + CALL).await?;
        put::declare(&channel, queue).await?;
        call(
            "limiting what is sent at once",
            channel.basic_qos(PREFETCH, BasicQosOptions::default()),
        )
        .await?;
        let proven = now();
        let consumer = call(
            &format!("consuming queue '{queue}'"),
            channel.basic_consume(
                name,
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            ),
        )
        .await?;
        Ok(Session {
            channel,
            consumer,
            proven,
            held_since: None,
            head: None,
            front: false,
            fresh: FRESH.min(self.nodes.link.heartbeat() / 2),
            waited: 0,
            taken: false,
        })
    }

    async fn consume(&mut self, session: &mut Session) -> End {
        loop {
            let delivery = tokio::select! {
                biased;
                () = self.stop.cancelled() => return End::Stopped,
                item = session.consumer.next() => match item {
                    Some(Ok(delivery)) => delivery,
                    ended => return self.lost(ended.and_then(Result::err)),
                },
                Some(command) = self.commands.recv() => {
                    refuse(command);
                    continue;
                }
                () = tokio::time::sleep(IDLE) => match self.look(session).await {
                    Ok(()) => continue,
                    Err(end) => return end,
                },
            };
            session.waited = 0;
            session.held_since = Some(Instant::now());
            if let Err(end) = self.take_over(session).await {
                return end;
            }
            let (tag, redelivered) = (delivery.delivery_tag, delivery.redelivered);
            let result = match Entry::read(&delivery.properties, delivery.data) {
                Content::Nudge => self.nudged(session, tag).await,
                Content::Entry(entry) => self.head(session, *entry, tag, redelivered).await,
            };
            session.held_since = None;
            session.head = None;
            if let Err(end) = result {
                return end;
            }
        }
    }

    /// Waits, before the first message of a session, until the nodes that may have had the queue
    /// before have ended what they were doing, and learns what they have delivered. A node whose
    /// connection is lost while it tries a message goes on with that; the broker does not wait.
    async fn take_over(&mut self, session: &mut Session) -> Result<(), End> {
        if session.taken {
            return Ok(());
        }
        self.elsewhere.clear();
        let mut takeover = self.nodes.take_over(&self.seat.queue);
        while !takeover.is_over() {
            self.check(session)?;
            takeover.ask();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(End::Stopped),
                item = session.consumer.next() => return Err(match item {
                    Some(Ok(_)) => End::Lost(Failure::new(SECOND)),
                    ended => self.lost(ended.and_then(Result::err)),
                }),
                answer = takeover.hear() => if let Some(answer) = answer {
                    self.learn(answer);
                }
            }
        }
        session.taken = true;
        Ok(())
    }

    fn learn(&mut self, answer: Answer) {
        for delivered in answer.delivered {
            self.nodes.learn(delivered);
        }
        for ended in answer.ended {
            match ended.failed {
                Some(state) => self.states.learn(state),
                None => self.elsewhere.push(ended),
            }
        }
    }

    /// Nothing came for a while. When nothing leaves the queue either, this consumer may be one that
    /// the broker has lost track of; another is of no harm.
    async fn look(&self, session: &mut Session) -> Result<(), End> {
        let (ready, consumers) = session.ask(&self.seat.queue).await?;
        if consumers == 0 || (ready > 0 && ready == session.waited) {
            return Err(End::Renew);
        }
        session.waited = ready;
        Ok(())
    }

    /// The consumer gives nothing more.
    pub(super) fn lost(&self, error: Option<lapin::Error>) -> End {
        let queue = &self.seat.queue;
        match error {
            Some(error) => End::Lost(Failure::of(&format!("queue '{queue}'"), &error)),
            None => {
                let text = format!("queue '{queue}' was deleted, and what it held with it");
                self.health.broken(self.seat.index, &text);
                End::Lost(Failure::deletion(text))
            }
        }
    }

    async fn nudged(&mut self, session: &mut Session, tag: DeliveryTag) -> Result<(), End> {
        self.front(session).await?;
        session.acknowledge(tag).await
    }

    /// Deals with the lane's head, and before it with what is in front.
    async fn head(
        &mut self,
        session: &mut Session,
        entry: Entry,
        tag: DeliveryTag,
        redelivered: bool,
    ) -> Result<(), End> {
        let id = entry.message.id;
        if self.done.as_ref().is_some_and(|done| done.id != id) {
            self.done = None;
        }
        session.head = Some(id);
        let mut held = self.hold(entry, tag, redelivered, false).await?;
        loop {
            if self.seat.is_dirty() {
                self.front(session).await?;
            }
            match self.work_on(session, &mut held).await? {
                Next::Settled => return Ok(()),
                Next::Front => {}
            }
        }
    }

    /// Deals with all that was released, in order.
    async fn front(&mut self, session: &mut Session) -> Result<(), End> {
        self.seat.take_dirty();
        let name = names::front(&self.seat.queue);
        // Asking for a message of a queue that is not there would cost the channel.
        if !session.front && count(&self.nodes.link, &name).await?.is_none() {
            self.done_front = None;
            return Ok(());
        }
        session.front = true;
        loop {
            if self.stop.is_cancelled() {
                return Err(End::Stopped);
            }
            let got = call(
                &format!("reading queue '{name}'"),
                session
                    .channel
                    .basic_get(names::short(&name)?, BasicGetOptions::default()),
            )
            .await?;
            let Some(message) = got else {
                self.done_front = None;
                return Ok(());
            };
            let message = message.delivery;
            match Entry::read(&message.properties, message.data) {
                Content::Nudge => session.acknowledge(message.delivery_tag).await?,
                Content::Entry(mut entry) => {
                    let id = entry.message.id;
                    if self.done_front.as_ref().is_some_and(|done| done.id != id) {
                        self.done_front = None;
                    }
                    entry.parked = None;
                    let mut held = self
                        .hold(*entry, message.delivery_tag, message.redelivered, true)
                        .await?;
                    while let Next::Front = self.work_on(session, &mut held).await? {}
                }
            }
        }
    }

    /// What ends a session between two attempts.
    pub(super) fn check(&mut self, session: &Session) -> Result<(), End> {
        if self.stop.is_cancelled() {
            return Err(End::Stopped);
        }
        if session
            .held_since
            .is_some_and(|since| since.elapsed() >= self.nodes.link.renew_after())
        {
            tracing::debug!(queue = %self.seat.queue, "renews the channel before the broker closes it");
            return Err(End::Renew);
        }
        if self.left.is_none_or(|left| left.elapsed() > STAY)
            && self.nodes.belongs_elsewhere(&self.seat)
        {
            tracing::info!(queue = %self.seat.queue, "leaves the lane to the node that it belongs to");
            self.left = Some(Instant::now());
            return Err(End::Left);
        }
        Ok(())
    }
}

impl Session {
    /// Makes sure that what is held is still ours: a process that was stopped for a while finds out
    /// here that another node has it.
    pub(super) async fn prove(&mut self, queue: &str) -> Result<(), Failure> {
        let walked = self.proven.1.elapsed().unwrap_or(Duration::MAX);
        if self.proven.0.elapsed().max(walked) < self.fresh {
            return Ok(());
        }
        self.ask(queue).await?;
        Ok(())
    }

    /// How many messages wait in the queue, and how many consumers it has.
    async fn ask(&mut self, queue: &str) -> Result<(u32, u32), Failure> {
        let asked = now();
        let there = call(
            &format!("looking at queue '{queue}'"),
            self.channel.queue_declare(
                names::short(queue)?,
                QueueDeclareOptions::durable().passive(),
                FieldTable::default(),
            ),
        )
        .await?;
        self.proven = asked;
        Ok((there.message_count(), there.consumer_count()))
    }

    /// Takes a message off its queue. The next one that comes proves that the broker has done it.
    pub(super) async fn acknowledge(&mut self, tag: DeliveryTag) -> Result<(), End> {
        let asked = now();
        match call("acknowledging", ack(&self.channel, tag)).await? {
            true => {
                self.proven = asked;
                Ok(())
            }
            false => Err(End::Lost(Failure::new(
                "the channel was closed before the message could be acknowledged",
            ))),
        }
    }
}

fn now() -> (Instant, SystemTime) {
    (Instant::now(), SystemTime::now())
}

/// Answers a command that comes when nothing is held.
pub(super) fn refuse(command: Command) {
    // Whoever asked may have gone.
    let _ = command.done.send(Err(StoreError::NotFound(
        "the message is not the head of its lane".to_owned(),
    )));
}
