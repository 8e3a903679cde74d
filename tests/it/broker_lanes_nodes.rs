//! Lanes on RabbitMQ that two nodes share: each has its own store, both have the same routes.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lapin::ExchangeKind;

use crate::broker_lanes::{
    FAST, down, lane, node, numbers, repeats, route, route_to, start, wait_for_lane,
    wait_for_outcome, wait_until_empty, wait_until_journal_is_complete,
};
use crate::lanes::Keep;
use crate::support::amqp::Client;
use crate::support::bus::signal;
use crate::support::rabbit::Rabbit;
use crate::support::{Answer, Bus, Destination, PATIENCE, wait_for};

#[test]
fn a_heads_state_outlives_the_bus_and_goes_with_the_lane_to_another_node() {
    let vhost = Rabbit::shared().vhost();
    let system = Destination::with(|_| down());
    let [a, b] = [node(&vhost.url(), "a"), node(&vhost.url(), "b")];
    for installation in [&a, &b] {
        installation.route("r", &route(&system, "{ retry: { first: 1h, max: 1h } }"));
    }
    let bus_a = a.start();
    let ids = crate::broker_lanes::send(bus_a.http, 0..5);
    let failed = |shown: &serde_json::Value| shown["head"]["attempts"] == 1;
    let all_failed = |shown: &serde_json::Value| failed(shown) && shown["depth"] == 5;
    let before = wait_for_lane(&bus_a, "a failed attempt", all_failed);
    let client = Client::connect(&vhost.url());
    wait_for("the attempt to be noted at the broker", || {
        (client.exists("r.t.state") && client.depth("r.t.state") == 1).then_some(())
    });
    assert_eq!(before["blocked_keys"], 1, "{before}");
    assert_eq!(before["head"]["id"], ids[0], "{before}");
    assert!(before["head"]["next_try"].is_string(), "{before}");
    let error = before["head"]["last_error"].to_string();
    assert!(
        error.contains("503") && error.contains("maintenance"),
        "{error}"
    );

    bus_a.kill();
    let bus_a = a.start();
    let again = wait_for_lane(&bus_a, "the state after a kill", failed);
    assert_eq!(again["head"], before["head"]);

    // Seen at a node that does not hold it, or that was given the lane.
    let bus_b = b.start();
    let there = wait_for_lane(&bus_b, "the state at the other node", all_failed);
    assert_eq!(there["head"], before["head"]);

    bus_a.kill();
    let moved = wait_for_lane(&bus_b, "the state after it has moved", all_failed);
    assert_eq!(moved["head"], before["head"]);
    assert_eq!(system.count(), 1, "not tried before its time");

    system.now(|_| Answer::ok());
    bus_b.json(&["queues", "retry", "r.t"]);
    wait_until_empty(&bus_b);
    assert_eq!(system.texts(), ["0", "0", "1", "2", "3", "4"]);
    // The journal of the node that accepted them hears of it when that is back.
    let bus_a = a.start();
    let shown = wait_for_outcome(&bus_a, &ids[0], "delivered");
    assert_eq!(shown["targets"][0]["attempts"], 2, "{shown}");
    for id in &ids {
        wait_for_outcome(&bus_a, id, "delivered");
    }
}

