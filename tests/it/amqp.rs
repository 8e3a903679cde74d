//! Receiving from RabbitMQ when all is well or an administrator mends it: what reaches the message,
//! bindings, answers, what is set aside, queues that are not there, envelopes, TLS, reloads.
//!
//! What happens when broker or bus are killed stands in `amqp_outages`, sending in `amqp_sending`.

use lapin::ExchangeKind;
use lapin::types::AMQPValue;
use serde_json::Value;

use crate::support::amqp::{Client, Message};
use crate::support::bus::signal;
use crate::support::rabbit::{Options, Rabbit};
use crate::support::{Answer, Bus, Destination, Installation, get, wait_for};

/// Quick retries of a receiver.
pub const FAST: &str = "retry: { first: 30ms, max: 100ms }";

/// An installation with the connection `rabbit`.
pub fn installation(url: &str) -> Installation {
    installation_with(url, "")
}

/// The same with further keys of the connection: `", renew_after: 1s"`.
pub fn installation_with(url: &str, options: &str) -> Installation {
    let installation = Installation::new();
    installation.file("xbus.yaml", bus_yaml(url, options, ""));
    installation
}

/// xbus.yaml with the connection `rabbit`, and more of them, each `"  NAME: …\n"`.
pub fn bus_yaml(url: &str, options: &str, more: &str) -> String {
    format!(
        "name: test\nhttp: {{ listen: \"127.0.0.1:0\" }}\nadmin: {{ listen: \"127.0.0.1:0\" }}\njournal: {{ payloads: all }}\nconnections:\n  rabbit: {{ amqp: {{ url: \"{url}\"{options} }} }}\n{more}"
    )
}

/// A route from a queue to a destination.
pub fn to_http(receive: &str, destination: &Destination) -> String {
    format!(
        "receive:\n  amqp: {{ connection: rabbit, {receive} }}\ndistribute:\n  - name: t\n    http: {{ url: \"{}\" }}\n",
        destination.url("/t")
    )
}

/// Waits until the bus reads a queue, which it may have to declare first.
#[track_caller]
pub fn wait_for_reader(client: &Client, queue: &str) {
    wait_for(&format!("a reader of {queue}"), || {
        (client.exists(queue) && client.consumers(queue) > 0).then_some(())
    });
}

/// The open incidents.
pub fn incidents(bus: &Bus<'_>) -> Vec<Value> {
    let open = get(bus.admin, "/api/v1/incidents").json();
    open.as_array().expect("a list").clone()
}

/// Waits until a step of a route has an open incident, and gives its last error.
#[track_caller]
pub fn wait_for_incident(bus: &Bus<'_>, route: &str, step: &str) -> String {
    wait_for(&format!("an incident of {route}/{step}"), || {
        let open = incidents(bus);
        let found = open
            .iter()
            .find(|open| open["route"] == route && open["step"] == step)?;
        Some(found["last_error"].as_str().expect("an error").to_owned())
    })
}

#[track_caller]
pub fn wait_for_no_incident(bus: &Bus<'_>) {
    wait_for("every incident to be over", || {
        incidents(bus).is_empty().then_some(())
    });
}

/// The value of a metric that starts with this.
#[track_caller]
pub fn metric(bus: &Bus<'_>, start: &str) -> f64 {
    let text = get(bus.admin, "/metrics").text();
    let line = text.lines().find(|line| line.starts_with(start));
    let line = line.unwrap_or_else(|| panic!("no {start} in\n{text}"));
    let (_, value) = line.rsplit_once(' ').expect("a value");
    value.parse().expect("a number")
}

