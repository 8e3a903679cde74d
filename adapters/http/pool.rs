//! Connections to destinations. Each destination (scheme, host, port and TLS identity) has one
//! pool; a connection is taken out for one request and put back when its answer has been read. It lives
//! on the worker that made it, and only that one takes it again: to use another's would wake its thread
//! for every request.
//!
//! Absent: proxies, HTTP/2.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{HeaderMap, HeaderValue};
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use xbus_core::workers;

/// How long a connection is kept without use: below the five seconds after which common servers
/// close theirs, so that a request seldom meets a connection that is just being closed.
const KEEP_IDLE: Duration = Duration::from_secs(4);
/// Idle connections of a worker to one destination at most.
const KEEP_MOST: usize = 256;
/// Workers that have idle connections of their own; where there are more, some share.
const SHELVES: usize = 16;
/// Largest head of an answer.
const MAX_HEAD: usize = 64 * 1024;

type Handle = SendRequest<Full<Bytes>>;

/// The TLS side of a sender: the files decide which senders share connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsIdentity {
    /// Equal keys: equal files.
    pub(crate) key: String,
    /// Read when the sender was built; nothing: the usual one, made when it is first needed.
    pub(crate) config: Option<Arc<ClientConfig>>,
}

/// Where requests go.
pub(crate) struct Destination {
    key: Key,
    tls: Option<TlsIdentity>,
    /// `host` or `host:port`, as the header Host says it.
    pub(crate) authority: HeaderValue,
    /// The headers that all requests have, of those without a body and of those with one.
    usual: [OnceLock<HeaderMap>; 2],
    idle: [Shelf; SHELVES],
    reaping: AtomicBool,
}

/// Idle connections of one worker, and since when; the one used last is the last.
type Shelf = Mutex<Vec<(Handle, Instant)>>;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    secure: bool,
    host: String,
    port: u16,
    tls: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Destination {
    /// The destination of this name, shared by all that ask for it. `host` is as in a URL: IPv6
    /// addresses stand in brackets.
    pub(crate) fn of(secure: bool, host: &str, port: u16, tls: TlsIdentity) -> Option<Arc<Self>> {
        static ALL: OnceLock<Mutex<HashMap<u64, Vec<Weak<Destination>>>>> = OnceLock::new();
        let key = Key {
            secure,
            host: host.to_ascii_lowercase(),
            port,
            tls: tls.key.clone(),
        };
        let mut hasher = std::hash::DefaultHasher::new();
        key.hash(&mut hasher);
        let usual = if secure { 443 } else { 80 };
        let authority = if port == usual {
            host.to_owned()
        } else {
            format!("{host}:{port}")
        };
        let authority = HeaderValue::from_str(&authority).ok()?;
        let mut all = lock(ALL.get_or_init(Mutex::default));
        let same = all.entry(hasher.finish()).or_default();
        same.retain(|known| known.strong_count() > 0);
        if let Some(known) = same
            .iter()
            .filter_map(Weak::upgrade)
            .find(|known| known.key == key)
        {
            return Some(known);
        }
        let destination = Arc::new(Self {
            key,
            tls: secure.then_some(tls),
            authority,
            usual: Default::default(),
            idle: Default::default(),
            reaping: AtomicBool::new(false),
        });
        same.push(Arc::downgrade(&destination));
        Some(destination)
    }

    /// The headers that all requests have that are sent with (`bodied`) or without a body, made once for all
    /// senders.
    pub(crate) fn usual(
        &self,
        bodied: bool,
        make: impl FnOnce(&HeaderValue) -> HeaderMap,
    ) -> &HeaderMap {
        self.usual[usize::from(bodied)].get_or_init(|| make(&self.authority))
    }

    /// The idle connections of whoever asks.
    fn shelf(&self) -> &Shelf {
        // The remainder is a place of the array.
        &self.idle[workers::number() % SHELVES]
    }

    /// A connection that waits for a request, the latest used first; nothing when there is none.
    pub(crate) async fn take(&self) -> Option<Handle> {
        loop {
            let (mut handle, since) = lock(self.shelf()).pop()?;
            if since.elapsed() > KEEP_IDLE || handle.is_closed() {
                continue;
            }
            if handle.is_ready() {
                return Some(handle);
            }
            // It is still finishing the exchange before; that takes a moment at most.
            if let Ok(Ok(())) =
                tokio::time::timeout(Duration::from_millis(50), handle.ready()).await
            {
                return Some(handle);
            }
        }
    }

    /// Keeps a connection for the next request.
    pub(crate) fn put(self: &Arc<Self>, handle: Handle) {
        if handle.is_closed() {
            return;
        }
        {
            let mut idle = lock(self.shelf());
            if idle.len() < KEEP_MOST {
                idle.push((handle, Instant::now()));
            }
        }
        if !self.reaping.swap(true, SeqCst) {
            tokio::spawn(reap(Arc::downgrade(self)));
        }
    }

    /// Closes what has been idle for too long; says how many are left.
    fn close_unused(&self) -> usize {
        let left = self.idle.iter().map(|shelf| {
            let mut idle = lock(shelf);
            idle.retain(|(handle, since)| since.elapsed() <= KEEP_IDLE && !handle.is_closed());
            idle.len()
        });
        left.sum()
    }

    /// Makes a connection.
    pub(crate) async fn connect(&self) -> io::Result<Handle> {
        let host = self.key.host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, self.key.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => handshake(stream).await,
            Some(tls) => {
                let config = match &tls.config {
                    Some(config) => config.clone(),
                    None => usual_config()?,
                };
                let name = ServerName::try_from(host.to_owned())
                    .map_err(|error| io::Error::other(error.to_string()))?;
                let stream = TlsConnector::from(config).connect(name, stream).await?;
                handshake(Secured {
                    inner: stream,
                    heard: false,
                })
                .await
            }
        }
    }

    /// `http://host:port`, for messages to administrators.
    pub(crate) fn shown(&self) -> String {
        let scheme = if self.key.secure { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.key.host, self.key.port)
    }
}

