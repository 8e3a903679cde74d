//! References to the environment, and what never shows.

use xbus_core::Problems;
use xbus_core::problem::Place;
use xbus_core::spec::{Node, Raw, Scalar};

use super::{Folder, line};
use crate::Mode;
use crate::environment::Replace;

/// What a text becomes, and the problems.
fn replaced(text: &str, mode: Mode) -> (Option<Scalar>, Vec<String>) {
    let folder = Folder::new(&[("secret.txt", "s3cret\n\n"), ("crlf.txt", "x\r\n")]);
    let problems = Problems::new();
    let place = Place {
        line: 1,
        column: 1,
        ..Place::file("xbus.yaml".as_ref())
    };
    let mut node = Node {
        place,
        raw: Raw::Scalar(Scalar {
            text: text.to_owned(),
            literal: Vec::new(),
            secret: false,
        }),
    };
    let mut unknown = std::collections::BTreeSet::new();
    Replace {
        root: folder.root(),
        mode,
        lookup: &|name| match name {
            "A" => Some(String::from("{{ x }} ${B}")),
            "EMPTY" => Some(String::new()),
            _ => None,
        },
        problems: &problems,
        unknown: &mut unknown,
    }
    .within(&mut node);
    let scalar = match node.raw {
        Raw::Scalar(scalar) if unknown.is_empty() => Some(scalar),
        _ => None,
    };
    (scalar, problems.into_sorted().iter().map(line).collect())
}

#[test]
fn secrets_are_masked_from_then_on() {
    let folder = Folder::new(&[
        ("mot.txt", "Fr0m-a-file\n"),
        (
            "xbus.yaml",
            "connections: { r: { smtp: { host: h, password: '0f-a-field' } } }\n",
        ),
        (
            "routes/r.yaml",
            "receive: { http: { path: /r } }\ninvoke:\n  - http: { url: 'http://h/${file:mot.txt}' }\n",
        ),
    ]);
    folder.load(Mode::Run);
    assert_eq!(
        xbus_core::secrets::mask("http://h/Fr0m-a-file refused 0f-a-field"),
        "http://h/(secret) refused (secret)"
    );
}

#[test]
fn every_form_is_read() {
    for (text, expected) in [
        ("a${A}b", "a{{ x }} ${B}b"),
        ("${EMPTY}", ""),
        ("${EMPTY:-d}", "d"),
        ("${NONE:-}", ""),
        ("${NONE:-amqp://g:g@h/%2f}!", "amqp://g:g@h/%2f!"),
        ("$${A} $A $", "${A} $A $"),
        ("${file:secret.txt}", "s3cret\n"),
        ("${file:crlf.txt}", "x"),
    ] {
        let (scalar, problems) = replaced(text, Mode::Run);
        assert_eq!(scalar.unwrap().text, expected, "{text}");
        assert!(problems.is_empty(), "{problems:?}");
    }
}

#[test]
fn braces_from_outside_are_marked_and_files_are_secret() {
    let (scalar, _) = replaced("{{ id }}${A}", Mode::Run);
    assert_eq!(scalar.unwrap().literal, std::slice::from_ref(&(8..20)));
    let (scalar, _) = replaced("${file:secret.txt}", Mode::Run);
    let scalar = scalar.unwrap();
    assert!(scalar.secret);
    assert_eq!(format!("{scalar:?}"), "(secret)");
}

#[test]
fn what_is_not_set_is_a_warning_of_check_and_an_error_of_run() {
    for (mode, severity) in [(Mode::Check, "warning"), (Mode::Run, "error")] {
        let (scalar, problems) = replaced("x${NONE}", mode);
        assert!(scalar.is_none());
        assert_eq!(
            problems,
            [format!(
                "{severity} unset-variable xbus.yaml:1:1 the environment variable NONE is not set | set it, or give a default: ${{NONE:-…}}"
            )]
        );
        let (_, problems) = replaced("${file:none}", mode);
        assert_eq!(
            problems,
            [format!(
                "{severity} unreadable-secret xbus.yaml:1:1 the file 'none' cannot be read: No such file or directory (os error 2) | make the file, and let the bus's user read it"
            )]
        );
    }
}

