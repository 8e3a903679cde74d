//! The mail sender against a real SMTP server, and what it sends on its way through a mailbox.

use crate::mail::Sink;
use crate::support::{Bus, Dovecot, Installation, free_port, get, post, wait_for};

/// A bus that sends by `smtp: { … }` and, where one is given, reads a mailbox.
fn sending(smtp: &str, mailbox: Option<&Dovecot>) -> Installation {
    let installation = Installation::new();
    let inbox = mailbox.map_or_else(String::new, |server| {
        format!(
            "  inbox: {{ imap: {{ host: 127.0.0.1, port: {}, user: bus, password: secret }} }}\n",
            server.imap
        )
    });
    installation.file(
        "xbus.yaml",
        format!(
            "name: test\nhttp: {{ listen: \"127.0.0.1:0\" }}\nadmin: {{ listen: \"127.0.0.1:0\" }}\n\
             journal: {{ payloads: all }}\nconnections:\n  relay: {{ smtp: {{ {smtp} }} }}\n{inbox}"
        ),
    );
    installation
}

fn plain(port: u16) -> String {
    format!("host: 127.0.0.1, port: {port}")
}

/// A route from HTTP to mail; `keys` of the target and of its sender.
fn by_mail(keys: &str, mail: &str) -> String {
    format!(
        "receive: {{ http: {{ path: /r }} }}\ndistribute:\n  - name: desk\n    {keys}\n    mail: {{ connection: relay, from: bus@acme.example, subject: Files, {mail} }}\n"
    )
}

/// The value of a header, as it stands there.
fn header<'a>(mail: &'a str, name: &str) -> &'a str {
    let start = format!("{name}: ");
    let line = mail
        .split("\r\n")
        .find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("no {name} in {mail}"))
}

#[track_caller]
fn wait_for_mails(sink: &Sink, count: usize) -> Vec<String> {
    wait_for(&format!("{count} mails"), || {
        Some(sink.mails()).filter(|mails| mails.len() >= count)
    })
}

/// Attachments of every kind; the second is what was posted.
const ATTACH: &str = r#"
attachments = [
    #{ name: "Grüße 1.txt", body: encode("äöü\n.\nend", "iso-8859-1"), content_type: "text/plain; charset=iso-8859-1" },
    #{ name: "all.bin", body: bytes() },
    #{ name: "order.xml", body: element("o", "7") },
    #{ content_type: "image/png", content_id: "logo@x", body: base64_decode("iVBORw0KGgo=") },
    #{ name: "within.eml", content_type: "message/rfc822", body: "Subject: within\r\n\r\n.\r\nhello" },
];
"the text"
"#;

/// What a mail brought, a line each.
const TELL: &str = r#"
let all = attachments.map(|a| `${a.name ?? "-"}|${a.content_type}|${a.content_id ?? "-"}|${a.size}|${hash(a.body).sub_string(0, 12)}`);
`${text().trimmed()}|${headers["content-type"]}` + "\n" + all.join("\n")
"#;

#[test]
fn what_goes_out_by_mail_comes_in_again_as_it_was() {
    let sink = Sink::start();
    let server = Dovecot::start();
    let installation = sending(&plain(sink.port), Some(&server));
    installation.script("attach.rhai", ATTACH);
    installation.script("tell.rhai", TELL);
    installation.route(
        "out",
        &by_mail(
            "transform: attach.rhai",
            "to: desk@acme.example, body: '{{ body }}', html: '<p>{{ body }} <img src=\"cid:logo@x\"></p>', attach: attachments",
        ),
    );
    installation.route(
        "before",
        "receive: { http: { path: /before } }\nreply: { transform: [attach.rhai, tell.rhai] }\n",
    );
    installation.route(
        "in",
        "receive: { mail: { connection: inbox, attachments: all } }\ndistribute:\n  - name: out\n    transform: tell.rhai\n    file: { dir: told, name: told.txt }\n",
    );
    let bus = installation.start();
    let bytes: Vec<u8> = (0..=255u8).cycle().take(70_000).collect();
    let kind = "application/octet-stream";
    let answer = post(bus.http, "/r", kind, &bytes);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let before = post(bus.http, "/before", kind, &bytes).text();
    let mut expected: Vec<String> = before.lines().map(str::to_owned).collect();
    assert_eq!(expected.len(), 6, "{before}");

    wait_for_mails(&sink, 1);
    server.put("bus", "INBOX", &sink.raw()[0]);
    let told = wait_for("the mail to come in", || {
        installation
            .names("told")
            .contains(&String::from("told.txt"))
            .then(|| installation.read("told/told.txt"))
    });
    let mut told: Vec<String> = told.trim_end().lines().map(str::to_owned).collect();
    // What the HTML shows lies beside it, and has been given a name.
    let picture = told.remove(1);
    assert!(
        picture.starts_with("attachment-4|image/png|logo@x|8|"),
        "{picture}"
    );
    let without = expected.remove(4);
    assert_eq!(picture.replace("attachment-4", "-"), without);
    assert_eq!(told, expected);
}

