//! Whatever a file holds, reading it ends, in bounded memory and without a panic; and how problems
//! look.

use serde_json::Value;

use super::{EXTRA, Folder, kinds};
use crate::{Mode, reference, render, schema_of_bus, schema_of_route, to_json};

const WHOLE: &str = r#"
route: whole
receive: { http: { path: "/a/${COUNT}", methods: [POST] } }
namespaces: { o: "urn:o" }
once: { key: 'header("id")', keep: 1d }
invoke:
  - name: stock
    transform: [good.rhai, { convert: { from: xml, to: json } }]
    http: { url: "http://h/{{ id }}", headers: { a: '{{ b }}' } }
    retry: { attempts: 3, first: 1s }
distribute:
  - &base
    name: erp
    async: { order_by: 'header("c")' }
    http: { url: http://u }
  - <<: *base
    name: other
    when: 'a == "x"'
  - file: { dir: d }
    compensate: { file: { dir: e } }
reply: { status: 202, transform: good.rhai }
"#;

fn folder(text: &str) -> Folder {
    Folder::new(&[
        ("routes/r.yaml", text),
        ("transforms/good.rhai", "body"),
        ("transforms/bad.rhai", "BAD"),
    ])
}

#[test]
fn mutations_of_a_route_never_panic() {
    assert!(
        folder(WHOLE).problems().is_empty(),
        "{:?}",
        folder(WHOLE).problems()
    );
    let pieces = [
        "",
        "\n",
        " ",
        "\t",
        ":",
        "{",
        "}",
        "[",
        "]",
        "'",
        "\"",
        "{{",
        "}}",
        "${",
        "}",
        "$",
        "- ",
        "&a ",
        "*a",
        "<<: ",
        "~",
        "|",
        ">",
        "#",
        "é",
        "\u{feff}",
        "!x ",
        "---\n",
        "...\n",
        "%",
        "BAD",
        "0",
        "99999999999999999999999",
        "null",
        ",",
        "?",
        "\u{0}",
        "\u{85}",
    ];
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = move |bound: usize| {
        // xorshift64 (Marsaglia 2003): the same sequence in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    let folder = folder(WHOLE);
    let chars: Vec<char> = WHOLE.chars().collect();
    let mut found = 0;
    for _ in 0..1500 {
        let mut text = chars.clone();
        for _ in 0..=random(3) {
            let at = random(text.len());
            let end = (at + random(12)).min(text.len());
            let piece = pieces[random(pieces.len())];
            text.splice(at..end, piece.chars());
        }
        let text: String = text.into_iter().collect();
        folder.write("routes/r.yaml", &text);
        let (loaded, problems) = folder.load(Mode::Run);
        assert!(
            loaded.is_some() || crate::has_errors(&problems),
            "for\n{text}"
        );
        for problem in &problems {
            assert!(!problem.message.is_empty() && !problem.code.is_empty());
        }
        render(&problems, folder.root(), true);
        found += usize::from(!problems.is_empty());
    }
    assert!(found > 300, "only {found} mutations were mistakes");
}

#[test]
fn aliases_and_merges_save_writing() {
    let folder = folder(WHOLE);
    let (loaded, _) = folder.load(Mode::Run);
    let plan = loaded.unwrap().plan;
    let targets = &plan.routes["whole"].targets;
    assert_eq!(&*targets[1].step.name, "other");
    assert_eq!(&*targets[1].lane.as_ref().unwrap().queue, "whole.other");
}

#[test]
fn bombs_of_aliases_merges_and_brackets_are_bounded() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for n in 1..12 {
        let one = format!("*a{}", n - 1);
        bomb += &format!("a{n}: &a{n} [{}]\n", vec![one; 10].join(", "));
    }
    let mut merges = String::from("m0: &m0 { k: v }\n");
    for n in 1..30 {
        let one = format!("*m{}", n - 1);
        merges += &format!("m{n}: &m{n} {{ <<: [{one}, {one}, {one}], k{n}: {one} }}\n");
    }
    let mut deep = String::from("d0: &d0 [x]\n");
    for n in 1..100 {
        deep += &format!("d{n}: &d{n} [*d{}]\n", n - 1);
    }
    for (text, code) in [
        (bomb.as_str(), "too-many-aliases"),
        (&merges, "too-many-aliases"),
        (&deep, "too-deep"),
        (&"[".repeat(100_000), "bad-yaml"),
        (&"{".repeat(100_000), "bad-yaml"),
        (&"- ".repeat(100_000), "bad-yaml"),
    ] {
        let (loaded, problems) = folder(text).load(Mode::Run);
        assert!(loaded.is_none());
        assert!(problems.len() < 200, "{}", problems.len());
        assert!(
            problems.iter().any(|problem| problem.code == code),
            "{code}: {:?}",
            problems.first()
        );
    }
}

#[test]
fn a_file_that_is_no_text_or_too_large_is_said() {
    let folder = folder("x");
    let path = folder.root().join("routes/r.yaml");
    std::fs::write(&path, b"a: b\nc: \xff").unwrap();
    assert_eq!(
        folder.problems(),
        ["error not-utf-8 routes/r.yaml:2:4 the file is not in UTF-8 | save it in UTF-8"]
    );
    std::fs::write(&path, vec![b'#'; 5 << 20]).unwrap();
    assert_eq!(
        folder.problems(),
        [
            "error unreadable-file routes/r.yaml the file cannot be read: it is larger than 4 MiB | let the bus's user read it"
        ]
    );
}

#[test]
fn a_folder_of_mistakes_says_them_all_at_once() {
    let folder = Folder::new(&[
        ("xbus.yaml", "nmae: x\nqueues: none\n"),
        (
            "routes/a.yaml",
            "receive: { http: { path: /a } }\ninvoke:\n  - { name: s, transform: bad.rhai, http: { url: '{{ BAD }}', prot: 1 } }\ndistribute:\n  - { name: s, fil: { dir: d } }\n",
        ),
        (
            "routes/b.yaml",
            "receive: { http: { path: /a } }\nreply: { status: 9 }\n",
        ),
        ("routes/c.yaml", "a: [\n"),
        (
            "routes/d.yaml",
            "receive: { http: { path: /a } }\ndistribute:\n  - mail: { connection: x, to: y }\n    transform: god.rhai\n",
        ),
        ("transforms/good.rhai", "body"),
        ("transforms/bad.rhai", "let x =\n  BAD;"),
    ]);
    let codes: Vec<String> = folder
        .load(Mode::Run)
        .1
        .iter()
        .map(|problem| format!("{} {}", problem.code, problem.place))
        .collect();
    assert_eq!(
        codes,
        [
            "bad-expression routes/a.yaml:3:54",
            "unknown-key routes/a.yaml:3:63",
            "duplicate-name routes/a.yaml:5:13",
            "unknown-adapter routes/a.yaml:5:16",
            "duplicate-claim routes/b.yaml:1:12",
            "wrong-type routes/b.yaml:2:18",
            "bad-yaml routes/c.yaml:1:4",
            "duplicate-claim routes/d.yaml:1:12",
            "undefined-connection routes/d.yaml:3:25",
            "missing-file routes/d.yaml:4:16",
            "bad-script transforms/bad.rhai:2:3",
            "unknown-key xbus.yaml:1:1",
            "bad-choice xbus.yaml:2:9",
        ]
    );
}

#[test]
fn a_thousand_routes_load() {
    let folder = Folder::new(&[("transforms/good.rhai", "body")]);
    for n in 0..1000 {
        let text = WHOLE
            .replace("route: whole", &format!("route: whole-{n}"))
            .replace("/a/", &format!("/a{n}/"));
        folder.write(&format!("routes/{}/r{n}.yaml", n % 10), &text);
    }
    let started = std::time::Instant::now();
    let (loaded, problems) = folder.load(Mode::Run);
    println!("1,000 routes in {:?}", started.elapsed());
    assert!(problems.is_empty(), "{:?}", problems.first());
    assert_eq!(loaded.unwrap().plan.routes.len(), 1000);
}

#[test]
fn problems_show_the_line_with_a_mark_under_the_column() {
    let folder = folder("receive: { http: { path: /é, max_bdy: 1 } }\nreply: {}\n");
    let (_, problems) = folder.load(Mode::Run);
    assert_eq!(
        render(&problems, folder.root(), false),
        "error[unknown-key]: 'http' has no key 'max_bdy'\n  --> routes/r.yaml:1:30\n   |\n 1 | receive: { http: { path: /é, max_bdy: *** } }\n   |                              ^^^^^^^\n  help: did you mean 'max_body'?\n\n1 error\n"
    );
    let coloured = render(&problems, folder.root(), true);
    assert!(coloured.contains("\x1b[1;31merror[unknown-key]\x1b[0m"));
    assert_eq!(
        to_json(&problems),
        serde_json::json!({ "problems": [{
            "severity": "error",
            "code": "unknown-key",
            "message": "'http' has no key 'max_bdy'",
            "file": "routes/r.yaml",
            "line": 1,
            "column": 30,
            "help": "did you mean 'max_body'?",
        }] })
    );
    assert_eq!(to_json(&[]), serde_json::json!({ "problems": [] }));
    assert_eq!(render(&[], folder.root(), false), "no problems\n");
}

#[test]
fn control_characters_of_a_file_do_not_reach_the_terminal() {
    let folder = folder("receive: { http: { path: /a } }\nreply: {}\n\"x\\e[31m\": 1\n");
    let (_, problems) = folder.load(Mode::Run);
    assert!(!problems.is_empty());
    assert!(!render(&problems, folder.root(), false).contains('\x1b'));
}

/// The keys of every object below, to see that the schema has what the tables have.
fn at<'a>(schema: &'a Value, path: &str) -> &'a Value {
    schema.pointer(path).unwrap_or_else(|| panic!("no {path}"))
}

