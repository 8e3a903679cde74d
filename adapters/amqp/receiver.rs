//! The receiver: a queue's messages run through the route and are acknowledged when it is done.
//!
//! A receiver works on one channel after the other. A channel ends when it or its connection is
//! lost, when its consumer is cancelled, or on purpose before the broker loses patience with a
//! message that is held for long; what was held then is given back by closing the channel, which
//! leaves it in its place. The next channel opens when nothing of the last one runs any more.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use xbus_core::adapter::OpenError;
use xbus_core::plan::{LanePolicy, Retry};
use xbus_core::queues::ReceivedQueue;
use xbus_core::spec::{Args, Field, Type};
use xbus_core::{Format, Inbox, Receiver, SendError, Stop};

use crate::attended::Attended;
use crate::binding::{self, Bind, Source, declare_queue};
use crate::error::describe;
use crate::grip::Grip;
use crate::held::{Desk, Door, Outlet};
use crate::incoming::Reading;
use crate::ledger::{Ledger, Released};
use crate::link::{Link, Publish};
use crate::memory::Memory;
use crate::properties::{line, short};
use crate::window::{Defect, Order, Window};

/// What can stand under `receive: { amqp: … }`, beside how a queue is worked off.
pub(crate) const FIELDS: &[Field] = &[
    Field::new(
        "connection",
        Type::Connection(&["amqp"]),
        "The connection to the broker.",
    )
    .required(),
    Field::new("queue", Type::Text, "The queue.").required(),
    Field::new(
        "bind",
        Type::OneOrMany(&Type::Object(binding::FIELDS)),
        "What the queue is bound to, again after each reconnect. A queue that is absent is declared.",
    ),
    Field::new(
        "declare",
        Type::Bool,
        "Declares the queue when it is absent, without `bind` too: durable, of type quorum, without a \
         delivery limit, and with a single active consumer unless `concurrency` without `order_by` \
         gives up the order. A queue that is there is used as it is.",
    )
    .default("false"),
    Field::new(
        "prefetch",
        Type::Count(1, 65_535),
        "How many messages are taken from the queue before they are acknowledged. Left out: 16, of \
         which one is run after the other; with `order_by` 32, or `concurrency` where that is more; \
         with `concurrency` alone so many as that.",
    ),
    Field::new(
        "envelope",
        Type::Choice(&["none", "xbus"]),
        "`xbus`: each body is an XML document that holds a whole message.",
    )
    .default("none"),
    Field::new(
        "format",
        Type::Choice(&["xml", "json", "csv", "form", "text", "bytes"]),
        "How the bodies are read. Left out: as their content type says.",
    ),
    Field::new(
        "charset",
        Type::Text,
        "The charset of the bodies (an IANA label) where neither a byte order mark nor the content type \
         nor an XML declaration says one.",
    ),
    Field::new(
        "max_body",
        Type::Size,
        "Messages whose body is larger, decoded, fail with `too-large`. Left out: `max_body` of the bus's defaults.",
    ),
];

/// How long a channel and its queue are waited for before administrators are told.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many messages are taken when one is run after the other: so many that the next one is there
/// when one is done.
const IN_ORDER: usize = 16;

/// How many messages are taken with `order_by`.
const WINDOW: usize = 32;

/// Waits while the queue cannot be read.
const AGAIN: Retry = Retry {
    attempts: u32::MAX,
    first: Duration::from_secs(1),
    factor: 2.0,
    max: Duration::from_secs(30),
};

/// How often it is looked whether messages wait while none comes.
const LOOK: Duration = Duration::from_secs(10);

/// A channel that lives no longer counts as one that could not be opened.
const SHORT: Duration = Duration::from_secs(1);

struct AmqpReceiver {
    link: Arc<Link>,
    source: Source,
    parked: ShortString,
    prefetch: Option<u16>,
    reading: Reading,
    bus: Arc<str>,
    node: Arc<str>,
    ledger: Arc<Ledger>,
    attended: Arc<Attended>,
}

