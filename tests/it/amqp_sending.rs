//! Publishing to RabbitMQ and asking over it: what no queue has confirmed is a failure, all or
//! nothing with other targets, and replies find who asked.

use std::collections::HashSet;

use lapin::ExchangeKind;
use lapin::types::AMQPValue;

use crate::amqp::{
    bus_yaml, incidents, installation, metric, wait_for_incident, wait_for_no_incident,
};
use crate::support::amqp::{Answer, Client, Message, Responder};
use crate::support::rabbit::Rabbit;
use crate::support::{Installation, Response, post, request, wait_for};

/// A route that publishes what is posted.
fn sending(path: &str, amqp: &str) -> String {
    format!(
        "receive: {{ http: {{ path: /{path} }} }}\ndistribute:\n  - name: q\n    timeout: 5s\n    amqp: {{ connection: rabbit, {amqp} }}\n"
    )
}

#[track_caller]
fn is_failed(answer: &Response) {
    assert_eq!(answer.status, 502, "{}", answer.text());
    let fault = &answer.json()["fault"];
    assert_eq!(
        (&fault["code"], &fault["step"]),
        (&"destination".into(), &"q".into())
    );
    assert!(!answer.text().contains("127.0.0.1"), "{}", answer.text());
}

#[test]
fn a_published_message_is_persistent_and_says_what_it_is() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    client.queue_with("out", [("x-max-priority", AMQPValue::LongInt(9))]);
    client.exchange("x", ExchangeKind::Topic);
    client.bind("out", "x", "order.#");
    let installation = installation(&vhost.url());
    installation.route(
        "r",
        &sending(
            "r",
            "exchange: x, routing_key: 'order.{{ header(\"X-Country\") }}', expiration: 1h, priority: 7, headers: { kind: '{{ body.len() }} bytes' }",
        ),
    );
    let bus = installation.start();
    let answer = request(
        bus.http,
        "POST",
        "/r",
        &[
            ("Content-Type", "text/plain; charset=iso-8859-1"),
            ("X-Country", "de"),
            ("X-Correlation-Id", "c-9"),
            ("Authorization", "Basic c2VjcmV0"),
        ],
        b"Gr\xfc\xdfe",
    )
    .expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json_or_xml_status(), "delivered");
    let got = client.get("out").expect("confirmed, so it is there");
    let said = &got.properties;
    assert_eq!(*said.delivery_mode(), Some(2));
    assert_eq!(
        (got.exchange.as_str(), got.routing_key.as_str()),
        ("x", "order.de")
    );
    assert_eq!(got.body, b"Gr\xfc\xdfe");
    assert_eq!(got.message_id(), Some(answer.id()));
    assert_eq!(got.correlation_id().as_deref(), Some("c-9"));
    assert_eq!(
        got.content_type().as_deref(),
        Some("text/plain; charset=iso-8859-1")
    );
    assert_eq!(
        said.expiration()
            .as_ref()
            .map(ToString::to_string)
            .as_deref(),
        Some("3600000")
    );
    assert_eq!(*said.priority(), Some(7));
    assert_eq!(
        said.app_id().as_ref().map(ToString::to_string).as_deref(),
        Some("test")
    );
    assert!(said.timestamp().is_some());
    // AMQP tells names apart by case; HTTP does not, and what it brings is in lower case.
    assert_eq!(got.header("x-country").as_deref(), Some("de"));
    assert_eq!(got.header("kind").as_deref(), Some("5 bytes"));
    assert!(!format!("{got:?}").contains("c2VjcmV0"), "{got:?}");
}

