//! What once broke, each named after it.

use std::time::Duration;

use crate::support::bus::signal;
use crate::support::{Answer, Destination, Installation, get, post, wait_for};

#[test]
fn an_in_doubt_head_of_a_queue_was_sent_again() {
    let system = Destination::with(|_| Answer::Close);
    let installation = Installation::new();
    installation
        .route(
            "in",
            "receive: { http: { path: /in } }\ndistribute:\n  - name: q\n    queue: { name: q }\n",
        )
        .route(
            "out",
            &format!(
                "receive:\n  queue: {{ name: q }}\n  retry: {{ first: 20ms, max: 50ms }}\ndistribute:\n  - name: file\n    file: {{ dir: out, name: \"{{{{ id }}}}\" }}\n  - name: system\n    http: {{ url: \"{}\" }}\n",
                system.url("/")
            ),
        );
    let bus = installation.start();
    post(bus.http, "/in", "text/plain", b"first");
    wait_for("the message to be set aside", || {
        (bus.queue("q")["parked"] == 1).then_some(())
    });
    assert_eq!(system.count(), 1);
    let in_doubt = bus.json(&["messages", "--outcome", "in-doubt"]);
    let id = in_doubt[0]["id"].as_str().expect("an id").to_owned();
    // What is behind it goes on.
    system.now(|_| Answer::ok());
    post(bus.http, "/in", "text/plain", b"second");
    wait_for("the next one", || (system.count() == 2).then_some(()));
    bus.json(&["messages", "resolve", &id, "--commit"]);
    wait_for("both files", || {
        (installation.names("out").len() == 2).then_some(())
    });
    wait_for("the queue to be empty", || {
        let queue = bus.queue("q");
        (queue["depth"] == 0 && queue["parked"] == 0).then_some(())
    });
    assert_eq!(bus.json(&["messages", "show", &id])["outcome"], "delivered");
    assert_eq!(system.count(), 2, "never sent again");
}

#[test]
fn a_reload_answered_404_while_a_message_was_in_flight() {
    let slow = Destination::with(|_| {
        std::thread::sleep(Duration::from_secs(2));
        Answer::ok()
    });
    let installation = Installation::new();
    installation
        .route(
            "slow",
            &format!(
                "receive: {{ http: {{ path: /slow }} }}\ninvoke:\n  - name: s\n    http: {{ url: \"{}\" }}\n",
                slow.url("/")
            ),
        )
        .route("quick", "receive: { http: { path: /quick } }\nreply: { status: 200 }\n");
    let bus = installation.start();
    let address = bus.http;
    let caller = std::thread::spawn(move || post(address, "/slow", "text/plain", b"x"));
    wait_for("the message to be in flight", || {
        get(bus.admin, "/metrics")
            .text()
            .contains("xbus_messages_running{route=\"slow\"} 1")
            .then_some(())
    });
    signal(bus.pid(), "HUP");
    while !installation.log().contains("reloaded") && !caller.is_finished() {
        assert_eq!(post(bus.http, "/quick", "text/plain", b"x").status, 200);
    }
    assert_eq!(caller.join().expect("the caller").status, 200);
    wait_for("the reload", || {
        installation.log().contains("reloaded").then_some(())
    });
}

#[test]
fn a_lane_slept_on_after_its_route_had_gone_and_come_back() {
    let system = Destination::with(|_| Answer::Status(503, "text/plain", Vec::new()));
    let installation = Installation::new();
    let route = format!(
        "receive: {{ http: {{ path: /r }} }}\ndistribute:\n  - name: t\n    async: {{ retry: {{ first: 100ms, max: 100ms }} }}\n    http: {{ url: \"{}\" }}\n",
        system.url("/")
    );
    installation.route("r", &route);
    installation.route(
        "other",
        "receive: { http: { path: /o } }\nreply: { status: 200 }\n",
    );
    let bus = installation.start();
    post(bus.http, "/r", "text/plain", b"x");
    wait_for("an attempt", || (system.count() > 0).then_some(()));
    let reload = |times: usize| {
        signal(bus.pid(), "HUP");
        wait_for("the reload", || {
            (installation.log().matches(" reloaded").count() == times).then_some(())
        });
    };
    std::fs::remove_file(installation.path().join("routes/r.yaml")).expect("removed");
    reload(1);
    wait_for("the lane to notice", || {
        (!bus.queue("r.t")["depth"].is_null()).then_some(())
    });
    let open = get(bus.admin, "/api/v1/incidents").text();
    assert!(open.contains("no-consumer"), "{open}");
    system.now(|_| Answer::ok());
    installation.route("r", &route);
    reload(2);
    bus.wait_for_depth("r.t", 0);
    let open = get(bus.admin, "/api/v1/incidents").text();
    assert!(!open.contains("no-consumer"), "{open}");
}

