use std::fs;

use super::*;

const XS: &str = "xmlns:xs=\"http://www.w3.org/2001/XMLSchema\"";

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text.replace("XS", XS)).unwrap();
    }
    folder
}

fn load(files: &[(&str, &str)]) -> (Option<Schema>, Vec<Finding>) {
    let folder = folder(files);
    Schema::load(folder.path(), Path::new(files[0].0))
}

#[track_caller]
fn good(files: &[(&str, &str)]) -> Schema {
    let (schema, findings) = load(files);
    assert_eq!(findings, []);
    schema.unwrap()
}

fn said(files: &[(&str, &str)]) -> Vec<(bool, usize, String)> {
    load(files)
        .1
        .into_iter()
        .map(|finding| (finding.error, finding.line, finding.message))
        .collect()
}

fn check(schema: &Schema, text: &str) -> Result<(), String> {
    schema.check_message(&Message::new(text.to_owned()))
}

#[test]
fn files_are_read_within_the_folder_once_and_in_circles() {
    let schema = good(&[
        (
            "a/main.xsd",
            "<xs:schema XS xmlns:b=\"urn:b\" xmlns=\"urn:a\" targetNamespace=\"urn:a\">\
             <xs:include schemaLocation=\"./part.xsd\"/><xs:include schemaLocation=\"part.xsd\"/>\
             <xs:import namespace=\"urn:b\" schemaLocation=\"../b.xsd\"/>\
             <xs:element name=\"root\"><xs:complexType><xs:sequence>\
             <xs:element name=\"p\" type=\"Part\"/><xs:element ref=\"b:q\"/>\
             </xs:sequence></xs:complexType></xs:element></xs:schema>",
        ),
        // Without a namespace: it has that of whoever includes it.
        (
            "a/part.xsd",
            "<xs:schema XS><xs:simpleType name=\"Part\"><xs:restriction base=\"Word\">\
             <xs:maxLength value=\"3\"/></xs:restriction></xs:simpleType>\
             <xs:simpleType name=\"Word\"><xs:restriction base=\"xs:token\"/></xs:simpleType></xs:schema>",
        ),
        (
            "b.xsd",
            "<xs:schema XS xmlns:a=\"urn:a\" targetNamespace=\"urn:b\">\
             <xs:import namespace=\"urn:a\" schemaLocation=\"a/main.xsd\"/>\
             <xs:element name=\"q\" type=\"a:Part\"/></xs:schema>",
        ),
    ]);
    let document = |p: &str| {
        format!("<a:root xmlns:a='urn:a' xmlns:b='urn:b'>\n<p>{p}</p><b:q>q</b:q></a:root>")
    };
    assert_eq!(check(&schema, &document("abc")), Ok(()));
    let why = check(&schema, &document("abcdef")).unwrap_err();
    assert!(why.starts_with("line 2, column 1: element 'p': "), "{why}");
    assert!(why.ends_with("(cvc-maxLength-valid)"), "{why}");
}

#[test]
fn what_lies_outside_or_nowhere_is_said_with_its_line() {
    for location in [
        "../out.xsd",
        "/etc/passwd",
        "http://127.0.0.1:1/x.xsd",
        "file:///etc/passwd",
    ] {
        let main =
            format!("<xs:schema XS>\n<xs:include schemaLocation=\"{location}\"/></xs:schema>");
        let found = said(&[("main.xsd", &main)]);
        assert!(found[0].0 && found[0].1 == 2, "{found:?}");
        assert!(
            found[0].2.contains("only files in transforms/"),
            "{found:?}"
        );
    }
    let found = said(&[(
        "main.xsd",
        "<xs:schema XS xmlns:b=\"urn:b\">\n<xs:import namespace=\"urn:b\" schemaLocation=\"none.xsd\"/>\n\
         <xs:element name=\"a\" type=\"b:T\"/>\n<xs:element name=\"b\" type=\"xs:strin\"/></xs:schema>",
    )]);
    assert_eq!(
        found.iter().map(|(_, line, _)| *line).collect::<Vec<_>>(),
        [3, 4]
    );
    assert!(
        found[0].2.contains("none.xsd") && found[1].2.contains("'strin'"),
        "{found:?}"
    );
    let found = said(&[(
        "main.xsd",
        "<xs:schema XS>\n<xs:elemnt name=\"a\"/></xs:schema>",
    )]);
    assert!(found[0].0 && found[0].1 == 2, "{found:?}");
    let found = said(&[("main.xsd", "<a>\n")]);
    assert!(found[0].0, "{found:?}");
}