/// Each is a failure of which nothing is acknowledged, an incident, and over when it is mended.
#[test]
fn what_the_broker_does_not_take_is_a_failure_until_it_is_mended() {
    let rabbit = Rabbit::shared();
    let vhost = rabbit.vhost();
    let client = Client::connect(&vhost.url());
    client.exchange("bare", ExchangeKind::Direct);
    client.exchange("guarded", ExchangeKind::Fanout);
    client.queue("out");
    client.bind("out", "guarded", "");
    client.queue_with(
        "full",
        [
            ("x-max-length", AMQPValue::LongInt(1)),
            ("x-overflow", AMQPValue::LongString("reject-publish".into())),
        ],
    );
    client.send("full", "fills it");
    rabbit.add_user("reader", "r");
    rabbit.permit("reader", vhost.name(), ["", "", ".*"]);
    let installation = Installation::new();
    let reader = rabbit.url_of("reader", "r", vhost.name());
    installation.file(
        "xbus.yaml",
        bus_yaml(
            &vhost.url(),
            "",
            &format!("  reader: {{ amqp: {{ url: \"{reader}\" }} }}\n"),
        ),
    );
    let routes = [
        ("unrouted", "exchange: bare, routing_key: nowhere", "bind"),
        ("queueless", "routing_key: missing", "there is no queue"),
        (
            "absent",
            "exchange: missing, routing_key: k",
            "there is no exchange",
        ),
        ("guarded", "exchange: guarded", "permission"),
        ("full", "routing_key: full", "full"),
    ];
    for (name, amqp, _) in routes {
        let route = sending(name, amqp);
        let route = match name {
            "guarded" => route.replace("rabbit", "reader"),
            _ => route,
        };
        installation.route(name, &route);
    }
    let bus = installation.start();
    for round in 1..=2 {
        for (name, _, why) in routes {
            let answer = post(bus.http, &format!("/{name}"), "text/plain", b"lost?");
            is_failed(&answer);
            let incident = wait_for_incident(&bus, name, "q");
            assert!(incident.contains(why), "{name}: {incident}");
            assert_eq!(
                bus.json(&["messages", "show", &answer.id()])["outcome"],
                "failed"
            );
        }
        assert_eq!(incidents(&bus).len(), routes.len(), "round {round}");
    }
    assert_eq!(client.depth("full"), 1);
    assert!(metric(&bus, "xbus_connection_nacked_total{connection=\"rabbit\"}") >= 2.0);
    assert!(
        metric(
            &bus,
            "xbus_connection_returned_total{connection=\"rabbit\"}"
        ) >= 2.0
    );

    client.bind("out", "bare", "nowhere");
    client.queue("missing");
    client.exchange("missing", ExchangeKind::Direct);
    client.bind("out", "missing", "k");
    rabbit.permit("reader", vhost.name(), ["", "guarded", ".*"]);
    client.purge("full");
    for (name, ..) in routes {
        let answer = post(bus.http, &format!("/{name}"), "text/plain", name.as_bytes());
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
    }
    wait_for_no_incident(&bus);
    let mut out = client.texts("out", 3);
    out.sort();
    assert_eq!(out, ["absent", "guarded", "unrouted"]);
    assert_eq!(client.texts("missing", 1), ["queueless"]);
    assert_eq!(client.texts("full", 1), ["full"]);
    assert_eq!(client.depth("out"), 0, "nothing of what failed");
}

