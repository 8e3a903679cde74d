//! What administrators see of the queue that an `amqp` receiver works off, and do with its messages.

use serde_json::Value;

use crate::amqp::{
    installation, installation_with, to_http, wait_for_no_incident, wait_for_reader,
};
use crate::support::amqp::{Client, Message};
use crate::support::rabbit::{Options, Rabbit};
use crate::support::{Answer, Bus, Destination, wait_for};

/// A head that failed waits until somebody does something about it.
const PATIENT: &str = "retry: { first: 1h, max: 1h }";

/// Refuses everything for now.
fn down() -> Destination {
    Destination::with(|_| Answer::Status(503, "text/plain", b"closed".to_vec()))
}

/// Waits until the head of a queue has failed so often, and gives the queue.
#[track_caller]
fn wait_for_head(bus: &Bus<'_>, queue: &str, attempts: u64) -> Value {
    wait_for(
        &format!("a head of {queue} that failed {attempts} times"),
        || {
            let status = bus.queue(queue);
            (status["head"]["attempts"].as_u64() == Some(attempts)).then_some(status)
        },
    )
}

/// Waits until a queue has so much of something.
#[track_caller]
fn wait_for_count(bus: &Bus<'_>, queue: &str, what: &str, count: u64) {
    wait_for(&format!("{what} {count} of {queue}"), || {
        (bus.queue(queue)[what].as_u64() == Some(count)).then_some(())
    });
}

/// The ids of what a queue shows.
fn ids(shown: &Value, list: &str) -> Vec<String> {
    let entries = shown[list].as_array().expect("a list");
    let id = |entry: &Value| entry["id"].as_str().expect("an id").to_owned();
    entries.iter().map(id).collect()
}

/// What the destination took, in order.
fn delivered(destination: &Destination, from: usize) -> Vec<String> {
    destination.texts().split_off(from)
}

