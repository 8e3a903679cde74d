//! `xbus run`: the bus itself, from start to a clean stop.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use xbus_config::{BusConfig, Mode};
use xbus_core::adapter::OpenError;
use xbus_core::bus::Bus;
use xbus_core::incident::Incidents;
use xbus_core::problem::Severity;
use xbus_core::stats::RefusedRequests;
use xbus_core::store::Retention;
use xbus_core::workers::{self, Workers};
use xbus_core::{Stop, Store};

use super::log;
use super::output::{self, Failure};
use crate::wiring::{self, Kept, Wired};

/// Enough for the deepest script and document within their limits.
const STACK: usize = 16 * 1024 * 1024;

/// The file in the store's folder in which a running bus says on which addresses it listens, and
/// under which process id.
pub const LISTENING: &str = "listening.json";

/// What `run` takes.
#[derive(clap::Args)]
#[command(
    after_help = "Signals:\n  SIGTERM, SIGINT  stop: receivers first, then what is in flight, then the lanes; a second one ends at once\n  SIGHUP           read the folder again; with an error in it the old routes go on\n\nExamples:\n  xbus run\n  xbus run /srv/bus --log json"
)]
pub struct Args {
    /// The installation folder
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// How to log, on standard error (left out: as xbus.yaml says)
    #[arg(long, value_enum)]
    log: Option<log::Format>,
    /// How long a stop may take for what is in flight, in seconds
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    grace: u64,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    output::finish(start(args), false)
}

fn start(args: &Args) -> Result<(), Failure> {
    let (wired, problems) = wiring::load(&args.dir, Mode::Run);
    let Some(wired) = wired else {
        use std::io::IsTerminal;
        let colour = std::io::stderr().is_terminal();
        eprint!("{}", xbus_config::render(&problems, &args.dir, colour));
        return Err(Failure::told());
    };
    log::start(args.log, &wired.bus);
    for problem in &problems {
        tracing::warn!(place = %problem.place, code = problem.code, "{}", problem.message);
    }
    let no_runtime = |error| Failure::failed(format!("no runtime: {error}"));
    let count = wired.bus.workers;
    let runtime = workers::main(count, STACK).map_err(no_runtime)?;
    let (workers, runtimes) = Workers::start(count, STACK).map_err(no_runtime)?;
    let result = runtime.block_on(serve(args, wired, &workers));
    // What does not end by itself (a hanging file system) must not keep the process.
    for runtime in runtimes.into_iter().chain([runtime]) {
        runtime.shutdown_timeout(Duration::from_millis(100));
    }
    result
}

async fn serve(args: &Args, wired: Wired, workers: &Workers) -> Result<(), Failure> {
    // Before anything else: a signal that comes early must not end the process.
    let mut signals = Signals::new(&args.dir)?;
    let settings = wired.bus.clone();
    let log = open_store(&settings)?;
    let store: Arc<dyn Store> = log.clone();
    let incidents = Arc::new(Incidents::new(store.clone(), wired.alerts, wired.ways));
    report_damage(&log, &incidents);
    drop(log);
    let background = Stop::new();
    let mut tasks = tokio::task::JoinSet::new();
    {
        let (incidents, stop) = (incidents.clone(), background.clone());
        tasks.spawn(async move { incidents.run(stop).await });
    }
    let kept = wired.kept;
    let hub = &kept.hub;
    let http = hub.listen().await.map_err(not_open)?;
    let bus = Bus::new(store.clone(), wired.plan, incidents.clone());
    let ready = Arc::new(AtomicBool::new(false));
    let (admin, serving) = xbus_admin::serve(
        admin_settings(&settings, &ready, hub.refused())?,
        bus.clone(),
        background.clone(),
    )
    .await
    .map_err(not_open)?;
    tasks.spawn(serving);
    if let Err(errors) = bus.start().await {
        for error in &errors {
            tracing::error!("{error}");
        }
        bus.stop(Duration::from_secs(1)).await;
        return Err(Failure::failed(format!(
            "the bus did not start: {}",
            errors
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ")
        )));
    }
    hub.start(workers);
    ready.store(true, SeqCst);
    announce(&settings, admin, &http);
    let mut in_time = signals.wait_for_end(args, &bus, &kept).await;
    ready.store(false, SeqCst);
    tracing::info!("stopping: receivers first, then what is in flight");
    let grace = Duration::from_secs(args.grace);
    in_time &= tokio::select! {
        ended = stop(&bus, hub, grace) => ended,
        () = second_signal() => false,
    };
    background.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(2), async {
        while tasks.join_next().await.is_some() {}
    })
    .await;
    let _ = std::fs::remove_file(listening_file(&settings));
    if in_time {
        tracing::info!("stopped");
        Ok(())
    } else {
        Err(Failure::failed(
            "stopped before everything in flight had ended; what was accepted is kept and goes on at the next start".to_owned(),
        ))
    }
}

