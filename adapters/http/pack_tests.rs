//! Packages: what is put together is what comes out again, whatever it holds; and what was damaged
//! on the way is refused or read, never a panic.

use bytes::Bytes;
use proptest::prelude::*;
use xbus_core::{Attachment, Attachments, Message, MessageId};
use xbus_xml::xop;

use crate::pack::{self, Attach, Packed, Root};
use crate::package::{Form, Opened, open};
use crate::soap::{NS_11, NS_12, Version};

fn attachment(content_id: &str, body: impl Into<Bytes>) -> Attachment {
    Attachment {
        content_id: Some(content_id.into()),
        body: body.into(),
        ..Attachment::default()
    }
}

fn carrying(body: impl Into<Bytes>, attachments: Vec<Attachment>) -> Message {
    let mut message = Message::new(body.into());
    message.attachments = attachments.into();
    message
}

fn root(message: &Message) -> Root<'_> {
    Root {
        version: Version::V11,
        action: None,
        content_type: "text/xml; charset=utf-8",
        body: message.body.bytes(),
    }
}

fn envelope(content: &str) -> String {
    format!(
        "<e:Envelope xmlns:e=\"{NS_11}\" xmlns:x=\"{}\"><e:Body>{content}</e:Body></e:Envelope>",
        xop::NAMESPACE
    )
}

fn sent(attach: Option<Attach>, message: &Message) -> Result<Option<Packed>, String> {
    pack::soap(attach, None, message, &root(message))
        .map_err(|fault| fault.detail.unwrap_or_default())
}

fn opened(packed: &Packed) -> Opened {
    open(&packed.content_type, &packed.body, None).unwrap()
}

#[test]
fn without_attachments_nothing_changes() {
    let message = carrying(envelope("<a/>"), Vec::new());
    for attach in [
        None,
        Some(Attach::Swa),
        Some(Attach::Inline),
        Some(Attach::Left),
    ] {
        assert!(sent(attach, &message).unwrap().is_none(), "{attach:?}");
    }
    // A service that speaks MTOM alone would refuse anything else.
    let packed = sent(Some(Attach::Mtom), &message).unwrap().unwrap();
    assert_eq!(opened(&packed).form, Some(Form::Mtom));
}

#[test]
fn a_message_goes_as_it_refers_to_its_attachments() {
    let one = || vec![attachment("1@x", "octets")];
    let swa = carrying(envelope("<a href=\"cid:1@x\"/>"), one());
    let packed = sent(None, &swa).unwrap().unwrap();
    assert!(
        packed
            .content_type
            .starts_with("multipart/related; type=\"text/xml\"; start=")
    );
    assert_eq!(opened(&packed).form, Some(Form::Swa));
    let mtom = carrying(envelope("<a><x:Include href=\"cid:1@x\"/></a>"), one());
    let packed = sent(None, &mtom).unwrap().unwrap();
    assert!(
        packed.content_type.starts_with(
            "multipart/related; type=\"application/xop+xml\"; start-info=\"text/xml\"; start="
        ),
        "{}",
        packed.content_type
    );
    let text = String::from_utf8(packed.body.to_vec()).unwrap();
    assert!(
        text.contains("Content-Type: application/xop+xml; charset=utf-8; type=\"text/xml\"\r\n"),
        "{text}"
    );
    assert_eq!(opened(&packed).body, *mtom.body.bytes());
    assert!(packed.body[packed.root..].starts_with(mtom.body.bytes()));
    assert!(sent(Some(Attach::Left), &mtom).unwrap().is_none());
}

#[test]
fn actions_of_soap_12_go_along() {
    let body = Bytes::from(format!(
        "<e:Envelope xmlns:e=\"{NS_12}\"><e:Body/></e:Envelope>"
    ));
    let root = Root {
        version: Version::V12,
        action: Some("urn:a"),
        content_type: "application/soap+xml; charset=utf-8; action=\"urn:a\"",
        body: &body,
    };
    let all = Attachments::from(vec![attachment("1", "x")]);
    for form in [Form::Mtom, Form::Swa] {
        let packed = pack::related(form, MessageId::new(), &all, &root).unwrap();
        assert!(
            packed.content_type.contains("; action=\"urn:a\";"),
            "{}",
            packed.content_type
        );
        assert_eq!(opened(&packed).content_type, root.content_type, "{form:?}");
    }
}