#[test]
fn a_mailbox_hands_attachments_on_through_a_lane_and_a_kill() {
    let port = free_port();
    let server = Dovecot::start();
    let mail = "From: shop@acme.example\nSubject: order\nMessage-ID: <7@shop>\nDate: Mon, 22 Mar 2021 09:41:09 +0100\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=cut\n\n--cut\n\nthe text\n--cut\nContent-Type: application/octet-stream; name=\"a.bin\"\nContent-Transfer-Encoding: base64\n\nAAEC/w==\n--cut\nContent-Type: message/rfc822\n\nSubject: within\n\nx\n--cut--\n";
    server.put("bus", "INBOX", mail);
    let installation = sending(&plain(port), Some(&server));
    installation.route(
        "r",
        "receive: { mail: { connection: inbox, attachments: all } }\ndistribute:\n  - name: desk\n    when: 'attachments.len() > 1'\n    async: { retry: { first: 20ms, max: 50ms } }\n    mail: { connection: relay, to: desk@acme.example, subject: '{{ attachments[0].name }}', attach: attachments }\n",
    );
    let bus = installation.start();
    wait_for("an attempt", || {
        bus.queue("r.desk")["head"]["attempts"]
            .as_u64()
            .filter(|attempts| *attempts > 0)
    });
    bus.kill();
    let sink = Sink::at(port);
    let bus = installation.start();
    let mail = wait_for_mails(&sink, 1).remove(0);
    for part in [
        "Subject: a.bin\r\n",
        "\r\n\r\nthe text\r\n",
        "filename=\"a.bin\"",
        "\r\n\r\nAAEC/w==\r\n",
        "Content-Type: message/rfc822\r\n",
        "filename=\"attachment-2.eml\"",
        "Subject: within\r\n\r\nx\r\n",
    ] {
        assert!(mail.contains(part), "no {part:?} in {mail}");
    }
    bus.wait_for_depth("r.desk", 0);
    assert_eq!(sink.mails().len(), 1);
}

#[test]
fn a_mail_that_nobody_confirmed_is_in_doubt_or_sent_again_as_it_was() {
    // Somebody waits: nobody sends it again.
    let sink = Sink::start();
    let installation = sending(&plain(sink.port), None);
    installation.route("r", &by_mail("when: 'true'", "to: lost@acme.example"));
    let bus = installation.start();
    let answer = post(bus.http, "/r", "text/plain", b"x");
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert!(answer.text().contains("in-doubt"), "{}", answer.text());
    let entry = bus.json(&["messages", "show", &answer.id()]);
    assert_eq!(entry["outcome"], "in-doubt", "{entry}");
    assert_eq!(sink.mails().len(), 1);
    bus.stop();

    // A lane delivers at least once: the server can tell by the Message-ID.
    let sink = Sink::start();
    let installation = sending(&plain(sink.port), None);
    installation.script("attach.rhai", ATTACH);
    installation.route(
        "r",
        &by_mail(
            "transform: attach.rhai\n    async: { retry: { first: 1s } }",
            "to: lost@acme.example, attach: attachments",
        ),
    );
    let bus = installation.start();
    let answer = post(bus.http, "/r", "text/plain", b"x");
    assert_eq!(answer.status, 202, "{}", answer.text());
    let mails = wait_for_mails(&sink, 2);
    bus.wait_for_depth("r.desk", 0);
    for name in ["Message-ID", "Date", "Idempotency-Key", "X-Message-Id"] {
        assert_eq!(header(&mails[0], name), header(&mails[1], name));
    }
    assert!(header(&mails[0], "Message-ID").contains(&answer.id()));
    let parts = |mail: &str| mail.matches("Content-Transfer-Encoding").count();
    assert_eq!((parts(&mails[0]), parts(&mails[1])), (6, 6));
}

