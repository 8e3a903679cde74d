//! The queue that a receiver reads and its bindings: declared when they are absent, else used as
//! they are.
//!
//! An existing queue or exchange is never compared with what the bus would declare: whoever made it
//! knows why. Absent: unbinding. A key that is taken out of a route stays bound until an
//! administrator unbinds it.

use std::sync::Arc;

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, ExchangeKind};
use tokio::time::Instant;
use xbus_core::spec::{Args, Field, Type};

use crate::error::{describe, reply};
use crate::link::Link;
use crate::topology::{self, Binding};

/// What can stand under `bind`.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("exchange", Type::Text, "The exchange that is bound to.").required(),
    Field::new(
        "type",
        Type::Choice(&["direct", "topic", "fanout", "headers"]),
        "Declares the exchange, durable and of this type, when there is none of its name. Left out: \
         it must be there.",
    ),
    Field::new(
        "keys",
        Type::OneOrMany(&Type::Text),
        "Routing keys, for topic exchanges with `*` (one word) and `#` (any words).",
    ),
    Field::new(
        "match",
        Type::Choice(&["all", "any"]),
        "Of a headers exchange: whether all of `headers` must match, or one of them.",
    )
    .default("all"),
    Field::new(
        "headers",
        Type::Map(&Type::Any),
        "Of a headers exchange: names and the values that messages must have. Whole numbers, `true` \
         and `false` are sent as such, everything else as text.",
    ),
];

/// A delivery limit that no message comes to: RabbitMQ 4 drops a message after 20 deliveries unless
/// its queue says otherwise, and 3.x takes no -1 for "never".
const NO_LIMIT: i32 = 1_000_000_000;

/// A binding, and its exchange where that is to be declared.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bind {
    binding: Binding,
    kind: Option<ExchangeKind>,
}

impl Bind {
    /// The bindings of one entry of `bind`; nothing when a problem was reported.
    pub(crate) fn parse(queue: &ShortString, args: &Args<'_>) -> Option<Vec<Self>> {
        let kind = args.text("type").map(|name| match name.as_str() {
            "topic" => ExchangeKind::Topic,
            "fanout" => ExchangeKind::Fanout,
            "headers" => ExchangeKind::Headers,
            _ => ExchangeKind::Direct,
        });
        let (keys, headers) = (args.has("keys"), args.has("headers"));
        let problem = match &kind {
            _ if keys && headers => Some((
                "headers",
                "a binding has either keys or headers",
                "keys are for direct and topic exchanges, headers for headers exchanges",
            )),
            Some(ExchangeKind::Headers) if !headers => Some((
                "type",
                "the binding to a headers exchange names no headers",
                "add headers: { NAME: VALUE }",
            )),
            Some(ExchangeKind::Direct | ExchangeKind::Topic) if !keys => Some((
                "type",
                "a binding to a direct or topic exchange needs keys",
                "add keys: [KEY, …]; '#' takes everything from a topic exchange",
            )),
            Some(_)
                if args
                    .text("exchange")
                    .is_some_and(|name| name.starts_with("amq.")) =>
            {
                Some((
                    "type",
                    "exchanges whose names begin with 'amq.' belong to the broker",
                    "take 'type' away",
                ))
            }
            _ => None,
        };
        if let Some((key, what, help)) = problem {
            let place = args.place(key);
            args.build.problems.error(&place, "bad-binding", what, help);
            return None;
        }
        let bindings = topology::bindings(queue, args)?;
        let with_kind = |binding| Self {
            binding,
            kind: kind.clone(),
        };
        Some(bindings.into_iter().map(with_kind).collect())
    }
}

/// A queue and its bindings.
#[derive(Debug)]
pub(crate) struct Source {
    /// The queue.
    pub(crate) queue: ShortString,
    /// Its bindings.
    pub(crate) binds: Vec<Bind>,
    /// Whether it is made when it is absent.
    pub(crate) declare: bool,
}

impl Source {
    /// Makes what is absent and binds. With `single_active` a queue that is made gives its messages
    /// to one consumer at a time, of however many nodes.
    ///
    /// # Errors
    /// What the broker says, and what to do about it.
    pub(crate) async fn ensure(
        &self,
        link: &Arc<Link>,
        single_active: bool,
        until: Instant,
    ) -> Result<(), String> {
        declare_queue(link, &self.queue, self.declare, single_active, until).await?;
        if self.binds.is_empty() {
            return Ok(());
        }
        let mut channel = open(link, until).await?;
        for bind in &self.binds {
            if let Some(kind) = &bind.kind {
                let exchange = &bind.binding.exchange;
                channel = declare_exchange(link, channel, exchange, kind, until).await?;
            }
            topology::bind(&channel, &bind.binding)
                .await
                .map_err(|error| self.cannot_bind(bind, &error))?;
        }
        close(&channel).await;
        Ok(())
    }