#[test]
fn locations_are_percent_decoded() {
    let schema = good(&[
        (
            "main.xsd",
            "<xs:schema XS xmlns:b=\"urn:b\"><xs:include schemaLocation=\"Gr%C3%B6%C3%9Fe%20%281%29.xsd\"/>\
             <xs:import namespace=\"urn:b\" schemaLocation='./sub%2Db/b%26c.xsd'/>\
             <xs:element name=\"a\"><xs:complexType><xs:sequence><xs:element name=\"s\" type=\"Size\"/>\
             <xs:element name=\"t\" type=\"b:T\"/></xs:sequence></xs:complexType></xs:element></xs:schema>",
        ),
        (
            "Größe (1).xsd",
            "<xs:schema XS><xs:simpleType name=\"Size\"><xs:restriction base=\"xs:int\"/></xs:simpleType></xs:schema>",
        ),
        (
            "sub-b/b&c.xsd",
            "<xs:schema XS targetNamespace=\"urn:b\"><xs:simpleType name=\"T\"><xs:restriction base=\"xs:date\"/></xs:simpleType></xs:schema>",
        ),
    ]);
    assert_eq!(check(&schema, "<a><s>1</s><t>2026-01-31</t></a>"), Ok(()));
    assert!(check(&schema, "<a><s>x</s><t>2026-01-31</t></a>").is_err());
    assert!(check(&schema, "<a><s>1</s><t>x</t></a>").is_err());
    for outside in ["%2e%2e/x.xsd", "%2Fetc/passwd", "a%5C..%5C..%5Cx.xsd"] {
        assert_eq!(beneath(Path::new("main.xsd"), outside), None, "{outside}");
    }
    assert_eq!(
        beneath(Path::new("in/main.xsd"), "%2e%2e/x%zz.xsd"),
        Some("x%zz.xsd".into())
    );
}

#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_not_followed() {
    let outside = folder(&[(
        "x.xsd",
        "<xs:schema XS><xs:element name=\"a\"/></xs:schema>",
    )]);
    let inside = folder(&[(
        "main.xsd",
        "<xs:schema XS><xs:include schemaLocation=\"link.xsd\"/></xs:schema>",
    )]);
    std::os::unix::fs::symlink(outside.path().join("x.xsd"), inside.path().join("link.xsd"))
        .unwrap();
    let (schema, findings) = Schema::load(inside.path(), Path::new("main.xsd"));
    assert!(schema.is_none());
    assert!(findings[0].message.contains("outside"), "{findings:?}");
}

#[test]
fn in_a_wsdl_what_nothing_defines_is_open_and_told() {
    let wsdl = "<w:definitions xmlns:w=\"http://schemas.xmlsoap.org/wsdl/\" XS xmlns:t=\"urn:t\"><w:types>\n\
        <xs:schema targetNamespace=\"urn:t\">\n\
        <xs:complexType name=\"D\"><xs:complexContent><xs:extension base=\"t:Gone\"><xs:sequence>\
        <xs:element name=\"own\"/></xs:sequence></xs:extension></xs:complexContent></xs:complexType>\n\
        <xs:element name=\"a\"><xs:complexType><xs:sequence><xs:element name=\"x\" type=\"t:Gone\"/>\
        <xs:element name=\"d\" type=\"t:D\"/><xs:element name=\"n\" type=\"xs:int\"/>\
        </xs:sequence></xs:complexType></xs:element></xs:schema></w:types></w:definitions>";
    let (schema, findings) = load(&[("s.wsdl", wsdl)]);
    let lines: Vec<(bool, usize)> = findings.iter().map(|f| (f.error, f.line)).collect();
    assert_eq!(lines, [(false, 3), (false, 4)], "{findings:?}");
    let schema = schema.unwrap();
    let document = |n: &str| {
        format!(
            "<t:a xmlns:t='urn:t'><x><any c='1'>thing</any></x><d><z/><own/></d><n>{n}</n></t:a>"
        )
    };
    assert_eq!(check(&schema, &document("1")), Ok(()));
    assert!(check(&schema, &document("one")).is_err());
}

