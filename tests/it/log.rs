//! What stands in the log.

use crate::support::{Installation, post};

#[test]
fn every_event_of_a_message_says_which_in_both_forms() {
    for form in ["human", "json"] {
        let installation = Installation::new();
        installation
            .file(
                "xbus.yaml",
                format!(
                    "http: {{ listen: \"127.0.0.1:0\" }}\nadmin: {{ listen: \"127.0.0.1:0\" }}\nlog: {{ format: {form} }}\n"
                ),
            )
            .route(
                "say",
                "receive: { http: { path: /r } }\nonce: { key: body }\nreply: {}\n",
            );
        let bus = installation.start();
        let first = post(bus.http, "/r", "text/plain", b"x");
        assert_eq!(first.status, 200, "{}", first.text());
        post(bus.http, "/r", "text/plain", b"x");
        let log = installation.log();
        let line = log
            .lines()
            .find(|line| line.contains("repeat"))
            .unwrap_or_else(|| panic!("not logged: {log}"));
        if form == "json" {
            let event: serde_json::Value = serde_json::from_str(line).expect(line);
            assert_eq!(event["level"], "INFO");
            assert_eq!(event["first"], first.id().as_str());
            let id = event["id"].as_str().expect("an id");
            assert!(id > first.id().as_str(), "{line}");
            assert_eq!(event["route"], "say");
        } else {
            let said = format!("first={} id=", first.id());
            assert!(line.contains(&said), "{line}");
            assert!(line.ends_with(" route=say"), "{line}");
        }
        // What is about no message says nothing of one.
        let running = log.lines().find(|line| line.contains("running"));
        assert!(running.is_some_and(|line| !line.contains("route")), "{log}");
    }
}
