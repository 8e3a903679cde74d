//! Connections to a mail server: configuration, a few idle ones for reuse, and the conversation.
//!
//! The conversation is led command by command, because it matters how far it came: nothing has
//! happened before the mail's last line is sent, and after that only the server's answer tells.
//! Recipients that the server refuses while it takes others are told of; the mail counts as sent.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use lettre::Address;
use lettre::address::Envelope;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{
    AsyncSmtpConnection, Certificate, CertificateStore, TlsParameters,
};
use lettre::transport::smtp::commands::{Data, Ehlo, Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailBodyParameter, MailParameter};
use tokio::time::{Instant, timeout, timeout_at};
use xbus_core::SendError;
use xbus_core::adapter::Class;
use xbus_core::spec::{Args, Build, Connection, Field, Secret, Type};

use crate::trouble::{explained, shown};
use crate::vitals::Vitals;

/// How many idle connections are kept.
const IDLE_MOST: usize = 4;
/// The one place at which a mail server is used.
const PLACE: &str = "";
/// How long an idle connection is kept.
const IDLE_TIME: Duration = Duration::from_secs(30);
/// Mails beyond this many bytes are not offered before the server has said how large they may be.
const SIZE_ASKED: usize = 256 * 1024;
/// How long taking leave of the server may take.
const LEAVE: Duration = Duration::from_secs(2);

/// What can stand under `smtp` of a connection.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("host", Type::Text, "The mail server's name or address.").required(),
    Field::new("port", Type::Count(1, 65535), "Its port.").default("25"),
    Field::new(
        "tls",
        Type::Choice(&["none", "starttls", "tls"]),
        "`starttls`: encrypted after a greeting (usual on port 587), and not at all when the \
         server cannot; `tls`: from the first byte (port 465).",
    )
    .default("none"),
    Field::new("user", Type::Text, "Who logs in. Left out: nobody."),
    Field::new("password", Type::Secret, "The password of `user`."),
    Field::new(
        "ca",
        Type::File,
        "Certificates (PEM) that the server's is checked against, instead of the system's.",
    ),
    Field::new(
        "timeout",
        Type::Duration,
        "How long connecting may take, encryption and login included.",
    )
    .default("10s"),
    Field::new(
        "from",
        Type::Text,
        "The sender's address where a target names none.",
    ),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tls {
    None,
    Start,
    Whole,
}

/// A mail server, and idle connections to it.
pub(crate) struct Smtp {
    host: String,
    port: u16,
    tls: Tls,
    login: Option<(String, Secret)>,
    ca: Option<PathBuf>,
    timeout: Duration,
    pub(crate) from: Option<String>,
    parameters: OnceLock<TlsParameters>,
    idle: Arc<Mutex<Vec<Idle>>>,
    pub(crate) vitals: Vitals,
}

struct Idle {
    connection: AsyncSmtpConnection,
    since: Instant,
}

/// Builds a connection from what xbus.yaml says.
pub(crate) fn build(args: Args<'_>) -> Option<Connection> {
    let problems = args.build.problems;
    let host = args.text("host")?;
    let tls = match args.text("tls").as_deref() {
        Some("starttls") => Tls::Start,
        Some("tls") => Tls::Whole,
        _ => Tls::None,
    };
    let login = match (args.text("user"), args.secret("password")) {
        (Some(user), Some(password)) => Some((user, password)),
        (None, None) => None,
        _ => {
            problems.error(
                &args.place("user"),
                "bad-login",
                "'user' and 'password' go together",
                "write both or none",
            );
            return None;
        }
    };
    let near = ["localhost", "127.0.0.1", "::1"].contains(&host.as_str());
    if login.is_some() && tls == Tls::None && !near {
        problems.warning(
            &args.place("password"),
            "clear-password",
            "the password goes over the network unencrypted",
            "write tls: starttls or tls: tls",
        );
    }
    let from = args.text("from");
    if let Some(from) = &from
        && crate::address::fixed(from).is_none_or(|all| all.len() != 1)
    {
        problems.error(
            &args.place("from"),
            "bad-address",
            format!("'{from}' is no mail address"),
            "write bus@acme.example",
        );
        return None;
    }
    Some(Arc::new(Smtp {
        host,
        port: args.count("port")? as u16,
        tls,
        login,
        ca: args.path("ca"),
        timeout: args.duration("timeout")?,
        from,
        parameters: OnceLock::new(),
        idle: Arc::default(),
        vitals: Vitals::default(),
    }))
}

