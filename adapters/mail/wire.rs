//! A line-based connection with bounds: no line, literal or silence without a limit.
//!
//! Absent: pipelining, and any knowledge of IMAP or POP3.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::trouble::{Trouble, explained};

/// Longest line in bytes.
const LINE_MOST: usize = 256 * 1024;
/// How much is read at once.
const CHUNK: usize = 16 * 1024;

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What was read of something that has a limit.
pub(crate) enum Bounded {
    /// All of it.
    Whole(Vec<u8>),
    /// It is larger than the limit; it was read and dropped.
    TooLarge(u64),
}

/// A connection to a server.
pub(crate) struct Wire {
    stream: Box<dyn Duplex>,
    /// What was read and not yet taken.
    buffer: BytesMut,
    silence: Duration,
}

impl Wire {
    /// Connects; the server may be silent for `silence` whenever it is to say something.
    pub(crate) async fn connect(host: &str, port: u16, silence: Duration) -> Result<Self, Trouble> {
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(|error| Trouble::lost(format!("cannot connect: {error}")))?;
        let _ = stream.set_nodelay(true);
        Ok(Self {
            stream: Box::new(stream),
            buffer: BytesMut::new(),
            silence,
        })
    }

    /// Goes on encrypted. What came unencrypted ahead of it (RFC 3501 section 11.1, CVE-2021-33515)
    /// is nothing that can be trusted.
    pub(crate) async fn encrypt(
        self,
        host: &str,
        config: Arc<ClientConfig>,
    ) -> Result<Self, Trouble> {
        if !self.buffer.is_empty() {
            return Err(Trouble::lost(
                "the server (or somebody in between) spoke before the encryption began",
            ));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            Trouble::lost(format!("'{host}' is no name that a certificate can have"))
        })?;
        let connecting = TlsConnector::from(config).connect(name, self.stream);
        let stream = timeout(self.silence, connecting)
            .await
            .map_err(|_| Trouble::lost("the encryption did not begin in time"))?
            .map_err(|error| {
                let error = explained(&error.to_string());
                Trouble::lost(format!("no encrypted connection: {error}"))
            })?;
        Ok(Self {
            stream: Box::new(stream),
            buffer: BytesMut::new(),
            silence: self.silence,
        })
    }

    /// Sends all of `bytes`.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        // In pieces, so that a large one is bounded by the server's silence and not by its size.
        for piece in bytes.chunks(CHUNK) {
            timeout(self.silence, self.stream.write_all(piece))
                .await
                .map_err(|_| self.silent())?
                .map_err(|error| gone(&error))?;
        }
        timeout(self.silence, self.stream.flush())
            .await
            .map_err(|_| self.silent())?
            .map_err(|error| gone(&error))
    }

    /// The next line, without its end. Nothing is lost when the future is dropped.
    pub(crate) async fn line(&mut self) -> Result<Vec<u8>, Trouble> {
        self.fill_until_line(LINE_MOST, Some(self.silence)).await?;
        self.take_line()
    }

    /// The same, however long the server is silent.
    pub(crate) async fn line_some_time(&mut self) -> Result<Vec<u8>, Trouble> {
        self.fill_until_line(LINE_MOST, None).await?;
        self.take_line()
    }

    fn take_line(&mut self) -> Result<Vec<u8>, Trouble> {
        let Some(end) = memchr::memchr(b'\n', &self.buffer) else {
            return Err(Trouble::lost("the server sends a line that does not end"));
        };
        let mut line = self.buffer[..end].to_vec();
        self.buffer.advance(end + 1);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(line)
    }

    /// Reads until there is a line end, or more than `most` bytes.
    async fn fill_until_line(
        &mut self,
        most: usize,
        silence: Option<Duration>,
    ) -> Result<(), Trouble> {
        let mut looked = 0;
        while memchr::memchr(b'\n', &self.buffer[looked..]).is_none() {
            looked = self.buffer.len();
            if looked > most {
                return Ok(());
            }
            self.read_some(silence).await?;
        }
        Ok(())
    }

    async fn read_some(&mut self, silence: Option<Duration>) -> Result<(), Trouble> {
        self.buffer.reserve(CHUNK);
        let reading = self.stream.read_buf(&mut self.buffer);
        let read = match silence {
            Some(silence) => match timeout(silence, reading).await {
                Ok(read) => read,
                Err(_) => return Err(self.silent()),
            },
            None => reading.await,
        };
        match read {
            Ok(0) => Err(Trouble::lost("the server closed the connection")),
            Ok(_) => Ok(()),
            Err(error) => Err(gone(&error)),
        }
    }

    /// The next `size` bytes (an IMAP literal), or nothing of them when they are more than `most`.
    pub(crate) async fn literal(&mut self, size: u64, most: u64) -> Result<Bounded, Trouble> {
        let mut kept = Vec::new();
        let mut left = size;
        while left > 0 {
            if self.buffer.is_empty() {
                self.read_some(Some(self.silence)).await?;
            }
            let here = self
                .buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            if size <= most {
                kept.extend_from_slice(&self.buffer[..here]);
            }
            self.buffer.advance(here);
            left -= here as u64;
        }
        Ok(match size <= most {
            true => Bounded::Whole(kept),
            false => Bounded::TooLarge(size),
        })
    }

    /// Lines up to the one that is a single dot, with the dots that were put in front taken away
    /// (RFC 1939 section 3); nothing of them when they are more than `most` bytes.
    pub(crate) async fn until_dot(&mut self, most: u64) -> Result<Bounded, Trouble> {
        let mut kept = Vec::new();
        let mut size = 0u64;
        let mut at_start = true;
        loop {
            self.fill_until_line(CHUNK, Some(self.silence)).await?;
            let end = memchr::memchr(b'\n', &self.buffer).map_or(self.buffer.len(), |at| at + 1);
            let whole = &self.buffer[..end];
            let mut piece = whole;
            if at_start && piece.first() == Some(&b'.') {
                piece = &piece[1..];
                if matches!(piece, b"\r\n" | b"\n") {
                    self.buffer.advance(end);
                    break;
                }
            }
            at_start = whole.ends_with(b"\n");
            size += piece.len() as u64;
            if size <= most {
                kept.extend_from_slice(piece);
            } else {
                kept = Vec::new();
            }
            self.buffer.advance(end);
        }
        Ok(match size <= most {
            true => Bounded::Whole(kept),
            false => Bounded::TooLarge(size),
        })
    }

    fn silent(&self) -> Trouble {
        Trouble::lost(format!("the server was silent for {:?}", self.silence))
    }
}