/// What the publisher says of a message reaches scripts, and the route's reply reaches the publisher.
#[test]
fn properties_and_headers_reach_the_message_and_the_reply_its_publisher() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    client.queue("asked");
    client.queue("answers");
    let installation = installation(&vhost.url());
    installation
        .route(
            "echo",
            "receive: { amqp: { connection: rabbit, queue: asked } }\nreply: { transform: echo.rhai }\n",
        )
        .script(
            "echo.rhai",
            "if body == \"no\" { fail(\"client\", \"not this\") }\n#{ headers: headers, correlation: correlation_id, id: id, body: body }",
        );
    let bus = installation.start();
    client.send(
        "asked",
        Message::new(b"Gr\xfc\xdfe".to_vec())
            .with(|p| {
                p.with_message_id("m-1".into())
                    .with_correlation_id("c-1".into())
                    .with_content_type("text/plain; charset=iso-8859-1".into())
                    .with_reply_to("answers".into())
                    .with_expiration("600000".into())
                    .with_priority(3)
                    .with_type("greeting".into())
                    .with_app_id("shop".into())
                    .with_timestamp(1_795_334_400)
            })
            .header("X-Customer", "Müller & Söhne")
            .header("http.status", "forged")
            .header("Authorization", "Basic secret")
            .header_value("count", AMQPValue::LongInt(-7))
            .header_value("flag", AMQPValue::Boolean(true)),
    );
    let answer = client.take("answers", 1).remove(0);
    assert_eq!(answer.correlation_id().as_deref(), Some("c-1"));
    assert_eq!(answer.content_type().as_deref(), Some("application/json"));
    let said: Value = serde_json::from_str(&answer.text()).expect("JSON");
    assert_eq!(said["body"], "Grüße");
    assert_eq!(said["correlation"], "c-1");
    assert_eq!(said["id"], answer.message_id().expect("an id"));
    for (name, value) in [
        ("amqp.message-id", "m-1"),
        ("amqp.correlation-id", "c-1"),
        ("amqp.reply-to", "answers"),
        ("amqp.expiration", "600000"),
        ("amqp.priority", "3"),
        ("amqp.type", "greeting"),
        ("amqp.app-id", "shop"),
        ("amqp.timestamp", "2026-11-22T08:00:00.000Z"),
        ("amqp.exchange", ""),
        ("amqp.routing-key", "asked"),
        ("amqp.redelivered", "false"),
        ("content-type", "text/plain; charset=iso-8859-1"),
        ("X-Customer", "Müller & Söhne"),
        ("count", "-7"),
        ("flag", "true"),
    ] {
        assert_eq!(said["headers"][name], value, "{name} in {said}");
    }
    let text = said.to_string();
    assert!(
        !text.contains("forged") && !text.contains("secret"),
        "{text}"
    );

    // A fault is an answer as well; nothing stays behind, and nobody is told who did not ask.
    for body in ["no", "yes"] {
        let ask = Message::from(body).with(|p| {
            p.with_reply_to("answers".into())
                .with_message_id("m-2".into())
        });
        client.send("asked", ask);
    }
    let answers = client.take("answers", 2);
    let fault: Value = serde_json::from_str(&answers[0].text()).expect("JSON");
    assert_eq!(fault["fault"]["code"], "client", "{fault}");
    assert_eq!(fault["fault"]["reason"], "not this", "{fault}");
    assert_eq!(answers[0].header("x-xbus-fault").as_deref(), Some("client"));
    // Without a correlation id an answer is known by the id of the question.
    assert_eq!(answers[1].correlation_id().as_deref(), Some("m-2"));
    client.send("asked", "nobody waits");
    client.send(
        "asked",
        Message::from("gone").with(|p| p.with_reply_to("no such queue".into())),
    );
    client.wait_for_depth("asked", 0);
    assert_eq!(bus.stop().code(), Some(0));
    // What is not acknowledged would be back in the queue.
    assert_eq!((client.depth("asked"), client.depth("answers")), (0, 0));
}