    fn cannot_bind(&self, bind: &Bind, error: &lapin::Error) -> String {
        let (queue, exchange) = (&self.queue, &bind.binding.exchange);
        let help = match code(error) {
            Some(404) => "; declare the exchange on the broker, or add its 'type' to 'bind'",
            Some(403) => {
                "; binding needs the permissions write on the queue and read on the exchange"
            }
            _ => "",
        };
        format!(
            "queue '{queue}' cannot be bound to exchange '{exchange}': {}{help}",
            describe(error)
        )
    }
}

/// Sees that a queue is there; makes it, when it is not and `make` says so.
pub(crate) async fn declare_queue(
    link: &Arc<Link>,
    queue: &ShortString,
    make: bool,
    single_active: bool,
    until: Instant,
) -> Result<(), String> {
    let channel = open(link, until).await?;
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let there = channel
        .queue_declare(queue.clone(), options, FieldTable::default())
        .await;
    match there {
        Ok(_) => {
            close(&channel).await;
            return Ok(());
        }
        Err(error) if code(&error) != Some(404) => {
            let help = match code(&error) {
                Some(405) => "; the queue is exclusive to another connection",
                Some(403) => "; the bus's user needs permissions on it",
                _ => "",
            };
            return Err(format!(
                "queue '{queue}' cannot be used: {}{help}",
                describe(&error)
            ));
        }
        Err(error) if !make => {
            return Err(format!(
                "there is no queue '{queue}': {}; declare it on the broker, or write 'bind' or \
                 'declare: true' beside 'queue' and the bus declares it",
                describe(&error)
            ));
        }
        Err(_) => {}
    }
    let channel = open(link, until).await?;
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(queue.clone(), options, arguments(single_active))
        .await
        .map_err(|error| {
            let help = match code(&error) {
                Some(403) => "; declaring needs the permission configure on it",
                _ => "",
            };
            format!(
                "queue '{queue}' cannot be declared: {}{help}",
                describe(&error)
            )
        })?;
    tracing::info!(%queue, "the queue was absent and has been declared");
    close(&channel).await;
    Ok(())
}

/// Arguments of the queues that the bus declares: quorum, and nothing drops a message by itself.
fn arguments(single_active: bool) -> FieldTable {
    let mut arguments = FieldTable::default();
    let quorum = AMQPValue::LongString(LongString::from("quorum"));
    arguments.insert("x-queue-type".into(), quorum);
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(NO_LIMIT));
    if single_active {
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    arguments
}

