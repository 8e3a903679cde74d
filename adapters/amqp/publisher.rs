//! Publishes to one exchange: persistent, mandatory and confirmed, with many confirms waited for at
//! once.
//!
//! One task owns the channel and all confirms of it, for three reasons. lapin numbers a message and
//! queues its frames in two steps, which must not interleave. What the broker returns as unroutable
//! lapin hands to any one of the confirms that come together, so that no confirm may count before
//! all of them have been looked at. And a channel that the broker closes takes all that is in flight
//! with it: with a channel for each exchange, a missing exchange harms nobody else.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, ExchangeKind};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use xbus_core::SendError;

use crate::counters::Counters;
use crate::error::{describe, is_connection_lost, reply};
use crate::socket::{Socket, Up};

/// How many messages may wait for their confirms.
const WINDOW: usize = 1024;
/// How many bytes of them; one message may be larger.
const WINDOW_BYTES: usize = 32 * 1024 * 1024;
/// How long after a connection was lost its messages may stay without an answer.
const GRACE: Duration = Duration::from_secs(5);
/// After the broker closed a channel with several messages in flight, so many go one by one: then
/// it is clear whom it refuses.
const ONE_BY_ONE: u32 = 64;

/// A message to publish.
#[derive(Clone)]
pub(crate) struct Publish {
    /// The exchange; empty for the default one, whose routing key is a queue's name.
    pub(crate) exchange: Arc<str>,
    /// The routing key.
    pub(crate) routing_key: Arc<str>,
    /// Properties and headers; delivery mode 2 (persistent) is set where they say none.
    pub(crate) properties: BasicProperties,
    /// The body.
    pub(crate) body: Bytes,
}

/// A message that waits to be handed to the connection. Whoever takes it out decides what becomes of
/// it: the publisher, or the caller whose time is over.
pub(crate) struct Ticket(Mutex<Option<(Publish, bool)>>);

impl Ticket {
    pub(crate) fn new(publish: Publish, mandatory: bool) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some((publish, mandatory)))))
    }

    /// Takes it out; nothing when that was done before.
    pub(crate) fn take(&self) -> Option<(Publish, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is_taken(&self) -> bool {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.is_none()
    }
}

/// A ticket and who waits for what becomes of it.
pub(crate) struct Job {
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) done: oneshot::Sender<Result<(), SendError>>,
}

/// What a message in flight is known by, when it comes back.
#[derive(PartialEq)]
struct Identity {
    exchange: ShortString,
    routing_key: ShortString,
    message_id: Option<ShortString>,
}

struct InFlight {
    identity: Identity,
    size: usize,
    done: oneshot::Sender<Result<(), SendError>>,
    /// Set when the broker gave it back.
    returned: bool,
    /// Set when all of it has been written to the socket.
    written: Arc<AtomicBool>,
}

type Answer = Result<Confirmation, lapin::Error>;
type Flight = Pin<Box<dyn Future<Output = (u64, Answer)> + Send>>;

/// The task that publishes to one exchange.
pub(crate) struct Publisher {
    pub(crate) exchange: Arc<str>,
    pub(crate) socket: Arc<Socket>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) jobs: mpsc::UnboundedReceiver<Job>,
    pub(crate) stop: CancellationToken,
    waiting: VecDeque<Job>,
    one_by_one: u32,
}

