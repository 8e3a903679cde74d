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
        let lines = Json(format().json().flatten_event(true).with_span_list(false));
        builder.json().event_format(lines).init();
    } else {
        let ansi = std::io::stderr().is_terminal();
        let lines = Human(format().with_target(false).with_ansi(ansi));
        builder.with_ansi(ansi).event_format(lines).init();
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

/// Lines for people, with id and route of the message at their end.
struct Human<F>(F);

impl<S, N, F> FormatEvent<S, N> for Human<F>
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
        let mut line = String::with_capacity(256);
        self.0
            .format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(line.trim_end_matches('\n'))?;
        let about = About::of(event);
        if let Some(id) = about.id {
            write!(writer, " id={id}")?;
        }
        if let Some(route) = about.route {
            write!(writer, " route={route}")?;
        }
        writer.write_char('\n')
    }
}

/// JSON objects, with the members `id` and `route`.
struct Json<F>(F);

impl<S, N, F> FormatEvent<S, N> for Json<F>
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
        self.0
            .format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        // All but the brace that ends the object.
        writer.write_str(line.strip_suffix('}').unwrap_or(line))?;
        let about = About::of(event);
        if let Some(id) = about.id {
            write!(writer, ",\"id\":\"{id}\"")?;
        }
        if let Some(route) = about.route {
            write!(writer, ",\"route\":{}", serde_json::Value::from(&*route))?;
        }
        writer.write_str("}\n")
    }
}
