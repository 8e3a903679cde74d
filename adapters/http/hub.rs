//! The hub: listeners, their connections, and the routing tables that receivers attach to.
//!
//! [`Hub::listen`] binds, [`Hub::start`] accepts, [`Hub::stop_accepting`] and [`Hub::stop`] end.
//! Connections made between binding and accepting wait in the system's queue. Absent: HTTP/2, and changing listeners while the bus runs.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use futures_util::task::AtomicWaker;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xbus_core::Timestamp;
use xbus_core::adapter::OpenError;
use xbus_core::stats::RefusedRequests;
use xbus_core::workers::{Place, Workers};

use crate::contract::Descriptions;
use crate::door::Door;
use crate::guard::{Guard, Watch, Watched};
use crate::refused::{self, Refusals};
use crate::security::Nonces;
use crate::serve;
use crate::settings::{Limits, ListenerSettings, Settings};
use crate::table::Table;
use crate::tls::{self, Subject};

/// Connections that may wait to be accepted, for callers that all come at once: who finds no room
/// tries again only after a second (RFC 6298 section 2.1). The system has a bound of its own (Linux:
/// net.core.somaxconn, 4096 by default).
const BACKLOG: u32 = 4096;

/// All listeners of the bus.
pub struct Hub {
    listeners: BTreeMap<String, Arc<Listener>>,
    limits: Limits,
    bound: Mutex<Vec<Bound>>,
    connections: Arc<Connections>,
    /// Descriptions in use, so that routes that share one share it.
    pub(crate) descriptions: Descriptions,
    /// What WS-Security has let in, for all routes and beyond reloads.
    pub(crate) nonces: Arc<Nonces>,
    refusals: Arc<Refusals>,
    accepting: CancellationToken,
    tasks: TaskTracker,
}

/// A listener that does not accept yet.
type Bound = (Arc<Listener>, TcpListener, Option<TlsAcceptor>);

pub(crate) struct Listener {
    pub(crate) name: Arc<str>,
    pub(crate) settings: ListenerSettings,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) table: ArcSwap<Table>,
    /// Held while the table is changed.
    changing: Mutex<()>,
}

/// The connections that are open, to be told of the end.
#[derive(Default)]
struct Connections {
    stopping: AtomicBool,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
}

/// What requests of one connection share.
pub(crate) struct Connection {
    pub(crate) listener: Arc<Listener>,
    pub(crate) limits: Limits,
    pub(crate) watch: Arc<Watch>,
    /// The peer's address as text.
    pub(crate) client: String,
    /// Whether the peer's forwarding headers count.
    pub(crate) trusted: bool,
    /// Whom the client's certificate names.
    pub(crate) subject: Option<Subject>,
    all: Arc<Connections>,
    waker: AtomicWaker,
}

