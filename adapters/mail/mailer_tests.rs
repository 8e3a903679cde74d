//! Failure mail as a mail server and a mail program see it.

use std::path::Path;

use xbus_core::Timestamp;
use xbus_core::notice::{Report, Waiting};

use super::*;
use crate::connection;
use crate::server::{Say, Server};

fn mailer(port: u16, levels: Vec<Option<Recipients>>) -> Mailer {
    let people = |text: &str| fixed(text).unwrap();
    let alerts = MailAlerts {
        connection: String::from("relay"),
        from: people("xbus@acme.example").remove(0),
        to: people("ops@acme.example, night@acme.example"),
        levels,
        console: Some(String::from("https://bus.acme.example/")),
    };
    alerts.over(Arc::new(connection::to(port))).unwrap()
}

fn evil() -> Report {
    Report {
        id: MessageId::from_u128(7),
        route: "orders".into(),
        step: "erp".into(),
        kind: "outage".into(),
        opened_at: Timestamp::from_micros(1_000_000),
        resolved_at: None,
        count: 12,
        last_error: String::from(
            "first\r\nBcc: thief@evil.example\r\n.\r\n<script>alert('x')</script> \u{202e}\u{1b}[31m& more",
        ),
        message: Some(MessageId::from_u128(8)),
        undecided: false,
        waiting: Some(Waiting {
            queue: "orders.erp".into(),
            depth: 3,
            parked: 0,
            oldest: Some(Timestamp::from_micros(2_000_000)),
            first_parked: None,
        }),
        opening: Some(MessageId::from_u128(1)),
        level: 0,
    }
}

fn notice(event: Event, incidents: Vec<Report>) -> Notice {
    Notice {
        id: MessageId::from_u128(1),
        at: Timestamp::from_micros(662_000_000),
        event,
        bus: "acme".into(),
        dir: Path::new("/srv/bus").to_string_lossy().into(),
        level: 0,
        incidents,
        more: 0,
    }
}

#[tokio::test]
async fn administrators_get_text_and_html_and_nothing_else() {
    let server = Server::start(&[]).await;
    let mailer = mailer(server.port, Vec::new());
    let opened = notice(Event::Opened, vec![evil()]);
    let accepted = mailer.notify(&opened).await.unwrap();
    assert_eq!(accepted.said, "250 ok");
    mailer.notify(&opened).await.unwrap();
    let taken = server.taken.lock().unwrap();
    assert_eq!(taken[0].recipients.len(), 2);
    let (head, body) = taken[0].data.split_once("\n\n").unwrap();
    for line in [
        "Subject: [xbus] OPEN orders/erp: outage",
        "X-Xbus-Incident: 00000000-0000-0000-0000-000000000007",
        "Auto-Submitted: auto-generated",
        "Message-ID: <00000000-0000-0000-0000-000000000001.alert@acme-example.xbus>",
        "Content-Type: multipart/alternative;",
    ] {
        assert!(head.contains(line), "no {line} in {head}");
    }
    assert!(!head.contains("References"), "it is the opening itself");
    for part in ["text/plain", "text/html"] {
        assert!(body.contains(part), "{body}");
    }
    // What has no empty line before it is no header, and no dot ends the mail.
    assert!(!head.contains("Bcc:"), "{head}");
    let id = |mail: &str| {
        let line = mail.lines().find(|line| line.starts_with("Message-ID"));
        line.unwrap().to_owned()
    };
    assert_eq!(id(&taken[0].data), id(&taken[1].data), "stable");
}

