//! When broker, bus or destination fail while messages are received: nothing is lost, the order is
//! kept, and a repeat arises only for the message in flight.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use lapin::types::AMQPValue;

use crate::amqp::{
    FAST, bus_yaml, installation, installation_with, to_http, wait_for_incident,
    wait_for_no_incident, wait_for_reader,
};
use crate::support::amqp::{Client, Message};
use crate::support::bus::signal;
use crate::support::rabbit::{Options, Rabbit};
use crate::support::{Answer, Destination, Installation, post, wait_for};

/// Messages that hold their number, each under an id of its own.
fn numbered(count: usize) -> impl Iterator<Item = Message> {
    (0..count).map(|number| {
        Message::new(number.to_string()).with(|p| p.with_message_id(format!("m-{number}").into()))
    })
}

/// Every number below `count` came, none after a higher one; gives how many came again.
#[track_caller]
fn repeats(texts: &[String], count: usize) -> usize {
    let numbers: Vec<usize> = texts
        .iter()
        .map(|text| text.parse().expect("a number"))
        .collect();
    for (at, pair) in numbers.windows(2).enumerate() {
        let around = &numbers[at.saturating_sub(5)..(at + 8).min(numbers.len())];
        assert!(pair[0] <= pair[1], "out of order: {around:?}");
    }
    let different: HashSet<usize> = numbers.iter().copied().collect();
    let lost: Vec<usize> = (0..count).filter(|n| !different.contains(n)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    numbers.len() - count
}

/// Ends those who look at it, also when the test fails.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Both directions at once: a queue that is worked off, and a lane that publishes.
#[test]
fn a_broker_that_is_killed_twenty_times_costs_no_message_and_no_order() {
    const MESSAGES: usize = 5_000;
    const KILLS: usize = 20;
    let rabbit = Rabbit::start();
    let destination = Destination::start();
    let installation = installation(&rabbit.url());
    installation
        .route(
            "r",
            &to_http(&format!("queue: in, {FAST}"), &destination),
        )
        .route(
            "s",
            "receive: { http: { path: /s } }\ndistribute:\n  - name: q\n    async: { retry: { first: 30ms, max: 200ms } }\n    amqp: { connection: rabbit, routing_key: out }\n",
        );
    {
        let client = Client::connect(&rabbit.url());
        // As the bus declares its own. Without a single active consumer RabbitMQ itself gives what
        // is behind the head to a new consumer before it knows, after a crash, that the old one is
        // gone.
        client.queue_with(
            "in",
            [
                ("x-queue-type", AMQPValue::LongString("quorum".into())),
                ("x-single-active-consumer", AMQPValue::Boolean(true)),
            ],
        );
        client.quorum("out");
        client.send_all("in", numbered(MESSAGES));
        rabbit.settle();
    }
    let bus = installation.start();
    let (accepted, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // As many as keep the lane busy all the time and empty at the end.
            while !done.load(SeqCst) {
                let number = accepted.load(SeqCst);
                if number * 4 > destination.count() {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                let answer = post(bus.http, "/s", "text/plain", number.to_string().as_bytes());
                assert_eq!(answer.status, 202, "{}", answer.text());
                accepted.fetch_add(1, SeqCst);
            }
        });
        let _end = SetAtEnd(&done);
        for kill in 0..KILLS {
            let share = MESSAGES * (kill + 1) / (KILLS + 1);
            wait_for("progress", || (destination.count() >= share).then_some(()));
            rabbit.kill();
            rabbit.restart();
        }
    });
    wait_for("the last message", || {
        (destination.count() >= MESSAGES
            && destination.texts().last() == Some(&(MESSAGES - 1).to_string()))
        .then_some(())
    });
    bus.wait_for_depth("s.q", 0);
    wait_for_no_incident(&bus);
    assert_eq!(bus.stop().code(), Some(0));
    let again = repeats(&destination.texts(), MESSAGES);
    assert!(again <= KILLS, "{again} repeats");

    let client = Client::connect(&rabbit.url());
    assert_eq!(client.depth("in"), 0);
    let sent: Vec<String> = client.drain("out").iter().map(|got| got.text()).collect();
    let again = repeats(&sent, accepted.load(SeqCst));
    assert!(again <= KILLS, "{again} published again");
}

