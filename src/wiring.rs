//! The only file, with what lies below it, that names the core, the store, the transformations and
//! every adapter.

mod alerts;

use std::path::Path;
use std::sync::Arc;

use xbus_amqp::Links;
use xbus_config::{BusConfig, Installation, Mode};
use xbus_core::incident::AlertSettings;
use xbus_core::outbox::Notifier;
use xbus_core::spec::{Args, Field, Type};
use xbus_core::{Kind, Plan, Problem};
use xbus_http::{Hub, LIMIT_FIELDS, LISTENER_FIELDS, Settings};
use xbus_mail::MailAlerts;

use alerts::{ALERTS, Alerts};

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
    Field::new(
        "alerts",
        Type::Object(ALERTS),
        "Who is told of incidents, and when. Left out: nobody.",
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
    pub alerts: AlertSettings,
    pub ways: Vec<Arc<dyn Notifier>>,
}

/// Every adapter, in the order of the reference.
fn kinds(kept: &Kept, alerts: Option<&MailAlerts>) -> Vec<Kind> {
    vec![
        xbus_http::kind(kept.hub.clone()),
        xbus_file::kind(),
        xbus_mail::kind(alerts),
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
    kinds(
        &Kept {
            hub: Hub::new(Settings::default()),
            links: Arc::default(),
        },
        None,
    )
}

/// Reads and checks a folder.
pub fn load(dir: &Path, mode: Mode) -> (Option<Wired>, Vec<Problem>) {
    load_with(dir, mode, None)
}

/// The same for a bus that runs already: its listeners and connections stay.
pub fn load_with(dir: &Path, mode: Mode, running: Option<Kept>) -> (Option<Wired>, Vec<Problem>) {
    let installation = Installation::read(dir, mode);
    // A value that is not there yet (an unset variable) cannot be judged.
    let known = installation.is_known("alerts");
    let (settings, limits, alerts) = installation.settings(EXTRA, |args| {
        let alerts = known.then(|| Alerts::read(args.object("alerts", ALERTS)));
        (
            http_settings(args),
            xbus_transform::limits(args.object("scripts", xbus_transform::LIMIT_FIELDS)),
            alerts.unwrap_or_default(),
        )
    });
    let kept = running.unwrap_or_else(|| Kept {
        hub: Hub::new(settings),
        links: Arc::default(),
    });
    let engine = xbus_transform::Engine::new(dir.join("transforms"), limits);
    let kinds = kinds(&kept, alerts.by_mail());
    let (loaded, problems) = installation.plan(&kinds, EXTRA, &engine);
    let wired = loaded.map(|loaded| Wired {
        plan: loaded.plan,
        alerts: alerts.settings(&loaded.bus, dir),
        ways: alerts.ways(&loaded.connections),
        bus: loaded.bus,
        kept,
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