#[test]
fn the_text_says_what_to_do() {
    let text = notice::text(&notice(Event::Opened, vec![evil()]), None);
    for part in [
        "A step of the bus has begun to fail.",
        "since     1970-01-01T00:00:01.000Z (11 min)",
        "failures  12",
        "waiting   3 messages, the oldest for 11 min",
        "    Bcc: thief@evil.example\n",
        "    xbus messages show 00000000-0000-0000-0000-000000000008 --dir /srv/bus\n",
        "    xbus queues retry orders.erp --dir /srv/bus\n",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(!text.contains(['\u{1b}', '\u{202e}', '\r']), "{text}");
    assert!(!text.contains("http"), "no link without a console");
    let again = "To see it, and to try again now:";
    assert!(text.contains(again));
    // Nothing waits: there is nothing to try.
    let mut told = evil();
    told.waiting = None;
    let text = notice::text(&notice(Event::Opened, vec![told]), None);
    assert!(
        text.contains("To see it:") && !text.contains(again),
        "{text}"
    );
}

#[test]
fn the_html_escapes_everything_and_fetches_nothing() {
    let console = Some("https://bus.acme.example/");
    let html = notice::html(&notice(Event::Opened, vec![evil()]), console);
    assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"));
    assert!(html.contains("&amp; more"), "{html}");
    assert!(!html.contains("<script") && !html.contains("src=") && !html.contains("url("));
    assert!(html.contains(
        "<a href=\"https://bus.acme.example/api/v1/messages/00000000-0000-0000-0000-000000000008\">"
    ));
    // The reader's own colours, in one column.
    for part in ["light dark", "font-size:16px", "max-width:600px"] {
        assert!(html.contains(part), "no {part}");
    }
    assert!(!html.contains("background") && !html.contains("<table"));
    let two = notice::html(&notice(Event::Digest, vec![evil(), evil()]), console);
    // An option is not broken at its hyphens, nor told from what it stands in by eye alone.
    let option = "<span style=\"white-space:nowrap\">--dir</span> /srv/bus</pre>";
    assert!(two.contains("2 incidents of orders"));
    assert!(two.contains(&format!(">xbus alerts {option}")), "{two}");
    // Each command has a box of its own.
    for words in [
        "xbus messages show",
        "xbus queues show",
        "xbus queues retry",
    ] {
        assert!(html.contains(&format!("\">{words}")), "{html}");
    }
}

#[test]
fn a_thread_hangs_on_the_mail_that_opened_it() {
    let mailer = mailer(1, Vec::new());
    let mut resolved = notice(Event::Resolved, vec![evil()]);
    resolved.id = MessageId::from_u128(2);
    let mail = String::from_utf8(mailer.draft(&resolved).compose().unwrap().data).unwrap();
    let opening = "<00000000-0000-0000-0000-000000000001.alert@acme-example.xbus>";
    for name in ["References", "In-Reply-To"] {
        let line = format!("{name}: {opening}");
        assert!(mail.contains(&line), "{mail}");
    }
    // Many openings: some are named, and no line is too long.
    resolved.incidents = (10..200)
        .map(|n| Report {
            opening: Some(MessageId::from_u128(n)),
            id: MessageId::from_u128(n),
            ..evil()
        })
        .collect();
    let mail = String::from_utf8(mailer.draft(&resolved).compose().unwrap().data).unwrap();
    assert!(mail.contains("References: <") && !mail.contains("In-Reply-To"));
    assert!(mail.lines().all(|line| line.len() < 998));
}

#[test]
fn levels_are_told_and_the_end_goes_to_all_who_were() {
    let people = |text: &str| Some(Recipients(fixed(text).unwrap()));
    let levels = vec![people("boss@acme.example, ops@acme.example"), None];
    let mailer = mailer(1, levels);
    let to = |event, level| {
        let notice = Notice {
            level,
            ..notice(event, vec![evil()])
        };
        let all = mailer.recipients(&notice);
        let names = all.iter().map(|one| one.email.to_string());
        names
            .map(|name| name.split('@').next().unwrap().to_owned())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(to(Event::Opened, 0), "ops night");
    assert_eq!(to(Event::Escalated, 1), "boss ops");
    assert_eq!(to(Event::Escalated, 2), "ops night");
    assert_eq!(to(Event::Resolved, 0), "ops night");
    assert_eq!(to(Event::Resolved, 1), "ops night boss");
    assert_eq!(to(Event::Escalated, 9), "ops night");
}

#[tokio::test]
async fn the_connection_tells_how_it_is_doing() {
    use xbus_core::adapter::{ConnectionHealth, ConnectionPhase};
    let server = Server::start(&[("RCPT TO:<night@", Say::Line("550 asleep"))]).await;
    let way = mailer(server.port, Vec::new());
    assert_eq!(way.smtp.state().phase, ConnectionPhase::Idle);
    let opened = notice(Event::Opened, vec![evil()]);
    let accepted = way.notify(&opened).await.unwrap();
    assert!(accepted.refused[0].contains("asleep"), "{accepted:?}");
    assert_eq!(way.smtp.state().phase, ConnectionPhase::Up);
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let way = mailer(nobody, Vec::new());
    let error = way.notify(&opened).await.unwrap_err();
    let state = way.smtp.state();
    assert_eq!(state.phase, ConnectionPhase::Down);
    assert_eq!(state.error, Some(error.detail));
}
