//! A small mail server for the tests, which answers as told, and the tests that need one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use xbus_core::SendError;
use xbus_core::adapter::Class;

use crate::compose::draft;
use crate::connection::{self, Smtp};

/// A server's answer to a command.
#[derive(Clone)]
pub(crate) enum Say {
    /// This line.
    Line(&'static str),
    /// Nothing, for ever.
    Nothing,
    /// The end of the connection.
    HangUp,
    /// The same, once this connection has brought a mail.
    HangUpLater,
}

/// What the server has taken.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Taken {
    pub(crate) recipients: Vec<String>,
    pub(crate) data: String,
}

pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) taken: Arc<Mutex<Vec<Taken>>>,
    connections: Arc<Mutex<u32>>,
}

impl Server {
    /// `answers` by command: the beginning of a line such as `RCPT TO:<a@`, or `.` for the end of
    /// the data, or `hello` for the greeting. Else the server accepts.
    pub(crate) async fn start(answers: &[(&'static str, Say)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (taken, connections) = (Arc::default(), Arc::default());
        let server = Self {
            port,
            taken: Arc::clone(&taken),
            connections: Arc::clone(&connections),
        };
        let answers: Arc<HashMap<&str, Say>> = Arc::new(answers.iter().cloned().collect());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *connections.lock().unwrap() += 1;
                let (answers, taken) = (answers.clone(), taken.clone());
                tokio::spawn(async move {
                    let _ = serve(stream, &answers, &taken).await;
                });
            }
        });
        server
    }

    async fn offer(&self) -> connection::Unsent {
        let mail = draft().compose().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let smtp = connection::to(self.port);
        let offered = smtp.offer(&mail.envelope, &mail.data, deadline).await;
        offered.expect_err("the server takes it")
    }

    async fn send(&self, smtp: &Smtp, within: Duration) -> Result<connection::Taken, SendError> {
        let mail = draft().compose().unwrap();
        let deadline = Instant::now() + within;
        smtp.send(&mail.envelope, &mail.data, deadline).await
    }
}

async fn serve(
    stream: TcpStream,
    answers: &HashMap<&str, Say>,
    taken: &Mutex<Vec<Taken>>,
) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut recipients = Vec::new();
    let mut data: Option<String> = None;
    let mut mails = 0;
    let mut command = String::from("hello");
    loop {
        let said = answers
            .iter()
            .find(|(start, _)| command.starts_with(**start))
            .map(|(_, say)| say.clone());
        let said = match said {
            Some(Say::HangUpLater) if mails == 0 => None,
            Some(Say::HangUpLater) => Some(Say::HangUp),
            said => said,
        };
        let line = match said {
            Some(Say::Line(line)) => line,
            Some(Say::Nothing) => std::future::pending().await,
            Some(Say::HangUp | Say::HangUpLater) => return Ok(()),
            None if command.starts_with("hello") => "220 tiny",
            None if command.starts_with("EHLO") => "250-tiny\r\n250 8BITMIME",
            None if command.starts_with("DATA") => "354 go",
            None => "250 ok",
        };
        if line.starts_with("250") && command.starts_with("RCPT") {
            recipients.push(command["RCPT TO:".len()..].to_owned());
        }
        if line.starts_with("354") {
            data = Some(String::new());
        }
        if line.starts_with("250") && command == "." {
            mails += 1;
            taken.lock().unwrap().push(Taken {
                recipients: std::mem::take(&mut recipients),
                data: data.take().unwrap_or_default(),
            });
        }
        write.write_all(format!("{line}\r\n").as_bytes()).await?;
        loop {
            let Some(next) = lines.next_line().await? else {
                return Ok(());
            };
            match &mut data {
                Some(all) if next != "." => {
                    all.push_str(&next);
                    all.push('\n');
                }
                _ => {
                    command = next;
                    break;
                }
            }
        }
        if command.starts_with("QUIT") {
            return Ok(());
        }
    }
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_mail_arrives_and_the_connection_is_used_again() {
    let server = Server::start(&[]).await;
    let smtp = connection::to(server.port);
    for _ in 0..3 {
        let taken = server.send(&smtp, LONG).await.unwrap();
        assert_eq!((taken.refused, &*taken.answer), (vec![], "250 ok"));
    }
    let taken = server.taken.lock().unwrap();
    assert_eq!(taken.len(), 3);
    assert_eq!(
        taken[0].recipients,
        ["<desk@acme.example>", "<boss@acme.example>"]
    );
    assert!(taken[0].data.contains("Subject: Order 42"));
    assert!(!taken[0].data.contains("boss@"), "bcc stays unseen");
    assert_eq!(*server.connections.lock().unwrap(), 1);
}

