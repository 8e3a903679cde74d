//! WS-Security (OASIS Web Services Security 1.0 and 1.1) as far as UsernameToken and Timestamp:
//! what a receiver asks for, and what a sender puts in ([`outgoing`]).
//!
//! Absent: signatures, encryption, and every other kind of token. A header that must be understood
//! and holds one is refused.

mod nonces;
mod outgoing;
#[cfg(test)]
mod tests;
mod timestamp;
mod username_token;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use subtle::Choice;
use xbus_core::spec::{Args, Field, Type};
use xbus_core::{Code, Timestamp};
use xbus_xml::tree::{Id, Kind};
use xbus_xml::{Document, XmlLimits};

use crate::shape::{Refusal, SoapCode};
use crate::soap::{self, Block};
use username_token::Token;

pub use username_token::digest;

pub(crate) use nonces::Nonces;
pub(crate) use outgoing::{Outgoing, TOKEN_FIELDS as OUT_TOKEN_FIELDS};

/// Namespace of Security, UsernameToken and the fault codes.
pub(crate) const WSSE: &str =
    "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd";
/// Namespace of Timestamp and Created.
const WSU: &str =
    "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd";
const DSIG: &str = "http://www.w3.org/2000/09/xmldsig#";
const XENC: &str = "http://www.w3.org/2001/04/xmlenc#";

/// Bytes of a Security header at most.
const MOST: usize = 64 * 1024;
/// What its document may have.
const LIMITS: XmlLimits = XmlLimits {
    depth: 32,
    attributes: 300,
    nodes: 5_000,
};

/// The keys of `security` on a receiver.
pub(crate) static FIELDS: &[Field] = &[Field::new(
    "username_token",
    Type::Object(TOKEN_FIELDS),
    "Lets in whose wsse:UsernameToken names one of these users, with the password as text or digest. A digest, and any token with a nonce, counts once.",
)
.required()];

static TOKEN_FIELDS: &[Field] = &[
    Field::new(
        "users",
        Type::Map(&Type::Secret),
        "User names with their passwords. The user is the caller whose keys `once` keeps apart.",
    )
    .required(),
    Field::new(
        "type",
        Type::Choice(&["any", "text", "digest"]),
        "Which passwords are taken: PasswordText, PasswordDigest, or both.",
    )
    .default("any"),
    Field::new(
        "window",
        Type::Duration,
        "How old a token may be (at most 1d). One that was made up to a minute ahead of the bus's clock is taken too.",
    )
    .default("5m"),
];

/// Whether a header block is that of WS-Security.
pub(crate) fn is_security(namespace: &str, local: &str) -> bool {
    local == "Security" && namespace == WSSE
}

/// What a route asks of its callers.
pub struct Security {
    users: HashMap<String, (Arc<str>, String)>,
    takes: Takes,
    window: Duration,
    nonces: Arc<Nonces>,
    /// Is compared with when there is no such user, so that both take the same time.
    nobody: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Any,
    Text,
    Digest,
}

/// Why a message is not let in, in words for the caller.
#[derive(Debug)]
pub(crate) struct Denied {
    /// Local name of the fault code (SOAP Message Security 1.1 section 12).
    codes: &'static [&'static str],
    reason: String,
}

impl Denied {
    fn of(codes: &'static [&'static str], reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { codes, reason }
    }

    fn invalid(reason: impl Into<String>) -> Self {
        Self::of(&["InvalidSecurity"], reason)
    }

    fn unsupported(reason: impl Into<String>) -> Self {
        Self::of(&["UnsupportedSecurityToken"], reason)
    }

    fn expired(reason: impl Into<String>) -> Self {
        Self::of(&["MessageExpired"], reason)
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Refusal::new(Code::Denied, denied.reason).soap(SoapCode::Of {
            prefix: "wsse",
            namespace: WSSE,
            codes: denied.codes,
        })
    }
}

impl Security {
    /// Reads `security:`; problems are reported.
    pub(crate) fn build(args: Args<'_>, nonces: &Arc<Nonces>) -> Option<Self> {
        let args = args.object("username_token", TOKEN_FIELDS);
        let mut users = Vec::new();
        for (user, node) in args.entries("users") {
            let password = node.text().unwrap_or_default();
            if password.is_empty() {
                args.build.problems.error(
                    &node.place,
                    "empty-credential",
                    "the password is empty",
                    "set it: with an empty one everybody knows it",
                );
            }
            users.push((user.name.clone(), password.to_owned()));
        }
        if users.is_empty() {
            args.build.problems.error(
                &args.place("users"),
                "bad-value",
                "'users' names nobody, so that nobody is let in",
                "write users: { NAME: \"${PASSWORD}\" }",
            );
        }
        let window = args.duration("window")?;
        if window.is_zero() || window > Duration::from_secs(86_400) {
            args.build.problems.error(
                &args.place("window"),
                "bad-value",
                "'window' is not between 1s and 1d",
                "write how old a token may be, such as 5m",
            );
        }
        let takes = match args.text("type")?.as_str() {
            "text" => Takes::Text,
            "digest" => Takes::Digest,
            _ => Takes::Any,
        };
        Some(Self {
            takes,
            ..Self::of(users, window, nonces)
        })
    }

    /// Takes tokens of these users, each with a password, that are up to `window` old; for programs
    /// without a bus, which share no nonces with others.
    pub fn new(users: impl IntoIterator<Item = (String, String)>, window: Duration) -> Self {
        Self::of(users, window, &Arc::default())
    }