fn gone(error: &io::Error) -> Trouble {
    Trouble::lost(format!("the connection is lost: {error}"))
}

/// What servers are believed: those that `ca` signed, else those that the machine trusts. Blocks.
pub(crate) fn client_config(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
        Some(path) => {
            let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            let all: Result<Vec<CertificateDer<'static>>, _> =
                CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            for certificate in all.map_err(|error| wrong(&error))? {
                roots.add(certificate).map_err(|error| wrong(&error))?;
            }
            if roots.is_empty() {
                return Err(wrong(&"there is no certificate in it"));
            }
        }
    }
    static PROVIDER: OnceLock<Arc<rustls::crypto::CryptoProvider>> = OnceLock::new();
    let provider = PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider()));
    Ok(ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// A connection over `stream`, for what stands in for a server.
pub(crate) fn of(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Wire {
    Wire {
        stream: Box::new(stream),
        buffer: BytesMut::new(),
        silence: Duration::from_millis(500),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn saying(text: &[u8]) -> Wire {
        let (here, mut there) = tokio::io::duplex(7);
        let text = text.to_vec();
        tokio::spawn(async move {
            let _ = there.write_all(&text).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        });
        of(here)
    }

    fn whole(bounded: Bounded) -> Option<String> {
        match bounded {
            Bounded::Whole(bytes) => Some(String::from_utf8(bytes).unwrap()),
            Bounded::TooLarge(_) => None,
        }
    }

    #[tokio::test]
    async fn lines_literals_and_dots_come_as_they_were_meant() {
        let mut wire = saying(b"one\r\ntwo\nxyz\r\n..a\r\n.\n...\r\n\r\n.\r\nend\r\n").await;
        assert_eq!(wire.line().await.unwrap(), b"one");
        assert_eq!(wire.line().await.unwrap(), b"two");
        assert_eq!(whole(wire.literal(5, 5).await.unwrap()).unwrap(), "xyz\r\n");
        assert_eq!(whole(wire.until_dot(99).await.unwrap()).unwrap(), ".a\r\n");
        assert_eq!(
            whole(wire.until_dot(99).await.unwrap()).unwrap(),
            "..\r\n\r\n"
        );
        assert_eq!(wire.line().await.unwrap(), b"end");
        assert!(
            matches!(wire.line().await, Err(Trouble::Lost(_))),
            "silence"
        );
    }

    #[tokio::test]
    async fn what_is_too_large_is_passed_by() {
        let mut wire = saying(b"0123456789abc\r\n.\r\nnext\r\n0123456789ok\r\n").await;
        assert!(whole(wire.until_dot(12).await.unwrap()).is_none());
        assert_eq!(wire.line().await.unwrap(), b"next");
        assert!(matches!(
            wire.literal(10, 9).await.unwrap(),
            Bounded::TooLarge(10)
        ));
        assert_eq!(wire.line().await.unwrap(), b"ok");
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_trouble() {
        let mut wire = saying(&vec![b'x'; LINE_MOST + 2 * CHUNK]).await;
        assert!(matches!(wire.line().await, Err(Trouble::Lost(_))));
    }
}