impl Connection {
    /// Whether the bus is stopping.
    pub(crate) fn is_stopping(&self) -> bool {
        self.all.stopping.load(Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// A hub with these listeners; nothing is bound yet.
    pub fn new(settings: Settings) -> Arc<Self> {
        let refusals: Arc<Refusals> = Arc::default();
        let listeners = settings
            .listeners
            .into_iter()
            .map(|(name, settings)| {
                let listener = Listener {
                    name: Arc::from(&*name),
                    settings,
                    refusals: refusals.clone(),
                    table: ArcSwap::default(),
                    changing: Mutex::new(()),
                };
                (name, Arc::new(listener))
            })
            .collect();
        Arc::new(Self {
            listeners,
            limits: settings.limits,
            bound: Mutex::new(Vec::new()),
            connections: Arc::default(),
            descriptions: Descriptions::default(),
            nonces: Arc::default(),
            refusals,
            accepting: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// What was refused before a route had it.
    pub fn refused(&self) -> Arc<RefusedRequests> {
        self.refusals.counts().clone()
    }

    /// The names of the listeners.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.listeners.keys().map(String::as_str)
    }

    /// Whether what a listener receives may come over a network unencrypted.
    pub(crate) fn is_open(&self, listener: &str) -> bool {
        self.listeners
            .get(listener)
            .is_some_and(|listener| listener.settings.is_open())
    }

    pub(crate) fn has_client_ca(&self, listener: &str) -> bool {
        self.listeners
            .get(listener)
            .and_then(|listener| listener.settings.tls.as_ref())
            .is_some_and(|tls| tls.client_ca.is_some())
    }

    /// Binds every listener and reads its certificates; gives the addresses by name. Nothing is
    /// accepted before [`Hub::start`]. On an error nothing stays bound. Where routes ask for tokens
    /// of WS-Security it waits up to a second, so that what was made earlier can be told from what
    /// is made from now on.
    pub async fn listen(&self) -> Result<Vec<(String, SocketAddr)>, OpenError> {
        if let Some(wait) = self.nonces.begin(Timestamp::now()) {
            tokio::time::sleep(wait).await;
        }
        let mut bound = Vec::new();
        let mut addresses = Vec::new();
        for (name, listener) in &self.listeners {
            let acceptor = match &listener.settings.tls {
                Some(tls) => Some(TlsAcceptor::from(tls::server_config(tls)?)),
                None => None,
            };
            let address = &listener.settings.listen;
            let cannot = |error: io::Error| not_bound(name, address, &error);
            let socket = bind(address).await.map_err(cannot)?;
            addresses.push((name.clone(), socket.local_addr().map_err(cannot)?));
            bound.push((listener.clone(), socket, acceptor));
        }
        *lock(&self.bound) = bound;
        Ok(addresses)
    }

    /// Begins to accept on everything that [`Hub::listen`] has bound. Call it when the receivers
    /// are attached, so that no caller is told 404 while the bus starts. The connections are served by
    /// `workers`.
    pub fn start(&self, workers: &Workers) {
        for (listener, socket, acceptor) in lock(&self.bound).drain(..) {
            let accepting = Accepting {
                places: Arc::new(Semaphore::new(listener.settings.max_connections)),
                listener,
                limits: self.limits,
                acceptor,
                connections: self.connections.clone(),
                tasks: self.tasks.clone(),
                workers: workers.clone(),
            };
            let stop = self.accepting.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = accepting.run(socket) => {}
                }
            });
        }
    }

    /// Stops accepting. Open connections finish the request that they are at and then end; one that
    /// comes over them all the same, for a route that has stopped, is told to come again later (503).
    pub fn stop_accepting(&self) {
        lock(&self.bound).clear();
        self.accepting.cancel();
        self.connections.stopping.store(true, SeqCst);
        for connection in lock(&self.connections.open).values() {
            connection.waker.wake();
        }
        self.tasks.close();
    }

    /// Stops accepting and returns when all connections have ended. The caller bounds it in time:
    /// dropping the future leaves them to end by themselves.
    pub async fn stop(&self) {
        self.stop_accepting();
        self.tasks.wait().await;
    }

    /// Puts a door into its listener's table.
    pub(crate) fn attach(&self, door: &Arc<Door>) -> Result<(), OpenError> {
        let name = &door.config.listener;
        let listener = self.listeners.get(name).ok_or_else(|| OpenError {
            message: format!("there is no listener '{name}'"),
            help: xbus_core::problem::suggest(name, self.names()),
        })?;
        let _changing = lock(&listener.changing);
        let next = listener.table.load().with(door.clone())?;
        listener.table.store(Arc::new(next));
        Ok(())
    }

    /// Takes a door out of its listener's table.
    pub(crate) fn detach(&self, door: &Arc<Door>) {
        if let Some(listener) = self.listeners.get(&door.config.listener) {
            let _changing = lock(&listener.changing);
            let next = listener.table.load().without(door);
            listener.table.store(Arc::new(next));
        }
    }
}

/// Listens on the first address that a text such as `localhost:8080` stands for and that is free.
async fn bind(address: &str) -> io::Result<TcpListener> {
    let mut last = None;
    for address in lookup_host(address).await? {
        let bound = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }
        .and_then(|socket| {
            // A bus that starts again must not wait for connections of the one before.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        });
        match bound {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other("the name has no address")))
}

fn not_bound(name: &str, address: &str, error: &io::Error) -> OpenError {
    let key = if name == "default" {
        "http.listen".to_owned()
    } else {
        format!("listeners.{name}.listen")
    };
    let help = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process listens there: stop it (`ss -ltnp` names it), or set {key} in xbus.yaml to another port"
        ),
        io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 need a privilege: set {key} in xbus.yaml to a higher port")
        }
        _ => format!("set {key} in xbus.yaml to an address of this machine"),
    };
    OpenError {
        message: format!("cannot listen on {address}: {error}"),
        help,
    }
}

