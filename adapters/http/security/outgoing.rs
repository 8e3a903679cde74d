//! The Security header of requests that go out: made anew for each attempt, so that neither nonce
//! nor time is used twice and no password waits in a queue.

use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::crypto::ring;
use xbus_core::Timestamp;
use xbus_core::spec::{Args, Field, Secret, Type};

use super::username_token::{BASE64, PROFILE, encoded};
use super::{WSSE, WSU};
use crate::soap::Version;
use crate::xml;

/// The keys of `soap.username_token` on a sender.
pub(crate) static TOKEN_FIELDS: &[Field] = &[
    Field::new("user", Type::Text, "The user.").required(),
    Field::new("password", Type::Secret, "The password.").required(),
    Field::new(
        "type",
        Type::Choice(&["text", "digest"]),
        "How the password is sent: as it is (PasswordText), or as a digest of nonce, time and password (PasswordDigest).",
    )
    .default("text"),
];

/// What a sender says of security in its `soap` key.
pub(crate) struct Outgoing {
    token: Option<Token>,
    /// How long a message may be used from when it is sent.
    timestamp: Option<Duration>,
    version: Version,
}

struct Token {
    user: String,
    password: Secret,
    digest: bool,
}

impl Outgoing {
    /// Reads `username_token` and `timestamp` of a sender's `soap`; nothing where neither stands.
    /// Problems are reported.
    pub(crate) fn build(args: Args<'_>, version: Version) -> Option<Self> {
        let token = args.has("username_token").then(|| {
            let inner = args.object("username_token", TOKEN_FIELDS);
            let token = Token {
                user: inner.text("user").unwrap_or_default(),
                password: inner.secret("password").unwrap_or_default(),
                digest: inner.text("type").as_deref() == Some("digest"),
            };
            let sendable = |text: &str| text.chars().all(|c| !c.is_control() && xml::is_char(c));
            for (key, text) in [("user", &token.user), ("password", &token.password.0)] {
                if inner.has(key) && (text.is_empty() || !sendable(text)) {
                    inner.build.problems.error(
                        &inner.place(key),
                        "bad-value",
                        format!("'{key}' is empty, or holds characters that no token can hold"),
                        "control characters and line ends cannot be sent",
                    );
                }
            }
            token
        });
        let timestamp = args.duration("timestamp");
        if timestamp.is_some_and(|timestamp| timestamp < Duration::from_secs(1)) {
            args.build.problems.error(
                &args.place("timestamp"),
                "bad-value",
                "a message cannot expire within a second",
                "write how long it may be used, such as 5m",
            );
        }
        (token.is_some() || timestamp.is_some()).then_some(Self {
            token,
            timestamp,
            version,
        })
    }

    /// Whether the password goes over the network as it is.
    pub(crate) fn shows_password(&self) -> bool {
        self.token.as_ref().is_some_and(|token| !token.digest)
    }

    /// The header, with a nonce of its own and the time. Nothing when the system has no random
    /// numbers.
    pub(crate) fn header(&self, now: Timestamp) -> Option<String> {
        let mut out = String::with_capacity(1200);
        let must = match self.version {
            Version::V11 => "1",
            Version::V12 => "true",
        };
        let soap = self.version.namespace();
        let _ = write!(
            out,
            "<wsse:Security xmlns:wsse=\"{WSSE}\" xmlns:wsu=\"{WSU}\" xmlns:soap=\"{soap}\" soap:mustUnderstand=\"{must}\">"
        );
        let created = now.to_string();
        if let Some(lifetime) = self.timestamp {
            let expires = now.after(lifetime);
            let _ = write!(
                out,
                "<wsu:Timestamp><wsu:Created>{created}</wsu:Created><wsu:Expires>{expires}</wsu:Expires></wsu:Timestamp>"
            );
        }
        if let Some(token) = &self.token {
            let nonce = random()?;
            out.push_str("<wsse:UsernameToken><wsse:Username>");
            xml::escape_into(&mut out, &token.user);
            let kind = if token.digest { "Digest" } else { "Text" };
            let _ = write!(
                out,
                "</wsse:Username><wsse:Password Type=\"{PROFILE}#Password{kind}\">"
            );
            match token.digest {
                true => out.push_str(&encoded(&nonce, &created, &token.password.0)),
                false => xml::escape_into(&mut out, &token.password.0),
            }
            let nonce = BASE64_STANDARD.encode(nonce);
            let _ = write!(
                out,
                "</wsse:Password><wsse:Nonce EncodingType=\"{BASE64}\">{nonce}</wsse:Nonce><wsu:Created>{created}</wsu:Created></wsse:UsernameToken>"
            );
        }
        out.push_str("</wsse:Security>");
        Some(out)
    }
}

/// Sixteen bytes that nobody can guess; nothing when the system has none.
pub(super) fn random() -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .ok()?;
    Some(bytes)
}
