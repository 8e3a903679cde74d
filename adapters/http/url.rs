//! The address of a destination: scheme, host and port are fixed when the route is loaded, what
//! expressions give can only ever be one path segment or query value.

use std::fmt::Write as _;
use std::sync::Arc;

use http::Uri;
use http::uri::PathAndQuery;
use xbus_core::template::{Part, Template};
use xbus_core::{Code, Context, Expression, Fault, Message};

/// An address with its expressions.
pub(crate) struct Url {
    pub(crate) secure: bool,
    /// IPv6 addresses keep their brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// `user:password`, decoded.
    pub(crate) user_info: Option<String>,
    path: Path,
}

enum Path {
    Constant(Uri),
    Parts(Vec<Piece>),
}

enum Piece {
    Text(String),
    Expression(Arc<dyn Expression>),
}

impl Url {
    /// Reads `http://host:port/path?query` with `{{ }}` behind the host. The error says what is
    /// wrong and how to mend it.
    pub(crate) fn parse(template: &Template) -> Result<Self, (String, &'static str)> {
        const SHAPE: &str = "write http://HOST:PORT/PATH or https://HOST/PATH";
        let parts = template.parts();
        let Some(Part::Text(first)) = parts.first() else {
            return Err((
                "the address begins with an expression".into(),
                "scheme, host and port cannot come from a message: write them out, or use ${NAME}",
            ));
        };
        let (scheme, rest) = first
            .split_once("://")
            .ok_or_else(|| ("the address has no scheme".to_owned(), SHAPE))?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            other => return Err((format!("the scheme '{other}' is not http or https"), SHAPE)),
        };
        let end = rest.find(['/', '?', '#']);
        if end.is_none() && parts.len() > 1 {
            return Err((
                "an expression stands in the host or port of the address".into(),
                "scheme, host and port cannot come from a message: write them out, or use ${NAME}",
            ));
        }
        let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
        let (user_info, host_port) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(crate::table::decode(user).into_owned()), host),
            None => (None, authority),
        };
        let (host, port) = split_port(host_port, if secure { 443 } else { 80 })
            .ok_or_else(|| (format!("'{host_port}' is not a host and port"), SHAPE))?;
        if template_text(parts).any(|text| text.contains('#')) {
            return Err((
                "the address has a fragment".into(),
                "leave '#' and what follows out: it is never sent",
            ));
        }
        let mut pieces = vec![Piece::Text(if path.starts_with('/') {
            encode_text(path)
        } else {
            format!("/{}", encode_text(path))
        })];
        for part in &parts[1..] {
            pieces.push(match part {
                Part::Text(text) => Piece::Text(encode_text(text)),
                Part::Expression(expression) => Piece::Expression(expression.clone()),
            });
        }
        let path = match pieces.as_slice() {
            [Piece::Text(text)] => Path::Constant(uri(text).map_err(|why| (why, SHAPE))?),
            _ => Path::Parts(pieces),
        };
        Ok(Self {
            secure,
            host,
            port,
            user_info,
            path,
        })
    }

    /// The path where it is the same for all messages.
    pub(crate) fn path(&self) -> Option<&str> {
        match &self.path {
            Path::Constant(uri) => Some(uri.path()),
            Path::Parts(_) => None,
        }
    }

    /// Scheme, host and port as one writes them.
    pub(crate) fn place(&self) -> String {
        let (scheme, usual) = if self.secure {
            ("https", 443)
        } else {
            ("http", 80)
        };
        match self.port == usual {
            true => format!("{scheme}://{}", self.host),
            false => format!("{scheme}://{}:{}", self.host, self.port),
        }
    }

    /// Path and query for one message.
    pub(crate) fn target(&self, message: &Arc<Message>, context: &Context) -> Result<Uri, Fault> {
        let pieces = match &self.path {
            Path::Constant(uri) => return Ok(uri.clone()),
            Path::Parts(pieces) => pieces,
        };
        let mut out = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Expression(expression) => {
                    let value = expression.evaluate(message, context)?.into_text();
                    encode_value(&mut out, &value);
                }
            }
        }
        let path = out.split('?').next().unwrap_or_default();
        if path.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(Fault::new(
                Code::Transform,
                "a value cannot stand in the destination's address",
            )
            .detail("an expression of 'url' gave '.' or '..' as a path segment"));
        }
        uri(&out).map_err(|why| {
            Fault::new(Code::Transform, "the destination's address cannot be made").detail(why)
        })
    }
}