async fn stop(bus: &Bus, hub: &xbus_http::Hub, grace: Duration) -> bool {
    let connections = tokio::time::timeout(grace, hub.stop());
    let (connections, bus) = tokio::join!(connections, bus.stop(grace));
    connections.is_ok() && bus
}

fn not_open(error: OpenError) -> Failure {
    Failure::failed(error.message).help(error.help)
}

fn admin_settings(
    settings: &BusConfig,
    ready: &Arc<AtomicBool>,
    refused: Arc<RefusedRequests>,
) -> Result<xbus_admin::Settings, Failure> {
    let listen = settings.admin.listen.parse().map_err(|_| {
        Failure::failed(format!(
            "admin.listen is '{}', which is not an address and a port",
            settings.admin.listen
        ))
        .help("write 127.0.0.1:9090")
    })?;
    Ok(xbus_admin::Settings {
        listen,
        token: settings.admin.token.clone().map(|token| token.0),
        max_body: settings.max_body,
        version: env!("CARGO_PKG_VERSION"),
        refused,
        ready: ready.clone(),
    })
}

fn open_store(settings: &BusConfig) -> Result<Arc<xbus_store::LogStore>, Failure> {
    let options = xbus_store::Options {
        retention: Retention {
            keep: settings.journal.keep,
            max_size: settings.journal.max_size,
        },
        ..xbus_store::Options::default()
    };
    let store = xbus_store::LogStore::open(&settings.store, options)
        .map_err(|error| Failure::failed(format!("{}: {error}", settings.store.display())))?;
    Ok(store)
}

/// What opening found damaged is told; what could be read goes on.
fn report_damage(store: &xbus_store::LogStore, incidents: &Incidents) {
    if store.damage().is_empty() {
        incidents.ended("bus", "store", "damage");
    }
    for damage in store.damage() {
        tracing::error!(damage, "the store is damaged");
        incidents.failed("bus", "store", "damage", damage, None, None);
    }
}

fn listening_file(settings: &BusConfig) -> PathBuf {
    settings.store.join(LISTENING)
}

fn announce(
    settings: &BusConfig,
    admin: std::net::SocketAddr,
    http: &[(String, std::net::SocketAddr)],
) {
    let listeners: serde_json::Map<String, serde_json::Value> = http
        .iter()
        .map(|(name, address)| (name.clone(), address.to_string().into()))
        .collect();
    let listening = serde_json::json!({
        "pid": std::process::id(),
        "admin": admin.to_string(),
        "http": listeners,
    });
    let file = listening_file(settings);
    // On a full disk the bus must run all the same, so that its lanes can drain.
    if let Err(error) = write_whole(&file, &listening.to_string()) {
        tracing::warn!(file = %file.display(), %error, "commands will look for the bus where xbus.yaml says");
    }
    for (name, address) in http {
        tracing::info!(listener = %name, %address, "listening");
    }
    tracing::info!(bus = %settings.name, %admin, "running");
}

/// Writes a file so that nobody reads half of it.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, path)
}

/// The signals that the bus knows, and what xbus.yaml was when it started.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    settings: Option<Vec<u8>>,
}

impl Signals {
    fn new(dir: &Path) -> Result<Self, Failure> {
        let on =
            |kind| signal(kind).map_err(|error| Failure::failed(format!("no signals: {error}")));
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
            settings: std::fs::read(dir.join("xbus.yaml")).ok(),
        })
    }

    /// Waits for a signal to stop; reads the folder again on SIGHUP.
    async fn wait_for_end(&mut self, args: &Args, bus: &Arc<Bus>, kept: &Kept) -> bool {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return true,
                _ = self.interrupt.recv() => return true,
                _ = self.hangup.recv() => {
                    if std::fs::read(args.dir.join("xbus.yaml")).ok() != self.settings {
                        tracing::warn!("xbus.yaml has changed: what it says of listeners, workers, limits, admin, store, journal, alerts and log is taken up at the next start");
                    }
                    reload(args, bus, kept).await;
                }
            }
        }
    }
}

async fn second_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::warn!("a second signal: ending at once");
}

/// Runs the folder as it is now; with an error in it the old routes go on.
async fn reload(args: &Args, bus: &Arc<Bus>, kept: &Kept) {
    let (wired, problems) = wiring::load_with(&args.dir, Mode::Run, Some(kept.clone()));
    for problem in &problems {
        let help = problem.help.as_deref().unwrap_or_default();
        match problem.severity {
            Severity::Error => {
                tracing::error!(place = %problem.place, code = problem.code, help, "{}", problem.message);
            }
            Severity::Warning => {
                tracing::warn!(place = %problem.place, code = problem.code, help, "{}", problem.message);
            }
        }
    }
    let Some(wired) = wired else {
        tracing::error!("not reloaded: the folder has errors; the old routes go on");
        return;
    };
    match bus.reload(wired.plan).await {
        Ok(()) => tracing::info!("reloaded"),
        Err(errors) => {
            for error in errors {
                tracing::error!("not reloaded: {error}; the old routes go on");
            }
        }
    }
}