/// Makes an exchange when it is absent. Gives a channel that can be used further.
async fn declare_exchange(
    link: &Arc<Link>,
    channel: Channel,
    exchange: &ShortString,
    kind: &ExchangeKind,
    until: Instant,
) -> Result<Channel, String> {
    let declare = async |channel: &Channel, passive: bool| {
        let options = ExchangeDeclareOptions {
            passive,
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let arguments = FieldTable::default();
        channel
            .exchange_declare(exchange.clone(), kind.clone(), options, arguments)
            .await
    };
    let error = match declare(&channel, true).await {
        Ok(()) => return Ok(channel),
        Err(error) => error,
    };
    if code(&error) != Some(404) {
        return Err(format!(
            "exchange '{exchange}' cannot be used: {}",
            describe(&error)
        ));
    }
    let channel = open(link, until).await?;
    declare(&channel, false).await.map_err(|error| {
        format!(
            "exchange '{exchange}' cannot be declared: {}",
            describe(&error)
        )
    })?;
    tracing::info!(%exchange, "the exchange was absent and has been declared");
    Ok(channel)
}

async fn open(link: &Arc<Link>, until: Instant) -> Result<Channel, String> {
    link.channel(until).await.map_err(|error| error.detail)
}

async fn close(channel: &Channel) {
    // A channel that cannot be closed is closed.
    let _ = channel.close(200, "done".into()).await;
}

/// The reply code (AMQP 0.9.1 section 1.2, constants) with which the broker refused something.
pub(crate) fn code(error: &lapin::Error) -> Option<u16> {
    reply(error).map(|(code, _)| code)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::time::Duration;

    use xbus_core::problem::{Place, Problems};
    use xbus_core::spec::{Build, Key, Node, Raw, Role, Scalar};
    use xbus_core::transform::{CompileError, Compiler, Scope, Source};
    use xbus_core::{Expression, Transform};

    use super::*;

    struct NoCompiler;

    impl Compiler for NoCompiler {
        fn transform(&self, _: Source<'_>, _: &Scope) -> Result<Arc<dyn Transform>, CompileError> {
            unreachable!("bindings have no transformations")
        }

        fn expression(&self, _: &str, _: &Scope) -> Result<Arc<dyn Expression>, CompileError> {
            unreachable!("bindings have no expressions")
        }
    }

    fn node(value: &serde_json::Value) -> Node {
        use serde_json::Value;
        let place = Place::file(Path::new("r.yaml"));
        let raw = match value {
            Value::Array(items) => Raw::List(items.iter().map(node).collect()),
            Value::Object(entries) => {
                let entry = |(name, value): (&String, &Value)| {
                    let key = Key {
                        name: name.clone(),
                        place: place.clone(),
                    };
                    (key, node(value))
                };
                Raw::Map(entries.iter().map(entry).collect())
            }
            scalar => Raw::Scalar(Scalar {
                text: scalar
                    .as_str()
                    .map_or_else(|| scalar.to_string(), str::to_owned),
                literal: Vec::new(),
                secret: false,
            }),
        };
        Node { place, raw }
    }

    /// The bindings, or what is wrong with them.
    fn parse(value: serde_json::Value) -> Result<Vec<Bind>, String> {
        let problems = Problems::new();
        let node = node(&value);
        let build = Build {
            route: "r".into(),
            step: "receive".into(),
            role: Role::Other,
            bus: "bus".into(),
            node: "node".into(),
            root: Path::new("/"),
            compiler: &NoCompiler,
            scope: &Scope::default(),
            connections: &BTreeMap::new(),
            timeout: Duration::from_secs(5),
            max_body: 1000,
            problems: &problems,
        };
        let parsed = Bind::parse(&"q".into(), &Args::new(Some(&node), FIELDS, &build));
        let texts: Vec<String> = problems
            .into_sorted()
            .into_iter()
            .map(|p| p.message)
            .collect();
        parsed.ok_or_else(|| texts.join("; "))
    }

    #[test]
    fn one_binding_a_key_or_one_with_headers() {
        let topic =
            serde_json::json!({ "exchange": "shop", "type": "topic", "keys": ["a.*", "b.#"] });
        let binds = parse(topic).unwrap();
        let keys: Vec<&str> = binds.iter().map(|bind| bind.binding.key.as_str()).collect();
        assert_eq!(keys, ["a.*", "b.#"]);
        assert_eq!(binds[0].kind, Some(ExchangeKind::Topic));
        let fanout = parse(serde_json::json!({ "exchange": "all" })).unwrap();
        assert_eq!((fanout.len(), fanout[0].binding.key.as_str()), (1, ""));
        assert_eq!(fanout[0].kind, None);
        let headers = serde_json::json!({
            "exchange": "by", "type": "headers", "match": "any", "headers": { "country": "DE", "size": 3 }
        });
        let binds = parse(headers).unwrap();
        let arguments = binds[0].binding.arguments.inner();
        assert_eq!(arguments["x-match"], AMQPValue::LongString("any".into()));
        assert_eq!(arguments["country"], AMQPValue::LongString("DE".into()));
        assert_eq!(arguments["size"], AMQPValue::LongLongInt(3));
    }

    #[test]
    fn bindings_that_can_get_nothing_are_refused() {
        for (value, what) in [
            (
                serde_json::json!({ "exchange": "e", "type": "topic" }),
                "needs keys",
            ),
            (
                serde_json::json!({ "exchange": "e", "type": "headers" }),
                "names no headers",
            ),
            (
                serde_json::json!({ "exchange": "e", "keys": "k", "headers": { "a": 1 } }),
                "either keys or headers",
            ),
            (
                serde_json::json!({ "exchange": "amq.topic", "type": "topic", "keys": "k" }),
                "belong to the broker",
            ),
            (
                serde_json::json!({ "exchange": "", "keys": "k" }),
                "is empty",
            ),
            (
                serde_json::json!({ "exchange": "e", "keys": "k".repeat(256) }),
                "255 bytes",
            ),
        ] {
            let error = parse(value).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn queues_are_declared_so_that_nothing_drops_a_message() {
        let arguments = arguments(true);
        let of = |name: &str| arguments.inner().get(name).cloned();
        assert_eq!(
            of("x-queue-type"),
            Some(AMQPValue::LongString("quorum".into()))
        );
        assert_eq!(of("x-delivery-limit"), Some(AMQPValue::LongInt(NO_LIMIT)));
        assert_eq!(
            of("x-single-active-consumer"),
            Some(AMQPValue::Boolean(true))
        );
        assert!(!super::arguments(false).contains_key("x-single-active-consumer"));
    }
}
