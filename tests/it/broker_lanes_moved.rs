//! Lanes that move between the store and RabbitMQ: what is queued goes along, in order.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use serde_json::Value;

use crate::broker_lanes::{
    FAST, bus_yaml, down, lane, numbers, repeats, route, send, wait_for_lane, wait_for_outcome,
    wait_until_empty, wait_until_journal_is_complete,
};
use crate::lanes::Keep;
use crate::support::amqp::Client;
use crate::support::bus::signal;
use crate::support::rabbit::Rabbit;
use crate::support::{Answer, Bus, Destination, Installation, wait_for};

const EMBEDDED: &str = "embedded";
const BROKER: &str = "{ connection: rabbit }";

/// Writes where lanes are to live.
fn place(installation: &Installation, url: &str, queues: &str) {
    installation.file("xbus.yaml", bus_yaml(url, "a", queues, "", ""));
}

#[track_caller]
fn reload(installation: &Installation, bus: &Bus<'_>) {
    let reloads = || installation.log().matches("reloaded").count();
    let before = reloads();
    signal(bus.pid(), "HUP");
    wait_for("the reload", || (reloads() > before).then_some(()));
}

/// Sends numbers beginning with `from` until `done`, and gives the first that was not sent.
#[track_caller]
fn send_until(bus: &Bus<'_>, from: usize, done: &AtomicBool, sent: &AtomicUsize) {
    let mut connection = Keep::open(bus.http);
    let mut number = from;
    while !done.load(SeqCst) {
        let answer = connection.post("/r", "", &number.to_string());
        assert_eq!(answer.status, 202, "{}", answer.text());
        number += 1;
        sent.store(number, SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Moves the lane while new messages come in; gives the first number that was not sent.
#[track_caller]
fn move_while_sending(bus: &Bus<'_>, from: usize, to: &str) -> usize {
    let (done, sent) = (AtomicBool::new(false), AtomicUsize::new(from));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_until(bus, from, &done, &sent));
        wait_for("new messages", || {
            (sent.load(SeqCst) > from + 5).then_some(())
        });
        let moved = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            bus.json(&["queues", "move", "r.t", "--to", to])
        }));
        let there = sent.load(SeqCst);
        wait_for("new messages after the move", || {
            (sent.load(SeqCst) > there + 5 || sender.is_finished()).then_some(())
        });
        // The sender ends whatever became of the move.
        done.store(true, SeqCst);
        sender.join().expect("the sender");
        let moved = moved.expect("the move");
        assert_eq!(moved["to"], to, "{moved}");
    });
    sent.load(SeqCst)
}

/// Sets the head aside and waits until the next one is it.
#[track_caller]
fn park(bus: &Bus<'_>) -> String {
    let shown = wait_for_lane(bus, "a head that failed", |lane| {
        lane["head"]["attempts"].as_u64() >= Some(1)
    });
    let id = shown["head"]["id"].as_str().expect("an id").to_owned();
    bus.json(&["queues", "park", "r.t", &id]);
    id
}

fn connection(lane: &Value) -> Option<&str> {
    lane["connection"].as_str()
}

/// To the broker and back, with hundreds of messages, parked ones, and new ones meanwhile.
#[test]
fn a_lane_moves_to_the_broker_and_back_with_all_that_waits_and_is_parked() {
    let vhost = Rabbit::shared().vhost();
    let system = Destination::with(|_| down());
    let installation = Installation::new();
    place(&installation, &vhost.url(), EMBEDDED);
    installation.route("r", &route(&system, FAST));
    let bus = installation.start();
    send(bus.http, 0..300);
    let first = park(&bus);

    place(&installation, &vhost.url(), BROKER);
    reload(&installation, &bus);
    let next = move_while_sending(&bus, 300, "rabbit");
    let shown = wait_for_lane(&bus, "all of it at the broker", |lane| {
        lane["in_store"] == 0 && lane["depth"] == next - 1
    });
    assert_eq!(connection(&shown), Some("rabbit"), "{shown}");
    assert_eq!(shown["parked"], 1, "{shown}");
    assert_eq!(shown["parked_messages"][0]["id"], first, "{shown}");

    // What is parked at the broker comes back with the lane.
    let second = park(&bus);
    assert_ne!(first, second);

    // A reload alone changes nothing: the lane stays, and what comes joins it.
    place(&installation, &vhost.url(), EMBEDDED);
    reload(&installation, &bus);
    assert!(
        installation
            .log()
            .contains("name another place for this lane"),
        "the log warns"
    );
    send(bus.http, next..next + 20);
    let shown = wait_for_lane(&bus, "what came joined it", |lane| {
        lane["depth"] == next + 18
    });
    assert_eq!(connection(&shown), Some("rabbit"), "{shown}");
    let next = move_while_sending(&bus, next + 20, "embedded");
    let shown = wait_for_lane(&bus, "all of it in the store", |lane| {
        lane["depth"] == next - 2 && lane["parked"] == 2
    });
    assert_eq!(connection(&shown), None, "{shown}");
    let client = Client::connect(&vhost.url());
    for queue in ["r.t", "r.t.parked"] {
        assert!(!client.exists(queue) || client.depth(queue) == 0, "{queue}");
    }

    // Put back, it goes before everything that waits.
    let tried = system.count();
    system.now(|got| match got.text().as_str() {
        "1" => Answer::ok(),
        _ => down(),
    });
    bus.json(&["queues", "release", "r.t", &second]);
    wait_for_outcome(&bus, &second, "delivered");

    // To the broker again, with one that is still parked in the store.
    let third = park(&bus);
    place(&installation, &vhost.url(), BROKER);
    reload(&installation, &bus);
    let next = move_while_sending(&bus, next, "rabbit");
    let shown = wait_for_lane(&bus, "all of it at the broker", |lane| {
        lane["in_store"] == 0 && lane["depth"] == next - 3
    });
    assert_eq!(shown["parked"], 2, "{shown}");
    system.now(|_| Answer::ok());
    for id in [&first, &third] {
        bus.json(&["queues", "release", "r.t", id]);
        wait_for_outcome(&bus, id, "delivered");
    }
    wait_until_empty(&bus);
    let rest: Vec<String> = system.texts()[tried..]
        .iter()
        .filter(|text| !["0", "1", "2"].contains(&text.as_str()))
        .cloned()
        .collect();
    repeats(&rest, &numbers(3..next));
    wait_until_journal_is_complete(&bus);
}

