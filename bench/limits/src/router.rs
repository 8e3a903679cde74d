//! Routing by an element of a SOAP body, written by hand: the limit of a content-based router.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;

use crate::Fallible;
use crate::order::first;
use crate::server::{address, client, post, read, serve};

const COUNTRY: [&str; 4] = ["Envelope", "Body", "order", "country"];
/// As long as what the bus answers.
const TAKEN: &str = "<soap:Envelope xmlns:soap=\"http://schemas.xmlsoap.org/soap/envelope/\"><soap:Body>\
    <ack xmlns=\"urn:xbus:reply:1\" id=\"0199a5d2-5b7a-7c43-8f6e-2f6f1c2d3e4f\" status=\"delivered\"/></soap:Body></soap:Envelope>";

/// Sends orders from Germany to the first destination, all others to the second, and acknowledges.
pub fn run(port: u16, german: u16, other: u16) -> Fallible<()> {
    let (client, german, other) = (client(), address(german)?, address(other)?);
    serve(port, move |request| {
        let (client, german, other) = (client.clone(), german.clone(), other.clone());
        async move {
            let body = read(request.into_body()).await?;
            let is_german = first(&body, &COUNTRY)?.as_deref() == Some("DE");
            let to = if is_german { &german } else { &other };
            post(&client, to, "text/xml; charset=utf-8", body).await?;
            Ok(Response::builder()
                .header("content-type", "text/xml; charset=utf-8")
                .body(Full::new(Bytes::from(TAKEN)))?)
        }
    })
}