fn template_text(parts: &[Part]) -> impl Iterator<Item = &str> {
    parts.iter().filter_map(|part| match part {
        Part::Text(text) => Some(text.as_str()),
        Part::Expression(_) => None,
    })
}

fn uri(text: &str) -> Result<Uri, String> {
    text.parse::<PathAndQuery>()
        .map(Uri::from)
        .map_err(|error| format!("the address cannot be read: {error}"))
}

fn split_port(text: &str, usual: u16) -> Option<(String, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (text, usual),
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let inner = host.trim_start_matches('[').trim_end_matches(']');
    let good = if bracketed {
        inner.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        !host.is_empty() && host.chars().all(plain)
    };
    (good && port != 0).then(|| (host.to_owned(), port))
}

/// Encodes what cannot stand in an address; what the route's author wrote otherwise stays.
fn encode_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' ' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => {
                let _ = write!(out, "%{byte:02X}");
            }
            0x21..=0x7e => out.push(byte as char),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// Encodes everything but the unreserved characters (RFC 3986 section 2.3).
fn encode_value(out: &mut String, value: &str) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, with_build};

    /// Every second part is a header's name.
    fn template(parts: &[&'static str]) -> Template {
        let text: String = parts
            .iter()
            .enumerate()
            .map(|(at, part)| match at % 2 {
                0 => (*part).to_owned(),
                _ => format!("{{{{ header(\"{part}\") }}}}"),
            })
            .collect();
        let node = node(text.into());
        with_build(|build| build.template(&node).unwrap()).0
    }

    fn target(parts: &[&'static str], value: &str) -> Result<String, Fault> {
        let mut message = Message::new("");
        message.headers.set("no", value);
        let message = Arc::new(message);
        let context = Context::new("r".into(), message.clone());
        let url = Url::parse(&template(parts)).ok().unwrap();
        url.target(&message, &context).map(|uri| uri.to_string())
    }

    #[test]
    fn values_stay_within_their_segment_or_query_value() {
        let parts = &["http://a:81/x/", "no", "/y?z=", "no"];
        assert_eq!(
            target(parts, "a/b?c&d é").unwrap(),
            "/x/a%2Fb%3Fc%26d%20%C3%A9/y?z=a%2Fb%3Fc%26d%20%C3%A9"
        );
        assert!(target(parts, "..").is_err());
        assert_eq!(target(&["http://a/x?q=", "no"], "..").unwrap(), "/x?q=..");
        assert_eq!(target(&["http://a"], "").unwrap(), "/");
        assert_eq!(target(&["http://a?q=ü b"], "").unwrap(), "/?q=%C3%BC%20b");
    }

    #[test]
    fn scheme_host_and_port_are_fixed() {
        let url = Url::parse(&template(&["https://us%40er:pw@[::1]:8443/x"]))
            .ok()
            .unwrap();
        assert!(url.secure && url.host == "[::1]" && url.port == 8443);
        assert_eq!(url.user_info.as_deref(), Some("us@er:pw"));
        for bad in [
            &["", "no", "/x"][..],
            &["http://", "no", "/x"],
            &["http://a", "no"],
            &["http://a:", "no", "/x"],
            &["ftp://a/x"],
            &["a/x"],
            &["http:///x"],
            &["http://a:0/"],
            &["http://a b/"],
            &["http://a/#x"],
        ] {
            assert!(Url::parse(&template(bad)).is_err(), "{bad:?}");
        }
    }
}
