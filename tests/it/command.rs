//! The command: exit codes, diagnostics, init, send, stop.

use std::time::Duration;

use crate::support::bus::signal;
use crate::support::{Answer, Destination, Installation, post, wait_for};

#[test]
fn init_makes_a_folder_that_checks_and_runs() {
    let installation = Installation::bare();
    let made = installation.xbus(&["init", "shop"]);
    assert!(made.status.success(), "{made:?}");
    let checked = installation.xbus(&["check", "shop"]);
    assert!(checked.status.success(), "{checked:?}");
    let again = installation.xbus(&["init", "shop"]);
    assert_eq!(
        again.status.code(),
        Some(1),
        "a folder in use is not overwritten"
    );
}

#[test]
fn check_says_every_mistake_at_once_with_place_and_help() {
    let installation = Installation::new();
    installation
        .route(
            "wrong",
            "route: wrong
recieve:
  http: { path: /x }
distribute:
  - name: a
    transfrom: a.rhai
    file: { dir: out, name: \"{{ idd }}\" }
  - name: a
    htpp: { url: \"http://127.0.0.1:1/\" }
",
        )
        .route(
            "script",
            "receive: { http: { path: /y } }\nreply: { transform: broken.rhai }\n",
        )
        .script("broken.rhai", "let a = 1;\nlet b = (a + ;\n");
    let output = installation.xbus(&["check", ".", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let problems: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let problems = problems["problems"].as_array().expect("a list");
    let find = |file: &str, line: u64| {
        problems
            .iter()
            .find(|problem| problem["file"] == file && problem["line"] == line)
            .unwrap_or_else(|| panic!("nothing at {file}:{line} in {problems:#?}"))
    };
    let help = |file: &str, line: u64| find(file, line)["help"].as_str().unwrap_or("").to_owned();
    assert!(help("routes/wrong.yaml", 2).contains("receive"));
    assert!(help("routes/wrong.yaml", 6).contains("transform"));
    assert!(
        find("routes/wrong.yaml", 7)["message"]
            .to_string()
            .contains("idd")
    );
    assert!(help("routes/wrong.yaml", 9).contains("http"));
    assert_eq!(find("transforms/broken.rhai", 2)["severity"], "error");
    let human = installation.xbus(&["check", "."]);
    let text = String::from_utf8_lossy(&human.stdout).into_owned();
    assert!(text.contains("routes/wrong.yaml:2:1"), "{text}");
    assert!(
        text.contains("recieve:"),
        "the source line is quoted: {text}"
    );
    let run = installation.xbus(&["run", "."]);
    assert_eq!(
        run.status.code(),
        Some(1),
        "run refuses to start on an error"
    );
}

#[test]
fn slips_that_integrators_make_are_told_with_their_mend() {
    for (route, line, message, help) in [
        (
            "receive:\n  file:\n  dir: in\nreply: {}\n",
            3,
            "no key 'dir'",
            "it is one of 'file': indent it deeper",
        ),
        (
            "receive: { http: { path: /a } }\nwhen: \"header(\"x\") == 1\"\nreply: {}\n",
            2,
            "not YAML",
            "in single quotes",
        ),
        (
            "receive: { http: { path: /a } }\ninvoke:\n  - name: x\n    retry: 3\n    http: { url: \"http://127.0.0.1:1/\" }\n",
            4,
            "'retry' cannot be '3'",
            "keys: attempts, first",
        ),
        (
            "receive: { http: { path: /a } }\nwhen: 'table(\"land.csv\")[\"DE\"] == 1'\nreply: {}\n",
            2,
            "there is no file transforms/land.csv",
            "",
        ),
        (
            "receive: { http: { path: /a } }\nreply: { transform: s.rhai }\n",
            2,
            "Expecting ';'",
            "end the statement before this place with ';'",
        ),
    ] {
        let installation = Installation::new();
        installation.route("slip", route);
        installation.script("s.rhai", "let a = 1\nlet b = 2;\nb\n");
        let output = installation.xbus(&["check", ".", "--format", "json"]);
        assert_eq!(output.status.code(), Some(1), "{route}");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let problem = told["problems"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|problem| problem["line"] == line)
            .unwrap_or_else(|| panic!("nothing in line {line} of {told:#}"));
        let has = |key: &str, what: &str| problem[key].as_str().unwrap_or("").contains(what);
        assert!(has("message", message) && has("help", help), "{problem:#}");
    }
}

#[test]
fn exit_codes_tell_wrong_use_and_no_bus() {
    let installation = Installation::new();
    assert_eq!(installation.xbus(&["frobnicate"]).status.code(), Some(2));
    assert_eq!(installation.xbus(&["queues"]).status.code(), Some(3));
    assert_eq!(installation.xbus(&["--help"]).status.code(), Some(0));
    installation.route(
        "r",
        "receive: { http: { path: /r } }\nreply: { transform: r.rhai }\n",
    );
    installation.script("r.rhai", "#{ said: body }");
    let bus = installation.start();
    assert_eq!(
        installation
            .xbus(&["messages", "show", "0192e4a6-0000-7000-8000-000000000000"])
            .status
            .code(),
        Some(1)
    );
    drop(bus);
}

#[test]
fn send_hands_a_message_to_a_route() {
    let installation = Installation::new();
    installation.route(
        "r",
        "receive: { http: { path: /r } }\nreply: { transform: r.rhai }\n",
    );
    installation.script(
        "r.rhai",
        "if body.n == 0 { fail(\"client\", \"n must not be 0\") }\n#{ n: body.n, who: header(\"who\") }",
    );
    installation.file("good.json", "{\"n\": 5}");
    installation.file("bad.json", "{\"n\": 0}");
    let bus = installation.start();
    let good = installation.xbus(&["send", "r", "good.json", "--header", "who=me"]);
    assert!(good.status.success(), "{good:?}");
    assert_eq!(
        String::from_utf8_lossy(&good.stdout).trim(),
        "{\"n\":5,\"who\":\"me\"}"
    );
    let bad = installation.xbus(&["send", "r", "bad.json", "--json"]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&bad.stdout).contains("n must not be 0"),
        "{bad:?}"
    );
    assert_eq!(
        installation
            .xbus(&["send", "nowhere", "good.json"])
            .status
            .code(),
        Some(1)
    );
    drop(bus);
}

#[test]
fn sigterm_lets_what_is_in_flight_end() {
    let slow = Destination::with(|_| {
        std::thread::sleep(Duration::from_millis(700));
        Answer::ok()
    });
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}\ninvoke:\n  - name: slow\n    http: {{ url: \"{}\" }}\n",
            slow.url("/")
        ),
    );
    let bus = installation.start();
    let address = bus.http;
    let caller = std::thread::spawn(move || post(address, "/r", "text/plain", b"x"));
    wait_for("the message to be in flight", || {
        let running = crate::support::get(bus.admin, "/metrics").text();
        running
            .lines()
            .any(|line| line.starts_with("xbus_messages_running") && line.ends_with(" 1.0"))
            .then_some(())
    });
    let status = bus.stop();
    assert!(status.success(), "{status}\n{}", installation.log());
    assert_eq!(caller.join().expect("the caller").status, 200);
}

#[test]
fn a_second_signal_ends_at_once() {
    let hanging = Destination::with(|_| Answer::Hang(Duration::from_secs(60)));
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}\ninvoke:\n  - name: slow\n    http: {{ url: \"{}\" }}\n",
            hanging.url("/")
        ),
    );
    let bus = installation.start();
    let address = bus.http;
    let caller =
        std::thread::spawn(move || crate::support::request(address, "POST", "/r", &[], b"x"));
    hanging.wait_for_count(1);
    let pid = bus.pid();
    signal(pid, "TERM");
    wait_for("the stop to begin", || {
        installation.log().contains("stopping").then_some(())
    });
    let status = bus.stop();
    assert_eq!(status.code(), Some(1), "{}", installation.log());
    let _ = caller.join();
}

#[test]
fn a_reload_takes_up_new_routes_and_keeps_the_old_ones_on_an_error() {
    let installation = Installation::new();
    installation.route(
        "a",
        "receive: { http: { path: /a } }\nreply: { transform: a.rhai }\n",
    );
    installation.script("a.rhai", "#{ version: 1 }");
    let bus = installation.start();
    assert_eq!(post(bus.http, "/a", "text/plain", b"").json()["version"], 1);
    installation.script("a.rhai", "#{ version: 2 }");
    installation.route(
        "b",
        "receive: { http: { path: /b } }\nreply: { transform: a.rhai }\n",
    );
    signal(bus.pid(), "HUP");
    wait_for("the end of the reload", || {
        installation.log().contains(" reloaded").then_some(())
    });
    assert_eq!(post(bus.http, "/a", "text/plain", b"").json()["version"], 2);
    assert_eq!(post(bus.http, "/b", "text/plain", b"").status, 200);
    installation.script("a.rhai", "#{ version: ");
    signal(bus.pid(), "HUP");
    wait_for("the refusal", || {
        installation
            .log()
            .contains("the old routes go on")
            .then_some(())
    });
    assert_eq!(post(bus.http, "/a", "text/plain", b"").json()["version"], 2);
}

/// A file target in reach of its own route's receiver: what is told from folder, pattern and name,
/// and what cannot be told.
#[test]
fn a_route_that_writes_into_the_folder_that_it_watches_is_warned_of() {
    for (receive, write, warned) in [
        ("dir: in", "dir: in, name: '{{ id }}.xml'", true),
        (
            "dir: in, pattern: '*.xml'",
            "dir: ./x/../in, name: '{{ id }}.xml'",
            true,
        ),
        (
            "dir: in, pattern: '*.xml'",
            "dir: in, name: 'copy of {{ id }}.csv'",
            false,
        ),
        (
            "dir: in, pattern: 'order-*.xml'",
            "dir: in, name: '{{ header(\"file.name\") }}'",
            false,
        ),
        (
            "dir: in",
            "dir: in, name: '{{ header(\"file.name\") }}'",
            true,
        ),
        ("dir: in", "dir: in, name: 'out/{{ id }}'", false),
        ("dir: in, recursive: true", "dir: in/out, name: a.xml", true),
        (
            "dir: in, recursive: true",
            "dir: in/.out, name: a.xml",
            false,
        ),
        (
            "dir: in, recursive: true, done: kept",
            "dir: in/kept, name: a.xml",
            false,
        ),
        (
            "dir: in, recursive: true, pattern: 'new/*.xml'",
            "dir: in, name: 'new/{{ id }}.xml'",
            true,
        ),
        (
            "dir: in, ready: { marker: .ok }",
            "dir: in, name: a.xml",
            false,
        ),
        ("dir: in", "dir: in2, name: a.xml", false),
    ] {
        let installation = Installation::new();
        installation.route(
            "round",
            &format!(
                "receive:\n  file: {{ {receive} }}\ndistribute:\n  - name: copy\n    file: {{ {write} }}\n"
            ),
        );
        let output = installation.xbus(&["check", ".", "--format", "json"]);
        let what = format!("{receive} and {write}");
        assert_eq!(output.status.code(), Some(0), "{what}");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let told = told["problems"].as_array().expect("a list");
        assert_eq!(told.len(), usize::from(warned), "{what}: {told:#?}");
        if let Some(problem) = told.first() {
            assert_eq!(problem["code"], "feeds-itself", "{what}");
            assert_eq!(
                (&problem["severity"], &problem["line"]),
                (&"warning".into(), &5.into()),
                "{what}"
            );
            let has = |key: &str, part: &str| problem[key].as_str().unwrap_or("").contains(part);
            assert!(has("message", "routes/round.yaml:2:"), "{problem:#}");
            assert!(has("help", "another folder"), "{problem:#}");
        }
    }
}