#[test]
fn a_queue_is_bound_to_exchanges_of_each_type() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    client.exchange("there", ExchangeKind::Topic);
    let destination = Destination::start();
    let installation = installation(&vhost.url());
    installation.route(
        "r",
        &format!(
            "receive:
  amqp:
    connection: rabbit
    queue: all
    bind:
      - {{ exchange: d, type: direct, keys: [one, two] }}
      - {{ exchange: t, type: topic, keys: 'order.*.new' }}
      - {{ exchange: f, type: fanout }}
      - {{ exchange: h, type: headers, match: any, headers: {{ country: de, size: 7 }} }}
      - {{ exchange: h, type: headers, match: all, headers: {{ country: fr, urgent: true }} }}
      - {{ exchange: there, keys: 'a.#' }}
distribute:
  - name: t
    http: {{ url: \"{}\", headers: {{ X-Exchange: '{{{{ header(\"amqp.exchange\") }}}}', X-Key: '{{{{ header(\"amqp.routing-key\") }}}}' }} }}
",
            destination.url("/t")
        ),
    );
    let _bus = installation.start();
    wait_for_reader(&client, "all");
    let text = |text: &str| AMQPValue::LongString(text.into());
    let sent = [
        ("d", "one", Message::from("1")),
        ("d", "two", "2".into()),
        ("t", "order.de.new", "3".into()),
        ("f", "whatever", "4".into()),
        ("h", "", Message::from("5").header("country", "de")),
        (
            "h",
            "",
            Message::from("6").header_value("size", AMQPValue::LongInt(7)),
        ),
        (
            "h",
            "",
            Message::from("7")
                .header("country", "fr")
                .header_value("urgent", AMQPValue::Boolean(true)),
        ),
        ("there", "a.b.c", "8".into()),
    ];
    for (exchange, key, message) in &sent {
        client.publish(exchange, key, message.clone());
    }
    for (exchange, key, message) in [
        ("d", "three", Message::from("x")),
        ("t", "order.de.old", "x".into()),
        (
            "h",
            "",
            Message::from("x").header_value("country", text("fr")),
        ),
        ("there", "b.a", "x".into()),
    ] {
        let refused = client.try_publish(exchange, key, message);
        assert_eq!(refused, Err("312 NO_ROUTE".to_owned()), "{exchange} {key}");
    }
    let got = destination.wait_for_count(sent.len());
    let got: Vec<(String, String, String)> = got
        .iter()
        .map(|got| {
            let header = |name| got.header(name).unwrap_or_default().to_owned();
            (header("X-Exchange"), header("X-Key"), got.text())
        })
        .collect();
    let expected: Vec<(String, String, String)> = sent
        .iter()
        .map(|(exchange, key, message)| {
            let body = String::from_utf8_lossy(&message.body).into_owned();
            ((*exchange).to_owned(), (*key).to_owned(), body)
        })
        .collect();
    assert_eq!(got, expected, "each once, in order");
}

/// What is missing at the broker is an incident that says what to do, and over when it is there.
#[test]
fn what_the_broker_lacks_or_refuses_is_an_incident_until_it_is_mended() {
    let rabbit = Rabbit::shared();
    let vhost = rabbit.vhost();
    let client = Client::connect(&vhost.url());
    for queue in ["unbound", "denied"] {
        client.queue(queue);
    }
    rabbit.add_user("nobody", "it's secret");
    rabbit.permit("nobody", vhost.name(), ["", "", ""]);
    let denied = rabbit.url_of("nobody", "it's%20secret", vhost.name());
    let destination = Destination::start();
    let installation = Installation::new();
    installation.file(
        "xbus.yaml",
        bus_yaml(
            &vhost.url(),
            "",
            &format!("  denied: {{ amqp: {{ url: \"{denied}\" }} }}\n"),
        ),
    );
    installation
        .route("missing", &to_http("queue: missing", &destination))
        .route(
            "unbound",
            &to_http(
                "queue: unbound, bind: { exchange: absent, keys: k }",
                &destination,
            ),
        )
        .route(
            "denied",
            &to_http("queue: denied", &destination).replace("rabbit", "denied"),
        );
    let bus = installation.start();
    let missing = wait_for_incident(&bus, "missing", "receive");
    assert!(missing.contains("there is no queue 'missing'"), "{missing}");
    assert!(missing.contains("declare"), "{missing}");
    let unbound = wait_for_incident(&bus, "unbound", "receive");
    assert!(unbound.contains("exchange 'absent'"), "{unbound}");
    let refused = wait_for_incident(&bus, "denied", "receive");
    assert!(refused.contains("permission"), "{refused}");
    assert!(!installation.log().contains("it's secret"));

    client.queue("missing");
    client.exchange("absent", ExchangeKind::Direct);
    rabbit.permit("nobody", vhost.name(), ["", "", "denied"]);
    for queue in ["missing", "unbound", "denied"] {
        client.send(queue, queue);
    }
    destination.wait_for_count(3);
    client.publish("absent", "k", "bound");
    let mut texts: Vec<String> = destination
        .wait_for_count(4)
        .iter()
        .map(crate::support::destination::Got::text)
        .collect();
    texts.sort();
    assert_eq!(texts, ["bound", "denied", "missing", "unbound"]);
    wait_for_no_incident(&bus);

    // A queue that goes away under its reader is read again when it is back.
    client.delete("missing");
    wait_for("the deletion to be an incident", || {
        wait_for_incident(&bus, "missing", "receive")
            .contains("there is no queue 'missing'")
            .then_some(())
    });
    client.queue("missing");
    client.send("missing", "back");
    destination.wait_for_count(5);
    wait_for_no_incident(&bus);
    assert_eq!(bus.stop().code(), Some(0));
    assert_eq!(client.depth("missing"), 0);
}

#[test]
fn a_declared_queue_that_is_deleted_under_its_reader_is_declared_again() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    let destination = Destination::start();
    let installation = installation(&vhost.url());
    installation.route(
        "r",
        &to_http(
            "queue: own, bind: { exchange: x, type: fanout }",
            &destination,
        ),
    );
    let _bus = installation.start();
    for round in 1..=3 {
        wait_for_reader(&client, "own");
        client.publish("x", "", "m");
        destination.wait_for_count(round);
        client.delete("own");
    }
}

