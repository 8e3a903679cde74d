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

mod alerts;
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
use xbus_core::stats::RefusedRequests;
use xbus_core::{Stop, Timestamp};

use error::ApiError;

/// How the admin side is set up.
#[derive(Clone)]
pub struct Settings {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What callers of the API prove themselves with. Nothing (or an empty one): only this machine
    /// gets in, and `listen` must be a loopback address.
    pub token: Option<String>,
    /// Largest message that `send` takes, in bytes.
    pub max_body: u64,
    /// The bus's version, as `status` and the metrics tell it.
    pub version: &'static str,
    /// What was refused before a route had it.
    pub refused: Arc<RefusedRequests>,
    /// True while the receivers are open; the owner of the bus sets it.
    pub ready: Arc<AtomicBool>,
}

/// What every request sees.
pub(crate) struct App {
    pub(crate) bus: Arc<Bus>,
    pub(crate) settings: Settings,
    pub(crate) started: Timestamp,
}

pub(crate) type Shared = Arc<App>;

/// Opens the admin listener. Gives the address it has and a future that serves until `stop`, lets
/// what was asked for end within five seconds, and then resolves. The caller spawns it.
///
/// # Errors
/// The address is taken or not ours, or it can be reached from outside and there is no token.
pub async fn serve(
    mut settings: Settings,
    bus: Arc<Bus>,
    stop: Stop,
) -> Result<(SocketAddr, BoxFuture<'static, ()>), OpenError> {
    settings.token = settings.token.filter(|token| !token.is_empty());
    if settings.token.is_none() && !settings.listen.ip().to_canonical().is_loopback() {
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
        settings,
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
        .route("/incidents", get(alerts::incidents))
        .route("/alerts", get(alerts::ways))
        .route("/alerts/test", post(alerts::test))
        .route("/routes", get(routes::list))
        .route("/routes/{name}/send", post(routes::send))
        .route("/queues", get(queues::list))
        .route("/queues/{name}", get(queues::show))
        .route("/queues/{name}/move", post(queues::carry))
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
