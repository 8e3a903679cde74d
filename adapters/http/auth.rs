//! Who may call a route: user and password (RFC 7617), bearer tokens (RFC 6750), keys in a header,
//! client certificates. One of those that are configured is enough.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName};
use xbus_core::spec::{Args, Field, Node, Type};

use crate::tls::Subject;

pub(crate) static AUTH_FIELDS: &[Field] = &[
    Field::new(
        "basic",
        Type::Map(&Type::Secret),
        "User names with their passwords.",
    ),
    Field::new(
        "bearer",
        Type::OneOrMany(&Type::Secret),
        "Tokens that are accepted in `Authorization: Bearer`.",
    ),
    Field::new(
        "api_key",
        Type::Object(API_KEY_FIELDS),
        "Keys that are accepted in a header of their own.",
    ),
    Field::new(
        "client_certificate",
        Type::OneOrMany(&Type::Text),
        "Subjects of client certificates, whole (`CN=shop,O=Acme`) or the common name alone. Needs `tls.client_ca` on the listener.",
    ),
];

/// The usual header of keys, secret wherever it comes.
pub(crate) const API_KEY: &str = "x-api-key";

static API_KEY_FIELDS: &[Field] = &[
    Field::new("header", Type::Text, "The header that holds the key.").default("X-Api-Key"),
    Field::new(
        "keys",
        Type::OneOrMany(&Type::Secret),
        "The keys that are accepted.",
    )
    .required(),
];

/// Credentials with the callers that they stand for.
type Credentials = Vec<(String, Arc<str>)>;

/// What a route accepts.
#[derive(Default)]
pub(crate) struct Auth {
    /// As they stand after the scheme.
    basic: Credentials,
    bearer: Credentials,
    api_key: Option<(HeaderName, Credentials)>,
    subjects: Vec<String>,
}

/// Why a caller is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Denied {
    /// 401: credentials are missing or wrong; the challenge says what is asked for.
    Unauthorized(&'static str),
    /// 403: the certificate is missing or not one of those.
    Forbidden,
}

impl Auth {
    /// Reads `auth:`; problems are reported.
    pub(crate) fn build(args: Args<'_>) -> Self {
        let mut auth = Self::default();
        for (user, node) in args.entries("basic") {
            if user.name.contains(':') {
                args.build.problems.error(
                    &user.place,
                    "bad-value",
                    "a user name cannot hold ':'",
                    "choose another name",
                );
            }
            if let Some(password) = credential(args, node) {
                let pair = BASE64_STANDARD.encode(format!("{}:{password}", user.name));
                auth.basic.push((pair, Arc::from(user.name.as_str())));
            }
        }
        auth.bearer = numbered(args, "bearer", args.items("bearer"));
        if args.has("api_key") {
            let inner = args.object("api_key", API_KEY_FIELDS);
            let name = inner.text("header").unwrap_or_default();
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(header) => {
                    let keys = numbered(inner, "api-key", inner.items("keys"));
                    auth.api_key = Some((header, keys));
                }
                Err(_) => args.build.problems.error(
                    &inner.place("header"),
                    "bad-value",
                    format!("'{name}' is not a header name"),
                    "write a name such as X-Api-Key",
                ),
            }
        }
        auth.subjects = args.texts("client_certificate");
        auth
    }

    /// The header whose value must never become a message header.
    pub(crate) fn secret_header(&self) -> Option<&HeaderName> {
        self.api_key.as_ref().map(|(header, _)| header)
    }

    /// Who is calling; nothing when the route asks for no credentials.
    pub(crate) fn check(
        &self,
        headers: &HeaderMap,
        subject: Option<&Subject>,
    ) -> Result<Option<Arc<str>>, Denied> {
        let nothing_asked = self.basic.is_empty()
            && self.bearer.is_empty()
            && self.api_key.is_none()
            && self.subjects.is_empty();
        if nothing_asked {
            return Ok(None);
        }
        let found = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.trim().split_once(' '))
            .and_then(|(scheme, rest)| {
                let known = if scheme.eq_ignore_ascii_case("basic") {
                    &self.basic
                } else if scheme.eq_ignore_ascii_case("bearer") {
                    &self.bearer
                } else {
                    return None;
                };
                pick(known, rest.trim().as_bytes())
            })
            .or_else(|| {
                let (header, keys) = self.api_key.as_ref()?;
                pick(keys, headers.get(header)?.as_bytes())
            })
            .or_else(|| self.by_certificate(subject?));
        match found {
            Some(caller) => Ok(Some(caller)),
            None if !self.basic.is_empty() => Err(Denied::Unauthorized(
                "Basic realm=\"xbus\", charset=\"UTF-8\"",
            )),
            None if !self.bearer.is_empty() => Err(Denied::Unauthorized("Bearer realm=\"xbus\"")),
            None if self.api_key.is_some() => Err(Denied::Unauthorized("ApiKey realm=\"xbus\"")),
            None => Err(Denied::Forbidden),
        }
    }

    fn by_certificate(&self, subject: &Subject) -> Option<Arc<str>> {
        self.subjects
            .iter()
            .any(|allowed| {
                *allowed == subject.name || Some(allowed) == subject.common_name.as_ref()
            })
            .then(|| Arc::from(subject.name.as_str()))
    }
}