/// The head is held while its destination refuses, hangs, or has just taken it.
#[test]
fn a_bus_that_is_killed_fifty_times_holding_the_head_costs_no_message_and_no_order() {
    const KILLS: usize = 50;
    const MESSAGES: usize = 100;
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    client.quorum("in");
    client.send_all("in", numbered(MESSAGES));
    let destination = Destination::start();
    let installation = installation_with(&vhost.url(), ", heartbeat: 1s");
    installation.route("r", &to_http(&format!("queue: in, {FAST}"), &destination));
    for kill in 0..KILLS {
        match kill % 3 {
            0 => destination.now(|_| Answer::Status(503, "text/plain", Vec::new())),
            1 => destination.now(|_| Answer::Hang(Duration::from_secs(60))),
            _ => {
                // However late the kill comes, enough are left for the ones after it.
                let taken = AtomicUsize::new(0);
                destination.now(move |_| match taken.fetch_add(1, SeqCst) {
                    0..4 => Answer::ok(),
                    _ => Answer::Hang(Duration::from_secs(60)),
                });
            }
        }
        let before = destination.count();
        let bus = installation.start();
        wait_for("an attempt", || {
            (destination.count() > before).then_some(())
        });
        bus.kill();
    }
    // What a dead bus had sent may still be on its way in.
    destination.now(|_| Answer::ok());
    let bus = installation.start();
    wait_for("the last message", || {
        (destination.texts().last() == Some(&(MESSAGES - 1).to_string())).then_some(())
    });
    assert_eq!(bus.stop().code(), Some(0));
    let again = repeats(&destination.texts(), MESSAGES);
    // Each start tries the head once before it is killed, or a few times where it is refused.
    assert!(again >= KILLS / 3, "{again} repeats");
    assert_eq!(client.depth("in"), 0);
}

#[test]
fn a_poison_message_stays_at_the_head_over_thirty_restarts() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    let poison = |got: &crate::support::destination::Got| match got.text().as_str() {
        "0" => Answer::Status(422, "text/plain", b"never".to_vec()),
        _ => Answer::ok(),
    };
    let destination = Destination::with(poison);
    let installation = installation_with(&vhost.url(), ", heartbeat: 1s");
    // Declared by the bus, with a delivery limit out of reach.
    installation.route(
        "r",
        &to_http(&format!("queue: in, declare: true, {FAST}"), &destination),
    );
    for restart in 0..=30 {
        let before = destination.count();
        let bus = installation.start();
        if restart == 0 {
            wait_for_reader(&client, "in");
            client.send_all("in", numbered(3));
        }
        wait_for("an attempt", || {
            (destination.count() > before).then_some(())
        });
        match restart % 3 {
            0 => bus.kill(),
            1 => assert_eq!(bus.stop().code(), Some(0)),
            _ => vhost.close_connections(),
        }
    }
    assert!(destination.texts().iter().all(|text| text == "0"));
    destination.now(|_| Answer::ok());
    let bus = installation.start();
    wait_for("the last message", || {
        (destination.texts().last().map(String::as_str) == Some("2")).then_some(())
    });
    repeats(&destination.texts(), 3);
    // The test's own connection was closed with the others.
    let client = Client::connect(&vhost.url());
    assert!(!client.exists("in.parked"));
    assert_eq!(bus.stop().code(), Some(0));
    assert_eq!(client.depth("in"), 0);
}

/// One connection renews its channels in time, the other has the broker close them.
#[test]
fn a_consumer_timeout_during_a_long_outage_costs_no_message_and_no_order() {
    const MESSAGES: usize = 10;
    let rabbit = Options::new()
        .consumer_timeout(Duration::from_secs(6))
        .start();
    let client = Client::connect(&rabbit.url());
    for queue in ["early", "late", "slow"] {
        client.quorum(queue);
        client.send_all(queue, numbered(MESSAGES));
    }
    let refuse =
        |_: &crate::support::destination::Got| Answer::Status(503, "text/plain", Vec::new());
    let (early, late) = (Destination::with(refuse), Destination::with(refuse));
    // Takes so long for the first message that the broker loses patience, then answers after all.
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let waits = gate.clone();
    let slow = Destination::with(move |got| {
        if got.text() == "0" {
            let open = waits.0.lock().expect("unpoisoned");
            let _open = waits.1.wait_while(open, |open| !*open).expect("unpoisoned");
        }
        Answer::ok()
    });
    let installation = Installation::new();
    installation.file(
        "xbus.yaml",
        bus_yaml(
            &rabbit.url(),
            ", renew_after: 1s",
            &format!("  lazy: {{ amqp: {{ url: \"{}\" }} }}\n", rabbit.url()),
        ),
    );
    installation
        .route("early", &to_http(&format!("queue: early, {FAST}"), &early))
        .route(
            "late",
            &to_http(&format!("queue: late, {FAST}"), &late).replace("rabbit", "lazy"),
        )
        .route(
            "slow",
            &to_http(&format!("queue: slow, {FAST}"), &slow).replace("rabbit", "lazy"),
        );
    let bus = installation.start();
    let log = |route: &str, what: &str| {
        let log = installation.log();
        log.lines()
            .filter(|line| line.contains(&format!("queue={route}")) && line.contains(what))
            .count()
    };
    wait_for("channels to be renewed and closed", || {
        let renewed = log("early", "the channel is renewed") >= 6;
        let closed = log("late", "PRECONDITION_FAILED") >= 2;
        (renewed && closed).then_some(())
    });
    assert_eq!(log("early", "PRECONDITION_FAILED"), 0);
    for destination in [&early, &late] {
        assert!(destination.texts().iter().all(|text| text == "0"));
        destination.now(|_| Answer::ok());
    }
    *gate.0.lock().expect("unpoisoned") = true;
    gate.1.notify_all();
    for (name, destination) in [("early", &early), ("late", &late), ("slow", &slow)] {
        wait_for(&format!("the last message of {name}"), || {
            (destination.texts().last() == Some(&(MESSAGES - 1).to_string())).then_some(())
        });
        client.wait_for_depth(name, 0);
        let refused = repeats(&destination.texts(), MESSAGES);
        let ids: HashSet<String> = destination
            .got()
            .iter()
            .filter_map(|got| got.header("X-Message-Id").map(str::to_owned))
            .collect();
        assert_eq!(ids.len(), MESSAGES, "each keeps its id");
        assert!((name == "slow") == (refused == 0), "{name}: {refused}");
    }
    wait_for_no_incident(&bus);
    assert_eq!(bus.stop().code(), Some(0));
    for queue in ["early", "late", "slow"] {
        assert_eq!(client.depth(queue), 0);
    }
}

