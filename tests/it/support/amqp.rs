//! A plain AMQP 0-9-1 client for the tests: every call waits for its end and fails the test when
//! the broker refuses, and a responder for request and reply.
//!
//! Absent: reconnecting. A client whose connection is lost fails; tests open a new one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connect, Connection, ConnectionProperties, ExchangeKind};
use tokio::runtime::Runtime;

use super::{PATIENCE, wait_for};

/// A message to publish; persistent unless `properties` is told otherwise.
#[derive(Debug, Clone)]
pub struct Message {
    pub body: Vec<u8>,
    properties: BasicProperties,
    headers: BTreeMap<String, AMQPValue>,
}

impl Message {
    pub fn new(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            properties: BasicProperties::default().with_delivery_mode(2),
            headers: BTreeMap::new(),
        }
    }

    /// Sets properties: `.with(|p| p.with_message_id("1".into()))`.
    pub fn with(mut self, set: impl FnOnce(BasicProperties) -> BasicProperties) -> Self {
        self.properties = set(self.properties);
        self
    }

    /// A header with a text, as AMQP's long string.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.header_value(name, AMQPValue::LongString(value.into()))
    }

    /// A header of any type.
    pub fn header_value(mut self, name: &str, value: AMQPValue) -> Self {
        self.headers.insert(name.to_owned(), value);
        self
    }

    fn into_parts(self) -> (Vec<u8>, BasicProperties) {
        if self.headers.is_empty() {
            return (self.body, self.properties);
        }
        (self.body, self.properties.with_headers(table(self.headers)))
    }
}

impl From<&str> for Message {
    fn from(body: &str) -> Self {
        Self::new(body)
    }
}

/// A message that came.
#[derive(Debug, Clone)]
pub struct Got {
    pub exchange: String,
    pub routing_key: String,
    pub redelivered: bool,
    pub properties: BasicProperties,
    pub body: Vec<u8>,
}

