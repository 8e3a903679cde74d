//! Two invokes, a script, two distributes, written by hand: each awaits the one before, as the route says.

use std::rc::Rc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;

use crate::Fallible;
use crate::script::Mapping;
use crate::server::{address, client, post, read, serve};

/// As long as what the bus answers.
const TAKEN: &str = "<ack xmlns=\"urn:xbus:reply:1\" id=\"0199a5d2-5b7a-7c43-8f6e-2f6f1c2d3e4f\" status=\"delivered\"/>";
const XML: &str = "application/xml";

/// All four go to the one destination.
pub fn run(port: u16, to: u16) -> Fallible<()> {
    let (client, to, mapping) = (client(), address(to)?, Rc::new(Mapping::new()?));
    serve(port, move |request| {
        let (client, to, mapping) = (client.clone(), to.clone(), mapping.clone());
        async move {
            let order = read(request.into_body()).await?;
            let order = post(&client, &to, XML, order).await?;
            let invoice = mapping.apply(&order)?;
            let answer = post(&client, &to, XML, invoice).await?;
            post(&client, &to, XML, answer.clone()).await?;
            post(&client, &to, XML, answer).await?;
            Ok(Response::builder()
                .header("content-type", XML)
                .body(Full::new(Bytes::from(TAKEN)))?)
        }
    })
}
