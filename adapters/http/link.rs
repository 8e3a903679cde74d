//! A connection to a destination, driven by whoever uses it: request and answer are written and read in
//! the task that waits for them. A task of its own for each connection would cost two more turns and
//! wake-ups a request.
//!
//! hyper's connection and what comes out of it speak through channels in memory. Only the connection is
//! polled in the name of the waiting task; what comes out of it is looked at after each turn of the
//! connection, which is when it may have changed, and need wake nobody ([`crate::quiet`]).
//!
//! An idle link is not driven. What its destination did meanwhile is seen when it is to be used again.
//!
//! Absent: HTTP/2.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::coop::unconstrained;

use crate::quiet::hold;

/// Largest head of an answer.
const MAX_HEAD: usize = 64 * 1024;

/// A connection that one exchange at a time goes over.
pub(crate) struct Link {
    handle: SendRequest<Full<Bytes>>,
    connection: Connection,
}

/// Nothing once the connection has ended.
struct Connection(Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>);

impl Connection {
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.0
            && let Poll::Ready(ended) = connection.as_mut().poll(cx)
        {
            self.0 = None;
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to a destination ended");
            }
        }
    }

    /// Polls something that this connection feeds, and lets the connection feed it.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut fed: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let mut nobody = Context::from_waker(Waker::noop());
        loop {
            self.drive(cx);
            // Where something was taken out and more is awaited, the connection has to go on.
            let (polled, again) = hold(|| fed(&mut nobody));
            if polled.is_ready() || !again {
                return polled;
            }
        }
    }
}

impl Link {
    /// Begins to speak HTTP over a stream.
    ///
    /// # Errors
    /// hyper cannot begin.
    pub(crate) async fn over<T>(stream: T) -> io::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (handle, connection) = http1::Builder::new()
            .max_header_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        Ok(Self {
            handle,
            connection: Connection(Some(Box::pin(connection))),
        })
    }

    /// Whether the exchange before is over, as far as is known.
    pub(crate) fn is_idle(&self) -> bool {
        !self.is_closed() && self.handle.is_ready()
    }

    /// Whether it can take a request now: it is idle, and looking at the connection shows that the
    /// destination has neither closed it nor said anything that it was not asked.
    pub(crate) fn is_ready(&mut self) -> bool {
        self.connection
            .drive(&mut Context::from_waker(Waker::noop()));
        self.is_idle()
    }

    /// Whether it can never take another request.
    pub(crate) fn is_closed(&self) -> bool {
        self.connection.0.is_none() || self.handle.is_closed()
    }

    /// Waits until it can take a request; says whether it then can.
    pub(crate) async fn ready(&mut self) -> bool {
        poll_fn(|cx| {
            self.connection.drive(cx);
            match self.is_closed() || self.is_idle() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
        self.is_idle()
    }

    /// Ends the connection in the way of its protocol: TLS says that nothing more comes.
    pub(crate) async fn end(self) {
        let Self {
            handle,
            mut connection,
        } = self;
        drop(handle);
        poll_fn(|cx| {
            connection.drive(cx);
            match connection.0 {
                Some(_) => Poll::Pending,
                None => Poll::Ready(()),
            }
        })
        .await;
    }

    /// Sends a request and gives the head of its answer. Dropped before its end, the link is of no more
    /// use.
    ///
    /// # Errors
    /// As [`SendRequest::try_send_request`]: with the request, where nothing of it was sent.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>> {
        let Self { handle, connection } = self;
        // Its waits are those of a channel, which a task that has had its turn must not be told to
        // repeat later: nobody would wake it.
        let mut answer = pin!(unconstrained(handle.try_send_request(request)));
        poll_fn(|cx| connection.poll(cx, |nobody| answer.as_mut().poll(nobody))).await
    }

    /// The body of an answer that came over this link.
    pub(crate) fn body(&mut self, incoming: Incoming) -> LinkBody<'_> {
        LinkBody {
            connection: &mut self.connection,
            incoming,
        }
    }
}

/// A body that comes as it is asked for.
pub(crate) struct LinkBody<'a> {
    connection: &'a mut Connection,
    incoming: Incoming,
}

