//! The sender: publishes with confirms, or, as a step of `invoke`, asks and waits for the reply.
//!
//! Absent: exchanges that a message chooses. The routing key is a message's to say; where it can
//! lead is the broker's bindings' to say.

use std::sync::Arc;
use std::time::Duration;

use xbus_charset::Writing;
use xbus_core::adapter::{Reach, Stage};
use xbus_core::spec::{Args, Field, Role, Type};
use xbus_core::template::Template;
use xbus_core::{Code, Context, Fault, Format, Message, Request, Sender};

use crate::link::Link;
use crate::request::Asking;
use crate::stage::{Outgoing, Staged};

/// What can stand under `amqp` in a step or target.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("connection", Type::Connection(&["amqp"]), "The broker.").required(),
    Field::new(
        "exchange",
        Type::Text,
        "The exchange; it must be there. Left out: the default exchange, whose routing key is the \
         name of a queue.",
    )
    .default(""),
    Field::new(
        "routing_key",
        Type::Template,
        "The routing key, at most 255 bytes. Fanout and headers exchanges need none.",
    ),
    Field::new(
        "persistent",
        Type::Bool,
        "The message outlives a restart of the broker, in a queue that does.",
    )
    .default("true"),
    Field::new(
        "mandatory",
        Type::Bool,
        "A message that no queue takes is a failure. `false`: it is lost without a word.",
    )
    .default("true"),
    Field::new(
        "envelope",
        Type::Choice(&["none", "xbus"]),
        "`xbus`: the body becomes one XML document that holds the whole message.",
    )
    .default("none"),
    Field::new(
        "charset",
        xbus_charset::TYPE,
        "Publishes the text in this charset (IANA label); XML declaration and content type say so. \
         Left out: the bytes as they are.",
    ),
    Field::new(
        "headers",
        Type::Map(&Type::Template),
        "Further application headers, beside those of the message.",
    ),
    Field::new(
        "expiration",
        Type::Duration,
        "The broker drops the message when it has waited for longer in a queue.",
    ),
    Field::new(
        "priority",
        Type::Count(0, 255),
        "The priority, for queues that have priorities.",
    ),
    Field::new(
        "reply",
        Type::Object(REPLY),
        "In `invoke`: how the reply is waited for.",
    ),
];

const REPLY: &[Field] = &[Field::new(
    "timeout",
    Type::Duration,
    "How long the reply may take. Left out: the step's `timeout`.",
)];

struct AmqpSender {
    link: Arc<Link>,
    exchange: Arc<str>,
    routing_key: Template,
    persistent: bool,
    mandatory: bool,
    envelope: bool,
    charset: Option<Writing>,
    headers: Vec<(String, Template)>,
    expiration: Option<Duration>,
    priority: Option<u8>,
    /// In `invoke`: how long the reply may take at most.
    asks: Option<Duration>,
    bus: Arc<str>,
    timeout: Duration,
    max_body: u64,
}