/// Senders wait while the broker has no room; what it has is worked off all the same.
#[test]
fn a_broker_without_memory_makes_senders_wait_and_one_that_is_down_is_an_incident() {
    let rabbit = Rabbit::start();
    let destination = Destination::start();
    let installation = installation(&rabbit.url());
    let send = |path: &str, timeout: &str| {
        format!(
            "receive: {{ http: {{ path: /{path} }} }}\ndistribute:\n  - name: q\n    timeout: {timeout}\n    amqp: {{ connection: rabbit, routing_key: out }}\n"
        )
    };
    installation
        .route("patient", &send("patient", "60s"))
        .route("hasty", &send("hasty", "1s"))
        .route("r", &to_http(&format!("queue: in, {FAST}"), &destination));
    {
        let client = Client::connect(&rabbit.url());
        client.quorum("in");
        client.quorum("out");
        client.send_all("in", numbered(20));
    }
    rabbit.settle();
    rabbit.kill();

    // The bus starts without its broker, and says so.
    let bus = installation.start();
    let down = wait_for_incident(&bus, "r", "receive");
    assert!(down.contains("no connection to amqp://127.0.0.1"), "{down}");
    let refused = post(bus.http, "/hasty", "text/plain", b"lost?");
    assert_eq!(refused.status, 504, "{}", refused.text());
    wait_for_incident(&bus, "hasty", "q");
    rabbit.restart();
    destination.wait_for_count(20);
    repeats(&destination.texts(), 20);
    // The connection that publishes comes back by itself, perhaps after the one that receives.
    wait_for("sending to work again", || {
        (post(bus.http, "/hasty", "text/plain", b"first").status == 200).then_some(())
    });
    wait_for_no_incident(&bus);

    let client = Client::connect(&rabbit.url());
    let waiting = client.depth("out");
    rabbit.memory_alarm(true);
    let blocked = wait_for("the connection to be blocked", || {
        // The broker says so to a connection that publishes.
        let answer = post(bus.http, "/hasty", "text/plain", b"hasty");
        (answer.status == 504).then_some(answer)
    });
    assert_eq!(blocked.json()["fault"]["code"], "timeout", "{blocked:?}");
    wait_for("the metric to tell", || {
        (crate::amqp::metric(&bus, "xbus_connection_blocked") == 1.0).then_some(())
    });
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| post(bus.http, "/patient", "text/plain", b"patient"));
        let mut alive = 0;
        wait_for("the bus to have waited for a while", || {
            assert!(!patient.is_finished(), "nothing is taken now");
            alive += 1;
            (alive > 50).then_some(())
        });
        rabbit.memory_alarm(false);
        let answer = patient.join().expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    });
    let sent = client.drain("out");
    let texts: Vec<String> = sent[waiting..].iter().map(|got| got.text()).collect();
    assert_eq!(texts.last().map(String::as_str), Some("patient"));
    // One may have been under way when the alarm came, of which the caller was told that its
    // outcome is unknown.
    assert!(texts.len() <= 2, "{texts:?}");
    wait_for("sending to work again", || {
        (post(bus.http, "/hasty", "text/plain", b"last").status == 200).then_some(())
    });
    wait_for_no_incident(&bus);
}

fn node(name: &str, url: &str) -> Installation {
    let installation = installation_with(url, ", heartbeat: 1s");
    let yaml = installation.read("xbus.yaml");
    installation.file("xbus.yaml", format!("node: {name}\n{yaml}"));
    installation
}