/// The one mail server that there is; `Err(true)`: there is none, `Err(false)`: there are several.
/// `Ok(None)`: it is not right itself, which is reported.
pub(crate) fn only(build: &Build<'_>) -> Result<Option<Arc<Smtp>>, bool> {
    let mut all = build
        .connections
        .iter()
        .filter(|(_, (kind, _))| *kind == "smtp");
    match (all.next(), all.next()) {
        (Some((name, _)), None) => Ok(build.connection::<Smtp>(name)),
        (none, _) => Err(none.is_none()),
    }
}

/// A recipient that the server refused while it took others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    /// The address.
    pub(crate) address: String,
    /// What the server said.
    pub(crate) answer: String,
}

/// What the server said of a mail that it took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Taken {
    /// Recipients that were refused although others were not.
    pub(crate) refused: Vec<Refused>,
    /// Its answer to the mail, on one line.
    pub(crate) answer: String,
}

/// Why a mail was not sent.
#[derive(Clone, Debug)]
pub(crate) struct Unsent {
    /// What it means.
    pub(crate) error: SendError,
    /// The server works and does not want this mail, or all its recipients, now (4yz to RCPT, DATA or
    /// the mail, RFC 5321 section 4.2.1): it may be for ever, and says nothing of other mails.
    pub(crate) put_off: bool,
}

impl Unsent {
    fn put_off(error: SendError) -> Self {
        let put_off = error.class == Class::Outage;
        Self { error, put_off }
    }
}

impl From<SendError> for Unsent {
    fn from(error: SendError) -> Self {
        Self {
            error,
            put_off: false,
        }
    }
}

impl Smtp {
    /// Sends a mail, and gives what the server said.
    pub(crate) async fn send(
        &self,
        envelope: &Envelope,
        data: &[u8],
        deadline: Instant,
    ) -> Result<Taken, SendError> {
        let offered = self.offer(envelope, data, deadline).await;
        offered.map_err(|unsent| unsent.error)
    }

    /// The same, for who must know whether an outage is the server's or this mail's alone.
    pub(crate) async fn offer(
        &self,
        envelope: &Envelope,
        data: &[u8],
        deadline: Instant,
    ) -> Result<Taken, Unsent> {
        let sent = AtomicBool::new(false);
        let result = match timeout_at(deadline, self.converse(envelope, data, &sent)).await {
            Ok(result) => result,
            Err(_) if sent.load(Ordering::SeqCst) => {
                let what = self.said("no answer to the mail in time");
                Err(SendError::unknown(what).timed_out().into())
            }
            Err(_) => {
                let what = self.said("no answer in time");
                Err(SendError::outage(what).timed_out().into())
            }
        };
        match &result {
            Ok(_) => {
                self.vitals.works(PLACE);
                self.vitals.sent();
            }
            // It does not want this mail, and works.
            Err(unsent) if unsent.error.class == Class::Rejected => self.vitals.works(PLACE),
            Err(unsent) => self.vitals.fails(PLACE, &unsent.error.detail),
        }
        result
    }

