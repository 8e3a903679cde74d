//! The words `imap` and `pop3` of `connections`: where a mailbox is and who opens it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::OnceCell;
use xbus_core::spec::{Args, Connection, Field, Secret, Type};

use crate::trouble::Trouble;
use crate::vitals::Vitals;
use crate::wire::{self, Wire};

/// What can stand under `imap` of a connection.
pub(crate) const IMAP_FIELDS: &[Field] = &[
    HOST,
    Field::new(
        "port",
        Type::Count(1, 65535),
        "Its port. Left out: 993 with `tls: tls`, else 143.",
    ),
    Field::new(
        "tls",
        Type::Choice(TLS),
        "`starttls`: encrypted after a greeting, and not at all when the server cannot; `tls`: from \
         the first byte. Left out: `tls` on port 993, else `none`.",
    ),
    USER,
    PASSWORD,
    CA,
    TIMEOUT,
];

/// What can stand under `pop3` of a connection.
pub(crate) const POP3_FIELDS: &[Field] = &[
    HOST,
    Field::new(
        "port",
        Type::Count(1, 65535),
        "Its port. Left out: 995 with `tls: tls`, else 110.",
    ),
    Field::new(
        "tls",
        Type::Choice(TLS),
        "`starttls`: encrypted after a greeting (STLS), and not at all when the server cannot; `tls`: \
         from the first byte. Left out: `tls` on port 995, else `none`.",
    ),
    USER,
    PASSWORD,
    CA,
    TIMEOUT,
];

const TLS: &[&str] = &["none", "starttls", "tls"];
const HOST: Field = Field::new("host", Type::Text, "The mail server's name or address.").required();
const USER: Field = Field::new("user", Type::Text, "Whose mailbox it is.").required();
const PASSWORD: Field = Field::new("password", Type::Secret, "The password of `user`.").required();
const CA: Field = Field::new(
    "ca",
    Type::File,
    "Certificates (PEM) that the server's is checked against, instead of the system's.",
);
const TIMEOUT: Field = Field::new(
    "timeout",
    Type::Duration,
    "How long connecting may take, and how long the server may be silent when it has been asked.",
)
.default("30s");

/// How a mailbox is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protocol {
    /// RFC 3501.
    Imap,
    /// RFC 1939.
    Pop3,
}

/// When a connection is encrypted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tls {
    None,
    Start,
    Whole,
}

/// A mailbox at a server. Connections to it are made by whoever needs one.
pub(crate) struct Account {
    pub(crate) protocol: Protocol,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: Tls,
    pub(crate) user: String,
    pub(crate) password: Secret,
    pub(crate) timeout: Duration,
    ca: Option<PathBuf>,
    client: OnceCell<Arc<ClientConfig>>,
    pub(crate) vitals: Vitals,
}

/// Builds an `imap` connection from what xbus.yaml says.
pub(crate) fn build_imap(args: Args<'_>) -> Option<Connection> {
    build(&args, Protocol::Imap, 143, 993)
}

/// Builds a `pop3` connection from what xbus.yaml says.
pub(crate) fn build_pop3(args: Args<'_>) -> Option<Connection> {
    build(&args, Protocol::Pop3, 110, 995)
}

fn build(args: &Args<'_>, protocol: Protocol, clear: u16, encrypted: u16) -> Option<Connection> {
    let problems = args.build.problems;
    let host = args.text("host")?;
    let port = args.count("port").map(|port| port as u16);
    let tls = match args.text("tls").as_deref() {
        Some("starttls") => Tls::Start,
        Some("tls") => Tls::Whole,
        None if port == Some(encrypted) => Tls::Whole,
        _ => Tls::None,
    };
    let port = port.unwrap_or(if tls == Tls::Whole { encrypted } else { clear });
    let (user, password) = (args.text("user")?, args.secret("password")?);
    for (name, value) in [("user", &user), ("password", &password.0)] {
        if value.contains(['\0', '\r', '\n']) {
            problems.error(
                &args.place(name),
                "bad-login",
                format!("'{name}' holds a line end or a NUL"),
                "a login is one line of text",
            );
            return None;
        }
    }
    let near = ["localhost", "127.0.0.1", "::1"].contains(&host.as_str());
    if tls == Tls::None && !near {
        problems.warning(
            &args.place("password"),
            "clear-password",
            "the password goes over the network unencrypted",
            "write tls: starttls or tls: tls",
        );
    }
    Some(Arc::new(Account {
        protocol,
        host,
        port,
        tls,
        user,
        password,
        timeout: args.duration("timeout")?,
        ca: args.path("ca"),
        client: OnceCell::new(),
        vitals: Vitals::default(),
    }))
}

impl Account {
    /// `user@host:port`, for people and in keys.
    pub(crate) fn name(&self) -> String {
        format!("{}@{}:{}", self.user, self.host, self.port)
    }

    /// A connection, encrypted where that is from the first byte.
    pub(crate) async fn connect(&self) -> Result<Wire, Trouble> {
        let late = |_| Trouble::lost(format!("no connection within {:?}", self.timeout));
        tokio::time::timeout(self.timeout, async {
            let wire = Wire::connect(&self.host, self.port, self.timeout).await?;
            match self.tls {
                Tls::Whole => self.encrypt(wire).await,
                Tls::None | Tls::Start => Ok(wire),
            }
        })
        .await
        .unwrap_or_else(|elapsed| Err(late(elapsed)))
    }

    /// Encrypts a connection from here on.
    pub(crate) async fn encrypt(&self, wire: Wire) -> Result<Wire, Trouble> {
        let config = self
            .client
            .get_or_try_init(|| async {
                let ca = self.ca.clone();
                tokio::task::spawn_blocking(move || wire::client_config(ca.as_deref()))
                    .await
                    .unwrap_or_else(|error| Err(error.to_string()))
                    .map(Arc::new)
                    .map_err(|error| Trouble::lost(format!("certificates: {error}")))
            })
            .await?;
        wire.encrypt(&self.host, config.clone()).await
    }
}

#[cfg(test)]
pub(crate) fn at(protocol: Protocol, port: u16) -> Account {
    Account {
        protocol,
        host: String::from("127.0.0.1"),
        port,
        tls: Tls::None,
        user: String::from("bus"),
        password: Secret(String::from("se\"cret")),
        timeout: Duration::from_millis(500),
        ca: None,
        client: OnceCell::new(),
        vitals: Vitals::default(),
    }
}