/// A credential that is not empty; an empty one would let everybody in.
fn credential<'a>(args: Args<'_>, node: &'a Node) -> Option<&'a str> {
    let text = node.text().unwrap_or_default();
    if text.is_empty() {
        args.build.problems.error(
            &node.place,
            "empty-credential",
            "the credential is empty",
            "set it, or leave 'auth' out to let everybody in",
        );
        return None;
    }
    Some(text)
}

fn numbered(args: Args<'_>, kind: &str, nodes: &[Node]) -> Credentials {
    nodes
        .iter()
        .enumerate()
        .filter_map(|(at, node)| {
            let text = credential(args, node)?;
            Some((text.to_owned(), Arc::from(format!("{kind}-{}", at + 1))))
        })
        .collect()
}

/// The caller whose credential is given. Each is compared in a time that does not tell how much of
/// it is right.
fn pick(known: &[(String, Arc<str>)], given: &[u8]) -> Option<Arc<str>> {
    let mut found = None;
    for (credential, caller) in known {
        if same(credential.as_bytes(), given) {
            found = Some(caller);
        }
    }
    found.cloned()
}

fn same(a: &[u8], b: &[u8]) -> bool {
    let differing = a
        .iter()
        .zip(b)
        .fold(0u8, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
    a.len() == b.len() && differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn auth() -> Auth {
        Auth {
            basic: vec![(BASE64_STANDARD.encode("shop:open sesame"), "shop".into())],
            bearer: vec![("t1".into(), "bearer-1".into())],
            api_key: Some((
                HeaderName::from_static("x-api-key"),
                vec![("k1".into(), "api-key-1".into())],
            )),
            subjects: vec!["erp".into(), "CN=shop,O=Acme".into()],
        }
    }

    fn with(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        headers
    }

    #[test]
    fn any_of_the_configured_ways_lets_in() {
        let auth = auth();
        let caller = |headers: &HeaderMap| auth.check(headers, None).ok().flatten();
        let basic = BASE64_STANDARD.encode("shop:open sesame");
        for (name, value, expected) in [
            ("authorization", format!("Basic {basic}"), Some("shop")),
            ("authorization", format!("basic  {basic}"), Some("shop")),
            ("authorization", "Bearer t1".into(), Some("bearer-1")),
            ("authorization", "Bearer t1x".into(), None),
            ("authorization", "Bearer ".into(), None),
            ("authorization", "Basic t1".into(), None),
            ("x-api-key", "k1".into(), Some("api-key-1")),
            ("x-api-key", "".into(), None),
        ] {
            assert_eq!(caller(&with(name, &value)).as_deref(), expected, "{value}");
        }
        let subject = |name: &str, common: &str| Subject {
            name: name.into(),
            common_name: Some(common.into()),
        };
        let by = |subject: Subject| auth.check(&HeaderMap::new(), Some(&subject));
        assert!(by(subject("CN=erp,O=Other", "erp")).is_ok());
        assert!(by(subject("CN=shop,O=Acme", "shop")).is_ok());
        assert!(by(subject("CN=shop,O=Evil", "shop")).is_err());
    }

    #[test]
    fn without_auth_everybody_may_call_and_nobody_is_named() {
        let none = Auth::default();
        assert_eq!(none.check(&HeaderMap::new(), None), Ok(None));
        let certificates = Auth {
            subjects: vec!["erp".into()],
            ..Auth::default()
        };
        let denied = certificates.check(&HeaderMap::new(), None);
        assert_eq!(denied, Err(Denied::Forbidden));
    }
}
