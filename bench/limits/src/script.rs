//! XML → quick-xml → rhai → XML, written by hand: the limit of a scripted mapping. The script sees a map of
//! the four fields that it needs and gives back a map of the four that are written.

use std::rc::Rc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use quick_xml::Writer;
use quick_xml::events::BytesText;
use rhai::{AST, Dynamic, Engine, Map, Scope};

use crate::Fallible;
use crate::order::Order;
use crate::server::{address, client, post, read, serve};

const SCRIPT: &str = r#"
fn invoice(order) {
    #{
        number: order.number,
        customer: order.customer,
        region: if order.country == "DE" { "home" } else { "abroad" },
        gross: parse_int(order.total) * 119 / 100,
    }
}
"#;

/// The compiled script.
pub struct Mapping {
    engine: Engine,
    ast: AST,
}

impl Mapping {
    /// Compiled once.
    pub fn new() -> Fallible<Self> {
        let engine = Engine::new();
        let ast = engine.compile(SCRIPT)?;
        Ok(Self { engine, ast })
    }

    /// An invoice of an order.
    pub fn apply(&self, document: &[u8]) -> Fallible<Bytes> {
        let order = Order::read(document)?;
        let map: Map = [
            ("number", order.number),
            ("customer", order.customer),
            ("country", order.country),
            ("total", order.total),
        ]
        .into_iter()
        .map(|(name, value)| (name.into(), Dynamic::from(value)))
        .collect();
        let mut scope = Scope::new();
        let made: Map = self
            .engine
            .call_fn(&mut scope, &self.ast, "invoice", (map,))?;
        let mut xml = Writer::new(Vec::with_capacity(512));
        let root = xml
            .create_element("invoice")
            .with_attribute(("xmlns", "urn:bench:invoice"));
        root.write_inner_content(|xml| {
            for name in ["number", "customer", "region", "gross"] {
                let value = made.get(name).map(Dynamic::to_string).unwrap_or_default();
                xml.create_element(name)
                    .write_text_content(BytesText::new(&value))?;
            }
            Ok(())
        })?;
        Ok(xml.into_inner().into())
    }
}

/// Maps orders, hands the invoices on and the answers back.
pub fn run(port: u16, to: u16) -> Fallible<()> {
    let (client, to, mapping) = (client(), address(to)?, Rc::new(Mapping::new()?));
    serve(port, move |request| {
        let (client, to, mapping) = (client.clone(), to.clone(), mapping.clone());
        async move {
            let body = read(request.into_body()).await?;
            let invoice = mapping.apply(&body)?;
            let answer = post(&client, &to, "application/xml", invoice).await?;
            Ok(Response::new(Full::new(answer)))
        }
    })
}