#[tokio::test]
async fn answers_mean_what_they_say() {
    use Say::{HangUp, Line};
    for (command, say, class) in [
        ("hello", Line("554 go away"), Class::Outage),
        ("hello", HangUp, Class::Outage),
        ("EHLO", Line("500 what"), Class::Outage),
        ("MAIL", Line("451 busy"), Class::Outage),
        ("MAIL", Line("550 not you"), Class::Rejected),
        ("MAIL", Line("530 log in first"), Class::Outage),
        ("MAIL", HangUp, Class::Outage),
        ("RCPT", Line("450 later"), Class::Outage),
        ("RCPT", Line("550 unknown"), Class::Rejected),
        ("RCPT", Line("421 closing"), Class::Outage),
        ("RCPT", HangUp, Class::Outage),
        ("DATA", Line("452 full"), Class::Outage),
        ("DATA", Line("554 no"), Class::Rejected),
        ("DATA", HangUp, Class::Outage),
        (".", Line("451 later"), Class::Outage),
        (".", Line("552 too large"), Class::Rejected),
        (".", Line("nonsense"), Class::Unknown),
        (".", HangUp, Class::Unknown),
    ] {
        let what = match &say {
            Line(line) => line,
            _ => "hang-up",
        };
        let what = format!("{command}: {what}");
        let server = Server::start(&[(command, say)]).await;
        let smtp = connection::to(server.port);
        let error = server.send(&smtp, LONG).await.unwrap_err();
        assert_eq!(error.class, class, "{what}: {}", error.detail);
        assert!(!error.timed_out, "{what}");
        assert!(server.taken.lock().unwrap().is_empty(), "{what}");
    }
}

#[tokio::test]
async fn silence_ends_in_time() {
    for (command, class) in [
        ("hello", Class::Outage),
        ("MAIL", Class::Outage),
        ("DATA", Class::Outage),
        (".", Class::Unknown),
    ] {
        let server = Server::start(&[(command, Say::Nothing)]).await;
        let smtp = connection::to(server.port);
        let error = server
            .send(&smtp, Duration::from_millis(300))
            .await
            .unwrap_err();
        assert_eq!(error.class, class, "{command}: {}", error.detail);
        assert!(error.timed_out, "{command}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_outage() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let mail = draft().compose().unwrap();
    let smtp = connection::to(port);
    let deadline = Instant::now() + LONG;
    let error = smtp
        .send(&mail.envelope, &mail.data, deadline)
        .await
        .unwrap_err();
    assert_eq!((error.class, error.timed_out), (Class::Outage, false));
}

#[tokio::test]
async fn one_refused_recipient_does_not_keep_the_mail_from_the_others() {
    let say = Say::Line("550 no such user");
    let server = Server::start(&[("RCPT TO:<boss@", say)]).await;
    let smtp = connection::to(server.port);
    let refused = server.send(&smtp, LONG).await.unwrap().refused;
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].address, "boss@acme.example");
    assert!(refused[0].answer.contains("550"), "{}", refused[0].answer);
    let taken = server.taken.lock().unwrap();
    assert_eq!(taken[0].recipients, ["<desk@acme.example>"]);
}

