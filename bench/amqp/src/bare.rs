//! The bare programs: what can be reached with the same libraries, protocol and guarantees.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions};
use lapin::types::{FieldTable, ShortString};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::Fallible;
use crate::broker::{confirmed, mandatory, name, open, properties};
use crate::log::Log;

type Poster = Client<HttpConnector, Full<Bytes>>;

/// AMQP in, HTTP out. One at a time keeps the queue's order.
pub async fn out(
    amqp: String,
    queue: String,
    prefetch: u16,
    at_once: usize,
    to: Uri,
) -> Fallible<()> {
    let (_connection, channel) = open(&amqp).await?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Poster = Client::builder(TokioExecutor::new()).build(connector);
    channel
        .basic_qos(prefetch, BasicQosOptions::default())
        .await?;
    let mut consumer = channel
        .basic_consume(
            name(&queue)?,
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let places = Arc::new(Semaphore::new(at_once));
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery?;
        if at_once == 1 {
            hand_on(&client, &to, delivery).await?;
            continue;
        }
        let place = places.clone().acquire_owned().await?;
        let (client, to) = (client.clone(), to.clone());
        tokio::spawn(async move {
            if let Err(error) = hand_on(&client, &to, delivery).await {
                eprintln!("{error}");
            }
            drop(place);
        });
    }
    Err("the consumer was cancelled".into())
}

async fn hand_on(client: &Poster, to: &Uri, delivery: Delivery) -> Fallible<()> {
    let request = Request::post(to.clone())
        .header("content-type", "text/plain")
        .body(Full::new(Bytes::from(delivery.data)))?;
    let response = client.request(request).await?;
    let status = response.status();
    response.into_body().collect().await?;
    if !status.is_success() {
        return Err(format!("the destination said {status}").into());
    }
    delivery.acker.ack(BasicAckOptions::default()).await?;
    Ok(())
}

/// Publishes for all callers on one channel.
struct Publisher {
    channel: Channel,
    queue: ShortString,
    /// lapin numbers a message and queues its frames in two steps.
    turn: Mutex<()>,
}

impl Publisher {
    /// `Ok` when the broker has it.
    async fn publish(&self, body: Bytes) -> Fallible<()> {
        let (channel, queue) = (self.channel.clone(), self.queue.clone());
        let mut sent = Box::pin(async move {
            let made = channel.basic_publish("".into(), queue, mandatory(), &body, properties());
            made.await?.await
        });
        // The first poll queues the frames.
        let begun = std::future::poll_fn(|context| {
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            Poll::Ready(sent.as_mut().poll(context))
        });
        let confirmation = match begun.await {
            Poll::Ready(confirmation) => confirmation?,
            Poll::Pending => sent.await?,
        };
        confirmed(confirmation)
    }
}

/// HTTP in, AMQP out; with `log` each message is kept there first.
pub async fn r#in(
    port: u16,
    amqp: String,
    queue: String,
    status: u16,
    log: Option<PathBuf>,
) -> Fallible<()> {
    let log = log.map(|path| Log::open(&path)).transpose()?;
    let (_connection, channel) = open(&amqp).await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let (queue, turn) = (name(&queue)?, Mutex::new(()));
    let publisher = Arc::new(Publisher {
        channel,
        queue,
        turn,
    });
    let status = StatusCode::from_u16(status)?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (publisher, log) = (publisher.clone(), log.clone());
        let answer = service_fn(move |request: Request<Incoming>| {
            let (publisher, log) = (publisher.clone(), log.clone());
            async move {
                let outcome = async {
                    let body = request.into_body().collect().await?.to_bytes();
                    if let Some(log) = log {
                        log.keep(body.clone()).await?;
                    }
                    publisher.publish(body).await
                };
                let mut response = Response::new(Full::new(Bytes::new()));
                *response.status_mut() = match outcome.await {
                    Ok(()) => status,
                    Err(error) => {
                        eprintln!("{error}");
                        StatusCode::BAD_GATEWAY
                    }
                };
                Ok::<_, Infallible>(response)
            }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}
