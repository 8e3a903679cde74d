//! What quoted source lines do not show.

use super::Folder;
use crate::{Mode, render};

const ROUTE: (&str, &str) = (
    "routes/r.yaml",
    "receive: { http: { path: /a } }\nreply: {}\n",
);

fn told_of_bus(text: &str) -> String {
    let folder = Folder::new(&[ROUTE, ("xbus.yaml", text)]);
    told(&folder)
}

fn told(folder: &Folder) -> String {
    let (_, problems) = folder.load(Mode::Check);
    assert!(!problems.is_empty());
    let json = crate::to_json(&problems).to_string();
    format!("{}{json}", render(&problems, folder.root(), false))
}

#[test]
fn secrets_beside_a_mistake_are_not_quoted() {
    for text in [
        "admin: { token: hunter2, tokn: 1 }",
        "admin: { tokn: 1, token: 'hunter2 x' }",
        "admin: { tokn: hunter2 }",
        "admin: { tokn: [a, hunter2] }",
        "admin: { token: [hunter2] }",
        "admin: { token: {hunter2} }",
        "admin: { token: {hunter2: x} }",
        "admin: hunter2",
        "admin: { token: a, token: hunter2 }",
        "admin:\n  token: \"a\n    hunter2\"\n  tokn: >\n    hunter2\n",
        "admin: { token: \"a\n    hunter2\", tokn: 1 }\n",
        "admin: { listen: &a hunter2, token: *a, tokn: 1 }",
        "connections: { db: { smtp: { host: \"x://u:hunter2@h/\", fo: 1 } } }",
        "connections: { db: { smtp: { host: x://u:pa/hunter2@h/, fo: 1 } } }",
        "connections: { db: { smtp: { host: a, pasword: hunter2 } } }",
        "connections: { db: { smtp: { password: hunter2 } } }",
        "connections: { db: { smpt: { password: hunter2 } } }",
        "connections: { db: { smtp: hunter2 } }",
        "connections: { db: { smtp: { host: a }, other: { password: hunter2 } } }",
        // No YAML.
        "admin: { token: hunter2, ]",
        "admin: { tokn: hunter2 } }",
        "admin:\n\ttoken: hunter2\n",
        "admin:\n  token: a\n hunter2: 'x",
        "admin:\n  token:\n    - hunter2\n   - x\n",
        "admin: {\n  token: [\n  hunter2 ] }, ]\n",
    ] {
        let told = told_of_bus(text);
        // A key that is no secret itself is told by its name.
        let told = told.replace("{hunter2: ***}", "");
        let is_key = text.contains("hunter2:");
        assert!(is_key || !told.contains("hunter2"), "{text}\n{told}");
    }
}

#[test]
fn what_is_no_secret_is_quoted_with_the_mark_in_its_place() {
    let all = told_of_bus("admin: { token: hunter2, listen: 127.0.0.1:0, tokn: 1 }");
    assert!(
        all.contains(
            " 1 | admin: { token: ***, listen: 127.0.0.1:0, tokn: *** }\n   |                                           ^^^^\n"
        ),
        "{all}"
    );
    let folder = Folder::new(&[(
        "routes/r.yaml",
        "receive: { http: { path: /a } }\nkeys: { n: 'BAD', m: \"${NOT_SET}\" }\nwhen: BAD\nreply: { headers: { X-A: 'x{{ BAD }}' }, transform: no.rhai }\n",
    )]);
    let all = told(&folder);
    for line in [
        "keys: { n: 'BAD', m: \"${NOT_SET}\" }\n",
        "when: BAD\n",
        "reply: { headers: { X-A: 'x{{ BAD }}' }, transform: no.rhai }\n",
    ] {
        assert!(all.contains(line), "{line}{all}");
    }
}