    /// `HOST:PORT`, for people.
    pub(crate) fn shown(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    async fn converse(
        &self,
        envelope: &Envelope,
        data: &[u8],
        sent: &AtomicBool,
    ) -> Result<Taken, Unsent> {
        let mut server = self.ready(envelope, data).await?;
        let mut refused = Vec::new();
        let mut lasting = true;
        for address in envelope.to() {
            match server.command(Rcpt::new(address.clone(), vec![])).await {
                Ok(_) => {}
                Err(error) if error.status().is_some_and(|code| u16::from(code) != 421) => {
                    lasting &= error.is_permanent();
                    refused.push(Refused {
                        address: address.to_string(),
                        answer: error.to_string(),
                    });
                }
                Err(error) => return Err(self.outage(server, "RCPT TO", &error).into()),
            }
        }
        if refused.len() == envelope.to().len() {
            let all: Vec<String> = refused
                .iter()
                .map(|one| format!("{}: {}", one.address, one.answer))
                .collect();
            let detail = self.said(&format!("every recipient refused: {}", all.join("; ")));
            leave(server);
            return Err(match lasting {
                true => SendError::rejected(detail).into(),
                false => Unsent::put_off(SendError::outage(detail)),
            });
        }
        if let Err(error) = server.command(Data).await {
            return Err(self.refused(server, "DATA", &error));
        }
        sent.store(true, Ordering::SeqCst);
        match server.message(data).await {
            Ok(response) => {
                self.keep(server);
                let words: Vec<&str> = response.message().collect();
                let answer = shown(&format!("{} {}", response.code(), words.join(" ")));
                Ok(Taken { refused, answer })
            }
            Err(error) if error.status().is_some() => {
                Err(self.refused(server, "the mail's data", &error))
            }
            Err(error) => Err(SendError::unknown(self.said(&format!(
                "the connection was lost after the mail was sent: {error}"
            )))
            .into()),
        }
    }

    /// A connection whose server has accepted the sender. One that was idle may turn out to be
    /// dead: then a new one is tried.
    async fn ready(
        &self,
        envelope: &Envelope,
        data: &[u8],
    ) -> Result<AsyncSmtpConnection, SendError> {
        let mut idle = self.idle_one();
        loop {
            let reused = idle.is_some();
            let mut server = match idle.take() {
                Some(server) => server,
                None => self.connect().await?,
            };
            let parameters = match self.parameters_for(&mut server, envelope, data).await {
                Ok(parameters) => parameters,
                Err(error) => {
                    leave(server);
                    return Err(error);
                }
            };
            let from = envelope.from().cloned();
            match server.command(Mail::new(from, parameters)).await {
                Ok(_) => return Ok(server),
                Err(error) if reused && !error.is_permanent() => leave(server),
                Err(error) => return Err(self.refusal(server, "MAIL FROM", &error)),
            }
        }
    }

    /// What MAIL has to say (RFC 1870, RFC 6152, RFC 6531), or why this server cannot take the mail.
    async fn parameters_for(
        &self,
        server: &mut AsyncSmtpConnection,
        envelope: &Envelope,
        data: &[u8],
    ) -> Result<Vec<MailParameter>, SendError> {
        let mut parameters = Vec::new();
        let ascii = |address: &Address| AsRef::<str>::as_ref(address).is_ascii();
        if !envelope.to().iter().chain(envelope.from()).all(ascii) {
            if !server
                .server_info()
                .supports_feature(Extension::SmtpUtfEight)
            {
                return Err(SendError::rejected(
                    self.said("it takes no addresses beyond ASCII (SMTPUTF8)"),
                ));
            }
            parameters.push(MailParameter::SmtpUtfEight);
        }
        if !data.is_ascii()
            && server
                .server_info()
                .supports_feature(Extension::EightBitMime)
        {
            parameters.push(MailParameter::Body(MailBodyParameter::EightBitMime));
        }
        if data.len() > SIZE_ASKED
            && let Some(most) = largest(server).await
        {
            if most > 0 && data.len() as u64 > most {
                return Err(SendError::rejected(self.said(&format!(
                    "the mail has {} bytes, and it takes {most} at the most (SIZE)",
                    data.len()
                ))));
            }
            parameters.push(MailParameter::Size(data.len()));
        }
        Ok(parameters)
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, SendError> {
        self.vitals.connects(PLACE);
        match timeout(self.timeout, self.connect_now()).await {
            Ok(result) => result,
            Err(_) => Err(SendError::outage(
                self.said(&format!("no connection within {:?}", self.timeout)),
            )
            .timed_out()),
        }
    }

    async fn connect_now(&self) -> Result<AsyncSmtpConnection, SendError> {
        let failed = |what: &str, error: &Error| {
            let error = explained(&error.to_string());
            SendError::outage(self.said(&format!("{what} failed: {error}")))
        };
        let hello = hello();
        let parameters = match self.tls {
            Tls::None => None,
            _ => Some(self.tls_parameters().await?),
        };
        let whole = parameters.clone().filter(|_| self.tls == Tls::Whole);
        let server = (self.host.as_str(), self.port);
        let mut connection = AsyncSmtpConnection::connect_tokio1(server, None, &hello, whole, None)
            .await
            .map_err(|error| failed("connecting", &error))?;
        if let (Tls::Start, Some(parameters)) = (self.tls, parameters) {
            connection
                .starttls(parameters, &hello)
                .await
                .map_err(|error| failed("STARTTLS", &error))?;
        }
        if let Some((user, Secret(password))) = &self.login {
            let credentials = Credentials::new(user.clone(), password.clone());
            connection
                .auth(&[Mechanism::Plain, Mechanism::Login], &credentials)
                .await
                .map_err(|error| failed("login", &error))?;
        }
        Ok(connection)
    }

    async fn tls_parameters(&self) -> Result<TlsParameters, SendError> {
        if let Some(parameters) = self.parameters.get() {
            return Ok(parameters.clone());
        }
        let (host, ca) = (self.host.clone(), self.ca.clone());
        let made = tokio::task::spawn_blocking(move || {
            let mut builder = TlsParameters::builder(host);
            if let Some(path) = ca {
                let pem =
                    std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                let certificate = Certificate::from_pem(&pem).map_err(|error| error.to_string())?;
                builder = builder
                    .certificate_store(CertificateStore::None)
                    .add_root_certificate(certificate);
            }
            builder.build_rustls().map_err(|error| error.to_string())
        })
        .await
        .unwrap_or_else(|error| Err(error.to_string()))
        .map_err(|error| SendError::outage(self.said(&format!("certificates: {error}"))))?;
        Ok(self.parameters.get_or_init(|| made).clone())
    }

    fn idle_one(&self) -> Option<AsyncSmtpConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|one| one.since.elapsed() < IDLE_TIME);
        idle.pop().map(|one| one.connection)
    }

