//! Failure notices: how many, to whom, by which way, and what `check` and `alerts` say of them.

use serde_json::Value;

use crate::lanes::Keep;
use crate::mail::Sink;
use crate::support::{Answer, Destination, Installation, free_port, get, post, wait_for};

/// A bus with a mail server on `port`, told by what stands under `alerts`.
fn installation(port: u16, alerts: &str) -> Installation {
    let installation = Installation::new();
    installation.file(
        "xbus.yaml",
        format!(
            "name: test
http: {{ listen: \"127.0.0.1:0\" }}
admin: {{ listen: \"127.0.0.1:0\" }}
connections:
  relay: {{ smtp: {{ host: 127.0.0.1, port: {port} }} }}
alerts:
{alerts}"
        ),
    );
    installation
}

const MAIL: &str = "  mail: { connection: relay, from: xbus@acme.example, to: [ops@acme.example, night@acme.example] }\n";

fn asking(name: &str, url: &str) -> String {
    format!(
        "receive: {{ http: {{ path: /{name} }} }}\ninvoke:\n  - name: db\n    http: {{ url: \"{url}\" }}\n"
    )
}

fn queueing(url: &str) -> String {
    format!(
        "receive: {{ http: {{ path: /r }} }}\ndistribute:\n  - name: erp\n    async: {{ retry: {{ first: 20ms, max: 100ms }} }}\n    http: {{ url: \"{url}\" }}\n"
    )
}

fn down() -> Destination {
    Destination::with(|_| Answer::Status(503, "text/plain", b"maintenance".to_vec()))
}

/// Mails whose subject begins with `[xbus] WORD`.
fn of<'a>(subjects: &'a [String], word: &str) -> Vec<&'a String> {
    let start = format!("[xbus] {word} ");
    let these = subjects
        .iter()
        .filter(|subject| subject.starts_with(&start));
    these.collect()
}

/// How many incidents subjects tell of.
fn incidents(subjects: &[&String]) -> u64 {
    let count = |subject: &&&String| {
        let rest = subject.split(' ').nth(2).unwrap_or_default();
        rest.parse::<u64>().unwrap_or(1)
    };
    subjects.iter().map(|subject| count(&subject)).sum()
}

fn header<'a>(mail: &'a str, name: &str) -> Option<&'a str> {
    let head = mail.split("\r\n\r\n").next()?;
    let start = format!("{name}: ");
    head.lines().find_map(|line| line.strip_prefix(&start))
}

#[test]
fn ten_thousand_failures_of_a_route_are_one_mail_and_their_end_another() {
    let (sink, database) = (Sink::start(), down());
    let installation = installation(sink.port, MAIL);
    installation.route("ask", &asking("ask", &database.url("/")));
    let bus = installation.start();
    let mut keep = Keep::open(bus.http);
    for _ in 0..10_000 {
        assert_eq!(keep.post("/ask", "", "x").status, 502);
    }
    let opened = sink.wait_for_mail("[xbus] OPEN ask/db: outage");
    assert!(sink.subjects().len() <= 3, "{:?}", sink.subjects());
    let open = bus.json(&["alerts"]);
    assert_eq!(open[0]["count"], 10_000);
    database.now(|_| Answer::ok());
    assert_eq!(keep.post("/ask", "", "x").status, 200);
    let resolved = sink.wait_for_mail("[xbus] RESOLVED ask/db: outage");
    assert_eq!(sink.subjects().len(), 2, "{:?}", sink.subjects());
    assert!(resolved.contains("10000"), "{resolved}");
    // One thread, by machines for people.
    assert_eq!(
        header(&resolved, "References"),
        header(&opened, "Message-ID")
    );
    for name in ["X-Xbus-Incident", "Auto-Submitted"] {
        assert!(header(&opened, name).is_some(), "{opened}");
        assert_eq!(header(&opened, name), header(&resolved, name));
    }
    let kind = header(&opened, "Content-Type").unwrap_or_default();
    assert!(kind.starts_with("multipart/alternative"), "{opened}");
    assert_eq!(bus.json(&["alerts"]), serde_json::json!([]));
}