/// A destination refused the TLS session before it had read anything of a request. In TLS 1.3 a
/// client learns that only when its own side of the handshake is long done (RFC 8446 section 4.4.4).
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionRefused(AlertDescription);

impl std::fmt::Display for SessionRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the TLS session was refused ({:?})", self.0)
    }
}

impl std::error::Error for SessionRefused {}

impl SessionRefused {
    /// The refusal that lies behind an error.
    pub(crate) fn behind(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            let inner = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref);
            if let Some(refused) = inner.and_then(|inner| inner.downcast_ref::<Self>()) {
                return Some(*refused);
            }
            next = error.source();
        }
        None
    }

    /// The same when an error is an alert about the handshake (RFC 8446 section 6.2).
    fn of(error: &io::Error) -> Option<Self> {
        use AlertDescription as Alert;
        match error.get_ref()?.downcast_ref::<rustls::Error>()? {
            rustls::Error::AlertReceived(
                alert @ (Alert::AccessDenied
                | Alert::BadCertificate
                | Alert::CertificateExpired
                | Alert::CertificateRequired
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::DecryptError
                | Alert::HandshakeFailure
                | Alert::InsufficientSecurity
                | Alert::NoCertificate
                | Alert::UnknownCA
                | Alert::UnsupportedCertificate),
            ) => Some(Self(*alert)),
            _ => None,
        }
    }
}

/// A TLS stream that tells a refused session from one that broke later.
struct Secured {
    inner: TlsStream<TcpStream>,
    /// The destination has sent something.
    heard: bool,
}

impl Secured {
    fn explain(&self, error: io::Error) -> io::Error {
        match SessionRefused::of(&error) {
            Some(refused) if !self.heard => io::Error::new(error.kind(), refused),
            _ => error,
        }
    }

    /// A write that fails may be because of an alert that was not read yet.
    fn explain_write(&mut self, cx: &mut Context<'_>, error: io::Error) -> io::Error {
        if self.heard {
            return error;
        }
        let mut room = [0u8; 64];
        let mut rest = ReadBuf::new(&mut room);
        match Pin::new(&mut self.inner).poll_read(cx, &mut rest) {
            Poll::Ready(Err(alert)) if SessionRefused::of(&alert).is_some() => self.explain(alert),
            _ => error,
        }
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.heard |= buf.filled().len() > before;
        polled.map_err(|error| self.explain(error))
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        polled.map_err(|error| self.explain_write(cx, error))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        polled.map_err(|error| self.explain_write(cx, error))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        polled.map_err(|error| self.explain_write(cx, error))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// The TLS side of senders without files of their own: the machine's authorities.
fn usual_config() -> io::Result<Arc<ClientConfig>> {
    static USUAL: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = USUAL.get() {
        return Ok(config.clone());
    }
    let config =
        crate::tls::client_config(None, None).map_err(|error| io::Error::other(error.message))?;
    Ok(USUAL.get_or_init(|| config).clone())
}

async fn handshake<T>(stream: T) -> io::Result<Handle>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (handle, connection) = http1::Builder::new()
        .max_header_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // An async block would hold the connection twice.
    tokio::spawn(connection.map(|ended| {
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection to a destination ended");
        }
    }));
    Ok(handle)
}

/// Closes connections that nobody used, until there are none left to watch.
async fn reap(destination: Weak<Destination>) {
    loop {
        tokio::time::sleep(KEEP_IDLE).await;
        let Some(destination) = destination.upgrade() else {
            return;
        };
        if destination.close_unused() == 0 {
            destination.reaping.store(false, SeqCst);
            // One may have come that saw this task still at work.
            if destination.close_unused() == 0 || destination.reaping.swap(true, SeqCst) {
                return;
            }
        }
    }
}