    fn of(
        users: impl IntoIterator<Item = (String, String)>,
        window: Duration,
        nonces: &Arc<Nonces>,
    ) -> Self {
        nonces.cover(window);
        let nobody = outgoing::random().map(|bytes| BASE64_STANDARD.encode(bytes));
        Self {
            users: users
                .into_iter()
                .map(|(user, password)| (user.clone(), (Arc::from(user), password)))
                .collect(),
            takes: Takes::Any,
            window,
            nonces: nonces.clone(),
            nobody: nobody.unwrap_or_default(),
        }
    }

    /// Who sends an envelope, at `now`; else why it is not let in, in words for the caller.
    pub fn caller(&self, envelope: &[u8], now: Timestamp) -> Result<Arc<str>, String> {
        let seen = soap::look(envelope, None, false).map_err(|why| format!("{why:?}"))?;
        self.check(&seen.security, now)
            .map_err(|denied| denied.reason)
    }

    /// Whether passwords may come as they are.
    pub(crate) fn takes_text(&self) -> bool {
        self.takes != Takes::Digest
    }

    /// Who sends a message with these Security headers, at `now`.
    pub(crate) fn check(&self, blocks: &[Block], now: Timestamp) -> Result<Arc<str>, Denied> {
        let block = match blocks {
            [block] => block,
            [] => return Err(Denied::invalid("the message has no Security header")),
            _ => {
                let why = "the message has more than one Security header for this place";
                return Err(Denied::invalid(why));
            }
        };
        if block.xml.len() > MOST {
            return Err(Denied::invalid("the Security header is too large"));
        }
        let document = Document::parse(&block.xml, &LIMITS)
            .map_err(|_| Denied::invalid("the Security header cannot be read"))?;
        let (token, times) = parts(&document, block.mandatory)?;
        let token = token
            .ok_or_else(|| Denied::invalid("the Security header has no UsernameToken"))
            .and_then(|node| Token::read(&document, node))?;
        let caller = self.authenticate(&token)?;
        if let Some(node) = times {
            timestamp::check(&document, node, now, self.window)?;
        }
        let created = token.created.as_ref().map(|(_, created)| *created);
        if let Some(created) = created {
            timestamp::is_fresh(created, now, self.window, "the UsernameToken")?;
        }
        if let Some(nonce) = &token.nonce {
            self.nonces
                .take(&token.user, nonce, created.unwrap_or(now), now)
                .map_err(|refused| match refused {
                    nonces::Refused::Repeated => {
                        Denied::of(&["InvalidSecurityToken"], "the nonce was used before")
                    }
                    nonces::Refused::Forgotten => Denied::expired(
                        "the UsernameToken is too old to tell whether it was used: send a new one",
                    ),
                })?;
        }
        Ok(caller)
    }

    /// The caller whose password it is. Whether there is no such user or the password is another
    /// takes the same time and gives the same answer.
    fn authenticate(&self, token: &Token) -> Result<Arc<str>, Denied> {
        let fits = match self.takes {
            Takes::Any => true,
            Takes::Text => !token.is_digest(),
            Takes::Digest => token.is_digest(),
        };
        if !fits {
            let why = "passwords of this type are not taken here";
            return Err(Denied::unsupported(why));
        }
        let known = self.users.get(&token.user);
        let password = known.map_or(&self.nobody, |(_, password)| password);
        let right = token.is_of(password) & Choice::from(u8::from(known.is_some()));
        match known {
            Some((caller, _)) if right.into() => Ok(caller.clone()),
            _ => Err(Denied::of(
                &["FailedAuthentication"],
                "the user or the password is wrong",
            )),
        }
    }
}

/// UsernameToken and Timestamp of a Security header. What else it holds is passed over unless the
/// header must be understood.
fn parts(document: &Document, mandatory: bool) -> Result<(Option<u32>, Option<u32>), Denied> {
    let header = document
        .root_element()
        .and_then(|scope| elements(document, scope).next())
        .unwrap_or_default();
    let (mut token, mut times) = (None, None);
    for node in elements(document, header) {
        let id = Id::node(node);
        let before = match (document.namespace(id), document.local_name(id)) {
            (WSSE, "UsernameToken") => token.replace(node),
            (WSU, "Timestamp") => times.replace(node),
            (DSIG | XENC, _) if mandatory => {
                let why = "signatures and encryption are not supported here";
                return Err(Denied::of(&["UnsupportedAlgorithm"], why));
            }
            _ if mandatory => {
                let why = "the Security header holds more than UsernameToken and Timestamp, and must be understood";
                return Err(Denied::unsupported(why));
            }
            _ => None,
        };
        if before.is_some() {
            let why = "the Security header has two UsernameTokens, or two Timestamps";
            return Err(Denied::invalid(why));
        }
    }
    Ok((token, times))
}

fn elements(document: &Document, node: u32) -> impl Iterator<Item = u32> {
    document
        .children(node)
        .filter(|node| document.node_kind(*node) == Kind::Element)
}

/// The one element of a name beneath another.
fn child(
    document: &Document,
    node: u32,
    namespace: &str,
    local: &str,
) -> Result<Option<u32>, Denied> {
    let mut found = elements(document, node).filter(|node| {
        let id = Id::node(*node);
        document.local_name(id) == local && document.namespace(id) == namespace
    });
    match (found.next(), found.next()) {
        (_, Some(_)) => Err(Denied::invalid(format!("{local} stands twice"))),
        (one, None) => Ok(one),
    }
}

/// The text of that element, which holds nothing else.
fn only_text(
    document: &Document,
    node: u32,
    namespace: &str,
    local: &str,
) -> Result<Option<String>, Denied> {
    let Some(node) = child(document, node, namespace, local)? else {
        return Ok(None);
    };
    let plain = |node| document.node_kind(node) == Kind::Text;
    if !document.children(node).all(plain) {
        return Err(Denied::invalid(format!("{local} holds more than text")));
    }
    Ok(Some(document.string_value(Id::node(node))))
}