/// One listener that accepts.
struct Accepting {
    listener: Arc<Listener>,
    limits: Limits,
    acceptor: Option<TlsAcceptor>,
    places: Arc<Semaphore>,
    connections: Arc<Connections>,
    tasks: TaskTracker,
    workers: Workers,
}

impl Accepting {
    async fn run(&self, socket: TcpListener) {
        loop {
            let Ok(permit) = self.places.clone().acquire_owned().await else {
                return;
            };
            let accepted = match socket.accept().await {
                Ok((stream, peer)) => self.give(stream, peer, permit),
                Err(error) => Err(error),
            };
            if let Err(error) = accepted {
                // Out of file descriptors, or the peer has gone already.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// Gives a connection to a worker.
    fn give(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> io::Result<()> {
        let _ = stream.set_nodelay(true);
        let Some(place) = self.workers.place() else {
            self.tasks.spawn(self.open(stream, peer, (permit, None)));
            return Ok(());
        };
        let worker = place.runtime().clone();
        // From here on the worker's own epoll watches it.
        let stream = stream.into_std()?;
        let _worker = worker.enter();
        let stream = TcpStream::from_std(stream)?;
        let opened = self.open(stream, peer, (permit, Some(place)));
        self.tasks.spawn_on(opened, &worker);
        Ok(())
    }

    /// The life of one connection, which has its places until then: among those of its listener, and at
    /// a worker.
    fn open(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        places: (OwnedSemaphorePermit, Option<Place>),
    ) -> impl Future<Output = ()> + Send + 'static {
        let acceptor = self.acceptor.clone();
        let listener = self.listener.clone();
        let limits = self.limits;
        let connections = self.connections.clone();
        async move {
            let _places = places;
            match acceptor {
                None => {
                    let connection = connection(listener, limits, peer.ip(), None, &connections);
                    connections.run(stream, connection).await;
                }
                // Apart, so that connections without TLS have no room for its session.
                Some(acceptor) => {
                    Box::pin(secured(
                        acceptor,
                        stream,
                        peer,
                        listener,
                        limits,
                        &connections,
                    ))
                    .await;
                }
            }
        }
    }
}

/// The life of a connection with TLS.
async fn secured(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    listener: Arc<Listener>,
    limits: Limits,
    connections: &Arc<Connections>,
) {
    let handshake = tokio::time::timeout(limits.head_timeout, acceptor.accept(stream)).await;
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        // Somebody looked whether the port is open, and left.
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            tracing::debug!(%peer, "no TLS session came about");
            return;
        }
        failed => {
            let why = match failed {
                Ok(Err(error)) => error.to_string(),
                _ => String::from("the caller did not end its handshake in time"),
            };
            let client = peer.ip().to_canonical().to_string();
            refused::tell_of_tls(&listener.refusals, &listener.name, &client, &why);
            return;
        }
    };
    let (_, session) = stream.get_ref();
    let subject = session
        .peer_certificates()
        .and_then(|chain| Subject::of(chain.first()?));
    let connection = connection(listener, limits, peer.ip(), subject, connections);
    connections.run(stream, connection).await;
}

fn connection(
    listener: Arc<Listener>,
    limits: Limits,
    peer: IpAddr,
    subject: Option<Subject>,
    all: &Arc<Connections>,
) -> Arc<Connection> {
    let trusted = listener
        .settings
        .trusted_proxies
        .iter()
        .any(|network| network.contains(peer));
    Arc::new(Connection {
        listener,
        limits,
        watch: Arc::default(),
        client: peer.to_canonical().to_string(),
        trusted,
        subject,
        all: all.clone(),
        waker: AtomicWaker::new(),
    })
}

impl Connections {
    async fn run<T>(&self, stream: T, connection: Arc<Connection>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let number = self.next.fetch_add(1, Relaxed);
        lock(&self.open).insert(number, connection.clone());
        self.serve(stream, &connection).await;
        lock(&self.open).remove(&number);
    }