#[test]
fn replay_ran_what_a_target_was_sent() {
    let system = Destination::with(|_| Answer::Status(400, "text/plain", Vec::new()));
    let installation = Installation::new();
    installation.file(
        "xbus.yaml",
        "name: test\nhttp: { listen: \"127.0.0.1:0\" }\nadmin: { listen: \"127.0.0.1:0\" }\n",
    );
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}\ndistribute:\n  - name: t\n    transform: t.rhai\n    async: {{ retry: {{ first: 20ms }}, on_reject: park }}\n    http: {{ url: \"{}\" }}\n",
            system.url("/")
        ),
    );
    installation.script("t.rhai", "element(\"made\", \"\")");
    let bus = installation.start();
    let id = post(bus.http, "/r", "application/json", b"{}").id();
    wait_for("the message to be parked", || {
        (bus.queue("r.t")["parked"] == 1).then_some(())
    });
    let replayed = installation.xbus(&["messages", "replay", &id]);
    assert_eq!(replayed.status.code(), Some(1), "{replayed:?}");
    let shown = bus.json(&["messages", "show", &id]).to_string();
    assert!(!shown.contains("<made"), "{shown}");
}

#[test]
fn a_message_that_is_tried_again_was_shown_as_failed() {
    let system = Destination::with(|_| Answer::Status(503, "text/plain", Vec::new()));
    let installation = Installation::new();
    installation.route(
        "files",
        &format!(
            "receive:\n  file: {{ dir: in, ready: {{ rename: true }} }}\n  retry: {{ first: 50ms, max: 50ms }}\ndistribute:\n  - name: t\n    http: {{ url: \"{}\" }}\n",
            system.url("/")
        ),
    );
    let bus = installation.start();
    installation.file("in/a.txt", "a");
    wait_for("attempts", || (system.count() > 2).then_some(()));
    let entry = &bus.json(&["messages"])[0];
    assert_eq!(entry["outcome"], "pending", "{entry}");
    system.now(|_| Answer::ok());
    wait_for("the delivery", || {
        (bus.json(&["messages"])[0]["outcome"] == "delivered").then_some(())
    });
}

#[test]
fn a_secret_of_a_file_was_quoted_in_errors() {
    let installation = Installation::new();
    installation.file("token", "sekret-bearer-77\n");
    let token = installation.path().join("token").display().to_string();
    let service = Destination::with(|got| {
        let echo = format!("bad key {}", got.header("x-key").unwrap_or("none"));
        Answer::Status(500, "text/plain", echo.into_bytes())
    });
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}\ninvoke:\n  - name: s\n    http: {{ url: \"{}/${{file:{token}}}/x\", headers: {{ X-Key: \"${{file:{token}}}\" }} }}\n",
            service.url("")
        ),
    );
    let bus = installation.start();
    let got = post(bus.http, "/r", "text/plain", b"payload-p4yl0ad");
    assert_eq!(got.status, 502);
    assert_eq!(service.got()[0].header("x-key"), Some("sekret-bearer-77"));
    let shown = bus.json(&["messages", "show", &got.id()]);
    assert!(!shown["fault"].to_string().contains("sekret"), "{shown}");
    assert!(shown.to_string().contains("(secret)"), "{shown}");
    assert!(
        !installation.log().contains("sekret"),
        "{}",
        installation.log()
    );
}

#[test]
fn a_bus_whose_disk_was_full_did_not_start() {
    let system = Destination::with(|_| Answer::Status(503, "text/plain", Vec::new()));
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}\ndistribute:\n  - name: t\n    async: {{ retry: {{ first: 50ms, max: 200ms }} }}\n    http: {{ url: \"{}\" }}\n",
            system.url("/")
        ),
    );
    let port = crate::support::free_port();
    installation.file(
        "xbus.yaml",
        format!("http: {{ listen: \"127.0.0.1:0\" }}\nadmin: {{ listen: \"127.0.0.1:{port}\" }}\n"),
    );
    let disk = crate::store::SmallDisk::mount(&installation.path().join("data"), "160m");
    let bus = installation.start();
    post(bus.http, "/r", "text/plain", b"kept");
    bus.kill();
    let filler = installation.path().join("data/filler");
    let _ = std::process::Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", &format!("of={}", filler.display())])
        .output();
    system.now(|_| Answer::ok());
    let mut child = installation
        .command(&["run", "."])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("xbus starts");
    wait_for("what was kept to be delivered", || {
        assert!(child.try_wait().expect("waitable").is_none(), "it ended");
        system.texts().contains(&"kept".to_owned()).then_some(())
    });
    let _ = child.kill();
    let _ = child.wait();
    drop(disk);
}

#[test]
fn a_path_could_not_move_to_another_route_by_a_reload() {
    let installation = Installation::new();
    let route = |status: u16| {
        format!("receive: {{ http: {{ path: /r }} }}\nreply: {{ status: {status} }}\n")
    };
    installation.route("old", &route(201));
    let bus = installation.start();
    assert_eq!(post(bus.http, "/r", "text/plain", b"x").status, 201);
    std::fs::remove_file(installation.path().join("routes/old.yaml")).expect("removed");
    installation.route("new", &route(202));
    signal(bus.pid(), "HUP");
    wait_for("the new route", || {
        (post(bus.http, "/r", "text/plain", b"x").status == 202).then_some(())
    });
    assert!(
        installation.log().contains(" reloaded"),
        "{}",
        installation.log()
    );
}
