//! What is let in and what is not, from whole envelopes.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use xbus_core::Timestamp;
use xbus_core::spec::Args;

use super::username_token::{BASE64, PROFILE, encoded};
use super::{Denied, FIELDS, Nonces, Outgoing, Security, WSSE, WSU};
use crate::soap::{NS_11, NS_12, Version, look};
use crate::testing::{node, with_build};

const NOW: &str = "2026-11-22T12:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn security(token: serde_json::Value) -> Security {
    let node = node(json!({ "username_token": token }));
    let nonces = Arc::new(Nonces::default());
    let (security, problems) =
        with_build(|build| Security::build(Args::new(Some(&node), FIELDS, build), &nonces));
    assert!(problems.is_empty(), "{problems:?}");
    security.expect("settings")
}

fn shop() -> Security {
    security(json!({ "users": { "shop": "s3cret & <more>", "erp": "pw" } }))
}

fn envelope(header: &str) -> String {
    format!(
        "<e:Envelope xmlns:e=\"{NS_11}\" xmlns:w=\"{WSSE}\" xmlns:u=\"{WSU}\"><e:Header>{header}</e:Header><e:Body/></e:Envelope>"
    )
}

fn header(content: &str) -> String {
    envelope(&format!("<w:Security>{content}</w:Security>"))
}

fn check(security: &Security, envelope: &str) -> Result<Arc<str>, Denied> {
    let seen = look(envelope.as_bytes(), None, false).expect("an envelope");
    security.check(&seen.security, at(NOW))
}

/// The fault code, or the user.
fn outcome(security: &Security, envelope: &str) -> String {
    match check(security, envelope) {
        Ok(user) => user.to_string(),
        Err(denied) => denied.codes.join("/"),
    }
}

fn text(user: &str, password: &str) -> String {
    format!(
        "<w:UsernameToken><w:Username>{user}</w:Username><w:Password>{password}</w:Password></w:UsernameToken>"
    )
}

fn digest(user: &str, password: &str, nonce: &str, created: &str) -> String {
    let digest = encoded(nonce.as_bytes(), created, password);
    let nonce = BASE64_STANDARD.encode(nonce);
    format!(
        "<w:UsernameToken u:Id=\"x\"><w:Username>{user}</w:Username><w:Password Type=\"{PROFILE}#PasswordDigest\">{digest}</w:Password><w:Nonce EncodingType=\"{BASE64}\">{nonce}</w:Nonce><u:Created>{created}</u:Created></w:UsernameToken>"
    )
}

#[test]
fn passwords_as_text_let_in() {
    let security = shop();
    for (token, expected) in [
        (text("erp", "pw"), "erp"),
        (text("shop", "s3cret &amp; &lt;more>"), "shop"),
        (text("shop", "<![CDATA[s3cret & <more>]]>"), "shop"),
        (text("erp", "pW"), "FailedAuthentication"),
        (text("erp", ""), "FailedAuthentication"),
        (text("erp", "pw "), "FailedAuthentication"),
        (text("nobody", "pw"), "FailedAuthentication"),
        (text("nobody", ""), "FailedAuthentication"),
        (text("", ""), "FailedAuthentication"),
        (text("er<!-- -->p", "pw"), "InvalidSecurity"),
        (text("erp", "<b>pw</b>"), "InvalidSecurity"),
        (
            text("erp", "pw").replace(
                "<w:Password>",
                &format!("<w:Password Type=\"{PROFILE}#PasswordText\">"),
            ),
            "erp",
        ),
        (
            text("erp", "pw").replace("<w:Password>", "<w:Password Type=\"urn:x\">"),
            "UnsupportedSecurityToken",
        ),
        (
            text("erp", "pw").replace("<w:Password>pw</w:Password>", ""),
            "UnsupportedSecurityToken",
        ),
        (
            text("erp", "pw").replace("<w:Username>erp</w:Username>", ""),
            "InvalidSecurity",
        ),
        (
            text("erp", "pw").replace("<w:Username>", "<w:Username>shop</w:Username><w:Username>"),
            "InvalidSecurity",
        ),
    ] {
        assert_eq!(outcome(&security, &header(&token)), expected, "{token}");
    }
    // What an unknown user and a wrong password are told is the same.
    let refused = |token: &str| {
        check(&security, &header(token))
            .expect_err("refused")
            .reason
    };
    assert_eq!(refused(&text("nobody", "x")), refused(&text("erp", "x")));
}