#[test]
fn inline_puts_octets_where_they_are_referred_to() {
    let include = "<x:Include href=\"cid:a%20b\"/>";
    let message = carrying(
        envelope(&format!("<p>{include}</p><q>{include}</q>")),
        vec![attachment("a b", &b"\xff\x00"[..])],
    );
    let packed = sent(Some(Attach::Inline), &message).unwrap().unwrap();
    assert_eq!(packed.content_type, "text/xml; charset=utf-8");
    assert_eq!(packed.body, envelope("<p>/wA=</p><q>/wA=</q>"));

    let latin = "<?xml version='1.0' encoding='iso-8859-1'?><a xmlns:x=\"http://www.w3.org/2004/08/xop/include\">\u{e9}<x:Include href='cid:1'/></a>";
    let latin: Vec<u8> = latin.chars().map(|c| c as u8).collect();
    let message = carrying(latin, vec![attachment("1", "x")]);
    let root = Root {
        content_type: "text/xml; charset=iso-8859-1",
        ..root(&message)
    };
    let packed = pack::soap(Some(Attach::Inline), None, &message, &root)
        .unwrap()
        .unwrap();
    let text = String::from_utf8(packed.body.to_vec()).unwrap();
    assert!(text.starts_with("<a ") && text.contains("éeA=="), "{text}");
}

#[test]
fn what_cannot_be_sent_is_said() {
    let include = "<x:Include href=\"cid:1\"/>";
    for (attach, content, attachments, why) in [
        (
            Some(Attach::Inline),
            "",
            vec![attachment("1", "x")],
            "does not refer to attachment 1",
        ),
        (Some(Attach::Inline), include, vec![], "refers to '1'"),
        (Some(Attach::Mtom), include, vec![], "refers to '1'"),
        (None, include, vec![attachment("2", "x")], "refers to '1'"),
        (
            None,
            "",
            vec![attachment("1", "x"), attachment("1", "y")],
            "two attachments",
        ),
        (None, "", vec![attachment("1>\r\nX: y", "x")], "content id"),
        (None, "", vec![attachment("", "x")], "content id"),
        (
            None,
            "",
            vec![Attachment {
                content_type: Some("text/plain\r\nX: y".into()),
                ..Attachment::default()
            }],
            "control character",
        ),
    ] {
        let message = carrying(envelope(content), attachments);
        let Err(detail) = sent(attach, &message) else {
            panic!("sent: {why}");
        };
        assert!(detail.contains(why), "{detail}");
    }
}

#[test]
fn every_attempt_sends_the_same() {
    let message = carrying(
        envelope(""),
        vec![
            Attachment::default(),
            attachment("1", "x"),
            Attachment::default(),
        ],
    );
    let first = sent(None, &message).unwrap().unwrap();
    let second = sent(None, &message.clone()).unwrap().unwrap();
    assert_eq!(first.body, second.body);
    assert_eq!(first.content_type, second.content_type);
    // What has no content id gets one, as MTOM and SwA want it.
    let ids: Vec<_> = opened(&first)
        .attachments
        .iter()
        .map(|one| one.content_id.clone())
        .collect();
    assert!(ids[0].is_some() && ids[2].is_some() && ids[0] != ids[2]);
}

#[test]
fn a_boundary_stands_nowhere_in_what_it_divides() {
    let message = carrying(envelope(""), Vec::new());
    let usual = pack::boundary(message.id, std::iter::empty());
    let hostile = format!("\r\n--{usual}\r\nContent-ID: <evil>\r\n\r\nx\r\n--{usual}_1--\r\n");
    let message = Message {
        attachments: vec![attachment("1", hostile.clone())].into(),
        ..message
    };
    let packed = sent(None, &message).unwrap().unwrap();
    let back = opened(&packed);
    assert_eq!(back.attachments.len(), 1);
    assert_eq!(back.attachments[0].body, hostile);
}

