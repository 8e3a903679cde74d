//! What xbus.yaml says of a connection: address, credentials, limits and what is to be declared.
//!
//! Absent: files. They are read when the connection is made.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use xbus_core::secrets;
use xbus_core::spec::{Args, Field, Secret, Type};

use crate::topology::{self, Topology};

/// What can stand under `amqp` of a connection.
pub(crate) const FIELDS: &[Field] = &[
    Field::new(
        "url",
        Type::Text,
        "`amqp://USER:PASSWORD@HOST:PORT/VHOST`, or `amqps:` for TLS. Left out: user and password \
         `guest`, port 5672 or 5671, virtual host `/` (written `%2f`).",
    )
    .required(),
    Field::new(
        "user",
        Type::Text,
        "Who logs in, where `url` does not say it.",
    ),
    Field::new("password", Type::Secret, "The password of `user`."),
    Field::new(
        "heartbeat",
        Type::Duration,
        "In whole seconds. The broker gives a node up that it has not heard of for twice as long, \
         and the bus does the same with the broker.",
    )
    .default("5s"),
    Field::new(
        "timeout",
        Type::Duration,
        "How long connecting may take, encryption and login included.",
    )
    .default("10s"),
    Field::new(
        "tls",
        Type::Object(TLS),
        "Certificates of an `amqps` address.",
    ),
    Field::new(
        "renew_after",
        Type::Duration,
        "A message that is held for longer is given back to the head of its queue and taken again. \
         Set it below the broker's `consumer_timeout`, which is 30 minutes unless changed.",
    )
    .default("25m"),
    Field::new(
        "exchanges",
        Type::List(&Type::Object(topology::EXCHANGE)),
        "Exchanges that are declared when the connection is made.",
    ),
    Field::new(
        "queues",
        Type::List(&Type::Object(topology::QUEUE)),
        "Queues that are declared and bound when the connection is made.",
    ),
];

/// What can stand under `tls`.
const TLS: &[Field] = &[
    Field::new(
        "ca",
        Type::File,
        "Certificates (PEM) that the broker's is checked against, instead of the system's.",
    ),
    Field::new(
        "cert",
        Type::File,
        "The bus's own certificate (PEM), for brokers that ask for one.",
    ),
    Field::new("key", Type::File, "The private key of `cert` (PEM)."),
];

/// What a connection is made with. Two that are equal are the same connection.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// The connection's name in xbus.yaml.
    pub(crate) name: Arc<str>,
    pub(crate) bus: Arc<str>,
    pub(crate) node: Arc<str>,
    pub(crate) address: Address,
    pub(crate) user: String,
    pub(crate) password: Secret,
    /// In whole seconds, at least 1.
    pub(crate) heartbeat: Duration,
    pub(crate) timeout: Duration,
    pub(crate) tls: TlsFiles,
    pub(crate) renew_after: Duration,
    pub(crate) topology: Topology,
}

/// Where the broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) secure: bool,
    /// IPv6 addresses without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) vhost: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "amqps" } else { "amqp" };
        let (host, port) = (&self.host, self.port);
        match host.contains(':') {
            true => write!(f, "{scheme}://[{host}]:{port}")?,
            false => write!(f, "{scheme}://{host}:{port}")?,
        }
        match self.vhost.as_str() {
            "/" => Ok(()),
            vhost => write!(f, "/{vhost}"),
        }
    }
}

/// Files of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

/// An address as written, with the credentials in it.
struct Url {
    address: Address,
    user: Option<String>,
    password: Option<String>,
}

impl Url {
    /// Reads an AMQP URI as RabbitMQ defines it (<https://www.rabbitmq.com/docs/uri-spec>), without
    /// its query: those settings have keys of their own. The error says what is wrong, never
    /// repeating what was written, and how to mend it.
    fn parse(text: &str) -> Result<Self, (String, &'static str)> {
        const SHAPE: &str = "write amqp://HOST, or amqp://USER:PASSWORD@HOST:PORT/VHOST";
        let no = |what: &str| (String::from(what), SHAPE);
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| no("the address has no scheme"))?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "amqp" => false,
            "amqps" => true,
            other => return Err((format!("the scheme '{other}' is not amqp or amqps"), SHAPE)),
        };
        if rest.contains(['?', '#']) {
            return Err((
                String::from("the address has a query or a fragment"),
                "write its settings as keys: heartbeat, timeout; in a password, '?' is %3F and '#' is %23",
            ));
        }
        let (authority, vhost) = match rest.split_once('/') {
            None => (rest, None),
            Some((authority, vhost)) => (authority, Some(vhost)),
        };
        let vhost = match vhost {
            None => String::from("/"),
            Some("") => {
                return Err((
                    String::from("the virtual host is empty"),
                    "leave the last '/' out, or name the virtual host: '/' is written %2f",
                ));
            }
            Some(vhost) => decode(vhost).ok_or_else(|| no("the virtual host is not UTF-8"))?,
        };
        let (user_info, host) = match authority.rsplit_once('@') {
            Some((user_info, host)) => (Some(user_info), host),
            None => (None, authority),
        };
        let (host, port) = host_and_port(host, if secure { 5671 } else { 5672 })
            .ok_or_else(|| no("there is no host and port in the address"))?;
        let (user, password) = match user_info {
            None => (None, None),
            Some(both) => {
                let (user, password) = both.split_once(':').unwrap_or((both, ""));
                let not_text = || no("user or password of the address are not UTF-8");
                let user = decode(user).ok_or_else(not_text)?;
                (Some(user), Some(decode(password).ok_or_else(not_text)?))
            }
        };
        Ok(Self {
            address: Address {
                secure,
                host,
                port,
                vhost,
            },
            user,
            password,
        })
    }
}

