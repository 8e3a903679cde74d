//! Who may ask what: the token (RFC 6750), and what stands in for it on the bus's own machine.
//!
//! Without a token a web page in the administrator's browser is the danger: it can reach loopback,
//! by its own name that resolves to 127.0.0.1 (DNS rebinding: the `Host` is then that name) or by a
//! form that posts across sites (the `Origin` is then that page's). Both are refused.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, StatusCode, header};
use subtle::ConstantTimeEq;

use crate::Shared;
use crate::error::ApiError;
use crate::listener::Peer;

/// Lets a request to the API in.
pub(crate) async fn api(
    State(app): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    match &app.settings.token {
        Some(token) => with_token(&request, token)?,
        None => from_here(&request)?,
    }
    Ok(next.run(request).await)
}

/// Lets a request for the metrics in: from this machine, or with the token.
pub(crate) async fn metrics(
    State(app): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Err(outside) = from_here(&request) {
        match &app.settings.token {
            Some(token) => with_token(&request, token)?,
            None => return Err(outside),
        }
    }
    Ok(next.run(request).await)
}

fn with_token(request: &Request, token: &str) -> Result<(), ApiError> {
    let refused = |why| Err(ApiError::new(StatusCode::UNAUTHORIZED, why));
    let Some(value) = request.headers().get(header::AUTHORIZATION) else {
        return refused("a token is needed: Authorization: Bearer TOKEN");
    };
    let given = value.as_bytes();
    let scheme = given.get(..7).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return refused("a token is needed: Authorization: Bearer TOKEN");
    }
    if bool::from(given[7..].trim_ascii().ct_eq(token.as_bytes())) {
        Ok(())
    } else {
        refused("the token is not the one of this bus")
    }
}

fn from_here(request: &Request) -> Result<(), ApiError> {
    let refused = |why: &str| Err(ApiError::new(StatusCode::FORBIDDEN, why));
    let near = request
        .extensions()
        .get::<Peer>()
        .is_some_and(|peer| peer.0.ip().to_canonical().is_loopback());
    if !near {
        return refused("without a token the admin side answers this machine only");
    }
    let host = text(request.headers(), header::HOST);
    let target = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    let local = host.is_some_and(is_local) && target.is_none_or(is_local);
    if !local {
        return refused(
            "without a token the admin side answers to localhost, 127.0.0.1 and [::1] only; set admin.token to use another name",
        );
    }
    let foreign = text(request.headers(), header::ORIGIN)
        .is_some_and(|origin| origin.split_once("://").map(|(_, rest)| rest) != host);
    let across = text(
        request.headers(),
        header::HeaderName::from_static("sec-fetch-site"),
    )
    .is_some_and(|site| site != "same-origin" && site != "none");
    if foreign || across {
        return refused("web pages of other sites are not let in");
    }
    Ok(())
}

/// The value of a header; one that is not plain text counts as an empty one.
fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers
        .get(name)
        .map(|value| value.to_str().unwrap_or_default())
}

/// Whether `authority` (name and maybe port) is a name that only this machine has.
fn is_local(authority: &str) -> bool {
    let name = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn only_this_machines_names_are_local() {
        for name in [
            "localhost",
            "LOCALHOST:9090",
            "127.0.0.1:1",
            "127.1.2.3",
            "[::1]:9090",
            "[::1]",
        ] {
            assert!(is_local(name), "{name}");
        }
        for name in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "10.0.0.1",
            "[::2]:80",
            "0.0.0.0:9090",
        ] {
            assert!(!is_local(name), "{name}");
        }
    }
}
