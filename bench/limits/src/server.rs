//! What all of them share: one thread that serves HTTP, and a client with a pool.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime;

use crate::Fallible;

/// A client that keeps its connections.
pub type Http<B> = Client<HttpConnector, B>;

/// One that sends bodies of the type `B`.
pub fn client<B>() -> Http<B>
where
    B: Body + Send,
    B::Data: Send,
{
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

/// Where a destination on this machine listens.
pub fn address(port: u16) -> Fallible<Uri> {
    Ok(format!("http://127.0.0.1:{port}/").parse()?)
}

/// Posts `body` and reads the answer to its end; an answer that is no success is an error.
pub async fn post(
    client: &Http<Full<Bytes>>,
    to: &Uri,
    content_type: &str,
    body: Bytes,
) -> Fallible<Bytes> {
    let request = Request::post(to.clone())
        .header("content-type", content_type)
        .body(Full::new(body))?;
    let response = client.request(request).await?;
    let status = response.status();
    let body = read(response.into_body()).await?;
    if !status.is_success() {
        return Err(format!("the destination said {status}").into());
    }
    Ok(body)
}

/// A body, whole.
pub async fn read(body: Incoming) -> Fallible<Bytes> {
    Ok(body.collect().await?.to_bytes())
}

/// Answers every request by `answer` until the process is ended. An error of it ends the connection, which
/// the load counts.
pub fn serve<A, F, B>(port: u16, answer: A) -> Fallible<()>
where
    A: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Fallible<Response<B>>> + 'static,
    B: Body + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = listen(port)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let answer = answer.clone();
            tokio::task::spawn_local(
                http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)),
            );
        }
    })
}

/// With room for a thousand callers that come at once.
fn listen(port: u16) -> Fallible<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], port)))?;
    Ok(socket.listen(2048)?)
}
