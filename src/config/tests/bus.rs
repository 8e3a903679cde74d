//! xbus.yaml, connections, and what may not meet between routes.

use std::time::Duration;

use super::{EXTRA, Folder};
use crate::{Installation, Mode};

const ROUTE: &str = "receive: { http: { path: /r } }\nreply: {}\n";

fn problems_of_bus(text: &str) -> Vec<String> {
    Folder::new(&[("xbus.yaml", text), ("routes/r.yaml", ROUTE)]).problems()
}

#[test]
fn every_key_has_a_default() {
    let folder = Folder::new(&[("routes/r.yaml", ROUTE)]);
    let installation = Installation::read_with(folder.root(), Mode::Run, &|_| None);
    let bus = &installation.bus;
    assert_eq!(
        &*bus.name,
        folder.root().file_name().unwrap().to_str().unwrap()
    );
    assert!(!bus.node.is_empty());
    assert_eq!(bus.store, folder.root().join("data/"));
    assert!(bus.workers >= 1);
    assert_eq!(bus.admin.listen, "127.0.0.1:9090");
    assert!(bus.admin.token.is_none());
    assert_eq!(bus.journal.keep, Duration::from_secs(30 * 86_400));
    assert_eq!(bus.journal.max_size, 10 << 30);
    assert_eq!(
        (bus.timeout, bus.max_body),
        (Duration::from_secs(30), 10 << 20)
    );
    let listen = installation.settings(EXTRA, |args| args.node("http").is_none());
    assert!(listen);
    let (loaded, problems) = folder.load(Mode::Run);
    assert!(loaded.is_some() && problems.is_empty(), "{problems:?}");
}

#[test]
fn what_is_written_counts() {
    let folder = Folder::new(&[
        (
            "xbus.yaml",
            r#"
name: acme
node: one
store: /var/lib/xbus
workers: 3
http: { listen: "0.0.0.0:80" }
admin: { listen: "127.0.0.1:1", token: t }
queues: embedded
connections: { relay: { smtp: { host: h } } }
journal: { payloads: all, keep: 1d, max_size: 1MiB }
defaults: { timeout: 7s, max_body: 1KiB }
namespaces: { o: "urn:o" }
log: { format: json, level: debug }
"#,
        ),
        ("routes/r.yaml", ROUTE),
    ]);
    let (loaded, problems) = folder.load(Mode::Run);
    assert!(problems.is_empty(), "{problems:?}");
    let loaded = loaded.unwrap();
    let bus = &loaded.bus;
    assert_eq!((&*bus.name, &*bus.node), ("acme", "one"));
    assert_eq!(bus.store, std::path::Path::new("/var/lib/xbus"));
    assert_eq!(bus.workers, 3);
    assert!(bus.log_json && bus.log_level == "debug");
    assert_eq!(bus.namespaces["o"], "urn:o");
    assert_eq!(loaded.connections["relay"].0, "smtp");
    assert_eq!(&*loaded.plan.bus, "acme");
}