#[test]
fn a_database_that_fails_two_hundred_routes_is_a_handful_of_mails() {
    let (sink, database) = (Sink::start(), down());
    let installation = installation(sink.port, MAIL);
    for n in 0..200 {
        let name = format!("r{n}");
        installation.route(&name, &asking(&name, &database.url("/")));
    }
    let bus = installation.start();
    let mut keep = Keep::open(bus.http);
    for at in 0..10_000 {
        keep.post(&format!("/r{}", at % 200), "", "x");
    }
    let told = wait_for("every incident to be told", || {
        let subjects = sink.subjects();
        (incidents(&of(&subjects, "OPEN")) >= 200).then_some(subjects)
    });
    assert!(told.len() <= 3, "{told:?}");
    database.now(|_| Answer::ok());
    for n in 0..200 {
        assert_eq!(keep.post(&format!("/r{n}"), "", "x").status, 200);
    }
    let told = wait_for("every end to be told", || {
        let subjects = sink.subjects();
        (incidents(&of(&subjects, "RESOLVED")) >= 200).then_some(subjects)
    });
    assert!(of(&told, "RESOLVED").len() <= 3, "{told:?}");
    assert_eq!(incidents(&of(&told, "OPEN")), 200);
    assert_eq!(incidents(&of(&told, "RESOLVED")), 200);
}

#[test]
fn what_lasts_is_told_to_further_people_once_and_its_end_to_all() {
    let (sink, erp) = (Sink::start(), down());
    let alerts = format!(
        "{MAIL}  gather: 100ms\n  escalate:\n    - {{ after: 1s, to: [boss@acme.example] }}\n    - {{ after: 3s, to: Owner <owner@acme.example> }}\n"
    );
    let installation = installation(sink.port, &alerts);
    installation.route("orders", &queueing(&erp.url("/")));
    let bus = installation.start();
    post(bus.http, "/r", "text/plain", b"x");
    let to = |mail: &str| {
        let envelope = header(mail, "X-Envelope-To").unwrap_or_default();
        envelope.replace("@acme.example", "")
    };
    let escalated = wait_for("both levels", || {
        let mails = sink.mails();
        let these = mails.into_iter().filter(|mail| {
            header(mail, "Subject").is_some_and(|subject| subject.contains("ESCALATED"))
        });
        let these: Vec<String> = these.collect();
        (these.len() == 2).then_some(these)
    });
    assert_eq!(to(&escalated[0]), "boss");
    assert_eq!(to(&escalated[1]), "owner");
    assert!(escalated[0].contains("1 messages, the oldest for"));
    assert_eq!(bus.json(&["alerts"])[0]["level"], 2);
    erp.now(|_| Answer::ok());
    let resolved = sink.wait_for_mail("[xbus] RESOLVED orders/erp: outage");
    assert_eq!(to(&resolved), "ops,night,boss,owner");
    assert_eq!(sink.subjects().len(), 4, "{:?}", sink.subjects());
}