/// The classic form: the head is tried until it is done, and what is behind it waits.
#[test]
fn a_failing_head_is_held_and_what_is_behind_it_waits() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    client.quorum("in");
    let numbers: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    client.send_all("in", numbers.iter().map(String::as_str));
    let destination = Destination::with(|_| Answer::Status(503, "text/plain", Vec::new()));
    let installation = installation(&vhost.url());
    installation.route("r", &to_http(&format!("queue: in, {FAST}"), &destination));
    let bus = installation.start();
    destination.wait_for_count(4);
    assert!(destination.texts().iter().all(|text| text == "0"));
    let down = wait_for_incident(&bus, "r", "t");
    assert!(down.contains("503"), "{down}");
    let waiting = bus.json(&["messages", "--outcome", "pending"]);
    assert_eq!(waiting.as_array().map(Vec::len), Some(1), "{waiting}");

    destination.now(|_| Answer::ok());
    client.wait_for_depth("in", 0);
    wait_for("the last message", || {
        (destination.texts().last() == numbers.last()).then_some(())
    });
    let got = destination.got();
    let tries = got.iter().filter(|got| got.text() == "0").count();
    let mut bodies = destination.texts();
    bodies.dedup();
    assert_eq!(bodies, numbers);
    assert_eq!(got.len(), tries + 19, "each of the others once");
    let ids: Vec<&str> = got
        .iter()
        .filter_map(|got| got.header("X-Message-Id"))
        .collect();
    assert!(ids[..tries].iter().all(|id| *id == ids[0]), "{ids:?}");
    wait_for_no_incident(&bus);
    let entry = wait_for("the journal to know", || {
        let entry = bus.json(&["messages", "show", ids[0]]);
        (entry["outcome"] == "delivered").then_some(entry)
    });
    assert_eq!(
        entry["targets"][0]["attempts"].as_u64(),
        u64::try_from(tries).ok(),
        "{entry}"
    );
}

