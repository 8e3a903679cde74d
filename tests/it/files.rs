//! Watched folders: half-written, renamed in, dropped twice, unreadable, with odd names, a thousand
//! at once, a folder that is missing at the start, and crashes between acceptance and the move.

use std::fs;
use std::os::unix::ffi::OsStringExt;

use crate::support::{Answer, Destination, Installation, wait_for};

fn watching(options: &str, target: &str) -> Installation {
    let installation = Installation::new();
    installation.route(
        "watch",
        &format!("receive:\n  file: {{ dir: in, poll: 100ms, {options} }}\n  retry: {{ first: 50ms, max: 200ms }}\ndistribute:\n  - name: t\n    {target}\n"),
    );
    installation
}

const OUT: &str = "file: { dir: out, name: '{{ header(\"file.name\") }}' }";

#[test]
fn a_file_is_taken_once_it_is_complete_and_moved_to_done() {
    let installation = watching("ready: { stable: 300ms }", OUT);
    let bus = installation.start();
    // Missing at the start: made.
    wait_for("the folder", || {
        installation.path().join("in").is_dir().then_some(())
    });
    let mut growing = fs::File::create(installation.path().join("in/grows.txt")).expect("a file");
    for number in 0..8 {
        use std::io::Write;
        writeln!(growing, "line {number}").expect("written");
        growing.sync_all().expect("synced");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    drop(growing);
    wait_for("the file", || {
        (installation.names("out") == ["grows.txt"]).then_some(())
    });
    assert_eq!(installation.read("out/grows.txt").lines().count(), 8);
    wait_for("done", || {
        (installation.names("in/.done") == ["grows.txt"]).then_some(())
    });
    assert!(installation.names("in").is_empty());
    drop(bus);
}

#[test]
fn the_same_name_dropped_twice_is_processed_twice() {
    let installation = watching(
        "ready: { rename: true }",
        "file: { dir: out, name: \"{{ id }}\" }",
    );
    let _bus = installation.start();
    for content in ["first", "second"] {
        installation.file("in/.new", content);
        fs::rename(
            installation.path().join("in/.new"),
            installation.path().join("in/order.txt"),
        )
        .expect("renamed in");
        wait_for("the file to be taken", || {
            (!installation.path().join("in/order.txt").exists()).then_some(())
        });
    }
    wait_for("both in done", || {
        (installation.names("in/.done") == ["order-1.txt", "order.txt"]
            || installation.names("in/.done") == ["order.txt", "order.txt-1"])
        .then_some(())
    });
    let mut bodies: Vec<String> = installation
        .files("out")
        .iter()
        .map(|path| fs::read_to_string(path).expect("readable"))
        .collect();
    bodies.sort();
    assert_eq!(bodies, ["first", "second"]);
}

#[test]
fn a_marker_says_that_a_file_is_complete() {
    let installation = watching("pattern: \"*.xml\", ready: { marker: \".done\" }", OUT);
    let _bus = installation.start();
    installation.file("in/a.xml", "<a/>");
    installation.file("in/b.xml", "<b/>");
    installation.file("in/b.xml.done", "");
    wait_for("the marked file", || {
        (installation.names("out") == ["b.xml"]).then_some(())
    });
    wait_for("the marker to go", || {
        (installation.names("in") == ["a.xml"]).then_some(())
    });
}

#[test]
fn odd_names_are_handled_and_stay_in_their_folder() {
    let installation = watching("ready: { rename: true }", OUT);
    let folder = installation.path().join("in");
    fs::create_dir_all(&folder).expect("a folder");
    let odd: Vec<std::ffi::OsString> = vec![
        "with space.txt".into(),
        "new\nline.txt".into(),
        "{{ id }}.txt".into(),
        "-rf.txt".into(),
        "ünïcode.txt".into(),
        "quote\"'`$(x).txt".into(),
        std::ffi::OsString::from_vec(b"latin-\xfc.txt".to_vec()),
        format!("{}.txt", "l".repeat(240)).into(),
    ];
    for name in &odd {
        fs::write(folder.join(name), "x").expect("written");
    }
    let _bus = installation.start();
    wait_for("all in done", || {
        (installation.files("in/.done").len() == odd.len()).then_some(())
    });
    assert_eq!(installation.files("out").len(), odd.len());
    assert!(installation.files("in").is_empty());
}

#[test]
fn a_thousand_at_once_all_arrive_in_the_order_of_their_names() {
    let system = Destination::start();
    let installation = watching(
        "ready: { rename: true }, order: name",
        &format!(
            "async: {{ retry: {{ first: 50ms }} }}\n    http: {{ url: \"{}\" }}",
            system.url("/")
        ),
    );
    for number in 0..1000 {
        installation.file(&format!("in/{number:04}.txt"), number.to_string());
    }
    let bus = installation.start();
    wait_for("all in done", || {
        (installation.files("in/.done").len() == 1000).then_some(())
    });
    bus.wait_for_depth("watch.t", 0);
    let expected: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    assert_eq!(system.texts(), expected);
}

#[test]
fn a_rejected_file_goes_to_failed_with_its_reason_and_an_outage_is_retried() {
    let system = Destination::with(|got| match got.text().as_str() {
        "bad" => Answer::Status(400, "text/plain", b"field x is missing".to_vec()),
        _ => Answer::Status(503, "text/plain", Vec::new()),
    });
    let installation = watching(
        "ready: { rename: true }, order: name",
        &format!("http: {{ url: \"{}\" }}", system.url("/")),
    );
    installation.file("in/1-bad.txt", "bad");
    installation.file("in/2-good.txt", "good");
    installation.file("in/3-later.txt", "later");
    let bus = installation.start();
    wait_for("the rejected one in failed", || {
        (installation.names("in/.failed") == ["1-bad.txt", "1-bad.txt.error.json"]).then_some(())
    });
    let reason: serde_json::Value =
        serde_json::from_str(&installation.read("in/.failed/1-bad.txt.error.json")).expect("JSON");
    for key in ["id", "route", "step", "code", "reason", "attempts", "at"] {
        assert!(!reason[key].is_null(), "no {key} in {reason}");
    }
    assert!(
        reason["reason"].to_string().contains("field x is missing"),
        "{reason}"
    );
    wait_for("retries of the second", || {
        (system.texts().iter().filter(|text| *text == "good").count() > 2).then_some(())
    });
    assert!(
        !system.texts().contains(&"later".to_owned()),
        "order is kept"
    );
    system.now(|_| Answer::ok());
    wait_for("both in done", || {
        (installation.names("in/.done") == ["2-good.txt", "3-later.txt"]).then_some(())
    });
    drop(bus);
}

#[test]
fn a_kill_while_a_file_is_delivered_takes_it_up_again() {
    let system = Destination::with(|_| Answer::Hang(std::time::Duration::from_secs(60)));
    let installation = watching(
        "ready: { rename: true }",
        &format!("timeout: 60s\n    http: {{ url: \"{}\" }}", system.url("/")),
    );
    installation.file("in/a.txt", "a");
    let bus = installation.start();
    system.wait_for_count(1);
    bus.kill();
    system.now(|_| Answer::ok());
    let _bus = installation.start();
    wait_for("done", || {
        (installation.names("in/.done") == ["a.txt"]).then_some(())
    });
}

#[test]
fn what_was_accepted_before_a_kill_is_not_processed_again() {
    // Accepting is durable; the kill comes while many files are between acceptance and their move.
    let system = Destination::start();
    let installation = watching(
        "ready: { rename: true }, order: name",
        &format!(
            "async: {{ retry: {{ first: 20ms }} }}\n    http: {{ url: \"{}\" }}",
            system.url("/")
        ),
    );
    for number in 0..300 {
        installation.file(&format!("in/{number:03}.txt"), number.to_string());
    }
    for kill in 1..=10 {
        let bus = installation.start();
        wait_for("progress", || {
            (installation.files("in/.done").len() >= kill * 25).then_some(())
        });
        bus.kill();
    }
    let bus = installation.start();
    wait_for("all in done", || {
        (installation.files("in/.done").len() == 300).then_some(())
    });
    bus.wait_for_depth("watch.t", 0);
    let texts = system.texts();
    let mut distinct = texts.clone();
    distinct.dedup();
    let expected: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    assert_eq!(
        distinct, expected,
        "in order, a repeat only right after its original"
    );
    // A repeat of a delivery in flight is one message; a file accepted twice would be another.
    let ids: std::collections::HashSet<String> = system
        .got()
        .iter()
        .map(|got| got.header("X-Message-Id").expect("an id").to_owned())
        .collect();
    assert_eq!(ids.len(), 300, "no file became two messages");
}

#[test]
fn a_second_bus_with_the_same_node_refuses_the_folder() {
    let installation = watching("ready: { rename: true }", OUT);
    let _bus = installation.start();
    let other = Installation::new();
    other.route(
        "watch",
        &format!(
            "receive: {{ file: {{ dir: \"{}\" }} }}\ndistribute:\n  - name: t\n    {OUT}\n",
            installation.path().join("in").display()
        ),
    );
    let output = other.xbus(&["run", "."]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("node"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_name_from_a_message_never_leaves_its_folder() {
    let installation = Installation::new();
    installation.route(
        "r",
        "receive: { http: { path: /r } }\ndistribute:\n  - name: t\n    file: { dir: out, name: '{{ body.name }}' }\n",
    );
    let bus = installation.start();
    for name in [
        "../escape",
        "/etc/x",
        "a/../../b",
        "..",
        ".",
        "",
        "\u{0}x",
        "CON\r\n",
    ] {
        let body = serde_json::json!({ "name": name }).to_string();
        let got = crate::support::post(bus.http, "/r", "application/json", body.as_bytes());
        assert!(got.status < 600);
    }
    let outside: Vec<String> = installation
        .names(".")
        .into_iter()
        .filter(|name| name != "bus.log" && name != "xbus.yaml")
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
    assert!(
        !installation
            .path()
            .parent()
            .expect("a parent")
            .join("escape")
            .exists()
    );
}

#[test]
fn existing_files_are_treated_as_the_route_says() {
    let installation = Installation::new();
    for exists in ["fail", "replace", "append", "number"] {
        installation.route(
            exists,
            &format!(
                "receive: {{ http: {{ path: /{exists} }} }}\ndistribute:\n  - name: t\n    file: {{ dir: out-{exists}, name: a.txt, exists: {exists} }}\n"
            ),
        );
        installation.file(&format!("out-{exists}/a.txt"), "old ");
    }
    let bus = installation.start();
    let call = |path: &str| crate::support::post(bus.http, path, "text/plain", b"new");
    assert_eq!(call("/fail").status, 502);
    assert_eq!(call("/replace").status, 200);
    assert_eq!(call("/append").status, 200);
    assert_eq!(call("/number").status, 200);
    assert_eq!(installation.read("out-fail/a.txt"), "old ");
    assert_eq!(installation.read("out-replace/a.txt"), "new");
    assert_eq!(installation.read("out-append/a.txt"), "old new");
    assert_eq!(installation.read("out-number/a.txt"), "old ");
    assert_eq!(installation.read("out-number/a-1.txt"), "new");
    assert_eq!(installation.names("out-fail"), ["a.txt"]);
}
