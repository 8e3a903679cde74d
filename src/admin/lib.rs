//! The admin side of a running bus: a JSON API under `/api/v1/`, health under `/health/`, and
//! metrics for Prometheus under `/metrics`. It listens apart from the routes' own listeners.
//!
//! Who gets in ([`guard`]):
//!
//! | path | without a token | with a token |
//! |---|---|---|
//! | `/health/*` | everybody | everybody |
//! | `/metrics` | this machine | this machine, others with the token |
//! | `/api/v1/*` | this machine | whoever has the token |
//!
//! Absent on purpose: HTML of any kind, TLS (put a proxy in front where the network is not
//! trusted), and anything that changes routes: those are files.

mod error;
mod guard;
mod listener;
mod messages;
mod metrics;
mod queues;
mod routes;
mod status;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use futures_util::future::BoxFuture;
use xbus_core::adapter::OpenError;
use xbus_core::bus::Bus;
use xbus_core::spec::Secret;
use xbus_core::{Stop, Timestamp};

use error::ApiError;

/// The largest message that `send` takes, in bytes.
const MAX_BODY: u64 = 64 << 20;

/// How the admin side is set up.
#[derive(Clone)]
pub(crate) struct Settings {
    /// Where it listens; port 0 takes a free one.
    pub(crate) listen: SocketAddr,
    /// What callers of the API prove themselves with. Nothing: only this machine gets in, and
    /// `listen` must be a loopback address.
    pub(crate) token: Option<Secret>,
    /// Largest message that `send` takes, in bytes.
    pub(crate) max_body: u64,
    /// True while the receivers are open; the owner of the bus sets it.
    pub(crate) ready: Arc<AtomicBool>,
}

/// What every request sees.
pub(crate) struct App {
    pub(crate) bus: Arc<Bus>,
    pub(crate) settings: Settings,
    pub(crate) started: Timestamp,
}

pub(crate) type Shared = Arc<App>;

/// Opens the admin listener at `listen`, an address and a port (0 takes a free one). Gives the
/// address it has and a future that serves until `stop`, lets what was asked for end within five
/// seconds, and then resolves; the caller spawns it. `ready` is true while the receivers are open.
///
/// # Errors
/// `listen` is no address, it is taken or not ours, or it can be reached from outside and there is
/// no token.
pub async fn serve(
    listen: &str,
    token: Option<Secret>,
    bus: Arc<Bus>,
    ready: Arc<AtomicBool>,
    stop: Stop,
) -> Result<(SocketAddr, BoxFuture<'static, ()>), OpenError> {
    let listen = listen.parse().map_err(|_| OpenError {
        message: format!("admin.listen is '{listen}', which is not an address and a port"),
        help: String::from("write 127.0.0.1:9090, or 0.0.0.0:9090 for every interface"),
    })?;
    let settings = Settings {
        listen,
        token,
        max_body: MAX_BODY,
        ready,
    };
    serve_with(settings, bus, stop).await
}

async fn serve_with(
    settings: Settings,
    bus: Arc<Bus>,
    stop: Stop,
) -> Result<(SocketAddr, BoxFuture<'static, ()>), OpenError> {
    let token = settings.token.as_ref().filter(|token| !token.0.is_empty());
    if token.is_none() && !settings.listen.ip().to_canonical().is_loopback() {
        return Err(OpenError {
            message: format!(
                "the admin listener {} can be reached from outside and has no token",
                settings.listen
            ),
            help: String::from(
                "set admin.token in xbus.yaml, or let admin.listen be 127.0.0.1:9090",
            ),
        });
    }
    let (listener, address) = listener::bind(settings.listen).await?;
    let app = Arc::new(App {
        bus,
        settings: Settings {
            token: token.cloned(),
            ..settings
        },
        started: Timestamp::now(),
    });
    Ok((
        address,
        Box::pin(listener::run(listener, router(app), stop)),
    ))
}

fn router(app: Shared) -> Router {
    let api = Router::new()
        .route("/status", get(status::status))
        .route("/incidents", get(status::incidents))
        .route("/routes", get(routes::list))
        .route("/routes/{name}/send", post(routes::send))
        .route("/queues", get(queues::list))
        .route("/queues/{name}", get(queues::show))
        .route("/queues/{name}/{action}", post(queues::act))
        .route("/messages", get(messages::list))
        .route("/messages/{id}", get(messages::show))
        .route("/messages/{id}/replay", post(messages::replay))
        .route("/messages/{id}/resolve", post(messages::resolve))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(app.clone(), guard::api));
    let metrics = Router::new()
        .route("/metrics", get(metrics::show))
        .layer(from_fn_with_state(app.clone(), guard::metrics));
    Router::new()
        .nest("/api/v1", api)
        .merge(metrics)
        .route("/health/live", get(status::live))
        .route("/health/ready", get(status::ready))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(app)
}

async fn no_such_path(uri: http::Uri) -> ApiError {
    ApiError::not_found(format!("there is nothing at {}", uri.path()))
}

async fn no_such_method(method: http::Method, uri: http::Uri) -> ApiError {
    ApiError::new(
        http::StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} cannot be used with {}", uri.path()),
    )
}