#[test]
fn mistakes_in_the_bus_s_own_file() {
    for (text, expected) in [
        (
            "- x",
            "error wrong-type xbus.yaml:1:1 'xbus.yaml' cannot be a list | write a map of keys and values",
        ),
        (
            "htp: {}",
            "error unknown-key xbus.yaml:1:1 xbus.yaml has no key 'htp' | did you mean 'http'?",
        ),
        (
            "http: { listne: x }",
            "error unknown-key xbus.yaml:1:9 'http' has no key 'listne' | did you mean 'listen'?",
        ),
        (
            "http: { tls: { cert: c.pem } }",
            "error missing-file xbus.yaml:1:22 there is no file 'c.pem' | paths are relative to the installation folder",
        ),
        (
            "queues: { connection: rabbit }",
            "error undefined-connection xbus.yaml:1:23 there is no connection 'rabbit' | define it in xbus.yaml under connections, of kind amqp",
        ),
        (
            "queues: embeded",
            "error bad-choice xbus.yaml:1:9 'embeded' is none of the words for 'queues' | did you mean 'embedded'?",
        ),
        (
            "admin: { listen: 9090 }",
            "error bad-address xbus.yaml:1:18 'listen' needs an address and a port | write 127.0.0.1:9090, or 0.0.0.0:9090 for every interface",
        ),
        (
            "admin: { listen: '0.0.0.0:9' }",
            "error admin-without-token xbus.yaml:1:18 the admin listener can be reached from outside and has no token | set admin.token, or listen on 127.0.0.1",
        ),
        (
            "connections: { r: { smpt: { host: h } } }",
            "error unknown-connection-kind xbus.yaml:1:21 there is no kind of connection 'smpt' | did you mean 'smtp'?",
        ),
        (
            "connections: { r: { http: {} } }",
            "error unknown-connection-kind xbus.yaml:1:21 there is no kind of connection 'http' | there are: smtp",
        ),
        (
            "connections: { r: x }",
            "error wrong-type xbus.yaml:1:16 the connection 'r' needs exactly one kind | write r: { KIND: { … } } with one of: smtp",
        ),
        (
            "connections: { r: { smtp: {} } }",
            "error missing-key xbus.yaml:1:27 'smtp' needs the key 'host' | add host: a text",
        ),
        (
            "journal: { keep: forever }",
            "error wrong-type xbus.yaml:1:18 'keep' cannot be 'forever' | write a duration such as 250ms, 5s, 15m, 2h or 7d",
        ),
        (
            "journal: { max_size: 10Gib }",
            "error wrong-type xbus.yaml:1:22 'max_size' cannot be '10Gib' | write a size such as 64KiB, 10MiB or 1GiB",
        ),
        (
            "workers: 0",
            "error wrong-type xbus.yaml:1:10 'workers' cannot be '0' | write a whole number from 1 to 1024",
        ),
        (
            "workers: all",
            "error wrong-type xbus.yaml:1:10 'workers' cannot be 'all' | write a whole number from 1 to 1024",
        ),
        (
            "a: b: c",
            "error bad-yaml xbus.yaml:1:5 not YAML: mapping values are not allowed in this context | put a text with ': ' in it in quotes",
        ),
    ] {
        assert_eq!(problems_of_bus(text), [expected], "for {text}");
    }
}

#[test]
fn a_token_that_is_not_known_here_is_a_token_nevertheless() {
    let problems = |token: &str| {
        problems_of_bus(&format!(
            "admin: {{ listen: '0.0.0.0:9', token: '{token}' }}"
        ))
    };
    for (token, code) in [
        ("${NOPE}", "unset-variable"),
        ("${file:nowhere}", "unreadable-secret"),
        ("${NOPE:-}", "admin-without-token"),
    ] {
        let found = problems(token);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(code), "{found:?}");
    }
}

#[test]
fn a_connection_of_another_kind_or_name_is_said() {
    let route = |name: &str| {
        Folder::new(&[
            ("xbus.yaml", "connections: { relay: { smtp: { host: h } } }\n"),
            (
                "routes/r.yaml",
                &format!("receive: {{ http: {{ path: /a }} }}\ndistribute:\n  - mail: {{ connection: {name}, to: x }}\n"),
            ),
        ])
        .problems()
    };
    assert_eq!(route("relay"), Vec::<String>::new());
    assert_eq!(
        route("rely"),
        [
            "error undefined-connection routes/r.yaml:3:25 there is no connection 'rely' | did you mean 'relay'?"
        ]
    );
}