impl Publisher {
    pub(crate) fn new(
        exchange: Arc<str>,
        socket: Arc<Socket>,
        counters: Arc<Counters>,
        jobs: mpsc::UnboundedReceiver<Job>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            exchange,
            socket,
            counters,
            jobs,
            stop,
            waiting: VecDeque::new(),
            one_by_one: 0,
        }
    }

    /// Publishes until nobody can ask for it any more.
    pub(crate) async fn run(mut self) {
        loop {
            self.waiting.retain(|job| !job.ticket.is_taken());
            if self.waiting.is_empty() {
                match self.next_job().await {
                    Some(job) => self.waiting.push_back(job),
                    None => return,
                }
            }
            let Some(up) = self.connected().await else {
                return;
            };
            let opened = tokio::select! {
                biased;
                opened = self.open(&up) => opened,
                () = self.stop.cancelled() => return,
                () = long_lost(&up) => Err(None),
            };
            match opened {
                Ok(channel) => Window::new(&mut self, channel).serve(&up).await,
                Err(Some(error)) => self.refuse(&error),
                Err(None) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn next_job(&mut self) -> Option<Job> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            job = self.jobs.recv() => job,
        }
    }

    /// Waits for a connection. Messages whose callers have given up meanwhile are let go of.
    async fn connected(&mut self) -> Option<Arc<Up>> {
        let socket = self.socket.clone();
        let mut up = pin!(socket.up());
        let mut clean_at = 64;
        loop {
            tokio::select! {
                biased;
                up = &mut up => return up,
                job = self.jobs.recv() => self.waiting.push_back(job?),
            }
            if self.waiting.len() >= clean_at {
                self.waiting.retain(|job| !job.ticket.is_taken());
                clean_at = (self.waiting.len() * 2).max(64);
            }
        }
    }

    /// Opens a channel in confirm mode and looks whether the exchange is there. The error is nothing
    /// when the connection was lost.
    async fn open(&self, up: &Up) -> Result<Channel, Option<SendError>> {
        let cannot = |what: &str, error: &lapin::Error| {
            (!is_connection_lost(error)).then(|| {
                SendError::outage(self.socket.said(&format!("{what}: {}", describe(error))))
            })
        };
        if !self.exchange.is_empty() {
            let channel = up.connection.create_channel().await;
            let channel = channel.map_err(|error| cannot("no channel", &error))?;
            look_at_exchange(&channel, &self.exchange)
                .await
                .map_err(|error| match reply(&error) {
                    Some((404, _)) => Some(SendError::outage(self.no_exchange())),
                    _ => cannot(&format!("exchange '{}'", self.exchange), &error),
                })?;
            let _ = channel.close(200, "done".into()).await;
        }
        let channel = up.connection.create_channel().await;
        let channel = channel.map_err(|error| cannot("no channel", &error))?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .map_err(|error| cannot("no confirms", &error))?;
        Ok(channel)
    }

    fn no_exchange(&self) -> String {
        self.socket.said(&format!(
            "there is no exchange '{}'; declare it under 'exchanges' of the connection, or at the \
             broker",
            self.exchange
        ))
    }

    /// Tells all that wait now that it does not work.
    fn refuse(&mut self, error: &SendError) {
        while let Ok(job) = self.jobs.try_recv() {
            self.waiting.push_back(job);
        }
        for job in self.waiting.drain(..) {
            if job.ticket.take().is_some() {
                let _ = job.done.send(Err(error.clone()));
            }
        }
    }

    /// Why a message came back.
    fn unroutable(&self, identity: &Identity) -> SendError {
        let key = &identity.routing_key;
        SendError::outage(self.socket.said(&match identity.exchange.as_str() {
            "" => format!(
                "there is no queue '{key}'; declare it under 'queues' of the connection, or at the \
                 broker"
            ),
            exchange => format!(
                "exchange '{exchange}' has no queue bound for routing key '{key}', so that the \
                 message would be lost; bind one"
            ),
        }))
    }
}

/// Ends when the connection has been lost for so long that lapin has answered for everything that it
/// ever will.
async fn long_lost(up: &Up) {
    up.lost.cancelled().await;
    sleep(GRACE).await;
}

/// Asks whether an exchange exists; an error closes the channel.
pub(crate) async fn look_at_exchange(channel: &Channel, exchange: &str) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions {
        passive: true,
        ..ExchangeDeclareOptions::default()
    };
    let Ok(name) = ShortString::try_new(exchange) else {
        return Ok(());
    };
    channel
        .exchange_declare(name, ExchangeKind::Direct, options, FieldTable::default())
        .await
}

/// What is in flight on one channel.
struct Window<'a> {
    publisher: &'a mut Publisher,
    channel: Channel,
    flights: FuturesUnordered<Flight>,
    all: HashMap<u64, InFlight>,
    next: u64,
    bytes: usize,
    /// Whether the broker has ever confirmed anything on this channel.
    confirmed: bool,
    broken: bool,
}

impl<'a> Window<'a> {
    fn new(publisher: &'a mut Publisher, channel: Channel) -> Self {
        Self {
            publisher,
            channel,
            flights: FuturesUnordered::new(),
            all: HashMap::new(),
            next: 0,
            bytes: 0,
            confirmed: false,
            broken: false,
        }
    }

