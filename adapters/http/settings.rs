//! What xbus.yaml says of HTTP: the listeners and the limits that requests are held to.
//!
//! Absent: what a single route says (see `receiver`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use xbus_core::spec::{Args, Field, Type};

use crate::tls;

/// The keys of `http:` and of each entry of `listeners:` in xbus.yaml.
pub static LISTENER_FIELDS: &[Field] = &[
    Field::new(
        "listen",
        Type::Text,
        "Address and port, such as `127.0.0.1:8080` or `[::]:8080`. Port 0 takes a free one.",
    )
    .default("127.0.0.1:8080"),
    Field::new(
        "tls",
        Type::Object(TLS_FIELDS),
        "Makes the listener speak HTTPS (TLS 1.2 and 1.3).",
    ),
    Field::new(
        "trusted_proxies",
        Type::OneOrMany(&Type::Text),
        "Networks (`10.0.0.0/8`) whose X-Forwarded-* headers count. From anybody else they are dropped.",
    ),
    Field::new(
        "max_connections",
        Type::Count(1, 1_000_000),
        "Connections at once; further ones wait until one ends. That of a caller who has hung up ends with its message.",
    )
    .default("10000"),
    Field::new(
        "idle",
        Type::Duration,
        "How long a connection may stay open between two requests.",
    )
    .default("75s"),
];

static TLS_FIELDS: &[Field] = &[
    Field::new(
        "cert",
        Type::Path,
        "The certificate chain (PEM), the server's own certificate first.",
    )
    .required(),
    Field::new("key", Type::Path, "The private key (PEM).").required(),
    Field::new(
        "client_ca",
        Type::Path,
        "Certificates (PEM) of those who may sign client certificates.",
    ),
    Field::new(
        "client_auth",
        Type::Choice(&["required", "optional"]),
        "With `client_ca`: whether a caller without a certificate is let in at all.",
    )
    .default("required"),
];

/// The keys of `limits:` in xbus.yaml.
pub static LIMIT_FIELDS: &[Field] = &[
    Field::new(
        "head_timeout",
        Type::Duration,
        "Within how long the head of a request must have come.",
    )
    .default("10s"),
    Field::new(
        "body_pause",
        Type::Duration,
        "The longest time without a byte of a request's body.",
    )
    .default("30s"),
    Field::new(
        "headers",
        Type::Count(1, 10_000),
        "Headers of a request, and parameters of its query.",
    )
    .default("100"),
    Field::new(
        "header_bytes",
        Type::Size,
        "Size of a request's head: request line and headers together.",
    )
    .default("64KiB"),
    Field::new(
        "xml_depth",
        Type::Count(1, 100_000),
        "Elements inside one another in a received XML document.",
    )
    .default("256"),
    Field::new(
        "xml_attributes",
        Type::Count(1, 1_000_000),
        "Attributes of one element in a received XML document.",
    )
    .default("1000"),
    Field::new(
        "ratio",
        Type::Count(1, 1_000_000),
        "How many times larger than what came a gzip or deflate body may become.",
    )
    .default("100"),
];

/// Everything that the hub is told.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The listeners by name; `default` is the one of `http:`.
    pub listeners: BTreeMap<String, ListenerSettings>,
    /// The limits.
    pub limits: Limits,
}

/// One listener.
#[derive(Clone, Debug)]
pub struct ListenerSettings {
    /// Address and port as written.
    pub listen: String,
    /// HTTPS, when set.
    pub tls: Option<ListenerTls>,
    /// Whose forwarding headers count.
    pub trusted_proxies: Arc<[Network]>,
    /// Connections at once.
    pub max_connections: usize,
    /// Time between two requests of a connection.
    pub idle: Duration,
}

impl ListenerSettings {
    /// A plain listener with the usual limits.
    pub fn at(listen: impl Into<String>) -> Self {
        Self {
            listen: listen.into(),
            tls: None,
            trusted_proxies: Arc::from([]),
            max_connections: 10_000,
            idle: Duration::from_secs(75),
        }
    }
}

impl ListenerSettings {
    /// Whether what it receives may come over a network unencrypted.
    pub(crate) fn is_open(&self) -> bool {
        let host = self.listen.rsplit_once(':').map_or("", |(host, _)| host);
        self.tls.is_none() && !is_loopback(host)
    }
}

/// Whether a host (an address or a name, IPv6 in brackets) is this machine alone.
pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// HTTPS of a listener; the files are read by [`crate::Hub::listen`].
#[derive(Clone, Debug)]
pub struct ListenerTls {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Who may sign client certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether callers without a certificate are let in.
    pub client_optional: bool,
}

/// What a request may be at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for the head.
    pub head_timeout: Duration,
    /// Longest pause in a body.
    pub body_pause: Duration,
    /// Number of headers.
    pub headers: usize,
    /// Bytes of the head.
    pub header_bytes: usize,
    /// Depth of an XML document.
    pub xml_depth: usize,
    /// Attributes of one element.
    pub xml_attributes: usize,
    /// Growth of a compressed body.
    pub ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(10),
            body_pause: Duration::from_secs(30),
            headers: 100,
            header_bytes: 64 * 1024,
            xml_depth: 256,
            xml_attributes: 1000,
            ratio: 100,
        }
    }
}

