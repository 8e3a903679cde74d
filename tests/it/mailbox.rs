//! The mail receiver against a real Dovecot.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::mail::Sink;
use crate::support::dovecot::freeze;
use crate::support::{Answer, Bus, Destination, Dovecot, Installation, get, wait_for};

/// A bus that reads the mailbox `bus`, as `connection` (`imap: { … }`) says.
fn reading(connection: &str) -> Installation {
    let installation = Installation::new();
    installation.file(
        "xbus.yaml",
        format!(
            "name: test\nhttp: {{ listen: \"127.0.0.1:0\" }}\nadmin: {{ listen: \"127.0.0.1:0\" }}\n\
             journal: {{ payloads: all }}\nconnections:\n  inbox: {{ {connection} }}\n"
        ),
    );
    installation
}

fn imap(server: &Dovecot) -> String {
    format!(
        "imap: {{ host: 127.0.0.1, port: {}, user: bus, password: secret }}",
        server.imap
    )
}

fn pop3(server: &Dovecot) -> String {
    format!(
        "pop3: {{ host: 127.0.0.1, port: {}, user: bus, password: secret }}",
        server.pop3
    )
}

/// A route from the mailbox into files named `NAME`.
fn to_files(mail: &str, name: &str) -> String {
    format!(
        "receive: {{ mail: {{ connection: inbox, {mail} }} }}\ndistribute:\n  - name: out\n    file: {{ dir: out, name: '{name}' }}\n"
    )
}

fn plain(subject: &str, body: &str) -> String {
    format!(
        "From: Shop <shop@acme.example>\nTo: bus@acme.example\nSubject: {subject}\nMessage-ID: <{subject}@acme.example>\nDate: Mon, 22 Mar 2021 09:41:09 +0100\n\n{body}"
    )
}

/// A mail with attachments of these names, types and contents.
fn with_parts(subject: &str, parts: &[(&str, &str, &str)]) -> String {
    let mut mail = format!(
        "From: shop@acme.example\nSubject: {subject}\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=cut\n\n--cut\n\nthe text\n"
    );
    for (name, kind, content) in parts {
        mail += &format!(
            "--cut\nContent-Type: {kind}; name=\"{name}\"\nContent-Disposition: attachment; filename=\"{name}\"\n\n{content}\n"
        );
    }
    mail + "--cut--\n"
}

fn incidents(bus: &Bus<'_>) -> String {
    get(bus.admin, "/api/v1/incidents").text()
}

#[track_caller]
fn wait_for_files(installation: &Installation, names: &[&str]) {
    wait_for(&format!("the files {names:?}"), || {
        (installation.names("out") == names).then_some(())
    });
}

#[test]
fn a_mail_is_taken_at_once_where_the_server_has_idle() {
    let server = Dovecot::start();
    server.put("bus", "INBOX", plain("first", "waiting"));
    let installation = reading(&imap(&server));
    installation.script(
        "tell.rhai",
        r#"`${header("mail.from")}|${header("mail.from-address")}|${header("mail.to")}|${header("mail.subject")}|${header("mail.date")}|${header("mail.message-id")}|${header("mail.x-no")}|${body}`"#,
    );
    installation.route(
        "r",
        "receive: { mail: { connection: inbox, poll: 1h } }\ndistribute:\n  - name: out\n    transform: tell.rhai\n    file: { dir: out, name: '{{ header(\"mail.subject\") }}.txt' }\n",
    );
    let bus = installation.start();
    wait_for_files(&installation, &["first.txt"]);
    let mail = "From: =?utf-8?Q?M=C3=BCller?= <m@acme.example>\nTo: a@b.example, c@d.example\nSubject: =?iso-8859-1?Q?Gr=FC=DFe?=\nMessage-ID: <2@acme.example>\nDate: Mon, 22 Mar 2021 09:41:09 +0100\nX-No: 7\nContent-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\n=E4=F6=FC\n";
    // The poll is an hour away.
    server.put("bus", "INBOX", mail);
    wait_for_files(&installation, &["Grüße.txt", "first.txt"]);
    assert_eq!(
        installation.read("out/Grüße.txt").trim_end(),
        "Müller <m@acme.example>|m@acme.example|a@b.example, c@d.example|Grüße|2021-03-22T09:41:09+01:00|<2@acme.example>|7|äöü"
    );
    wait_for("the marks", || {
        (server.unseen("bus", "INBOX") == 0).then_some(())
    });
    // Marked as unread again on purpose it is a new mail; another one's mark is no news.
    assert!(bus.stop().success());
    let bus = installation.start();
    server.put("bus", "INBOX", plain("third", "x"));
    wait_for_files(&installation, &["Grüße.txt", "first.txt", "third.txt"]);
    assert_eq!(incidents(&bus), "[]");
}