    /// Publishes until the channel is of no use any more and nothing is in flight.
    async fn serve(mut self, up: &Up) {
        let mut blocked = self.publisher.socket.blocked();
        loop {
            let is_blocked = *blocked.borrow_and_update();
            if !is_blocked {
                self.hand_over().await;
            }
            if self.flights.is_empty() && (self.broken || !self.channel.status().connected()) {
                return;
            }
            let room = self.has_room() && !is_blocked;
            tokio::select! {
                biased;
                Some(first) = self.flights.next(), if !self.flights.is_empty() => {
                    self.settle(first);
                }
                () = self.publisher.stop.cancelled() => return,
                () = up.lost.cancelled(), if self.flights.is_empty() => return,
                () = long_lost(up) => return,
                _ = blocked.changed() => {}
                job = self.publisher.jobs.recv(), if room => match job {
                    Some(job) => self.publisher.waiting.push_back(job),
                    None if self.flights.is_empty() => return,
                    None => self.broken = true,
                },
            }
        }
    }

    fn has_room(&self) -> bool {
        let most = match self.publisher.one_by_one {
            0 => WINDOW,
            _ => 1,
        };
        self.all.len() < most
            && self.bytes < WINDOW_BYTES
            && !self.broken
            && self.channel.status().connected()
    }

    /// Hands over what waits, as far as there is room.
    async fn hand_over(&mut self) {
        while self.has_room() {
            let waiting = self.publisher.waiting.pop_front();
            let Some(job) = waiting.or_else(|| self.publisher.jobs.try_recv().ok()) else {
                return;
            };
            let Some((publish, mandatory)) = job.ticket.take() else {
                continue;
            };
            self.publish(publish, mandatory, job.done).await;
        }
    }

    async fn publish(
        &mut self,
        publish: Publish,
        mandatory: bool,
        done: oneshot::Sender<Result<(), SendError>>,
    ) {
        let names = ShortString::try_new(&*publish.exchange)
            .and_then(|exchange| Ok((exchange, ShortString::try_new(&*publish.routing_key)?)));
        let (exchange, routing_key) = match names {
            Ok(names) => names,
            Err(error) => {
                let _ = done.send(Err(SendError::rejected(error.to_string())));
                return;
            }
        };
        let number = self.next;
        self.next += 1;
        let size = publish.body.len();
        let written = Arc::new(AtomicBool::new(false));
        let in_flight = InFlight {
            identity: Identity {
                exchange: exchange.clone(),
                routing_key: routing_key.clone(),
                message_id: publish.properties.message_id().clone(),
            },
            size,
            done,
            returned: false,
            written: written.clone(),
        };
        self.all.insert(number, in_flight);
        self.bytes += size;
        let properties = match publish.properties.delivery_mode() {
            Some(_) => publish.properties,
            None => publish.properties.with_delivery_mode(2),
        };
        let channel = self.channel.clone();
        let options = BasicPublishOptions {
            mandatory,
            ..BasicPublishOptions::default()
        };
        let body = publish.body;
        let mut flight: Flight = Box::pin(async move {
            let sent = channel
                .basic_publish(exchange, routing_key, options, &body, properties)
                .await;
            drop(body);
            let answer = match sent {
                Ok(confirm) => {
                    written.store(true, Ordering::SeqCst);
                    confirm.await
                }
                Err(error) => Err(error),
            };
            (number, answer)
        });
        // The first poll hands the frames over: it must not wait for the others.
        match futures_util::poll!(&mut flight) {
            std::task::Poll::Ready(answer) => self.settle(answer),
            std::task::Poll::Pending => self.flights.push(flight),
        }
    }

    /// Takes all answers that are there. One counts when every answer that the broker gave together
    /// with it has been looked at for messages that came back.
    fn settle(&mut self, first: (u64, Answer)) {
        let mut now = vec![first];
        self.collect(&mut now);
        self.mark(&now);
        while !now.is_empty() {
            // lapin resolves what came in one acknowledgement under a lock that this takes too.
            let _ = pin!(self.channel.wait_for_confirms()).now_or_never();
            let mut later = Vec::new();
            self.collect(&mut later);
            self.mark(&later);
            self.finish(now);
            now = later;
        }
    }

    fn collect(&mut self, answers: &mut Vec<(u64, Answer)>) {
        while let Some(Some(answer)) = self.flights.next().now_or_never() {
            answers.push(answer);
        }
    }

    /// Notes which messages came back.
    fn mark(&mut self, answers: &[(u64, Answer)]) {
        for (number, answer) in answers {
            let Ok(Confirmation::Ack(Some(back)) | Confirmation::Nack(Some(back))) = answer else {
                continue;
            };
            let identity = identity_of(back);
            let mut found = false;
            for in_flight in self.all.values_mut() {
                if in_flight.identity == identity {
                    in_flight.returned = true;
                    found = true;
                }
            }
            if !found && let Some(in_flight) = self.all.get_mut(number) {
                in_flight.returned = true;
            }
        }
    }