#[tokio::test]
async fn a_large_mail_is_offered_with_its_size_and_not_sent_where_it_is_too_large() {
    const LARGE: &str = "MAIL FROM:<bus@acme.example> SIZE=";
    let told = Say::Line("552 told");
    for (hello, text, expected) in [
        (
            "250-tiny\r\n250-SIZE 300000\r\n250 HELP",
            400_000,
            "takes 300000",
        ),
        ("250-tiny\r\n250 size 9000000", 400_000, "(552)"),
        ("250-tiny\r\n250-SIZE\r\n250 HELP", 400_000, "(552)"),
        ("250-tiny\r\n250 SIZE 0", 400_000, "(552)"),
        ("250 tiny", 400_000, ""),
        // A small one costs no question.
        ("250-tiny\r\n250 SIZE 10", 10, ""),
    ] {
        let server = Server::start(&[("EHLO", Say::Line(hello)), (LARGE, told.clone())]).await;
        let smtp = connection::to(server.port);
        let mut draft = draft();
        draft.text = Some("x\n".repeat(text / 2));
        let mail = draft.compose().unwrap();
        let deadline = Instant::now() + LONG;
        let result = smtp.send(&mail.envelope, &mail.data, deadline).await;
        let taken = server.taken.lock().unwrap().len();
        match result {
            Ok(_) => assert_eq!((expected, taken), ("", 1), "{hello}"),
            Err(error) => {
                assert_eq!((error.class, taken), (Class::Rejected, 0), "{hello}");
                let detail = error.detail;
                assert!(
                    !expected.is_empty() && detail.contains(expected),
                    "{detail}"
                );
            }
        }
    }
}

#[tokio::test]
async fn an_address_beyond_ascii_goes_only_where_it_is_understood() {
    let international = "250-tiny\r\n250-8BITMIME\r\n250 SMTPUTF8";
    for (hello, address, expected) in [
        ("250-tiny\r\n250 8BITMIME", "grüße@acme.example", "SMTPUTF8"),
        (international, "grüße@acme.example", "<grüße@acme.example>"),
        // A domain has another form for those who do not.
        (
            "250 tiny",
            "desk@bücher.example",
            "<desk@xn--bcher-kva.example>",
        ),
    ] {
        let server = Server::start(&[
            ("EHLO", Say::Line(hello)),
            ("MAIL FROM:<bus@acme.example> SMTPUTF8", Say::Line("250 ok")),
        ])
        .await;
        let smtp = connection::to(server.port);
        let mut draft = draft();
        draft.to = crate::address::fixed(address).unwrap();
        let mail = draft.compose().unwrap();
        let deadline = Instant::now() + LONG;
        match smtp.send(&mail.envelope, &mail.data, deadline).await {
            Ok(_) => assert_eq!(server.taken.lock().unwrap()[0].recipients[0], expected),
            Err(error) => {
                assert_eq!(error.class, Class::Rejected);
                assert!(error.detail.contains(expected), "{}", error.detail);
                assert!(server.taken.lock().unwrap().is_empty());
            }
        }
    }
}

#[tokio::test]
async fn a_dead_idle_connection_is_replaced() {
    let server = Server::start(&[("MAIL", Say::HangUpLater)]).await;
    let smtp = connection::to(server.port);
    for _ in 0..2 {
        server.send(&smtp, LONG).await.unwrap();
    }
    assert_eq!(server.taken.lock().unwrap().len(), 2);
    assert_eq!(*server.connections.lock().unwrap(), 2);
}

#[tokio::test]
async fn what_a_server_says_of_one_mail_is_told_from_what_is_wrong_with_it() {
    for (command, line, class, put_off) in [
        ("RCPT", "451 later", Class::Outage, true),
        ("DATA", "451 later", Class::Outage, true),
        (".", "452 later", Class::Outage, true),
        ("RCPT", "550 never", Class::Rejected, false),
        (".", "554 never", Class::Rejected, false),
        // Neither is about this mail.
        ("RCPT", "421 going down", Class::Outage, false),
        (".", "421 going down", Class::Outage, false),
        ("MAIL", "451 later", Class::Outage, false),
        ("hello", "421 too busy", Class::Outage, false),
    ] {
        let server = Server::start(&[(command, Say::Line(line))]).await;
        let unsent = server.offer().await;
        assert_eq!(unsent.error.class, class, "{command}: {line}");
        assert_eq!(unsent.put_off, put_off, "{command}: {line}");
    }
}
