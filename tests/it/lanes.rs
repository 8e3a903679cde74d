//! Lanes: strict order, keys side by side, administrators' commands, state over a restart, and what
//! they cost.

use crate::support::{Answer, Destination, Installation, post, wait_for};

fn one_lane(system: &Destination, async_options: &str) -> Installation {
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}\ndistribute:\n  - name: t\n    async: {async_options}\n    http: {{ url: \"{}\" }}\n",
            system.url("/t")
        ),
    );
    installation
}

const FAST: &str = "{ retry: { first: 20ms, max: 100ms } }";

#[test]
fn keys_run_side_by_side_and_each_in_order() {
    let system = Destination::with(|got| {
        if got.text().starts_with("bad") {
            Answer::Status(503, "text/plain", Vec::new())
        } else {
            Answer::ok()
        }
    });
    let installation = one_lane(
        &system,
        "{ order_by: 'header(\"x-key\")', retry: { first: 20ms, max: 100ms } }",
    );
    let bus = installation.start();
    for number in 0..30 {
        for key in ["bad", "good", "fine"] {
            let body = format!("{key} {number}");
            let answer = crate::support::request(
                bus.http,
                "POST",
                "/r",
                &[("X-Key", key), ("Content-Type", "text/plain")],
                body.as_bytes(),
            )
            .expect("an answer");
            assert_eq!(answer.status, 202);
        }
    }
    bus.wait_for_depth("r.t", 30);
    let queue = bus.queue("r.t");
    assert_eq!(queue["blocked_keys"], 1, "{queue}");
    for key in ["good", "fine"] {
        let texts: Vec<String> = system
            .texts()
            .into_iter()
            .filter(|text| text.starts_with(key))
            .collect();
        let expected: Vec<String> = (0..30).map(|number| format!("{key} {number}")).collect();
        assert_eq!(texts, expected);
    }
    assert!(
        system
            .texts()
            .iter()
            .filter(|text| text.starts_with("bad"))
            .all(|text| text == "bad 0")
    );
    system.now(|_| Answer::ok());
    bus.wait_for_depth("r.t", 0);
}

#[test]
fn a_rejected_message_blocks_or_is_parked_as_the_route_says() {
    let reject = |got: &crate::support::destination::Got| {
        if got.text() == "poison" {
            Answer::Status(422, "text/plain", b"bad field".to_vec())
        } else {
            Answer::ok()
        }
    };
    let system = Destination::with(reject);
    let installation = one_lane(
        &system,
        "{ retry: { first: 20ms, max: 50ms }, on_reject: park }",
    );
    let bus = installation.start();
    for body in ["one", "poison", "two"] {
        post(bus.http, "/r", "text/plain", body.as_bytes());
    }
    wait_for("the message to be parked", || {
        (bus.queue("r.t")["parked"] == 1).then_some(())
    });
    bus.wait_for_depth("r.t", 0);
    assert_eq!(system.texts(), ["one", "poison", "two"]);
    let shown = bus.json(&["queues", "show", "r.t"]);
    assert!(shown.to_string().contains("bad field"), "{shown}");

    // Released, it goes again; the destination takes it now.
    let id = bus.json(&["messages", "--outcome", "pending"])[0]["id"]
        .as_str()
        .expect("the parked message is pending")
        .to_owned();
    system.now(|_| Answer::ok());
    bus.json(&["queues", "release", "r.t", &id]);
    wait_for("the released message to arrive", || {
        (system.texts().last().map(String::as_str) == Some("poison")).then_some(())
    });
    wait_for("the journal to know", || {
        (bus.json(&["messages", "show", &id])["outcome"] == "delivered").then_some(())
    });
}