fn incidents(bus: &Bus<'_>) -> String {
    get(bus.admin, "/api/v1/incidents").text()
}

#[test]
fn encryption_and_login_are_what_the_connection_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(vec![String::from("localhost")]).expect("a key");
    let (cert, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    std::fs::write(&cert, made.cert.pem()).expect("a file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    let (cert, key) = (cert.to_string_lossy(), key.to_string_lossy());
    let login = ["--login", "bus", "good word"];
    for (kind, tls) in [
        ("none", vec![]),
        ("starttls", vec!["--tls", "start", &cert, &key]),
        ("tls", vec!["--tls", "whole", &cert, &key]),
    ] {
        let sink = Sink::with(free_port(), &[&tls[..], &login[..]].concat());
        let smtp = |ca: &str, tls: &str, password: &str| {
            format!(
                "host: localhost, port: {}, tls: {tls}, user: bus, password: {password}{ca}",
                sink.port
            )
        };
        let ca = format!(", ca: {cert}");
        let attempt = |smtp: &str| {
            let installation = sending(smtp, None);
            installation.route("r", &by_mail("when: 'true'", "to: desk@acme.example"));
            let bus = installation.start();
            let answer = post(bus.http, "/r", "text/plain", b"x");
            let told = incidents(&bus) + &installation.log() + &answer.text();
            (answer.status, told)
        };
        let good = smtp(if kind == "none" { "" } else { &ca }, kind, "good word");
        let (status, told) = attempt(&good);
        assert_eq!(status, 200, "{kind}: {told}");
        let mail = wait_for_mails(&sink, 1).remove(0);
        assert_eq!(mail.contains("X-Encrypted: yes"), kind != "none", "{mail}");

        let wrong = smtp(if kind == "none" { "" } else { &ca }, kind, "bad word");
        let (status, told) = attempt(&wrong);
        assert_eq!(status, 502, "{kind}: {told}");
        assert!(told.contains("login failed"), "{kind}: {told}");
        assert!(!told.contains("bad word"), "{kind}: {told}");
        if kind == "none" {
            // Nothing goes out, and no password, where the server cannot do what is asked.
            let (status, told) = attempt(&smtp(&ca, "starttls", "good word"));
            assert_eq!(status, 502, "{told}");
            assert!(told.contains("STARTTLS"), "{told}");
        } else {
            let (status, told) = attempt(&smtp("", kind, "good word"));
            assert_eq!(
                status, 502,
                "{kind}, a certificate that nobody knows: {told}"
            );
        }
        assert_eq!(sink.mails().len(), 1, "{kind}");
    }
}

#[test]
fn what_cannot_be_attached_is_an_error_of_check() {
    for (attach, code) in [
        ("attach: attachments", None),
        ("attach: [body, attachments, { name: a.xml }]", None),
        ("attach: { name: a.xml, body: x }", None),
        ("attach: { content_type: application/xml }", None),
        ("attach: { content_type: xml }", Some("bad-value")),
        ("attach: everything", Some("bad-choice")),
        ("attach: [{ nam: a.xml }]", Some("unknown-key")),
        ("subject: '{{ attachment.len() }}'", Some("bad-expression")),
    ] {
        let installation = sending(&plain(25), None);
        let yaml = by_mail("when: 'true'", &format!("to: a@b.example, {attach}"));
        let yaml = match attach.starts_with("subject") {
            true => yaml.replace("subject: Files, ", ""),
            false => yaml,
        };
        installation.route("r", &yaml);
        let output = installation.xbus(&["check", "--format", "json"]);
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let problem = &told["problems"][0];
        match code {
            None => assert!(problem.is_null(), "{attach}: {told}"),
            Some(code) => {
                assert_eq!(problem["code"], code, "{attach}: {told}");
                let help = problem["help"].as_str().unwrap_or_default();
                assert!(
                    ["attach", "name", "such as"]
                        .iter()
                        .any(|word| help.contains(word)),
                    "{told}"
                );
            }
        }
    }
}
