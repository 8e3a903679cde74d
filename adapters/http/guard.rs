//! The guard stands between a socket and hyper: it follows the framing of requests (RFC 9112
//! section 6) without changing a byte, so that ambiguous lengths are seen that hyper would settle
//! silently, and so that slow heads and idle connections end without a timer for each request. What
//! hyper refuses by itself gets a body: the fault that every other refusal has.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use xbus_core::MessageId;

use crate::hub::Connection;
use crate::{refused, shape};

/// As much of a line as matters: a header name and a number.
const LINE_KEPT: usize = 96;
/// How long a caller that was answered early may still send.
const LINGER: Duration = Duration::from_secs(2);
/// As much is read then at most.
const LINGER_BYTES: usize = 4 << 20;

/// What guard and service tell one another about a connection.
#[derive(Default, Debug)]
pub(crate) struct Watch {
    /// Number of the request (from 1) whose length is ambiguous; 0: none.
    ambiguous: AtomicU64,
    /// Requests that the service has begun.
    begun: AtomicU64,
    /// Requests that the service has not answered yet.
    active: AtomicUsize,
    /// Answers that hyper has not taken whole yet, and requests without one.
    unwritten: AtomicUsize,
    /// A request was answered before all of it was read.
    unread: AtomicBool,
}

impl Watch {
    /// The service begins a request; the flag says whether its length is ambiguous.
    pub(crate) fn begin(self: &Arc<Self>) -> (Active, bool) {
        let number = self.begun.fetch_add(1, Relaxed) + 1;
        self.active.fetch_add(1, Relaxed);
        let ambiguous = self.ambiguous.load(Relaxed) == number;
        (Active(self.clone()), ambiguous)
    }

    /// An answer is to come; the value goes with it until all of it is taken.
    pub(crate) fn answering(self: &Arc<Self>) -> Answering {
        self.unwritten.fetch_add(1, Relaxed);
        Answering(self.clone())
    }

    /// The connection ends although the caller may still be sending: it is read on for a while, so
    /// that the answer is not lost in a reset (RFC 9112 section 9.6).
    pub(crate) fn leave_unread(&self) {
        self.unread.store(true, Relaxed);
    }
}

/// A request that is being answered.
pub(crate) struct Active(Arc<Watch>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

/// An answer that is not in hyper's hands yet.
pub(crate) struct Answering(Arc<Watch>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.unwritten.fetch_sub(1, Relaxed);
    }
}

/// The body of an answer, with the note that it is still to be written.
pub(crate) struct Watched {
    pub(crate) body: Full<Bytes>,
    pub(crate) _answering: Answering,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket whose requests are watched.
pub(crate) struct Guard<T> {
    inner: T,
    connection: Arc<Connection>,
    watch: Arc<Watch>,
    framing: Framing,
    head_timeout: Duration,
    idle: Duration,
    /// When the head that is coming in began to come.
    head_since: Instant,
    last_activity: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whom the timer wakes.
    waker: Option<Waker>,
    /// What may still be read after the end; nothing before it.
    linger: Option<usize>,
    /// Requests that had begun when everything was written; nothing while something is on its way.
    settled: Option<u64>,
    /// A refusal in place of hyper's, and how much of it is written.
    refusal: Option<(Vec<u8>, usize)>,
}

impl<T> Guard<T> {
    pub(crate) fn new(inner: T, connection: Arc<Connection>) -> Self {
        let now = Instant::now();
        Self {
            inner,
            watch: connection.watch.clone(),
            framing: Framing::default(),
            head_timeout: connection.limits.head_timeout,
            idle: connection.listener.settings.idle,
            connection,
            head_since: now,
            last_activity: now,
            timer: None,
            waker: None,
            linger: None,
            settled: Some(0),
            refusal: None,
        }
    }

    /// When the connection has been silent for too long, as things stand; nothing while a request
    /// is at work (its body has a limit of its own).
    fn due(&self) -> Option<Instant> {
        if self.framing.in_head() || self.framing.heads == 0 {
            Some(self.head_since + self.head_timeout)
        } else if self.framing.at == At::Start && self.watch.active.load(Relaxed) == 0 {
            Some(self.last_activity + self.idle)
        } else {
            None
        }
    }

