//! `xbus queues`: what waits, and what to do about it.

use std::process::ExitCode;

use serde_json::{Value, json};
use xbus_core::Timestamp;

use super::client::{Common, encode, with_query};
use super::output::{
    self, Align, Failure, Table, age, cell, cell_lines, facts, first_line, rows, when,
};

/// List queues; show, retry, park, release and drop their messages
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  xbus queues                                  every queue, its depth and its head
  xbus queues show orders.erp                  the messages of one queue
  xbus queues retry orders.erp                 try the head now instead of later
  xbus queues park orders.erp                  set the head aside, so that the next goes on
  xbus queues release orders.erp ID            put a parked message back in its place
  xbus queues drop orders.erp ID               give a message up for good
  xbus queues move orders.erp --to rabbit      carry it to where the routes keep it now

A queue is idle (nothing waits), delivering, or blocked (its head failed and is
tried again, or no route takes its messages now).
Exit codes: 0 done, 1 it failed or there is no such queue or message, 2 wrong use, 3 no bus.")]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// List every queue (the same as no subcommand)
    List,
    /// Show a queue and its messages, oldest first
    Show {
        /// The queue's name, such as orders.erp
        name: String,
        /// Show at most so many waiting, and so many parked messages
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: u32,
    },
    /// Try heads now: all of the queue, or those with these ids
    Retry {
        /// The queue's name
        name: String,
        /// Ids of messages at the head of their lanes
        #[arg(value_name = "ID")]
        ids: Vec<String>,
    },
    /// Set the head aside (or the heads with these ids); what is behind goes on
    Park {
        /// The queue's name
        name: String,
        /// Ids of messages at the head of their lanes
        #[arg(value_name = "ID")]
        ids: Vec<String>,
        /// Why, for those who look at it later
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Put parked messages back, before what came in after them
    Release {
        /// The queue's name
        name: String,
        /// Ids of parked messages
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
    /// Carry a queue, in order, to the place that the routes name for it: a broker's connection, or
    /// `embedded` for the bus's own store
    Move {
        /// The queue's name
        name: String,
        /// Name of the connection, or `embedded`
        #[arg(long, value_name = "PLACE")]
        to: String,
    },
    /// Give heads or parked messages up for good: they are not delivered
    Drop {
        /// The queue's name
        name: String,
        /// Ids of parked messages, or of heads
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
        /// Why, for the audit
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

/// Runs the command.
pub async fn run(args: Args) -> ExitCode {
    let json = args.common.json;
    output::finish(execute(args).await, json)
}

async fn execute(args: Args) -> Result<(), Failure> {
    let common = args.common;
    match args.action.unwrap_or(Action::List) {
        Action::List => list(&common).await,
        Action::Show { name, limit } => show(&common, &name, limit).await,
        Action::Retry { name, ids } => act(&common, "retry", &name, ids, None).await,
        Action::Park { name, ids, reason } => act(&common, "park", &name, ids, reason).await,
        Action::Release { name, ids } => act(&common, "release", &name, ids, None).await,
        Action::Move { name, to } => carry(&common, &name, &to).await,
        Action::Drop { name, ids, reason } => act(&common, "drop", &name, ids, reason).await,
    }
}

async fn list(common: &Common) -> Result<(), Failure> {
    let queues = common.client()?.get("/api/v1/queues").await?;
    output::show(common.json, &queues, |queues| {
        listing(queues, common, Timestamp::now(), output::width())
    });
    Ok(())
}

/// The queues as a table, and what to do next about the first one that is blocked.
fn listing(queues: &Value, common: &Common, now: Timestamp, width: Option<usize>) -> String {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("DEPTH", Align::Right),
        ("PARKED", Align::Right),
        ("STATE", Align::Left),
        ("HEAD-AGE", Align::Left),
        ("ATTEMPTS", Align::Right),
        ("LAST-ERROR", Align::Left),
    ]);
    for queue in rows(queues) {
        let head = &queue["head"];
        table.row(vec![
            cell(&queue["name"]),
            cell(&queue["depth"]),
            cell(&queue["parked"]),
            cell(&queue["state"]),
            age(&head["since"], now),
            cell(&head["attempts"]),
            first_line(match &head["last_error"] {
                Value::Null => &queue["trouble"],
                error => error,
            }),
        ]);
    }
    if table.is_empty() {
        return String::from(
            "There are no queues: no route has an async target or reads from a queue.\n",
        );
    }
    let mut out = table.render(width);
    let blocked = rows(queues)
        .iter()
        .find(|queue| queue["state"] == "blocked");
    let parked = rows(queues)
        .iter()
        .find(|queue| queue["parked"].as_u64() > Some(0));
    if let Some(queue) = blocked.or(parked) {
        let show = common.command(&format!("queues show {}", cell(&queue["name"])));
        out.push_str(&format!("\nNext: {show}\n"));
    }
    out
}

async fn show(common: &Common, name: &str, limit: u32) -> Result<(), Failure> {
    let path = format!("/api/v1/queues/{}", encode(name));
    let path = with_query(&path, &[("limit", Some(limit.to_string()))]);
    let queue = common.client()?.get(&path).await?;
    output::show(common.json, &queue, |queue| {
        detail(queue, common, Timestamp::now(), output::width())
    });
    Ok(())
}

fn detail(queue: &Value, common: &Common, now: Timestamp, width: Option<usize>) -> String {
    let (head, name) = (&queue["head"], cell(&queue["name"]));
    let goes_to = match (&queue["route"], &queue["target"]) {
        _ if queue["attended"] == false => String::from("nobody: no route takes its messages now"),
        (Value::String(route), Value::String(target)) => {
            format!("target {target} of route {route}")
        }
        (Value::String(route), _) => format!("route {route}, which receives from it"),
        _ => String::from("a route that receives from it"),
    };
    let mut out = facts(
        &[
            ("queue", name.clone()),
            ("goes to", output::printable(&goes_to)),
            ("state", cell(&queue["state"])),
            ("waiting", cell(&queue["depth"])),
            ("parked", cell(&queue["parked"])),
            ("next try", when(&head["next_try"], now)),
            ("last error", cell_lines(&head["last_error"])),
            ("trouble", cell_lines(&queue["trouble"])),
        ],
        width,
    );
    out.push_str(&entries(
        "Waiting, oldest first:",
        &queue["waiting_messages"],
        "last_error",
        now,
        width,
    ));
    out.push_str(&entries(
        "Parked:",
        &queue["parked_messages"],
        "parked",
        now,
        width,
    ));
    let more = |list: &str, count: &str| {
        (rows(&queue[list]).len() as u64) < queue[count].as_u64().unwrap_or(0)
    };
    if more("waiting_messages", "depth") || more("parked_messages", "parked") {
        out.push_str("There are more: --limit N shows them.\n");
    }
    if let Some(next) = next(queue, &name, common) {
        out.push_str(&format!("\nNext: {next}\n"));
    }
    out
}

/// The sensible next command.
fn next(queue: &Value, name: &str, common: &Common) -> Option<String> {
    if queue["state"] == "blocked" && queue["attended"] != false {
        let retry = common.command(&format!("queues retry {name}"));
        let park = common.command(&format!("queues park {name}"));
        return Some(format!("{retry}   (or, to let the others pass: {park})"));
    }
    let parked = rows(&queue["parked_messages"]).first()?["id"].as_str()?;
    Some(common.command(&format!("queues release {name} {parked}")))
}

fn entries(
    title: &str,
    entries: &Value,
    why: &str,
    now: Timestamp,
    width: Option<usize>,
) -> String {
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("KEY", Align::Left),
        ("AGE", Align::Left),
        ("ATTEMPTS", Align::Right),
        ("BYTES", Align::Right),
        (
            if why == "parked" { "WHY" } else { "LAST-ERROR" },
            Align::Left,
        ),
    ]);
    for entry in rows(entries) {
        table.row(vec![
            cell(&entry["id"]),
            cell(&entry["key"]),
            age(&entry["since"], now),
            cell(&entry["attempts"]),
            cell(&entry["bytes"]),
            first_line(&entry[why]),
        ]);
    }
    if table.is_empty() {
        return String::new();
    }
    format!("\n{title}\n{}", table.render(width))
}