/// The move is repeated after each kill, and goes on where it was.
#[test]
fn a_move_that_is_cut_off_by_a_kill_loses_nothing_and_keeps_the_order() {
    const MESSAGES: usize = 600;
    let vhost = Rabbit::shared().vhost();
    let system = Destination::with(|_| down());
    let installation = Installation::new();
    place(&installation, &vhost.url(), BROKER);
    installation.route("r", &route(&system, FAST));
    let mut bus = installation.start();
    send(bus.http, 0..MESSAGES);
    let parked = park(&bus);
    wait_for_lane(&bus, "all of it at the broker", |lane| {
        lane["in_store"] == 0 && lane["depth"] == MESSAGES - 1
    });
    place(&installation, &vhost.url(), EMBEDDED);
    reload(&installation, &bus);
    let client = Client::connect(&vhost.url());
    let mut next = MESSAGES;
    for left in [500, 250, 1] {
        let mut moving = installation
            .command(&["queues", "move", "r.t", "--to", "embedded"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("xbus starts");
        // Killed as soon as some of it has gone.
        wait_for("a part to be moved", || {
            let ended = moving.try_wait().expect("waitable").is_some();
            (ended || client.depth("r.t") <= left).then_some(())
        });
        bus.kill();
        let _ = moving.wait();
        bus = installation.start();
        // What comes meanwhile waits behind.
        send(bus.http, next..next + 10);
        next += 10;
        assert!(
            system.texts().iter().all(|text| text == "0" || text == "1"),
            "{:?}",
            system.texts()
        );
    }
    let held = lane(&bus);
    if held["trouble"].is_string() {
        assert!(
            held["trouble"].to_string().contains("xbus queues move r.t"),
            "{held}"
        );
        assert_eq!(held["state"], "blocked", "{held}");
    }
    bus.json(&["queues", "move", "r.t", "--to", "embedded"]);
    // The store shows what came back under a name of its own.
    system.now(|_| Answer::ok());
    wait_until_empty(&bus);
    wait_for_lane(&bus, "the parked one", |lane| lane["parked"] == 1);
    let from = system
        .texts()
        .iter()
        .position(|text| text == "1")
        .expect("the second");
    repeats(&system.texts()[from..], &numbers(1..next));
    bus.json(&["queues", "release", "r.t", &parked]);
    wait_until_journal_is_complete(&bus);
    assert_eq!(system.texts().last().map(String::as_str), Some("0"));
}

/// Killed while the forwarder hands over what was embedded.
#[test]
fn a_lane_that_goes_to_the_broker_keeps_its_order_over_kills() {
    const MESSAGES: usize = 2_000;
    let vhost = Rabbit::shared().vhost();
    let system = Destination::with(|_| down());
    let installation = Installation::new();
    place(&installation, &vhost.url(), EMBEDDED);
    installation.route("r", &route(&system, FAST));
    let bus = installation.start();
    send(bus.http, 0..MESSAGES);
    bus.kill();
    place(&installation, &vhost.url(), BROKER);
    let client = Client::connect(&vhost.url());
    for share in [1, 300, 900, 1500] {
        let bus = installation.start();
        wait_for("a part to be handed over", || {
            (client.exists("r.t") && client.depth("r.t") >= share).then_some(())
        });
        bus.kill();
    }
    let bus = installation.start();
    wait_for_lane(&bus, "all of it at the broker", |lane| {
        lane["in_store"] == 0 && lane["depth"].as_u64() >= Some(MESSAGES as u64)
    });
    system.now(|_| Answer::ok());
    wait_until_empty(&bus);
    let texts = system.texts();
    repeats(&texts, &numbers(0..MESSAGES));
    let others = texts.iter().filter(|text| *text != "0").count();
    assert_eq!(
        others,
        MESSAGES - 1,
        "what was handed over twice is sent once"
    );
    wait_until_journal_is_complete(&bus);
}