    /// Whether the time is up. Leaves the timer set for the next moment to look.
    fn overdue(&mut self, cx: &mut Context<'_>) -> bool {
        let due = self.due();
        // A timer that looks early enough, and wakes this task, makes the clock needless.
        if let (Some(timer), Some(waker)) = (&self.timer, &self.waker)
            && due.is_none_or(|due| timer.deadline() <= due)
            && !timer.is_elapsed()
            && waker.will_wake(cx.waker())
        {
            return false;
        }
        self.waker = Some(cx.waker().clone());
        let now = Instant::now();
        if due.is_some_and(|due| due <= now) {
            return true;
        }
        let look = due.unwrap_or(now + self.head_timeout);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(look)));
        if timer.deadline() > look {
            timer.as_mut().reset(look);
        }
        while timer.as_mut().poll(cx).is_ready() {
            // It was set for an earlier state of things.
            timer
                .as_mut()
                .reset(look.max(Instant::now() + Duration::from_millis(1)));
        }
        false
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Guard<T> {
    /// Takes a refusal that hyper writes by itself. It is one when no answer of the service can be
    /// on its way: all were written and flushed, and no request has begun since.
    fn takes_refusal(&mut self, bytes: &[u8]) -> bool {
        let begun = self.watch.begun.load(Relaxed);
        let own = self.settled == Some(begun) && self.watch.unwritten.load(Relaxed) == 0;
        self.settled = None;
        if own && let Some(status) = refusal_of_hyper(bytes) {
            self.refusal = Some((self.refuse(status), 0));
            return true;
        }
        false
    }

    /// Tells of a refusal, and gives it as bytes.
    fn refuse(&self, status: StatusCode) -> Vec<u8> {
        let (id, fault) = (MessageId::new(), shape::fault_of_head(status));
        refused::tell_of_head(&self.connection, id, status.as_u16(), &fault);
        shape::refusal(status, id, &fault)
    }

    /// Writes the refusal, when there is one.
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((bytes, written)) = &mut self.refusal
            && *written < bytes.len()
        {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &bytes[*written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => *written += count,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The status of a refusal of hyper's, which have no body.
fn refusal_of_hyper(bytes: &[u8]) -> Option<StatusCode> {
    let status = std::str::from_utf8(bytes.strip_prefix(b"HTTP/1.1 ")?.get(..3)?).ok()?;
    let status = StatusCode::from_bytes(status.as_bytes()).ok()?;
    status.is_client_error().then_some(status)
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Pending => {
                if !self.overdue(cx) {
                    return Poll::Pending;
                }
                if self.framing.in_head() {
                    let answer = self.refuse(StatusCode::REQUEST_TIMEOUT);
                    // The caller is not reading what it should: once is enough.
                    let _ = Pin::new(&mut self.inner).poll_write(cx, &answer);
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Ready(Ok(())) // an idle connection simply ends
            }
            Poll::Ready(Ok(())) => {
                let now = Instant::now();
                self.last_activity = now;
                let was_in_head = self.framing.in_head();
                let heads = self.framing.heads;
                let this = &mut *self;
                if let Some(number) = this.framing.feed(&buf.filled()[before..]) {
                    // The first one counts: nothing after it is served.
                    let _ = this
                        .watch
                        .ambiguous
                        .compare_exchange(0, number, Relaxed, Relaxed);
                }
                if this.framing.in_head() && (!was_in_head || this.framing.heads != heads) {
                    this.head_since = now;
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.last_activity = Instant::now();
        if self.takes_refusal(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(self.poll_refusal(cx))?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(cx))?;
        // hyper flushes when it holds nothing more itself.
        if self.watch.unwritten.load(Relaxed) == 0 {
            self.settled = Some(self.watch.begun.load(Relaxed));
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut left = match self.linger {
            Some(left) => left,
            None => {
                ready!(self.poll_refusal(cx))?;
                ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
                if !self.watch.unread.load(Relaxed) {
                    return Poll::Ready(Ok(()));
                }
                self.timer = Some(Box::pin(tokio::time::sleep(LINGER)));
                LINGER_BYTES
            }
        };
        let mut room = [0u8; 4096];
        while left > 0 {
            let mut rest = ReadBuf::new(&mut room);
            match Pin::new(&mut self.inner).poll_read(cx, &mut rest) {
                Poll::Ready(Ok(())) if !rest.filled().is_empty() => {
                    left = left.saturating_sub(rest.filled().len());
                }
                Poll::Ready(_) => break,
                Poll::Pending => {
                    self.linger = Some(left);
                    let over = self
                        .timer
                        .as_mut()
                        .is_none_or(|timer| timer.as_mut().poll(cx).is_ready());
                    if over {
                        break;
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.last_activity = Instant::now();
        // hyper's refusals are one piece.
        if self.takes_refusal(bufs.first().map_or(&[], |piece| piece)) {
            return Poll::Ready(Ok(bufs.iter().map(|piece| piece.len()).sum()));
        }
        ready!(self.poll_refusal(cx))?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// Where in the stream of requests the next byte lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum At {
    /// Before a request line; empty lines are passed over.
    #[default]
    Start,
    /// In a head.
    Head,
    /// In a body with so many bytes to come, or in a chunk with its line end.
    Fixed(u64),
    /// At the size of a chunk.
    ChunkSize,
    /// In a chunk, its line end included.
    Chunk(u64),
    /// In the lines after the last chunk.
    Trailers,
    /// The stream is broken; hyper ends it.
    Broken,
}

/// Follows request framing through whatever pieces the bytes come in.
#[derive(Default, Debug)]
struct Framing {
    at: At,
    line: Vec<u8>,
    /// Heads that have begun.
    heads: u64,
    lengths: u32,
    length: u64,
    chunked: bool,
}

impl Framing {
    fn in_head(&self) -> bool {
        self.at == At::Head || (self.at == At::Start && !self.line.is_empty())
    }

    /// Takes note of what came; gives the number of a request whose length is ambiguous.
    fn feed(&mut self, mut bytes: &[u8]) -> Option<u64> {
        let mut ambiguous = None;
        while !bytes.is_empty() {
            match self.at {
                At::Broken => return ambiguous,
                At::Fixed(left) | At::Chunk(left) => {
                    let take = left.min(bytes.len() as u64);
                    bytes = &bytes[take as usize..];
                    let left = left - take;
                    self.at = match self.at {
                        At::Fixed(_) if left == 0 => At::Start,
                        At::Fixed(_) => At::Fixed(left),
                        _ if left == 0 => At::ChunkSize,
                        _ => At::Chunk(left),
                    };
                }
                _ => match memchr::memchr(b'\n', bytes) {
                    None => {
                        self.keep(bytes);
                        return ambiguous;
                    }
                    Some(end) => {
                        let whole;
                        let line = if self.line.is_empty() {
                            &bytes[..end]
                        } else {
                            self.keep(&bytes[..end]);
                            whole = std::mem::take(&mut self.line);
                            &whole[..]
                        };
                        bytes = &bytes[end + 1..];
                        let line = line.strip_suffix(b"\r").unwrap_or(line);
                        if self.end_of_line(line) {
                            ambiguous.get_or_insert(self.heads);
                        }
                    }
                },
            }
        }
        ambiguous
    }

    fn keep(&mut self, piece: &[u8]) {
        let room = LINE_KEPT.saturating_sub(self.line.len());
        self.line.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    /// Takes note of one line; says whether it ends a head whose length is ambiguous.
    fn end_of_line(&mut self, line: &[u8]) -> bool {
        match self.at {
            At::Start if line.is_empty() => {}
            At::Start => {
                self.heads += 1;
                (self.lengths, self.length, self.chunked) = (0, 0, false);
                self.at = At::Head;
            }
            At::Head if line.is_empty() => {
                self.at = match (self.chunked, self.length) {
                    (true, _) => At::ChunkSize,
                    (false, 0) => At::Start,
                    (false, length) => At::Fixed(length),
                };
                return self.lengths > 1 || (self.chunked && self.lengths > 0);
            }
            At::Head => self.header(line),
            At::ChunkSize => {
                let digits = line
                    .iter()
                    .position(|byte| !byte.is_ascii_hexdigit())
                    .unwrap_or(line.len());
                let size = std::str::from_utf8(&line[..digits])
                    .ok()
                    .and_then(|digits| u64::from_str_radix(digits, 16).ok());
                self.at = match size {
                    Some(0) => At::Trailers,
                    Some(size) => size.checked_add(2).map_or(At::Broken, At::Chunk),
                    None => At::Broken,
                };
            }
            At::Trailers if line.is_empty() => self.at = At::Start,
            _ => {}
        }
        false
    }

    fn header(&mut self, line: &[u8]) {
        let value_of = |name: &[u8]| {
            (line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name))
                .then(|| line[name.len()..].trim_ascii())
        };
        match line.first() {
            Some(b'c' | b'C') => {
                if let Some(value) = value_of(b"content-length:") {
                    self.lengths += 1;
                    self.length = std::str::from_utf8(value)
                        .ok()
                        .and_then(|digits| digits.parse().ok())
                        .unwrap_or(0);
                }
            }
            Some(b't' | b'T') if value_of(b"transfer-encoding:").is_some() => self.chunked = true,
            _ => {}
        }
    }
}

/// Feeds `stream` in pieces of every size, and gives what was ambiguous, where it ended and how many
/// heads there were. Panics when the size of the pieces makes a difference.
pub(crate) fn follow(stream: &[u8]) -> (Option<u64>, At, u64) {
    let mut results = Vec::new();
    for size in [1, 2, 3, 7, stream.len().max(1)] {
        let mut framing = Framing::default();
        let mut ambiguous = None;
        for piece in stream.chunks(size) {
            ambiguous = ambiguous.or(framing.feed(piece));
        }
        results.push((ambiguous, framing.at, framing.heads));
    }
    assert!(
        results.windows(2).all(|pair| pair[0] == pair[1]),
        "{results:?}"
    );
    results[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing_is_followed_through_lengths_chunks_and_pipelines() {
        let fixed = b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(follow(fixed), (None, At::Start, 1));
        let chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
            5;x=y\r\nab\ncd\r\n0\r\nTrailer: x\r\n\r\n";
        assert_eq!(follow(chunked), (None, At::Start, 1));
        let both = [&fixed[..], chunked, b"GET / HTTP/1.1\r\n\r\n", b"GET"].concat();
        assert_eq!(follow(&both), (None, At::Start, 3));
        // A body that looks like headers is a body.
        let body = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n\
            13\r\nContent-Length: 5\r\n\r\n0\r\n\r\n";
        assert_eq!(follow(body), (None, At::Start, 1));
    }

    #[test]
    fn ambiguous_lengths_are_seen() {
        for head in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\ncontent-length: 5",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5\nX: y\nTRANSFER-ENCODING: chunked",
        ] {
            let first = "GET / HTTP/1.1\r\n\r\n";
            let stream = format!("{first}POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n");
            assert_eq!(follow(stream.as_bytes()).0, Some(2), "{head}");
        }
    }
}
