//! `xbus messages`: the journal searched and shown, replay, and the decision on unknown outcomes.

use std::process::ExitCode;

use bytes::Bytes;
use serde_json::{Value, json};
use xbus_core::Timestamp;

use super::client::{Common, encode, with_query};
use super::output::{
    self, Align, Failure, Table, age, cell, cell_lines, facts, first_line, rows, when,
};
use super::send;

/// So many are listed when nothing else is asked for.
const SHOWN: u32 = 50;

/// Find messages in the journal; show, replay and resolve them
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  xbus messages                                        the newest ones
  xbus messages --outcome failed --since 1h            what failed in the last hour
  xbus messages --key order-no=4711                    by business key
  xbus messages show ID                                everything that is known of one
  xbus messages replay ID                              run it again, as a new message
  xbus messages resolve ID --commit                    an unknown outcome: it was done
  xbus messages resolve ID --abort                     an unknown outcome: it was not done

Times are RFC 3339 (2026-11-22T08:00:00Z), a day (2026-11-22), or how long ago (90s, 15m, 7d).
Exit codes: 0 done, 1 it failed or there is no such message, 2 wrong use, 3 no bus.")]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args, Debug)]
struct Filters {
    /// Only of this route
    #[arg(long, value_name = "ROUTE")]
    route: Option<String>,
    /// Only with this outcome
    #[arg(long, value_parser = ["delivered", "failed", "pending", "filtered", "in-doubt"])]
    outcome: Option<String>,
    /// Only with this business key
    #[arg(long, value_name = "NAME=VALUE", value_parser = key)]
    key: Option<String>,
    /// Received at this time or later
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Received before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// At most so many, the newest (50)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

impl Filters {
    /// What was written here, else what was written there.
    fn or(self, other: Self) -> Self {
        Self {
            route: self.route.or(other.route),
            outcome: self.outcome.or(other.outcome),
            key: self.key.or(other.key),
            since: self.since.or(other.since),
            until: self.until.or(other.until),
            limit: self.limit.or(other.limit),
        }
    }
}

fn key(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err(String::from("write NAME=VALUE, such as order-no=4711")),
    }
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Find messages (the same as no subcommand)
    List(Filters),
    /// Show everything that is known of a message
    Show {
        /// The message's id
        id: String,
    },
    /// Run a message's kept payload through its route again, as a new message
    Replay {
        /// The message's id
        id: String,
    },
    /// Decide what an unknown outcome was
    #[command(group = clap::ArgGroup::new("decision").required(true))]
    Resolve {
        /// The message's id
        id: String,
        /// It was done: the distribution goes on to its end
        #[arg(long, group = "decision")]
        commit: bool,
        /// It was not done: what can be taken back is taken back
        #[arg(long, group = "decision")]
        abort: bool,
    },
}

/// Runs the command.
pub async fn run(args: Args) -> ExitCode {
    let json = args.common.json;
    output::finish(execute(args).await, json)
}

async fn execute(args: Args) -> Result<(), Failure> {
    let common = args.common;
    match args.action {
        None => list(&common, args.filters).await,
        // The same filters stand before `list` or behind it.
        Some(Action::List(filters)) => list(&common, filters.or(args.filters)).await,
        Some(Action::Show { id }) => {
            let path = format!("/api/v1/messages/{}", encode(&id));
            let message = common.client()?.get(&path).await?;
            tell(&common, &message);
            Ok(())
        }
        Some(Action::Replay { id }) => {
            let path = format!("/api/v1/messages/{}/replay", encode(&id));
            let answer = common.client()?.run(&path, &[], Bytes::new()).await?;
            send::tell(&common, answer)
        }
        Some(Action::Resolve { id, commit, .. }) => {
            let path = format!("/api/v1/messages/{}/resolve", encode(&id));
            let body = json!({ "commit": commit });
            let message = common.client()?.post(&path, &body).await?;
            tell(&common, &message);
            Ok(())
        }
    }
}

