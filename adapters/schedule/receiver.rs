//! The receiver: a message for each tick.

use std::sync::Arc;
use std::time::Duration;

use croner::errors::CronError;
use futures_util::future::BoxFuture;
use jiff::tz::TimeZone;
use xbus_core::adapter::OpenError;
use xbus_core::plan::Retry;
use xbus_core::spec::{Args, Field, Type};
use xbus_core::template::Template;
use xbus_core::{Arrival, Code, Context, Fault, Format, Inbox, Message, Receiver, Stop, Timestamp};

use crate::ticks::Ticks;

/// What can stand under `receive: { schedule: … }`.
pub(crate) const FIELDS: &[Field] = &[
    Field::new(
        "every",
        Type::Duration,
        "A tick every so often; the first one that long after the start.",
    ),
    Field::new(
        "cron",
        Type::Text,
        "Ticks by a cron expression: minute, hour, day of month, month, day of week, with seconds \
         in front where wanted; `MON-FRI`, `*/5`, `L`, `#` are understood.",
    ),
    Field::new(
        "timezone",
        Type::Text,
        "The time zone of `cron`, such as `Europe/Berlin`.",
    )
    .default("UTC"),
    Field::new(
        "body",
        Type::Template,
        "The message's body; empty when left out.",
    ),
    Field::new(
        "content_type",
        Type::Text,
        "The body's content type; `text/plain; charset=utf-8` when there is a body and nothing is said.",
    ),
    Field::new(
        "format",
        Type::Choice(&["xml", "json", "csv", "form", "text", "bytes"]),
        "How the body is read. Left out: by its content type.",
    ),
];

struct ScheduleReceiver {
    ticks: Ticks,
    body: Option<Template>,
    content_type: Option<String>,
    format: Option<Format>,
}

/// Builds a receiver from what the route says.
pub(crate) fn build(args: Args<'_>) -> Option<Arc<dyn Receiver>> {
    let ticks = ticks(&args);
    let body = match args.has("body") {
        true => Some(args.template("body")?),
        false => None,
    };
    let content_type = args
        .text("content_type")
        .or_else(|| body.as_ref().map(|_| Format::Text.media_type().to_owned()));
    Some(Arc::new(ScheduleReceiver {
        ticks: ticks?,
        body,
        content_type,
        format: args.text("format").as_deref().and_then(Format::from_name),
    }))
}

fn ticks(args: &Args<'_>) -> Option<Ticks> {
    let problem = |name, code, message, help| {
        tell(args, name, code, message, help);
        None
    };
    match (args.duration("every"), args.text("cron")) {
        (Some(period), None) => {
            if period < Duration::from_millis(10) {
                return problem(
                    "every",
                    "bad-value",
                    String::from("'every' is shorter than 10ms"),
                    "write a longer time",
                );
            }
            Some(Ticks::every(period))
        }
        (None, Some(expression)) => cron(args, &expression),
        (Some(_), Some(expression)) => {
            tell(
                args,
                "every",
                "bad-schedule",
                String::from("a schedule cannot have both 'every' and 'cron'"),
                "keep one of the two",
            );
            // What else is wrong with it is told too.
            cron(args, &expression);
            None
        }
        (None, None) => problem(
            "every",
            "bad-schedule",
            String::from("a schedule needs either 'every' or 'cron'"),
            "write every: 5m, or cron: \"0 6 * * *\"",
        ),
    }
}

fn tell(args: &Args<'_>, name: &str, code: &'static str, message: String, help: &str) {
    let place = args.place(name);
    args.build.problems.error(&place, code, message, help);
}

fn cron(args: &Args<'_>, expression: &str) -> Option<Ticks> {
    let name = args.text("timezone")?;
    let zone = TimeZone::get(&name);
    if zone.is_err() {
        tell(
            args,
            "timezone",
            "unknown-timezone",
            format!("there is no time zone '{name}'"),
            "write a name of the IANA database such as Europe/Berlin or UTC",
        );
    }
    match Ticks::cron(expression, zone.clone().unwrap_or(TimeZone::UTC)) {
        Ok(ticks) => zone.is_ok().then_some(ticks),
        Err(error) => {
            let (message, help) = match error {
                CronError::TimeSearchLimitExceeded => (
                    format!("the cron expression '{expression}' never comes: there is no such day"),
                    "look at the day of the month beside the month",
                ),
                error => (
                    format!("the cron expression '{expression}' is wrong: {error}"),
                    "write five fields: minute, hour, day of month, month, day of week, such as '0 6 * * MON-FRI'",
                ),
            };
            tell(args, "cron", "bad-cron", message, help);
            None
        }
    }
}