    async fn serve<T>(&self, stream: T, connection: &Arc<Connection>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limits = connection.limits;
        let guard = Guard::new(stream, connection.clone());
        let mut builder = http1::Builder::new();
        // No `pipeline_flush`: with it, an answer before the request was read is never flushed.
        builder.max_header_size(limits.header_bytes);
        // Nothing is read while a request is answered, for which hyper would take another buffer. What a
        // route has begun goes on whoever hangs up; who has only ended its own side gets the answer. Both
        // send the same (a FIN), so that a connection keeps its place until its message has ended.
        builder.half_close(true);
        if limits.headers != 100 {
            // 100 is hyper's own limit, for which it needs no allocation.
            builder.max_headers(limits.headers);
        }
        let service = {
            let connection = connection.clone();
            service_fn(move |request| {
                let connection = connection.clone();
                let _answering = connection.watch.answering();
                let answer = serve::answer(connection, request).map(|answer| {
                    Ok::<_, Infallible>(answer.map(|body| Watched { body, _answering }))
                });
                // hyper keeps room for this future as long as the connection is open.
                Box::pin(answer)
            })
        };
        let mut http = pin!(builder.serve_connection(TokioIo::new(guard), service));
        let mut told = false;
        let ended = poll_fn(|cx| {
            if !told {
                connection.waker.register(cx.waker());
                if self.stopping.load(SeqCst) {
                    told = true;
                    http.as_mut().graceful_shutdown();
                }
            }
            http.as_mut().poll(cx)
        })
        .await;
        if let Err(error) = ended {
            tracing::debug!(client = connection.client, %error, "a connection ended early");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub() -> Arc<Hub> {
        let listener = ListenerSettings::at("localhost:0");
        Hub::new(Settings {
            listeners: [("default".to_owned(), listener)].into(),
            limits: Limits::default(),
        })
    }

    #[tokio::test]
    async fn callers_that_come_all_at_once_wait_for_the_bus_without_trying_again() {
        let hub = hub();
        let address = hub.listen().await.unwrap()[0].1;
        let most: usize = std::fs::read_to_string("/proc/sys/net/core/somaxconn")
            .map_or(128, |text| text.trim().parse().unwrap());
        // Nothing is accepted: whoever finds no room is not connected, however often it tries.
        let mut waiting = Vec::new();
        for _ in 0..most.min(500) {
            let stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5));
            waiting.push(stream.unwrap());
        }
    }

    #[tokio::test]
    async fn a_connection_without_tls_has_no_room_for_its_session() {
        let hub = hub();
        let socket = bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(socket.local_addr().unwrap())
            .await
            .unwrap();
        let peer = stream.peer_addr().unwrap();
        let places = Arc::new(Semaphore::new(1));
        let accepting = Accepting {
            listener: hub.listeners["default"].clone(),
            limits: hub.limits,
            acceptor: None,
            places: places.clone(),
            connections: hub.connections.clone(),
            tasks: hub.tasks.clone(),
            workers: Workers::default(),
        };
        let permit = places.acquire_owned().await.unwrap();
        let connection = accepting.open(stream, peer, (permit, None));
        let bytes = size_of_val(&connection);
        assert!(bytes <= 2048, "{bytes} bytes for each connection");
    }
}