#[test]
fn digests_let_in_once_and_while_they_are_fresh() {
    let security = shop();
    let password = "s3cret & <more>";
    for (token, expected) in [
        (digest("shop", password, "n1", NOW), "shop"),
        (digest("shop", password, "n1", NOW), "InvalidSecurityToken"),
        (
            digest("shop", password, "n1", "2026-11-22T12:00:01Z"),
            "InvalidSecurityToken",
        ),
        (digest("erp", "pw", "n1", NOW), "erp"),
        (
            digest("shop", password, "n2", "2026-11-22T13:58:00.5+02:00"),
            "shop",
        ),
        (
            digest("shop", password, "n3", "2026-11-22T11:55:00"),
            "shop",
        ),
        (
            digest("shop", password, "n4", "2026-11-22T11:54:59Z"),
            "MessageExpired",
        ),
        (
            digest("shop", password, "n5", "2026-11-22T12:01:00Z"),
            "shop",
        ),
        (
            digest("shop", password, "n6", "2026-11-22T12:01:01Z"),
            "MessageExpired",
        ),
        (
            digest("shop", password, "n7", "yesterday"),
            "InvalidSecurity",
        ),
        (digest("shop", "guess", "n8", NOW), "FailedAuthentication"),
        // What was refused for its password is not used up.
        (digest("shop", password, "n8", NOW), "shop"),
        (digest("nobody", "", "n9", NOW), "FailedAuthentication"),
        (digest("shop", password, "", NOW), "InvalidSecurity"),
        (digest("shop", password, &"n".repeat(256), NOW), "shop"),
        (
            digest("shop", password, &"n".repeat(257), NOW),
            "InvalidSecurity",
        ),
        (
            digest("shop", password, "n10", NOW).replace("Base64Binary", "HexBinary"),
            "UnsupportedSecurityToken",
        ),
        (
            digest("shop", password, "n11", NOW).replace("<w:Nonce ", "<w:Nonce\n wsu='1' "),
            "shop",
        ),
        (
            digest("shop", password, "n12", NOW).replace("#Base64Binary\">", "#Base64Binary\">*"),
            "InvalidSecurity",
        ),
    ] {
        assert_eq!(outcome(&security, &header(&token)), expected, "{token}");
    }
    let without = |part: &str, end: &str| {
        let token = digest("shop", password, "n13", NOW);
        let (before, rest) = token.split_once(part).expect("the part");
        let (_, after) = rest.split_once(end).expect("its end");
        header(&format!("{before}{after}"))
    };
    for (part, end) in [("<w:Nonce", "</w:Nonce>"), ("<u:Created", "</u:Created>")] {
        assert_eq!(outcome(&security, &without(part, end)), "InvalidSecurity");
    }
    // Created in the namespace around it, and without the padding of Base64: real callers do both.
    let other = digest("shop", password, "n14", NOW)
        .replace("u:Created", "w:Created")
        .replace("=</w:", "</w:");
    assert_eq!(outcome(&security, &header(&other)), "shop");
}

#[test]
fn text_with_a_nonce_counts_once_too() {
    let security = shop();
    let token = text("erp", "pw").replace(
        "</w:UsernameToken>",
        &format!("<w:Nonce>bm9uY2U=</w:Nonce><u:Created>{NOW}</u:Created></w:UsernameToken>"),
    );
    assert_eq!(outcome(&security, &header(&token)), "erp");
    assert_eq!(outcome(&security, &header(&token)), "InvalidSecurityToken");
    let old = token
        .replace("12:00:00", "11:00:00")
        .replace("bm9u", "bm8u");
    assert_eq!(outcome(&security, &header(&old)), "MessageExpired");
}

#[test]
fn a_type_can_be_asked_for() {
    let with = |kind: &str| security(json!({ "users": { "erp": "pw" }, "type": kind }));
    let (plain, hashed) = (text("erp", "pw"), digest("erp", "pw", "n", NOW));
    let unsupported = "UnsupportedSecurityToken";
    assert_eq!(outcome(&with("digest"), &header(&plain)), unsupported);
    assert_eq!(outcome(&with("digest"), &header(&hashed)), "erp");
    assert_eq!(outcome(&with("text"), &header(&plain)), "erp");
    assert_eq!(outcome(&with("text"), &header(&hashed)), unsupported);
}