#[test]
fn encryption_is_checked_and_a_wrong_login_is_told_with_help() {
    let server = Dovecot::start();
    let ca = server.ca();
    for (name, connection) in [
        (
            "tls",
            format!(
                "imap: {{ host: localhost, port: {}, tls: tls, ca: {}, user: bus, password: secret }}",
                server.imaps,
                ca.display()
            ),
        ),
        (
            "starttls",
            format!(
                "imap: {{ host: localhost, port: {}, tls: starttls, ca: {}, user: bus, password: secret }}",
                server.imap,
                ca.display()
            ),
        ),
        (
            "stls",
            format!(
                "pop3: {{ host: localhost, port: {}, tls: starttls, ca: {}, user: bus, password: secret }}",
                server.pop3,
                ca.display()
            ),
        ),
        (
            "pop3s",
            format!(
                "pop3: {{ host: localhost, port: {}, tls: tls, ca: {}, user: bus, password: secret }}",
                server.pop3s,
                ca.display()
            ),
        ),
    ] {
        server.put("bus", "INBOX", plain(name, "x"));
        let installation = reading(&connection);
        installation.route(
            "r",
            &to_files("done: delete", r#"{{ header("mail.subject") }}"#),
        );
        let bus = installation.start();
        wait_for_files(&installation, &[name]);
        wait_for("the mailbox to be empty", || {
            server.mails("bus", "INBOX").is_empty().then_some(())
        });
        bus.stop();
    }
    let installation = Installation::new();
    installation.file(
        "xbus.yaml",
        format!(
            "name: test\nhttp: {{ listen: \"127.0.0.1:0\" }}\nadmin: {{ listen: \"127.0.0.1:0\" }}\nconnections:\n  \
             login: {{ imap: {{ host: 127.0.0.1, port: {}, user: bus, password: wrongword }} }}\n  \
             pop: {{ pop3: {{ host: 127.0.0.1, port: {}, user: bus, password: wrongword }} }}\n  \
             trust: {{ imap: {{ host: localhost, port: {}, tls: tls, user: bus, password: secret }} }}\n  \
             folder: {{ imap: {{ host: 127.0.0.1, port: {}, user: bus, password: secret }} }}\n  \
             wrong: {{ imap: {{ host: 127.0.0.1, port: {}, user: other, password: secret }} }}\n",
            server.imap, server.pop3, server.imaps, server.imap, server.pop3
        ),
    );
    for name in ["login", "pop", "trust", "wrong"] {
        installation.route(name, &format!("receive: {{ mail: {{ connection: {name} }}, retry: {{ first: 50ms }} }}\ndistribute:\n  - file: {{ dir: out, name: x }}\n"));
    }
    installation.route("folder", "receive: { mail: { connection: folder, folder: [Orders], retry: { first: 50ms, max: 1s } } }\ndistribute:\n  - file: { dir: out, name: '{{ header(\"mail.subject\") }}' }\n");
    let bus = installation.start();
    let told = |text: &str| {
        wait_for(text, || incidents(&bus).contains(text).then_some(()));
    };
    told("the login is refused");
    told("check 'user' and 'password'");
    told("no encrypted connection");
    told("the folder 'Orders' cannot be opened");
    told("what answers there is no IMAP server");
    assert!(!incidents(&bus).contains("wrongword"));
    // What is mended works by itself.
    server.put("bus", "Orders", plain("mended", "x"));
    wait_for_files(&installation, &["mended"]);
    wait_for("the incident to end", || {
        (!incidents(&bus).contains("Orders")).then_some(())
    });
}

#[test]
fn what_a_mailbox_cannot_do_is_an_error_of_check() {
    let codes = |connection: &str, mail: &str| -> Vec<String> {
        let installation = reading(connection);
        installation.route("r", &to_files(mail, "x"));
        let output = installation.xbus(&["check", "--format", "json"]);
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let problems = told["problems"].as_array().expect("a list");
        problems
            .iter()
            .map(|problem| problem["code"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let near = "{ host: localhost, user: bus, password: secret }";
    let (imap, pop3) = (&format!("imap: {near}"), &format!("pop3: {near}"));
    let far = "imap: { host: mail.acme.example, user: bus, password: secret }";
    for (connection, mail, expected) in [
        (imap, "done: { move: Archive }", &[][..]),
        (pop3, "done: delete", &[]),
        (pop3, "done: seen", &["no-marks"]),
        (pop3, "done: { move: Archive }", &["no-marks"]),
        (pop3, "failed: Trouble", &["no-folders"]),
        (pop3, "folder: Orders", &["no-folders"]),
        (imap, "folder: [A, A]", &["bad-folder"]),
        (imap, "failed: inbox", &["bad-folder"]),
        (imap, "done: { move: INBOX }", &["bad-folder"]),
        (imap, "folder: []", &["bad-folder"]),
        (imap, "max_size: 0", &["bad-value"]),
        (imap, "retry: { first: 5s }", &[]),
        (imap, "order_by: 'id'", &["unknown-key"]),
        (imap, "from: '[a'", &["bad-pattern"]),
        (imap, "poll: 0s", &["bad-value"]),
        (imap, "charset: klingon", &["unknown-charset"]),
        (imap, "attachments: all", &[]),
        (imap, "attachments: some", &["bad-choice"]),
        (&far.to_owned(), "prefer: html", &["clear-password"]),
    ] {
        assert_eq!(codes(connection, mail), expected, "{connection} {mail}");
    }
}

#[test]
fn check_says_what_a_mailbox_needs_to_answer_and_what_has_no_meaning_for_it() {
    let smtp = "smtp: { host: localhost } }";
    let inbox = "imap: { host: localhost, user: bus, password: secret }";
    for (connections, receive, expected) in [
        (
            inbox.to_owned(),
            "mail: { connection: inbox }",
            "no-connection 2:1 no mail server",
        ),
        (
            format!(
                "{inbox} }}\n  a: {{ {smtp}\n  b: {{ {}",
                &smtp[..smtp.len() - 2]
            ),
            "mail: { connection: inbox }",
            "no-connection 2:1 more than one",
        ),
        (
            format!(
                "{inbox} }}\n  a: {{ {smtp}\n  b: {{ {}",
                &smtp[..smtp.len() - 2]
            ),
            "mail: { connection: inbox, reply_by: b }",
            "",
        ),
        (
            format!("{inbox} }}\n  a: {{ {}", &smtp[..smtp.len() - 2]),
            "mail: { connection: inbox }",
            "",
        ),
        (
            format!("{inbox} }}\n  a: {{ {}", &smtp[..smtp.len() - 2]),
            "mail: { connection: inbox }, on_reject: park",
            "useless-key 1:41 one after the other",
        ),
    ] {
        let installation = reading(&connections);
        installation.route("r", &format!("receive: {{ {receive} }}\nreply: {{}}\n"));
        let output = installation.xbus(&["check", "--format", "json"]);
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let Some(problem) = told["problems"].get(0) else {
            assert_eq!(expected, "", "{told}");
            continue;
        };
        let (at, words) =
            expected.split_at(expected.match_indices(' ').nth(1).map_or(0, |(at, _)| at));
        let code = problem["code"].as_str().unwrap_or_default();
        assert_eq!(
            at,
            format!("{code} {}:{}", problem["line"], problem["column"]),
            "{told}"
        );
        assert!(
            problem["message"]
                .as_str()
                .unwrap_or_default()
                .contains(words),
            "{told}"
        );
        assert_ne!(problem["help"], "", "{told}");
    }
}

#[test]
fn each_attachment_is_a_message_by_both_protocols() {
    let server = Dovecot::start();
    for connection in [imap(&server), pop3(&server)] {
        server.put(
            "bus",
            "INBOX",
            with_parts(
                "order",
                &[
                    ("a.xml", "application/octet-stream", "<o><n>1</n></o>"),
                    ("b.csv", "text/plain", "n;m"),
                ],
            ),
        );
        server.put("bus", "INBOX", plain("text.txt", ".dots\n..\n.\nend\n"));
        let installation = reading(&connection);
        installation.script(
            "name.rhai",
            r#"let n = header("mail.attachment"); headers["n"] = if n == () { header("mail.subject") } else { n }; body"#,
        );
        installation.route(
            "r",
            "receive: { mail: { connection: inbox, done: delete } }\ndistribute:\n  - name: out\n    transform: name.rhai\n    file: { dir: out, name: '{{ header(\"n\") }}' }\n",
        );
        let bus = installation.start();
        wait_for_files(&installation, &["a.xml", "b.csv", "text.txt"]);
        assert_eq!(installation.read("out/a.xml"), "<o><n>1</n></o>");
        assert_eq!(
            installation
                .read("out/text.txt")
                .replace("\r\n", "\n")
                .trim_end(),
            ".dots\n..\n.\nend"
        );
        wait_for("the mailbox to be empty", || {
            server.mails("bus", "INBOX").is_empty().then_some(())
        });
        bus.stop();
    }
}

#[test]
fn filters_leave_mails_and_several_folders_are_watched() {
    let server = Dovecot::start();
    server.put("bus", "INBOX", plain("Order 1", "x"));
    server.put("bus", "INBOX", plain("Offer 2", "x"));
    server.put(
        "bus",
        "INBOX",
        plain("Order 3", "x").replace("shop@acme", "thief@evil"),
    );
    server.put("bus", "Orders.b&AOQ-r", plain("order 4", "x"));
    let installation = reading(&imap(&server));
    installation.route(
        "r",
        &to_files(
            "folder: [INBOX, Orders.bär], done: { move: Archive.2021 }, from: '*@ACME.example', subject: 'order *', poll: 100ms",
            r#"{{ header("mail.subject") }}"#,
        ),
    );
    let bus = installation.start();
    wait_for_files(&installation, &["Order 1", "order 4"]);
    wait_for("the moves", || {
        (server.mails("bus", "Archive.2021").len() == 2).then_some(())
    });
    assert_eq!(server.mails("bus", "INBOX").len(), 2);
    assert_eq!(
        server.unseen("bus", "INBOX"),
        2,
        "those that are not ours are untouched"
    );
    bus.stop();
    // By POP3, which has no searching.
    let installation = reading(&pop3(&server));
    installation.route(
        "r",
        &to_files(
            "subject: 'off*', poll: 100ms",
            r#"{{ header("mail.subject") }}"#,
        ),
    );
    let _bus = installation.start();
    wait_for_files(&installation, &["Offer 2"]);
    wait_for("the mail to go", || {
        (server.mails("bus", "INBOX").len() == 1).then_some(())
    });
}

#[test]
fn a_mail_that_fails_goes_to_its_folder_with_the_reason_and_stops_no_other() {
    let server = Dovecot::start();
    let system = Destination::with(|got| match got.text().as_str() {
        "rejected" => Answer::Status(422, "text/plain", b"no such customer".to_vec()),
        "doubtful" => Answer::Close,
        _ => Answer::ok(),
    });
    server.put("bus", "INBOX", plain("good-1", "good"));
    server.put("bus", "INBOX", plain("reject", "rejected"));
    server.put("bus", "INBOX", plain("doubt", "doubtful"));
    server.put("bus", "INBOX", plain("script", "crash"));
    server.put("bus", "INBOX", plain("large", &"y".repeat(300_000)));
    server.put(
        "bus",
        "INBOX",
        with_parts("tnef", &[("winmail.dat", "application/ms-tnef", "x")]),
    );
    server.put(
        "bus",
        "INBOX",
        with_parts(
            "half",
            &[("a", "text/csv", "good-a"), ("b", "text/csv", "rejected")],
        ),
    );
    let mut damaged = with_parts(
        "damaged",
        &[("c", "text/csv", "good-c"), ("d", "text/csv", "x")],
    );
    let at = damaged
        .rfind("Content-Type: text/csv")
        .expect("its last part");
    damaged.insert_str(at, "Content-Transfer-Encoding: x-nobody\n");
    server.put("bus", "INBOX", damaged);
    server.put("bus", "INBOX", "no headers at all".as_bytes());
    server.put("bus", "INBOX", plain("good-2", "good-2"));
    let installation = reading(&imap(&server));
    installation.script("s.rhai", r#"if body == "crash" { throw "böse" } body"#);
    installation.route(
        "r",
        &format!(
            "receive: {{ mail: {{ connection: inbox, max_size: 256KiB, failed: Trouble, poll: 100ms }} }}\ndistribute:\n  - name: erp\n    transform: s.rhai\n    http: {{ url: \"{}\" }}\n  - name: copy\n    file: {{ dir: out, name: '{{{{ id }}}}' }}\n",
            system.url("/")
        ),
    );
    let bus = installation.start();
    wait_for("the last good one", || {
        system
            .got()
            .iter()
            .any(|got| got.text() == "good-2")
            .then_some(())
    });
    let failed = wait_for("the failed ones", || {
        let failed = server.mails("bus", "Trouble");
        // The one that is too large has its reason beside it.
        (failed.len() == 8 && server.unseen("bus", "INBOX") == 0).then_some(failed)
    });
    let reason = |subject: &str| -> String {
        let (_, mail) = failed
            .iter()
            .find(|(_, mail)| mail.contains(&format!("Subject: {subject}")))
            .unwrap_or_else(|| panic!("{subject}: {failed:#?}"));
        mail.lines()
            .find_map(|line| line.strip_prefix("X-Xbus-Reason: "))
            .unwrap_or_else(|| panic!("{mail}"))
            .to_owned()
    };
    assert!(reason("reject").contains("422"), "{}", reason("reject"));
    assert!(reason("tnef").starts_with("=?utf-8?B?") || reason("tnef").contains("TNEF"));
    assert!(
        reason("half").contains("1 of 2 attachments failed: 'b'"),
        "{}",
        reason("half")
    );
    let of_damaged = reason("damaged");
    assert!(
        of_damaged.starts_with("1 of 2 attachments failed: 'd'")
            && of_damaged.contains("transfer encoding"),
        "{of_damaged}"
    );
    assert!(
        reason("[xbus] failed: large").contains("limit"),
        "{}",
        reason("[xbus] failed: large")
    );
    assert!(!reason("script").is_empty() && !reason("doubt").is_empty());
    let big = failed
        .iter()
        .any(|(_, mail)| mail.starts_with("From: Shop") && mail.len() > 300_000);
    assert!(big, "the large one itself is there");
    assert_eq!(server.mails("bus", "INBOX").len(), 3, "the good ones");
    let count = |text: &str| system.got().iter().filter(|got| got.text() == text).count();
    assert_eq!(
        (
            count("doubtful"),
            count("good-a"),
            count("good-c"),
            count("rejected")
        ),
        (1, 1, 1, 2)
    );
    let outcomes = |outcome: &str| {
        let all = bus.json(&["messages", "--outcome", outcome]);
        all.as_array().map_or(0, Vec::len)
    };
    assert_eq!(
        outcomes("failed"),
        6,
        "reject, script, large, tnef, one half and one that is damaged"
    );
    assert_eq!(outcomes("in-doubt"), 1);
}

#[test]
fn by_pop3_a_mail_that_failed_stays_and_is_not_taken_again() {
    let server = Dovecot::start();
    let system = Destination::with(|got| match got.text().trim() {
        "bad" => Answer::Status(422, "text/plain", b"no".to_vec()),
        _ => Answer::ok(),
    });
    server.put("bus", "INBOX", plain("one", "bad"));
    server.put("bus", "INBOX", plain("two", "good"));
    let installation = reading(&pop3(&server));
    installation.route(
        "r",
        &format!("receive: {{ mail: {{ connection: inbox, poll: 50ms }} }}\ndistribute:\n  - http: {{ url: \"{}\" }}\n", system.url("/")),
    );
    for round in 0..2 {
        let bus = installation.start();
        wait_for("the good one to go", || {
            (server.mails("bus", "INBOX").len() == 1).then_some(())
        });
        server.put("bus", "INBOX", plain(&format!("next-{round}"), "good"));
        wait_for("another good one to go", || {
            (system.got().len() == 3 + round && server.mails("bus", "INBOX").len() == 1)
                .then_some(())
        });
        assert_eq!(
            system
                .got()
                .iter()
                .filter(|got| got.text().trim() == "bad")
                .count(),
            1
        );
        bus.kill();
    }
}

#[test]
fn an_outage_keeps_mails_in_their_order() {
    let server = Dovecot::start();
    static DOWN: Mutex<u32> = Mutex::new(3);
    let system = Destination::with(|_| {
        let mut left = DOWN.lock().expect("unpoisoned");
        *left = left.saturating_sub(1);
        match *left {
            0 => Answer::ok(),
            _ => Answer::Status(503, "text/plain", b"later".to_vec()),
        }
    });
    for name in ["a", "b", "c"] {
        server.put("bus", "INBOX", plain(name, name));
    }
    let installation = reading(&imap(&server));
    installation.route(
        "r",
        &format!("receive: {{ mail: {{ connection: inbox }}, retry: {{ first: 50ms, max: 100ms }} }}\ndistribute:\n  - http: {{ url: \"{}\" }}\n", system.url("/")),
    );
    let _bus = installation.start();
    wait_for("all to be seen", || {
        (server.unseen("bus", "INBOX") == 0).then_some(())
    });
    let order: Vec<String> = system
        .got()
        .iter()
        .map(|got| got.text().trim().to_owned())
        .collect();
    assert_eq!(order, ["a", "a", "a", "b", "c"]);
}

#[test]
fn a_server_that_ends_in_idle_is_found_again() {
    let mut server = Dovecot::start();
    server.put("bus", "INBOX", plain("one", "x"));
    let installation = reading(&imap(&server));
    installation.route(
        "r",
        &(to_files(
            "poll: 1h, retry: { first: 50ms, max: 200ms }",
            r#"{{ header("mail.subject") }}"#,
        )),
    );
    let bus = installation.start();
    wait_for_files(&installation, &["one"]);
    let inbox = || {
        let status = bus.json_of("/api/v1/status");
        let all = status["connections"].as_array().cloned();
        let mut all = all.unwrap_or_default().into_iter();
        let inbox = all.find(|connection| connection["name"] == "inbox");
        inbox.expect("the connection tells how it is doing")
    };
    assert_eq!(inbox()["state"], "up");
    server.end();
    wait_for("the incident", || {
        incidents(&bus).contains("cannot connect").then_some(())
    });
    assert_eq!(inbox()["state"], "down", "{}", inbox());
    assert!(inbox()["error"].to_string().contains("cannot connect"));
    server.put("bus", "INBOX", plain("two", "x"));
    server.launch();
    wait_for_files(&installation, &["one", "two"]);
    wait_for("the end of the incident", || {
        (incidents(&bus) == "[]").then_some(())
    });
    assert_eq!(inbox()["state"], "up", "{}", inbox());
    let started = Instant::now();
    assert!(bus.stop().success());
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "a stop does not wait for IDLE"
    );
}

#[test]
fn a_route_answers_its_mail_but_no_machine() {
    let server = Dovecot::start();
    let sink = Sink::start();
    let machine = plain("machine", "x").replace("To:", "Auto-Submitted: auto-replied\nTo:");
    server.put("bus", "INBOX", machine);
    server.put("bus", "INBOX", plain("question", "6 * 7"));
    let installation = reading(&format!(
        "{} }}\n  relay: {{ smtp: {{ host: 127.0.0.1, port: {}, from: bus@acme.example }}",
        imap(&server),
        sink.port
    ));
    let system = Destination::with(|_| Answer::Status(200, "text/plain", b"42".to_vec()));
    installation.route(
        "r",
        &format!("receive: {{ mail: {{ connection: inbox }} }}\ninvoke:\n  - http: {{ url: \"{}\" }}\nreply: {{}}\n", system.url("/")),
    );
    let bus = installation.start();
    let answer = sink.wait_for_mail("Re: question");
    for line in [
        "To: shop@acme.example",
        "From: bus@acme.example",
        "In-Reply-To: <question@acme.example>",
        "References: <question@acme.example>",
        "Auto-Submitted: auto-replied",
        "42",
    ] {
        assert!(answer.lines().any(|one| one == line), "{line} in {answer}");
    }
    wait_for("the marks", || {
        (server.unseen("bus", "INBOX") == 0).then_some(())
    });
    assert_eq!(system.got().len(), 2);
    assert_eq!(sink.mails().len(), 1, "the machine gets none");
    assert_eq!(incidents(&bus), "[]");
}

#[test]
fn an_answer_that_the_mail_server_puts_off_keeps_no_other_mail_from_being_taken() {
    let server = Dovecot::start();
    let sink = Sink::start();
    for (subject, sender) in [
        ("hopeless", "later@shop.example"),
        ("greylisted", "grey@shop.example"),
        ("question", "shop@acme.example"),
    ] {
        let mail = plain(subject, "6 * 7").replace("<shop@acme.example>", &format!("<{sender}>"));
        server.put("bus", "INBOX", mail);
    }
    let installation = reading(&format!(
        "{} }}\n  relay: {{ smtp: {{ host: 127.0.0.1, port: {}, from: bus@acme.example }}",
        imap(&server),
        sink.port
    ));
    installation.route(
        "r",
        "receive: { mail: { connection: inbox }, retry: { first: 10ms, max: 20ms } }\n\
         distribute:\n  - file: { dir: out, name: '{{ id }}' }\nreply: {}\n",
    );
    let bus = installation.start();
    sink.wait_for_mail("Re: question");
    sink.wait_for_mail("Re: greylisted");
    wait_for("the marks", || {
        (server.unseen("bus", "INBOX") == 0).then_some(())
    });
    // The hopeless one is done without its answer, and that is told.
    wait_for("the journal", || {
        let all = bus.json(&["messages"]);
        let told = all.as_array().into_iter().flatten().any(|one| {
            let id = one["id"].as_str().unwrap_or_default();
            let entry = bus.json(&["messages", "show", id]);
            let targets = entry["targets"].as_array().into_iter().flatten();
            targets
                .filter(|target| target["name"] == "reply")
                .any(|target| target["outcome"] == "failed" && target["attempts"] == 20)
        });
        told.then_some(())
    });
    assert!(incidents(&bus).contains("every recipient refused: later@shop.example"));
    assert_eq!(sink.mails().len(), 2);
    assert_eq!(installation.names("out").len(), 3);
}

/// Accepted, and neither marked nor forgotten: Dovecot stands still from acceptance on, then the bus
/// and Dovecot are killed.
fn accepted_and_killed(server: &mut Dovecot, installation: &Installation, system: &Destination) {
    let bus = installation.start();
    wait_for("the acceptance", || {
        (!system.got().is_empty()).then_some(())
    });
    wait_for("the journal", || {
        let all = bus.json(&["messages", "--outcome", "delivered"]);
        all.as_array()
            .is_some_and(|all| !all.is_empty())
            .then_some(())
    });
    assert_eq!(server.unseen("bus", "INBOX"), 1, "not marked yet");
    bus.kill();
    server.end();
}

#[test]
fn an_accepted_mail_is_not_taken_again_even_when_the_server_numbers_its_mails_anew() {
    for renumber in [false, true] {
        let mut server = Dovecot::start();
        server.put("bus", "INBOX", plain("one", "x"));
        let master = server.master();
        let system = Destination::with(move |_| {
            freeze(master);
            Answer::ok()
        });
        let installation = reading(&imap(&server));
        installation.route(
            "r",
            &format!("receive: {{ mail: {{ connection: inbox, poll: 100ms }} }}\ndistribute:\n  - http: {{ url: \"{}\" }}\n", system.url("/")),
        );
        accepted_and_killed(&mut server, &installation, &system);
        if renumber {
            server.renumber("bus", "INBOX");
        }
        server.launch();
        let _bus = installation.start();
        wait_for("the mark", || {
            (server.unseen("bus", "INBOX") == 0).then_some(())
        });
        assert_eq!(system.got().len(), 1, "renumbered: {renumber}");
    }
}

#[test]
fn a_deletion_that_was_broken_off_is_finished_and_nobody_elses() {
    for parts in [1, 2] {
        let mut server = Dovecot::start();
        let names = ["a.txt", "b.txt"].map(|name| (name, "text/plain", "x"));
        server.put("bus", "INBOX", with_parts("one", &names[..parts]));
        let master = server.master();
        let system = Destination::with(move |request| {
            if parts == 1 || String::from_utf8_lossy(&request.body).starts_with("b.txt") {
                freeze(master);
            }
            Answer::ok()
        });
        let installation = reading(&imap(&server));
        installation.script("name.rhai", "header(\"mail.attachment\")");
        installation.route(
            "r",
            &format!("receive: {{ mail: {{ connection: inbox, done: delete, poll: 100ms }} }}\ndistribute:\n  - transform: name.rhai\n    http: {{ url: \"{}\" }}\n", system.url("/")),
        );
        let bus = installation.start();
        wait_for("the acceptance", || {
            let all = bus.json(&["messages", "--outcome", "delivered"]);
            (all.as_array().map(Vec::len) == Some(parts)).then_some(())
        });
        bus.kill();
        server.end();
        // As it is between STORE and EXPUNGE; the other mail somebody else has marked.
        server.put("bus", "INBOX", plain("other", "not the bus's"));
        server.mark_deleted("bus", "INBOX");
        server.launch();
        let bus = installation.start();
        wait_for("the deletion", || {
            (server.mails("bus", "INBOX").len() == 1).then_some(())
        });
        assert!(server.mails("bus", "INBOX")[0].1.contains("Subject: other"));
        bus.stop();
        assert_eq!(system.got().len(), parts, "nothing is taken again");
    }
}

#[test]
fn a_thousand_mails_and_twenty_kills_lose_none_and_repeat_none() {
    const MAILS: usize = 1000;
    const KILLS: usize = 20;
    let server = Dovecot::start();
    for number in 0..MAILS {
        server.put("bus", "INBOX", plain(&format!("n-{number}"), "x"));
    }
    let installation = reading(&imap(&server));
    // The queue's entry and the mail's key are one commit, so that nothing hides a repeat.
    installation.route(
        "r",
        "receive: { mail: { connection: inbox, done: { move: Done }, poll: 100ms } }\ndistribute:\n  - name: q\n    queue: { name: taken }\n",
    );
    for kill in 1..=KILLS {
        let bus = installation.start();
        let goal = (MAILS / (KILLS + 1) * kill) as u64;
        wait_for("some mails", || {
            (bus.queue("taken")["depth"].as_u64().unwrap_or(0) >= goal).then_some(())
        });
        bus.kill();
    }
    let bus = installation.start();
    wait_for("all mails to be moved", || {
        (server.mails("bus", "Done").len() == MAILS && server.mails("bus", "INBOX").is_empty())
            .then_some(())
    });
    assert_eq!(bus.queue("taken")["depth"], MAILS, "none lost, none twice");
    bus.stop();
}

/// Mails that few programs write, and whether they can be read.
fn torture() -> Vec<(&'static str, Vec<u8>, bool)> {
    let nested = |depth: usize| {
        let open = |level: usize| {
            format!("Content-Type: multipart/mixed; boundary=b{level}\n\n--b{level}\n")
        };
        (0..depth).map(open).collect::<String>() + "\ntext\n"
    };
    let parts = |count: usize| {
        String::from("Content-Type: multipart/mixed; boundary=x\n\n") + &"--x\n\na\n".repeat(count)
    };
    let text = |charset: &str, body: &[u8]| {
        let head = format!("Subject: t\nContent-Type: text/plain; charset={charset}\n\n");
        [head.as_bytes(), body].concat()
    };
    vec![
        ("deep", nested(15).into(), true),
        ("too deep", nested(40).into(), false),
        (
            "mails in mails",
            "Content-Type: message/rfc822\n\n".repeat(500).into(),
            true,
        ),
        ("many parts", parts(200).into(), true),
        ("too many parts", parts(1200).into(), false),
        ("a wrong charset", text("utf-8", b"\xe4 x"), false),
        ("no such charset", text("klingon-7", b"x"), false),
        ("a charset of its own", text("us-ascii", b"\x80\xff"), true),
        (
            "a long header",
            format!("Subject: {}\n\nx", "y".repeat(100_000)).into(),
            true,
        ),
        (
            "huge headers",
            format!("{}\nx", "X-A: b\n".repeat(60_000)).into(),
            false,
        ),
        (
            "many names",
            format!("To: {}\n\nx", "\"a, b\" <a@b.example>, ".repeat(3_000)).into(),
            true,
        ),
        (
            "broken words",
            b"Subject: =?utf-8?Q?=E4=?= =?x?y?z?= \xff\xfe\nFrom: <<<,;:@\n\nx".to_vec(),
            true,
        ),
        ("no headers", b"\nonly a body".to_vec(), true),
        ("no body", b"Subject: x\n".to_vec(), true),
        ("nul", b"Subject: a\0b\n\nc\0d".to_vec(), true),
        (
            "no boundary",
            b"Content-Type: multipart/mixed\n\ntext".to_vec(),
            true,
        ),
        (
            "no end",
            b"Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/html\n\n<p>"
                .to_vec(),
            true,
        ),
        (
            "half of base64",
            b"Content-Type: image/png; name=a\nContent-Transfer-Encoding: base64\n\nAAAAA".to_vec(),
            false,
        ),
        (
            "an encoding of its own",
            b"Content-Transfer-Encoding: x-rot13\n\nx".to_vec(),
            false,
        ),
        (
            "winmail",
            b"Content-Type: application/ms-tnef; name=winmail.dat\n\nx".to_vec(),
            false,
        ),
        (
            "names of paths",
            b"Content-Type: text/plain; name=\"../../etc/passwd\"\n\nx".to_vec(),
            true,
        ),
        (
            "date",
            b"Date: 99 Foo 20001 99:99 +9999\nMessage-ID: \n\nx".to_vec(),
            true,
        ),
        ("line ends", "\n".repeat(300_000).into(), true),
    ]
}

/// `XBUS_MAIL_SAMPLES` names a folder with more of them (`*.eml`).
#[test]
fn whatever_lies_in_a_mailbox_is_processed_or_set_aside_with_its_reason() {
    let server = Dovecot::start();
    let own = torture();
    for (_, mail, _) in &own {
        server.put("bus", "INBOX", mail);
    }
    let samples = std::env::var_os("XBUS_MAIL_SAMPLES").map_or_else(Vec::new, |folder| {
        let entries = std::fs::read_dir(folder).expect("XBUS_MAIL_SAMPLES");
        let paths = entries.flatten().map(|entry| entry.path());
        paths
            .filter(|path| path.extension().is_some_and(|extension| extension == "eml"))
            .collect()
    });
    for path in &samples {
        server.put("bus", "INBOX", std::fs::read(path).expect("a mail"));
    }
    let installation = reading(&imap(&server));
    installation.route(
        "r",
        &to_files(
            "attachments: all, failed: Trouble, max_size: 20MiB",
            "{{ id }}",
        ),
    );
    let bus = installation.start();
    let all = own.len() + samples.len();
    let (processed, failed) = wait_for("every mail to end", || {
        let processed = installation.names("out").len();
        let failed = server.mails("bus", "Trouble");
        (processed + failed.len() == all && server.unseen("bus", "INBOX") == 0)
            .then_some((processed, failed))
    });
    eprintln!("{processed} processed, {} set aside:", failed.len());
    for (_, mail) in &failed {
        let reason = mail
            .lines()
            .find_map(|line| line.strip_prefix("X-Xbus-Reason: "));
        eprintln!("- {}", reason.expect("a reason"));
    }
    let good = own.iter().filter(|(_, _, good)| *good).count();
    assert!(processed >= good && failed.len() >= own.len() - good);
    if samples.is_empty() {
        assert_eq!(processed, good);
    }
    // It goes on with the next.
    server.put("bus", "INBOX", plain("after", "x"));
    wait_for("the next", || {
        (installation.names("out").len() == processed + 1).then_some(())
    });
    assert!(bus.stop().success());
}

/// Stands between a mail reader and its server; cuts the connection at the first line that holds `word`.
fn cutting(server: u16, word: &'static str) -> (u16, Arc<AtomicBool>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let cut = Arc::new(AtomicBool::new(false));
    let done = cut.clone();
    std::thread::spawn(move || {
        for reader in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else {
                continue;
            };
            let (mut from, mut to) = (
                server.try_clone().expect("a socket"),
                reader.try_clone().expect("a socket"),
            );
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let done = done.clone();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(reader.try_clone().expect("a socket"));
                let mut line = Vec::new();
                while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                    let held = String::from_utf8_lossy(&line).contains(word);
                    if held && !done.swap(true, SeqCst) {
                        break;
                    }
                    if (&server).write_all(&line).is_err() {
                        break;
                    }
                    line.clear();
                }
                for end in [&server, &reader] {
                    let _ = end.shutdown(Shutdown::Both);
                }
            });
        }
    });
    (port, cut)
}