/// What ticks are handed to: the inbox, or a test's stand-in.
trait Door: Send + Sync {
    fn deliver(&self, arrival: Arrival) -> BoxFuture<'_, Result<(), Fault>>;
    fn fails(&self, fault: &Fault);
    fn retry(&self) -> Retry;
    fn route(&self) -> Arc<str>;
}

impl Door for Inbox {
    fn deliver(&self, arrival: Arrival) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(async move { Inbox::deliver(self, arrival).await.map(drop) })
    }

    fn fails(&self, fault: &Fault) {
        Inbox::fails(self, fault.code.name(), &fault.for_admin());
    }

    fn retry(&self) -> Retry {
        self.policy().retry
    }

    fn route(&self) -> Arc<str> {
        Inbox::route(self).clone()
    }
}

impl Receiver for ScheduleReceiver {
    fn open(
        self: Arc<Self>,
        inbox: Inbox,
        stop: Stop,
    ) -> BoxFuture<'static, Result<BoxFuture<'static, ()>, OpenError>> {
        Box::pin(async move {
            let run: BoxFuture<'static, ()> = Box::pin(async move {
                self.run(self.ticks.clone(), &inbox, &stop).await;
            });
            Ok(run)
        })
    }
}

impl ScheduleReceiver {
    async fn run(&self, mut ticks: Ticks, door: &dyn Door, stop: &Stop) {
        loop {
            let tick = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                tick = ticks.next() => tick,
            };
            let Some(skipped) = tick else {
                tracing::warn!(route = %door.route(), "the schedule has no further tick");
                return stop.cancelled().await;
            };
            if skipped > 0 {
                tracing::warn!(route = %door.route(), skipped, "ticks were skipped, the last one's message was still on its way");
            }
            match self.message(&door.route()) {
                Ok(message) => deliver(door, message, stop).await,
                Err(fault) => door.fails(&fault),
            }
        }
    }

    fn message(&self, route: &Arc<str>) -> Result<Message, Fault> {
        let mut message = Message::new("");
        let at = Timestamp::now().to_string();
        message.headers.set("schedule.at", &at);
        if let Some(content_type) = &self.content_type {
            message.headers.set("content-type", content_type);
        }
        message.format = self.format;
        let Some(body) = &self.body else {
            return Ok(message);
        };
        let empty = Arc::new(message);
        let context = Context::new(route.clone(), empty.clone());
        let mut message = empty.with_body(body.render(&empty, &context)?);
        message.format = self.format;
        Ok(message)
    }
}