/// Posts messages to nodes in turn, numbered by each of them: `count` to each.
#[track_caller]
fn send_in_turn(nodes: &mut [(&Bus<'_>, &mut Sent)], count: usize) {
    let mut connections: Vec<Keep> = nodes.iter().map(|(bus, _)| Keep::open(bus.http)).collect();
    for _ in 0..count {
        for ((_, sent), connection) in nodes.iter_mut().zip(&mut connections) {
            let text = format!("{} {}", sent.node, sent.count);
            let answer = connection.post("/r", "", &text);
            assert_eq!(answer.status, 202, "{}", answer.text());
            sent.count += 1;
        }
    }
}

/// How many messages a node has accepted.
struct Sent {
    node: &'static str,
    count: usize,
}

/// Each message came, those of a node in the order in which it accepted them, and what came again
/// came directly after itself. Gives how many came again.
#[track_caller]
fn repeats_of(system: &Destination, sent: &[&Sent]) -> usize {
    let texts = system.texts();
    let mut different: Vec<&String> = texts.iter().collect();
    different.dedup();
    let mut seen = HashSet::new();
    for text in &different {
        assert!(
            seen.insert(*text),
            "{text} came again after others: {texts:?}"
        );
    }
    for node in sent {
        let prefix = format!("{} ", node.node);
        let own: Vec<String> = different
            .iter()
            .filter_map(|text| text.strip_prefix(&prefix).map(str::to_owned))
            .collect();
        repeats(&own, &numbers(0..node.count));
    }
    texts.len() - different.len()
}

/// Which node's deliveries are among these.
fn nodes_of(system: &Destination, from: usize) -> HashSet<String> {
    let got = system.got();
    got[from..].iter().map(|got| got.path.clone()).collect()
}

#[test]
fn a_lane_is_taken_over_in_order_from_a_node_that_is_killed_stopped_or_cut_off() {
    let vhost = Rabbit::shared().vhost();
    let system = Destination::start();
    let installations = [node(&vhost.url(), "a"), node(&vhost.url(), "b")];
    for (installation, path) in installations.iter().zip(["/a", "/b"]) {
        installation.route("r", &route_to(&system, path, FAST));
    }
    let [a, b] = &installations;
    let (mut bus_a, mut bus_b) = (start(a), start(b));
    let [mut to_a, mut to_b] = ["a", "b"].map(|node| Sent { node, count: 0 });
    let mut breaks = 0;
    // Who delivered last holds the lane.
    let holder = || system.got().last().expect("a delivery").path.clone();
    let accepted = |to_a: &Sent, to_b: &Sent| to_a.count + to_b.count;

    // Killed, twice, so that it is once the one and once the other.
    for _ in 0..2 {
        send_in_turn(&mut [(&bus_a, &mut to_a), (&bus_b, &mut to_b)], 50);
        system.wait_for_count(accepted(&to_a, &to_b) - 50);
        breaks += 1;
        if holder() == "/a" {
            bus_a.kill();
            send_in_turn(&mut [(&bus_b, &mut to_b)], 50);
            system.wait_for_count(accepted(&to_a, &to_b));
            bus_a = start(a);
        } else {
            bus_b.kill();
            send_in_turn(&mut [(&bus_a, &mut to_a)], 50);
            system.wait_for_count(accepted(&to_a, &to_b));
            bus_b = start(b);
        }
    }

    // Stopped for a while: the broker finds out by its heartbeats.
    send_in_turn(&mut [(&bus_a, &mut to_a), (&bus_b, &mut to_b)], 50);
    let is_a = holder() == "/a";
    let (stopped, path) = if is_a { (&bus_a, "/b") } else { (&bus_b, "/a") };
    signal(stopped.pid(), "STOP");
    breaks += 1;
    let from = system.count();
    if is_a {
        send_in_turn(&mut [(&bus_b, &mut to_b)], 50);
    } else {
        send_in_turn(&mut [(&bus_a, &mut to_a)], 50);
    }
    wait_for("the other node to take over", || {
        nodes_of(&system, from).contains(path).then_some(())
    });
    wait_until_empty(if is_a { &bus_b } else { &bus_a });
    signal(stopped.pid(), "CONT");
    send_in_turn(&mut [(&bus_a, &mut to_a), (&bus_b, &mut to_b)], 50);
    wait_until_empty(&bus_a);

    // Cut off by the broker, again and again.
    for _ in 0..5 {
        send_in_turn(&mut [(&bus_a, &mut to_a), (&bus_b, &mut to_b)], 10);
        vhost.close_connections();
        breaks += 1;
    }
    wait_until_empty(&bus_a);
    wait_until_empty(&bus_b);
    let again = repeats_of(&system, &[&to_a, &to_b]);
    assert!(again <= breaks, "{again} repeats");
    wait_until_journal_is_complete(&bus_a);
    wait_until_journal_is_complete(&bus_b);
}

/// A connection that is lost does not end the attempt that is under way: the node that is given the
/// lane waits for it, and learns that it need not send the message again.
#[test]
fn a_node_that_is_given_a_lane_waits_for_the_attempt_that_is_under_way_at_another() {
    /// More than a node that does not answer is waited for, at four a second.
    const QUESTIONS: usize = 14;
    let vhost = Rabbit::shared().vhost();
    let events = Arc::new(Mutex::new(Vec::new()));
    let open = Arc::new(AtomicBool::new(false));
    let (noting, gate) = (events.clone(), open.clone());
    let system = Destination::with(move |got| {
        let note = |what: &str| {
            let event = format!("{what} {}", got.text());
            noting
                .lock()
                .expect("unpoisoned")
                .push((got.path.clone(), event));
        };
        note("begin");
        let since = Instant::now();
        while got.text() == "5" && !gate.load(SeqCst) && since.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        note("end");
        Answer::ok()
    });
    let installations = [node(&vhost.url(), "a"), node(&vhost.url(), "b")];
    for (installation, path) in installations.iter().zip(["/a", "/b"]) {
        installation.route("r", &route_to(&system, path, FAST));
    }
    let buses = installations.each_ref().map(start);
    let events = || events.lock().expect("unpoisoned").clone();
    let holder_of = |event: &str| {
        let events = events();
        let found = events.into_iter().find(|(_, what)| what == event);
        found.map(|(path, _)| path)
    };
    // Each knows of the other.
    let client = Client::connect(&vhost.url());
    client.exchange("xbus.control", ExchangeKind::Fanout);
    client.queue("listener");
    client.bind("listener", "xbus.control", "");
    let mut heard = Vec::new();
    let mut wait_to_hear = |what: &str, count: usize| {
        let mut found = 0;
        wait_for(&format!("{count} times {what}"), || {
            while let Some(message) = client.get("listener") {
                heard.push(message.text());
            }
            found = heard.iter().filter(|said| said.contains(what)).count();
            (found >= count).then_some(())
        });
    };
    wait_to_hear(r#""node":"a""#, 2);
    wait_to_hear(r#""node":"b""#, 2);
    let ids = crate::broker_lanes::send(buses[0].http, 0..10);
    let holder = wait_for("the attempt", || holder_of("begin 5"));
    vhost.close_connections_of(&holder[1..]);
    wait_to_hear(r#""let-go":{"queue":"r.t"}"#, QUESTIONS);
    open.store(true, SeqCst);
    wait_until_empty(&buses[0]);
    let order: Vec<String> = events().into_iter().map(|(_, event)| event).collect();
    let wanted: Vec<String> = numbers(0..10)
        .iter()
        .flat_map(|number| [format!("begin {number}"), format!("end {number}")])
        .collect();
    assert_eq!(order, wanted);
    let next = holder_of("begin 6").expect("the next one");
    assert_ne!(holder, next, "it stayed where it was");
    for bus in &buses {
        wait_until_journal_is_complete(bus);
    }
    let shown = wait_for_outcome(&buses[0], &ids[5], "delivered");
    assert_eq!(shown["targets"][0]["attempts"], 1, "{shown}");
}

#[test]
fn two_nodes_share_the_partitions_of_a_lane_and_each_key_keeps_its_order() {
    const KEYS: usize = 40;
    let vhost = Rabbit::shared().vhost();
    let system = Destination::start();
    let installations = [node(&vhost.url(), "a"), node(&vhost.url(), "b")];
    let options =
        "{ order_by: 'header(\"x-key\")', partitions: 8, retry: { first: 20ms, max: 100ms } }";
    for (installation, path) in installations.iter().zip(["/a", "/b"]) {
        installation.route("r", &route_to(&system, path, options));
    }
    let buses = [installations[0].start(), installations[1].start()];
    let mut round = 0;
    let mut rounds = |count: usize| {
        let mut connections: Vec<Keep> = buses.iter().map(|bus| Keep::open(bus.http)).collect();
        for _ in 0..count {
            for key in 0..KEYS {
                // Between nodes it is the order in which the broker got them.
                let connection = &mut connections[key % 2];
                let header = format!("X-Key: k{key}\r\n");
                let answer = connection.post("/r", &header, &format!("k{key} {round}"));
                assert_eq!(answer.status, 202, "{}", answer.text());
            }
            round += 1;
        }
        round
    };
    // A partition is given to the node that it belongs to when the next message comes after it.
    wait_for("both nodes to deliver", || {
        let from = system.count();
        rounds(1);
        wait_until_empty(&buses[0]);
        (nodes_of(&system, from).len() == 2).then_some(())
    });
    // Each waits its turn while the nodes' connections go.
    for _ in 0..3 {
        rounds(1);
        vhost.close_connections();
    }
    let sent = rounds(2);
    wait_until_empty(&buses[0]);
    wait_until_empty(&buses[1]);
    let mut of_key: HashMap<String, Vec<String>> = HashMap::new();
    for text in system.texts() {
        let (key, number) = text.split_once(' ').expect("key and number");
        of_key
            .entry(key.to_owned())
            .or_default()
            .push(number.to_owned());
    }
    let again: usize = (0..KEYS)
        .map(|key| repeats(&of_key[&format!("k{key}")], &numbers(0..sent)))
        .sum();
    // At most one for each partition that was cut off.
    assert!(again <= 3 * 8, "{again} repeats");
    for bus in &buses {
        wait_until_journal_is_complete(bus);
        assert_eq!(lane(bus)["depth"], 0);
    }
}
