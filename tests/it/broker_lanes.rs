//! Lanes on RabbitMQ when the broker is well: order, what blocks, and what administrators do.
//!
//! What the other files of this name share stands here as well. They try outages of the broker,
//! several nodes, and lanes that move.

use std::net::SocketAddr;
use std::ops::Range;

use serde_json::Value;

use crate::lanes::Keep;
use crate::support::amqp::Client;
use crate::support::destination::Got;
use crate::support::rabbit::Rabbit;
use crate::support::{Answer, Bus, Destination, Installation, get, post, wait_for};

/// Retries quickly.
pub const FAST: &str = "{ retry: { first: 20ms, max: 100ms } }";

/// xbus.yaml of a node whose queues are where `queues` says; `options` are further keys of the
/// connection, `more` is further lines.
pub fn bus_yaml(url: &str, node: &str, queues: &str, options: &str, more: &str) -> String {
    format!(
        "name: test
node: {node}
http: {{ listen: \"127.0.0.1:0\" }}
admin: {{ listen: \"127.0.0.1:0\" }}
journal: {{ payloads: all }}
queues: {queues}
connections:
  rabbit: {{ amqp: {{ url: \"{url}\", heartbeat: 2s{options} }} }}
{more}"
    )
}

/// A node whose lanes live on the broker.
pub fn node_with(url: &str, node: &str, options: &str) -> Installation {
    let installation = Installation::new();
    let yaml = bus_yaml(url, node, "{ connection: rabbit }", options, "");
    installation.file("xbus.yaml", yaml);
    installation
}

pub fn node(url: &str, name: &str) -> Installation {
    node_with(url, name, "")
}

/// A route `r` from HTTP into the lane `r.t`, which ends at `path` of a destination.
pub fn route_to(system: &Destination, path: &str, async_options: &str) -> String {
    format!(
        "receive: {{ http: {{ path: /r }} }}\ndistribute:\n  - name: t\n    async: {async_options}\n    http: {{ url: \"{}\" }}\n",
        system.url(path)
    )
}

pub fn route(system: &Destination, async_options: &str) -> String {
    route_to(system, "/t", async_options)
}

pub fn down() -> Answer {
    Answer::Status(503, "text/plain", b"maintenance".to_vec())
}

/// Posts numbers, one after the other; gives the ids.
#[track_caller]
pub fn send(to: SocketAddr, numbers: Range<usize>) -> Vec<String> {
    let mut connection = Keep::open(to);
    numbers
        .map(|number| {
            let answer = connection.post("/r", "", &number.to_string());
            assert_eq!(answer.status, 202, "{}", answer.text());
            answer.id()
        })
        .collect()
}

pub fn numbers(range: Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

/// Each of `expected` came, in that order, and what came again came directly after itself. Gives
/// how many came again.
#[track_caller]
pub fn repeats(got: &[String], expected: &[String]) -> usize {
    let mut different: Vec<&String> = got.iter().collect();
    different.dedup();
    for (at, (got, expected)) in different.iter().zip(expected).enumerate() {
        assert_eq!(*got, expected, "number {at} to arrive; got {different:?}");
    }
    let missing = expected.get(different.len()..).unwrap_or_default();
    assert!(missing.is_empty(), "missing: {missing:?}");
    let more = &different[expected.len()..];
    assert!(more.is_empty(), "came once more: {more:?}");
    got.len() - expected.len()
}

/// What the admin interface says of the lane `r.t`.
pub fn lane(bus: &Bus<'_>) -> Value {
    let shown = get(bus.admin, "/api/v1/queues/r.t");
    assert_eq!(shown.status, 200, "{}", shown.text());
    shown.json()
}

#[track_caller]
pub fn wait_for_lane(bus: &Bus<'_>, what: &str, like: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while std::time::Instant::now() < deadline {
        last = lane(bus);
        if like(&last) {
            return last;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("waited in vain for {what}: {last}");
}

/// Starts a node and waits until its messages go to the broker before they are acknowledged.
#[track_caller]
pub fn start(installation: &Installation) -> Bus<'_> {
    let bus = installation.start();
    wait_for("the connection", || {
        let status = get(bus.admin, "/api/v1/status").json();
        (status["connections"][0]["state"] == "up").then_some(())
    });
    bus
}

/// Nothing waits, at the broker or in this node's store.
#[track_caller]
pub fn wait_until_empty(bus: &Bus<'_>) {
    wait_for_lane(bus, "an empty lane", |lane| {
        lane["depth"] == 0 && lane["trouble"].is_null()
    });
}

/// The journal has an end for each message.
#[track_caller]
pub fn wait_until_journal_is_complete(bus: &Bus<'_>) {
    let mut pending = Value::Null;
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while std::time::Instant::now() < deadline {
        pending = bus.json(&["messages", "--outcome", "pending"]);
        if pending.as_array().expect("a list").is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("the journal does not know the end of {pending}");
}

#[track_caller]
pub fn wait_for_outcome(bus: &Bus<'_>, id: &str, outcome: &str) -> Value {
    wait_for(&format!("{id} to be {outcome}"), || {
        let shown = bus.json(&["messages", "show", id]);
        (shown["outcome"] == outcome).then_some(shown)
    })
}

/// The open incidents.
pub fn incidents(bus: &Bus<'_>) -> Vec<Value> {
    let open = get(bus.admin, "/api/v1/incidents").json();
    open.as_array().expect("a list").clone()
}

#[track_caller]
pub fn wait_for_incident(bus: &Bus<'_>, what: &str) -> Value {
    wait_for(&format!("an incident that tells of {what:?}"), || {
        let open = incidents(bus);
        open.into_iter()
            .find(|incident| incident.to_string().contains(what))
    })
}

#[track_caller]
pub fn wait_for_no_incident(bus: &Bus<'_>) {
    let mut last = Vec::new();
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while std::time::Instant::now() < deadline {
        last = incidents(bus);
        if last.is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("incidents stay open: {last:?}");
}

#[test]
fn messages_go_through_the_broker_in_order_and_once_and_the_journal_tells() {
    let vhost = Rabbit::shared().vhost();
    let system = Destination::start();
    let installation = node(&vhost.url(), "a");
    installation.route("r", &route(&system, FAST));
    let bus = installation.start();
    let ids = send(bus.http, 0..300);
    let got = system.wait_for_count(300);
    assert_eq!(system.texts(), numbers(0..300));
    let arrived: Vec<&str> = got
        .iter()
        .filter_map(|got| got.header("X-Message-Id"))
        .collect();
    assert_eq!(arrived, ids);
    bus.wait_for_depth("r.t", 0);
    let queue = bus.queue("r.t");
    assert_eq!(queue["connection"], "rabbit", "{queue}");
    assert_eq!(queue["in_store"], 0, "{queue}");
    assert_eq!(queue["state"], "idle", "{queue}");
    wait_until_journal_is_complete(&bus);
    let shown = wait_for_outcome(&bus, &ids[299], "delivered");
    assert_eq!(shown["targets"][0]["name"], "t", "{shown}");
    assert_eq!(shown["targets"][0]["attempts"], 1, "{shown}");

    // Many at a time: each caller's messages keep their order.
    std::thread::scope(|scope| {
        for caller in 0..6 {
            let to = bus.http;
            scope.spawn(move || {
                let mut connection = Keep::open(to);
                for number in 0..50 {
                    let answer = connection.post("/r", "", &format!("{caller} {number}"));
                    assert_eq!(answer.status, 202);
                }
            });
        }
    });
    system.wait_for_count(600);
    let texts = system.texts();
    for caller in 0..6 {
        let prefix = format!("{caller} ");
        let own: Vec<&str> = texts[300..]
            .iter()
            .filter_map(|text| text.strip_prefix(&prefix))
            .collect();
        assert_eq!(own, numbers(0..50));
    }

    // A restart brings nothing back.
    assert!(bus.stop().success());
    let client = Client::connect(&vhost.url());
    assert_eq!(client.depth("r.t"), 0);
    let bus = installation.start();
    send(bus.http, 600..601);
    system.wait_for_count(601);
    wait_until_empty(&bus);
    assert_eq!(system.count(), 601);
    assert_eq!(system.texts()[600], "600");
}

/// Of the sixteen keys `k0` to `k15` over four partitions, by the first four bytes of SHA-256.
const IN_PARTITION: [u8; 16] = [2, 3, 3, 1, 2, 2, 3, 1, 1, 3, 0, 2, 1, 3, 1, 1];

#[test]
fn a_blocked_key_blocks_its_partition_only_and_each_key_keeps_its_order() {
    const EACH: usize = 10;
    let vhost = Rabbit::shared().vhost();
    let system = Destination::with(|got| match got.text().starts_with("k0 ") {
        true => down(),
        false => Answer::ok(),
    });
    let installation = node(&vhost.url(), "a");
    let options =
        "{ order_by: 'header(\"x-key\")', partitions: 4, retry: { first: 20ms, max: 100ms } }";
    installation.route("r", &route(&system, options));
    let bus = installation.start();
    let mut connection = Keep::open(bus.http);
    for number in 0..EACH {
        for key in 0..IN_PARTITION.len() {
            let header = format!("X-Key: k{key}\r\n");
            let answer = connection.post("/r", &header, &format!("k{key} {number}"));
            assert_eq!(answer.status, 202);
        }
    }
    let of_key = |key: usize| -> Vec<String> {
        let prefix = format!("k{key} ");
        let texts = system.texts().into_iter();
        texts
            .filter_map(|text| text.strip_prefix(&prefix).map(str::to_owned))
            .collect()
    };
    let free: Vec<usize> = (0..16)
        .filter(|key| IN_PARTITION[*key] != IN_PARTITION[0])
        .collect();
    let blocked: Vec<usize> = (1..16)
        .filter(|key| IN_PARTITION[*key] == IN_PARTITION[0])
        .collect();
    wait_for("the other partitions", || {
        free.iter()
            .all(|key| of_key(*key).len() >= EACH)
            .then_some(())
    });
    for key in &free {
        assert_eq!(of_key(*key), numbers(0..EACH));
    }
    let held = (blocked.len() + 1) * EACH;
    let shown = wait_for_lane(&bus, "what is blocked", |lane| {
        lane["depth"] == held && lane["blocked_keys"] == 1
    });
    assert_eq!(shown["waiting_messages"][0]["key"], "k0", "{shown}");
    assert_eq!(
        shown["head"]["last_error"]
            .as_str()
            .map(|e| e.contains("maintenance")),
        Some(true),
        "{shown}"
    );
    for key in &blocked {
        assert!(of_key(*key).is_empty(), "k{key} shares the partition of k0");
    }
    assert!(of_key(0).iter().all(|number| number == "0"));
    system.now(|_| Answer::ok());
    wait_until_empty(&bus);
    for key in blocked {
        assert_eq!(of_key(key), numbers(0..EACH));
    }
    repeats(&of_key(0), &numbers(0..EACH));
    wait_until_journal_is_complete(&bus);
}

fn rejects_stuck(got: &Got) -> Answer {
    match got.text().starts_with("stuck") {
        true => Answer::Status(422, "text/plain", b"bad field".to_vec()),
        false => Answer::ok(),
    }
}

/// Whichever of two nodes holds the head, both do what an administrator asks.
#[test]
fn heads_are_parked_released_retried_and_dropped_at_any_node() {
    let vhost = Rabbit::shared().vhost();
    let system = Destination::with(rejects_stuck);
    let installations = [node(&vhost.url(), "a"), node(&vhost.url(), "b")];
    for installation in &installations {
        installation.route("r", &route(&system, "{ retry: { first: 30s } }"));
    }
    let [a, b] = [installations[0].start(), installations[1].start()];
    for (asked, other) in [(&a, &b), (&b, &a)] {
        let say = |text: &str| post(a.http, "/r", "text/plain", text.as_bytes()).id();
        let arrived = |text: &str| {
            wait_for(text, || {
                (system.texts().last().map(String::as_str) == Some(text)).then_some(())
            });
        };
        let blocked_by = |id: &str| {
            for bus in [&a, &b] {
                wait_for_lane(bus, "a head that failed", |lane| {
                    lane["head"]["id"] == id && lane["head"]["attempts"] == 1
                });
            }
        };
        system.now(rejects_stuck);
        let first = say("stuck 1");
        say("two");
        blocked_by(&first);
        asked.json(&["queues", "park", "r.t", "--reason", "not today"]);
        arrived("two");
        for bus in [&a, &b] {
            let shown = wait_for_lane(bus, "the parked message", |lane| lane["parked"] == 1);
            let parked = &shown["parked_messages"][0];
            assert_eq!(parked["id"], first, "{shown}");
            assert_eq!(parked["attempts"], 1, "{shown}");
            assert!(
                parked["parked"].to_string().contains("not today"),
                "{shown}"
            );
        }

        // Released, it goes before the head and what waits behind it.
        let third = say("stuck 3");
        say("four");
        blocked_by(&third);
        system.now(|_| Answer::ok());
        let before = system.count();
        asked.json(&["queues", "release", "r.t", &first]);
        wait_for("the released message", || {
            (system.count() > before).then_some(())
        });
        assert_eq!(system.texts()[before], "stuck 1");
        // Only the head waits for its time; nobody waits for it.
        asked.json(&["queues", "retry", "r.t", &third]);
        arrived("four");
        assert_eq!(system.texts()[before..], ["stuck 1", "stuck 3", "four"]);

        // Dropped: a head, and a parked one.
        system.now(rejects_stuck);
        let fifth = say("stuck 5");
        let sixth = say("stuck 6");
        say("seven");
        blocked_by(&fifth);
        asked.json(&["queues", "drop", "r.t", &fifth]);
        blocked_by(&sixth);
        other.json(&["queues", "park", "r.t", &sixth]);
        arrived("seven");
        asked.json(&["queues", "drop", "r.t", &sixth]);
        for bus in [&a, &b] {
            wait_for_lane(bus, "an empty lane", |lane| {
                lane["depth"] == 0 && lane["parked"] == 0
            });
        }
        for id in [&fifth, &sixth] {
            wait_for_outcome(&a, id, "failed");
        }
        wait_for_outcome(&a, &first, "delivered");
        // What is not there is told.
        let output = installations[0].xbus(&["queues", "drop", "r.t", &fifth]);
        assert!(!output.status.success());
    }
    wait_until_journal_is_complete(&a);
}

#[test]
fn a_rejected_message_is_parked_where_the_route_says_so() {
    let vhost = Rabbit::shared().vhost();
    let system = Destination::with(rejects_stuck);
    let installation = node(&vhost.url(), "a");
    installation.route("r", &route(&system, "{ on_reject: park }"));
    let bus = installation.start();
    for text in ["one", "stuck", "two"] {
        post(bus.http, "/r", "text/plain", text.as_bytes());
    }
    wait_for_lane(&bus, "the parked message", |lane| {
        lane["parked"] == 1 && lane["depth"] == 0
    });
    assert_eq!(system.texts(), ["one", "stuck", "two"]);
    // It outlives the bus, and so does what it is.
    bus.kill();
    let bus = installation.start();
    let shown = wait_for_lane(&bus, "the parked message", |lane| lane["parked"] == 1);
    let id = shown["parked_messages"][0]["id"].as_str().expect("an id");
    system.now(|_| Answer::ok());
    bus.json(&["queues", "release", "r.t", id]);
    wait_for_outcome(&bus, id, "delivered");
    assert_eq!(system.texts(), ["one", "stuck", "two", "stuck"]);
}
