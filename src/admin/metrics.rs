//! Metrics in the OpenMetrics text form, which Prometheus reads. They are made from the counters of
//! the core when they are asked for; nothing is counted twice. Labels are names of routes, targets
//! and queues as the plan and the store have them: nothing of a message can become one.

use std::fmt;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use xbus_core::Timestamp;
use xbus_core::adapter::ConnectionPhase;
use xbus_core::long;
use xbus_core::plan::{Plan, Route, Step};
use xbus_core::stats::{Histogram, LATENCY_BOUNDS};
use xbus_core::store::QueueStatus;

use crate::error::ApiError;
use crate::{App, Shared};

/// `GET /metrics`.
pub(crate) async fn show(State(app): State<Shared>) -> Result<Response, ApiError> {
    let mut registry = Registry::default();
    let queues = app.bus.queues().await;
    let queues = queues.into_iter().map(|queue| queue.status).collect();
    registry.register_collector(Box::new(Scrape { app, queues }));
    let mut text = String::with_capacity(64 * 1024);
    // With a thousand routes some milliseconds.
    long::run(|| encode(&mut text, &registry)).map_err(|_| ApiError::internal())?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

struct Scrape {
    app: Arc<App>,
    queues: Vec<QueueStatus>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, mut out: DescriptorEncoder) -> fmt::Result {
        let plan = self.app.bus.plan();
        routes(&plan, &mut out)?;
        targets(&plan, &mut out)?;
        queues(&self.queues, &mut out)?;
        connections(&plan, &mut out)?;
        refused(&self.app, &mut out)?;
        bus(&self.app, &mut out)
    }
}

fn counter(metric: MetricEncoder, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(metric)
}

fn gauge(metric: MetricEncoder, value: f64) -> fmt::Result {
    ConstGauge::new(value).encode(metric)
}

/// Counts of the core as the encoder wants them: bounds in seconds, sum in seconds.
fn histogram(mut metric: MetricEncoder, value: &Histogram) -> fmt::Result {
    let (counts, micros) = value.snapshot();
    let bounds = LATENCY_BOUNDS
        .iter()
        .map(|bound| *bound as f64 / 1e6)
        .chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
    let total = counts.iter().sum();
    metric.encode_histogram::<[(&str, &str); 0]>(micros as f64 / 1e6, total, &buckets, None)
}

fn routes(plan: &Plan, out: &mut DescriptorEncoder) -> fmt::Result {
    type Read = fn(&Route) -> u64;
    let counters: [(&str, &str, Read); 4] = [
        ("xbus_messages_received", "Messages that came in", |r| {
            r.stats.received.get()
        }),
        (
            "xbus_messages_acknowledged",
            "Messages whose sender was told that all is well",
            |r| r.stats.acknowledged.get(),
        ),
        (
            "xbus_messages_failed",
            "Messages whose sender was told of a fault",
            |r| r.stats.failed.get(),
        ),
        (
            "xbus_messages_filtered",
            "Messages that the route did not want",
            |r| r.stats.filtered.get(),
        ),
    ];
    for (name, help, read) in counters {
        let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
        for route in plan.routes.values() {
            counter(
                family.encode_family(&[("route", &*route.name)])?,
                read(route),
            )?;
        }
    }
    let mut family = out.encode_descriptor(
        "xbus_messages_running",
        "Messages that are on their way through the route",
        None,
        MetricType::Gauge,
    )?;
    for route in plan.routes.values() {
        let running = route.stats.running.get() as f64;
        gauge(family.encode_family(&[("route", &*route.name)])?, running)?;
    }
    let mut family = out.encode_descriptor(
        "xbus_message_duration_seconds",
        "From acceptance to the answer",
        None,
        MetricType::Histogram,
    )?;
    for route in plan.routes.values() {
        histogram(
            family.encode_family(&[("route", &*route.name)])?,
            &route.stats.latency,
        )?;
    }
    Ok(())
}

/// Requests that no route has taken: kinds are the bus's own words.
fn refused(app: &App, out: &mut DescriptorEncoder) -> fmt::Result {
    let mut family = out.encode_descriptor(
        "xbus_requests_refused",
        "HTTP requests that no route has taken",
        None,
        MetricType::Counter,
    )?;
    for (listener, code, count) in app.settings.refused.all() {
        let labels = [("listener", &*listener), ("code", code)];
        counter(family.encode_family(&labels)?, count)?;
    }
    Ok(())
}

/// Steps and targets alike, with the name of their route.
fn all_steps(plan: &Plan) -> impl Iterator<Item = (&str, &Step)> {
    plan.routes.values().flat_map(|route| {
        let targets = route.all_targets().map(|target| &target.step);
        route
            .steps
            .iter()
            .chain(targets)
            .map(|step| (&*route.name, step))
    })
}