#[test]
fn routes_do_not_share_names_doors_or_queues() {
    let folder = Folder::new(&[
        (
            "routes/a.yaml",
            "route: one\nreceive: { http: { path: /a } }\ndistribute:\n  - { name: t, async: { queue: q }, http: { url: u } }\n",
        ),
        (
            "routes/b.yaml",
            "route: one\nreceive: { http: { path: /a } }\nreply: {}\n",
        ),
        (
            "routes/c.yaml",
            "receive: { queue: { name: q } }\nreply: {}\n",
        ),
        (
            "routes/d.yaml",
            "enabled: false\nreceive: { http: { path: /a } }\nreply: {}\n",
        ),
        (
            "routes/sub/e.yaml",
            "receive: { schedule: { every: 5s } }\ndistribute:\n  - { name: t, async: { queue: q }, http: { url: u } }\n",
        ),
        ("routes/f.yml", "x"),
        ("routes/.g.yaml", "x"),
    ]);
    assert_eq!(
        folder.problems(),
        [
            "error duplicate-route routes/b.yaml:1:8 there is another route 'one' | rename one; the other is in routes/a.yaml:1:8",
            "error duplicate-claim routes/b.yaml:2:12 the route 'one' receives POST /a too | change one of the two, or set 'enabled: false' on one; the other is at routes/a.yaml:2:12",
            "error two-readers routes/c.yaml:1:27 the queue 'q' has two readers: the async target 'one.t', and the receiver of the route 'c' | a queue has one reader: name another queue; the other reader is at routes/a.yaml:4:32",
            "warning ignored-file routes/f.yml the file is not read: route files end in .yaml | rename it to routes/f.yaml",
            "error two-readers routes/sub/e.yaml:3:32 the queue 'q' has two readers: the async target 'one.t', and the async target 'e.t' | a queue has one reader: name another queue; the other reader is at routes/a.yaml:4:32",
        ]
    );
}

#[test]
fn concurrency_beside_async_is_that_of_its_keys_unless_async_says_it() {
    let folder = Folder::new(&[(
        "routes/a.yaml",
        "receive: { http: { path: /a } }\ndistribute:\n  - { name: own, async: { order_by: id, concurrency: 3 }, concurrency: 64, http: { url: u } }\n  - { name: beside, async: { order_by: id }, concurrency: 64, http: { url: u } }\n  - { name: neither, async: { order_by: id }, http: { url: u } }\n",
    )]);
    let (loaded, _) = folder.load(Mode::Run);
    let plan = loaded.unwrap().plan;
    let lanes = plan.routes["a"].all_targets();
    let keys: Vec<usize> = lanes
        .filter_map(|target| Some(target.lane.as_ref()?.policy.concurrency))
        .collect();
    assert_eq!(keys, [3, 64, 8]);
}

#[test]
fn a_queue_that_somebody_reads_is_ordered_by_its_reader() {
    let folder = Folder::new(&[
        (
            "routes/a.yaml",
            "receive: { http: { path: /a } }\ndistribute:\n  - queue: { name: in }\n  - queue: { name: inn }\n",
        ),
        (
            "routes/b.yaml",
            "receive: { queue: { name: in, order_by: id, on_reject: park } }\nreply: {}\n",
        ),
        (
            "routes/c.yaml",
            "receive: { queue: { name: two }, concurrency: 3 }\nreply: {}\n",
        ),
        (
            "routes/d.yaml",
            "receive: { queue: { name: three } }\nreply: {}\n",
        ),
        (
            "routes/e.yaml",
            "receive: { file: { dir: d } }\nreply: {}\n",
        ),
        (
            "routes/f.yaml",
            "receive: { file: { dir: e, order: name } }\nreply: {}\n",
        ),
    ]);
    let (loaded, problems) = folder.load(Mode::Run);
    let problems: Vec<String> = problems.iter().map(super::line).collect();
    assert_eq!(
        problems,
        [
            "warning queue-without-reader routes/a.yaml:4:20 no route receives from the queue 'inn': it only grows | did you mean 'in'?"
        ]
    );
    let plan = loaded.unwrap().plan;
    let lane = |name: &str| &plan.routes[name].lane;
    assert!(plan.readers["in"].order_by.is_some() && lane("b").park_rejected);
    assert_eq!((plan.readers["in"].spread, lane("b").concurrency), (1, 8));
    assert_eq!((plan.readers["two"].spread, lane("c").concurrency), (3, 3));
    assert_eq!(
        (plan.readers["three"].spread, lane("d").concurrency),
        (1, 1)
    );
    assert_eq!((lane("e").concurrency, lane("f").concurrency), (8, 1));
}

#[test]
fn a_folder_without_routes_or_none_at_all_is_said() {
    let folder = Folder::new(&[("xbus.yaml", "name: x\n")]);
    assert_eq!(
        folder.problems(),
        ["warning no-routes routes there is no route | write one into routes/NAME.yaml"]
    );
    let missing = folder.root().join("nowhere");
    let (_, problems) = Installation::read(&missing, Mode::Run).plan(&[], &[], &super::Fake);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].code, "no-folder");
}