async fn act(
    common: &Common,
    action: &str,
    name: &str,
    ids: Vec<String>,
    reason: Option<String>,
) -> Result<(), Failure> {
    let mut body = json!({ "ids": ids });
    if let Some(reason) = reason {
        body["reason"] = json!(reason);
    }
    let path = format!("/api/v1/queues/{}/{action}", encode(name));
    let result = common.client()?.post(&path, &body).await;
    let answer = match &result {
        Ok(answer) => answer,
        Err(failure) => failure.body.as_deref().unwrap_or(&Value::Null),
    };
    if !common.json {
        for line in rows(&answer["results"])
            .iter()
            .filter_map(|one| done(action, name, one))
        {
            output::print(&format!("{}\n", output::printable(&line)));
        }
    }
    let answer = result.map_err(|mut failure| {
        tell_each(&mut failure);
        failure
    })?;
    if common.json {
        output::print_json(&answer);
    }
    Ok(())
}

async fn carry(common: &Common, name: &str, to: &str) -> Result<(), Failure> {
    let path = format!("/api/v1/queues/{}/move", encode(name));
    let answer = common
        .client()?
        .post_and_wait(&path, &json!({ "to": to }))
        .await?;
    output::show(common.json, &answer, |answer| {
        let count = cell(&answer["messages"]);
        let line = format!("queue {name} now lives at {to}; {count} messages were carried over");
        format!("{}\n", output::printable(&line))
    });
    Ok(())
}