/// Reads `limits:` ([`LIMIT_FIELDS`]).
pub fn limits(args: Args<'_>) -> Limits {
    let usual = Limits::default();
    let count = |name, otherwise| args.count(name).unwrap_or(otherwise as u64) as usize;
    Limits {
        head_timeout: args.duration("head_timeout").unwrap_or(usual.head_timeout),
        body_pause: args.duration("body_pause").unwrap_or(usual.body_pause),
        headers: count("headers", usual.headers),
        header_bytes: args
            .size("header_bytes")
            .map_or(usual.header_bytes, |size| {
                size.clamp(8192, 16 << 20) as usize
            }),
        xml_depth: count("xml_depth", usual.xml_depth),
        xml_attributes: count("xml_attributes", usual.xml_attributes),
        ratio: args.count("ratio").unwrap_or(usual.ratio),
    }
}

/// Reads one listener ([`LISTENER_FIELDS`]): `http:` itself, or an entry of `listeners:`. What is
/// wrong is reported; the certificate files are read once here, so that `check` says what `run` would.
pub fn listener(args: Args<'_>) -> ListenerSettings {
    let listen = args.text("listen").unwrap_or_default();
    if !is_address(&listen) {
        args.build.problems.error(
            &args.place("listen"),
            "bad-value",
            format!("'{listen}' is not an address to listen on"),
            "write HOST:PORT, such as 127.0.0.1:8080 or [::]:8080",
        );
    }
    let tls = args.has("tls").then(|| listener_tls(args));
    let mut networks = Vec::new();
    for node in args.items("trusted_proxies") {
        let text = node.text().unwrap_or_default();
        match Network::parse(text) {
            Some(network) => networks.push(network),
            None => args.build.problems.error(
                &node.place,
                "bad-value",
                format!("'{text}' is not a network"),
                "write an address or ADDRESS/BITS, such as 10.0.0.0/8 or ::1",
            ),
        }
    }
    ListenerSettings {
        listen,
        tls,
        trusted_proxies: networks.into(),
        max_connections: args.count("max_connections").unwrap_or(10_000) as usize,
        idle: args.duration("idle").unwrap_or(Duration::from_secs(75)),
    }
}

fn listener_tls(args: Args<'_>) -> ListenerTls {
    let inner = args.object("tls", TLS_FIELDS);
    let tls = ListenerTls {
        cert: inner.path("cert").unwrap_or_default(),
        key: inner.path("key").unwrap_or_default(),
        client_ca: inner.path("client_ca"),
        client_optional: inner.text("client_auth").as_deref() == Some("optional"),
    };
    if inner.has("cert")
        && inner.has("key")
        && let Err(error) = tls::server_config(&tls)
    {
        args.build
            .problems
            .error(&args.place("tls"), "bad-tls", error.message, error.help);
    }
    tls
}

/// Builds the settings from xbus.yaml: `http` becomes the listener `default`, `listeners` are the
/// named ones. Without `http` the default listener listens on 127.0.0.1:8080, unless there are
/// named ones and none of them is called `default`.
pub fn settings(
    http: Option<Args<'_>>,
    listeners: &[(String, Args<'_>)],
    limit: Args<'_>,
) -> Settings {
    let mut all = BTreeMap::new();
    for (name, args) in listeners {
        all.insert(name.clone(), listener(*args));
    }
    if let Some(args) = http {
        if all.insert("default".into(), listener(args)).is_some() {
            args.build.problems.error(
                &args.place("listen"),
                "duplicate-name",
                "there is a listener 'default' beside http:",
                "http: is the listener 'default': give the other one another name",
            );
        }
    } else if all.is_empty() {
        all.insert("default".into(), ListenerSettings::at("127.0.0.1:8080"));
    }
    Settings {
        listeners: all,
        limits: limits(limit),
    }
}

fn is_address(text: &str) -> bool {
    match text.rsplit_once(':') {
        Some((host, port)) => {
            !host.is_empty()
                && (!host.contains(':') || host.starts_with('['))
                && port.parse::<u16>().is_ok()
        }
        None => false,
    }
}

/// A range of addresses, as CIDR writes it (RFC 4632).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Network {
    address: u128,
    bits: u32,
}

impl Network {
    /// Reads `10.0.0.0/8`, `::1/128` or a single address.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().ok()?;
        let (own, offset) = match address {
            IpAddr::V4(_) => (32, 96),
            IpAddr::V6(_) => (128, 0),
        };
        let bits = bits.unwrap_or(own);
        (bits <= own).then(|| Self {
            address: number(address),
            bits: bits + offset,
        })
    }

    /// Whether `address` lies in it. IPv4 addresses in their IPv6 form count as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let differing = self.address ^ number(address);
        self.bits == 0 || differing >> (128 - self.bits) == 0
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses() {
        let contains = |network: &str, address: &str| {
            Network::parse(network)
                .unwrap()
                .contains(address.parse().unwrap())
        };
        assert!(contains("10.0.0.0/8", "10.2.3.4"));
        assert!(contains("10.0.0.0/8", "::ffff:10.2.3.4"));
        assert!(!contains("10.0.0.0/8", "11.2.3.4"));
        assert!(contains("::1", "::1") && !contains("::1", "::2"));
        assert!(contains("0.0.0.0/0", "8.8.8.8") && !contains("0.0.0.0/0", "2001:db8::1"));
        assert!(Network::parse("10.0.0.0/33").is_none() && Network::parse("acme").is_none());
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["127.0.0.1:8080", "[::]:0", "localhost:80", "0.0.0.0:65535"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["8080", ":8080", "::1:80", "localhost:http", "a:65536", ""] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