/// Two buses with the same route: side by side without order, one at a time with it.
#[test]
fn two_buses_share_a_queue_and_one_that_freezes_is_taken_over() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    client.quorum("shared");
    let destination = Destination::start();
    let ordered = Destination::start();
    let installations = ["a", "b"].map(|name| {
        let installation = node(name, &vhost.url());
        let route = |receive: &str, destination: &Destination| {
            to_http(receive, destination).replace("/t", &format!("/{name}"))
        };
        installation
            .route(
                "shared",
                &route("queue: shared, concurrency: 4", &destination),
            )
            .route(
                "ordered",
                &route(&format!("queue: ordered, declare: true, {FAST}"), &ordered),
            );
        installation
    });
    let buses = [installations[0].start(), installations[1].start()];
    wait_for("both to read", || {
        (client.exists("shared") && client.consumers("shared") == 2).then_some(())
    });
    wait_for_reader(&client, "ordered");
    client.send_all("shared", numbered(200));
    destination.wait_for_count(200);
    let got = destination.got();
    let texts: HashSet<String> = got.iter().map(|got| got.text()).collect();
    assert_eq!((texts.len(), got.len()), (200, 200), "each once");
    for path in ["/a", "/b"] {
        let share = got.iter().filter(|got| got.path == path).count();
        assert!(share > 0, "{path} did none of 200");
    }

    client.send_all("ordered", numbered(20));
    let got = ordered.wait_for_count(20);
    let active = usize::from(got[0].path == "/b");
    assert!(got.iter().all(|other| other.path == got[0].path));
    // It freezes while it holds the head.
    ordered.now(|_| Answer::Status(503, "text/plain", Vec::new()));
    client.send_all("ordered", numbered(40).skip(20));
    ordered.wait_for_count(22);
    signal(buses[active].pid(), "STOP");
    ordered.now(|_| Answer::ok());
    let got = wait_for("the other to go on", || {
        let got = ordered.got();
        (got.last().is_some_and(|got| got.text() == "39")).then_some(got)
    });
    let other = if active == 0 { "/b" } else { "/a" };
    assert_eq!(got[got.len() - 1].path, other);
    repeats(&ordered.texts(), 40);

    signal(buses[active].pid(), "CONT");
    wait_for("the frozen one to be back", || {
        (client.consumers("shared") == 2).then_some(())
    });
    client.send_all("ordered", numbered(60).skip(40));
    wait_for("the last message", || {
        (ordered.texts().last().map(String::as_str) == Some("59")).then_some(())
    });
    repeats(&ordered.texts(), 60);
    for bus in buses {
        assert_eq!(bus.stop().code(), Some(0));
    }
    assert_eq!((client.depth("shared"), client.depth("ordered")), (0, 0));
}

/// With `order_by` a key that fails holds back its own messages only, over lost connections too.
#[test]
fn keys_run_side_by_side_and_each_in_order_over_lost_connections() {
    let vhost = Rabbit::shared().vhost();
    let keys = ["bad", "good", "fine"];
    let send = |from: usize, to: usize| {
        let client = Client::connect(&vhost.url());
        let each = (from..to).flat_map(|number| {
            keys.map(|key| Message::new(format!("{key} {number}")).header("key", key))
        });
        client.send_all("in", each);
    };
    let destination = Destination::with(|got| match got.text().starts_with("bad") {
        true => Answer::Status(503, "text/plain", Vec::new()),
        false => Answer::ok(),
    });
    let of = |key: &str| -> Vec<String> {
        let texts = destination.texts();
        let own = texts.iter().filter_map(|text| text.strip_prefix(key));
        own.map(|number| number.trim().to_owned()).collect()
    };
    let installation = installation(&vhost.url());
    installation.route(
        "r",
        &to_http(
            &format!("queue: in, declare: true, order_by: 'header(\"key\")', {FAST}"),
            &destination,
        ),
    );
    let bus = installation.start();
    wait_for_reader(&Client::connect(&vhost.url()), "in");
    for round in 0..5 {
        send(round * 2, round * 2 + 2);
        wait_for("the other keys", || {
            let all = ["good", "fine"].map(|key| of(key).len() >= round * 2 + 2);
            all.iter().all(|done| *done).then_some(())
        });
        assert!(of("bad").iter().all(|number| number == "0"));
        vhost.close_connections();
    }
    let tried = of("bad").len();
    wait_for("the bad key to be tried again", || {
        (of("bad").len() > tried).then_some(())
    });
    destination.now(|_| Answer::ok());
    wait_for("the last message", || {
        (of("bad").last().map(String::as_str) == Some("9")).then_some(())
    });
    for key in keys {
        repeats(&of(key), 10);
    }
    assert_eq!(bus.stop().code(), Some(0));
    assert_eq!(Client::connect(&vhost.url()).depth("in"), 0);
}