#[test]
fn the_head_blocks_on_a_rejection_by_default_and_an_administrator_drops_it() {
    let system = Destination::with(|got| {
        if got.text() == "poison" {
            Answer::Status(400, "text/plain", Vec::new())
        } else {
            Answer::ok()
        }
    });
    let installation = one_lane(&system, FAST);
    let bus = installation.start();
    let poison = post(bus.http, "/r", "text/plain", b"poison").id();
    post(bus.http, "/r", "text/plain", b"next");
    wait_for("the head to be tried twice", || {
        (bus.queue("r.t")["head"]["attempts"].as_u64() >= Some(2)).then_some(())
    });
    assert!(!system.texts().contains(&"next".to_owned()));
    bus.json(&["queues", "drop", "r.t", &poison]);
    bus.wait_for_depth("r.t", 0);
    assert_eq!(system.texts().last().map(String::as_str), Some("next"));
    assert_eq!(
        bus.json(&["messages", "show", &poison])["outcome"],
        "failed"
    );
}

#[test]
fn parking_the_head_lets_the_next_go_on() {
    let system = Destination::with(|got| {
        if got.text() == "stuck" {
            Answer::Status(500, "text/plain", Vec::new())
        } else {
            Answer::ok()
        }
    });
    let installation = one_lane(&system, "{ retry: { first: 30s } }");
    let bus = installation.start();
    post(bus.http, "/r", "text/plain", b"stuck");
    post(bus.http, "/r", "text/plain", b"next");
    wait_for("the head to fail", || {
        (bus.queue("r.t")["head"]["attempts"] == 1).then_some(())
    });
    bus.json(&["queues", "park", "r.t"]);
    wait_for("the next one", || {
        system.texts().contains(&"next".to_owned()).then_some(())
    });
    assert_eq!(bus.queue("r.t")["parked"], 1);
}

#[test]
fn attempts_errors_and_the_next_try_outlive_a_restart() {
    let system = Destination::with(|_| Answer::Status(503, "text/plain", b"later".to_vec()));
    let installation = one_lane(&system, "{ retry: { first: 30s } }");
    let bus = installation.start();
    let id = post(bus.http, "/r", "text/plain", b"x").id();
    let before = wait_for("a failed attempt", || {
        let queue = bus.queue("r.t");
        (queue["head"]["attempts"] == 1).then_some(queue)
    });
    assert!(bus.stop().success());
    let bus = installation.start();
    let after = bus.queue("r.t");
    assert_eq!(after["head"], before["head"]);
    assert_eq!(after["head"]["id"], id);
    assert_eq!(system.count(), 1, "not tried before its time");
    // An administrator does not wait for it.
    system.now(|_| Answer::ok());
    bus.json(&["queues", "retry", "r.t"]);
    bus.wait_for_depth("r.t", 0);
}

#[test]
fn ten_thousand_idle_lanes_cost_no_thread_and_little_memory() {
    let system = Destination::start();
    let installation = one_lane(&system, "{ order_by: 'header(\"x-key\")' }");
    let bus = installation.start();
    let before = (bus.resident_kib(), threads(&bus));
    let mut connection = Keep::open(bus.http);
    for number in 0..10_000 {
        connection.post("/r", &format!("X-Key: k{number}\r\n"), "x");
    }
    bus.wait_for_depth("r.t", 0);
    let after = (bus.resident_kib(), threads(&bus));
    assert!(
        after.0 < before.0 + 50 * 1024,
        "resident before {} KiB, after {} KiB",
        before.0,
        after.0
    );
    assert!(after.1 <= before.1 + 2, "threads: {before:?} {after:?}");
}

fn threads(bus: &crate::support::Bus<'_>) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", bus.pid()))
        .expect("/proc")
        .count()
}

/// A connection that is kept, for many small requests.
pub struct Keep(std::net::TcpStream);

impl Keep {
    pub fn open(address: std::net::SocketAddr) -> Self {
        let stream = std::net::TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        Self(stream)
    }

    #[track_caller]
    pub fn post(&mut self, path: &str, headers: &str, body: &str) -> crate::support::Response {
        self.try_post(path, headers, body).expect("an answer")
    }

    pub fn try_post(
        &mut self,
        path: &str,
        headers: &str,
        body: &str,
    ) -> std::io::Result<crate::support::Response> {
        use std::io::Write;
        write!(
            self.0,
            "POST {path} HTTP/1.1\r\nHost: bus\r\nContent-Type: text/plain\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        crate::support::http::read_response(&mut self.0)
    }
}
