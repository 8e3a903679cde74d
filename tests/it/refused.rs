//! Where is my message, and why: what became of requests that no route took.

use crate::support::http::raw_request;
use crate::support::{Bus, Installation, Response, get, post, request, wait_for};

const SOAP_11: &str = "http://schemas.xmlsoap.org/soap/envelope/";

fn installation() -> Installation {
    let installation = Installation::new();
    installation
        .file(
            "xbus.yaml",
            "http: { listen: \"127.0.0.1:0\" }\nadmin: { listen: \"127.0.0.1:0\" }\nlog: { format: json }\nlimits: { header_bytes: 8KiB, head_timeout: 300ms }\n",
        )
        .route("small", "receive: { http: { path: /small, max_body: 10 } }\nreply: {}\n")
        .route(
            "known",
            "receive: { http: { path: /known, auth: { basic: { shop: secret } } } }\nreply: {}\n",
        )
        .route(
            "a",
            "receive: { http: { path: /soap, soap: \"1.1\", element: \"{urn:o}A\" } }\nreply: {}\n",
        )
        .route(
            "b",
            "receive: { http: { path: /soap, soap: \"1.1\", element: \"{urn:o}B\" } }\nreply: {}\n",
        )
        .route(
            "token",
            "receive:\n  http: { path: /token, soap: any, security: { username_token: { users: { a: b } } } }\nreply: {}\n",
        )
        .route("whole", "receive: { http: { path: /whole, wellformed: true } }\nreply: {}\n");
    installation
}

fn soap(bus: &Bus<'_>, path: &str, body: &str) -> Response {
    let envelope =
        format!("<e:Envelope xmlns:e=\"{SOAP_11}\"><e:Body>{body}</e:Body></e:Envelope>");
    post(bus.http, path, "text/xml", envelope.as_bytes())
}

/// The one line about a message.
#[track_caller]
fn line(installation: &Installation, id: &str) -> serde_json::Value {
    let found = wait_for("a line in the log", || {
        let log = installation.log();
        let lines: Vec<String> = log
            .lines()
            .filter(|line| line.contains(id))
            .map(str::to_owned)
            .collect();
        (!lines.is_empty()).then_some(lines)
    });
    assert_eq!(found.len(), 1, "{found:?}");
    serde_json::from_str(&found[0]).expect("JSON")
}

