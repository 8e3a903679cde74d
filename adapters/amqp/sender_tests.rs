//! What the sender and the connection make of what is written; nothing here needs a broker.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use xbus_core::adapter::{ConnectionHealth, ConnectionPhase, Reach, Stage};
use xbus_core::spec::{Connection, Role};
use xbus_core::{Context, Message, Request, Sender};

use crate::link::{Link, Links};
use crate::settings::{self, Settings};
use crate::stage::Outgoing;
use crate::testing::built;

fn read(written: serde_json::Value) -> (Option<Settings>, Vec<&'static str>) {
    built(written, settings::FIELDS, Role::Other, None, |args| {
        settings::read(&args)
    })
}

pub(crate) fn link() -> Arc<Link> {
    let (settings, problems) = read(json!({ "url": "amqp://127.0.0.1:1" }));
    assert_eq!(problems, [""; 0]);
    Links::default().link(settings.unwrap())
}

fn sender(written: serde_json::Value, role: Role) -> (Option<Arc<dyn Sender>>, Vec<&'static str>) {
    let rabbit: Connection = link();
    let fields = crate::sender::FIELDS;
    built(written, fields, role, Some(rabbit), crate::sender::build)
}

fn message() -> Arc<Message> {
    let mut message = Message::new("<a/>");
    message.headers.set("country", "de");
    message.headers.set("content-type", "application/xml");
    Arc::new(message)
}

fn staged(written: serde_json::Value) -> (Arc<dyn Sender>, Box<dyn Stage>) {
    let (sender, problems) = sender(written, Role::Target);
    assert_eq!(problems, [""; 0]);
    let sender = sender.unwrap();
    assert_eq!(sender.reach(), Reach::Staged);
    let message = message();
    let context = Context::new(Arc::from("route"), message.clone());
    match sender.make(message, &context).unwrap() {
        Request::Stage(stage) => (sender, stage),
        _ => panic!("a target is staged"),
    }
}

#[test]
fn a_connection_has_defaults() {
    let (settings, problems) = read(json!({ "url": "amqp://localhost" }));
    assert_eq!(problems, [""; 0]);
    let settings = settings.unwrap();
    assert_eq!(settings.user, "guest");
    assert_eq!(settings.heartbeat, Duration::from_secs(5));
    assert_eq!(settings.timeout, Duration::from_secs(10));
    assert_eq!(settings.renew_after, Duration::from_secs(25 * 60));
    assert_eq!(&*settings.name, "rabbit");
}

#[test]
fn what_is_wrong_with_a_connection_is_told_at_once() {
    let url = "amqp://localhost";
    for (written, code) in [
        (json!({ "url": "localhost" }), "bad-url"),
        (json!({ "url": url, "heartbeat": "250ms" }), "bad-heartbeat"),
        (json!({ "url": url, "timeout": "0s" }), "bad-timeout"),
        (json!({ "url": url, "user": "u" }), "bad-login"),
        (
            json!({ "url": "amqp://u:password@localhost", "user": "u", "password": "p" }),
            "bad-login",
        ),
        (
            json!({ "url": url, "tls": { "ca": "ca.pem" } }),
            "useless-tls",
        ),
        (
            json!({ "url": "amqps://localhost", "tls": { "cert": "c.pem" } }),
            "bad-identity",
        ),
        (
            json!({ "url": url, "queues": [{ "name": "q", "durable": "false" }] }),
            "bad-queue",
        ),
        (
            json!({ "url": url, "exchanges": [{ "name": "", "type": "direct" }] }),
            "bad-name",
        ),
        (
            json!({ "url": url, "queues": [{ "name": "q", "arguments": { "x": [1] } }] }),
            "bad-argument",
        ),
    ] {
        let (settings, problems) = read(written.clone());
        assert!(settings.is_none(), "{written}");
        assert_eq!(problems, [code], "{written}");
    }
}

#[test]
fn a_password_in_the_clear_is_warned_of() {
    let (settings, problems) = read(json!({ "url": "amqp://u:password@rabbit.example" }));
    assert!(settings.is_some());
    assert_eq!(problems, ["clear-password"]);
}

#[test]
fn exchanges_queues_and_bindings_are_read() {
    let (settings, problems) = read(json!({
        "url": "amqp://localhost",
        "exchanges": [{ "name": "erp", "type": "topic" }],
        "queues": [{
            "name": "orders",
            "dead_letter": { "routing_key": "lost" },
            "arguments": { "x-max-length": "10" },
            "bind": [
                { "exchange": "erp", "keys": ["order.*", "return.#"] },
                { "exchange": "amq.headers", "match": "any", "headers": { "country": "de" } },
            ],
        }],
    }));
    assert_eq!(problems, [""; 0]);
    let topology = settings.unwrap().topology;
    assert!(topology.exchanges[0].durable && !topology.exchanges[0].internal);
    let arguments = format!("{:?}", topology.queues[0].arguments);
    for part in ["x-queue-type", "x-dead-letter-exchange", "LongLongInt(10)"] {
        assert!(arguments.contains(part), "{arguments}");
    }
    let keys: Vec<&str> = topology
        .bindings
        .iter()
        .map(|one| one.key.as_str())
        .collect();
    assert_eq!(keys, ["order.*", "return.#", ""]);
    assert!(topology.bindings[2].arguments.contains_key("x-match"));
}

