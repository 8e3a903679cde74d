//! What the check of a UsernameToken costs a request, beside the one SHA-1 that it cannot do without.
//!
//! `cargo run --release -p xbus-http --example username_token`

use std::hint::black_box;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use xbus_core::Timestamp;
use xbus_http::security::{Security, digest};

const ENVELOPES: u32 = 20_000;
const ROUND: usize = 50;
const WSS: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss";

/// The best of many short rounds, which other programs seldom interrupt, in microseconds a run.
fn measure<T>(name: &str, all: &[T], mut run: impl FnMut(&T)) {
    let best = all
        .chunks_exact(ROUND)
        .map(|round| {
            let started = Instant::now();
            round.iter().for_each(&mut run);
            started.elapsed().as_secs_f64() * 1e6 / ROUND as f64
        })
        .fold(f64::MAX, f64::min);
    println!("{best:8.2} µs  {name}");
}

fn envelope(token: &str) -> String {
    format!(
        "<e:Envelope xmlns:e=\"http://schemas.xmlsoap.org/soap/envelope/\"><e:Header>{token}</e:Header>\
         <e:Body><o:order xmlns:o=\"urn:shop\" no=\"7\"/></e:Body></e:Envelope>"
    )
}

fn header(kind: &str, password: &str, more: &str) -> String {
    envelope(&format!(
        "<w:Security xmlns:w=\"{WSS}-wssecurity-secext-1.0.xsd\" xmlns:u=\"{WSS}-wssecurity-utility-1.0.xsd\" e:mustUnderstand=\"1\">\
         <w:UsernameToken u:Id=\"UsernameToken-1\"><w:Username>shop</w:Username>\
         <w:Password Type=\"{WSS}-username-token-profile-1.0#Password{kind}\">{password}</w:Password>{more}\
         </w:UsernameToken></w:Security>"
    ))
}

fn main() {
    let now = Timestamp::now();
    let created = now.to_string();
    let password = "open sesame";
    let nonces: Vec<[u8; 16]> = (0..ENVELOPES)
        .map(|number| {
            u128::from(number)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_le_bytes()
        })
        .collect();
    let digests: Vec<String> = nonces
        .iter()
        .map(|nonce| {
            let hashed = BASE64_STANDARD.encode(digest(nonce, &created, password));
            let nonce = BASE64_STANDARD.encode(nonce);
            let more = format!("<w:Nonce>{nonce}</w:Nonce><u:Created>{created}</u:Created>");
            header("Digest", &hashed, &more)
        })
        .collect();
    let text = header("Text", password, "");
    let guard = || {
        let users = [("shop".to_owned(), password.to_owned())];
        Security::new(users, Duration::from_secs(300))
    };
    println!("{} bytes of envelope, {ENVELOPES} nonces", digests[0].len());
    measure("SHA-1 and Base64 alone", &nonces, |nonce| {
        black_box(BASE64_STANDARD.encode(digest(nonce, &created, password)));
    });
    let texts = vec![text; digests.len()];
    let of_text = guard();
    measure(
        "a password as text, from bytes to the user",
        &texts,
        |envelope| {
            let caller = of_text.caller(envelope.as_bytes(), now);
            assert_eq!(caller.as_deref(), Ok("shop"));
        },
    );
    let of_digests = guard();
    measure(
        "a digest with its nonce, from bytes to the user",
        &digests,
        |envelope| {
            let caller = of_digests.caller(envelope.as_bytes(), now);
            assert_eq!(caller.as_deref(), Ok("shop"));
        },
    );
    measure(
        "a digest that comes again, to its refusal",
        &digests,
        |envelope| {
            assert!(of_digests.caller(envelope.as_bytes(), now).is_err());
        },
    );
    let plain = vec![envelope(""); digests.len()];
    measure(
        "an envelope without a token, to its refusal",
        &plain,
        |envelope| {
            assert!(of_digests.caller(envelope.as_bytes(), now).is_err());
        },
    );
}
