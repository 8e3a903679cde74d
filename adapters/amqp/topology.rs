//! What is declared at the broker: exchanges, queues and bindings.
//!
//! Declaring is idempotent, and what exists with other properties stays as it is and is told.
//! Absent: deleting and unbinding. What xbus.yaml no longer names is an administrator's to remove.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ExchangeKind};
use xbus_core::spec::{Args, Field, Key, Node, Raw, Type};

use crate::error::{describe, is_connection_lost};

/// What can stand in an item of `exchanges`.
pub(crate) const EXCHANGE: &[Field] = &[
    Field::new("name", Type::Text, "The exchange.").required(),
    Field::new(
        "type",
        Type::Choice(&["direct", "topic", "fanout", "headers"]),
        "How it chooses the queues of a message.",
    )
    .required(),
    Field::new(
        "durable",
        Type::Bool,
        "It outlives a restart of the broker.",
    )
    .default("true"),
    Field::new(
        "internal",
        Type::Bool,
        "Only other exchanges publish to it.",
    )
    .default("false"),
    Field::new("arguments", Type::Map(&Type::Any), ARGUMENTS),
];

/// What can stand in an item of `queues`.
pub(crate) const QUEUE: &[Field] = &[
    Field::new("name", Type::Text, "The queue.").required(),
    Field::new(
        "type",
        Type::Choice(&["quorum", "classic"]),
        "`quorum`: durable, and replicated where the broker is a cluster.",
    )
    .default("quorum"),
    Field::new(
        "durable",
        Type::Bool,
        "It outlives a restart of the broker. Quorum queues always do.",
    )
    .default("true"),
    Field::new(
        "dead_letter",
        Type::Object(DEAD_LETTER),
        "Where the broker publishes what expires or is refused.",
    ),
    Field::new("arguments", Type::Map(&Type::Any), ARGUMENTS),
    Field::new(
        "bind",
        Type::OneOrMany(&Type::Object(BIND)),
        "Which messages of which exchanges it gets.",
    ),
];

const ARGUMENTS: &str = "Further arguments as the broker names them, such as `x-max-length`. Whole \
                         numbers, `true` and `false` are sent as such, everything else as text.";

const DEAD_LETTER: &[Field] = &[
    Field::new(
        "exchange",
        Type::Text,
        "The exchange; empty for the default one.",
    )
    .default(""),
    Field::new(
        "routing_key",
        Type::Text,
        "The routing key. Left out: the message's own.",
    ),
];

/// What can stand in an item of `bind`.
pub(crate) const BIND: &[Field] = &[
    Field::new("exchange", Type::Text, "The exchange.").required(),
    Field::new(
        "keys",
        Type::OneOrMany(&Type::Text),
        "Routing keys, or patterns of a topic exchange (`order.*`, `order.#`).",
    ),
    Field::new(
        "match",
        Type::Choice(&["all", "any"]),
        "Of a headers exchange: whether all of `headers` must fit, or one.",
    )
    .default("all"),
    Field::new(
        "headers",
        Type::Map(&Type::Any),
        "Of a headers exchange: names and values.",
    ),
];

/// An exchange to declare.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exchange {
    pub(crate) name: ShortString,
    pub(crate) kind: ExchangeKind,
    pub(crate) durable: bool,
    pub(crate) internal: bool,
    pub(crate) arguments: FieldTable,
}

/// A queue to declare.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Queue {
    pub(crate) name: ShortString,
    pub(crate) durable: bool,
    /// With `x-queue-type`.
    pub(crate) arguments: FieldTable,
}

/// A queue to bind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Binding {
    pub(crate) queue: ShortString,
    pub(crate) exchange: ShortString,
    pub(crate) key: ShortString,
    pub(crate) arguments: FieldTable,
}

/// What is declared together, exchanges first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Topology {
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) queues: Vec<Queue>,
    pub(crate) bindings: Vec<Binding>,
}