#[test]
fn what_no_route_takes_is_logged_with_its_id_and_counted() {
    let installation = installation();
    let bus = installation.start();
    let slow = raw_request(bus.http, b"POST /small HTTP/1.1\r\nHost: x\r\n").expect("an answer");
    let huge = format!(
        "POST /small HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "x".repeat(20_000)
    );
    for (answer, status, code, reason, path) in [
        (
            post(bus.http, "/nothing?key=secret", "text/plain", b"x"),
            404,
            "not-found",
            "nothing at this path",
            Some("/nothing"),
        ),
        (
            get(bus.http, "/small"),
            405,
            "not-found",
            "method",
            Some("/small"),
        ),
        (
            post(bus.http, "/known", "text/plain", b"x"),
            401,
            "denied",
            "credentials",
            Some("/known"),
        ),
        (
            soap(&bus, "/soap", "<C xmlns=\"urn:o\"/>"),
            500,
            "client",
            "first element",
            Some("/soap"),
        ),
        (
            post(bus.http, "/soap", "text/xml", b"<no envelope"),
            500,
            "client",
            "envelope",
            Some("/soap"),
        ),
        (
            soap(&bus, "/token", "<x/>"),
            500,
            "denied",
            "",
            Some("/token"),
        ),
        (
            raw_request(bus.http, b"POST / HTTP/9\r\n\r\n").expect("an answer"),
            400,
            "client",
            "HTTP",
            None,
        ),
        (
            raw_request(bus.http, huge.as_bytes()).expect("an answer"),
            431,
            "too-large",
            "head",
            None,
        ),
        (slow, 408, "client", "in time", None),
    ] {
        assert_eq!(answer.status, status, "{}", answer.text());
        let told = line(&installation, &answer.id());
        assert_eq!(told["level"], "WARN", "{told}");
        assert_eq!(told["listener"], "default", "{told}");
        assert_eq!(told["client"], "127.0.0.1", "{told}");
        assert_eq!(told["code"], code, "{told}");
        assert_eq!(told["path"].as_str(), path, "{told}");
        let error = told["error"].as_str().unwrap_or_default();
        assert!(error.contains(reason), "{told}");
        assert!(!told.to_string().contains("secret"), "{told}");
    }
    let metrics = get(bus.admin, "/metrics").text();
    for (code, count) in [
        ("client", 4),
        ("denied", 2),
        ("not-found", 2),
        ("too-large", 1),
    ] {
        let line =
            format!("xbus_requests_refused_total{{listener=\"default\",code=\"{code}\"}} {count}");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    assert_eq!(bus.json(&["messages"]), serde_json::json!([]));
}

#[test]
fn what_a_known_route_could_not_be_given_is_in_its_journal() {
    let installation = installation();
    let bus = installation.start();
    let headers = [("Content-Type", "text/plain"), ("X-Correlation-Id", "c7")];
    let large = request(bus.http, "POST", "/small", &headers, b"more than ten").expect("an answer");
    assert_eq!(large.status, 413);
    let broken = post(bus.http, "/whole", "text/xml", b"<a><b></a>");
    assert_eq!(broken.status, 400);
    let envelope = post(bus.http, "/token", "text/xml", b"<no/>");
    assert_eq!(envelope.status, 500);
    for (answer, route, code) in [
        (&large, "small", "too-large"),
        (&broken, "whole", "client"),
        (&envelope, "token", "client"),
    ] {
        let told = bus.json(&["messages", "show", &answer.id()]);
        assert_eq!(told["route"], route, "{told}");
        assert_eq!(told["outcome"], "failed", "{told}");
        assert_eq!(told["fault"]["code"], code, "{told}");
        assert_eq!(line(&installation, &answer.id())["route"], route);
    }
    let told = bus.json(&["messages", "show", &large.id()]);
    assert_eq!(told["correlation_id"], "c7");
    let metrics = get(bus.admin, "/metrics").text();
    assert!(
        metrics.contains("xbus_messages_failed_total{route=\"small\"} 1"),
        "{metrics}"
    );
    // Who sent it knows.
    assert_eq!(bus.json(&["alerts"]), serde_json::json!([]));
}

#[test]
fn a_flood_of_refused_requests_does_not_flood_the_log() {
    let installation = installation();
    let bus = installation.start();
    for _ in 0..500 {
        assert_eq!(get(bus.http, "/nothing").status, 404);
    }
    let refused = || installation.log().matches("a request was refused").count();
    assert!((20..=60).contains(&refused()), "{}", refused());
    let metrics = get(bus.admin, "/metrics").text();
    assert!(metrics.contains("code=\"not-found\"} 500"), "{metrics}");
    wait_for("the number of the others", || {
        let log = installation.log();
        log.contains("further requests were refused").then_some(())
    });
}

#[test]
fn a_flood_of_bodies_that_no_route_can_read_does_not_flood_the_log() {
    let installation = installation();
    let bus = installation.start();
    for _ in 0..300 {
        assert_eq!(
            post(bus.http, "/whole", "text/xml", b"<a><b></a>").status,
            400
        );
    }
    let of_route = |route: &str, what: &str| {
        let route = format!("\"route\":\"{route}\"");
        let log = installation.log();
        let lines = log.lines().filter(|line| line.contains(what));
        lines.filter(|line| line.contains(&route)).count()
    };
    let failed = of_route("whole", "\"message\":\"failed\"");
    assert!((20..=60).contains(&failed), "{failed}");
    let large = post(bus.http, "/small", "text/plain", b"more than ten");
    assert_eq!(
        line(&installation, &large.id())["route"],
        "small",
        "has lines of its own"
    );
    let args = ["messages", "--route", "whole", "--limit", "1000"];
    let kept = bus.json(&args).as_array().map(Vec::len);
    assert_eq!(kept, Some(300), "each is in the journal");
    wait_for("the number of the others", || {
        (of_route("whole", "further messages failed") > 0).then_some(())
    });
}
