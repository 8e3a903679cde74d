//! Failure mail and the mail sender, against a real SMTP server.

use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::support::python::program;
use crate::support::{Answer, Destination, Installation, free_port, post, wait_for};

/// aiosmtpd as a child process; it keeps each mail as a file.
pub struct Sink {
    child: Child,
    folder: tempfile::TempDir,
    pub port: u16,
}

impl Sink {
    pub fn start() -> Self {
        Self::at(free_port())
    }

    pub fn at(port: u16) -> Self {
        Self::with(port, &[])
    }

    /// With further arguments, as smtp_sink.py explains them.
    pub fn with(port: u16, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let child = program("smtp_sink.py")
            .arg(port.to_string())
            .arg(folder.path())
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .expect("the SMTP server starts");
        let sink = Self {
            child,
            folder,
            port,
        };
        wait_for("the SMTP server", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        sink
    }

    pub fn mails(&self) -> Vec<String> {
        let text = |mail: Vec<u8>| String::from_utf8_lossy(&mail).into_owned();
        self.raw().into_iter().map(text).collect()
    }

    /// The mails as they came, in their order.
    pub fn raw(&self) -> Vec<Vec<u8>> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(self.folder.path())
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "eml"))
            .collect();
        files.sort();
        files
            .iter()
            .filter_map(|path| std::fs::read(path).ok())
            .collect()
    }

    pub fn subjects(&self) -> Vec<String> {
        self.mails()
            .iter()
            .filter_map(|mail| {
                mail.lines()
                    .find_map(|line| line.strip_prefix("Subject: "))
                    .map(str::to_owned)
            })
            .collect()
    }

    #[track_caller]
    pub fn wait_for_mail(&self, subject: &str) -> String {
        wait_for(&format!("a mail '{subject}'"), || {
            self.mails()
                .into_iter()
                .find(|mail| mail.contains(&format!("Subject: {subject}")))
        })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A bus that tells administrators through `port`.
fn alerting(port: u16, digest: &str) -> Installation {
    let installation = Installation::new();
    installation.file(
        "xbus.yaml",
        format!(
            "name: test
http: {{ listen: \"127.0.0.1:0\" }}
admin: {{ listen: \"127.0.0.1:0\" }}
journal: {{ payloads: all }}
connections:
  relay: {{ smtp: {{ host: 127.0.0.1, port: {port} }} }}
alerts:
  mail: {{ connection: relay, from: xbus@acme.example, to: [ops@acme.example, night@acme.example], digest: {digest} }}
"
        ),
    );
    installation
}

fn async_route(system: &Destination) -> String {
    format!(
        "receive: {{ http: {{ path: /r }} }}\ndistribute:\n  - name: erp\n    async: {{ retry: {{ first: 20ms, max: 50ms }} }}\n    http: {{ url: \"{}\" }}\n",
        system.url("/")
    )
}

#[test]
fn an_outage_is_one_mail_when_it_opens_and_one_when_it_is_over() {
    let sink = Sink::start();
    let system = Destination::with(|_| Answer::Status(503, "text/plain", b"maintenance".to_vec()));
    let installation = alerting(sink.port, "1h");
    installation.route("orders", &async_route(&system));
    let bus = installation.start();
    let id = post(bus.http, "/r", "text/plain", b"secret payload").id();
    for _ in 0..5 {
        post(bus.http, "/r", "text/plain", b"more");
    }
    let mail = sink.wait_for_mail("[xbus] OPEN orders/erp: outage");
    for part in [
        "To: ops@acme.example, night@acme.example",
        "From: xbus@acme.example",
        "X-Xbus-Incident: ",
        "maintenance",
        &id,
        "xbus queues retry orders.erp",
    ] {
        assert!(mail.contains(part), "no {part:?} in {mail}");
    }
    assert!(!mail.contains("secret payload"));
    // However often it is tried.
    wait_for("many attempts", || (system.count() > 30).then_some(()));
    assert_eq!(sink.subjects().len(), 1, "{:?}", sink.subjects());
    system.now(|_| Answer::ok());
    bus.wait_for_depth("orders.erp", 0);
    sink.wait_for_mail("[xbus] RESOLVED orders/erp: outage");
    assert_eq!(sink.subjects().len(), 2, "{:?}", sink.subjects());
}

#[test]
fn what_lasts_is_told_in_digests() {
    let sink = Sink::start();
    let system = Destination::with(|_| Answer::Status(500, "text/plain", Vec::new()));
    let installation = alerting(sink.port, "1s");
    installation.route("orders", &async_route(&system));
    let bus = installation.start();
    post(bus.http, "/r", "text/plain", b"x");
    sink.wait_for_mail("[xbus] OPEN orders/erp: outage");
    let digest = sink.wait_for_mail("[xbus] DIGEST orders/erp: outage");
    assert!(digest.contains("1 messages, the oldest for"), "{digest}");
}

#[test]
fn a_mail_server_that_is_down_fails_no_message_and_gets_the_mail_later() {
    let port = free_port();
    let system = Destination::with(|_| Answer::Status(500, "text/plain", Vec::new()));
    let installation = alerting(port, "1h");
    installation.route("orders", &async_route(&system));
    let bus = installation.start();
    assert_eq!(post(bus.http, "/r", "text/plain", b"x").status, 202);
    wait_for("the mail to be tried", || {
        installation
            .log()
            .contains("a failure notice could not be sent")
            .then_some(())
    });
    // The outbox outlives a kill.
    bus.kill();
    let sink = Sink::at(port);
    let _bus = installation.start();
    sink.wait_for_mail("[xbus] OPEN orders/erp: outage");
}

#[test]
fn a_step_that_flaps_ten_thousand_times_is_no_flood() {
    let sink = Sink::start();
    let flip = std::sync::atomic::AtomicUsize::new(0);
    let system = Destination::with(move |_| {
        match flip.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 2 {
            0 => Answer::Status(500, "text/plain", Vec::new()),
            _ => Answer::ok(),
        }
    });
    let installation = alerting(sink.port, "1h");
    installation.route(
        "ask",
        &format!(
            "receive: {{ http: {{ path: /r }} }}\ninvoke:\n  - name: erp\n    http: {{ url: \"{}\" }}\n",
            system.url("/")
        ),
    );
    let bus = installation.start();
    let mut keep = crate::lanes::Keep::open(bus.http);
    for _ in 0..10_000 {
        keep.post("/r", "", "x");
    }
    sink.wait_for_mail("[xbus] OPEN ask/erp: outage");
    sink.wait_for_mail("[xbus] RESOLVED ask/erp: outage");
    assert!(sink.subjects().len() <= 3, "{:?}", sink.subjects());
}

#[test]
fn a_waiting_caller_who_is_told_of_a_rejection_opens_no_incident() {
    let sink = Sink::start();
    let system = Destination::with(|_| Answer::Status(400, "text/plain", Vec::new()));
    let installation = alerting(sink.port, "1h");
    installation
        .route(
            "ask",
            &format!(
                "receive: {{ http: {{ path: /r }} }}\ninvoke:\n  - name: erp\n    http: {{ url: \"{}\" }}\n",
                system.url("/")
            ),
        )
        .route(
            "last",
            "receive: { http: { path: /last } }\nreply: { transform: bad.rhai }\n",
        )
        .script("bad.rhai", "let x = [];\nx[5]\n");
    let bus = installation.start();
    assert_eq!(post(bus.http, "/r", "text/plain", b"x").status, 502);
    // A defect of a script is one, and comes after it in the outbox.
    assert_eq!(post(bus.http, "/last", "text/plain", b"x").status, 500);
    let mail = sink.wait_for_mail("[xbus] OPEN last/reply: transform");
    assert!(mail.contains("bad.rhai:2"), "{mail}");
    assert_eq!(sink.subjects().len(), 1, "{:?}", sink.subjects());
}

#[test]
fn a_route_sends_mail_and_a_message_adds_no_header_and_no_recipient() {
    let sink = Sink::start();
    let installation = alerting(sink.port, "1h");
    installation.route(
        "report",
        "receive: { http: { path: /r } }
distribute:
  - name: desk
    mail: { connection: relay, from: bus@acme.example, to: desk@acme.example, subject: 'Order {{ body.no }}', body: 'For {{ body.who }}' }
",
    );
    let bus = installation.start();
    let evil = serde_json::json!({
        "no": "1\r\nBcc: thief@evil.example\r\nX-Evil: yes",
        "who": "Grüße\r\n.\r\nMAIL FROM:<x@y>"
    });
    let answer = post(
        bus.http,
        "/r",
        "application/json",
        evil.to_string().as_bytes(),
    );
    assert!(
        answer.status == 200 || answer.status == 400 || answer.status == 500,
        "{}",
        answer.text()
    );
    let good = serde_json::json!({ "no": "42", "who": "Müller" });
    let answer = post(
        bus.http,
        "/r",
        "application/json",
        good.to_string().as_bytes(),
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    sink.wait_for_mail("Order 42");
    for mail in sink.mails() {
        let head = mail.split("\r\n\r\n").next().expect("a head");
        assert!(
            head.contains("X-Envelope-To: desk@acme.example\r\n") || head.contains("[xbus]"),
            "{head}"
        );
        assert!(
            !head.contains("\nBcc:") && !head.contains("\nX-Evil:"),
            "{head}"
        );
    }
}

#[test]
fn recipients_that_the_server_refuses_are_told_and_the_others_get_it_once() {
    let sink = Sink::start();
    let installation = alerting(sink.port, "1h");
    installation.route(
        "report",
        "receive: { http: { path: /r } }
distribute:
  - name: desk
    mail: { connection: relay, from: bus@acme.example, to: [desk@acme.example, refused@acme.example], subject: Report }
",
    );
    let bus = installation.start();
    let answer = post(bus.http, "/r", "text/plain", b"x");
    assert_eq!(answer.status, 200, "{}", answer.text());
    sink.wait_for_mail("Report");
    let told = sink.wait_for_mail("[xbus] OPEN report/desk: partly-delivered");
    assert!(told.contains("refused@acme.example"), "{told}");
    let entry = bus.json(&["messages", "show", &answer.id()]);
    assert_eq!(entry["targets"][0]["outcome"], "delivered");
    assert!(
        entry["targets"][0]["error"]
            .to_string()
            .contains("refused@acme.example"),
        "{entry}"
    );
    let reports = sink
        .subjects()
        .iter()
        .filter(|subject| *subject == "Report")
        .count();
    assert_eq!(reports, 1);
}