#[test]
fn a_rejected_message_is_set_aside_with_why_and_the_next_goes_on() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    client.quorum("in");
    client.queue("copies");
    let destination = Destination::with(|got| match got.text().as_str() {
        "poison" => Answer::Status(422, "text/plain", b"bad field".to_vec()),
        _ => Answer::ok(),
    });
    let installation = installation(&vhost.url());
    installation.route(
        "r",
        &to_http(
            &format!("queue: in, envelope: none, on_reject: park, {FAST}"),
            &destination,
        ),
    );
    client.send("in", "before");
    client.send(
        "in",
        Message::from("poison")
            .with(|p| {
                p.with_message_id("m-7".into())
                    .with_content_type("text/plain".into())
                    .with_expiration("600000".into())
            })
            .header("X-Customer", "C7")
            .header_value(
                "CC",
                AMQPValue::FieldArray(vec![AMQPValue::LongString("copies".into())].into()),
            ),
    );
    client.send("in", "after");
    let bus = installation.start();
    destination.wait_for_count(3);
    assert_eq!(destination.texts(), ["before", "poison", "after"]);
    let parked = wait_for("the message to be parked", || {
        (client.exists("in.parked") && client.depth("in.parked") == 1)
            .then(|| client.take("in.parked", 1).remove(0))
    });
    assert_eq!(parked.text(), "poison");
    assert_eq!(parked.message_id().as_deref(), Some("m-7"));
    assert_eq!(parked.content_type().as_deref(), Some("text/plain"));
    assert_eq!(parked.header("X-Customer").as_deref(), Some("C7"));
    let said = |name: &str| parked.header(name).unwrap_or_default();
    assert!(said("x-xbus-reason").contains("422"), "{parked:?}");
    assert_eq!(said("x-xbus-queue"), "in");
    assert_eq!(said("x-xbus-route"), "r");
    assert_eq!(said("x-xbus-expiration"), "600000");
    assert!(
        parked.properties.expiration().is_none(),
        "nothing drops it from there"
    );
    let id = said("x-xbus-id");
    assert_eq!(bus.json(&["messages", "show", &id])["outcome"], "failed");
    wait_for_no_incident(&bus);
    assert_eq!(bus.stop().code(), Some(0));
    assert_eq!(client.depth("in"), 0);
    assert_eq!(
        client.depth("copies"),
        1,
        "the publisher's copy, and no other"
    );
}

/// With `envelope: xbus` a message comes out as it went in, whatever it holds.
#[test]
fn an_envelope_brings_any_message_back_as_it_was() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    for queue in ["in", "wrapped", "copies", "out"] {
        client.quorum(queue);
    }
    client.exchange("split", ExchangeKind::Fanout);
    client.bind("wrapped", "split", "");
    client.bind("copies", "split", "");
    let installation = installation(&vhost.url());
    installation
        .route(
            "wrap",
            "receive: { amqp: { connection: rabbit, queue: in } }\ndistribute:\n  - name: q\n    amqp: { connection: rabbit, exchange: split, envelope: xbus }\n",
        )
        .route(
            "unwrap",
            "receive: { amqp: { connection: rabbit, queue: wrapped, envelope: xbus } }\ndistribute:\n  - name: q\n    amqp: { connection: rabbit, routing_key: out }\n",
        );
    let every: Vec<u8> = (0..=255).collect();
    let odd = [
        ("application/octet-stream", every.clone()),
        ("text/plain; charset=iso-8859-15", b"10 \xa4".to_vec()),
        ("text/xml; charset=utf-16", b"\xff\xfe<\0a\0/\0>\0".to_vec()),
        ("application/json", b"{\"a\":\"]]>\\u0000<&\"}\r\n".to_vec()),
        ("text/plain", b"\xef\xbb\xbf bom, \r\n and end \t".to_vec()),
        ("", Vec::new()),
        ("application/x-\u{1}odd", b"\0".to_vec()),
    ];
    let _bus = installation.start();
    for (number, (content_type, body)) in odd.iter().enumerate() {
        let mut message = Message::new(body.clone())
            .with(|p| p.with_correlation_id(format!("c\u{7}-{number}").into()))
            .header("X-Customer", "Müller \u{0} & <Söhne> ]]>")
            .header("  blank\tname \u{e4}", " \r\n ")
            .header("empty", "");
        if !content_type.is_empty() {
            message = message.with(|p| p.with_content_type((*content_type).into()));
        }
        client.send("in", message);
    }
    let out = client.take("out", odd.len());
    for (number, ((content_type, body), got)) in odd.iter().zip(&out).enumerate() {
        assert_eq!(&got.body, body, "{content_type}");
        assert_eq!(
            got.content_type().as_deref().unwrap_or_default(),
            *content_type
        );
        assert_eq!(got.correlation_id(), Some(format!("c\u{7}-{number}")));
        assert_eq!(
            got.header("X-Customer").as_deref(),
            Some("Müller \u{0} & <Söhne> ]]>")
        );
        assert_eq!(
            got.header("  blank\tname \u{e4}").as_deref(),
            Some(" \r\n ")
        );
        assert_eq!(got.header("empty").as_deref(), Some(""));
    }
    for copy in client.take("copies", odd.len()) {
        assert!(
            copy.content_type()
                .is_some_and(|given| given.starts_with("application/xml")),
            "{copy:?}"
        );
        assert!(copy.text().contains("urn:xbus:message:1"), "{copy:?}");
        assert_eq!(*copy.properties.delivery_mode(), Some(2));
    }
}

