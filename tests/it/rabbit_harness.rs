//! That the broker and the client which other tests build upon do what they say, and leave nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lapin::ExchangeKind;
use lapin::types::AMQPValue;

use crate::support::amqp::{Answer, Client, Message, Responder};
use crate::support::rabbit::{Options, Rabbit, processes};
use crate::support::wait_for;

/// Tells [`holds_a_broker`] where to note the broker's folder.
const NOTE: &str = "XBUS_IT_NOTE";

#[test]
fn a_durable_message_outlives_a_killed_broker_and_nothing_outlives_the_harness() {
    let rabbit = Options::new()
        .consumer_timeout(Duration::from_secs(1))
        .tls()
        .start();
    let dir = rabbit.dir().to_owned();
    {
        let client = Client::connect(&rabbit.url());
        client.queue("kept");
        client.quorum("lane");
        client.send("kept", Message::new("1").header("a", "b"));
        client.send_all("lane", ["1", "2", "3"]);
    }
    rabbit.settle();
    rabbit.kill();
    assert!(Client::try_connect(&rabbit.url()).is_err());
    rabbit.restart();

    let client = Client::connect_tls(&rabbit.tls_url(), &rabbit.ca());
    let got = client.get("kept").expect("the durable message");
    assert_eq!(
        (got.text().as_str(), got.header("a").as_deref()),
        ("1", Some("b"))
    );
    assert_eq!(client.texts("lane", 2), ["1", "2"]);
    client.wait_for_depth("lane", 1);

    let closed = client.hold("lane");
    assert!(closed.contains("PRECONDITION"), "{closed}");
    assert!(client.take("lane", 1)[0].redelivered, "given back");

    rabbit.pause();
    let mut stream = TcpStream::connect(("127.0.0.1", rabbit.port())).expect("the system accepts");
    stream.write_all(b"AMQP\x00\x00\x09\x01").expect("sent");
    let mut kind = [0];
    let time = Some(Duration::from_millis(200));
    stream.set_read_timeout(time).expect("a time-out");
    assert!(
        stream.read_exact(&mut kind).is_err(),
        "no answer while it is paused"
    );
    rabbit.resume();
    stream.set_read_timeout(None).expect("no time-out");
    stream.read_exact(&mut kind).expect("the answer");

    rabbit.memory_alarm(true);
    rabbit.memory_alarm(false);
    client.send("kept", "2");
    rabbit.close_connections();
    wait_for("no connection", || {
        (rabbit.connections() == 0).then_some(())
    });

    assert!(processes(&dir).contains(&rabbit.pid()));
    drop(rabbit);
    assert_gone(&dir);
}

#[test]
fn tests_share_a_broker_in_vhosts_of_their_own() {
    let rabbit = Rabbit::shared();
    let (one, two) = (rabbit.vhost(), rabbit.vhost());
    let client = Client::connect(&one.url());
    client.queue("q");
    assert!(client.exists("q"));
    assert!(!Client::connect(&two.url()).exists("q"));

    client.exchange("x", ExchangeKind::Headers);
    let text = |text: &str| AMQPValue::LongString(text.into());
    client.bind_with(
        "q",
        "x",
        "",
        [("x-match", text("all")), ("country", text("de"))],
    );
    client.publish("x", "", Message::new("hier").header("country", "de"));
    let refused = client.try_publish("x", "", Message::new("there").header("country", "fr"));
    assert_eq!(refused, Err("312 NO_ROUTE".to_owned()));
    assert_eq!(client.texts("q", 1), ["hier"]);
    client.exchange("t", ExchangeKind::Topic);
    client.bind("q", "t", "order.*");
    client.publish("t", "order.de", "1");
    client.send("q", "2");
    let all = client.drain("q");
    assert_eq!(all.len(), 2);
    let (exchange, key) = (all[0].exchange.as_str(), all[0].routing_key.as_str());
    assert_eq!((exchange, key), ("t", "order.de"));

    rabbit.add_user("harness", "secret");
    rabbit.permit("harness", one.name(), ["", "", ".*"]);
    let reader = Client::connect(&rabbit.url_of("harness", "secret", one.name()));
    let refused = reader.try_publish("", "q", "3").expect_err("no permission");
    assert!(refused.contains("ACCESS"), "{refused}");
    assert_eq!(reader.depth("q"), 0, "on a new channel");
    assert!(rabbit.ctl(&["list_users"]).contains("harness"));

    client.purge("q");
    client.delete("q");
    assert!(!client.exists("q"));
    one.close_connections();
    wait_for("the connection to be closed", || {
        (!client.connected()).then_some(())
    });
}

#[test]
fn a_responder_answers_now_late_or_never() {
    let vhost = Rabbit::shared().vhost();
    let client = Client::connect(&vhost.url());
    client.queue("requests");
    client.queue("replies");
    let responder = Responder::on(&vhost.url(), "requests", |got| match got.text().as_str() {
        "now" => Answer::Now("at once".into()),
        "late" => Answer::Held("at last".into()),
        _ => Answer::Never,
    });
    client.wait_for_consumers("requests", 1);
    for what in ["never", "late", "now"] {
        let request = Message::new(what).with(|properties| {
            properties
                .with_reply_to("replies".into())
                .with_correlation_id(what.into())
                .with_message_id("1".into())
                .with_content_type("text/plain".into())
        });
        client.send("requests", request);
    }
    let reply = client.take("replies", 1).remove(0);
    assert_eq!(reply.text(), "at once");
    assert_eq!(reply.correlation_id().as_deref(), Some("now"));
    let requests = responder.wait_for_count(3);
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[0].reply_to().as_deref(), Some("replies"));
    assert_eq!(requests[0].message_id().as_deref(), Some("1"));
    assert_eq!(requests[0].content_type().as_deref(), Some("text/plain"));
    assert_eq!(responder.release(), 1);
    let reply = client.take("replies", 1).remove(0);
    assert_eq!(reply.text(), "at last");
    assert_eq!(reply.correlation_id().as_deref(), Some("late"));
    responder.now(|_| Answer::Never);
    client.send("requests", "now");
    assert_eq!(responder.wait_for_count(4).len(), 4);
    assert_eq!(client.depth("replies"), 0);
}

#[test]
fn a_broker_ends_with_a_test_process_that_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let note = folder.path().join("note");
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "rabbit_harness::holds_a_broker", "--ignored"])
        .env(NOTE, &note)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let dir = wait_for("the broker's folder", || {
        if let Some(status) = child.try_wait().expect("waitable") {
            panic!("the child has ended: {status}");
        }
        let text = fs::read_to_string(&note).ok()?;
        Some(PathBuf::from(text.strip_suffix('\n')?))
    });
    assert!(processes(&dir).len() >= 3, "the guard, epmd and the broker");
    child.kill().expect("killed");
    child.wait().expect("waitable");
    assert_gone(&dir);
}

/// Starts the shared broker, notes where, and keeps it until its standard input ends.
#[test]
#[ignore = "run by a_broker_ends_with_a_test_process_that_is_killed"]
fn holds_a_broker() {
    let Some(note) = std::env::var_os(NOTE) else {
        return;
    };
    let rabbit = Rabbit::shared();
    fs::write(note, format!("{}\n", rabbit.dir().display())).expect("a note");
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

#[track_caller]
fn assert_gone(dir: &Path) {
    wait_for("the broker and its epmd to end", || {
        processes(dir).is_empty().then_some(())
    });
    wait_for("the broker's folder to go", || {
        (!dir.exists()).then_some(())
    });
}
