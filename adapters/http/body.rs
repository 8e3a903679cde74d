//! Bodies as they come over the wire: collected within limits of size and time, and decoded when
//! they are compressed (RFC 9110 section 8.4).

use std::io::Read;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

/// Compressed bodies above this size are decoded away from the threads that serve connections.
const DECODE_ASIDE: usize = 64 * 1024;
/// What a compressed body may always become, whatever its ratio.
const DECODE_FLOOR: u64 = 64 * 1024;

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

/// Collects a body of at most `limit` bytes of which some byte comes every `pause`. A body that
/// came in one piece is not copied.
pub(crate) async fn collect(
    mut body: Incoming,
    limit: u64,
    pause: Duration,
) -> Result<Bytes, BodyError> {
    if body.size_hint().lower() > limit {
        return Err(BodyError::TooLarge);
    }
    let first = match data(&mut body, pause).await? {
        None => return Ok(Bytes::new()),
        Some(first) => first,
    };
    if first.len() as u64 > limit {
        return Err(BodyError::TooLarge);
    }
    if body.is_end_stream() {
        return Ok(first);
    }
    let Some(second) = data(&mut body, pause).await? else {
        return Ok(first);
    };
    let mut all = BytesMut::with_capacity((first.len() + second.len()) * 2);
    all.extend_from_slice(&first);
    let mut next = Some(second);
    while let Some(piece) = next {
        if (all.len() + piece.len()) as u64 > limit {
            return Err(BodyError::TooLarge);
        }
        all.extend_from_slice(&piece);
        next = data(&mut body, pause).await?;
    }
    Ok(all.freeze())
}

/// The next piece of data; trailers are passed over.
async fn data(body: &mut Incoming, pause: Duration) -> Result<Option<Bytes>, BodyError> {
    loop {
        // What is there already needs no timer.
        let frame = match futures_util::poll!(pin!(body.frame())) {
            Poll::Ready(frame) => frame,
            Poll::Pending => match tokio::time::timeout(pause, body.frame()).await {
                Err(_) => return Err(BodyError::Slow),
                Ok(frame) => frame,
            },
        };
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(BodyError::Lost(error.to_string())),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    return Ok(Some(data));
                }
            }
        }
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
}
