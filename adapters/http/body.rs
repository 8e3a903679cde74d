//! Bodies as they come over the wire: collected within limits of size and time, and decoded when
//! they are compressed (RFC 9110 section 8.4).

use std::future::poll_fn;
use std::io::Read;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, Sleep};

/// Compressed bodies above this size are decoded away from the threads that serve connections.
const DECODE_ASIDE: usize = 64 * 1024;
/// What a compressed body may always become, whatever its ratio.
const DECODE_FLOOR: u64 = 64 * 1024;

/// A body up to this size is taken out of the buffer that it was read into, which has 8 KiB or more
/// and would be held for as long as the message lives.
const SMALL: usize = 2048;
/// As much room is made because a header announces it, before as much has come.
const BELIEVED: usize = 1 << 20;

/// Why a body could not be had.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// Larger than the limit.
    TooLarge,
    /// Compressed beyond the ratio.
    Ratio,
    /// No byte for too long.
    Slow,
    /// The connection ended before the body did.
    Lost(String),
    /// Its content coding is one that we do not know.
    Coding(String),
    /// Not what its content coding says.
    Corrupt,
}

/// Collects a body of at most `limit` bytes of which some byte comes every `pause`, if there is one.
/// A body that came in one piece is not copied, unless it is so small that it would hold much more
/// than itself.
pub(crate) async fn collect(
    mut body: Incoming,
    limit: u64,
    pause: Option<Duration>,
) -> Result<Bytes, BodyError> {
    if body.size_hint().lower() > limit {
        return Err(BodyError::TooLarge);
    }
    let announced = body.size_hint().exact();
    let mut patience = Patience::of(pause);
    let Some(first) = data(&mut body, &mut patience).await? else {
        return Ok(Bytes::new());
    };
    if first.len() as u64 > limit {
        return Err(BodyError::TooLarge);
    }
    let mut all = BytesMut::new();
    while !body.is_end_stream() {
        let Some(piece) = data(&mut body, &mut patience).await? else {
            break;
        };
        if all.is_empty() {
            all.reserve(room(first.len() + piece.len(), announced));
            all.extend_from_slice(&first);
        }
        let len = all.len() + piece.len();
        if len as u64 > limit {
            return Err(BodyError::TooLarge);
        }
        if len > all.capacity() {
            all.reserve(room(len, announced) - all.len());
        }
        all.extend_from_slice(&piece);
    }
    Ok(match all.is_empty() {
        true if first.len() <= SMALL => Bytes::copy_from_slice(&first),
        true => first,
        false => all.freeze(),
    })
}

/// How large to make the buffer of a body of which `len` bytes have come: as large as was announced,
/// so that it need not move; but what has come bounds what is believed.
fn room(len: usize, announced: Option<u64>) -> usize {
    let wanted = match announced {
        Some(whole) => {
            let whole = usize::try_from(whole).unwrap_or(usize::MAX);
            whole.min(BELIEVED.max(len.saturating_mul(8)))
        }
        None => len.saturating_mul(2),
    };
    wanted.max(len)
}

/// The next piece of data; trailers are passed over.
async fn data(body: &mut Incoming, patience: &mut Patience) -> Result<Option<Bytes>, BodyError> {
    loop {
        let frame = poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => patience.poll(cx).map(|()| Err(BodyError::Slow)),
        });
        match frame.await? {
            None => return Ok(None),
            Some(Err(error)) => return Err(BodyError::Lost(error.to_string())),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    patience.until = None;
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// How long the next piece may take. What is there already needs neither timer nor clock, and all
/// pieces of a body have one timer.
struct Patience {
    pause: Option<Duration>,
    /// When it ends, once something is waited for.
    until: Option<Instant>,
    /// Set for this moment or an earlier one.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    fn of(pause: Option<Duration>) -> Self {
        Self {
            pause,
            until: None,
            timer: None,
        }
    }

    /// Ready when it has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pause) = self.pause else {
            return Poll::Pending;
        };
        let until = *self.until.get_or_insert_with(|| Instant::now() + pause);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
        Poll::Pending
    }
}

/// Decodes a body by its `Content-Encoding`, up to `limit` bytes and `ratio` times its size.
pub(crate) async fn decode(
    coding: &str,
    body: Bytes,
    limit: u64,
    ratio: u64,
) -> Result<Bytes, BodyError> {
    let coding = match Coding::of(coding)? {
        None => return Ok(body),
        Some(coding) => coding,
    };
    if body.is_empty() {
        return Ok(body);
    }
    if body.len() <= DECODE_ASIDE {
        return inflate(coding, &body, limit, ratio);
    }
    tokio::task::spawn_blocking(move || inflate(coding, &body, limit, ratio))
        .await
        .unwrap_or(Err(BodyError::Corrupt))
}