#[test]
fn timestamps_end_and_do_not_lie_ahead() {
    let security = shop();
    for (times, expected) in [
        ("", "erp"),
        (
            "<u:Created>2026-11-22T11:59:00Z</u:Created><u:Expires>2026-11-22T12:00:01Z</u:Expires>",
            "erp",
        ),
        // It says itself how long it may be used.
        (
            "<u:Created>2026-11-22T09:00:00Z</u:Created><u:Expires>2026-11-22T13:00:00Z</u:Expires>",
            "erp",
        ),
        (
            "<u:Created>2026-11-22T11:59:00Z</u:Created><u:Expires>2026-11-22T12:00:00Z</u:Expires>",
            "MessageExpired",
        ),
        (
            "<u:Expires>2026-11-22T11:59:59.999Z</u:Expires>",
            "MessageExpired",
        ),
        ("<u:Created>2026-11-22T12:00:59Z</u:Created>", "erp"),
        (
            "<u:Created>2026-11-22T12:01:01Z</u:Created>",
            "MessageExpired",
        ),
        (
            "<u:Created>2026-11-22T12:01:01Z</u:Created><u:Expires>2026-11-22T13:00:00Z</u:Expires>",
            "MessageExpired",
        ),
        (
            "<u:Created>2026-11-22T11:54:59Z</u:Created>",
            "MessageExpired",
        ),
        (
            "<u:Created>2026-11-22T11:59:00Z</u:Created><u:Expires>2026-11-22T11:58:00Z</u:Expires>",
            "InvalidSecurity",
        ),
        ("<u:Created>soon</u:Created>", "InvalidSecurity"),
        (
            "<u:Created>2026-11-22T12:00:00Z</u:Created><u:Created>2026-11-22T12:00:00Z</u:Created>",
            "InvalidSecurity",
        ),
    ] {
        let content = format!("<u:Timestamp>{times}</u:Timestamp>{}", text("erp", "pw"));
        assert_eq!(outcome(&security, &header(&content)), expected, "{times}");
    }
}

#[test]
fn what_is_missing_doubled_or_of_another_kind_is_refused() {
    let security = shop();
    let good = text("erp", "pw");
    let token = |attributes: &str, content: &str| {
        envelope(&format!("<w:Security {attributes}>{content}</w:Security>"))
    };
    let must = "e:mustUnderstand=\"1\"";
    let signature = "<d:Signature xmlns:d=\"http://www.w3.org/2000/09/xmldsig#\"/>";
    let key = "<x:EncryptedKey xmlns:x=\"http://www.w3.org/2001/04/xmlenc#\"/>";
    let binary = "<w:BinarySecurityToken>AAAA</w:BinarySecurityToken>";
    for (envelope, expected) in [
        (envelope(""), "InvalidSecurity"),
        (token("", ""), "InvalidSecurity"),
        (envelope("<w:Security/>"), "InvalidSecurity"),
        (
            token("", &format!("<w:Nested>{good}</w:Nested>")),
            "InvalidSecurity",
        ),
        (
            token("xmlns:o=\"urn:o\"", &good.replace("w:", "o:")),
            "InvalidSecurity",
        ),
        (token("", &format!("{good}{good}")), "InvalidSecurity"),
        (
            token("", &format!("{good}<u:Timestamp/><u:Timestamp/>")),
            "InvalidSecurity",
        ),
        (token("", &format!("{good}{signature}{binary}")), "erp"),
        (token(must, &good), "erp"),
        (
            token(must, &format!("{good}{signature}")),
            "UnsupportedAlgorithm",
        ),
        (token(must, &format!("{key}{good}")), "UnsupportedAlgorithm"),
        (
            token(must, &format!("{binary}{good}")),
            "UnsupportedSecurityToken",
        ),
        (
            token(must, &format!("{good}<x xmlns=\"urn:x\"/>")),
            "UnsupportedSecurityToken",
        ),
        // A header for another one is none for us.
        (token("e:actor=\"urn:other\"", &good), "InvalidSecurity"),
        (token("e:actor=\"\"", &good), "erp"),
        (
            token(
                "e:actor=\"http://schemas.xmlsoap.org/soap/actor/next\"",
                &good,
            ),
            "erp",
        ),
        (
            envelope(&format!(
                "<w:Security e:actor=\"urn:other\">{}</w:Security><w:Security>{good}</w:Security>",
                text("shop", "x")
            )),
            "erp",
        ),
        (
            envelope(&format!(
                "<w:Security>{good}</w:Security><w:Security>{good}</w:Security>"
            )),
            "InvalidSecurity",
        ),
        (
            envelope(&format!(
                "<w:Security>{good}</w:Security><w:Security e:actor=\"http://schemas.xmlsoap.org/soap/actor/next\"/>"
            )),
            "InvalidSecurity",
        ),
        (
            token("", &format!("{good}<a>{}</a>", "x".repeat(70_000))),
            "InvalidSecurity",
        ),
        (
            token(
                "",
                &format!("{good}{}{}", "<a>".repeat(40), "</a>".repeat(40)),
            ),
            "InvalidSecurity",
        ),
    ] {
        assert_eq!(outcome(&security, &envelope), expected, "{envelope}");
    }
    // What is not well-formed is refused before.
    let twice = token("", &format!("{good}<a b=\"1\" b=\"2\"/>"));
    assert!(look(twice.as_bytes(), None, false).is_err());
}