async fn list(common: &Common, filters: Filters) -> Result<(), Failure> {
    let path = with_query(
        "/api/v1/messages",
        &[
            ("route", filters.route),
            ("outcome", filters.outcome),
            ("key", filters.key),
            ("since", filters.since),
            ("until", filters.until),
            ("limit", Some(filters.limit.unwrap_or(SHOWN).to_string())),
        ],
    );
    let messages = common.client()?.get(&path).await?;
    output::show(common.json, &messages, |messages| {
        listing(messages, common, Timestamp::now(), output::width())
    });
    Ok(())
}

fn listing(messages: &Value, common: &Common, now: Timestamp, width: Option<usize>) -> String {
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("AGE", Align::Left),
        ("ROUTE", Align::Left),
        ("OUTCOME", Align::Left),
        ("KEYS", Align::Left),
        ("TARGETS", Align::Left),
    ]);
    for message in rows(messages) {
        let targets = rows(&message["targets"]).iter();
        let targets = targets.map(|t| format!("{}: {}", cell(&t["name"]), cell(&t["outcome"])));
        table.row(vec![
            cell(&message["id"]),
            age(&message["received_at"], now),
            cell(&message["route"]),
            cell(&message["outcome"]),
            keys(&message["keys"]),
            targets.collect::<Vec<_>>().join(", "),
        ]);
    }
    if table.is_empty() {
        return String::from("No message matches.\n");
    }
    let mut out = table.render(width);
    let bad = |message: &&Value| matches!(message["outcome"].as_str(), Some("failed" | "in-doubt"));
    if let Some(message) = rows(messages).iter().find(bad) {
        let show = common.command(&format!("messages show {}", cell(&message["id"])));
        out.push_str(&format!("\nNext: {show}\n"));
    }
    out
}

fn keys(keys: &Value) -> String {
    let Some(keys) = keys.as_object().filter(|keys| !keys.is_empty()) else {
        return String::from("-");
    };
    let shown = keys
        .iter()
        .map(|(name, value)| format!("{}={}", output::printable(name), cell(value)));
    shown.collect::<Vec<_>>().join(" ")
}

fn tell(common: &Common, message: &Value) {
    output::show(common.json, message, |message| {
        detail(message, common, Timestamp::now(), output::width())
    });
}

fn detail(message: &Value, common: &Common, now: Timestamp, width: Option<usize>) -> String {
    let (fault, payload) = (&message["fault"], &message["payload"]);
    let failed = match (&fault["code"], &fault["step"]) {
        (Value::Null, _) => String::new(),
        (code, Value::Null) => cell(code),
        (code, step) => format!("{} in {}", cell(code), cell(step)),
    };
    let took = message["took_ms"]
        .as_f64()
        .map_or(String::new(), |ms| format!("{ms:.1} ms"));
    // A fault stays in the journal when a decision or a later attempt went past it.
    let (said, why) = match message["outcome"].as_str() {
        Some("delivered" | "filtered") => ("was", "because"),
        Some("pending") => ("last fault", "reason"),
        _ => ("fault", "reason"),
    };
    let mut out = facts(
        &[
            ("message", cell(&message["id"])),
            ("route", cell(&message["route"])),
            ("received", when(&message["received_at"], now)),
            ("outcome", cell(&message["outcome"])),
            ("took", took),
            ("correlation", cell(&message["correlation_id"])),
            ("cause", cell(&message["cause"])),
            ("keys", keys(&message["keys"])),
            (said, failed),
            (why, cell_lines(&fault["reason"])),
            ("payload", about(payload)),
        ],
        width,
    );
    out.push_str(&targets(&message["targets"], now, width));
    for place in rows(&message["queued"]) {
        out.push_str(&format!("\n{}", waits(place, now, width)));
    }
    if let Some(text) = payload["text"].as_str() {
        out.push_str(&format!("\n{}\n", output::printable_lines(text).trim_end()));
        if payload["truncated"] == true {
            out.push_str("(cut: only the beginning is shown)\n");
        }
    }
    if let Some(next) = next(message, common) {
        out.push_str(&format!("\nNext: {next}\n"));
    }
    out
}

