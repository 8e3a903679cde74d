//! `alerts` of xbus.yaml: who is told of incidents, by which adapters, and when.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use xbus_config::{BusConfig, Connections};
use xbus_core::incident::AlertSettings;
use xbus_core::outbox::Notifier;
use xbus_core::spec::{Args, Field, Type};
use xbus_http::{WEBHOOK_FIELDS, Webhook};
use xbus_mail::{ALERT_FIELDS, MailAlerts, Recipients};

/// What can stand under `alerts`.
pub static ALERTS: &[Field] = &[
    Field::new("mail", Type::Object(ALERT_FIELDS), "Mail."),
    Field::new(
        "webhook",
        Type::Object(WEBHOOK_FIELDS),
        "A web address that gets each notice as JSON, by HTTP POST.",
    ),
    Field::new(
        "digest",
        Type::Duration,
        "At most one notice in this time about incidents that go on. Left out: `mail.digest`, else 15m.",
    ),
    Field::new(
        "gather",
        Type::Duration,
        "What opens, or ends, within this time goes into one notice.",
    )
    .default("2s"),
    Field::new(
        "escalate",
        Type::OneOrMany(&Type::Object(ESCALATE)),
        "Who else is told of an incident that lasts: one level, or several, each with a longer time than the one before.",
    ),
    Field::new(
        "console",
        Type::Text,
        "The address under which administrators reach the admin listener, such as `https://bus.acme.example`. Mails then link to it.",
    ),
];

static ESCALATE: &[Field] = &[
    Field::new(
        "after",
        Type::Duration,
        "The age of the oldest message that waits, or of the incident where no queue waits.",
    )
    .required(),
    Field::new(
        "to",
        Type::OneOrMany(&Type::Text),
        "Who gets the mail, once. Left out: those under `mail.to`.",
    ),
];

const DIGEST: Duration = Duration::from_secs(900);

/// `alerts`, read.
pub struct Alerts {
    digest: Duration,
    gather: Duration,
    escalate: Vec<Duration>,
    mail: Option<MailAlerts>,
    webhook: Option<Webhook>,
}

impl Default for Alerts {
    fn default() -> Self {
        Self {
            digest: DIGEST,
            gather: Duration::ZERO,
            escalate: Vec::new(),
            mail: None,
            webhook: None,
        }
    }
}

impl Alerts {
    /// Reads [`ALERTS`]; what is wrong is reported, and counts as not written.
    pub fn read(args: Args<'_>) -> Self {
        let digest = digest(args).unwrap_or(DIGEST);
        let gather = args.duration("gather").unwrap_or_default();
        if args.has("gather") && gather > digest {
            args.build.problems.error(
                &args.place("gather"),
                "bad-alerts",
                "'gather' is longer than 'digest'",
                "gather for some seconds",
            );
        }
        let (escalate, people) = escalate(args);
        let console = console(args);
        let mail = args
            .has("mail")
            .then(|| MailAlerts::read(args.object("mail", ALERT_FIELDS), people, console));
        let webhook = args
            .has("webhook")
            .then(|| Webhook::build(args.object("webhook", WEBHOOK_FIELDS)));
        Self {
            digest,
            gather: gather.min(digest),
            escalate,
            mail: mail.flatten(),
            webhook: webhook.flatten(),
        }
    }

    /// By mail, where that is said.
    pub fn by_mail(&self) -> Option<&MailAlerts> {
        self.mail.as_ref()
    }

    /// When administrators are told.
    pub fn settings(&self, bus: &BusConfig, dir: &Path) -> AlertSettings {
        let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        AlertSettings {
            digest: self.digest,
            gather: self.gather,
            escalate: self.escalate.clone(),
            ..AlertSettings::new(&bus.name, &dir)
        }
    }

    /// The ways to administrators; the connections are checked already.
    pub fn ways(self, connections: &Connections) -> Vec<Arc<dyn Notifier>> {
        let mail = self.mail.and_then(|mail| {
            let (_, connection) = connections.get(&mail.connection)?;
            let way: Arc<dyn Notifier> = Arc::new(mail.over(connection.clone())?);
            Some(way)
        });
        let webhook = self.webhook.map(|way| Arc::new(way) as Arc<dyn Notifier>);
        mail.into_iter().chain(webhook).collect()
    }
}

/// `digest`, which may stand in two places.
fn digest(args: Args<'_>) -> Option<Duration> {
    const SHORTEST: Duration = Duration::from_millis(100);
    let mail = args.object("mail", ALERT_FIELDS);
    let problems = args.build.problems;
    let place = match (args.has("digest"), mail.has("digest")) {
        (true, true) => {
            problems.error(
                &mail.place("digest"),
                "bad-alerts",
                "'digest' stands twice: in 'alerts' and in 'mail'",
                "keep one of them: it counts for every way",
            );
            return None;
        }
        (true, false) => args.place("digest"),
        (false, _) => mail.place("digest"),
    };
    let digest = args.duration("digest").or(mail.duration("digest"))?;
    if digest < SHORTEST {
        problems.error(
            &place,
            "bad-alerts",
            "'digest' is too short",
            "write a time such as 15m: nobody reads more",
        );
    } else if digest < Duration::from_secs(60) {
        problems.warning(
            &place,
            "bad-alerts",
            "'digest' is very short: a failure that lasts becomes a flood of notices",
            "write a time such as 15m",
        );
    }
    Some(digest)
}

/// The ages, and who is told.
fn escalate(args: Args<'_>) -> (Vec<Duration>, Vec<Option<Recipients>>) {
    let problems = args.build.problems;
    let (mut ages, mut people) = (Vec::new(), Vec::new());
    if args.has("escalate") && !args.has("mail") && !args.has("webhook") {
        problems.warning(
            &args.place("escalate"),
            "useless-key",
            "'escalate' has no effect: there is neither 'mail' nor 'webhook'",
            "add one of them",
        );
    }
    for node in args.items("escalate") {
        let level = Args::new(Some(node), ESCALATE, args.build);
        let Some(after) = level.duration("after") else {
            continue;
        };
        if ages.last().is_some_and(|before| *before >= after) {
            problems.error(
                &level.place("after"),
                "bad-alerts",
                "the levels of 'escalate' are out of order",
                "put them in the order in which they are told: each 'after' longer than the one before",
            );
        }
        if level.has("to") && !args.has("mail") {
            problems.error(
                &level.place("to"),
                "bad-alerts",
                "'to' names people, and there is no 'mail' to tell them by",
                "add 'mail', or leave 'to' out",
            );
        }
        ages.push(after);
        people.push(Recipients::read(&level, "to"));
    }
    (ages, people)
}

fn console(args: Args<'_>) -> Option<String> {
    let text = args.text("console")?;
    let good = text.parse::<http::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some()
            && uri.query().is_none()
            && !text.contains(['@', '"', '\'', '<', '>'])
    });
    if !good {
        args.build.problems.error(
            &args.place("console"),
            "bad-alerts",
            format!("'{text}' is no address that a mail can link to"),
            "write https://HOST, without user and query",
        );
    }
    good.then_some(text)
}
