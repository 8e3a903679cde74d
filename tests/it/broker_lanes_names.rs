//! Lanes on RabbitMQ and the names that they take there; lanes whose target is gone.

use crate::broker_lanes::{FAST, down, incidents, node, route, send, wait_for_no_incident};
use crate::support::bus::signal;
use crate::support::rabbit::Rabbit;
use crate::support::{Answer, Destination, Installation, get, wait_for};

fn problems(installation: &Installation) -> Vec<(String, String)> {
    let output = installation.xbus(&["check", ".", "--format", "json"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON of check");
    let problems = said["problems"].as_array().expect("a list of problems");
    problems
        .iter()
        .map(|problem| {
            let text = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
            (text("code"), text("message"))
        })
        .collect()
}

#[test]
fn check_refuses_lanes_whose_queues_at_the_broker_clash() {
    let lane = |queue: &str| {
        format!(
            "receive: {{ http: {{ path: /{queue} }} }}\ndistribute:\n  - name: t\n    async: {{ queue: \"{queue}\" }}\n    file: {{ dir: out, name: x }}\n"
        )
    };
    let reader = |queue: &str| {
        format!(
            "receive: {{ amqp: {{ connection: rabbit, queue: {queue} }} }}\ndistribute:\n  - name: t\n    file: {{ dir: out, name: x }}\n"
        )
    };
    for (first, second, code, word) in [
        (lane("f"), lane("f.parked"), "two-readers", "f.parked"),
        (
            lane("f"),
            reader("f"),
            "two-readers",
            "queue f of connection rabbit",
        ),
        (lane("f"), lane("amq.f"), "bad-name", "reserved"),
        (lane("f"), lane("xbus.f"), "bad-name", "reserved"),
    ] {
        let installation = node("amqp://127.0.0.1:1/%2f", "a");
        installation.route("a", &first);
        installation.route("b", &second);
        let found = problems(&installation);
        assert!(
            found
                .iter()
                .any(|(c, message)| c == code && message.contains(word)),
            "{found:?}"
        );
    }
    let installation = node("amqp://127.0.0.1:1/%2f", "a");
    installation.route("a", &lane("f"));
    installation.route("b", &lane("g"));
    installation.route("c", &reader("h"));
    assert_eq!(problems(&installation), []);
}

#[test]
fn a_lane_whose_target_is_gone_is_shown_and_told_and_goes_on_when_it_is_back() {
    let vhost = Rabbit::shared().vhost();
    let system = Destination::with(|_| down());
    let installation = node(&vhost.url(), "a");
    let yaml = route(&system, FAST);
    installation.route("r", &yaml);
    let bus = installation.start();
    send(bus.http, 0..3);
    wait_for("the head to fail", || {
        (bus.queue("r.t")["head"]["attempts"].as_u64() > Some(1)).then_some(())
    });
    std::fs::remove_file(installation.path().join("routes/r.yaml")).expect("remove the route");
    installation.route(
        "other",
        "receive: { http: { path: /other } }\nreply: { status: 200 }\n",
    );
    signal(bus.pid(), "HUP");
    wait_for("the incident", || {
        incidents(&bus)
            .iter()
            .any(|incident| incident["kind"] == "no-consumer")
            .then_some(())
    });
    let queue = bus.queue("r.t");
    assert_eq!(queue["depth"], 3, "{queue}");
    assert_eq!(queue["state"], "blocked", "{queue}");
    // The broker's counts are asked for now and then.
    wait_for("the depth in the metrics", || {
        let metrics = get(bus.admin, "/metrics").text();
        metrics
            .contains("xbus_queue_depth{queue=\"r.t\"} 3")
            .then_some(())
    });

    system.now(|_| Answer::ok());
    let before = system.count();
    installation.route("r", &yaml);
    signal(bus.pid(), "HUP");
    system.wait_for_count(before + 3);
    wait_for_no_incident(&bus);
}
