//! `GET path?wsdl`: a route's description, as it has to read for the one who asks. Its addresses and
//! what it imports are named as the caller reached this path: by the header Host, and behind a trusted
//! proxy by X-Forwarded-Proto, -Host, -Port and -Prefix.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};
use xbus_core::{Code, MessageId};

use crate::door::Door;
use crate::heads::parameters;
use crate::hub::Connection;
use crate::serve::{caller, check_head, is_host, unread};
use crate::shape::{self, Answer, Refusal, Shape};
use crate::soap::Version;
use crate::table::decode;

/// What is asked for.
enum Asked {
    /// `?wsdl`
    Main,
    /// `?wsdl=NAME`, `?xsd=NAME`
    Document(String),
}

/// Answers a request for a description; nothing when it is none, or its path has none.
pub(crate) fn answer(
    connection: &Arc<Connection>,
    head: &Parts,
    id: MessageId,
    shape: &mut Shape,
) -> Option<Result<Answer, Refusal>> {
    if !matches!(head.method, Method::GET | Method::HEAD) {
        return None;
    }
    let asked = asked(head.uri.query()?)?;
    let table = connection.listener.table.load();
    let doors: Vec<&Arc<Door>> = table
        .find(head.uri.path())?
        .iter()
        .filter(|door| door.config.wsdl.is_some())
        .collect();
    if doors.is_empty() {
        return None;
    }
    let version = doors.iter().find_map(|door| door.config.soap.as_ref());
    if let Some(soap) = version
        && !matches!(shape, Shape::Soap(_))
    {
        *shape = Shape::Soap(soap.version.unwrap_or(Version::V11));
    }
    Some(served(connection, head, id, &doors, &asked))
}

fn asked(query: &str) -> Option<Asked> {
    parameters(query).find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let is_wsdl = name.eq_ignore_ascii_case("wsdl");
        match value {
            "" if is_wsdl => Some(Asked::Main),
            value if is_wsdl || name.eq_ignore_ascii_case("xsd") => {
                Some(Asked::Document(decode(value).into_owned()))
            }
            _ => None,
        }
    })
}

fn served(
    connection: &Connection,
    head: &Parts,
    id: MessageId,
    doors: &[&Arc<Door>],
    asked: &Asked,
) -> Result<Answer, Refusal> {
    check_head(connection, head)?;
    let mut denied = None;
    let mut open = false;
    for door in doors {
        if let Err(refusal) = caller(connection, head, &door.config) {
            denied = denied.or(Some(refusal));
            continue;
        }
        open = true;
        let Some(wsdl) = &door.config.wsdl else {
            continue;
        };
        let name = match asked {
            Asked::Main => &wsdl.main,
            Asked::Document(name) => name,
        };
        if let Some(text) = wsdl.document(name, &base(connection, head)) {
            let content_type = HeaderValue::from_static("text/xml; charset=utf-8");
            return Ok(shape::answer(
                StatusCode::OK,
                content_type,
                Bytes::from(text),
                id,
            ));
        }
    }
    match denied {
        Some(refusal) if !open => Err(refusal),
        _ => Err(unread(
            Refusal::new(
                Code::NotFound,
                "the description has no document of that name",
            ),
            head,
        )),
    }
}

/// Where the caller reached this path: scheme, host, and path.
fn base(connection: &Connection, head: &Parts) -> String {
    let forwarded = |name: &str| {
        connection
            .trusted
            .then(|| last(&head.headers, name))
            .flatten()
    };
    let secure = connection.listener.settings.tls.is_some();
    let scheme = match forwarded("x-forwarded-proto") {
        Some(word) if word.eq_ignore_ascii_case("https") => "https",
        Some(word) if word.eq_ignore_ascii_case("http") => "http",
        _ if secure => "https",
        _ => "http",
    };
    let usable = |host: &&str| !host.is_empty() && is_host(host.as_bytes());
    let mut host = forwarded("x-forwarded-host")
        .filter(usable)
        .or_else(|| head.headers.get(header::HOST)?.to_str().ok().filter(usable))
        .unwrap_or(&connection.listener.settings.listen)
        .to_owned();
    let port = forwarded("x-forwarded-port").and_then(|port| port.parse::<u16>().ok());
    if let Some(port) = port {
        let name = without_port(&host).to_owned();
        host = match (scheme, port) {
            ("http", 80) | ("https", 443) => name,
            _ => format!("{name}:{port}"),
        };
    }
    let prefix = forwarded("x-forwarded-prefix")
        .filter(|prefix| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%".contains(&byte);
            prefix.starts_with('/') && !prefix.starts_with("//") && prefix.bytes().all(plain)
        })
        .map_or("", |prefix| prefix.trim_end_matches('/'));
    format!("{scheme}://{host}{prefix}{}", head.uri.path())
}

/// The value that the nearest proxy set: the last of several.
fn last<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    let value = value.rsplit(',').next().unwrap_or(value).trim();
    (!value.is_empty()).then_some(value)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_told_from_addresses() {
        assert_eq!(without_port("bus.example:8080"), "bus.example");
        assert_eq!(without_port("[::1]:80"), "[::1]");
        assert_eq!(without_port("[::1]"), "[::1]");
        assert_eq!(without_port("bus.example"), "bus.example");
    }

    #[test]
    fn questions_for_a_description_are_seen() {
        assert!(matches!(asked("wsdl"), Some(Asked::Main)));
        assert!(matches!(asked("a=b&WSDL="), Some(Asked::Main)));
        assert!(
            matches!(asked("xsd=a%20b/c.xsd"), Some(Asked::Document(name)) if name == "a b/c.xsd")
        );
        assert!(asked("a=wsdl").is_none() && asked("").is_none());
    }
}
