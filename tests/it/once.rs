//! What comes again after a crash in the middle of a distribution: from a caller that learned nothing and has a key for
//! `once`, from a folder, from a queue.

use std::time::Duration;

use crate::support::bus::signal;
use crate::support::{Answer, Bus, Destination, Installation, Response, post, request, wait_for};

fn send(bus: &Bus<'_>) -> Option<Response> {
    let headers = [("Idempotency-Key", "k"), ("Content-Type", "text/plain")];
    request(bus.http, "POST", "/r", &headers, b"x").ok()
}

/// Kills the bus while the destination holds the first request of a route with these targets before
/// `http`; then the destination answers at once.
fn killed_in_the_middle(more: &str) -> (Destination, Installation) {
    let system = Destination::with(|_| Answer::Hang(Duration::from_secs(60)));
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}
once: {{ key: 'header(\"idempotency-key\")' }}
distribute:
{more}  - name: system
    http: {{ url: \"{}\" }}
    timeout: 60s
",
            system.url("/")
        ),
    );
    let bus = installation.start();
    std::thread::scope(|scope| {
        scope.spawn(|| send(&bus));
        system.wait_for_count(1);
        // The caller's connection breaks.
        signal(bus.pid(), "KILL");
    });
    drop(bus);
    system.now(|_| Answer::ok());
    (system, installation)
}

#[test]
fn a_key_in_doubt_outlives_its_time() {
    let system = Destination::with(|_| Answer::Close);
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}
once: {{ key: 'header(\"idempotency-key\")', keep: 1s }}
distribute:
  - name: system
    http: {{ url: \"{0}\" }}
",
            system.url("/")
        ),
    );
    let bus = installation.start();
    let first = send(&bus).expect("an answer");
    assert_eq!(first.status, 504, "{}", first.text());
    // What another key remembers is forgotten by then.
    let other = || {
        let headers = [("Idempotency-Key", "other"), ("Content-Type", "text/plain")];
        request(bus.http, "POST", "/r", &headers, b"x").expect("an answer")
    };
    system.now(|_| Answer::ok());
    let before = other().id();
    wait_for("the other key to be forgotten", || {
        (other().id() != before).then_some(())
    });
    assert_eq!(send(&bus).expect("an answer").status, 504);
    bus.json(&["messages", "resolve", &first.id(), "--abort"]);
    assert_eq!(send(&bus).expect("an answer").status, 200);
}

/// What recovery says of the only message.
fn in_doubt(bus: &Bus<'_>) -> String {
    wait_for("the journal", || {
        let found = bus.json(&["messages", "--outcome", "in-doubt"]);
        found[0]["id"].as_str().map(str::to_owned)
    })
}

#[test]
fn a_repeat_after_a_crash_is_told_that_the_outcome_is_unknown() {
    let file = "  - { name: file, file: { dir: out, name: \"{{ id }}.txt\" } }\n";
    for more in ["", file] {
        let (system, installation) = killed_in_the_middle(more);
        let bus = installation.start();
        let id = in_doubt(&bus);
        let repeat = send(&bus).expect("an answer");
        assert_eq!(repeat.status, 504, "{}", repeat.text());
        assert!(repeat.text().contains(&id), "{}", repeat.text());
        assert_eq!(system.count(), 1);
        bus.json(&["messages", "resolve", &id, "--commit"]);
        let repeat = send(&bus).expect("an answer");
        assert_eq!((repeat.status, repeat.id()), (200, id), "{more}");
        assert_eq!(system.count(), 1);
        let files = std::fs::read_dir(installation.path().join("out")).map_or(0, Iterator::count);
        assert_eq!(files, usize::from(!more.is_empty()));
    }
}

#[test]
fn a_repeat_after_a_crash_that_was_resolved_as_not_done_is_processed() {
    let (system, installation) = killed_in_the_middle("");
    let bus = installation.start();
    let id = in_doubt(&bus);
    bus.json(&["messages", "resolve", &id, "--abort"]);
    let repeat = send(&bus).expect("an answer");
    assert_eq!(repeat.status, 200, "{}", repeat.text());
    assert_ne!(repeat.id(), id);
    assert_eq!(system.count(), 2);
}

/// Kills the bus while a message from a receiver whose sender does not wait is with `system`; what it says of the
/// message after the start.
fn brought_again(receive: &str, put: impl Fn(&Installation, &Bus<'_>)) -> serde_json::Value {
    let system = Destination::with(|_| Answer::Hang(Duration::from_secs(60)));
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {receive}
keys: {{ all: text() }}
distribute:
  - name: file
    file: {{ dir: out, name: \"{{{{ id }}}}.txt\" }}
  - name: system
    http: {{ url: \"{}\" }}
    timeout: 60s
",
            system.url("/")
        ),
    );
    if receive.contains("queue") {
        let into = "receive: { http: { path: /into } }
distribute:
  - name: q
    queue: { name: q }
";
        installation.route("into", into);
    }
    let bus = installation.start();
    put(&installation, &bus);
    system.wait_for_count(1);
    bus.kill();
    system.now(|_| Answer::ok());
    let bus = installation.start();
    let id = in_doubt(&bus);
    // It was brought again, and set aside: what is put behind it gets through.
    put(&installation, &bus);
    wait_for("the next one", || {
        let delivered = bus.json(&["messages", "--route", "r", "--outcome", "delivered"]);
        (delivered.as_array().map(Vec::len) == Some(1)).then_some(())
    });
    assert_eq!(system.count(), 2);
    let entry = bus.json(&["messages", "show", &id]);
    assert_eq!(target(&entry, "system")["outcome"], "in-doubt", "{entry}");
    assert_eq!(target(&entry, "file")["outcome"], "queued", "{entry}");
    let found = bus.json(&["messages", "--key", "all=x", "--outcome", "in-doubt"]);
    assert_eq!(found.as_array().map(Vec::len), Some(1), "{found}");
    entry
}

fn target<'a>(entry: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    let mut targets = entry["targets"].as_array().into_iter().flatten();
    let found = targets.find(|target| target["name"] == name);
    found.unwrap_or(&serde_json::Value::Null)
}

#[test]
fn a_file_that_a_crash_left_in_doubt_is_not_processed_again() {
    let number = std::sync::atomic::AtomicU32::new(0);
    brought_again("{ file: { dir: in } }", |installation, _| {
        let number = number.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let hidden = installation.path().join(format!("in/.{number}"));
        std::fs::create_dir_all(installation.path().join("in")).expect("a folder");
        std::fs::write(&hidden, "x").expect("written");
        std::fs::rename(&hidden, hidden.with_file_name(format!("{number}.txt"))).expect("renamed");
    });
}

#[test]
fn a_queue_s_message_that_a_crash_left_in_doubt_is_set_aside() {
    let entry = brought_again("{ queue: { name: q } }", |_, bus| {
        let put = post(bus.http, "/into", "text/plain", b"x");
        assert_eq!(put.status, 200, "{}", put.text());
    });
    assert_eq!(entry["outcome"], "in-doubt");
}