/// Delivers one tick's message; after an outage again, until it is done or `stop`.
async fn deliver(door: &dyn Door, message: Message, stop: &Stop) {
    let mut attempts = 0;
    loop {
        let arrival = Arrival {
            attempts,
            ..Arrival::from(message.clone())
        };
        let Err(fault) = door.deliver(arrival).await else {
            return;
        };
        attempts += 1;
        if fault.rejected || matches!(fault.code, Code::Transform | Code::InDoubt) {
            tracing::warn!(route = %door.route(), id = %message.id, error = %fault, "the tick's message failed for good");
            return;
        }
        let wait = door.retry().wait(attempts);
        let wait = fault.retry_after.map_or(wait, |asked| asked.max(wait));
        tracing::warn!(route = %door.route(), id = %message.id, attempts, error = %fault, retry_in = ?wait, "the tick's message was not delivered, tried again");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Fails the first two attempts, then accepts; a delivery takes a while.
    #[derive(Default)]
    struct Route {
        arrivals: Mutex<Vec<(Arrival, tokio::time::Duration)>>,
        start: Mutex<Option<tokio::time::Instant>>,
    }

    impl Door for Route {
        fn deliver(&self, arrival: Arrival) -> BoxFuture<'_, Result<(), Fault>> {
            Box::pin(async move {
                let since = self.start.lock().unwrap().unwrap().elapsed();
                let mut arrivals = self.arrivals.lock().unwrap();
                arrivals.push((arrival, since));
                match arrivals.len() {
                    1 | 2 => Err(Fault::new(Code::Destination, "down")),
                    4 => Err(Fault::new(Code::Transform, "bad")),
                    _ => Ok(()),
                }
            })
        }

        fn fails(&self, fault: &Fault) {
            panic!("{fault}");
        }

        fn retry(&self) -> Retry {
            Retry {
                attempts: u32::MAX,
                first: Duration::from_secs(4),
                factor: 2.0,
                max: Duration::from_secs(60),
            }
        }

        fn route(&self) -> Arc<str> {
            Arc::from("r")
        }
    }

    struct NoCompiler;

    impl xbus_core::Compiler for NoCompiler {
        fn transform(
            &self,
            _: xbus_core::transform::Source<'_>,
            _: &xbus_core::transform::Scope,
        ) -> Result<Arc<dyn xbus_core::Transform>, xbus_core::transform::CompileError> {
            unreachable!()
        }

        fn expression(
            &self,
            _: &str,
            _: &xbus_core::transform::Scope,
        ) -> Result<Arc<dyn xbus_core::Expression>, xbus_core::transform::CompileError> {
            unreachable!()
        }
    }

    #[test]
    fn what_is_wrong_with_a_schedule_is_said_at_once() {
        use xbus_core::problem::{Place, Problems};
        use xbus_core::spec::{Build, Key, Node, Raw, Role, Scalar};
        let told = |pairs: &[(&str, &str)]| {
            let problems = Problems::new();
            let place = Place::file(std::path::Path::new("r.yaml"));
            let scalar = |text: &&str| Scalar {
                text: (*text).to_owned(),
                literal: Vec::new(),
                secret: false,
            };
            let entries = pairs.iter().map(|(name, text)| {
                let key = Key {
                    name: (*name).to_owned(),
                    place: place.clone(),
                };
                let raw = Raw::Scalar(scalar(text));
                (
                    key,
                    Node {
                        place: place.clone(),
                        raw,
                    },
                )
            });
            let node = Node {
                place: place.clone(),
                raw: Raw::Map(entries.collect()),
            };
            let build = Build {
                route: "r".into(),
                step: "receive".into(),
                role: Role::Other,
                bus: "bus".into(),
                node: "n".into(),
                root: std::path::Path::new("/"),
                compiler: &NoCompiler,
                scope: &xbus_core::transform::Scope::default(),
                connections: &std::collections::BTreeMap::new(),
                timeout: Duration::from_secs(1),
                max_body: 1,
                problems: &problems,
            };
            let made = super::build(Args::new(Some(&node), FIELDS, &build));
            let problems = problems.into_sorted();
            assert_eq!(made.is_some(), problems.is_empty());
            let messages = problems.into_iter().map(|problem| problem.message);
            messages.collect::<Vec<_>>().join("; ")
        };
        assert_eq!(told(&[("cron", "0 6 * * *")]), "");
        assert_eq!(told(&[]), "a schedule needs either 'every' or 'cron'");
        let never = told(&[("cron", "0 0 30 2 *")]);
        assert!(never.contains("'0 0 30 2 *' never comes"), "{never}");
        let all = told(&[
            ("every", "5s"),
            ("cron", "61 * * * *"),
            ("timezone", "No/where"),
        ]);
        for part in [
            "cannot have both",
            "no time zone 'No/where'",
            "'61 * * * *' is wrong",
        ] {
            assert!(all.contains(part), "{part}: {all}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_retried_and_meanwhile_no_tick_piles_up() {
        let receiver = ScheduleReceiver {
            ticks: Ticks::every(Duration::from_secs(10)),
            body: Some(Template::constant("go")),
            content_type: Some(String::from("text/plain")),
            format: None,
        };
        let route = Arc::new(Route::default());
        *route.start.lock().unwrap() = Some(tokio::time::Instant::now());
        let (door, stop) = (route.clone(), Stop::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            receiver.run(receiver.ticks.clone(), &*door, &stopped).await;
        });
        tokio::time::sleep(Duration::from_secs(55)).await;
        stop.cancel();
        task.await.unwrap();
        let arrivals = route.arrivals.lock().unwrap();
        let times: Vec<u64> = arrivals.iter().map(|(_, since)| since.as_secs()).collect();
        // Tick at 10, again after 4 and 8; the tick at 20 is skipped; a failed script is final.
        assert_eq!(times, [10, 14, 22, 30, 40, 50]);
        let tries: Vec<u32> = arrivals.iter().map(|(a, _)| a.attempts).collect();
        assert_eq!(tries, [0, 1, 2, 0, 0, 0]);
        assert_eq!(arrivals[0].0.message.id, arrivals[2].0.message.id);
        assert_ne!(arrivals[2].0.message.id, arrivals[3].0.message.id);
        let message = &arrivals[0].0.message;
        assert_eq!(message.body.bytes().as_ref(), b"go");
        assert!(message.headers.get("schedule.at").is_some());
    }
}