#[test]
fn the_same_settings_are_the_same_connection() {
    let links = Links::default();
    let settings = |heartbeat: &str| {
        let written = json!({ "url": "amqp://localhost", "heartbeat": heartbeat });
        read(written).0.unwrap()
    };
    let first = links.link(settings("5s"));
    assert!(Arc::ptr_eq(&first, &links.link(settings("5s"))));
    let other = links.link(settings("6s"));
    assert!(!Arc::ptr_eq(&first, &other));
    assert!(Arc::ptr_eq(&other, &links.link(settings("6s"))));
    let stop = first.stop.clone();
    drop(first);
    assert!(stop.is_cancelled(), "nobody uses the first any more");
    assert_eq!(other.state().phase, ConnectionPhase::Idle);
    assert!(!other.is_up());
}

#[test]
fn a_target_goes_to_an_exchange_under_a_key_of_the_message() {
    let (sender, stage) = staged(json!({
        "connection": "rabbit",
        "exchange": "erp",
        "routing_key": "order.{{ country }}",
        "headers": { "x-from": "{{ country }}" },
        "expiration": "90s",
        "priority": "3",
    }));
    let outgoing = Outgoing::decode(&stage.token()).unwrap();
    let publish = outgoing.publish("bus").unwrap();
    assert_eq!(
        (&*publish.exchange, &*publish.routing_key),
        ("erp", "order.de")
    );
    let properties = &publish.properties;
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(*properties.priority(), Some(3));
    let expiration = properties.expiration().as_ref().unwrap();
    assert_eq!(expiration.as_str(), "90000");
    let id = outgoing.message.id.to_string();
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), id);
    let headers = properties.headers().as_ref().unwrap();
    assert!(headers.contains_key("x-from") && headers.contains_key("country"));
    assert!(sender.resume(&stage.token()).is_some());
    assert!(sender.resume(b"something else").is_none());
}

#[test]
fn an_envelope_holds_the_whole_message() {
    let (_, stage) = staged(json!({
        "connection": "rabbit", "routing_key": "orders", "envelope": "xbus", "persistent": "false",
    }));
    let outgoing = Outgoing::decode(&stage.token()).unwrap();
    let publish = outgoing.publish("bus").unwrap();
    assert_eq!(*publish.properties.delivery_mode(), Some(1));
    let inner = xbus_envelope::read(&publish.body).unwrap();
    assert_eq!(inner.body.bytes().as_ref(), b"<a/>");
    assert_eq!(inner.headers.get("country"), Some("de"));
}

#[test]
fn a_step_of_invoke_asks() {
    let written =
        json!({ "connection": "rabbit", "routing_key": "stock", "reply": { "timeout": "2s" } });
    let (made, problems) = sender(written.clone(), Role::Invoke);
    assert_eq!(problems, [""; 0]);
    let made = made.unwrap();
    assert_eq!(made.reach(), Reach::OneShot);
    let message = message();
    let context = Context::new(Arc::from("route"), message.clone());
    assert!(matches!(made.make(message, &context), Ok(Request::Call(_))));
    let (made, problems) = sender(written, Role::Target);
    assert!(made.is_some());
    assert_eq!(problems, ["useless-key"]);
}

#[test]
fn a_sender_needs_somewhere_to_send() {
    let (made, problems) = sender(json!({ "connection": "rabbit" }), Role::Target);
    assert!(made.is_none());
    assert_eq!(problems, ["no-destination"]);
    let long = "k".repeat(256);
    let written = json!({ "connection": "rabbit", "routing_key": long });
    assert_eq!(sender(written, Role::Target).1, ["bad-name"]);
}

#[test]
fn a_key_that_becomes_too_long_touches_nothing() {
    let written = json!({ "connection": "rabbit", "routing_key": "{{ long }}" });
    let made = sender(written, Role::Target).0.unwrap();
    let mut message = (*message()).clone();
    message.headers.set("long", &"k".repeat(256));
    let message = Arc::new(message);
    let context = Context::new(Arc::from("route"), message.clone());
    let fault = made.make(message, &context).err().unwrap();
    assert!(fault.rejected && fault.reason.contains("256"), "{fault}");
}

#[tokio::test]
async fn a_broker_that_is_not_there_fails_before_the_deadline() {
    let link = link();
    let publish = crate::link::Publish {
        exchange: "".into(),
        routing_key: "q".into(),
        properties: lapin::BasicProperties::default(),
        body: bytes::Bytes::new(),
    };
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    let error = link.publish(publish.clone(), until).await.unwrap_err();
    assert_eq!(error.class, xbus_core::adapter::Class::Outage);
    assert!(
        !error.timed_out && error.detail.contains("127.0.0.1:1"),
        "{}",
        error.detail
    );
    assert!(link.state().error.is_some());
    // One that has no time left was not sent either.
    let error = link
        .publish(publish, tokio::time::Instant::now())
        .await
        .unwrap_err();
    assert_eq!(error.class, xbus_core::adapter::Class::Outage);
    assert!(error.timed_out);
}