#[test]
fn a_web_address_is_told_although_the_mail_server_is_down() {
    let (hooks, erp) = (Destination::start(), down());
    let port = free_port();
    let alerts = format!(
        "{MAIL}  webhook:\n    url: {}\n    headers: {{ X-Team: bus }}\n    auth: {{ bearer: \"tok-1234\" }}\n",
        hooks.url("/services/s3cret-path")
    );
    let installation = installation(port, &alerts);
    installation.route("orders", &queueing(&erp.url("/")));
    let bus = installation.start();
    hooks.now(|_| Answer::Status(500, "text/plain", b"not now".to_vec()));
    let id = post(bus.http, "/r", "text/plain", b"x").id();
    wait_for("the first attempt", || (hooks.count() >= 1).then_some(()));
    hooks.now(|_| Answer::ok());
    // Tried again after ten seconds, with the same key.
    let opened = hooks.wait_for_count(2).remove(1);
    assert_eq!(opened.path, "/services/s3cret-path");
    assert_eq!(opened.header("x-team"), Some("bus"));
    assert_eq!(opened.header("authorization"), Some("Bearer tok-1234"));
    let told: Value = serde_json::from_slice(&opened.body).expect("JSON");
    assert_eq!(told["event"], "opened");
    assert_eq!(told["incidents"][0]["route"], "orders");
    assert_eq!(told["incidents"][0]["message"], id);
    assert_eq!(told["incidents"][0]["waiting"]["queue"], "orders.erp");
    let key = opened.header("idempotency-key").map(str::to_owned);
    assert_eq!(
        key,
        Some(format!("{}/webhook", told["id"].as_str().expect("an id")))
    );
    assert_eq!(hooks.got()[0].header("idempotency-key"), key.as_deref());
    erp.now(|_| Answer::ok());
    let resolved = hooks.wait_for_count(3).remove(2);
    let resolved: Value = serde_json::from_slice(&resolved.body).expect("JSON");
    assert_eq!(resolved["event"], "resolved");
    assert_eq!(resolved["incidents"][0]["id"], told["incidents"][0]["id"]);
    // The mails wait, and the connection says why; nothing shows the secret path.
    let status = bus.json_of("/api/v1/status");
    assert_eq!(status["mails_waiting"], 2, "{status}");
    assert_eq!(status["webhooks_waiting"], 0);
    let relay = &status["connections"][0];
    assert_eq!(
        (&relay["name"], &relay["state"]),
        (&"relay".into(), &"down".into())
    );
    assert!(!installation.log().contains("s3cret-path"));
    // A trial says what came of each way.
    let tried = installation.xbus(&["alerts", "test", "--json"]);
    assert_eq!(tried.status.code(), Some(1), "{tried:?}");
    let tried: Value = serde_json::from_slice(&tried.stdout).expect("JSON");
    assert_eq!(
        (&tried[0]["way"], &tried[0]["ok"]),
        (&"mail".into(), &false.into())
    );
    assert_eq!(
        (&tried[1]["way"], &tried[1]["ok"]),
        (&"webhook".into(), &true.into())
    );
    assert_eq!(tried[1]["said"], "HTTP 200");
    // The mail server is back: the mails go out after a restart too.
    assert!(bus.stop().success());
    let sink = Sink::at(port);
    let bus = installation.start();
    sink.wait_for_mail("[xbus] OPEN orders/erp: outage");
    sink.wait_for_mail("[xbus] RESOLVED orders/erp: outage");
    let tried = installation.xbus(&["alerts", "test"]);
    let said = String::from_utf8_lossy(&tried.stdout).into_owned();
    assert!(tried.status.success(), "{said}");
    assert!(said.contains("accepted: 250 kept"), "{said}");
    sink.wait_for_mail("[xbus] TEST test");
    let relay = &bus.json_of("/api/v1/status")["connections"][0];
    assert_eq!(relay["state"], "up", "{relay}");
    let metrics = get(bus.admin, "/metrics").text();
    for metric in [
        "xbus_connection_up{connection=\"relay\"} 1",
        "xbus_connection_mails_sent_total{connection=\"relay\"} 3",
        "xbus_outbox_mails 0",
        "xbus_outbox_webhooks 0",
    ] {
        assert!(metrics.contains(metric), "no {metric} in {metrics}");
    }
    drop(bus);
    assert_eq!(
        installation.xbus(&["alerts", "test"]).status.code(),
        Some(3)
    );
}

#[test]
fn a_bus_that_tells_nobody_says_so() {
    let installation = Installation::new();
    installation.route("hello", "receive: { http: { path: /r } }\nreply: {}\n");
    let _bus = installation.start();
    let tried = installation.xbus(&["alerts", "test"]);
    assert_eq!(tried.status.code(), Some(1));
    let said = String::from_utf8_lossy(&tried.stderr).into_owned();
    assert!(
        said.contains("neither alerts.mail nor alerts.webhook"),
        "{said}"
    );
    let listed = installation.xbus(&["alerts"]);
    let said = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(
        listed.status.success() && said.contains("Nothing has failed"),
        "{said}"
    );
}

