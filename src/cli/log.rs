//! The log on standard error: how events look, and which are shown.

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, format};
use tracing_subscriber::registry::LookupSpan;
use xbus_config::BusConfig;
use xbus_core::{MessageId, current};

/// The two forms of the log.
#[derive(Clone, Copy, clap::ValueEnum, PartialEq)]
pub enum Format {
    /// Lines for people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Begins to log, in the form that the command asks for, or else xbus.yaml.
pub fn start(asked: Option<Format>, bus: &BusConfig) {
    // The AMQP library logs messages that came back with their bodies; what matters of it the bus
    // says itself.
    let level = EnvFilter::try_from_env("XBUS_LOG")
        .unwrap_or_else(|_| EnvFilter::new(format!("{},lapin=off", bus.log_level)));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_writer(std::io::stderr);
    if asked.map_or(bus.log_json, |format| format == Format::Json) {
        let told = Told {
            form: format().json().flatten_event(true),
            tell: as_members,
        };
        builder.json().event_format(told).init();
    } else {
        let ansi = std::io::stderr().is_terminal();
        let told = Told {
            form: format().with_target(false).with_ansi(ansi),
            tell: at_the_end,
        };
        builder.with_ansi(ansi).event_format(told).init();
    }
}

/// What an event has to say of the message that it is about, beside what it says itself.
struct About {
    id: Option<MessageId>,
    route: Option<std::sync::Arc<str>>,
}

impl About {
    fn of(event: &Event<'_>) -> Self {
        let says = |field| event.metadata().fields().field(field).is_some();
        let (id, route) = current::message().unzip();
        Self {
            id: id.filter(|_| !says("id")),
            route: route.filter(|_| !says("route")),
        }
    }
}

/// Events in a form of the library, to which `tell` adds the message.
struct Told<F> {
    form: F,
    tell: fn(&str, &About, &mut Writer<'_>) -> fmt::Result,
}

impl<S, N, F> FormatEvent<S, N> for Told<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::with_capacity(512);
        self.form
            .format_event(context, Writer::new(&mut line), event)?;
        (self.tell)(line.trim_end(), &About::of(event), &mut writer)
    }
}

/// At the end of a line for people.
fn at_the_end(line: &str, about: &About, out: &mut Writer<'_>) -> fmt::Result {
    out.write_str(line)?;
    if let Some(id) = about.id {
        write!(out, " id={id}")?;
    }
    if let Some(route) = &about.route {
        write!(out, " route={route}")?;
    }
    out.write_char('\n')
}

/// As the last members of a JSON object.
fn as_members(line: &str, about: &About, out: &mut Writer<'_>) -> fmt::Result {
    out.write_str(line.strip_suffix('}').unwrap_or(line))?;
    if let Some(id) = about.id {
        write!(out, ",\"id\":\"{id}\"")?;
    }
    if let Some(route) = &about.route {
        write!(out, ",\"route\":{}", serde_json::Value::from(&**route))?;
    }
    out.write_str("}\n")
}
