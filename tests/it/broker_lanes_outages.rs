//! Lanes on RabbitMQ when broker or bus fail: nothing is lost, the order is kept, and a repeat
//! arises only for the message in flight.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::broker_lanes::{
    FAST, down, lane, node, node_with, numbers, repeats, route, send, wait_for_incident,
    wait_for_lane, wait_for_no_incident, wait_for_outcome, wait_until_empty,
    wait_until_journal_is_complete,
};
use crate::lanes::Keep;
use crate::support::amqp::{Client, Message};
use crate::support::rabbit::{Options, Rabbit};
use crate::support::{Answer, Destination, get, post, wait_for};

#[test]
fn a_broker_that_is_killed_twenty_times_costs_no_message_and_no_order() {
    const MESSAGES: usize = 5_000;
    const KILLS: usize = 20;
    let rabbit = Rabbit::start();
    let system = Destination::start();
    let installation = node(&rabbit.url(), "a");
    installation.route("r", &route(&system, FAST));
    let bus = installation.start();
    // Every queue that there will be has been declared.
    send(bus.http, 0..1);
    wait_until_empty(&bus);
    rabbit.settle();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let ids = send(bus.http, 1..MESSAGES);
            done.store(true, SeqCst);
            ids
        });
        for kill in 0..KILLS {
            let share = MESSAGES * (kill + 1) / (KILLS + 1);
            wait_for("progress", || (system.count() >= share).then_some(()));
            rabbit.kill();
            rabbit.restart();
        }
        sender.join().expect("the sender");
    });
    wait_for("the last message", || {
        (system.texts().last() == Some(&(MESSAGES - 1).to_string())).then_some(())
    });
    wait_until_empty(&bus);
    let again = repeats(&system.texts(), &numbers(0..MESSAGES));
    assert!(again <= KILLS, "{again} repeats");
    wait_until_journal_is_complete(&bus);
    wait_for_no_incident(&bus);
}

#[test]
fn a_bus_that_is_killed_fifty_times_holding_the_head_costs_no_message_and_no_order() {
    const KILLS: usize = 50;
    let vhost = Rabbit::shared().vhost();
    let system = Destination::with(|_| down());
    let installation = node(&vhost.url(), "a");
    installation.route("r", &route(&system, FAST));
    for kill in 0..KILLS {
        let bus = installation.start();
        if kill % 10 == 0 {
            send(bus.http, kill..kill + 10);
        }
        // Before the second attempt the first was noted at the broker.
        let tried = system.count();
        system.wait_for_count(tried + 2);
        bus.kill();
    }
    let tried = system.count();
    assert!(system.texts().iter().all(|text| text == "0"));
    let bus = installation.start();
    wait_for_lane(&bus, "the attempts of all of them", |lane| {
        let attempts = lane["head"]["attempts"].as_u64();
        attempts >= Some(KILLS as u64) && attempts <= Some(system.count() as u64)
    });
    assert!(system.count() > tried);
    system.now(|_| Answer::ok());
    wait_until_empty(&bus);
    let texts = system.texts();
    repeats(&texts, &numbers(0..50));
    let others = texts.iter().filter(|text| *text != "0").count();
    assert_eq!(others, 49, "only the head was ever sent more than once");
    wait_until_journal_is_complete(&bus);
}