fn about(payload: &Value) -> String {
    if payload.is_null() {
        return String::from("not kept");
    }
    let kind = payload["content_type"]
        .as_str()
        .unwrap_or("no content type");
    format!(
        "{} bytes, {}",
        cell(&payload["bytes"]),
        output::printable(kind)
    )
}

fn targets(list: &Value, now: Timestamp, width: Option<usize>) -> String {
    let mut table = Table::new(&[
        ("TARGET", Align::Left),
        ("OUTCOME", Align::Left),
        ("ATTEMPTS", Align::Right),
        ("AGE", Align::Left),
        ("ERROR", Align::Left),
    ]);
    for target in rows(list) {
        table.row(vec![
            cell(&target["name"]),
            cell(&target["outcome"]),
            cell(&target["attempts"]),
            age(&target["at"], now),
            first_line(&target["error"]),
        ]);
    }
    if table.is_empty() {
        return String::new();
    }
    format!("\n{}", table.render(width))
}

/// One place in which the message waits.
fn waits(place: &Value, now: Timestamp, width: Option<usize>) -> String {
    let parked = cell(&place["parked"]);
    let name = if parked == "-" {
        "waits in"
    } else {
        "parked in"
    };
    facts(
        &[
            (name, cell(&place["queue"])),
            ("attempts", cell(&place["attempts"])),
            ("next try", when(&place["next_try"], now)),
            ("last error", cell_lines(&place["last_error"])),
            ("why", cell_lines(&place["parked"])),
        ],
        width,
    )
}