#[test]
fn namespaces_of_the_elements_around_count() {
    let security = shop();
    let plain = format!(
        "<Envelope xmlns='{NS_12}' xmlns:q='urn:\"x\"'><Header><Security xmlns='{WSSE}' xmlns:wsu='{WSU}'><UsernameToken><Username>erp</Username><Password>pw</Password></UsernameToken></Security></Header><Body/></Envelope>"
    );
    assert_eq!(outcome(&security, &plain), "erp");
    let shadowed = format!(
        "<w:Envelope xmlns:w='{NS_12}'><w:Header xmlns:x='{WSSE}'><w:Security xmlns:w='{WSSE}'>{}</w:Security></w:Header><w:Body/></w:Envelope>",
        text("erp", "pw")
    );
    assert_eq!(outcome(&security, &shadowed), "erp");
}

#[test]
fn what_is_sent_is_let_in_and_never_the_same_twice() {
    let fields = crate::sender::SOAP_FIELDS;
    for (version, namespace) in [(Version::V11, NS_11), (Version::V12, NS_12)] {
        for kind in ["text", "digest"] {
            let soap = node(json!({
                "username_token": { "user": "shop", "password": "s3cret & <more>", "type": kind },
                "timestamp": "5m"
            }));
            let (outgoing, problems) =
                with_build(|build| Outgoing::build(Args::new(Some(&soap), fields, build), version));
            assert!(problems.is_empty(), "{problems:?}");
            let outgoing = outgoing.expect("a header");
            assert_eq!(outgoing.shows_password(), kind == "text");
            let made = || {
                let header = outgoing.header(at(NOW)).expect("random numbers");
                format!(
                    "<e:Envelope xmlns:e=\"{namespace}\"><e:Header>{header}</e:Header><e:Body/></e:Envelope>"
                )
            };
            let (one, other) = (made(), made());
            assert_ne!(one, other, "the nonce is new");
            assert_eq!(one.contains("s3cret"), kind == "text");
            let security = shop();
            for envelope in [&one, &other] {
                let seen = look(envelope.as_bytes(), None, false).expect("an envelope");
                assert_eq!(seen.must_understand.len(), 1);
                let caller = security.check(&seen.security, at(NOW)).expect("let in");
                assert_eq!(&*caller, "shop");
                let later = at(NOW).after(Duration::from_secs(301));
                let denied = security.check(&seen.security, later).expect_err("expired");
                assert_eq!(denied.codes, ["MessageExpired"]);
            }
        }
    }
}

#[test]
fn settings_that_cannot_be_meant_are_told() {
    for (token, code) in [
        (json!({ "users": {} }), "bad-value"),
        (json!({ "users": { "erp": "" } }), "empty-credential"),
        (
            json!({ "users": { "erp": "pw" }, "window": "0s" }),
            "bad-value",
        ),
        (
            json!({ "users": { "erp": "pw" }, "window": "2d" }),
            "bad-value",
        ),
    ] {
        let node = node(json!({ "username_token": token }));
        let nonces = Arc::new(Nonces::default());
        let (_, problems) =
            with_build(|build| Security::build(Args::new(Some(&node), FIELDS, build), &nonces));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].code, code);
    }
}