/// What the broker refuses is handed over again behind later ones that it took, also by a process
/// that knows nothing of that.
#[test]
fn messages_that_the_broker_refuses_out_of_turn_are_not_lost_when_the_bus_is_killed() {
    const MESSAGES: usize = 400;
    let rabbit = Rabbit::start();
    let system = Destination::start();
    let installation = node(&rabbit.url(), "a");
    installation.route("r", &route(&system, FAST));
    let mut bus = installation.start();
    send(bus.http, 0..1);
    wait_until_empty(&bus);
    rabbit.ctl(&[
        "set_policy",
        "--apply-to",
        "queues",
        "short",
        "^r[.]t$",
        r#"{"max-length": 30}"#,
    ]);
    // They pile up in the store, so that they are handed over many at once.
    rabbit.memory_alarm(true);
    wait_for("the connection to be blocked", || {
        send(bus.http, 0..1);
        let status = get(bus.admin, "/api/v1/status").text();
        status.contains("\"blocked\"").then_some(())
    });
    // So large that some leave the queue while a batch of them enters it.
    let mut connection = Keep::open(bus.http);
    for number in 1..MESSAGES {
        let answer = connection.post("/r", "", &format!("{number:<60000}"));
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    rabbit.memory_alarm(false);
    let refused = || {
        installation
            .log()
            .matches("the broker refused a message")
            .count()
    };
    for _ in 0..4 {
        // Before it is handed over again.
        let before = refused();
        wait_for("a refusal", || (refused() > before).then_some(()));
        bus.kill();
        bus = installation.start();
    }
    wait_until_empty(&bus);
    let mut came: Vec<usize> = system
        .texts()
        .iter()
        .filter_map(|t| t.trim().parse().ok())
        .collect();
    came.sort_unstable();
    came.dedup();
    assert!(came.iter().copied().eq(0..MESSAGES), "{} came", came.len());
    wait_until_journal_is_complete(&bus);
}

/// Entries as a bus leaves them that is killed after the broker had refused one and taken the next,
/// and as it hands them over after its next start.
#[test]
fn an_entry_that_comes_behind_a_later_one_is_delivered_and_a_repeat_is_not() {
    let vhost = Rabbit::shared().vhost();
    let system = Destination::start();
    let installation = node(&vhost.url(), "a");
    installation.route("r", &route(&system, FAST));
    let bus = installation.start();
    send(bus.http, 0..1);
    wait_until_empty(&bus);
    let client = Client::connect(&vhost.url());
    let hand_over = |number: u64, after: Option<u64>| {
        let mut meta = serde_json::json!({
            "v": 1,
            "id": format!("0192e4a6-0000-7000-8000-{number:012}"),
            "received": 1_795_327_644_071_000_u64,
            "headers": [],
            "target": "t",
            "since": 1_795_327_644_071_000_u64,
            "origin": ["another store", number],
        });
        if let Some(after) = after {
            meta["after"] = after.into();
        }
        let message = Message::new(format!("n{number}")).header("x-xbus", &meta.to_string());
        client.send("r.t", message);
    };
    // 6 and 7 were refused, 8 was taken; then all of them come again.
    hand_over(5, None);
    hand_over(8, Some(7));
    hand_over(6, None);
    hand_over(7, Some(6));
    hand_over(8, Some(7));
    hand_over(9, Some(8));
    hand_over(6, None);
    hand_over(10, Some(9));
    wait_for("the last one", || {
        (system.texts().last().map(String::as_str) == Some("n10")).then_some(())
    });
    wait_until_empty(&bus);
    let came = system.texts();
    assert_eq!(came, ["0", "n5", "n8", "n6", "n7", "n9", "n10"]);
    drop(bus);
    // It is known beyond a restart.
    let bus = installation.start();
    hand_over(7, Some(6));
    hand_over(11, Some(10));
    wait_for("the one after the restart", || {
        (system.texts().last().map(String::as_str) == Some("n11")).then_some(())
    });
    wait_until_empty(&bus);
    assert_eq!(system.count(), 8);
}

#[test]
fn what_is_accepted_while_the_broker_is_down_or_blocked_comes_later_and_in_order() {
    let rabbit = Rabbit::start();
    rabbit.stop();
    let system = Destination::start();
    let installation = node(&rabbit.url(), "a");
    // So long a caller waits for the broker's confirm.
    let route = route(&system, FAST).replace("    http:", "    timeout: 2s\n    http:");
    installation.route("r", &route);

    // Down at start: an incident.
    let bus = installation.start();
    let before = Instant::now();
    send(bus.http, 0..20);
    // Each of them would have waited 2 s.
    assert!(
        before.elapsed() < Duration::from_secs(30),
        "nobody waits for a broker that is down"
    );
    wait_for_incident(&bus, "r");
    let before = Instant::now();
    let shown = lane(&bus);
    assert!(
        before.elapsed() < Duration::from_secs(15),
        "administrators see what is here"
    );
    assert_eq!(shown["in_store"], 20, "{shown}");
    assert!(shown["trouble"].is_string(), "{shown}");
    let waiting = shown["waiting_messages"].as_array().map(Vec::len);
    assert_eq!(waiting, Some(20), "{shown}");
    assert_eq!(system.count(), 0);
    rabbit.restart();
    wait_until_empty(&bus);
    assert_eq!(system.texts(), numbers(0..20));
    wait_for_no_incident(&bus);
    rabbit.settle();

    // Down later, and the bus stopped and started meanwhile.
    rabbit.kill();
    send(bus.http, 20..40);
    let before = Instant::now();
    assert!(bus.stop().success());
    assert!(
        before.elapsed() < Duration::from_secs(30),
        "a bus stops without its broker"
    );
    let bus = installation.start();
    send(bus.http, 40..60);
    bus.kill();
    let bus = installation.start();
    wait_for_lane(&bus, "what waits", |lane| lane["in_store"] == 40);
    assert_eq!(system.count(), 20);
    rabbit.restart();
    wait_until_empty(&bus);
    assert_eq!(system.texts(), numbers(0..60));
    wait_for_no_incident(&bus);

    // A broker without memory for more blocks all who publish. What it has is worked off, which
    // is what gives it room.
    system.now(|_| down());
    send(bus.http, 60..80);
    wait_for_lane(&bus, "what is at the broker", |lane| {
        lane["in_store"] == 0 && lane["depth"] == 20
    });
    rabbit.memory_alarm(true);
    let before = Instant::now();
    send(bus.http, 80..100);
    assert!(
        before.elapsed() < Duration::from_secs(30),
        "nobody waits for a broker that is blocked"
    );
    wait_for("the connection to be shown as blocked", || {
        let status = get(bus.admin, "/api/v1/status").text();
        status.contains("\"blocked\"").then_some(())
    });
    system.now(|_| Answer::ok());
    wait_for("what is at the broker to be delivered", || {
        (system.texts().last().map(String::as_str) == Some("79")).then_some(())
    });
    wait_for_lane(&bus, "what waits for the broker", |lane| {
        lane["in_store"].as_u64() >= Some(19)
    });
    rabbit.memory_alarm(false);
    wait_until_empty(&bus);
    let texts = system.texts();
    repeats(&texts, &numbers(0..100));
    let others = texts.iter().filter(|text| *text != "60").count();
    assert_eq!(others, 99, "only the head was sent more than once");
    wait_until_journal_is_complete(&bus);
    wait_for_no_incident(&bus);
}

/// One bus gives the head back before the broker takes it away, the other has it taken away.
#[test]
fn a_consumer_timeout_during_a_long_outage_costs_neither_order_nor_message() {
    let rabbit = Options::new()
        .consumer_timeout(Duration::from_secs(5))
        .start();
    let mut systems = Vec::new();
    let mut installations = Vec::new();
    for (name, renew) in [("early", "1s"), ("late", "25m")] {
        let system = Destination::with(|_| down());
        let installation = node_with(&rabbit.url(), name, &format!(", renew_after: {renew}"));
        let options = format!("{{ queue: {name}, retry: {{ first: 20ms, max: 100ms }} }}");
        installation.route("r", &route(&system, &options));
        systems.push(system);
        installations.push(installation);
    }
    let buses: Vec<_> = installations.iter().map(|node| node.start()).collect();
    for bus in &buses {
        send(bus.http, 0..10);
    }
    let timeouts = || rabbit.log().matches("delivery acknowledgement").count();
    wait_for("the broker to lose patience twice", || {
        (timeouts() >= 2).then_some(())
    });
    let known = ["early", "late"].map(|name| {
        let at = ["early", "late"].iter().position(|other| *other == name);
        let bus = &buses[at.expect("one of them")];
        wait_for("the head", || {
            let queue = bus.queue(name);
            let attempts = queue["head"]["attempts"].as_u64()?;
            (queue["depth"] == 10 && attempts > 10).then_some(attempts)
        })
    });
    for system in &systems {
        assert!(system.texts().iter().all(|text| text == "0"));
        system.now(|_| Answer::ok());
    }
    for ((bus, name), (system, known)) in buses
        .iter()
        .zip(["early", "late"])
        .zip(systems.iter().zip(known))
    {
        bus.wait_for_depth(name, 0);
        let texts = system.texts();
        repeats(&texts, &numbers(0..10));
        assert!(texts.iter().filter(|text| *text == "0").count() as u64 > known);
        assert_eq!(texts.iter().filter(|text| *text != "0").count(), 9);
        wait_for_no_incident(bus);
    }
    let log = rabbit.log();
    assert!(log.contains("'late'") || log.contains("late"), "{log}");
    assert!(
        !installations[0].log().contains("is gone"),
        "the early one gave its channel up in time"
    );
}

#[test]
fn a_queue_that_is_deleted_under_the_consumer_is_told_and_made_again() {
    let vhost = Rabbit::shared().vhost();
    let system = Destination::with(|_| down());
    let installation = node(&vhost.url(), "a");
    installation.route("r", &route(&system, FAST));
    let bus = installation.start();
    let ids = send(bus.http, 0..5);
    wait_for_lane(&bus, "a blocked head", |lane| {
        lane["depth"] == 5 && lane["head"]["attempts"].as_u64() >= Some(1)
    });
    let client = Client::connect(&vhost.url());
    client.delete("r.t");
    wait_for("the log to tell", || {
        installation
            .log()
            .contains("was deleted, and what it held with it")
            .then_some(())
    });
    system.now(|_| Answer::ok());
    let before = system.count();
    // What was in the queue is gone with it; what comes now goes its way.
    send(bus.http, 5..25);
    wait_until_empty(&bus);
    let after: Vec<String> = system.texts()[before..]
        .iter()
        .filter(|text| *text != "0")
        .cloned()
        .collect();
    assert_eq!(after, numbers(5..25));
    wait_for_no_incident(&bus);
    // The journal does not claim what nobody knows.
    for id in &ids[1..] {
        wait_for_outcome(&bus, id, "pending");
    }
}

#[test]
fn what_the_broker_does_not_permit_is_told_and_waits() {
    let rabbit = Rabbit::shared();
    let vhost = rabbit.vhost();
    let user = format!("lane-{}", vhost.name());
    rabbit.add_user(&user, "secret");
    let url = rabbit.url_of(&user, "secret", vhost.name());
    let system = Destination::start();

    // May log in and read; declares nothing.
    rabbit.permit(&user, vhost.name(), ["", "", ".*"]);
    let installation = node(&url, "a");
    installation.route("r", &route(&system, FAST));
    let bus = installation.start();
    send(bus.http, 0..20);
    let told = wait_for_incident(&bus, "refused");
    assert!(told.to_string().contains("r.t"), "{told}");
    let shown = lane(&bus);
    assert_eq!(shown["in_store"], 20, "{shown}");
    assert_eq!(system.count(), 0);

    // May declare, but write to nothing.
    rabbit.permit(&user, vhost.name(), [".*", "", ".*"]);
    vhost.close_connections();
    send(bus.http, 20..40);
    wait_for_incident(&bus, "refused");

    rabbit.permit(&user, vhost.name(), [".*", ".*", ".*"]);
    vhost.close_connections();
    wait_until_empty(&bus);
    assert_eq!(system.texts(), numbers(0..40));
    wait_until_journal_is_complete(&bus);
    wait_for_no_incident(&bus);
}

#[test]
fn a_failing_lanes_mail_tells_how_many_wait() {
    use crate::mail::Sink;
    let sink = Sink::start();
    let vhost = Rabbit::shared().vhost();
    let system = Destination::with(|_| down());
    let installation = crate::support::Installation::new();
    let yaml = crate::broker_lanes::bus_yaml(
        &vhost.url(),
        "a",
        "{ connection: rabbit }",
        "",
        &format!(
            "  relay: {{ smtp: {{ host: 127.0.0.1, port: {} }} }}\nalerts:\n  mail: {{ connection: relay, from: xbus@acme.example, to: [ops@acme.example], digest: 2s }}\n",
            sink.port
        ),
    );
    installation.file("xbus.yaml", yaml);
    installation.route("r", &route(&system, FAST));
    let bus = installation.start();
    let first = post(bus.http, "/r", "text/plain", b"0").id();
    let opened = sink.wait_for_mail("[xbus] OPEN r/t: outage");
    for part in ["maintenance", &first, "xbus queues retry r.t", "r.t"] {
        assert!(opened.contains(part), "no {part:?} in {opened}");
    }
    assert!(opened.contains("1 messages"), "{opened}");
    let mut connection = Keep::open(bus.http);
    for number in 1..7 {
        assert_eq!(connection.post("/r", "", &number.to_string()).status, 202);
    }
    let digest = wait_for("a digest that tells how many wait now", || {
        let mails = sink.mails();
        mails.into_iter().find(|mail| mail.contains("7 messages"))
    });
    assert!(digest.contains("Subject: [xbus] DIGEST r/t"), "{digest}");
    system.now(|_| Answer::ok());
    wait_until_empty(&bus);
    sink.wait_for_mail("[xbus] RESOLVED r/t: outage");
}

/// Showing a lane that no node has taken up yet looks into the broker's queue.
#[test]
fn looking_at_a_lane_while_nodes_come_and_go_changes_no_order() {
    const MESSAGES: usize = 300;
    let vhost = Rabbit::shared().vhost();
    let system = Destination::with(|_| down());
    let installation = node(&vhost.url(), "a");
    installation.route("r", &route(&system, FAST));
    let bus = installation.start();
    send(bus.http, 0..MESSAGES);
    wait_for_lane(&bus, "all of it at the broker", |lane| {
        lane["in_store"] == 0 && lane["depth"].as_u64() >= Some(MESSAGES as u64)
    });
    bus.kill();
    for _ in 0..10 {
        let tried = system.count();
        let bus = installation.start();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while system.count() < tried + 2 {
                        get(bus.admin, "/api/v1/queues/r.t");
                    }
                });
            }
        });
        bus.kill();
    }
    system.now(|_| Answer::ok());
    let bus = installation.start();
    wait_until_empty(&bus);
    wait_for("the last message", || {
        (system.texts().last() == Some(&(MESSAGES - 1).to_string())).then_some(())
    });
    let texts = system.texts();
    repeats(&texts, &numbers(0..MESSAGES));
    let others = texts.iter().filter(|text| *text != "0").count();
    assert_eq!(
        others,
        MESSAGES - 1,
        "only the head was sent more than once"
    );
}
