use std::time::{Duration, Instant};

use super::reader::{Reader, Step};
use super::tree::{Document, NodeRef};
use super::write::Writer;
use super::{XmlLimits, split_name};

fn limits() -> XmlLimits {
    XmlLimits::default()
}

fn refused(text: &str) -> String {
    match Document::parse(text, &limits()) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_character_that_may_not_stand_in_xml_is_told_with_its_place() {
    let place = |bytes: &[u8]| {
        let mut reader = Reader::of_bytes(bytes, &limits());
        loop {
            match reader.step() {
                Ok(Step::Document) => panic!("well-formed"),
                Ok(_) => {}
                Err(error) => return (error.line, error.column),
            }
        }
    };
    for wrong in [&b"\x01"[..], b"\xff"] {
        assert_eq!(
            place(&[b"<a>\n<n>CO", wrong, b"N</n></a>"].concat()),
            (2, 6)
        );
        let far = [b"<a>".repeat(300), b"\n\xc3\xa9".to_vec(), wrong.to_vec()].concat();
        assert_eq!(place(&far), (2, 2));
    }
}

#[test]
fn what_is_not_well_formed_is_refused_with_its_place() {
    for (text, part) in [
        ("", "no root element"),
        ("<a>", "ends within an element"),
        ("<a></b>", "expected `</a>`"),
        ("<a/>x", "text outside"),
        ("x<a/>", "text outside"),
        ("<a/><b/>", "second root"),
        ("<a/><![CDATA[x]]>", "CDATA section outside"),
        ("&lt;<a/>", "reference outside"),
        ("<1a/>", "not a name"),
        ("<a:b:c/>", "not a name"),
        ("<:a/>", "not a name"),
        ("< a/>", ""),
        ("<a\u{d7}/>", "not a name"),
        ("<a b/>", "has no value"),
        ("<a b=c/>", "not quoted"),
        ("<a b='1'c='2'/>", "white space"),
        ("<a b='1' b='2'/>", "appears twice"),
        (
            "<a xmlns:p='u' xmlns:q='u' p:b='1' q:b='2'/>",
            "appears twice",
        ),
        ("<a b='<'/>", "'<' within a value"),
        ("<a b='&'/>", "does not begin a reference"),
        ("<a b='&x;'/>", "not declared"),
        ("<a>&x;</a>", "not declared"),
        ("<a>&#0;</a>", "not a character"),
        ("<a>&#xD800;</a>", "not a character"),
        ("<a>&#x;</a>", "not a character"),
        ("<a>&#+1;</a>", "not a character"),
        ("<a>& b</a>", ""),
        ("<a>]]></a>", "']]>'"),
        ("<a>\u{8}</a>", "U+0008"),
        ("<a>\u{ffff}</a>", "U+FFFF"),
        ("<a><!-- a -- b --></a>", ""),
        ("<a><!-- a </a>", ""),
        ("<a><?xml x?></a>", "XML declaration"),
        ("<a><?XmL x?></a>", "XML declaration"),
        ("<a><?1 x?></a>", "processing instruction"),
        (" <?xml version='1.0'?><a/>", "XML declaration"),
        (
            "<?xml version='1.0'?><?xml version='1.0'?><a/>",
            "XML declaration",
        ),
        ("<?xml?><a/>", "version is missing"),
        ("<?xml version='2.0'?><a/>", "not allowed"),
        ("<?xml encoding='utf-8'?><a/>", "the order is"),
        (
            "<?xml version='1.0' standalone='maybe'?><a/>",
            "not allowed",
        ),
        ("<?xml version='1.0'encoding='utf-8'?><a/>", "white space"),
        ("<?xml version='1.0' encoding='-'?><a/>", "not allowed"),
        ("<!DOCTYPE a><a/>", "DTD"),
        ("<a><!DOCTYPE a></a>", "DTD"),
        ("<!ELEMENT a ANY><a/>", ""),
        ("<p:a/>", "prefix 'p' is not declared"),
        ("<a p:b='1'/>", "prefix 'p' is not declared"),
        ("<a xmlns:p=''/>", "cannot be undeclared"),
        ("<a xmlns:xmlns='u'/>", "cannot be declared"),
        ("<a xmlns:xml='u'/>", "belong together"),
        (
            "<a xmlns:p='http://www.w3.org/XML/1998/namespace'/>",
            "belong together",
        ),
        ("<a xmlns:p='u' xmlns:p='v'/>", "declared twice"),
        ("<xmlns:a/>", "prefix xmlns"),
    ] {
        let error = refused(text);
        assert!(error.contains(part), "{text}: {error}");
        assert!(error.contains("(line "), "{error}");
    }
    assert!(refused("<a>\n  <b>\n</a>").contains("(line 3, column 1)"));
}

#[test]
fn another_parser_agrees_on_small_inputs() {
    // Every text of up to six pieces of markup: uppsala is asked as well.
    let pieces = [
        "<a>",
        "</a>",
        "<b/>",
        "x",
        "&amp;",
        "<!--c-->",
        "<![CDATA[d]]>",
        "<?p q?>",
        " ",
    ];
    let mut parser_agreed = 0;
    let mut texts = vec![String::new()];
    for _ in 0..5 {
        let mut longer = Vec::new();
        for text in &texts {
            for piece in pieces {
                longer.push(format!("{text}{piece}"));
            }
        }
        for text in &longer {
            let ours = Document::parse(text, &limits()).is_ok();
            let theirs = uppsala::Parser::new()
                .with_forbid_dtd(true)
                .parse(text)
                .is_ok();
            assert_eq!(ours, theirs, "{text}");
            parser_agreed += 1;
        }
        if longer.len() > 7_000 {
            break;
        }
        texts = longer;
    }
    assert!(parser_agreed > 7_000);
}

/// What is read of a document, as texts; neighbouring pieces of text are one.
fn events(mut reader: Reader<'_>) -> Result<Vec<String>, String> {
    let mut out: Vec<String> = Vec::new();
    let text = |out: &mut Vec<String>, piece: &str| match out.last_mut() {
        Some(last) if last.starts_with('"') => last.push_str(piece),
        _ => out.push(format!("\"{piece}")),
    };
    loop {
        match reader.step().map_err(|error| error.message)? {
            Step::Start => {
                let tag = reader.tag();
                let attributes: Vec<String> = (tag.attributes.iter())
                    .map(|a| format!(" {}={}", a.name, a.value))
                    .collect();
                out.push(format!("<{} {}{attributes:?}", tag.name, tag.namespace()));
            }
            Step::End => out.push("</".into()),
            Step::Text(piece) => text(&mut out, &piece),
            Step::Character(c) => text(&mut out, c.encode_utf8(&mut [0; 4])),
            Step::Comment(text) => out.push(format!("<!--{text}")),
            Step::Instruction(target, data) => out.push(format!("<?{target} {data}")),
            Step::Document => return Ok(out),
        }
    }
}

#[test]
fn where_a_document_is_cut_on_the_way_does_not_matter() {
    for piece in [
        "<é:ab xmlns:é='ü' c='1>2' d=\"'\"/><p:b xmlns:p = 'u' p:c=''></p:b >",
        "x]]&gt;y&#x20AC;&amp;€ä\r\nz\r",
        "<!-- - a -> b --><?p q? r?><![CDATA[]] ]>]]]><![CDATA[]]>",
        "<a><b>\u{10ffff}</b></a>",
        "<a>]]></a>",
        "<a b='1' b='2'/>",
        "<a></ab>",
        "<!-- a --- >",
        "&a b;",
        "<![CDATA[ ]] >",
        "<!DOCTYPE a>",
        "<\u{ffff}/>",
    ] {
        let whole = |pad: usize| format!("<r>{}.{piece}</r>", " ".repeat(pad));
        let read = |text: &str| {
            let read = events(Reader::of_text(text, &limits()));
            assert_eq!(events(Reader::of_bytes(text.as_bytes(), &limits())), read);
            read.map(|mut events| {
                events[1] = events[1].replace(' ', "");
                events
            })
        };
        let expected = read(&whole(0));
        for pad in 1..80 {
            let text = whole(pad);
            assert_eq!(read(&text), expected, "{text}");
        }
    }
}

#[test]
fn bytes_that_are_no_text_are_found_where_they_are_read() {
    let read = |bytes: &[u8]| events(Reader::of_bytes(bytes, &limits()));
    assert_eq!(
        read(b"\xef\xbb\xbf<?xml version='1.0'?><a/>"),
        read(b"<a/>")
    );
    for bytes in [
        &b"<a>\xff</a>"[..],
        b"<a>12345678901\xe2\x82</a>",
        b"<a/>\xe2\x82",
    ] {
        assert!(read(bytes).unwrap_err().contains("UTF-8"), "{bytes:?}");
    }
}

#[test]
fn mistakes_in_the_markup_are_told_where_they_begin() {
    for (text, place) in [
        ("<a>\n</b>", (2, 1)),
        ("<a>\n  </a", (2, 3)),
        ("<a>\né &b </a>", (2, 3)),
        ("<a>\n<!-- b", (2, 1)),
        ("<a>\n<![CDATA[ b ]]", (2, 1)),
        ("<a>\n<b c='>", (2, 1)),
        ("<a/>\n</a>", (2, 1)),
        ("\u{feff}<a>\n &b; </a>", (2, 2)),
        ("\u{feff}\u{feff}<a/>", (1, 2)),
        ("<a>\n\u{1}<b></a>", (2, 1)),
    ] {
        for reader in [
            Reader::of_text(text, &limits()),
            Reader::of_bytes(text.as_bytes(), &limits()),
        ] {
            let mut reader = reader;
            let error = loop {
                match reader.step() {
                    Ok(Step::Document) => panic!("accepted: {text}"),
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert_eq!((error.line, error.column), place, "{text}: {error}");
        }
    }
}

#[test]
fn limits_are_kept_in_little_time() {
    let started = Instant::now();
    let wide = format!(
        "<a {}/>",
        (0..100_000)
            .map(|n| format!("a{n}='' "))
            .collect::<String>()
    );
    assert!(refused(&wide).contains("more than 1000 attributes"));
    assert!(refused(&"<a>".repeat(100_000)).contains("more than 256 deep"));
    let deep = format!("{}{}", "<a>".repeat(256), "</a>".repeat(256));
    assert!(Document::parse(&deep, &limits()).is_ok());
    let declared: String = (0..300).map(|n| format!(" xmlns:p{n}='u{n}'")).collect();
    assert!(refused(&format!("<a{declared}/>")).contains("namespace declarations"));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn what_is_read_is_written_with_its_meaning() {
    for (text, written) in [
        (
            "<a b='1\t2\n3&#9;\"'>x\r\ny&#13;]]&gt;<!--c--><?p q?></a>",
            "<a b=\"1 2 3&#9;&quot;\">x\ny&#13;]]&gt;<!--c--><?p q?></a>",
        ),
        (
            "<?xml version='1.0'?>\n<!--x--><a xmlns='u'><b xmlns=''/><c/></a>",
            "<!--x--><a xmlns=\"u\"><b xmlns=\"\"/><c/></a>",
        ),
        (
            "<p:a xmlns:p='u' p:b='1' xml:lang='de'/>",
            "<p:a xmlns:p=\"u\" p:b=\"1\" xml:lang=\"de\"/>",
        ),
        ("<a><![CDATA[<&]]></a>", "<a>&lt;&amp;</a>"),
    ] {
        let document = Document::parse(text, &limits()).unwrap();
        let none = std::collections::BTreeMap::new();
        let mut writer = Writer::new(10_000, &none);
        writer.node(&NodeRef::root(document.into())).unwrap();
        let out = writer.finish();
        assert_eq!(out, written, "{text}");
        Document::parse(&out, &limits()).unwrap();
    }
}

#[test]
fn names_are_split_by_one_colon_and_checked() {
    for (name, parts) in [
        ("a", Some(("", "a"))),
        ("_a.b-1", Some(("", "_a.b-1"))),
        ("p:a", Some(("p", "a"))),
        ("ü:ä1", Some(("ü", "ä1"))),
        ("p:ä", Some(("p", "ä"))),
        ("", None),
        (":", None),
        (":a", None),
        ("p:", None),
        ("p:1", None),
        ("1p:a", None),
        ("p:a:b", None),
        ("-a", None),
        ("a b", None),
        ("p:·", None),
    ] {
        assert_eq!(split_name(name), parts, "{name}");
    }
}