#[test]
fn a_broker_is_reached_through_tls_and_only_where_its_certificate_is_trusted() {
    let rabbit = Options::new().tls().start();
    let client = Client::connect_tls(&rabbit.tls_url(), &rabbit.ca());
    for queue in ["in", "other"] {
        client.queue(queue);
    }
    let destination = Destination::start();
    let installation = Installation::new();
    installation.file(
        "xbus.yaml",
        bus_yaml(
            &rabbit.tls_url(),
            &format!(", tls: {{ ca: \"{}\" }}", rabbit.ca().display()),
            &format!(
                "  distrusted: {{ amqp: {{ url: \"{}\" }} }}\n",
                rabbit.tls_url()
            ),
        ),
    );
    installation
        .route("r", &to_http("queue: in", &destination))
        .route(
            "other",
            &to_http("queue: other", &destination).replace("rabbit", "distrusted"),
        );
    let bus = installation.start();
    client.send("in", "sealed");
    client.send("other", "x");
    destination.wait_for_count(1);
    let why = wait_for_incident(&bus, "other", "receive");
    assert!(why.to_lowercase().contains("certificate"), "{why}");
    assert_eq!(destination.texts(), ["sealed"]);
}

/// A reload that leaves a connection as it is does not close it.
#[test]
fn a_reload_keeps_the_connection() {
    let rabbit = Rabbit::shared();
    let vhost = rabbit.vhost();
    let client = Client::connect(&vhost.url());
    for queue in ["in", "two", "out"] {
        client.queue(queue);
    }
    let connections = || {
        rabbit.eval(&format!(
            "lists:sort([P || P <- rabbit_networking:connections(), \
             (catch rabbit_networking:connection_info(P, [vhost])) =:= [{{vhost, <<\"{}\">>}}]])",
            vhost.name()
        ))
    };
    let alone = connections();
    let installation = installation(&vhost.url());
    let route = |from: &str, greeting: &str| {
        format!(
            "receive: {{ amqp: {{ connection: rabbit, queue: {from} }} }}\ndistribute:\n  - name: q\n    amqp: {{ connection: rabbit, routing_key: out, headers: {{ greeting: {greeting} }} }}\n"
        )
    };
    installation.route("r", &route("in", "hello"));
    let bus = installation.start();
    client.send("in", "1");
    assert_eq!(
        client.take("out", 1)[0].header("greeting").as_deref(),
        Some("hello")
    );
    let before = connections();
    assert_ne!(before, alone);
    for (round, (from, greeting)) in [("in", "salut"), ("two", "ciao")].iter().enumerate() {
        installation.route("r", &route(from, greeting));
        signal(bus.pid(), "HUP");
        wait_for("the reload", || {
            (installation.log().matches("reloaded").count() > round).then_some(())
        });
        client.send(from, "2");
        assert_eq!(
            client.take("out", 1)[0].header("greeting").as_deref(),
            Some(*greeting)
        );
        assert_eq!(connections(), before);
    }
    wait_for("the queue to be left alone", || {
        (client.consumers("in") == 0).then_some(())
    });
}