/// Builds a receiver from what the route says.
pub(crate) fn build(args: Args<'_>) -> Option<Arc<dyn Receiver>> {
    let link = args.build.connection::<Link>(&args.text("connection")?)?;
    let declare = args.boolean("declare");
    let (queue, parked) = queue_name(&args)?;
    let mut binds = Vec::new();
    let mut good = true;
    for node in args.items("bind") {
        match Bind::parse(&queue, &Args::new(Some(node), binding::FIELDS, args.build)) {
            Some(parsed) => binds.extend(parsed),
            None => good = false,
        }
    }
    let charset = args.text("charset");
    if let Some(charset) = &charset
        && xbus_charset::Charset::by_label(charset).is_err()
    {
        good = false;
        args.build.problems.error(
            &args.place("charset"),
            "unknown-charset",
            format!("there is no charset '{charset}'"),
            "write an IANA label such as utf-8, iso-8859-1 or windows-1252",
        );
    }
    good.then(|| {
        let shown = Arc::from(format!("{}/{queue}", link.name()));
        let ledger = Arc::new(Ledger::new(shown));
        let receiver: Arc<dyn Receiver> = Arc::new(AmqpReceiver {
            attended: Arc::new(Attended::new(
                link.clone(),
                queue.clone(),
                parked.clone(),
                ledger.clone(),
            )),
            ledger,
            link,
            source: Source {
                queue,
                declare: declare || !binds.is_empty(),
                binds,
            },
            parked,
            prefetch: args.count("prefetch").and_then(|n| u16::try_from(n).ok()),
            reading: Reading {
                envelope: args.text("envelope").as_deref() == Some("xbus"),
                format: args.text("format").as_deref().and_then(Format::from_name),
                charset,
                max_body: args.size("max_body").unwrap_or(args.build.max_body),
            },
            bus: args.build.bus.clone(),
            node: args.build.node.clone(),
        });
        receiver
    })
}

/// The queue, and the one for what is set aside from it.
fn queue_name(args: &Args<'_>) -> Option<(ShortString, ShortString)> {
    let name = args.text("queue")?;
    let names = short(&name).zip(short(&format!("{name}.parked")));
    if name.is_empty() || name.contains("{{") || name.starts_with("amq.") || names.is_none() {
        args.build.problems.error(
            &args.place("queue"),
            "bad-name",
            "this cannot be the name of a queue that is received from",
            "write a constant name of at most 248 bytes that does not begin with 'amq.'",
        );
        return None;
    }
    names
}

impl Receiver for AmqpReceiver {
    fn claim(&self) -> Option<String> {
        Some(format!(
            "queue {} of connection {}",
            self.source.queue,
            self.link.name()
        ))
    }

    fn queue(&self) -> Option<Arc<dyn ReceivedQueue>> {
        Some(self.attended.clone())
    }

    fn open(
        self: Arc<Self>,
        inbox: Inbox,
        stop: Stop,
    ) -> BoxFuture<'static, Result<BoxFuture<'static, ()>, OpenError>> {
        Box::pin(async move {
            let run: BoxFuture<'static, ()> =
                Box::pin(async move { self.run(Arc::new(inbox), &stop).await });
            Ok(run)
        })
    }
}

/// How the work on a channel ended.
#[derive(Debug)]
enum Ended {
    /// On purpose, for good.
    Stopped,
    /// On purpose, before the broker loses patience.
    Renewed,
    /// On purpose: messages wait and none comes. Either another consumer is given them, or the broker
    /// has lost track of this one; another is of no harm.
    Idle,
    /// By the broker or the connection.
    Lost(String),
}

/// A channel that messages come from.
struct Open {
    channel: Channel,
    consumer: Consumer,
    /// Cancelled when the connection is lost.
    lost: CancellationToken,
}