#[test]
fn a_blocked_queue_is_shown_and_its_messages_are_tried_parked_and_released() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    let destination = down();
    let installation = installation(&vhost.url());
    installation.route(
        "orders",
        &to_http(
            &format!("queue: orders, declare: true, {PATIENT}"),
            &destination,
        ),
    );
    let bus = installation.start();
    wait_for_reader(&client, "orders");
    let idle = bus.queue("rabbit/orders");
    assert_eq!(
        (&idle["state"], &idle["head"]),
        (&"idle".into(), &Value::Null)
    );
    assert_eq!(
        (&idle["connection"], &idle["route"]),
        (&"rabbit".into(), &"orders".into())
    );

    client.send_all("orders", ["1", "2", "3", "4"]);
    wait_for_head(&bus, "rabbit/orders", 1);
    wait_for_count(&bus, "rabbit/orders", "depth", 4);
    let shown = bus.json(&["queues", "show", "rabbit/orders"]);
    assert_eq!(
        (&shown["state"], &shown["blocked_keys"]),
        (&"blocked".into(), &1.into())
    );
    let error = shown["head"]["last_error"].as_str().expect("an error");
    assert!(error.contains("503"), "{error}");
    assert!(shown["head"]["next_try"].is_string(), "{shown}");
    let waiting = ids(&shown, "waiting_messages");
    assert_eq!(
        (waiting.len(), shown["head"]["id"].as_str()),
        (4, Some(&*waiting[0]))
    );
    let text = installation.xbus(&["queues", "show", "rabbit/orders"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("route orders, which receives from it"),
        "{text}"
    );
    assert!(text.contains("xbus queues retry rabbit/orders"), "{text}");
    let journal = bus.json(&["messages", "--outcome", "pending"]);
    assert_eq!(journal[0]["id"].as_str(), Some(&*waiting[0]), "{journal}");

    let done = bus.json(&["queues", "retry", "rabbit/orders"]);
    assert_eq!(done["results"][0]["heads"], 1, "{done}");
    wait_for_head(&bus, "rabbit/orders", 2);
    let behind = installation.xbus(&["queues", "retry", "rabbit/orders", &waiting[2]]);
    assert_eq!(behind.status.code(), Some(1), "only heads are tried");

    for (at, reason) in ["no customer", "no price"].into_iter().enumerate() {
        let done = bus.json(&["queues", "park", "rabbit/orders", "--reason", reason]);
        assert_eq!(
            done["results"][0]["id"].as_str(),
            Some(&*waiting[at]),
            "{done}"
        );
        wait_for(&format!("the head behind {at}"), || {
            let head = &bus.queue("rabbit/orders")["head"];
            let next = head["id"].as_str() == Some(&*waiting[at + 1]);
            (next && head["attempts"] == 1).then_some(())
        });
    }
    let shown = bus.json(&["queues", "show", "rabbit/orders"]);
    assert_eq!((&shown["depth"], &shown["parked"]), (&2.into(), &2.into()));
    assert_eq!(ids(&shown, "parked_messages"), waiting[..2]);
    let parked = &shown["parked_messages"][0];
    assert_eq!(
        (&parked["parked"], &parked["attempts"]),
        (&"no customer".into(), &2.into())
    );
    assert!(
        parked["last_error"]
            .as_str()
            .is_some_and(|error| error.contains("503")),
        "{parked}"
    );
    client.wait_for_depth("orders.parked", 2);

    // Released they run in their old order, before the head too, which came after them.
    let released = [
        "queues",
        "release",
        "rabbit/orders",
        &waiting[1],
        &waiting[0],
    ];
    assert_eq!(bus.json(&released)["done"], 2);
    wait_for_count(&bus, "rabbit/orders", "parked", 0);
    wait_for_count(&bus, "rabbit/orders", "depth", 4);
    let head = wait_for_head(&bus, "rabbit/orders", 3);
    assert_eq!(head["head"]["id"].as_str(), Some(&*waiting[0]), "{head}");
    assert_eq!(head["blocked_keys"], 1, "the other head waits: {head}");
    let shown = bus.json(&["queues", "show", "rabbit/orders"]);
    assert_eq!(ids(&shown, "waiting_messages"), waiting);
    let twice = installation.xbus(&["queues", "release", "rabbit/orders", &waiting[0]]);
    assert_eq!(twice.status.code(), Some(1), "it is parked no more");
    let before = destination.count();
    destination.now(|_| Answer::ok());
    bus.json(&["queues", "retry", "rabbit/orders"]);
    destination.wait_for_count(before + 4);
    assert_eq!(delivered(&destination, before), ["1", "2", "3", "4"]);
    wait_for_count(&bus, "rabbit/orders", "depth", 0);
    wait_for_no_incident(&bus);
    let journal = bus.json(&["messages", "--outcome", "delivered"]);
    assert_eq!(journal.as_array().map(Vec::len), Some(4), "{journal}");
    assert_eq!(bus.stop().code(), Some(0));
    assert_eq!(
        (client.depth("orders"), client.depth("orders.parked")),
        (0, 0)
    );
}