/// Octets with a liking for what divides parts.
fn octets() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\r\n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r".to_vec()),
        Just(b"--".to_vec()),
        Just(b"--=_xbus_".to_vec()),
        Just(b"Content-Type: text/xml\r\n\r\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn what_is_put_together_comes_out_again(
        body in octets(),
        attachments in prop::collection::vec(
            (octets(), prop::option::of("\\PC{1,40}"), prop::option::of("[!-;=?-~]{1,30}")),
            0..5,
        ),
        boundary in "[0-9A-Za-z'()+_,./:=?-]{1,70}",
        bare in any::<bool>(),
    ) {
        let mut attachments: Vec<Attachment> = attachments
            .into_iter()
            .enumerate()
            .map(|(number, (body, name, id))| Attachment {
                name: name.map(|name| name.trim().to_owned())
                    .filter(|name| !name.is_empty() && !name.contains("=?"))
                    .map(Into::into),
                content_type: Some("application/x-thing".into()),
                content_id: id.map(|id| format!("{id}{number}").into()),
                body: body.into(),
            })
            .collect();
        let message = carrying(body.clone(), attachments.clone());
        let packed = pack::plain(message.id, &message.attachments, "text/plain", message.body.bytes())
            .unwrap();
        let back = opened(&packed);
        prop_assert_eq!(&back.body[..], &body[..]);
        prop_assert_eq!(back.attachments.len(), attachments.len());
        for (found, wanted) in back.attachments.iter().zip(&mut attachments) {
            if wanted.content_id.is_none() {
                wanted.content_id = found.content_id.clone();
            }
            // A path ahead of a name does not come in.
            wanted.name = wanted.name.as_deref().and_then(Attachment::file_name).map(Into::into);
            prop_assert_eq!(found, &*wanted);
            prop_assert_eq!(&found.body, &wanted.body);
        }
        // Another writer: its own boundary and line ends.
        let marker = format!("--{boundary}");
        let contains = |octets: &[u8]| {
            memchr::memmem::find(octets, marker.as_bytes()).is_some()
        };
        prop_assume!(!contains(&body) && !attachments.iter().any(|one| contains(&one.body)));
        let end = if bare { "\n" } else { "\r\n" };
        let mut other = Vec::new();
        for octets in std::iter::once(&body[..]).chain(attachments.iter().map(|one| &one.body[..])) {
            other.extend(format!("--{boundary}{end}X-Y: z{end}{end}").as_bytes());
            other.extend(octets);
            other.extend(end.as_bytes());
        }
        other.extend(format!("--{boundary}--").as_bytes());
        let content_type = format!("multipart/mixed; boundary=\"{boundary}\"");
        let back = open(&content_type, &other.into(), None).unwrap();
        prop_assert_eq!(&back.body[..], &body[..]);
        let bodies: Vec<&Bytes> = back.attachments.iter().map(|one| &one.body).collect();
        let wanted: Vec<&Bytes> = attachments.iter().map(|one| &one.body).collect();
        prop_assert_eq!(bodies, wanted);
    }

    #[test]
    fn anything_is_read_or_refused(body in octets(), content_type in "\\PC{0,80}") {
        let _ = open(&content_type, &body.clone().into(), None);
        let content_type = format!("multipart/related; boundary=\"=_xbus_\"; {content_type}");
        let _ = open(&content_type, &body.into(), None);
    }
}

/// Cut off anywhere, a package is refused; with any octet changed it is refused or read.
#[test]
fn what_was_damaged_on_the_way_is_refused_or_read() {
    let message = carrying(
        envelope("<a><x:Include href=\"cid:1@x\"/></a>"),
        vec![
            Attachment {
                name: Some("né.bin".into()),
                content_type: Some("application/octet-stream".into()),
                ..attachment("1@x", vec![0, 1, 2, 13, 10, 45, 45])
            },
            Attachment::default(),
        ],
    );
    let packed = sent(None, &message).unwrap().unwrap();
    let whole = opened(&packed);
    assert_eq!(whole.attachments.len(), 2);
    let last = packed.body.len() - 2;
    for length in 0..last {
        let cut = open(&packed.content_type, &packed.body.slice(..length), None);
        assert!(cut.is_err(), "cut off at {length}");
    }
    let mut refused = 0;
    for at in 0..packed.body.len() {
        for octet in [0, b'\n', b'"', b'<', b'-', packed.body[at] ^ 0x20, 0xff] {
            let mut garbled = packed.body.to_vec();
            garbled[at] = octet;
            match open(&packed.content_type, &garbled.into(), None) {
                Ok(opened) => assert!(opened.attachments.len() <= 2),
                Err(fault) => {
                    refused += 1;
                    assert!(!fault.reason.is_empty());
                }
            }
        }
    }
    assert!(refused > 100, "{refused}");
}