fn host_and_port(text: &str, usual: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (
                host,
                port.strip_prefix(':').or(port.is_empty().then_some("")),
            )
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, Some("")),
        },
    };
    let port = match port? {
        "" => usual,
        port => port.parse().ok().filter(|port| *port != 0)?,
    };
    let usable = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '@');
    usable.then(|| (host.to_owned(), port))
}

/// Takes percent-encoding away; nothing when the result is not UTF-8.
fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let byte = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(byte.unwrap_or(bytes[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    String::from_utf8(out).ok()
}

/// Reads the settings; nothing when a problem was reported.
pub(crate) fn read(args: &Args<'_>) -> Option<Settings> {
    let problems = args.build.problems;
    let url = args.text("url")?;
    let url = match Url::parse(&url) {
        Ok(url) => url,
        Err((what, help)) => {
            problems.error(&args.place("url"), "bad-url", what, help);
            return None;
        }
    };
    if let Some(password) = &url.password {
        secrets::register(password);
    }
    let mut good = true;
    let mut wrong = |key: &str, code: &'static str, what: String, help: &str| {
        good = false;
        problems.error(&args.place(key), code, what, help);
    };
    if url.user.is_some() && (args.has("user") || args.has("password")) {
        wrong(
            "user",
            "bad-login",
            String::from("both 'url' and 'user' say who logs in"),
            "keep one of them",
        );
    }
    if args.has("user") != args.has("password") {
        wrong(
            "user",
            "bad-login",
            String::from("'user' and 'password' go together"),
            "write both or none",
        );
    }
    let heartbeat = args.duration("heartbeat")?;
    if heartbeat.subsec_nanos() != 0 || !(1..=u64::from(u16::MAX)).contains(&heartbeat.as_secs()) {
        wrong(
            "heartbeat",
            "bad-heartbeat",
            String::from("a heartbeat is 1 to 65535 whole seconds"),
            "write 5s",
        );
    }
    let timeout = args.duration("timeout")?;
    if timeout.is_zero() {
        let what = String::from("a connection cannot be made in no time");
        wrong("timeout", "bad-timeout", what, "write 10s");
    }
    let renew_after = args.duration("renew_after")?;
    if renew_after < Duration::from_secs(1) {
        let what = String::from("a message must be held for at least a second");
        wrong("renew_after", "bad-renew-after", what, "write 25m");
    }
    let tls = args.object("tls", TLS);
    if args.has("tls") && !url.address.secure {
        let what = String::from("there are certificates, and the address is not encrypted");
        wrong(
            "tls",
            "useless-tls",
            what,
            "write amqps:// in 'url', or take 'tls' away",
        );
    }
    if tls.has("cert") != tls.has("key") {
        let what = String::from("'cert' and 'key' go together");
        wrong("tls", "bad-identity", what, "write both or none");
    }
    let topology = topology::read(args);
    let near = ["localhost", "127.0.0.1", "::1"].contains(&url.address.host.as_str());
    let credentials = url.user.is_some() || args.has("user");
    if credentials && !url.address.secure && !near {
        let place = args.place(if args.has("password") {
            "password"
        } else {
            "url"
        });
        problems.warning(
            &place,
            "clear-password",
            "the password goes over the network unencrypted",
            "write amqps:// where the broker has TLS",
        );
    }
    let (user, password) = match (args.text("user"), args.secret("password")) {
        (Some(user), Some(password)) => (user, password),
        _ => (
            url.user.unwrap_or_else(|| String::from("guest")),
            Secret(url.password.unwrap_or_else(|| String::from("guest"))),
        ),
    };
    let topology = topology.filter(|_| good)?;
    Some(Settings {
        name: args.build.step.clone(),
        bus: args.build.bus.clone(),
        node: args.build.node.clone(),
        address: url.address,
        user,
        password,
        heartbeat,
        timeout,
        tls: TlsFiles {
            ca: tls.path("ca"),
            identity: tls.path("cert").zip(tls.path("key")),
        },
        renew_after,
        topology,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let url = Url::parse("amqp://us%40er:p%3Aw@[::1]:5673/%2f").unwrap();
        assert_eq!(url.address.to_string(), "amqp://[::1]:5673");
        assert_eq!(url.address.host, "::1");
        assert_eq!(url.address.vhost, "/");
        assert_eq!(url.user.as_deref(), Some("us@er"));
        assert_eq!(url.password.as_deref(), Some("p:w"));
        let url = Url::parse("amqps://rabbit.example/orders").unwrap();
        assert_eq!(
            url.address.to_string(),
            "amqps://rabbit.example:5671/orders"
        );
        assert!(url.user.is_none());
    }

    #[test]
    fn what_is_no_address_is_told_without_repeating_it() {
        for text in [
            "rabbit",
            "http://u:topsecret@h",
            "amqp://",
            "amqp://u:topsecret@h/",
            "amqp://u:topsecret@h:0",
            "amqp://u:topsecret@h:x/v",
            "amqp://u:topsecret@[h]/v",
            "amqp://u:topsecret@h/v?heartbeat=3",
        ] {
            let (what, _) = Url::parse(text).err().unwrap_or_else(|| panic!("{text}"));
            assert!(!what.contains("topsecret"), "{what}");
        }
    }
}