#[test]
fn heads_and_parked_messages_are_dropped_and_the_journal_says_so() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    let destination = down();
    let installation = installation(&vhost.url());
    installation.route(
        "orders",
        &to_http(
            &format!("queue: orders, declare: true, {PATIENT}"),
            &destination,
        ),
    );
    let bus = installation.start();
    wait_for_reader(&client, "orders");
    client.send_all("orders", ["1", "2", "3"]);
    let first = wait_for_head(&bus, "rabbit/orders", 1)["head"]["id"].clone();
    let first = first.as_str().expect("an id");
    let dropped = bus.json(&["queues", "drop", "rabbit/orders", first]);
    assert_eq!(dropped["done"], 1, "{dropped}");
    let second = wait_for("the second at the head", || {
        let head = bus.queue("rabbit/orders")["head"].clone();
        (head["id"] != first && head["attempts"] == 1).then(|| head["id"].clone())
    });
    let second = second.as_str().expect("an id");
    bus.json(&["queues", "park", "rabbit/orders", second]);
    wait_for_count(&bus, "rabbit/orders", "parked", 1);
    // Somebody else's message lies there too.
    client.send("orders.parked", Message::from("theirs"));
    let shown = bus.json(&["queues", "show", "rabbit/orders"]);
    let parked = ids(&shown, "parked_messages");
    assert_eq!((parked.len(), parked[0].as_str()), (2, second));
    bus.json(&["queues", "drop", "rabbit/orders", second]);
    wait_for_count(&bus, "rabbit/orders", "parked", 1);
    for id in [first, second] {
        let entry = bus.json(&["messages", "show", id]);
        assert_eq!(entry["outcome"], "failed", "{entry}");
        let again = installation.xbus(&["queues", "drop", "rabbit/orders", id]);
        assert_eq!(again.status.code(), Some(1));
    }
    for wrong in [
        &["queues", "move", "rabbit/orders", "--to", "embedded"][..],
        &["queues", "show", "rabbit/other"],
        &["queues", "retry", "orders"],
    ] {
        let refused = installation.xbus(wrong);
        assert_eq!(refused.status.code(), Some(1), "{wrong:?}");
    }
    wait_for_head(&bus, "rabbit/orders", 1);
    destination.now(|_| Answer::ok());
    bus.json(&["queues", "release", "rabbit/orders", &parked[1]]);
    let before = destination.count();
    bus.json(&["queues", "retry", "rabbit/orders"]);
    destination.wait_for_count(before + 2);
    assert_eq!(delivered(&destination, before), ["3", "theirs"]);
    wait_for_count(&bus, "rabbit/orders", "depth", 0);
    assert_eq!(
        (client.depth("orders"), client.depth("orders.parked")),
        (0, 0)
    );
}

/// What was rejected can be released when it is mended; while it is held, channels are renewed, and it
/// keeps its place before the rest.
#[test]
fn a_released_message_keeps_its_place_when_the_channel_is_renewed() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    let destination = Destination::with(|got| match got.text().as_str() {
        "bad" => Answer::Status(400, "text/plain", b"no number".to_vec()),
        _ => Answer::ok(),
    });
    let installation = installation_with(&vhost.url(), ", renew_after: 1s");
    installation.route(
        "orders",
        &to_http(
            "queue: orders, declare: true, on_reject: park, retry: { first: 200ms, max: 200ms }",
            &destination,
        ),
    );
    let bus = installation.start();
    wait_for_reader(&client, "orders");
    client.send_all(
        "orders",
        ["1", "bad", "2"].map(|body| {
            Message::from(body)
                .header("X-Body", body)
                .with(|p| p.with_message_id(body.into()))
        }),
    );
    wait_for_count(&bus, "rabbit/orders", "parked", 1);
    destination.wait_for_count(3);
    let shown = bus.json(&["queues", "show", "rabbit/orders"]);
    let parked = &shown["parked_messages"][0];
    let why = parked["parked"].as_str().expect("a reason");
    assert!(why.contains("400") && why.contains("no number"), "{why}");
    let id = parked["id"].as_str().expect("an id");

    destination.now(|_| Answer::Status(503, "text/plain", Vec::new()));
    bus.json(&["queues", "release", "rabbit/orders", id]);
    client.send_all("orders", ["3", "4"]);
    wait_for("two renewals", || {
        let renewed = installation.log().matches("the channel is renewed").count();
        (renewed >= 2).then_some(())
    });
    let head = wait_for("the released one at the head", || {
        let head = bus.queue("rabbit/orders")["head"].clone();
        (head["attempts"].as_u64() > Some(2)).then_some(head)
    });
    assert_eq!(head["id"], id);
    wait_for_count(&bus, "rabbit/orders", "depth", 3);
    let tried = destination.texts();
    assert!(!tried.iter().any(|body| body == "3"), "{tried:?}");
    destination.now(|_| Answer::ok());
    wait_for_count(&bus, "rabbit/orders", "depth", 0);
    let mut all = destination.texts();
    all.dedup();
    assert_eq!(all, ["1", "bad", "2", "bad", "3", "4"]);
    wait_for_count(&bus, "rabbit/orders", "parked", 0);
    wait_for_no_incident(&bus);

    // Without a bus what is parked lies at the broker, and what was released and not delivered too.
    destination.now(|_| Answer::Status(400, "text/plain", Vec::new()));
    client.send("orders", "5");
    wait_for_count(&bus, "rabbit/orders", "parked", 1);
    destination.now(|_| Answer::Status(503, "text/plain", Vec::new()));
    let shown = bus.json(&["queues", "show", "rabbit/orders"]);
    let id = &ids(&shown, "parked_messages")[0];
    bus.json(&["queues", "release", "rabbit/orders", id]);
    wait_for_count(&bus, "rabbit/orders", "depth", 1);
    bus.kill();
    client.wait_for_depth("orders.parked", 1);
    assert_eq!(client.depth("orders"), 0);
}