/// When several were asked for, each that was not done is told with its own reason.
fn tell_each(failure: &mut Failure) {
    let Some(body) = &failure.body else { return };
    let failed = rows(&body["results"])
        .iter()
        .filter(|one| one["ok"] == false);
    let reasons: Vec<&str> = failed.filter_map(|one| one["error"].as_str()).collect();
    if reasons.len() > 1 {
        failure.message = reasons.join("\nerror: ");
        for line in failure.message.split('\n') {
            let line = line.strip_prefix("error: ").unwrap_or(line);
            output::note(&format!("error: {}", output::printable(line)));
        }
        failure.message.clear();
    }
}

/// What was done to one message, in a sentence.
fn done(action: &str, name: &str, one: &Value) -> Option<String> {
    if one["ok"] != true {
        return None;
    }
    let id = cell(&one["id"]);
    Some(match action {
        "retry" => match one["heads"].as_u64() {
            Some(1) | None => format!("the head of {name} is tried now"),
            Some(heads) => format!("{heads} heads of {name} are tried now"),
        },
        "park" => format!("{id} is parked; what is behind it goes on"),
        "drop" => format!("{id} is dropped"),
        _ => {
            let past = match one["overtaken_by"]["count"].as_u64() {
                None if one["key"].as_str().is_some_and(|key| !key.is_empty()) => {
                    String::from("others of its key may have overtaken it")
                }
                None => String::from("others may have overtaken it"),
                Some(0) => String::from("the journal knows of none that has overtaken it"),
                Some(1) => String::from("1 message at least has overtaken it"),
                Some(n) => format!("{n} messages at least have overtaken it"),
            };
            let until = match one["until_stop"] == true {
                true => ". It is parked again if the bus stops before it is done",
                false => "",
            };
            format!("{id} is back in {name}; {past}{until}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::parse as read;
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        read(line)
    }

    fn common() -> Common {
        Common {
            dir: ".".into(),
            json: false,
        }
    }

    #[test]
    fn arguments_read_as_the_help_shows_them() {
        assert!(parse("queues").unwrap().action.is_none());
        let args = parse("queues show orders.erp --json --dir /srv/bus").unwrap();
        assert!(args.common.json && args.common.dir.ends_with("bus"));
        assert!(parse("queues --json").unwrap().common.json);
        assert!(parse("queues park orders.erp").is_ok());
        assert!(parse("queues retry orders.erp ID").is_ok());
        assert!(parse("queues release orders.erp A B").is_ok());
        for wrong in [
            "queues release orders.erp",
            "queues drop orders.erp",
            "queues show",
            "queues explode",
        ] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn the_listing_shows_the_head_and_the_next_command() {
        let now = "2026-11-22T08:00:00Z".parse().unwrap();
        let queues = json!([
            { "name": "orders.erp", "depth": 3, "parked": 0, "state": "blocked", "blocked_keys": 1,
              "head": { "id": "0192", "attempts": 4, "last_error": "refused", "next_try": null, "since": "2026-11-22T07:50:00Z" } },
            { "name": "z", "depth": 0, "parked": 0, "state": "idle", "blocked_keys": 0, "head": null },
        ]);
        let expected = "\
NAME        DEPTH  PARKED  STATE    HEAD-AGE  ATTEMPTS  LAST-ERROR
orders.erp      3       0  blocked  10m 0s           4  refused
z               0       0  idle     -                -  -

Next: xbus queues show orders.erp
";
        assert_eq!(listing(&queues, &common(), now, None), expected);
        assert!(listing(&json!([]), &common(), now, None).contains("no queues"));
    }

    #[test]
    fn a_queue_shows_its_messages_and_how_to_go_on() {
        let now = "2026-11-22T08:00:00Z".parse().unwrap();
        let queue = json!({
            "name": "orders.erp", "depth": 1, "parked": 1, "state": "blocked", "blocked_keys": 1,
            "route": "orders", "target": "erp", "attended": true,
            "head": { "id": "A", "attempts": 4, "last_error": "refused", "next_try": "2026-11-22T08:02:00Z", "since": "2026-11-22T07:50:00Z" },
            "waiting_messages": [{ "id": "A", "key": "", "since": "2026-11-22T07:50:00Z", "attempts": 4, "bytes": 10, "last_error": "refused" }],
            "parked_messages": [{ "id": "B", "key": "", "since": "2026-11-22T07:40:00Z", "attempts": 1, "bytes": 7, "parked": "wrong" }],
        });
        let text = detail(&queue, &common(), now, None);
        assert!(
            text.contains("goes to     target erp of route orders\n"),
            "{text}"
        );
        assert!(
            text.contains("next try    2026-11-22T08:02:00.000Z (in 2m 0s)\n"),
            "{text}"
        );
        assert!(text.contains("\nParked:\nID  KEY  AGE     ATTEMPTS  BYTES  WHY\nB   -    20m 0s         1      7  wrong\n"), "{text}");
        assert!(
            text.contains("Next: xbus queues retry orders.erp"),
            "{text}"
        );
    }

    #[test]
    fn a_queue_without_a_reader_goes_to_nobody() {
        let now = "2026-11-22T08:00:00Z".parse().unwrap();
        let queue =
            json!({ "name": "q", "depth": 1, "parked": 0, "state": "blocked", "attended": false });
        let text = detail(&queue, &common(), now, None);
        assert!(
            text.contains("nobody: no route takes its messages now\n"),
            "{text}"
        );
        assert!(!text.contains("retry"), "{text}");
    }

    #[test]
    fn a_release_says_what_went_by() {
        let one =
            json!({ "id": "A", "ok": true, "overtaken_by": { "count": 2, "complete": true } });
        assert_eq!(
            done("release", "q", &one).unwrap(),
            "A is back in q; 2 messages at least have overtaken it"
        );
        let keyed = json!({ "id": "A", "ok": true, "key": "C1", "overtaken_by": null });
        assert_eq!(
            done("release", "q", &keyed).unwrap(),
            "A is back in q; others of its key may have overtaken it"
        );
        let received = json!({ "id": "A", "ok": true, "until_stop": true });
        assert_eq!(
            done("release", "r/q", &received).unwrap(),
            "A is back in r/q; others may have overtaken it. It is parked again if the bus stops before it is done"
        );
        assert_eq!(done("drop", "q", &json!({ "id": "A", "ok": false })), None);
    }
}
