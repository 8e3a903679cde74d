//! Headers between HTTP and messages: which may pass, and under which names.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use xbus_core::Headers;

use crate::auth::API_KEY;
use crate::door::Config;
use crate::hub::Connection;
use crate::table::decode;

/// The message's id, in requests and answers.
pub(crate) static MESSAGE_ID: HeaderName = HeaderName::from_static("x-message-id");

/// The headers of the message: what the protocol says of it under its prefixes, and the request's
/// own, but for those that are secret, of one hop only, or feign a prefix.
pub(crate) fn headers(connection: &Connection, config: &Config, head: &Parts) -> Headers {
    let size: usize = head
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    let query = head.uri.query();
    let room = size + query.map_or(0, |query| query.len() + 32) + 64;
    let mut headers = Headers::with_capacity(head.headers.len() + 4, room);
    headers.append("http.method", config.served_as(&head.method).as_str());
    headers.append("http.client", &client(connection, &head.headers));
    for (name, value) in config.pattern.values(head.uri.path()) {
        headers.append(name, &value);
    }
    if let Some(query) = query {
        add_query(&mut headers, query);
    }
    let named_hop = hop_by_hop(&head.headers);
    let decoded = head.headers.contains_key(header::CONTENT_ENCODING);
    let takes = |name: &HeaderName| {
        let text = name.as_str();
        !(!passes(name)
            || config.auth.secret_header() == Some(name)
            || (decoded && *name == header::CONTENT_ENCODING)
            || (!connection.trusted && is_forwarding(text))
            || (text.contains('.') && is_reserved(text))
            || named_hop.is_some_and(|list| lists(list, text)))
    };
    add_all(&mut headers, "", &head.headers, takes);
    headers
}

/// Adds what `takes` accepts, under names that begin with `prefix`; several lines of one name become
/// one value (RFC 9110 section 5.3).
pub(crate) fn add_all(
    headers: &mut Headers,
    prefix: &str,
    from: &HeaderMap,
    takes: impl Fn(&HeaderName) -> bool,
) {
    if from.keys_len() == from.len() {
        // Each name once, as nearly always: nothing is looked up.
        for (name, value) in from.iter().filter(|(name, _)| takes(name)) {
            headers.append_under(prefix, name.as_str(), &text_of(value));
        }
        return;
    }
    for name in from.keys().filter(|name| takes(name)) {
        let values: Vec<_> = from.get_all(name).iter().map(text_of).collect();
        headers.append_under(prefix, name.as_str(), &values.join(", "));
    }
}

/// A header's value as text: UTF-8, or else ISO 8859-1.
fn text_of(value: &HeaderValue) -> Cow<'_, str> {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => text.into(),
        Err(_) => xbus_charset::latin1(value.as_bytes()),
    }
}

/// Whether a header may become a message header: not when it is a credential, of one hop (RFC 9110
/// section 7.6.1), or about the framing of the body.
pub(crate) fn passes(name: &HeaderName) -> bool {
    !matches!(
        name.as_str(),
        "authorization"
            | "cookie"
            | "proxy-authorization"
            | "proxy-authenticate"
            | "connection"
            | "transfer-encoding"
            | "content-length"
            | "te"
            | "trailer"
            | "upgrade"
            | "expect"
            | "keep-alive"
            | "proxy-connection"
            | API_KEY
    )
}

/// The same for the answers of destinations.
pub(crate) fn answer_passes(name: &HeaderName) -> bool {
    passes(name) && *name != header::SET_COOKIE
}

/// What the caller calls the work that the message belongs to.
pub(crate) fn correlation(head: &Parts) -> Option<&str> {
    let given = head.headers.get("x-correlation-id")?.to_str().ok();
    given.filter(|value| !value.is_empty())
}

fn hop_by_hop(headers: &HeaderMap) -> Option<&str> {
    let list = headers.get(header::CONNECTION)?.to_str().ok()?;
    let usual = list.eq_ignore_ascii_case("keep-alive") || list.eq_ignore_ascii_case("close");
    (!usual).then_some(list)
}

fn lists(list: &str, name: &str) -> bool {
    list.split(',')
        .any(|item| item.trim().eq_ignore_ascii_case(name))
}

fn is_forwarding(name: &str) -> bool {
    name.starts_with("x-forwarded-") || name == "forwarded" || name == "x-real-ip"
}

/// Whether a name has a prefix that only the bus sets.
fn is_reserved(name: &str) -> bool {
    ["http.", "path.", "query.", "amqp.", "mail.", "file."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// The caller's address; behind a trusted proxy the last one in X-Forwarded-For that is none.
pub(crate) fn client<'a>(connection: &'a Connection, headers: &HeaderMap) -> Cow<'a, str> {
    if !connection.trusted {
        return connection.client.as_str().into();
    }
    let networks = &connection.listener.settings.trusted_proxies;
    headers
        .get_all("x-forwarded-for")
        .iter()
        .rev()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.rsplit(','))
        .map_while(|item| item.trim().parse::<IpAddr>().ok())
        .find(|address| !networks.iter().any(|network| network.contains(*address)))
        .map_or_else(
            || connection.client.as_str().into(),
            |address| address.to_string().into(),
        )
}

/// Query parameters (WHATWG URL, application/x-www-form-urlencoded); of several with one name all
/// values count, joined by a comma as headers are.
fn add_query(headers: &mut Headers, query: &str) {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for pair in parameters(query) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = format!("query.{}", form_decode(name));
        let value = form_decode(value);
        match places.entry(name.to_ascii_lowercase()) {
            Entry::Occupied(place) => {
                let known = &mut found[*place.get()].1;
                known.push_str(", ");
                known.push_str(&value);
            }
            Entry::Vacant(place) => {
                place.insert(found.len());
                found.push((name, value));
            }
        }
    }
    for (name, value) in &found {
        headers.append(name, value);
    }
}

/// The parameters of a query as they came.
pub(crate) fn parameters(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').filter(|pair| !pair.is_empty())
}

/// A name or value of a form or query.
pub(crate) fn form_decode(text: &str) -> String {
    if text.contains('+') {
        decode(&text.replace('+', " ")).into_owned()
    } else {
        decode(text).into_owned()
    }
}