impl AmqpReceiver {
    async fn run(&self, door: Arc<dyn Door>, stop: &Stop) {
        let memory = Arc::new(Memory::default());
        let mut failed = 0;
        while !stop.is_cancelled() {
            let lost = self.link.receiving.lost();
            let opened = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                opened = tokio::time::timeout(PATIENCE, self.connect(&*door)) => opened.unwrap_or_else(|_| {
                    Err(format!("queue '{}': the broker does not answer in time", self.source.queue))
                }),
            };
            let why = match opened {
                Ok(open) => {
                    door.works();
                    self.ledger.set_trouble(None);
                    let since = Instant::now();
                    match self.work(open, &door, &memory, stop).await {
                        Ended::Stopped => return,
                        Ended::Renewed => {
                            tracing::info!(route = %door.route(), queue = %self.source.queue, "the channel is renewed, because a message is held for long");
                            continue;
                        }
                        Ended::Idle => {
                            tracing::debug!(route = %door.route(), queue = %self.source.queue, "nothing comes though messages wait: the queue is read on a new channel");
                            continue;
                        }
                        Ended::Lost(why) => {
                            tracing::warn!(route = %door.route(), queue = %self.source.queue, %why, "the queue is read again on a new channel");
                            if since.elapsed() > SHORT {
                                failed = 0;
                                continue;
                            }
                            why
                        }
                    }
                }
                Err(why) => why,
            };
            failed += 1;
            let wait = AGAIN.wait(failed);
            tracing::warn!(route = %door.route(), queue = %self.source.queue, %why, retry_in = ?wait, "the queue cannot be read");
            door.fails("outage", &why);
            self.ledger.set_trouble(Some(&why));
            // Another connection is as good as a wait; making one has waits of its own.
            let another = async {
                if let Some(lost) = &lost {
                    lost.cancelled().await;
                }
                self.link.receiving.up().await
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                _ = another => {}
            }
        }
    }

    fn order(&self, door: &dyn Door, policy: &LanePolicy) -> Order {
        if door.orders() {
            Order::Keys
        } else if policy.concurrency > 1 {
            Order::None
        } else {
            Order::All
        }
    }

    /// How many messages are taken from the queue.
    fn window(&self, order: Order, policy: &LanePolicy) -> u16 {
        self.prefetch.unwrap_or_else(|| {
            let many = match order {
                Order::All => IN_ORDER,
                Order::Keys => policy.concurrency.max(WINDOW),
                Order::None => policy.concurrency,
            };
            u16::try_from(many).unwrap_or(u16::MAX)
        })
    }

    /// Sees that the queue is there and begins to read it.
    async fn connect(&self, door: &dyn Door) -> Result<Open, String> {
        // Its own end comes first, so that it can say what it waited for.
        let until = Instant::now() + PATIENCE.mul_f64(0.9);
        let policy = door.policy();
        let order = self.order(door, &policy);
        self.source
            .ensure(&self.link, order != Order::None, until)
            .await?;
        let (channel, lost) = self
            .link
            .channel_until_lost(until)
            .await
            .map_err(|error| error.detail)?;
        let cannot = |error: lapin::Error| {
            let help = match binding::code(&error) {
                Some(403) => "; receiving needs the permission read on the queue",
                _ => "",
            };
            let said = describe(&error);
            format!("queue '{}' cannot be read: {said}{help}", self.source.queue)
        };
        channel
            .basic_qos(self.window(order, &policy), BasicQosOptions::default())
            .await
            .map_err(cannot)?;
        let tag = line(&format!("{}/{}", self.node, door.route()), 240);
        let consumer = channel
            .basic_consume(
                self.source.queue.clone(),
                short(&tag).unwrap_or_default(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(cannot)?;
        Ok(Open {
            channel,
            consumer,
            lost,
        })
    }

    /// Works on what comes until the channel ends.
    async fn work(
        &self,
        mut open: Open,
        door: &Arc<dyn Door>,
        memory: &Arc<Memory>,
        stop: &Stop,
    ) -> Ended {
        let policy = door.policy();
        let order = self.order(&**door, &policy);
        let desk = Arc::new(Desk {
            door: door.clone(),
            outlet: Arc::new(self.link.clone()),
            memory: memory.clone(),
            ledger: self.ledger.clone(),
            queue: self.source.queue.clone(),
            parked: self.parked.clone(),
            grip: Some(Grip::new(
                open.channel.clone(),
                self.source.queue.clone(),
                self.link.heartbeat(),
            )),
            places: Semaphore::new(policy.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            give_back: Stop::new(),
        });
        let mut window = Window::new(desk, self.reading.clone(), order, self.bus.clone());
        // What an administrator had released goes before all others.
        for released in self.attended.released_before().await {
            window.release(released);
        }
        let (entrance, mut released) = mpsc::unbounded_channel();
        self.ledger.open(entrance);
        let ended = self
            .take(&mut open, &mut released, &mut window, door, memory, stop)
            .await;
        self.ledger.close();
        drop(released);
        window.give_back().await;
        // The consumer is not cancelled before: another one would be given what comes next while the
        // message before it is still held here.
        let closed = tokio::time::timeout(PATIENCE, open.channel.close(200, "done".into())).await;
        let clean = matches!(closed, Ok(Ok(())));
        forget(&**door, memory, clean && matches!(ended, Ended::Stopped)).await;
        ended
    }

    async fn take(
        &self,
        open: &mut Open,
        released: &mut mpsc::UnboundedReceiver<Released>,
        window: &mut Window,
        door: &Arc<dyn Door>,
        memory: &Memory,
        stop: &Stop,
    ) -> Ended {
        let patience = self.link.renew_after();
        let mut looks = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waited = 0;
        loop {
            let renew_at = window.oldest().map(|since| since + patience);
            let renew = async {
                match renew_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let idle = window.is_empty();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ended::Stopped,
                () = renew => return Ended::Renewed,
                ended = window.ended(), if !idle => {
                    if let Some(Err(Defect)) = ended {
                        return Ended::Lost(String::from("a message's work ended by a defect of the bus"));
                    }
                    forget(&**door, memory, false).await;
                }
                Some(released) = released.recv() => window.release(released),
                next = open.consumer.next() => match next {
                    Some(Ok(delivery)) => {
                        waited = 0;
                        window.take(delivery);
                    }
                    Some(Err(error)) => return Ended::Lost(lost(&error)),
                    None => return Ended::Lost(String::from(
                        "the broker has cancelled the consumer: the queue was deleted, or its leader is gone",
                    )),
                },
                // What came before comes first.
                () = open.lost.cancelled() => return Ended::Lost(String::from("the connection was lost")),
                _ = looks.tick() => {
                    if !open.channel.status().connected() {
                        return Ended::Lost(String::from("the channel was closed"));
                    }
                    if idle {
                        match self.look(&open.channel).await {
                            Ok((_, 0)) => return Ended::Lost(String::from("the broker knows nothing of the consumer any more")),
                            Ok((ready, _)) if ready > 0 && ready == waited => return Ended::Idle,
                            Ok((ready, _)) => waited = ready,
                            Err(why) => return Ended::Lost(why),
                        }
                    }
                }
            }
        }
    }

    /// How many messages wait in the queue, and how many consumers it has.
    async fn look(&self, channel: &Channel) -> Result<(u32, u32), String> {
        let queue = self.source.queue.clone();
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let looked = channel.queue_declare(queue, options, FieldTable::default());
        match tokio::time::timeout(PATIENCE, looked).await {
            Ok(Ok(there)) => Ok((there.message_count(), there.consumer_count())),
            Ok(Err(error)) => Err(lost(&error)),
            Err(_) => Err(String::from("the broker does not answer in time")),
        }
    }
}

/// Why a channel ended, and how to have it not end so.
fn lost(error: &lapin::Error) -> String {
    let said = describe(error);
    match binding::code(error) {
        Some(406) if said.contains("timeout") => format!(
            "{said}; nothing is lost, but set 'renew_after' of the connection below the broker's \
             'consumer_timeout'"
        ),
        _ => said,
    }
}

async fn forget(door: &dyn Door, memory: &Memory, all: bool) {
    for key in memory.to_forget(all) {
        door.forget(key).await;
    }
}

impl Outlet for Arc<Link> {
    fn publish(&self, publish: Publish, until: Instant) -> BoxFuture<'_, Result<(), SendError>> {
        Box::pin(Link::publish(self, publish, until))
    }

    fn answer(&self, publish: Publish, until: Instant) -> BoxFuture<'_, Result<(), SendError>> {
        Box::pin(Link::publish_optional(self, publish, until))
    }

    fn declare<'a>(
        &'a self,
        queue: &'a ShortString,
        until: Instant,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(declare_queue(self, queue, true, false, until))
    }
}