impl Got {
    fn of(delivery: &Delivery) -> Self {
        Self {
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            redelivered: delivery.redelivered,
            properties: delivery.properties.clone(),
            body: delivery.data.clone(),
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header of any type.
    pub fn header_value(&self, name: &str) -> Option<&AMQPValue> {
        self.properties.headers().as_ref()?.inner().get(name)
    }

    /// A header that is a text.
    pub fn header(&self, name: &str) -> Option<String> {
        match self.header_value(name)? {
            AMQPValue::LongString(text) => {
                Some(String::from_utf8_lossy(text.as_bytes()).into_owned())
            }
            AMQPValue::ShortString(text) => Some(text.to_string()),
            _ => None,
        }
    }

    pub fn correlation_id(&self) -> Option<String> {
        self.properties
            .correlation_id()
            .as_ref()
            .map(ToString::to_string)
    }

    pub fn message_id(&self) -> Option<String> {
        self.properties
            .message_id()
            .as_ref()
            .map(ToString::to_string)
    }

    pub fn content_type(&self) -> Option<String> {
        self.properties
            .content_type()
            .as_ref()
            .map(ToString::to_string)
    }

    pub fn reply_to(&self) -> Option<String> {
        self.properties.reply_to().as_ref().map(ToString::to_string)
    }
}

/// Arguments of queues and bindings.
pub fn table(entries: impl IntoIterator<Item = (String, AMQPValue)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

/// One connection with a channel that confirms; a channel that the broker has closed is replaced.
pub struct Client {
    runtime: Runtime,
    connection: Connection,
    channel: Mutex<Channel>,
}

impl Client {
    #[track_caller]
    pub fn connect(url: &str) -> Self {
        Self::try_connect(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    /// For connections that are to be refused.
    pub fn try_connect(url: &str) -> lapin::Result<Self> {
        Self::open(url, OwnedTLSConfig::default())
    }

    /// Over TLS, trusting the authority in a PEM file.
    #[track_caller]
    pub fn connect_tls(url: &str, ca: &Path) -> Self {
        let tls = OwnedTLSConfig {
            identity: None,
            cert_chain: Some(std::fs::read_to_string(ca).expect("the authority")),
        };
        Self::open(url, tls).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    fn open(url: &str, tls: OwnedTLSConfig) -> lapin::Result<Self> {
        let runtime = runtime();
        let (connection, channel) = runtime.block_on(async {
            let connection = url
                .connect_with_config(
                    ConnectionProperties::default().with_connection_name("test".into()),
                    tls,
                    lapin::runtime::default_runtime()?,
                )
                .await?;
            let channel = confirming(&connection).await?;
            lapin::Result::Ok((connection, channel))
        })?;
        Ok(Self {
            runtime,
            connection,
            channel: Mutex::new(channel),
        })
    }

    /// Whether neither side has closed it.
    pub fn connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// Runs one call on a channel that works. A bound, because a paused broker never answers.
    fn call<T, F: Future<Output = lapin::Result<T>>>(
        &self,
        call: impl FnOnce(Channel) -> F,
    ) -> lapin::Result<T> {
        self.runtime.block_on(async {
            let work = async {
                let current = self.channel.lock().expect("unpoisoned").clone();
                let channel = if current.status().connected() {
                    current
                } else {
                    let fresh = confirming(&self.connection).await?;
                    *self.channel.lock().expect("unpoisoned") = fresh.clone();
                    fresh
                };
                call(channel).await
            };
            match tokio::time::timeout(PATIENCE, work).await {
                Ok(result) => result,
                Err(_) => panic!("the broker does not answer"),
            }
        })
    }

    #[track_caller]
    fn must<T, F: Future<Output = lapin::Result<T>>>(
        &self,
        what: &str,
        call: impl FnOnce(Channel) -> F,
    ) -> T {
        self.call(call)
            .unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// Declares a durable classic queue.
    #[track_caller]
    pub fn queue(&self, name: &str) {
        self.queue_with(name, []);
    }

    /// Declares a durable quorum queue.
    #[track_caller]
    pub fn quorum(&self, name: &str) {
        self.queue_with(
            name,
            [("x-queue-type", AMQPValue::LongString("quorum".into()))],
        );
    }

    /// Declares a durable queue with arguments.
    #[track_caller]
    pub fn queue_with<const N: usize>(&self, name: &str, arguments: [(&str, AMQPValue); N]) {
        let arguments = table(arguments.map(|(name, value)| (name.to_owned(), value)));
        self.must(&format!("queue {name}"), async |channel| {
            channel
                .queue_declare(name.into(), QueueDeclareOptions::durable(), arguments)
                .await
        });
    }

    /// Declares a durable exchange.
    #[track_caller]
    pub fn exchange(&self, name: &str, kind: ExchangeKind) {
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        self.must(&format!("exchange {name}"), async |channel| {
            channel
                .exchange_declare(name.into(), kind, options, FieldTable::default())
                .await
        });
    }

    #[track_caller]
    pub fn bind(&self, queue: &str, exchange: &str, key: &str) {
        self.bind_with(queue, exchange, key, []);
    }

    /// With arguments, as a headers exchange needs them.
    #[track_caller]
    pub fn bind_with<const N: usize>(
        &self,
        queue: &str,
        exchange: &str,
        key: &str,
        arguments: [(&str, AMQPValue); N],
    ) {
        let arguments = table(arguments.map(|(name, value)| (name.to_owned(), value)));
        self.must(&format!("{queue} bound to {exchange}"), async |channel| {
            channel
                .queue_bind(
                    queue.into(),
                    exchange.into(),
                    key.into(),
                    QueueBindOptions::default(),
                    arguments,
                )
                .await
        });
    }

    /// Publishes, mandatory, and waits until the broker has confirmed.
    #[track_caller]
    pub fn publish(&self, exchange: &str, key: &str, message: impl Into<Message>) {
        self.try_publish(exchange, key, message)
            .unwrap_or_else(|error| panic!("to {exchange:?} {key:?}: {error}"));
    }

    /// The same, for what is to be refused: not routed, not taken, or the channel closed.
    pub fn try_publish(
        &self,
        exchange: &str,
        key: &str,
        message: impl Into<Message>,
    ) -> Result<(), String> {
        self.publish_all(exchange, key, [message.into()])
    }

    /// To a queue through the default exchange.
    #[track_caller]
    pub fn send(&self, queue: &str, message: impl Into<Message>) {
        self.publish("", queue, message);
    }

    /// Many at once, confirmed together.
    #[track_caller]
    pub fn send_all<M: Into<Message>>(&self, queue: &str, messages: impl IntoIterator<Item = M>) {
        self.publish_all("", queue, messages.into_iter().map(Into::into))
            .unwrap_or_else(|error| panic!("to {queue:?}: {error}"));
    }

    fn publish_all(
        &self,
        exchange: &str,
        key: &str,
        messages: impl IntoIterator<Item = Message>,
    ) -> Result<(), String> {
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let outcomes = self
            .call(async |channel| {
                let mut confirms = Vec::new();
                for message in messages {
                    let (body, properties) = message.into_parts();
                    let confirm = channel
                        .basic_publish(exchange.into(), key.into(), options, &body, properties)
                        .await?;
                    confirms.push(confirm);
                }
                let mut outcomes = Vec::new();
                for confirm in confirms {
                    outcomes.push(confirm.await?);
                }
                Ok(outcomes)
            })
            .map_err(|error| error.to_string())?;
        for outcome in outcomes {
            let taken = outcome.is_ack();
            if let Some(returned) = outcome.take_message() {
                return Err(format!("{} {}", returned.reply_code, returned.reply_text));
            }
            if !taken {
                return Err("not confirmed".to_owned());
            }
        }
        Ok(())
    }

    /// Takes one message, acknowledged at once, if there is one.
    #[track_caller]
    pub fn get(&self, queue: &str) -> Option<Got> {
        self.must(&format!("get from {queue}"), async |channel| {
            let got = channel
                .basic_get(queue.into(), BasicGetOptions { no_ack: true })
                .await?;
            Ok(got.map(|got| Got::of(&got.delivery)))
        })
    }

    /// Takes the next `count` messages as they come, each acknowledged, and leaves the rest.
    #[track_caller]
    pub fn take(&self, queue: &str, count: usize) -> Vec<Got> {
        let mut taken = Vec::new();
        let waited = self.runtime.block_on(async {
            let work = async {
                let channel = self.connection.create_channel().await?;
                let prefetch = u16::try_from(count).unwrap_or(100).clamp(1, 100);
                channel
                    .basic_qos(prefetch, BasicQosOptions::default())
                    .await?;
                let mut deliveries = channel
                    .basic_consume(
                        queue.into(),
                        "".into(),
                        BasicConsumeOptions::default(),
                        FieldTable::default(),
                    )
                    .await?;
                while taken.len() < count {
                    let Some(delivery) = deliveries.next().await else {
                        break;
                    };
                    let delivery = delivery?;
                    taken.push(Got::of(&delivery));
                    delivery.ack(BasicAckOptions::default()).await?;
                }
                // What was fetched beyond them goes back to its place.
                channel.close(200, "done".into()).await
            };
            tokio::time::timeout(PATIENCE, work).await
        });
        match waited {
            Ok(result) => result.unwrap_or_else(|error| panic!("take from {queue}: {error}")),
            Err(_) => panic!("{} of {count} messages came to {queue}", taken.len()),
        }
        assert_eq!(taken.len(), count, "the consumer of {queue} was cancelled");
        taken
    }

    /// Receives one message and never acknowledges it, until the broker closes the channel; gives
    /// what it said. The message is then back in the queue.
    #[track_caller]
    pub fn hold(&self, queue: &str) -> String {
        let held = self.runtime.block_on(async {
            let work = async {
                let channel = self.connection.create_channel().await?;
                let mut deliveries = channel
                    .basic_consume(
                        queue.into(),
                        "".into(),
                        BasicConsumeOptions::default(),
                        FieldTable::default(),
                    )
                    .await?;
                while let Some(delivery) = deliveries.next().await {
                    delivery?;
                }
                Ok(())
            };
            tokio::time::timeout(PATIENCE, work).await
        });
        match held {
            Ok(lapin::Result::Err(error)) => error.to_string(),
            Ok(Ok(())) => panic!("the consumer of {queue} was cancelled"),
            Err(_) => panic!("the channel that consumes {queue} stays open"),
        }
    }

    /// Takes all that is there now.
    #[track_caller]
    pub fn drain(&self, queue: &str) -> Vec<Got> {
        let depth = self.depth(queue);
        self.take(queue, depth)
    }

    /// The bodies of the next `count` messages.
    #[track_caller]
    pub fn texts(&self, queue: &str, count: usize) -> Vec<String> {
        self.take(queue, count).iter().map(Got::text).collect()
    }

    /// Messages that are ready; those that a consumer holds do not count.
    #[track_caller]
    pub fn depth(&self, queue: &str) -> usize {
        self.state(queue)
            .map(|(messages, _)| messages)
            .unwrap_or_else(|error| panic!("depth of {queue}: {error}"))
    }

    #[track_caller]
    pub fn consumers(&self, queue: &str) -> usize {
        self.state(queue)
            .map(|(_, consumers)| consumers)
            .unwrap_or_else(|error| panic!("consumers of {queue}: {error}"))
    }

    pub fn exists(&self, queue: &str) -> bool {
        self.state(queue).is_ok()
    }

    fn state(&self, queue: &str) -> lapin::Result<(usize, usize)> {
        self.call(async |channel| {
            let options = QueueDeclareOptions::default().passive();
            let state = channel
                .queue_declare(queue.into(), options, FieldTable::default())
                .await?;
            let size = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
            Ok((size(state.message_count()), size(state.consumer_count())))
        })
    }

    #[track_caller]
    pub fn wait_for_depth(&self, queue: &str, depth: usize) {
        wait_for(&format!("depth {depth} of {queue}"), || {
            (self.depth(queue) == depth).then_some(())
        });
    }

    #[track_caller]
    pub fn wait_for_consumers(&self, queue: &str, count: usize) {
        wait_for(&format!("{count} consumers of {queue}"), || {
            (self.consumers(queue) == count).then_some(())
        });
    }

    #[track_caller]
    pub fn purge(&self, queue: &str) {
        self.must(&format!("purge {queue}"), async |channel| {
            channel
                .queue_purge(queue.into(), QueuePurgeOptions::default())
                .await
        });
    }

    #[track_caller]
    pub fn delete(&self, queue: &str) {
        self.must(&format!("delete {queue}"), async |channel| {
            channel
                .queue_delete(queue.into(), QueueDeleteOptions::default())
                .await
        });
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A broker that is gone or paused need not say goodbye.
        let _ = self.runtime.block_on(async {
            let closing = self.connection.close(200, "done".into());
            tokio::time::timeout(Duration::from_secs(1), closing).await
        });
    }
}

/// What a responder does with a request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Answers at once.
    Now(Message),
    /// Answers when the test calls [`Responder::release`].
    Held(Message),
    /// Takes the request and never answers.
    Never,
}

type Decide = Box<dyn Fn(&Got) -> Answer + Send + Sync>;

/// Consumes a queue and answers to `reply-to` with the request's correlation id.
pub struct Responder {
    runtime: Option<Runtime>,
    channel: Channel,
    shared: Arc<Answering>,
}

struct Answering {
    got: Mutex<Vec<Got>>,
    held: Mutex<Vec<(Got, Message)>>,
    decide: Mutex<Arc<Decide>>,
}

impl Responder {
    /// Answers each request on `queue`, which must exist, as `decide` says.
    #[track_caller]
    pub fn on(
        url: &str,
        queue: &str,
        decide: impl Fn(&Got) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let runtime = runtime();
        let shared = Arc::new(Answering {
            got: Mutex::default(),
            held: Mutex::default(),
            decide: Mutex::new(Arc::new(Box::new(decide))),
        });
        let serving = shared.clone();
        let channel = runtime
            .block_on(async {
                let properties =
                    ConnectionProperties::default().with_connection_name("responder".into());
                let connection = Connection::connect(url, properties).await?;
                let channel = connection.create_channel().await?;
                let deliveries = channel
                    .basic_consume(
                        queue.into(),
                        "".into(),
                        BasicConsumeOptions::default(),
                        FieldTable::default(),
                    )
                    .await?;
                tokio::spawn(serve(connection, channel.clone(), deliveries, serving));
                lapin::Result::Ok(channel)
            })
            .unwrap_or_else(|error| panic!("responder on {queue}: {error}"));
        Self {
            runtime: Some(runtime),
            channel,
            shared,
        }
    }

    /// From now on answers as `decide` says.
    pub fn now(&self, decide: impl Fn(&Got) -> Answer + Send + Sync + 'static) {
        *self.shared.decide.lock().expect("unpoisoned") = Arc::new(Box::new(decide));
    }

    /// Sends all answers that are held, however late; gives how many.
    #[track_caller]
    pub fn release(&self) -> usize {
        let held = std::mem::take(&mut *self.shared.held.lock().expect("unpoisoned"));
        let count = held.len();
        let runtime = self.runtime.as_ref().expect("running");
        runtime.block_on(async {
            for (request, message) in held {
                answer(&self.channel, &request, message)
                    .await
                    .expect("an answer");
            }
        });
        count
    }

    /// The requests so far, in order.
    pub fn got(&self) -> Vec<Got> {
        self.shared.got.lock().expect("unpoisoned").clone()
    }

    #[track_caller]
    pub fn wait_for_count(&self, count: usize) -> Vec<Got> {
        wait_for(&format!("{count} requests at a responder"), || {
            let got = self.got();
            (got.len() >= count).then_some(got)
        })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(
    _connection: Connection,
    channel: Channel,
    mut deliveries: lapin::Consumer,
    shared: Arc<Answering>,
) {
    while let Some(Ok(delivery)) = deliveries.next().await {
        let got = Got::of(&delivery);
        let decide = shared.decide.lock().expect("unpoisoned").clone();
        let decided = decide(&got);
        let answered = match decided {
            Answer::Now(message) => answer(&channel, &got, message).await,
            Answer::Held(message) => {
                let mut held = shared.held.lock().expect("unpoisoned");
                held.push((got.clone(), message));
                Ok(())
            }
            Answer::Never => Ok(()),
        };
        // Seen by the test when its answer is out or held.
        shared.got.lock().expect("unpoisoned").push(got);
        if answered.is_err() || delivery.ack(BasicAckOptions::default()).await.is_err() {
            return;
        }
    }
}

/// Nothing where the request names no reply queue.
async fn answer(channel: &Channel, request: &Got, message: Message) -> lapin::Result<()> {
    let Some(to) = request.properties.reply_to().clone() else {
        return Ok(());
    };
    let (body, mut properties) = message.into_parts();
    if let Some(id) = request.properties.correlation_id() {
        properties = properties.with_correlation_id(id.clone());
    }
    channel
        .basic_publish(
            "".into(),
            to,
            BasicPublishOptions::default(),
            &body,
            properties,
        )
        .await?
        .await?;
    Ok(())
}

/// lapin works in the background: one thread of its own per client.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
}

async fn confirming(connection: &Connection) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    Ok(channel)
}
