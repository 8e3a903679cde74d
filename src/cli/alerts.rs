//! `xbus alerts`: what has failed and is not mended, who is told, and whether that works.

use std::process::ExitCode;

use serde_json::{Value, json};
use xbus_core::Timestamp;

use super::client::Common;
use super::output::{self, Align, Failure, Table, age, cell, first_line, rows, show};

/// Show what has failed and is not mended; try whether administrators are told
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  xbus alerts                  the open incidents
  xbus alerts ways             who is told of them, and what waits to be sent
  xbus alerts test             send a test by mail and webhook, and say what came of it

An incident is a route, a step and a kind of failure. The running bus sends the test, with
the settings that it was started with.
Exit codes: 0 done, 1 a way did not take the test (or there is none), 2 wrong use, 3 no bus.")]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// List the open incidents (the same as no subcommand)
    List,
    /// Show the ways by which administrators are told
    Ways,
    /// Send a test over every way, now
    Test,
}

/// Runs the command.
pub async fn run(args: Args) -> ExitCode {
    let json = args.common.json;
    output::finish(execute(args).await, json)
}

async fn execute(args: Args) -> Result<(), Failure> {
    let common = args.common;
    let client = common.client()?;
    match args.action.unwrap_or(Action::List) {
        Action::List => {
            let open = client.get("/api/v1/incidents").await?;
            let now = Timestamp::now();
            show(common.json, &open, |open| listing(open, &common, now));
        }
        Action::Ways => {
            let ways = client.get("/api/v1/alerts").await?;
            show(common.json, &ways, |ways| {
                table_of_ways(ways, Timestamp::now())
            });
        }
        Action::Test => {
            let tried = client.post("/api/v1/alerts/test", &json!({})).await?;
            show(common.json, &tried, trials);
            if rows(&tried).iter().any(|trial| trial["ok"] != true) {
                return Err(Failure::told());
            }
        }
    }
    Ok(())
}

/// The open incidents, and what to do next about the first.
fn listing(open: &Value, common: &Common, now: Timestamp) -> String {
    let mut table = Table::new(&[
        ("ROUTE", Align::Left),
        ("STEP", Align::Left),
        ("FAILURE", Align::Left),
        ("AGE", Align::Left),
        ("COUNT", Align::Right),
        ("WAITING", Align::Right),
        ("OLDEST", Align::Left),
        ("LAST-ERROR", Align::Left),
    ]);
    for one in rows(open) {
        table.row(vec![
            cell(&one["route"]),
            cell(&one["step"]),
            cell(&one["kind"]),
            age(&one["opened_at"], now),
            cell(&one["count"]),
            cell(&one["waiting"]),
            age(&one["oldest"], now),
            first_line(&one["last_error"]),
        ]);
    }
    let Some(first) = rows(open).first() else {
        return String::from("Nothing has failed that is not mended.\n");
    };
    let next = match (&first["queue"], &first["message"]) {
        (Value::String(_), _) => format!("queues show {}", cell(&first["queue"])),
        (_, Value::String(_)) => format!("messages show {}", cell(&first["message"])),
        _ => String::from("messages --outcome failed"),
    };
    format!(
        "{}\nNext: {}\n",
        table.render(output::width()),
        common.command(&next)
    )
}

fn table_of_ways(ways: &Value, now: Timestamp) -> String {
    let mut table = Table::new(&[
        ("WAY", Align::Left),
        ("TO", Align::Left),
        ("WAITING", Align::Right),
        ("SENT", Align::Right),
        ("LAST-SENT", Align::Left),
        ("ERROR", Align::Left),
    ]);
    for way in rows(ways) {
        table.row(vec![
            cell(&way["way"]),
            cell(&way["to"]),
            cell(&way["waiting"]),
            cell(&way["sent"]),
            age(&way["last_sent"], now),
            first_line(&way["error"]),
        ]);
    }
    match table.is_empty() {
        true => String::from(
            "Nobody is told of incidents: xbus.yaml has neither alerts.mail nor alerts.webhook.\n",
        ),
        false => table.render(output::width()),
    }
}

/// What each way said.
fn trials(tried: &Value) -> String {
    let mut out = String::new();
    for trial in rows(tried) {
        let (way, to) = (cell(&trial["way"]), cell(&trial["to"]));
        let refused = rows(&trial["refused"]);
        let said = match (&trial["error"], refused) {
            (Value::Null, []) => format!("accepted: {}", cell(&trial["said"])),
            (Value::Null, some) => {
                let all: Vec<String> = some.iter().map(cell).collect();
                format!("not for everybody: {}", all.join("; "))
            }
            (error, _) => format!("failed: {}", cell(error)),
        };
        out.push_str(&format!("{way} to {to}: {said}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common() -> Common {
        Common {
            dir: "/srv/bus".into(),
            json: false,
        }
    }

    #[test]
    fn incidents_are_listed_with_what_to_do() {
        let now: Timestamp = "2026-11-22T08:10:00Z".parse().unwrap();
        let open = json!([{
            "route": "orders", "step": "erp", "kind": "outage", "opened_at": "2026-11-22T08:00:00Z",
            "count": 12, "waiting": 3, "oldest": "2026-11-22T08:01:00Z", "queue": "orders.erp",
            "message": "m", "last_error": "refused\nmore",
        }]);
        let text = listing(&open, &common(), now);
        assert!(text.contains("orders"), "{text}");
        assert!(
            text.contains("Next: xbus queues show orders.erp --dir /srv/bus"),
            "{text}"
        );
        assert!(!text.contains("more"));
        assert!(listing(&json!([]), &common(), now).contains("Nothing has failed"));
    }

    #[test]
    fn trials_say_what_the_server_said() {
        let tried = json!([
            { "way": "mail", "to": "a@b", "ok": true, "said": "250 kept", "refused": [] },
            { "way": "mail", "to": "a@b", "ok": false, "said": "250", "refused": ["c@d: 550 no"] },
            { "way": "webhook", "to": "https://x", "ok": false, "error": "re\u{1b}fused" },
        ]);
        let text = trials(&tried);
        assert!(text.contains("mail to a@b: accepted: 250 kept"), "{text}");
        assert!(text.contains("not for everybody: c@d: 550 no"), "{text}");
        assert!(text.contains("webhook to https://x: failed: "), "{text}");
        assert!(!text.contains('\u{1b}'));
    }
}