/// Builds a sender from what the step says.
pub(crate) fn build(args: Args<'_>) -> Option<Arc<dyn Sender>> {
    let problems = args.build.problems;
    let exchange = args.text("exchange").unwrap_or_default();
    let routing_key = match args.has("routing_key") {
        true => args.template("routing_key")?,
        false => Template::constant(""),
    };
    let mut good = true;
    let mut wrong = |key: &str, code: &'static str, what: &str, help: &str| {
        good = false;
        problems.error(&args.place(key), code, what, help);
    };
    let constant = routing_key.as_constant();
    if exchange.is_empty() && constant == Some("") {
        wrong(
            "routing_key",
            "no-destination",
            "there is neither an exchange nor a routing key",
            "write 'exchange', or the name of a queue as 'routing_key'",
        );
    }
    if exchange.len() > 255 || constant.is_some_and(|key| key.len() > 255) {
        wrong(
            "routing_key",
            "bad-name",
            "exchange and routing key have at most 255 bytes in AMQP",
            "write a shorter one",
        );
    }
    let headers = args.entries("headers").iter();
    let headers: Option<Vec<(String, Template)>> = headers
        .map(|(key, node)| Some((key.name.clone(), args.build.template(node)?)))
        .collect();
    let charset = Writing::read(args, "charset");
    if args.has("charset") && args.text("envelope").as_deref() == Some("xbus") {
        wrong(
            "charset",
            "useless-key",
            "an envelope is always UTF-8 and keeps the body's bytes",
            "take 'charset' or 'envelope' away",
        );
    }
    let asks = args.build.role == Role::Invoke;
    if args.has("reply") && !asks {
        problems.warning(
            &args.place("reply"),
            "useless-key",
            "a target waits for no reply",
            "move the step to 'invoke', or take 'reply' away",
        );
    }
    if asks && !args.boolean("mandatory") {
        problems.warning(
            &args.place("mandatory"),
            "useless-key",
            "a request is always mandatory: without a queue there is no reply",
            "take 'mandatory' away",
        );
    }
    let (link, headers) = (
        args.build.connection::<Link>(&args.text("connection")?)?,
        headers.filter(|_| good)?,
    );
    let reply = args.object("reply", REPLY);
    Some(Arc::new(AmqpSender {
        link,
        exchange: Arc::from(exchange),
        routing_key,
        persistent: args.boolean("persistent"),
        mandatory: args.boolean("mandatory"),
        envelope: args.text("envelope").as_deref() == Some("xbus"),
        charset: charset?,
        headers,
        expiration: args.duration("expiration"),
        priority: args
            .count("priority")
            .and_then(|count| count.try_into().ok()),
        asks: asks.then(|| reply.duration("timeout").unwrap_or(args.build.timeout)),
        bus: args.build.bus.clone(),
        timeout: args.build.timeout,
        max_body: args.build.max_body,
    }))
}

impl AmqpSender {
    /// The message as it is published.
    fn outgoing(&self, message: &Arc<Message>, context: &Context) -> Result<Outgoing, Fault> {
        let routing_key = self.routing_key.render(message, context)?;
        if routing_key.len() > 255 {
            return Err(Fault::new(
                Code::TooLarge,
                format!(
                    "the routing key has {} bytes, AMQP takes 255",
                    routing_key.len()
                ),
            ));
        }
        let mut sent = match (&self.charset, self.envelope) {
            (_, true) => {
                let mut wrapped = message.with_body(xbus_envelope::write(message));
                let content_type = Format::Xml.media_type();
                wrapped.headers.set("content-type", content_type);
                wrapped.format = Some(Format::Xml);
                wrapped
            }
            (Some(charset), _) => charset.apply(message)?,
            _ => (**message).clone(),
        };
        for (name, value) in &self.headers {
            sent.headers.set(name, &value.render(message, context)?);
        }
        Ok(Outgoing {
            exchange: self.exchange.clone(),
            routing_key: Arc::from(routing_key),
            persistent: self.persistent,
            mandatory: self.mandatory,
            expiration: self.expiration,
            priority: self.priority,
            message: sent,
        })
    }
}

impl Sender for AmqpSender {
    fn reach(&self) -> Reach {
        match self.asks {
            Some(_) => Reach::OneShot,
            None => Reach::Staged,
        }
    }

    fn make(&self, message: Arc<Message>, context: &Context) -> Result<Request, Fault> {
        let outgoing = self.outgoing(&message, context)?;
        let publish = outgoing.publish(&self.bus)?;
        let link = self.link.clone();
        Ok(match self.asks {
            Some(timeout) => Request::Call(Box::new(Asking {
                link,
                publish,
                message,
                timeout,
                max_body: self.max_body,
            })),
            None => Request::Stage(Box::new(Staged {
                link,
                publish,
                outgoing,
                timeout: self.timeout,
            })),
        })
    }

    fn resume(&self, token: &[u8]) -> Option<Box<dyn Stage>> {
        let outgoing = Outgoing::decode(token)?;
        Some(Box::new(Staged {
            link: self.link.clone(),
            publish: outgoing.publish(&self.bus).ok()?,
            outgoing,
            timeout: self.timeout,
        }))
    }
}
