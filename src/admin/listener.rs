//! The admin listener: HTTP/1.1 with everything bounded (connections, request heads, the end).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower_service::Service;
use xbus_core::Stop;
use xbus_core::adapter::OpenError;

/// At most so many connections at once; further ones wait to be accepted.
const CONNECTIONS: usize = 256;
/// How long a request head may take to come in, keep-alive included.
const HEAD: Duration = Duration::from_secs(30);
/// How long running requests have after `stop`.
const GRACE: Duration = Duration::from_secs(5);

/// Who is at the other end; an extension of each request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

pub(crate) async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), OpenError> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok::<_, std::io::Error>((listener, address))
    };
    bound.await.map_err(|error| OpenError {
        message: format!("the admin listener cannot open {address}: {error}"),
        help: String::from(
            "set admin.listen in xbus.yaml to a free address; another bus may be running here",
        ),
    })
}

/// Serves until `stop`.
pub(crate) async fn run(listener: TcpListener, router: Router, stop: Stop) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut open = JoinSet::new();
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = open.join_next(), if !open.is_empty() => {}
            (place, accepted) = accept => match accepted {
                Ok((stream, peer)) => {
                    let serve = connection(stream, peer, router.clone(), stop.clone());
                    open.spawn(async move {
                        serve.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, mostly: the next try is not sooner than this.
                    tracing::warn!(%error, "the admin listener could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    let ended = async { while open.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(GRACE, ended).await;
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, stop: Stop) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let answer = router.clone().call(request.map(Body::new));
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "an admin connection ended early");
    }
}