#[test]
fn broken_references_are_errors() {
    let help = "write ${NAME}, ${NAME:-default} or ${file:/path}; '$${' stands for a literal '${'";
    for (text, said) in [
        ("${A", "'${' without its '}'"),
        ("${}", "'${}' is no reference to the environment"),
        ("${A-B}", "'${A-B}' is no reference to the environment"),
        (
            "${A:-${B}}",
            "'${A:-${B}' is no reference to the environment",
        ),
    ] {
        let (_, problems) = replaced(text, Mode::Check);
        assert_eq!(
            problems,
            [format!("error bad-variable xbus.yaml:1:1 {said} | {help}")]
        );
    }
}

#[test]
fn values_are_read_as_the_field_s_type_and_hold_any_character() {
    let folder = Folder::new(&[(
        "routes/r.yaml",
        r#"
description: "${ODD}"
receive: { http: { path: "${ODD}", max_body: "${COUNT}MiB" } }
distribute:
  - http: { url: "http://h/${ODD}", port: "${COUNT}" }
"#,
    )]);
    let (loaded, problems) = folder.load(Mode::Run);
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(
        loaded.unwrap().plan.routes["r"].description,
        "a: {{ b }} \"'\n#"
    );
}

#[test]
fn a_check_without_the_variables_finds_the_other_mistakes_and_nothing_false() {
    let folder = Folder::new(&[
        (
            "xbus.yaml",
            "connections:\n  relay: { smtp: { host: \"${HOST}\" } }\n",
        ),
        (
            "routes/r.yaml",
            "receive: { http: { path: /a } }\ndistribute:\n  - mail: { connection: relay, to: x }\n    timeout: \"${WAIT}\"\n  - file: { dri: \"${DIR}\" }\n",
        ),
    ]);
    let (loaded, problems) = folder.load(Mode::Check);
    assert!(loaded.is_none());
    let lines: Vec<String> = problems.iter().map(line).collect();
    assert_eq!(
        lines,
        [
            "warning unset-variable routes/r.yaml:4:14 the environment variable WAIT is not set | set it, or give a default: ${WAIT:-…}",
            "error missing-key routes/r.yaml:5:11 'file' needs the key 'dir' | add dir: a path, relative to the installation folder",
            "error unknown-key routes/r.yaml:5:13 'file' has no key 'dri' | did you mean 'dir'?",
            "warning unset-variable routes/r.yaml:5:18 the environment variable DIR is not set | set it, or give a default: ${DIR:-…}",
            "warning unset-variable xbus.yaml:2:26 the environment variable HOST is not set | set it, or give a default: ${HOST:-…}",
        ]
    );
}

#[test]
fn values_of_the_environment_never_show() {
    let folder = Folder::new(&[
        (
            "xbus.yaml",
            "admin: { token: \"${PASSWORD}\", listen: \"${PASSWORD}\" }\njournal: { payloads: \"${PASSWORD}\", keep: \"${PASSWORD}\" }\nconnections: { relay: { smtp: { host: h, password: \"${PASSWORD}\" } } }\n",
        ),
        (
            "routes/r.yaml",
            r#"
receive: { http: { path: /a, methods: "${PASSWORD}", max_body: "${PASSWORD}", wsdl: "${PASSWORD}" } }
when: 'BAD ${PASSWORD}'
enabled: "${PASSWORD}"
rate: "${PASSWORD}"
distribute:
  - mail: { connection: "${PASSWORD}", to: '{{ BAD ${PASSWORD} }}' }
    transform: "${PASSWORD}"
  - transform: "${PASSWORD}.rhai"
    http: { url: "${PASSWORD}", port: "${PASSWORD}", ca: "${PASSWORD}" }
    async: "${PASSWORD}"
"#,
        ),
    ]);
    let (_, problems) = folder.load(Mode::Run);
    assert!(problems.len() >= 14, "{}", problems.len());
    let all = format!(
        "{problems:?}{}{}",
        crate::to_json(&problems),
        crate::render(&problems, folder.root(), false)
    );
    assert!(!all.contains("hunter2"), "{all}");
    let installation = crate::Installation::read_with(folder.root(), Mode::Run, &|_| {
        Some(String::from("hunter2"))
    });
    assert_eq!(installation.bus.admin.token.as_ref().unwrap().0, "hunter2");
    assert!(!format!("{:?}", installation.bus.admin.token).contains("hunter2"));
}
