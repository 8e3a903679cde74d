//! TLS by rustls with ring: configurations from PEM files, and who a client certificate names.
//!
//! Absent: switching certificate checks off.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use xbus_core::adapter::OpenError;

use crate::settings::ListenerTls;

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    static PROVIDER: OnceLock<Arc<rustls::crypto::CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(rustls::crypto::ring::default_provider()))
        .clone()
}

fn wrong(message: String, help: &str) -> OpenError {
    OpenError {
        message,
        help: help.to_owned(),
    }
}

fn pem_error(path: &Path, error: &PemError, what: &str) -> OpenError {
    wrong(
        format!("{what} cannot be read from {}: {error}", path.display()),
        "name a file in PEM form that the bus may read",
    )
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, OpenError> {
    let all: Result<Vec<_>, PemError> =
        CertificateDer::pem_file_iter(path).and_then(|found| found.collect());
    let all = all.map_err(|error| pem_error(path, &error, "certificates"))?;
    if all.is_empty() {
        return Err(wrong(
            format!("there is no certificate in {}", path.display()),
            "the file must hold '-----BEGIN CERTIFICATE-----' and what follows",
        ));
    }
    Ok(all)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, OpenError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| pem_error(path, &error, "the private key"))
}

fn roots(path: &Path) -> Result<RootCertStore, OpenError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|error| {
            wrong(
                format!("a certificate in {} is unusable: {error}", path.display()),
                "name the certificate of the authority itself",
            )
        })?;
    }
    Ok(store)
}

/// The TLS side of a listener.
pub(crate) fn server_config(tls: &ListenerTls) -> Result<Arc<ServerConfig>, OpenError> {
    let unusable = |error: &dyn std::fmt::Display| {
        wrong(
            format!(
                "certificate {} and key {} cannot be used: {error}",
                tls.cert.display(),
                tls.key.display()
            ),
            "certificate and key must belong together",
        )
    };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider());
            let verifier = if tls.client_optional {
                verifier.allow_unauthenticated()
            } else {
                verifier
            };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| {
                wrong(
                    format!("client_ca {} cannot be used: {error}", path.display()),
                    "name the certificate of an authority",
                )
            })?)
        }
    };
    let mut config = builder
        .with_single_cert(certificates(&tls.cert)?, private_key(&tls.key)?)
        .map_err(|error| unusable(&error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The TLS side of a sender with files of its own: with `ca` only what it signed is believed.
pub(crate) fn client_config(
    ca: Option<&Path>,
    identity: Option<(&Path, &Path)>,
) -> Result<Arc<ClientConfig>, OpenError> {
    let store = match ca {
        Some(path) => roots(path)?,
        None => native_roots(),
    };
    let unusable = |error: rustls::Error| {
        wrong(
            format!("the client certificate cannot be used: {error}"),
            "cert and key must belong together",
        )
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(store);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(unusable)?,
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The machine's own certificate authorities. They are read once, when they are first needed.
fn native_roots() -> RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS
        .get_or_init(|| {
            let mut store = RootCertStore::empty();
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!(%error, "a certificate store of this machine cannot be read");
            }
            store.add_parsable_certificates(found.certs);
            store
        })
        .clone()
}

/// Whom a certificate names: the subject as RFC 4514 writes it (most specific first, such as
/// `CN=shop,O=Acme`), and its common name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) common_name: Option<String>,
}

impl Subject {
    /// Reads the subject of a certificate that rustls has already verified.
    pub(crate) fn of(certificate: &[u8]) -> Option<Self> {
        // Certificate ::= SEQUENCE { tbs SEQUENCE { [0] version?, serial, algorithm, issuer,
        // validity, subject, … } … }: RFC 5280 section 4.1.
        let (_, certificate, _) = element(certificate)?;
        let (_, mut tbs, _) = element(certificate)?;
        let (tag, _, rest) = element(tbs)?;
        if tag == 0xa0 {
            tbs = rest;
        }
        for _ in 0..4 {
            tbs = element(tbs)?.2;
        }
        let (_, mut names, _) = element(tbs)?;
        let mut parts = Vec::new();
        let mut common_name = None;
        while !names.is_empty() {
            let (_, set, rest) = element(names)?;
            names = rest;
            let (_, pair, _) = element(set)?;
            let (_, oid, value) = element(pair)?;
            let (value_tag, value, _) = element(value)?;
            let text = text(value_tag, value);
            if oid == [0x55, 4, 3] {
                common_name = Some(text.clone());
            }
            parts.push(format!("{}={}", attribute(oid), escape(&text)));
        }
        parts.reverse();
        Some(Self {
            name: parts.join(","),
            common_name,
        })
    }
}

/// Splits the first DER element off: tag, content, rest.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let length = if first < 0x80 {
        usize::from(first)
    } else {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 || rest.len() < count {
            return None;
        }
        let (bytes, after) = rest.split_at(count);
        rest = after;
        bytes
            .iter()
            .fold(0usize, |sum, byte| (sum << 8) | usize::from(*byte))
    };
    (length <= rest.len()).then(|| (tag, &rest[..length], &rest[length..]))
}

fn text(tag: u8, value: &[u8]) -> String {
    match tag {
        // BMPString
        0x1e => {
            let units: Vec<u16> = value
                .chunks_exact(2)
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
                .collect();
            String::from_utf16_lossy(&units)
        }
        _ => String::from_utf8_lossy(value).into_owned(),
    }
}

fn attribute(oid: &[u8]) -> String {
    match oid {
        [0x55, 4, 3] => "CN".into(),
        [0x55, 4, 5] => "serialNumber".into(),
        [0x55, 4, 6] => "C".into(),
        [0x55, 4, 7] => "L".into(),
        [0x55, 4, 8] => "ST".into(),
        [0x55, 4, 10] => "O".into(),
        [0x55, 4, 11] => "OU".into(),
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x19] => "DC".into(),
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x01] => "UID".into(),
        other => other.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_of_a_certificate_is_read() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "Acme, Inc");
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "shop");
        let certificate = params.self_signed(&key).unwrap();
        let subject = Subject::of(certificate.der()).unwrap();
        assert_eq!(subject.name, "CN=shop,O=Acme\\, Inc");
        assert_eq!(subject.common_name.as_deref(), Some("shop"));
        assert_eq!(Subject::of(b"0\x82"), None);
    }
}