/// The sensible next command.
fn next(message: &Value, common: &Common) -> Option<String> {
    let id = cell(&message["id"]);
    match message["outcome"].as_str()? {
        "in-doubt" => Some(format!(
            "{}   (it was done; else --abort)",
            common.command(&format!("messages resolve {id} --commit"))
        )),
        "pending" => {
            let place = rows(&message["queued"]).first()?;
            Some(common.command(&format!("queues show {}", cell(&place["queue"]))))
        }
        "failed" if !message["payload"].is_null() => {
            Some(common.command(&format!("messages replay {id}")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse as read;
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        read(line)
    }

    #[test]
    fn arguments_read_as_the_help_shows_them() {
        let args = parse(
            "messages --json --route orders --outcome in-doubt --key a=b=c --since 1h --limit 5",
        )
        .unwrap();
        assert!(args.common.json && args.action.is_none());
        assert_eq!(args.filters.key.as_deref(), Some("a=b=c"));
        assert_eq!(args.filters.limit, Some(5));
        assert!(parse("messages show ID --json").unwrap().common.json);
        assert!(parse("messages replay ID").is_ok());
        let list = parse("messages list --json --route orders --limit 5").unwrap();
        assert!(list.common.json);
        assert!(matches!(
            list.action,
            Some(Action::List(Filters { limit: Some(5), route: Some(route), .. })) if route == "orders"
        ));
        let resolve = parse("messages resolve ID --abort").unwrap();
        assert!(matches!(
            resolve.action,
            Some(Action::Resolve {
                commit: false,
                abort: true,
                ..
            })
        ));
        for wrong in [
            "messages resolve ID",
            "messages resolve ID --commit --abort",
            "messages show",
            "messages --outcome lost",
            "messages --key order-no",
            "messages --limit many",
            "messages --limit 0",
        ] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    fn common() -> Common {
        Common {
            dir: ".".into(),
            json: false,
        }
    }

    #[test]
    fn the_listing_names_keys_and_targets() {
        let now = "2026-11-22T08:00:00Z".parse().unwrap();
        let messages = json!([{
            "id": "A", "correlation_id": "A", "route": "orders", "received_at": "2026-11-22T07:59:00Z",
            "outcome": "failed", "keys": { "order-no": "4711" },
            "targets": [{ "name": "erp", "outcome": "failed", "attempts": 1, "error": null, "at": "2026-11-22T07:59:00Z" }],
        }]);
        let expected = "\
ID  AGE    ROUTE   OUTCOME  KEYS           TARGETS
A   1m 0s  orders  failed   order-no=4711  erp: failed

Next: xbus messages show A
";
        assert_eq!(listing(&messages, &common(), now, None), expected);
        assert_eq!(
            listing(&json!([]), &common(), now, None),
            "No message matches.\n"
        );
    }

    #[test]
    fn one_message_tells_why_and_what_next() {
        let now = "2026-11-22T08:00:00Z".parse().unwrap();
        let mut message = json!({
            "id": "A", "correlation_id": "c", "route": "orders", "received_at": "2026-11-22T07:59:00Z",
            "outcome": "failed", "keys": {}, "targets": [], "cause": null, "took_ms": 1.25, "queued": [],
            "fault": { "code": "destination", "step": "erp", "reason": "refused\u{1b}[2J" },
            "payload": { "bytes": 9, "content_type": "text/plain", "headers": {}, "text": "Hello\nyou", "truncated": false },
        });
        let expected = "\
message      A
route        orders
received     2026-11-22T07:59:00.000Z (1m 0s ago)
outcome      failed
took         1.2 ms
correlation  c
fault        destination in erp
reason       refused\u{fffd}[2J
payload      9 bytes, text/plain

Hello
you

Next: xbus messages replay A
";
        assert_eq!(detail(&message, &common(), now, None), expected);
        message["outcome"] = json!("in-doubt");
        message["payload"] = json!(null);
        let text = detail(&message, &common(), now, None);
        assert!(text.contains("payload      not kept\n"), "{text}");
        assert!(
            text.contains("Next: xbus messages resolve A --commit"),
            "{text}"
        );
    }

    #[test]
    fn a_reason_keeps_its_lines_and_an_old_fault_is_told_as_such() {
        let now = "2026-11-22T08:00:00Z".parse().unwrap();
        let reason = "a.rhai:2:3: no such variable\n  2 |   x + 1\n    |   ^";
        let mut message = json!({
            "id": "A", "outcome": "failed", "fault": { "code": "transform", "step": "erp", "reason": reason },
            "targets": [{ "name": "erp", "outcome": "failed", "attempts": 1, "error": reason, "at": "2026-11-22T07:59:00Z" }],
        });
        let text = detail(&message, &common(), now, Some(80));
        let lines = "\
reason       a.rhai:2:3: no such variable
               2 |   x + 1
                 |   ^
";
        assert!(text.contains(lines), "{text}");
        assert!(text.contains("no such variable …\n"), "{text}");
        message["outcome"] = json!("delivered");
        let text = detail(&message, &common(), now, None);
        assert!(text.contains("was          transform in erp\n"), "{text}");
        assert!(!text.contains("fault"), "{text}");
    }

    #[test]
    fn a_waiting_message_says_where() {
        let now = "2026-11-22T08:00:00Z".parse().unwrap();
        let message = json!({
            "id": "A", "route": "orders", "received_at": "2026-11-22T07:59:00Z", "outcome": "pending",
            "queued": [{ "target": "erp", "queue": "orders.erp", "key": "", "attempts": 2, "last_error": "refused",
                         "next_try": "2026-11-22T08:00:05Z", "parked": null }],
        });
        let text = detail(&message, &common(), now, None);
        assert!(text.contains("waits in    orders.erp\nattempts    2\nnext try    2026-11-22T08:00:05.000Z (in 5s)\n"), "{text}");
        assert!(text.contains("Next: xbus queues show orders.erp"), "{text}");
    }
}