#[test]
fn the_schema_has_every_key_and_every_adapter() {
    let kinds = kinds();
    let route = schema_of_route(&kinds);
    for field in crate::tables::ROUTE {
        at(&route, &format!("/properties/{}/description", field.name));
    }
    assert_eq!(at(&route, "/required"), &serde_json::json!(["receive"]));
    assert_eq!(at(&route, "/additionalProperties"), false);
    at(
        &route,
        "/$defs/target/properties/async/anyOf/1/properties/order_by",
    );
    at(&route, "/$defs/target/properties/http/properties/url");
    at(
        &route,
        "/$defs/receive/properties/queue/properties/order_by",
    );
    assert_eq!(
        at(&route, "/$defs/receive/oneOf").as_array().unwrap().len(),
        4
    );
    assert_eq!(
        at(&route, "/$defs/invoke/oneOf").as_array().unwrap().len(),
        1
    );
    let bus = schema_of_bus(&kinds, EXTRA);
    at(&bus, "/properties/http/properties/tls/properties/cert");
    at(
        &bus,
        "/properties/connections/additionalProperties/properties/smtp",
    );
}

#[test]
fn the_reference_names_every_key_and_adapter() {
    let text = reference(&kinds(), EXTRA);
    for row in [
        "| `async.order_by` | ",
        "| `once.keep` | a duration such as",
        "### `queue` receives",
        "### `http` sends",
        "### `smtp` connects",
        "| `http.tls.cert` | ",
        "| `journal.max_size` | a size such as 64KiB, 10MiB or 1GiB | `10GiB` |",
    ] {
        assert!(text.contains(row), "no {row} in\n{text}");
    }
}
