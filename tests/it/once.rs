//! Idempotent receiver (`once`) over crashes: a caller that learned nothing comes again.

use std::time::Duration;

use crate::support::bus::signal;
use crate::support::{Answer, Bus, Destination, Installation, Response, request, wait_for};

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