#[test]
fn breaches_name_line_element_and_rule_and_no_value() {
    let schema = good(&[(
        "main.xsd",
        "<xs:schema XS><xs:element name=\"a\"><xs:complexType><xs:sequence>\
         <xs:element name=\"pin\" minOccurs=\"0\" maxOccurs=\"9\"><xs:simpleType><xs:restriction base=\"xs:string\">\
         <xs:pattern value=\"^[0-9]{4}$|[0-9]{4}\"/></xs:restriction></xs:simpleType></xs:element>\
         <xs:element name=\"data\" minOccurs=\"0\" type=\"xs:base64Binary\"/>\
         <xs:element name=\"list\" minOccurs=\"0\"><xs:simpleType><xs:list itemType=\"xs:int\"/></xs:simpleType></xs:element>\
         </xs:sequence><xs:attribute name=\"on\" type=\"xs:date\"/></xs:complexType></xs:element></xs:schema>",
    )]);
    assert_eq!(
        check(&schema, "<a><pin>1234</pin><pin>^1234$</pin></a>"),
        Ok(())
    );
    // As mail and other tools wrap it.
    assert_eq!(check(&schema, "<a><data>YWJj\r\nYWI=\n</data></a>"), Ok(()));
    for (text, parts, secret) in [
        (
            "<a>\n <pin>hunter2</pin></a>",
            &["line 2, column 2", "'pin'", "pattern"][..],
            "hunter2",
        ),
        (
            "<a on='yesterday'/>",
            &["attribute 'on' of element 'a'", "cvc-"],
            "yesterday",
        ),
        (
            "<a><list>1 secret 3</list></a>",
            &["element 'list'"],
            "secret",
        ),
        ("<a><data>secret!</data></a>", &["element 'data'"], "secret"),
        (
            "<a><pin>1234</pin><b>secret</b></a>",
            &["element 'b'", "cvc-complex-type"],
            "secret",
        ),
        (
            "<a>secret</a>",
            &["element 'a'", "cvc-complex-type"],
            "secret",
        ),
        ("<b>secret</b>", &["element 'b'", "cvc-elt.1"], "secret"),
        ("<a><pin>1234</pin>", &["not well-formed"], "1234"),
    ] {
        let why = check(&schema, text).unwrap_err();
        for part in parts {
            assert!(why.contains(part), "{part}: {why}");
        }
        assert!(!why.contains(secret), "{why}");
    }
}

#[test]
fn patterns_have_subtractions_blocks_and_names() {
    let schema = good(&[(
        "main.xsd",
        "<xs:schema XS><xs:element name=\"a\"><xs:simpleType><xs:restriction base=\"xs:string\">\n\
         <xs:pattern value='[a-z-[aeiou]]+ [\\p{IsGreek}]\\P{IsBasicLatin} [\\i-[:]][\\c-[:]]*\\s[&quot;&lt;-[a]]'/>\
         </xs:restriction></xs:simpleType></xs:element></xs:schema>",
    )]);
    assert_eq!(check(&schema, "<a>xyz ωß Ärger-1\t&lt;</a>"), Ok(()));
    for (text, why) in [
        ("<a>xez ωß Ärger-1 &lt;</a>", "a vowel"),
        ("<a>xyz wß Ärger-1 &lt;</a>", "no Greek"),
        ("<a>xyz ωs Ärger-1 &lt;</a>", "in the block"),
        ("<a>xyz ωß Är:er-1 &lt;</a>", "a colon"),
        ("<a>xyz ωß Ärger-1\u{a0}&lt;</a>", "no white space of XML"),
    ] {
        assert!(check(&schema, text).is_err(), "{why}");
    }
}