impl Topology {
    /// Declares everything, each on a channel of its own once one has failed. Gives what could not
    /// be declared, in words; nothing when all is there.
    ///
    /// # Errors
    /// The connection was lost meanwhile.
    pub(crate) async fn declare(
        &self,
        connection: &Connection,
    ) -> Result<Option<String>, lapin::Error> {
        if *self == Self::default() {
            return Ok(None);
        }
        let mut failed = Vec::new();
        let mut channel = connection.create_channel().await?;
        let exchanges = self.exchanges.iter().map(One::Exchange);
        let queues = self.queues.iter().map(One::Queue);
        let bindings = self.bindings.iter().map(One::Binding);
        for one in exchanges.chain(queues).chain(bindings) {
            let Err(error) = one.declare(&channel).await else {
                continue;
            };
            if is_connection_lost(&error) {
                return Err(error);
            }
            failed.push(format!("{}: {}", one.what(), describe(&error)));
            channel = connection.create_channel().await?;
        }
        let _ = channel.close(200, "done".into()).await;
        Ok((!failed.is_empty()).then(|| failed.join("; ")))
    }
}

enum One<'a> {
    Exchange(&'a Exchange),
    Queue(&'a Queue),
    Binding(&'a Binding),
}

impl One<'_> {
    fn what(&self) -> String {
        match self {
            One::Exchange(exchange) => format!("exchange '{}' cannot be declared", exchange.name),
            One::Queue(queue) => format!("queue '{}' cannot be declared", queue.name),
            One::Binding(binding) => format!(
                "queue '{}' cannot be bound to exchange '{}'",
                binding.queue, binding.exchange
            ),
        }
    }

    async fn declare(&self, channel: &Channel) -> Result<(), lapin::Error> {
        match self {
            One::Exchange(exchange) => declare_exchange(channel, exchange).await,
            One::Queue(queue) => declare_queue(channel, queue).await,
            One::Binding(binding) => bind(channel, binding).await,
        }
    }
}

/// Declares an exchange. An error closes the channel.
pub(crate) async fn declare_exchange(
    channel: &Channel,
    exchange: &Exchange,
) -> Result<(), lapin::Error> {
    let options = ExchangeDeclareOptions {
        durable: exchange.durable,
        internal: exchange.internal,
        ..ExchangeDeclareOptions::default()
    };
    let (name, arguments) = (exchange.name.clone(), exchange.arguments.clone());
    channel
        .exchange_declare(name, exchange.kind.clone(), options, arguments)
        .await
}

/// Declares a queue. An error closes the channel.
pub(crate) async fn declare_queue(channel: &Channel, queue: &Queue) -> Result<(), lapin::Error> {
    let options = QueueDeclareOptions {
        durable: queue.durable,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(queue.name.clone(), options, queue.arguments.clone())
        .await
        .map(drop)
}

/// Binds a queue. An error closes the channel.
pub(crate) async fn bind(channel: &Channel, binding: &Binding) -> Result<(), lapin::Error> {
    channel
        .queue_bind(
            binding.queue.clone(),
            binding.exchange.clone(),
            binding.key.clone(),
            QueueBindOptions::default(),
            binding.arguments.clone(),
        )
        .await
}

/// Reads `exchanges` and `queues` of a connection; nothing when a problem was reported.
pub(crate) fn read(args: &Args<'_>) -> Option<Topology> {
    let mut good = true;
    let mut topology = Topology::default();
    for node in args.items("exchanges") {
        match exchange(&Args::new(Some(node), EXCHANGE, args.build)) {
            Some(exchange) => topology.exchanges.push(exchange),
            None => good = false,
        }
    }
    for node in args.items("queues") {
        let of = Args::new(Some(node), QUEUE, args.build);
        let Some(queue) = queue(&of) else {
            good = false;
            continue;
        };
        for node in of.items("bind") {
            let bound = bindings(&queue.name, &Args::new(Some(node), BIND, args.build));
            good &= bound.is_some();
            topology.bindings.extend(bound.into_iter().flatten());
        }
        topology.queues.push(queue);
    }
    good.then_some(topology)
}

fn exchange(args: &Args<'_>) -> Option<Exchange> {
    Some(Exchange {
        name: name(args, "name")?,
        kind: match args.text("type").as_deref() {
            Some("direct") => ExchangeKind::Direct,
            Some("topic") => ExchangeKind::Topic,
            Some("fanout") => ExchangeKind::Fanout,
            _ => ExchangeKind::Headers,
        },
        durable: args.boolean("durable"),
        internal: args.boolean("internal"),
        arguments: table(args, "arguments")?,
    })
}

fn queue(args: &Args<'_>) -> Option<Queue> {
    let quorum = args.text("type").as_deref() == Some("quorum");
    let durable = args.boolean("durable");
    if quorum && !durable {
        args.build.problems.error(
            &args.place("durable"),
            "bad-queue",
            "a quorum queue is always durable",
            "take 'durable' away, or write type: classic",
        );
        return None;
    }
    let mut arguments = table(args, "arguments")?;
    let mut set = |key: &str, value: &str| {
        if let Ok(key) = ShortString::try_new(key) {
            arguments.insert(key, AMQPValue::LongString(value.into()));
        }
    };
    set("x-queue-type", if quorum { "quorum" } else { "classic" });
    if args.has("dead_letter") {
        let dead_letter = args.object("dead_letter", DEAD_LETTER);
        let exchange = dead_letter.text("exchange").unwrap_or_default();
        set("x-dead-letter-exchange", &exchange);
        if let Some(key) = dead_letter.text("routing_key") {
            set("x-dead-letter-routing-key", &key);
        }
    }
    Some(Queue {
        name: name(args, "name")?,
        durable,
        arguments,
    })
}

/// The bindings of one item of `bind`: one a key, or one with headers.
pub(crate) fn bindings(queue: &ShortString, args: &Args<'_>) -> Option<Vec<Binding>> {
    let exchange = name(args, "exchange")?;
    let mut arguments = FieldTable::default();
    if args.has("headers") {
        arguments = table(args, "headers")?;
        let match_ = args.text("match").unwrap_or_else(|| String::from("all"));
        arguments.insert("x-match".into(), AMQPValue::LongString(match_.into()));
    }
    let mut keys = args.texts("keys");
    if keys.is_empty() {
        // Fanout and headers exchanges look at none.
        keys.push(String::new());
    }
    let short = |key: String| match ShortString::try_new(key) {
        Ok(key) => Some(key),
        Err(_) => {
            too_long(args, "keys");
            None
        }
    };
    keys.into_iter()
        .map(|key| {
            Some(Binding {
                queue: queue.clone(),
                exchange: exchange.clone(),
                key: short(key)?,
                arguments: arguments.clone(),
            })
        })
        .collect()
}

/// A name of AMQP: 1 to 255 bytes (AMQP 0-9-1 section 4.2.5.3); a problem is reported otherwise.
pub(crate) fn name(args: &Args<'_>, key: &str) -> Option<ShortString> {
    let text = args.text(key)?;
    if text.is_empty() {
        args.build.problems.error(
            &args.place(key),
            "bad-name",
            format!("'{key}' is empty"),
            "write a name",
        );
        return None;
    }
    ShortString::try_new(text)
        .inspect_err(|_| too_long(args, key))
        .ok()
}

fn too_long(args: &Args<'_>, key: &str) {
    args.build.problems.error(
        &args.place(key),
        "bad-name",
        format!("'{key}' is longer than the 255 bytes that AMQP allows"),
        "write a shorter one",
    );
}

/// A table of arguments as written; nothing when a problem was reported.
pub(crate) fn table(args: &Args<'_>, key: &str) -> Option<FieldTable> {
    let mut table = FieldTable::default();
    let mut good = true;
    for (key, node) in args.entries(key) {
        match argument(key, node) {
            Some((key, value)) => {
                table.insert(key, value);
            }
            None => {
                good = false;
                args.build.problems.error(
                    &node.place,
                    "bad-argument",
                    format!("'{}' is no argument", key.name),
                    "write a number, true, false or a text under a name of at most 255 bytes",
                );
            }
        }
    }
    good.then_some(table)
}

fn argument(key: &Key, node: &Node) -> Option<(ShortString, AMQPValue)> {
    let Raw::Scalar(scalar) = &node.raw else {
        return None;
    };
    let key = ShortString::try_new(key.name.clone()).ok()?;
    let text = scalar.text.as_str();
    let value = match text {
        "true" => AMQPValue::Boolean(true),
        "false" => AMQPValue::Boolean(false),
        _ => match text.parse::<i64>() {
            Ok(number) => AMQPValue::LongLongInt(number),
            Err(_) => AMQPValue::LongString(text.into()),
        },
    };
    Some((key, value))
}