#[test]
fn check_says_what_is_wrong_with_alerts() {
    let problems = |alerts: &str| {
        let installation = installation(25, alerts);
        installation.file(
            "xbus.yaml",
            format!(
                "connections:\n  relay: {{ smtp: {{ host: h }} }}\n  inbox: {{ imap: {{ host: localhost, user: u, password: p }} }}\nalerts:\n{alerts}"
            ),
        );
        installation.route("hello", "receive: { http: { path: /r } }\nreply: {}\n");
        let checked = installation.xbus(&["check", "--format", "json"]);
        let all: Value = serde_json::from_slice(&checked.stdout).expect("JSON");
        let all = all["problems"].as_array().cloned().unwrap_or_default();
        all.iter()
            .map(|one| {
                assert_eq!(one["file"], "xbus.yaml");
                assert!(one["help"].is_string(), "{one}");
                format!(
                    "{} {} {}:{}",
                    one["severity"].as_str().unwrap_or_default(),
                    one["code"].as_str().unwrap_or_default(),
                    one["line"],
                    one["column"]
                )
            })
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mail = |rest: &str| {
        format!("  mail: {{ connection: relay, from: a@b.example, to: c@d.example{rest} }}\n")
    };
    for (alerts, expected) in [
        (mail(""), ""),
        (mail(", digest: 15m"), ""),
        (format!("{}  webhook: {{ url: 'https://hooks.example/x' }}\n", mail("")), ""),
        ("  mail: { connection: rely, from: a@b.example, to: c@d.example }\n".into(), "error undefined-connection 5:23"),
        ("  mail: { connection: inbox, from: a@b.example, to: c@d.example }\n".into(), "error wrong-connection 5:23"),
        ("  mail: { connection: relay, from: nobody, to: [c@d.example, x y] }\n".into(), "error bad-address 5:36, error bad-address 5:62"),
        ("  mail: { connection: relay, from: a@b.example, to: [] }\n".into(), "error bad-address 5:53"),
        (mail(", digest: 10ms"), "error bad-alerts 5:74"),
        (mail(", digest: 5s"), "warning bad-alerts 5:74"),
        (format!("{}  digest: 5m\n", mail(", digest: 5m")), "error bad-alerts 5:74"),
        (format!("{}  gather: 1h\n", mail("")), "error bad-alerts 6:11"),
        (format!("{}  escalate:\n    - {{ after: 2h }}\n    - {{ after: 1h }}\n", mail("")), "error bad-alerts 8:16"),
        (format!("{}  escalate: {{ after: 1h, to: boss@b.example }}\n", mail("")), ""),
        ("  webhook: { url: 'https://a.example/b', timeout: 0s }\n".into(), "error bad-value 5:51"),
        (format!("{}  escalate: [{{ after: 1h, to: boss }}]\n", mail("")), "error bad-address 6:31"),
        ("  webhook: { url: 'https://a.example/b' }\n  escalate: [{ after: 1h, to: e@f.example }]\n".into(), "error bad-alerts 6:31"),
        ("  escalate: [{ after: 1h }]\n".into(), "warning useless-key 5:13"),
        ("  webhook: { url: 'ftp://a.example/b' }\n".into(), "error bad-value 5:19"),
        ("  webhook: { url: 'https://a.example/b', auth: { bearer: a, api_key: { value: b } } }\n".into(), "error bad-value 5:48"),
        (format!("{}  console: bus.example\n", mail("")), "error bad-alerts 6:12"),
        (format!("{}  consle: x\n", mail("")), "error unknown-key 6:3"),
        ("  mail: { connection: relay, from: '${NOT_SET_HERE}', to: c@d.example }\n".into(), "warning unset-variable 5:36"),
    ] {
        assert_eq!(problems(&alerts), expected, "for {alerts}");
    }
}