    /// Keeps a connection for the next mail, for a while.
    fn keep(&self, connection: AsyncSmtpConnection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= IDLE_MOST {
            return leave(connection);
        }
        let since = Instant::now();
        idle.push(Idle { connection, since });
        let all = Arc::downgrade(&self.idle);
        tokio::spawn(async move {
            tokio::time::sleep_until(since + IDLE_TIME).await;
            if let Some(all) = all.upgrade() {
                let mut idle = all.lock().unwrap_or_else(PoisonError::into_inner);
                let old: Vec<Idle> = idle
                    .extract_if(.., |one| one.since.elapsed() >= IDLE_TIME)
                    .collect();
                old.into_iter().for_each(|one| leave(one.connection));
            }
        });
    }

    /// A negative answer: a permanent one is about this mail, unless it asks for a login.
    fn refusal(&self, server: AsyncSmtpConnection, step: &str, error: &Error) -> SendError {
        let login = error
            .status()
            .is_some_and(|code| [530, 534, 535, 538].contains(&u16::from(code)));
        if error.is_permanent() && !login {
            leave(server);
            return SendError::rejected(self.said(&format!("{step}: {error}")));
        }
        self.outage(server, step, error)
    }

    /// The same, of an answer that is about this mail unless the server goes away with it (421) or did
    /// not answer at all.
    fn refused(&self, server: AsyncSmtpConnection, step: &str, error: &Error) -> Unsent {
        let answered = error.status().is_some_and(|code| u16::from(code) != 421);
        let refusal = self.refusal(server, step, error);
        match answered {
            true => Unsent::put_off(refusal),
            false => refusal.into(),
        }
    }

    fn outage(&self, server: AsyncSmtpConnection, step: &str, error: &Error) -> SendError {
        leave(server);
        SendError::outage(self.said(&format!("{step}: {error}")))
    }

    fn said(&self, what: &str) -> String {
        format!("mail server {}: {what}", self.shown())
    }
}

/// The most that the server takes, in bytes, where it says so; 0: it sets no limit.
async fn largest(server: &mut AsyncSmtpConnection) -> Option<u64> {
    // What it said on connecting is not kept. Another EHLO is allowed at any time (RFC 5321 section 4.1.4).
    let said = server.command(Ehlo::new(hello())).await.ok()?;
    said.message().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let size = words.next()?.eq_ignore_ascii_case("SIZE");
        size.then(|| words.next().map_or(Some(0), |most| most.parse().ok()))?
    })
}

/// Takes leave of the server, without anybody waiting for it.
fn leave(mut connection: AsyncSmtpConnection) {
    tokio::spawn(async move {
        let _ = timeout(LEAVE, connection.abort()).await;
    });
}

/// How the bus introduces itself (RFC 5321 section 4.1.1.1): by the machine's name.
fn hello() -> ClientId {
    ClientId::Domain(host_name().to_owned())
}

/// The machine's name, reduced to what a domain may hold.
pub(crate) fn host_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name: String = name
            .trim()
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
            .collect();
        let name = name.trim_matches(['-', '.']).to_owned();
        if name.is_empty() {
            String::from("localhost")
        } else {
            name
        }
    })
}

#[cfg(test)]
pub(crate) fn to(port: u16) -> Smtp {
    Smtp {
        host: String::from("127.0.0.1"),
        port,
        tls: Tls::None,
        login: None,
        ca: None,
        timeout: Duration::from_secs(5),
        from: None,
        parameters: OnceLock::new(),
        idle: Arc::default(),
        vitals: Vitals::default(),
    }
}
