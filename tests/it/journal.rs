//! "Where is my message, and why": the journal, its search, and replay.

use crate::support::{Answer, Destination, Installation, get, post, request, wait_for};

#[test]
fn messages_are_found_by_route_outcome_key_and_time_newest_first() {
    let system = Destination::with(|got| {
        if got.text().contains("bad") {
            Answer::Status(500, "text/plain", b"no such account".to_vec())
        } else {
            Answer::ok()
        }
    });
    let installation = Installation::new();
    installation.route(
        "pay",
        &format!(
            "receive: {{ http: {{ path: /pay }} }}\nkeys: {{ account: 'body.account' }}\ndistribute:\n  - name: bank\n    http: {{ url: \"{}\" }}\n",
            system.url("/")
        ),
    );
    installation.route(
        "never",
        "receive: { http: { path: /never } }\nwhen: 'body.wanted == true'\ndistribute:\n  - name: file\n    file: { dir: out, name: x }\n",
    );
    let bus = installation.start();
    let good = post(
        bus.http,
        "/pay",
        "application/json",
        b"{\"account\":\"good\"}",
    )
    .id();
    let bad = post(
        bus.http,
        "/pay",
        "application/json",
        b"{\"account\":\"bad\"}",
    )
    .id();
    let filtered = post(
        bus.http,
        "/never",
        "application/json",
        b"{\"wanted\":false}",
    );
    assert_eq!(filtered.json()["status"], "filtered");
    let ids = |arguments: &[&str]| -> Vec<String> {
        let mut all = vec!["messages"];
        all.extend(arguments);
        bus.json(&all)
            .as_array()
            .expect("a list")
            .iter()
            .map(|entry| entry["id"].as_str().expect("an id").to_owned())
            .collect()
    };
    wait_for("the journal", || (ids(&[]).len() == 3).then_some(()));
    assert_eq!(ids(&[]), [filtered.id(), bad.clone(), good.clone()]);
    assert_eq!(ids(&["--route", "pay"]), [bad.clone(), good.clone()]);
    assert_eq!(ids(&["--outcome", "failed"]), [bad.as_str()]);
    assert_eq!(ids(&["--outcome", "filtered"]), [filtered.id()]);
    assert_eq!(ids(&["--key", "account=good"]), [good.as_str()]);
    assert_eq!(ids(&["--since", "1h", "--limit", "1"]), [filtered.id()]);
    assert!(ids(&["--since", "2100-01-01T00:00:00Z"]).is_empty());
    let entry = bus.json(&["messages", "show", &bad]);
    assert_eq!(entry["keys"]["account"], "bad");
    assert_eq!(entry["targets"][0]["outcome"], "failed");
    assert!(
        entry["targets"][0]["error"]
            .as_str()
            .is_some_and(|error| error.contains("no such account")),
        "{entry}"
    );

    // Mended, the message is sent once more: a new one that names the old one as its cause.
    system.now(|_| Answer::ok());
    let replayed = bus.json(&["messages", "replay", &bad]);
    let new = replayed["id"].as_str().expect("a new id").to_owned();
    assert_ne!(new, bad);
    let entry = wait_for("the new entry", || {
        let output = installation.xbus(&["messages", "show", &new, "--json"]);
        output
            .status
            .success()
            .then(|| serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON"))
    });
    assert_eq!(entry["outcome"], "delivered");
    assert_eq!(entry["cause"], bad);
    assert_eq!(
        system.texts().last().map(String::as_str),
        Some("{\"account\":\"bad\"}")
    );
}

#[test]
fn a_repeat_gets_the_first_answer_and_is_not_processed_again() {
    let system = Destination::with(|got| {
        if got.text() == "fails" {
            Answer::Status(500, "text/plain", Vec::new())
        } else {
            Answer::Status(200, "text/plain", b"answer".to_vec())
        }
    });
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}\nonce: {{ key: 'header(\"idempotency-key\")', keep: 1h }}\ninvoke:\n  - name: s\n    http: {{ url: \"{}\" }}\n",
            system.url("/")
        ),
    );
    let bus = installation.start();
    let send = |bus: &crate::support::Bus<'_>, key: &str, body: &str| {
        request(
            bus.http,
            "POST",
            "/r",
            &[("Idempotency-Key", key), ("Content-Type", "text/plain")],
            body.as_bytes(),
        )
        .expect("an answer")
    };
    let first = send(&bus, "k1", "hello");
    let again = send(&bus, "k1", "hello");
    assert_eq!((again.status, again.text()), (200, "answer".to_owned()));
    assert_eq!(again.id(), first.id());
    assert_eq!(system.count(), 1);
    assert_eq!(send(&bus, "k1", "another body").status, 422);
    // It outlives a kill.
    bus.kill();
    let bus = installation.start();
    assert_eq!(send(&bus, "k1", "hello").id(), first.id());
    assert_eq!(system.count(), 1);
    // A failure is not kept.
    assert_eq!(send(&bus, "k2", "fails").status, 502);
    assert_eq!(send(&bus, "k2", "fails").status, 502);
    assert_eq!(system.count(), 3);
    // Repeats that arrive meanwhile wait for the first.
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| send(&bus, "k3", "at once").status))
            .collect();
        all.into_iter()
            .map(|one| one.join().expect("a caller"))
            .collect()
    });
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_eq!(system.count(), 4);
}

#[test]
fn health_and_metrics_tell_how_the_bus_is() {
    let system = Destination::with(|_| Answer::Status(503, "text/plain", Vec::new()));
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}\ndistribute:\n  - name: t\n    async: {{ retry: {{ first: 20ms }} }}\n    http: {{ url: \"{}\" }}\n",
            system.url("/")
        ),
    );
    let bus = installation.start();
    assert_eq!(get(bus.admin, "/health/live").status, 200);
    post(bus.http, "/r", "text/plain", b"x");
    wait_for("the failed attempt in the metrics", || {
        let metrics = get(bus.admin, "/metrics").text();
        let has = |start: &str, end: &str| {
            metrics
                .lines()
                .any(|line| line.starts_with(start) && line.ends_with(end))
        };
        (has("xbus_messages_received_total{route=\"r\"}", " 1")
            && has("xbus_messages_acknowledged_total{route=\"r\"}", " 1")
            && has("xbus_queue_depth{queue=\"r.t\"}", " 1.0")
            && metrics.contains("xbus_target_failed_total{"))
        .then_some(())
    });
}