/// With keys a released message goes before the others of its key and holds up nobody else.
#[test]
fn a_released_message_is_one_of_its_key() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    let destination = Destination::with(|got| match got.text().starts_with('a') {
        true => Answer::Status(503, "text/plain", Vec::new()),
        false => Answer::ok(),
    });
    let installation = installation(&vhost.url());
    installation.route(
        "orders",
        &to_http(
            &format!("queue: orders, declare: true, order_by: 'header(\"key\")', {PATIENT}"),
            &destination,
        ),
    );
    let bus = installation.start();
    wait_for_reader(&client, "orders");
    client.send_all(
        "orders",
        ["a1", "b1", "a2", "a3", "b2"].map(|body| Message::from(body).header("key", &body[..1])),
    );
    wait_for_head(&bus, "rabbit/orders", 1);
    wait_for_count(&bus, "rabbit/orders", "depth", 3);
    let shown = bus.json(&["queues", "show", "rabbit/orders"]);
    assert_eq!(shown["blocked_keys"], 1);
    assert_eq!(shown["waiting_messages"][0]["key"], "a", "{shown}");
    let first = ids(&shown, "waiting_messages").remove(0);
    bus.json(&["queues", "park", "rabbit/orders", &first]);
    wait_for("a2 at the head", || {
        let head = bus.queue("rabbit/orders")["head"].clone();
        (head["id"] != first && head["attempts"] == 1).then_some(())
    });
    bus.json(&["queues", "release", "rabbit/orders", &first]);
    wait_for("a1 at the head again", || {
        let head = bus.queue("rabbit/orders")["head"].clone();
        (head["id"] == *first && head["attempts"] == 2).then_some(())
    });
    client.send("orders", Message::from("b3").header("key", "b"));
    wait_for("b3", || {
        destination.texts().contains(&"b3".to_owned()).then_some(())
    });
    let before = destination.count();
    destination.now(|_| Answer::ok());
    bus.json(&["queues", "retry", "rabbit/orders"]);
    destination.wait_for_count(before + 3);
    assert_eq!(delivered(&destination, before), ["a1", "a2", "a3"]);
}

/// Looking often leaves no errors behind at the broker, and what is wrong is said.
#[test]
fn looking_at_queues_troubles_nobody_and_a_queue_that_cannot_be_read_says_why() {
    let rabbit = Options::new().start();
    let client = Client::connect(&rabbit.url());
    client.queue("there");
    let destination = Destination::start();
    let installation = installation(&rabbit.url());
    installation
        .route("there", &to_http("queue: there", &destination))
        .route("missing", &to_http("queue: missing", &destination));
    let bus = installation.start();
    wait_for_reader(&client, "there");
    let missing = wait_for("the trouble to be known", || {
        let missing = bus.queue("rabbit/missing");
        let why = missing["trouble"].as_str()?.to_owned();
        why.contains("there is no queue 'missing'")
            .then_some(missing)
    });
    assert_eq!(
        (&missing["state"], &missing["depth"]),
        (&"blocked".into(), &0.into())
    );
    for _ in 0..5 {
        assert_eq!(bus.queue("rabbit/there")["state"], "idle");
    }
    let log = rabbit.log();
    let errors = log.matches("no queue 'there.parked'").count();
    assert!(errors <= 1, "{errors} errors:\n{log}");
    rabbit.kill();
    wait_for("the broker's absence to be known", || {
        let there = bus.queue("rabbit/there");
        let why = there["trouble"].as_str()?;
        why.contains("connection 'rabbit'").then_some(())
    });
}
