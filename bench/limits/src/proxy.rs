//! The bare proxy: the limit of a route that passes a request through.

use http_body_util::Full;
use hyper::Response;
use hyper::body::Incoming;

use crate::Fallible;
use crate::server::{Http, address, client, post, read, serve};

/// Bodies flow through; nothing is ever held whole.
pub fn streaming(port: u16, to: u16) -> Fallible<()> {
    let (client, to): (Http<Incoming>, _) = (client(), address(to)?);
    serve(port, move |mut request| {
        *request.uri_mut() = to.clone();
        let response = client.request(request);
        async { Ok(response.await?) }
    })
}

/// Bodies are read whole before they go on, as a bus must that promises anything about them.
pub fn buffered(port: u16, to: u16) -> Fallible<()> {
    let (client, to) = (client(), address(to)?);
    serve(port, move |request| {
        let (client, to) = (client.clone(), to.clone());
        async move {
            let body = read(request.into_body()).await?;
            let answer = post(&client, &to, "application/xml", body).await?;
            Ok(Response::new(Full::new(answer)))
        }
    })
}