#[derive(Clone, Copy)]
enum Coding {
    Gzip,
    Deflate,
}

impl Coding {
    fn of(text: &str) -> Result<Option<Self>, BodyError> {
        let text = text.trim();
        let is = |name: &str| text.eq_ignore_ascii_case(name);
        if is("gzip") || is("x-gzip") {
            Ok(Some(Coding::Gzip))
        } else if is("deflate") {
            Ok(Some(Coding::Deflate))
        } else if is("identity") || text.is_empty() {
            Ok(None)
        } else {
            Err(BodyError::Coding(text.chars().take(40).collect()))
        }
    }
}

fn inflate(coding: Coding, body: &[u8], limit: u64, ratio: u64) -> Result<Bytes, BodyError> {
    let by_ratio = (body.len() as u64).saturating_mul(ratio).max(DECODE_FLOOR);
    let allowed = limit.min(by_ratio);
    let mut out = Vec::new();
    let read = match coding {
        Coding::Gzip => flate2::bufread::MultiGzDecoder::new(body)
            .take(allowed + 1)
            .read_to_end(&mut out),
        // "deflate" is the zlib format (RFC 9110 section 8.4.1.2); some send it without its wrapper.
        Coding::Deflate if is_zlib(body) => flate2::bufread::ZlibDecoder::new(body)
            .take(allowed + 1)
            .read_to_end(&mut out),
        Coding::Deflate => flate2::bufread::DeflateDecoder::new(body)
            .take(allowed + 1)
            .read_to_end(&mut out),
    };
    if out.len() as u64 > allowed {
        return Err(if by_ratio < limit {
            BodyError::Ratio
        } else {
            BodyError::TooLarge
        });
    }
    read.map(|_| Bytes::from(out))
        .map_err(|_| BodyError::Corrupt)
}

/// RFC 1950 section 2.2: the method is 8, and the first two bytes are a multiple of 31.
fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [first, second, ..]
        if first & 0x0f == 8 && (u16::from(*first) << 8 | u16::from(*second)) % 31 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Bytes {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap().into()
    }

    #[tokio::test]
    async fn compressed_bodies_are_decoded_within_size_and_ratio() {
        let text = b"<order>1</order>".repeat(10);
        let decoded = decode("gzip", gzip(&text), 10_000, 100).await.unwrap();
        assert_eq!(decoded, text);
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(&text).unwrap();
        let decoded = decode("Deflate", zlib.finish().unwrap().into(), 10_000, 100).await;
        assert_eq!(decoded.unwrap(), text);
        let mut raw = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        raw.write_all(&text).unwrap();
        let decoded = decode("deflate", raw.finish().unwrap().into(), 10_000, 100).await;
        assert_eq!(decoded.unwrap(), text);

        let bomb = gzip(&vec![0u8; 5_000_000]);
        assert!(matches!(
            decode("gzip", bomb.clone(), 1000, 100).await,
            Err(BodyError::TooLarge)
        ));
        assert!(matches!(
            decode("gzip", bomb, 100_000_000, 100).await,
            Err(BodyError::Ratio)
        ));
    }

    #[tokio::test]
    async fn what_is_not_compressed_or_not_known_is_said() {
        let same = decode("identity", Bytes::from_static(b"x"), 10, 100).await;
        assert_eq!(same.unwrap(), "x");
        assert!(matches!(
            decode("br", Bytes::from_static(b"x"), 10, 100).await,
            Err(BodyError::Coding(name)) if name == "br"
        ));
        assert!(matches!(
            decode("gzip", Bytes::from_static(b"not gzip"), 10, 100).await,
            Err(BodyError::Corrupt)
        ));
    }

    #[test]
    fn an_announced_length_is_believed_only_so_far() {
        assert_eq!(room(8000, Some(100_000)), 100_000);
        assert_eq!(room(8000, Some(50 << 20)), BELIEVED);
        assert_eq!(room(2 << 20, Some(50 << 20)), 16 << 20);
        assert_eq!(room(9 << 20, Some(50 << 20)), 50 << 20);
        // Chunked bodies announce nothing.
        assert_eq!(room(8000, None), 16_000);
        assert_eq!(room(usize::MAX, Some(u64::MAX)), usize::MAX);
    }

    #[tokio::test]
    async fn each_piece_of_a_body_has_the_whole_pause() {
        let pause = Duration::from_millis(40);
        let mut patience = Patience::of(Some(pause));
        assert!(futures_util::poll!(poll_fn(|cx| patience.poll(cx))).is_pending());
        tokio::time::sleep(pause / 2).await;
        patience.until = None; // a piece came
        let began = Instant::now();
        poll_fn(|cx| patience.poll(cx)).await;
        assert!(began.elapsed() >= pause);
    }
}
