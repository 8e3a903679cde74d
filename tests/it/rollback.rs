//! Sync distribution, all or nothing: definite failures, unknown outcomes, compensation, and
//! crashes in the middle.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::support::{Answer, Destination, Installation, post, wait_for};

fn target<'a>(entry: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    entry["targets"]
        .as_array()
        .expect("targets")
        .iter()
        .find(|target| target["name"] == name)
        .unwrap_or(&serde_json::Value::Null)
}

/// A file, a queue and a system that is called.
fn mixed(system: &Destination) -> Installation {
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}
distribute:
  - name: file
    file: {{ dir: out, name: \"{{{{ id }}}}.txt\" }}
  - name: queue
    queue: {{ name: kept }}
  - name: system
    http: {{ url: \"{}\" }}
    timeout: 500ms
",
            system.url("/system")
        ),
    );
    installation
}

#[test]
fn a_definite_failure_leaves_nothing_visible() {
    let system = Destination::with(|_| Answer::Status(500, "text/plain", Vec::new()));
    let installation = mixed(&system);
    let bus = installation.start();
    let answer = post(bus.http, "/r", "text/plain", b"x");
    assert_eq!(answer.status, 502, "{}", answer.text());
    let fault = &answer.json()["fault"];
    assert_eq!(fault["code"], "destination");
    assert_eq!(fault["step"], "system");
    assert!(!answer.text().contains("127.0.0.1"), "{}", answer.text());
    assert!(
        installation.names("out").is_empty(),
        "{:?}",
        installation.names("out")
    );
    assert_eq!(bus.queue("kept")["depth"].as_u64().unwrap_or(0), 0);
    let entry = bus.json(&["messages", "show", &answer.id()]);
    assert_eq!(target(&entry, "file")["outcome"], "undone");
    assert_eq!(target(&entry, "system")["outcome"], "failed");
    // And all of it when the system takes it.
    system.now(|_| Answer::ok());
    let answer = post(bus.http, "/r", "text/plain", b"x");
    assert_eq!(answer.json()["status"], "delivered");
    assert_eq!(installation.names("out").len(), 1);
    assert_eq!(bus.queue("kept")["depth"], 1);
}

#[test]
fn an_unknown_outcome_is_in_doubt_until_an_administrator_decides() {
    for decision in ["--commit", "--abort"] {
        let system = Destination::with(|_| Answer::Hang(Duration::from_secs(30)));
        let installation = mixed(&system);
        let bus = installation.start();
        let answer = post(bus.http, "/r", "text/plain", b"x");
        assert_eq!(answer.status, 504, "{}", answer.text());
        assert_eq!(answer.json()["fault"]["code"], "in-doubt");
        let id = answer.id();
        assert!(
            installation
                .names("out")
                .iter()
                .all(|name| name.starts_with(".xbus-"))
        );
        let in_doubt = bus.json(&["messages", "--outcome", "in-doubt"]);
        assert_eq!(in_doubt[0]["id"], *id);
        assert_eq!(target(&in_doubt[0], "system")["outcome"], "in-doubt");

        // It stays so over a crash.
        bus.kill();
        let bus = installation.start();
        assert_eq!(bus.json(&["messages", "show", &id])["outcome"], "in-doubt");
        bus.json(&["messages", "resolve", &id, decision]);
        let entry = wait_for("the decision to be carried out", || {
            let entry = bus.json(&["messages", "show", &id]);
            (entry["outcome"] == "delivered" || entry["outcome"] == "failed").then_some(entry)
        });
        let (outcome, files, depth) = match decision {
            "--commit" => ("delivered", 1, 1),
            _ => ("failed", 0, 0),
        };
        assert_eq!(entry["outcome"], outcome, "{entry}");
        assert_eq!(installation.names("out").len(), files);
        assert_eq!(bus.queue("kept")["depth"].as_u64().unwrap_or(0), depth);
        assert_eq!(system.count(), 1, "never tried again by itself");
    }
}

#[test]
fn a_crash_while_the_system_is_called_is_in_doubt() {
    let system = Destination::with(|_| Answer::Hang(Duration::from_secs(30)));
    let installation = mixed(&system);
    installation.route(
        "r",
        &installation
            .read("routes/r.yaml")
            .replace("timeout: 500ms", "timeout: 60s"),
    );
    let bus = installation.start();
    let address = bus.http;
    let caller = std::thread::spawn(move || {
        crate::support::request(
            address,
            "POST",
            "/r",
            &[("Content-Type", "text/plain")],
            b"x",
        )
    });
    system.wait_for_count(1);
    bus.kill();
    assert!(
        caller.join().expect("the caller").is_err(),
        "never acknowledged"
    );
    let bus = installation.start();
    let in_doubt = bus.json(&["messages", "--outcome", "in-doubt"]);
    assert_eq!(in_doubt.as_array().map(Vec::len), Some(1), "{in_doubt}");
    assert_eq!(target(&in_doubt[0], "system")["outcome"], "in-doubt");
    let id = in_doubt[0]["id"].as_str().expect("an id");
    bus.json(&["messages", "resolve", id, "--commit"]);
    wait_for("the file", || {
        (installation.names("out") == [format!("{id}.txt")]).then_some(())
    });
    assert_eq!(bus.queue("kept")["depth"], 1);
}

/// Whatever fails behind it: a condition, or the answer of a route without targets.
#[test]
fn a_step_is_compensated_when_no_target_has_failed_either() {
    let system = Destination::start();
    let installation = Installation::new();
    for (name, rest) in [
        ("answer", "reply: { transform: throws.rhai }\n"),
        (
            "condition",
            "  - name: second\n    when: 'parse_int(body) == 1'\n    http: { url: \"{base}/second\" }\n",
        ),
    ] {
        let rest = rest.replace("{base}", &system.url(""));
        installation.route(
            name,
            &format!(
                "receive: {{ http: {{ path: /{name} }} }}
invoke:
  - name: reserve
    http: {{ url: \"{base}/{name}\" }}
    compensate:
      http: {{ url: \"{base}/{name}/undo\" }}
{rest}",
                base = system.url("")
            ),
        );
    }
    installation.script("throws.rhai", "throw \"no\"");
    let bus = installation.start();
    for name in ["answer", "condition"] {
        let before = system.count();
        let answer = post(bus.http, &format!("/{name}"), "text/plain", b"x");
        assert_eq!(answer.status, 500, "{}", answer.text());
        let paths: Vec<String> = system.got()[before..]
            .iter()
            .map(|got| got.path.clone())
            .collect();
        assert_eq!(paths, [format!("/{name}"), format!("/{name}/undo")]);
        let entry = bus.json(&["messages", "show", &answer.id()]);
        assert_eq!(entry["outcome"], "failed", "{entry}");
    }
}

#[test]
fn what_had_succeeded_is_compensated_backwards() {
    let system = Destination::with(|got| match got.path.as_str() {
        "/last" => Answer::Status(500, "text/plain", Vec::new()),
        path => Answer::Status(
            200,
            "application/json",
            format!("{{\"done\":\"{path}\"}}").into_bytes(),
        ),
    });
    let installation = Installation::new();
    installation
        .route(
            "r",
            &format!(
                "receive: {{ http: {{ path: /r }} }}
invoke:
  - name: reserve
    http: {{ url: \"{base}/reserve\" }}
    compensate:
      transform: undo.rhai
      http: {{ url: \"{base}/unreserve\" }}
distribute:
  - name: book
    http: {{ url: \"{base}/book\" }}
    compensate:
      transform: undo.rhai
      http: {{ url: \"{base}/unbook\" }}
  - name: last
    http: {{ url: \"{base}/last\" }}
",
                base = system.url("")
            ),
        )
        .script("undo.rhai", "#{ undo: response.body.done }");
    let bus = installation.start();
    let answer = post(bus.http, "/r", "application/json", b"{\"n\":1}");
    assert_eq!(answer.status, 502, "{}", answer.text());
    let paths: Vec<String> = system.got().iter().map(|got| got.path.clone()).collect();
    assert_eq!(
        paths,
        ["/reserve", "/book", "/last", "/unbook", "/unreserve"]
    );
    assert_eq!(system.texts()[3], "{\"undo\":\"/book\"}");
    assert_eq!(system.texts()[4], "{\"undo\":\"/reserve\"}");
    let entry = bus.json(&["messages", "show", &answer.id()]);
    assert_eq!(target(&entry, "book")["outcome"], "compensated");
    assert_eq!(target(&entry, "reserve")["outcome"], "compensated");
    assert_eq!(target(&entry, "last")["outcome"], "failed");
}

#[test]
fn a_crash_between_compensable_requests_is_undone_at_the_start() {
    let system = Destination::with(|got| match got.path.as_str() {
        "/second" => Answer::Hang(Duration::from_secs(60)),
        _ => Answer::ok(),
    });
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}
invoke:
  - name: first
    http: {{ url: \"{base}/first\" }}
    compensate:
      http: {{ url: \"{base}/undo-first\" }}
  - name: second
    http: {{ url: \"{base}/second\" }}
    timeout: 60s
",
            base = system.url("")
        ),
    );
    let bus = installation.start();
    let address = bus.http;
    let caller = std::thread::spawn(move || {
        crate::support::request(
            address,
            "POST",
            "/r",
            &[("Content-Type", "text/plain")],
            b"x",
        )
    });
    system.wait_for_count(2);
    bus.kill();
    let _ = caller.join();
    let bus = installation.start();
    wait_for("the compensation", || {
        system
            .got()
            .iter()
            .any(|got| got.path == "/undo-first")
            .then_some(())
    });
    let failed = wait_for("the journal", || {
        let failed = bus.json(&["messages", "--outcome", "failed"]);
        (failed.as_array().map(Vec::len) == Some(1)).then_some(failed)
    });
    assert_eq!(target(&failed[0], "first")["outcome"], "compensated");
}

/// Two compensable targets and one that fails; the second compensation ends as `unbook` says while `broken` is set.
fn half_compensated(
    broken: &Arc<AtomicBool>,
    unbook: fn() -> Answer,
) -> (Destination, Installation) {
    let broken = broken.clone();
    let system = Destination::with(move |got| match got.path.as_str() {
        "/last" => Answer::Status(500, "text/plain", Vec::new()),
        "/unfirst" if broken.load(SeqCst) => unbook(),
        _ => Answer::ok(),
    });
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}
distribute:
  - name: first
    http: {{ url: \"{base}/first\" }}
    compensate: {{ http: {{ url: \"{base}/unfirst\" }}, timeout: 60s }}
  - name: second
    http: {{ url: \"{base}/second\" }}
    compensate: {{ http: {{ url: \"{base}/unsecond\" }} }}
  - name: last
    http: {{ url: \"{base}/last\" }}
",
            base = system.url("")
        ),
    );
    (system, installation)
}

fn paths(system: &Destination) -> Vec<String> {
    system.got().iter().map(|got| got.path.clone()).collect()
}

#[test]
fn what_was_compensated_is_not_compensated_again_when_the_rest_is_resolved() {
    let broken = Arc::new(AtomicBool::new(true));
    let refuse = || Answer::Status(500, "text/plain", Vec::new());
    let (system, installation) = half_compensated(&broken, refuse);
    let bus = installation.start();
    let answer = post(bus.http, "/r", "application/json", b"{}");
    assert_eq!(answer.status, 504, "{}", answer.text());
    broken.store(false, SeqCst);
    bus.json(&["messages", "resolve", &answer.id(), "--abort"]);
    let all = [
        "/first",
        "/second",
        "/last",
        "/unsecond",
        "/unfirst",
        "/unfirst",
    ];
    assert_eq!(paths(&system), all);
    let entry = bus.json(&["messages", "show", &answer.id()]);
    assert_eq!(entry["outcome"], "failed", "{entry}");
    for name in ["first", "second"] {
        assert_eq!(target(&entry, name)["outcome"], "compensated", "{entry}");
    }
}

#[test]
fn what_was_compensated_is_not_compensated_again_after_a_crash() {
    let broken = Arc::new(AtomicBool::new(true));
    let hang = || Answer::Hang(Duration::from_secs(60));
    let (system, installation) = half_compensated(&broken, hang);
    let bus = installation.start();
    let address = bus.http;
    let caller = std::thread::spawn(move || {
        let json = [("Content-Type", "application/json")];
        crate::support::request(address, "POST", "/r", &json, b"{}")
    });
    system.wait_for_count(5);
    bus.kill();
    let _ = caller.join();
    broken.store(false, SeqCst);
    let bus = installation.start();
    let failed = wait_for("the journal", || {
        let failed = bus.json(&["messages", "--outcome", "failed"]);
        (failed.as_array().map(Vec::len) == Some(1)).then_some(failed)
    });
    let all = [
        "/first",
        "/second",
        "/last",
        "/unsecond",
        "/unfirst",
        "/unfirst",
    ];
    assert_eq!(paths(&system), all);
    for name in ["first", "second"] {
        assert_eq!(
            target(&failed[0], name)["outcome"],
            "compensated",
            "{failed}"
        );
    }
}

#[test]
fn without_rollback_all_targets_run_and_the_journal_says_which_had_it() {
    let good = Destination::start();
    let bad = Destination::with(|_| Answer::Status(500, "text/plain", Vec::new()));
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}
rollback: none
distribute:
  - name: bad
    http: {{ url: \"{}\" }}
  - name: good
    http: {{ url: \"{}\" }}
",
            bad.url("/"),
            good.url("/")
        ),
    );
    let bus = installation.start();
    let answer = post(bus.http, "/r", "text/plain", b"x");
    assert_eq!(answer.status, 502);
    assert_eq!(good.count(), 1);
    let entry = bus.json(&["messages", "show", &answer.id()]);
    assert_eq!(target(&entry, "good")["outcome"], "delivered");
    assert_eq!(target(&entry, "bad")["outcome"], "failed");
}

#[test]
fn a_staged_file_that_somebody_took_away_is_not_told_to_be_delivered() {
    let system = Destination::with(|_| Answer::Close);
    let installation = mixed(&system);
    let out = installation.path().join("out");
    let bus = installation.start();
    let answer = post(bus.http, "/r", "text/plain", b"x");
    assert_eq!(answer.status, 504, "{}", answer.text());
    let staged = std::fs::read_dir(&out).expect("a folder");
    let staged = staged.flatten().next().expect("a staged file").path();
    std::fs::remove_file(&staged).expect("removed");
    let id = answer.id();
    bus.json(&["messages", "resolve", &id, "--commit"]);
    let entry = bus.json(&["messages", "show", &id]);
    assert_eq!(entry["outcome"], "pending", "{entry}");
    assert_eq!(target(&entry, "file")["outcome"], "queued", "{entry}");
    let alerts = bus.json(&["alerts"]).to_string();
    assert!(alerts.contains("taken away"), "{alerts}");
    std::fs::write(&staged, "x").expect("put back");
    wait_for("the file", || {
        let entry = bus.json(&["messages", "show", &id]);
        (entry["outcome"] == "delivered").then_some(())
    });
    assert!(out.join(format!("{id}.txt")).exists());
}