/// A file and a queue in one sync distribution: before the decision nothing is visible, after it
/// nothing is taken back.
#[test]
fn a_file_and_a_queue_get_a_message_both_or_neither() {
    let rabbit = Rabbit::start();
    let client = Client::connect(&rabbit.url());
    let installation = installation(&rabbit.url());
    installation.route(
        "r",
        "receive: { http: { path: /r } }
distribute:
  - name: archive
    file: { dir: archive, name: '{{ body }}.txt' }
  - name: q
    timeout: 20s
    retry: { attempts: 1 }
    amqp: { connection: rabbit, exchange: x, routing_key: k }
",
    );
    let bus = installation.start();
    let send = |body: &str| post(bus.http, "/r", "text/plain", body.as_bytes());

    // Staging finds no exchange.
    is_failed(&send("one"));
    assert!(installation.names("archive").is_empty());
    // It finds the exchange, and after the decision the broker finds no queue.
    client.exchange("x", ExchangeKind::Direct);
    let accepted = send("two");
    assert_eq!(accepted.json_or_xml_status(), "accepted", "{accepted:?}");
    assert_eq!(installation.names("archive"), ["two.txt"]);
    let shown = bus.json(&["messages", "show", &accepted.id()]);
    assert_eq!(shown["outcome"], "pending", "{shown}");
    assert_eq!(shown["targets"][1]["outcome"], "queued", "{shown}");
    let incident = wait_for_incident(&bus, "r", "q");
    assert!(incident.contains("no queue bound"), "{incident}");
    client.queue("out");
    client.bind("out", "x", "k");
    let got = client.take("out", 1).remove(0);
    assert_eq!(
        (got.text(), got.message_id()),
        ("two".into(), Some(accepted.id()))
    );
    wait_for("the journal to know", || {
        let shown = bus.json(&["messages", "show", &accepted.id()]);
        (shown["outcome"] == "delivered").then_some(())
    });
    wait_for_no_incident(&bus);

    // The broker falls silent, and is killed when the decision has been taken.
    assert_eq!(send("three").json_or_xml_status(), "delivered");
    client.take("out", 1);
    rabbit.settle();
    rabbit.pause();
    let accepted = std::thread::scope(|scope| {
        let caller = scope.spawn(|| send("four"));
        wait_for("the file to be visible", || {
            installation
                .names("archive")
                .contains(&"four.txt".to_owned())
                .then_some(())
        });
        assert!(!caller.is_finished(), "nothing is confirmed yet");
        wait_for("the journal to say that it is not done yet", || {
            let shown = bus.json(&["messages", "--limit", "1"])[0].clone();
            (shown["outcome"] == "pending" && shown["targets"][1]["outcome"] == "queued")
                .then_some(())
        });
        rabbit.kill();
        caller.join().expect("an answer")
    });
    assert_eq!(accepted.json_or_xml_status(), "accepted", "{accepted:?}");
    // Down altogether: nothing is decided.
    let refused = send("five");
    assert!([502, 504].contains(&refused.status), "{}", refused.text());
    assert_eq!(
        installation.names("archive"),
        ["four.txt", "three.txt", "two.txt"]
    );
    rabbit.restart();
    let client = Client::connect(&rabbit.url());
    let got = wait_for("the message to be there", || {
        // What the test had taken may be back after the kill.
        client.get("out").filter(|got| got.text() != "three")
    });
    assert_eq!(
        (got.text(), got.message_id()),
        ("four".into(), Some(accepted.id()))
    );
    wait_for("the journal to know", || {
        let shown = bus.json(&["messages", "show", &accepted.id()]);
        (shown["outcome"] == "delivered").then_some(())
    });

    // The bus is killed when the decision has been taken, and goes on when it runs again.
    wait_for("the broker to be used again", || {
        (send("warm").status == 200).then_some(())
    });
    client.drain("out");
    rabbit.pause();
    std::thread::scope(|scope| {
        let http = bus.http;
        scope.spawn(move || request(http, "POST", "/r", &[], b"six").map_err(|_| ()));
        wait_for("the file to be visible", || {
            installation
                .names("archive")
                .contains(&"six.txt".to_owned())
                .then_some(())
        });
        bus.kill();
    });
    let bus = installation.start();
    let newest = || bus.json(&["messages", "--limit", "1"])[0].clone();
    let entry = newest();
    assert_eq!(entry["outcome"], "pending", "{entry}");
    assert_eq!(entry["targets"][0]["outcome"], "queued", "{entry}");
    rabbit.resume();
    wait_for("the journal to know", || {
        (newest()["outcome"] == "delivered").then_some(())
    });
    let got = client.drain("out");
    let ids: HashSet<Option<String>> = got.iter().map(|got| got.message_id()).collect();
    assert!((1..=2).contains(&got.len()), "{got:?}");
    assert_eq!(
        ids,
        HashSet::from([entry["id"].as_str().map(str::to_owned)])
    );
    assert!(got.iter().all(|got| got.text() == "six"));
}