impl Body for LinkBody<'_> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Self {
            connection,
            incoming,
        } = self.get_mut();
        let mut incoming = Pin::new(incoming);
        // What has come already needs no turn of the connection.
        let mut nobody = Context::from_waker(Waker::noop());
        let (polled, _) = hold(|| incoming.as_mut().poll_frame(&mut nobody));
        match polled {
            Poll::Ready(frame) => Poll::Ready(frame),
            Poll::Pending => connection.poll(cx, |nobody| incoming.as_mut().poll_frame(nobody)),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::coop;

    use super::*;

    /// A link, and its destination's end of the stream.
    async fn link(room: usize) -> (Link, DuplexStream) {
        let (ours, theirs) = duplex(room);
        (Link::over(ours).await.unwrap(), theirs)
    }

    fn request(body: Vec<u8>) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body.into()));
        *request.method_mut() = http::Method::POST;
        request
    }

    /// Reads as much as a request with so long a body has at least.
    async fn read(peer: &mut DuplexStream, length: usize) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(peer.read_u8().await.unwrap());
        }
        peer.read_exact(&mut vec![0; length]).await.unwrap();
    }

    async fn answer(link: &mut Link, body: &str) -> String {
        let answer = link.exchange(request(body.into())).await.unwrap();
        let body = link.body(answer.into_body()).collect().await.unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    }

    const SHORT: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    #[tokio::test]
    async fn exchanges_follow_one_another_in_the_task_that_waits() {
        let (mut link, mut peer) = link(100).await;
        assert!(link.is_ready());
        for _ in 0..3 {
            let serve = async {
                read(&mut peer, 5).await;
                let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                peer.write_all(answer).await.unwrap();
                for piece in ["1\r\na\r\n", "3\r\nbcd", "\r\n", "0\r\n", "\r\n"] {
                    tokio::task::yield_now().await;
                    peer.write_all(piece.as_bytes()).await.unwrap();
                }
            };
            let (said, ()) = tokio::join!(answer(&mut link, "hello"), serve);
            assert_eq!(said, "abcd");
            assert!(link.is_ready());
        }
    }

    #[tokio::test]
    async fn a_link_that_was_closed_or_spoken_over_while_idle_is_not_ready() {
        let (mut closed, peer) = link(100).await;
        assert!(closed.is_ready());
        drop(peer);
        assert!(closed.is_idle());
        assert!(!closed.is_ready() && closed.is_closed());

        let (mut used, mut peer) = link(100).await;
        let serve = async {
            read(&mut peer, 1).await;
            peer.write_all(SHORT).await.unwrap();
        };
        tokio::join!(answer(&mut used, "x"), serve);
        assert!(used.is_ready());
        peer.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            .await
            .unwrap();
        assert!(!used.is_ready() && used.is_closed());
    }

    #[tokio::test]
    async fn an_answer_may_come_before_the_request_was_written() {
        let (mut link, mut peer) = link(100).await;
        let long = vec![b'x'; 100_000];
        let early = async {
            read(&mut peer, 0).await;
            peer.write_all(SHORT).await.unwrap();
        };
        let (head, ()) = tokio::join!(link.exchange(request(long)), early);
        let body = link.body(head.unwrap().into_body()).collect().await;
        assert_eq!(body.unwrap().to_bytes(), "ok");
        assert!(!link.is_ready() && !link.is_closed());
        let rest = async { peer.read_exact(&mut vec![0; 100_000]).await };
        let (ready, rest) = tokio::join!(link.ready(), rest);
        assert!(ready && rest.is_ok());
        let serve = async {
            read(&mut peer, 1).await;
            peer.write_all(SHORT).await.unwrap();
        };
        assert_eq!(tokio::join!(answer(&mut link, "x"), serve).0, "ok");
    }

    #[tokio::test]
    async fn an_exchange_that_is_given_up_closes_the_connection() {
        let (mut link, mut peer) = link(100).await;
        {
            let mut exchange = pin!(link.exchange(request(vec![b'x'; 1000])));
            assert!(poll!(exchange.as_mut()).is_pending());
            peer.read_u8().await.unwrap();
        }
        drop(link);
        let mut rest = Vec::new();
        peer.read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() < 1000, "{}", rest.len());
    }

    #[tokio::test]
    async fn a_connection_that_ends_within_the_answer_is_lost() {
        for (said, complete) in [("", false), ("HTTP/1.1 200 OK\r\n\r\nok", true)] {
            let (mut link, mut peer) = link(100).await;
            let serve = async {
                read(&mut peer, 1).await;
                peer.write_all(said.as_bytes()).await.unwrap();
                drop(peer);
            };
            let (head, ()) = tokio::join!(link.exchange(request(b"x".into())), serve);
            match head {
                Err(failure) => assert!(failure.message().is_none() && !complete),
                Ok(head) => {
                    let body = link.body(head.into_body()).collect().await;
                    assert!(complete && body.unwrap().to_bytes() == "ok");
                }
            }
            assert!(!link.is_ready() && link.is_closed());
        }
    }

    #[tokio::test]
    async fn a_wait_may_go_on_in_another_task() {
        let (mut link, mut peer) = link(100).await;
        let mut work = Box::pin(async move { answer(&mut link, "x").await });
        assert!(poll!(work.as_mut()).is_pending());
        let elsewhere = tokio::spawn(work);
        read(&mut peer, 1).await;
        // The other task waits by now.
        tokio::task::yield_now().await;
        peer.write_all(&SHORT[..30]).await.unwrap();
        tokio::task::yield_now().await;
        peer.write_all(&SHORT[30..]).await.unwrap();
        assert_eq!(elsewhere.await.unwrap(), "ok");
    }

    /// tokio has a task pause after so many operations, and wakes it at once to go on.
    #[tokio::test]
    async fn an_answer_is_not_missed_by_a_task_that_has_to_pause() {
        for left in 0..40 {
            let (mut link, mut peer) = link(1000).await;
            let work = tokio::spawn(async move {
                // Up to the moment from which on the answer is there.
                let mut exchange = pin!(link.exchange(request(b"x".into())));
                assert!(poll!(exchange.as_mut()).is_pending());
                read(&mut peer, 1).await;
                peer.write_all(SHORT).await.unwrap();
                tokio::task::yield_now().await;
                let mut used = 0;
                while used + left < 128 && coop::has_budget_remaining() {
                    coop::consume_budget().await;
                    used += 1;
                }
                exchange.await.unwrap().status()
            });
            assert_eq!(work.await.unwrap(), 200, "{left} operations left");
        }
    }

    #[tokio::test]
    async fn an_ended_link_says_so_to_its_destination() {
        let (link, mut peer) = link(100).await;
        link.end().await;
        assert_eq!(peer.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