    /// Tells what became of messages.
    fn finish(&mut self, answers: Vec<(u64, Answer)>) {
        let mut lost = Vec::new();
        for (number, answer) in answers {
            let Some(in_flight) = self.all.remove(&number) else {
                continue;
            };
            self.bytes -= in_flight.size;
            let counters = &self.publisher.counters;
            let result = match answer {
                Ok(Confirmation::Ack(_)) if in_flight.returned => {
                    Counters::add(&counters.returned);
                    Err(self.publisher.unroutable(&in_flight.identity))
                }
                Ok(Confirmation::Ack(_)) => {
                    Counters::add(&counters.published);
                    Ok(())
                }
                Ok(Confirmation::Nack(_)) => {
                    Counters::add(&counters.nacked);
                    Err(SendError::outage(self.publisher.socket.said(&format!(
                        "the broker did not take the message for exchange '{}' and routing key \
                         '{}' (basic.nack); see whether the queue is full or its leader is missing",
                        in_flight.identity.exchange, in_flight.identity.routing_key
                    ))))
                }
                Ok(Confirmation::NotRequested) => Err(SendError::unknown(
                    self.publisher.socket.said("the channel confirms nothing"),
                )),
                Err(error) => {
                    self.broken = true;
                    lost.push((number, in_flight, error));
                    continue;
                }
            };
            self.confirmed = true;
            self.publisher.one_by_one = self.publisher.one_by_one.saturating_sub(1);
            let _ = in_flight.done.send(result);
        }
        self.lose(lost);
    }

    /// Tells what became of messages whose channel is gone.
    fn lose(&mut self, mut lost: Vec<(u64, InFlight, lapin::Error)>) {
        lost.sort_by_key(|(number, ..)| *number);
        let alone = lost.len() + self.all.len() == 1;
        // The broker looks at messages one after the other and at none after the one it refuses.
        let too_large = lost
            .iter()
            .find(|(_, in_flight, error)| is_too_large(error, in_flight.size))
            .map(|(number, ..)| *number);
        for (number, in_flight, error) in lost {
            let soft = !is_connection_lost(&error);
            let said = |what: &str| {
                self.publisher.socket.said(&format!(
                    "exchange '{}', routing key '{}': {what}",
                    in_flight.identity.exchange, in_flight.identity.routing_key
                ))
            };
            let what = describe(&error);
            let error = match reply(&error) {
                _ if !in_flight.written.load(Ordering::SeqCst) => {
                    SendError::outage(said(&format!("not sent: {what}")))
                }
                _ if too_large == Some(number) => SendError::rejected(said(&format!(
                    "{what}; raise the broker's 'max_message_size', or send less"
                ))),
                _ if too_large.is_some_and(|refused| refused < number) => {
                    SendError::outage(said("not looked at: the broker refused one before it"))
                }
                Some((404, _)) if alone || !self.confirmed => {
                    SendError::outage(self.publisher.no_exchange())
                }
                Some((403, _)) if alone || !self.confirmed => SendError::outage(said(&format!(
                    "{what}; give the user the permission to write (rabbitmqctl set_permissions)"
                ))),
                Some((406, _)) if alone && soft => SendError::rejected(said(&what)),
                _ if soft => SendError::unknown(said(&format!(
                    "the broker closed the channel before it had answered: {what}"
                ))),
                _ => SendError::unknown(said(&format!(
                    "the connection was lost before the broker had answered: {what}"
                ))),
            };
            if soft && !alone {
                self.publisher.one_by_one = ONE_BY_ONE;
            }
            let _ = in_flight.done.send(Err(error));
        }
    }
}

impl Drop for Window<'_> {
    /// Whoever still waits then has no answer from anybody.
    fn drop(&mut self) {
        for (_, in_flight) in self.all.drain() {
            let what = self.publisher.socket.said("the connection is being closed");
            let _ = in_flight.done.send(Err(SendError::unknown(what)));
        }
    }
}

fn identity_of(back: &BasicReturnMessage) -> Identity {
    Identity {
        exchange: back.delivery.exchange.clone(),
        routing_key: back.delivery.routing_key.clone(),
        message_id: back.delivery.properties.message_id().clone(),
    }
}

/// RabbitMQ names the size of a message that is beyond its `max_message_size`.
fn is_too_large(error: &lapin::Error, size: usize) -> bool {
    reply(error).is_some_and(|(code, text)| {
        code == 406 && text.contains("larger than") && text.contains(&format!(" {size} "))
    })
}