/// What a server that knows neither MOVE nor UIDPLUS says of itself.
const PLAIN: &str = "imap_capability = IMAP4rev1 LITERAL+ SASL-IR ID ENABLE IDLE NAMESPACE\n";

#[test]
fn without_move_and_uidplus_nothing_is_lost_and_nothing_comes_twice() {
    for (done, status) in [("{ move: Done }", 200), ("delete", 200), ("seen", 400)] {
        let server = Dovecot::with(PLAIN);
        let (port, cut) = cutting(server.imap, "\\Deleted");
        let system =
            Destination::with(move |_| Answer::Status(status, "text/plain", b"x".to_vec()));
        let installation = reading(&format!(
            "imap: {{ host: 127.0.0.1, port: {port}, user: bus, password: secret }}"
        ));
        installation.route(
            "r",
            &format!("receive: {{ mail: {{ connection: inbox, done: {done}, failed: Failed, poll: 100ms }} }}\ndistribute:\n  - http: {{ url: \"{}\" }}\n", system.url("/")),
        );
        for number in 0..3 {
            server.put("bus", "INBOX", plain(&format!("n-{number}"), "x"));
        }
        let bus = installation.start();
        wait_for("the mails to go", || {
            server.mails("bus", "INBOX").is_empty().then_some(())
        });
        assert!(cut.load(SeqCst), "{done}: the connection was cut");
        let folder = match status {
            200 => "Done",
            _ => "Failed",
        };
        let kept = match done {
            "delete" => 0,
            _ => 3,
        };
        let lie = server.mails("bus", folder);
        assert_eq!(lie.len(), kept, "{done}: {lie:?}");
        bus.stop();
        assert_eq!(system.got().len(), 3, "{done}");
    }
}

#[test]
fn without_uidplus_mails_that_others_have_marked_stay() {
    let mut server = Dovecot::with(PLAIN);
    server.put("bus", "INBOX", plain("other", "x"));
    server.end();
    server.mark_deleted("bus", "INBOX");
    server.launch();
    server.put("bus", "INBOX", plain("one", "x"));
    let system = Destination::start();
    let installation = reading(&imap(&server));
    installation.route(
        "r",
        &format!("receive: {{ mail: {{ connection: inbox, done: {{ move: Done }}, poll: 100ms }} }}\ndistribute:\n  - http: {{ url: \"{}\" }}\n", system.url("/")),
    );
    for _ in 0..2 {
        let bus = installation.start();
        wait_for("the copy and the mark", || {
            let marked = server.mails("bus", "INBOX");
            let all = marked.iter().all(|(marks, _)| marks.contains('T'));
            (server.mails("bus", "Done").len() == 1 && marked.len() == 2 && all).then_some(())
        });
        bus.stop();
    }
    assert_eq!(system.got().len(), 1);
}
