//! The only file that names the core, the store, the transformations and every adapter.

use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use xbus_amqp::Links;
use xbus_config::{BusConfig, Installation, Mode};
use xbus_core::incident::AlertSettings;
use xbus_core::outbox::{Mail, Notifier};
use xbus_core::spec::{Args, Field, Type};
use xbus_core::{Kind, Plan, Problem, SendError};
use xbus_http::{Hub, LIMIT_FIELDS, LISTENER_FIELDS, Settings};

/// The top-level keys of xbus.yaml that are not the configuration's own.
pub static EXTRA: &[Field] = &[
    Field::new(
        "http",
        Type::Object(LISTENER_FIELDS),
        "The HTTP listener that routes use when they name none.",
    ),
    Field::new(
        "listeners",
        Type::Map(&Type::Object(LISTENER_FIELDS)),
        "Further HTTP listeners by name.",
    ),
    Field::new(
        "limits",
        Type::Object(LIMIT_FIELDS),
        "What a request may be at most.",
    ),
    Field::new(
        "scripts",
        Type::Object(xbus_transform::LIMIT_FIELDS),
        "What a script may use at most.",
    ),
];

/// What a reload takes over from the running bus: listeners, and connections whose settings are the
/// same.
#[derive(Clone)]
pub struct Kept {
    pub hub: Arc<Hub>,
    links: Arc<Links>,
}

/// A checked installation with everything that it needs to run.
pub struct Wired {
    pub plan: Plan,
    pub bus: BusConfig,
    pub kept: Kept,
    pub notifier: Option<Arc<dyn Notifier>>,
}

/// Every adapter, in the order of the reference.
fn kinds(kept: &Kept) -> Vec<Kind> {
    vec![
        xbus_http::kind(kept.hub.clone()),
        xbus_file::kind(),
        xbus_mail::kind(),
        xbus_mail::connection_kind(),
        xbus_mail::imap_kind(),
        xbus_mail::pop3_kind(),
        xbus_amqp::kind(kept.links.clone()),
        xbus_queue::kind(),
        xbus_schedule::kind(),
    ]
}

/// Every adapter, for printing what they take.
pub fn kinds_for_reference() -> Vec<Kind> {
    kinds(&Kept {
        hub: Hub::new(Settings::default()),
        links: Arc::default(),
    })
}

/// Reads and checks a folder.
pub fn load(dir: &Path, mode: Mode) -> (Option<Wired>, Vec<Problem>) {
    load_with(dir, mode, None)
}

/// The same for a bus that runs already: its listeners and connections stay.
pub fn load_with(dir: &Path, mode: Mode, running: Option<Kept>) -> (Option<Wired>, Vec<Problem>) {
    let installation = Installation::read(dir, mode);
    let (settings, limits) = installation.settings(EXTRA, |args| {
        (
            http_settings(args),
            xbus_transform::limits(args.object("scripts", xbus_transform::LIMIT_FIELDS)),
        )
    });
    let kept = running.unwrap_or_else(|| Kept {
        hub: Hub::new(settings),
        links: Arc::default(),
    });
    let engine = xbus_transform::Engine::new(dir.join("transforms"), limits);
    let kinds = kinds(&kept);
    let (loaded, mut problems) = installation.plan(&kinds, EXTRA, &engine);
    let wired = loaded.and_then(|loaded| {
        let notifier = match notifier(&loaded) {
            Ok(notifier) => notifier,
            Err(problem) => {
                problems.push(problem);
                return None;
            }
        };
        Some(Wired {
            plan: loaded.plan,
            bus: loaded.bus,
            kept,
            notifier,
        })
    });
    (wired, problems)
}

fn http_settings(args: Args<'_>) -> Settings {
    let http = args
        .has("http")
        .then(|| args.object("http", LISTENER_FIELDS));
    let listeners: Vec<(String, Args<'_>)> = args
        .entries("listeners")
        .iter()
        .map(|(key, node)| {
            (
                key.name.clone(),
                Args::new(Some(node), LISTENER_FIELDS, args.build),
            )
        })
        .collect();
    xbus_http::settings(http, &listeners, args.object("limits", LIMIT_FIELDS))
}

/// How administrators are told.
pub fn alert_settings(bus: &BusConfig, dir: &Path) -> AlertSettings {
    AlertSettings {
        bus: bus.name.clone(),
        dir: std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned()),
        digest: bus
            .mail
            .as_ref()
            .map_or(std::time::Duration::from_secs(900), |mail| mail.digest),
        enabled: bus.mail.is_some(),
    }
}

fn notifier(loaded: &xbus_config::Loaded) -> Result<Option<Arc<dyn Notifier>>, Problem> {
    let Some(mail) = &loaded.bus.mail else {
        return Ok(None);
    };
    let problem = |message: String| Problem {
        severity: xbus_core::problem::Severity::Error,
        code: "bad-alerts",
        message,
        place: xbus_core::problem::Place::file(Path::new("xbus.yaml")),
        help: Some("name an smtp connection and addresses such as ops@example.com".to_owned()),
    };
    let (_, connection) = loaded
        .connections
        .get(&mail.connection)
        .ok_or_else(|| problem(format!("there is no connection '{}'", mail.connection)))?;
    let mailer =
        xbus_mail::Mailer::new(connection.clone(), &mail.from, &mail.to).map_err(problem)?;
    Ok(Some(Arc::new(FailureMail(mailer))))
}

/// The mail adapter as the core's way to administrators.
struct FailureMail(xbus_mail::Mailer);

impl Notifier for FailureMail {
    fn notify<'a>(&'a self, mail: &'a Mail) -> BoxFuture<'a, Result<(), SendError>> {
        Box::pin(async move {
            let headers = [("X-Xbus-Incident", mail.incident.as_str())];
            self.0.send(&mail.subject, &mail.text, None, &headers).await
        })
    }
}