#[test]
fn a_step_asks_over_amqp_and_a_late_reply_is_dropped_and_counted() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    client.queue("prices");
    let installation = installation(&vhost.url());
    let ask = |path: &str, queue: &str, timeout: &str| {
        format!(
            "receive: {{ http: {{ path: /{path} }} }}\ninvoke:\n  - name: ask\n    timeout: 50s\n    amqp: {{ connection: rabbit, routing_key: {queue}, reply: {{ timeout: {timeout} }} }}\n"
        )
    };
    installation
        .route("prices", &ask("prices", "prices", "40s"))
        .route("hasty", &ask("hasty", "prices", "2s"))
        .route("nobody", &ask("nobody", "nobody", "40s"))
        .route("bus", &ask("bus", "bus", "40s"))
        .route(
            "serves",
            "receive: { amqp: { connection: rabbit, queue: bus, declare: true } }\nreply: { transform: serve.rhai }\n",
        )
        .script(
            "serve.rhai",
            "if body == \"bad\" { fail(\"client\", \"not this\") }\nheaders[\"X-Seen\"] = correlation_id;\n\"served \" + body",
        );
    let bus = installation.start();
    let post = |path: &str, body: &str| post(bus.http, path, "text/plain", body.as_bytes());
    let responder = Responder::on(&vhost.url(), "prices", |got| {
        let reply = Message::new(format!("{} costs 7", got.text()))
            .with(|p| p.with_content_type("text/plain".into()))
            .header("X-Price", "7");
        match got.text().as_str() {
            "late" => Answer::Held(reply),
            "never" => Answer::Never,
            _ => Answer::Now(reply),
        }
    });
    let answer = post("/prices", "pear");
    assert_eq!((answer.status, answer.text()), (200, "pear costs 7".into()));
    let got = responder.wait_for_count(1).remove(0);
    assert_eq!(got.message_id(), Some(answer.id()));
    assert_eq!(*got.properties.delivery_mode(), Some(2));
    assert!(got.reply_to().is_some() && got.correlation_id().is_some());

    // Too late, and never: unknown outcomes, and the reply that comes later is nobody else's.
    for body in ["late", "never"] {
        let answer = post("/hasty", body);
        assert_eq!(answer.status, 504, "{}", answer.text());
        let code = answer.json()["fault"]["code"].clone();
        assert!(code == "timeout" || code == "in-doubt", "{code}");
    }
    const LATE: &str = "xbus_connection_late_replies_total{connection=\"rabbit\"}";
    assert_eq!(metric(&bus, LATE), 0.0);
    assert_eq!(responder.release(), 1);
    wait_for("the late reply to be counted", || {
        (metric(&bus, LATE) == 1.0).then_some(())
    });
    assert_eq!(post("/prices", "plum").text(), "plum costs 7");

    // Many at once: everybody gets the own answer.
    std::thread::scope(|scope| {
        let post = &post;
        let askers: Vec<_> = (0..20)
            .map(|number| {
                let body = format!("n{number}");
                scope.spawn(move || (post("/prices", &body).text(), body))
            })
            .collect();
        for asker in askers {
            let (answer, body) = asker.join().expect("an answer");
            assert_eq!(answer, format!("{body} costs 7"));
        }
    });
    assert_eq!(metric(&bus, LATE), 1.0);

    // A lost connection is an unknown outcome for who waits, and the next one asks again.
    responder.now(|_| Answer::Never);
    std::thread::scope(|scope| {
        let before = responder.got().len();
        let caller = scope.spawn(|| post("/prices", "lost"));
        responder.wait_for_count(before + 1);
        vhost.close_connections();
        let answer = caller.join().expect("an answer");
        assert_eq!(answer.status, 504, "{}", answer.text());
    });
    let _responder = Responder::on(&vhost.url(), "prices", |_| Answer::Now("back".into()));
    wait_for("the connection to be back", || {
        (post("/hasty", "again").text() == "back").then_some(())
    });

    // Nobody there; and another route of a bus as the one who answers.
    let answer = post("/nobody", "?");
    assert_eq!(answer.status, 502, "{}", answer.text());
    let answer = post("/bus", "this");
    assert_eq!((answer.status, answer.text()), (200, "served this".into()));
    let answer = post("/bus", "bad");
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(answer.json()["fault"]["step"], "ask");
}