#[test]
fn patterns_that_cannot_be_read_are_refused_with_their_line() {
    let found = said(&[(
        "main.xsd",
        "<xs:schema XS><xs:element name=\"a\"><xs:simpleType><xs:restriction base=\"xs:string\">\n\
         <xs:pattern value=\"[a-z-[aeiou]\"/>\n<xs:pattern value=\"\\p{IsKlingon}\"/>\
         </xs:restriction></xs:simpleType></xs:element></xs:schema>",
    )]);
    assert_eq!(
        found.iter().map(|(_, line, _)| *line).collect::<Vec<_>>(),
        [2, 3],
        "{found:?}"
    );
}

#[test]
fn a_document_type_declaration_in_a_schema_is_passed_over() {
    let schema = good(&[(
        "main.xsd",
        "<!DOCTYPE xs:schema PUBLIC \"-//x>\" \"x.dtd\" [ <!ENTITY a '>'> <!-- ]> --> ]>\n\
         <xs:schema XS><xs:element name=\"a\" type=\"xs:int\"/></xs:schema>",
    )]);
    assert_eq!(check(&schema, "<a>1</a>"), Ok(()));
}

#[test]
fn hostile_documents_cost_little_and_many_threads_share_a_schema() {
    fn shared<T: Send + Sync>() {}
    shared::<Schema>();
    let schema = Arc::new(good(&[(
        "main.xsd",
        "<xs:schema XS><xs:element name=\"a\"><xs:complexType><xs:sequence>\
         <xs:any minOccurs=\"0\" maxOccurs=\"unbounded\" processContents=\"lax\"/></xs:sequence>\
         <xs:anyAttribute processContents=\"lax\"/></xs:complexType></xs:element>\
         <xs:element name=\"p\"><xs:simpleType><xs:restriction base=\"xs:string\">\
         <xs:pattern value=\"(a+)+b\"/></xs:restriction></xs:simpleType></xs:element></xs:schema>",
    )]));
    assert!(check(&schema, &format!("<p>{}</p>", "a".repeat(100_000))).is_err());
    let deep = format!("<a>{}{}</a>", "<x>".repeat(254), "</x>".repeat(254));
    assert_eq!(check(&schema, &deep), Ok(()));
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let schema = schema.clone();
            std::thread::spawn(move || {
                for round in 0..20 {
                    // Names that nobody has had before, as many as one message may hold.
                    let names: String = (0..5_000)
                        .map(|n| {
                            format!("<n{thread}-{round}-{n} xmlns='urn:{thread}:{round}:{n}'/>")
                        })
                        .collect();
                    assert_eq!(check(&schema, &format!("<a>{names}</a>")), Ok(()));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let idle = schema.idle.lock().unwrap();
    assert!(idle.sets.len() == idle.made && idle.made <= schema.most);
    for compiled in &idle.sets {
        assert!(compiled.set.name_table.heap_bytes() <= compiled.names + NAMES);
    }
}

#[test]
fn a_number_without_end_is_refused_before_it_is_made() {
    let schema = good(&[(
        "n.xsd",
        "<xs:schema XS targetNamespace=\"urn:n\" elementFormDefault=\"qualified\">\
         <xs:element name=\"d\"><xs:complexType><xs:sequence>\
         <xs:element name=\"n\" type=\"xs:integer\" maxOccurs=\"unbounded\"/></xs:sequence>\
         <xs:attribute name=\"a\" type=\"xs:integer\"/></xs:complexType></xs:element></xs:schema>",
    )]);
    let with = |attribute: &str, content: &str| {
        check(
            &schema,
            &format!("<d xmlns=\"urn:n\" a=\"{attribute}\">{content}</d>"),
        )
    };
    let long = "7".repeat(LONGEST_NUMBER);
    assert_eq!(with("1", &format!("<n>{long}</n><n>{long}</n>")), Ok(()));
    for (attribute, content) in [
        ("1", format!("<n>{long}7</n>")),
        ("1", format!("<n>{long}<!-- -->{long}</n>")),
        (&*format!("{long}7"), "<n>1</n>".to_owned()),
    ] {
        let why = with(attribute, &content).unwrap_err();
        assert!(why.contains("20000 characters"), "{why}");
        assert!(why.len() < 1000, "{}", why.len());
    }
}
