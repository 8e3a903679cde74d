//! Holds a document against a schema, and says how long it takes:
//! `cargo run --release -p xbus-xml --example validate -- SCHEMA DOCUMENT [TIMES]`.

use std::path::Path;
use std::time::Instant;

use xbus_core::Message;
use xbus_xml::XmlLimits;
use xbus_xml::schema::Schema;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(schema), Some(document)) = (arguments.next(), arguments.next()) else {
        return Err("name a schema and a document".into());
    };
    let times: u32 = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let path = Path::new(&schema).canonicalize()?;
    // Schemas that are spread over folders reach one level up.
    let root = path.parent().and_then(Path::parent).unwrap_or(&path);
    let started = Instant::now();
    let (schema, findings) = Schema::load(root, path.strip_prefix(root)?);
    let built = started.elapsed();
    let Some(schema) = schema else {
        println!("schema: {findings:?}");
        return Ok(());
    };
    for finding in &findings {
        println!("finding: {finding:?}");
    }
    let bytes = std::fs::read(&document)?;
    let started = Instant::now();
    let mut outcome = Ok(());
    for _ in 0..times {
        outcome = schema.check_message(&Message::new(bytes.clone()));
    }
    let both = started.elapsed() / times;
    let started = Instant::now();
    for _ in 0..times {
        let message = Message::new(bytes.clone());
        let _ = xbus_xml::cache::of(&message).document(&message, &XmlLimits::default());
    }
    let parsing = started.elapsed() / times;
    println!(
        "built {built:?}, parsed and checked {both:?}, parsed alone {parsing:?}, {} bytes; {} errors",
        bytes.len(),
        usize::from(outcome.is_err())
    );
    if let Err(text) = outcome {
        println!("   {text}");
    }
    Ok(())
}