fn targets(plan: &Plan, out: &mut DescriptorEncoder) -> fmt::Result {
    type Read = fn(&Step) -> u64;
    let counters: [(&str, &str, Read); 2] = [
        (
            "xbus_target_delivered",
            "Requests of a step or target that were answered well",
            |step| step.stats.delivered.get(),
        ),
        (
            "xbus_target_failed",
            "Attempts of a step or target that failed",
            |step| step.stats.failed.get(),
        ),
    ];
    for (name, help, read) in counters {
        let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (route, step) in all_steps(plan) {
            let labels = [("route", route), ("target", &*step.name)];
            counter(family.encode_family(&labels)?, read(step))?;
        }
    }
    let mut family = out.encode_descriptor(
        "xbus_target_duration_seconds",
        "One attempt of a step or target",
        None,
        MetricType::Histogram,
    )?;
    for (route, step) in all_steps(plan) {
        let labels = [("route", route), ("target", &*step.name)];
        histogram(family.encode_family(&labels)?, &step.stats.latency)?;
    }
    Ok(())
}

fn queues(queues: &[QueueStatus], out: &mut DescriptorEncoder) -> fmt::Result {
    use xbus_core::store::QueueStatus;
    type Read = fn(&QueueStatus) -> f64;
    let gauges: [(&str, &str, Read); 4] = [
        (
            "xbus_queue_depth",
            "Messages that wait, heads included, parked ones not",
            |queue| queue.depth as f64,
        ),
        (
            "xbus_queue_parked",
            "Messages that are set aside",
            |queue| queue.parked as f64,
        ),
        (
            "xbus_queue_blocked_keys",
            "Lanes whose head has failed and is tried again",
            |queue| queue.blocked_keys as f64,
        ),
        (
            "xbus_queue_head_age_seconds",
            "How long the oldest message has waited",
            |queue| {
                let waited = |since: Timestamp| since.until(Timestamp::now()).as_secs_f64();
                queue.head.as_ref().map_or(0.0, |head| waited(head.since))
            },
        ),
    ];
    for (name, help, read) in gauges {
        let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for queue in queues {
            gauge(
                family.encode_family(&[("queue", &*queue.name)])?,
                read(queue),
            )?;
        }
    }
    Ok(())
}

/// Whether each lasting connection can be used, and what it has counted.
fn connections(plan: &Plan, out: &mut DescriptorEncoder) -> fmt::Result {
    if plan.connections.is_empty() {
        return Ok(());
    }
    let gauges: [(&str, &str, ConnectionPhase); 2] = [
        (
            "xbus_connection_up",
            "1 while the connection can be used",
            ConnectionPhase::Up,
        ),
        (
            "xbus_connection_blocked",
            "1 while the other side takes nothing",
            ConnectionPhase::Blocked,
        ),
    ];
    for (name, help, phase) in gauges {
        let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (connection, health) in &plan.connections {
            let is = f64::from(u8::from(health.state().phase == phase));
            gauge(family.encode_family(&[("connection", &**connection)])?, is)?;
        }
    }
    let counted: Vec<_> = plan
        .connections
        .iter()
        .flat_map(|(name, health)| health.counters().into_iter().map(move |c| (name, c)))
        .collect();
    let mut names: Vec<(&str, &str)> = counted
        .iter()
        .map(|(_, (name, help, _))| (*name, *help))
        .collect();
    names.sort_unstable();
    names.dedup();
    for (counter_name, help) in names {
        let name = format!("xbus_connection_{counter_name}");
        let mut family =
            out.encode_descriptor(&name, help.trim_end_matches('.'), None, MetricType::Counter)?;
        for (connection, (_, _, value)) in
            counted.iter().filter(|(_, (n, _, _))| *n == counter_name)
        {
            counter(
                family.encode_family(&[("connection", &***connection)])?,
                *value,
            )?;
        }
    }
    Ok(())
}

fn bus(app: &App, out: &mut DescriptorEncoder) -> fmt::Result {
    let (store, incidents) = (app.bus.store(), app.bus.incidents());
    let mut single = |name: &str, help: &str, value: f64| {
        gauge(
            out.encode_descriptor(name, help, None, MetricType::Gauge)?,
            value,
        )
    };
    single(
        "xbus_store_disk_bytes",
        "Bytes of the store on disk",
        store.disk_bytes() as f64,
    )?;
    let healthy = f64::from(u8::from(store.health().is_ok()));
    single(
        "xbus_store_healthy",
        "1 while the store takes messages",
        healthy,
    )?;
    let open = incidents.open_count() as f64;
    single("xbus_incidents_open", "Failures that are not mended", open)?;
    for (name, help, way) in [
        (
            "xbus_outbox_mails",
            "Failure mails that wait for the mail server",
            "mail",
        ),
        (
            "xbus_outbox_webhooks",
            "Failure notices that wait for the web address",
            "webhook",
        ),
    ] {
        single(name, help, crate::status::waiting(app, way) as f64)?;
    }
    let ready = f64::from(u8::from(crate::status::why_not_ready(app).is_empty()));
    single("xbus_ready", "1 while messages are taken", ready)?;
    single(
        "xbus_process_start_time_seconds",
        "When the bus was started, in seconds since 1970",
        app.started.as_micros() as f64 / 1e6,
    )?;
    if let Some(bytes) = resident_bytes() {
        single(
            "xbus_process_resident_memory_bytes",
            "Resident memory",
            bytes as f64,
        )?;
    }
    let mut build = out.encode_descriptor(
        "xbus_build_info",
        "The bus's version",
        None,
        MetricType::Gauge,
    )?;
    gauge(
        build.encode_family(&[("version", app.settings.version)])?,
        1.0,
    )
}

/// Resident memory from `/proc/self/status` (proc(5)); nothing where there is no such file.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
