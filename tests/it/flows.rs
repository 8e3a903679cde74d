//! The six data flows, through the real binary.

use crate::support::{Answer, Destination, Installation, post};

/// Invoke simple: the caller gets the destination's answer.
#[test]
fn invoke_simple() {
    let service = Destination::with(|got| {
        Answer::Status(
            200,
            "application/json",
            format!("{{\"echo\":{}}}", got.text()).into_bytes(),
        )
    });
    let installation = Installation::new();
    installation.route(
        "ask",
        &format!(
            "receive: {{ http: {{ path: /ask }} }}\ninvoke:\n  - name: service\n    http: {{ url: \"{}\" }}\n",
            service.url("/service")
        ),
    );
    let bus = installation.start();
    let answer = post(bus.http, "/ask", "application/json", b"{\"a\":1}");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text(), "{\"echo\":{\"a\":1}}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let got = service.got();
    assert_eq!(got[0].header("X-Message-Id"), Some(&*answer.id()));
    assert_eq!(
        got[0].header("Idempotency-Key"),
        Some(&*format!("{}/service", answer.id()))
    );
}

/// Invoke multiple: each response is the next step's message, with transformations between.
#[test]
fn invoke_multiple() {
    let first = Destination::with(|_| {
        Answer::Status(
            200,
            "text/xml",
            b"<stock><item sku=\"A\" n=\"3\"/></stock>".to_vec(),
        )
    });
    let second =
        Destination::with(|_| Answer::Status(200, "application/json", b"{\"total\": 30}".to_vec()));
    let installation = Installation::new();
    installation
        .route(
            "chain",
            &format!(
                "receive: {{ http: {{ path: /chain }} }}
invoke:
  - name: first
    transform: to-first.rhai
    http: {{ url: \"{}\" }}
  - name: second
    transform: to-second.rhai
    http: {{ url: \"{}\" }}
reply:
  transform: answer.rhai
",
                first.url("/1"),
                second.url("/2")
            ),
        )
        .script("to-first.rhai", "element(\"ask\", #{ sku: body.sku }, \"\")")
        .script(
            "to-second.rhai",
            "#{ sku: xpath(\"//item/@sku\"), n: parse_int(xpath(\"//item/@n\")) }",
        )
        .script(
            "answer.rhai",
            "#{ total: body.total, asked: received.body.sku, stock: responses.first.xpath(\"//item/@n\") }",
        );
    let bus = installation.start();
    let answer = post(bus.http, "/chain", "application/json", b"{\"sku\":\"A\"}");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        answer.json(),
        serde_json::json!({"total": 30, "asked": "A", "stock": "3"})
    );
    assert!(
        first.texts()[0].contains("sku=\"A\""),
        "{:?}",
        first.texts()
    );
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&second.texts()[0]).expect("JSON"),
        serde_json::json!({"sku": "A", "n": 3})
    );
}

/// Distribute simple: acknowledged once the one target has it.
#[test]
fn distribute_simple() {
    let installation = Installation::new();
    installation.route(
        "keep",
        "receive: { http: { path: /keep } }\ndistribute:\n  - name: archive\n    file: { dir: out, name: \"{{ id }}.txt\" }\n",
    );
    let bus = installation.start();
    let answer = post(bus.http, "/keep", "text/plain", b"as it came");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        answer.json(),
        serde_json::json!({"id": answer.id(), "status": "delivered"})
    );
    assert_eq!(
        installation.read(&format!("out/{}.txt", answer.id())),
        "as it came"
    );
}

/// Distribute multiple: every target gets the same message, each in its own form, or none does.
#[test]
fn distribute_multiple() {
    let system = Destination::start();
    let installation = Installation::new();
    installation
        .route(
            "spread",
            &format!(
                "receive: {{ http: {{ path: /spread }} }}
distribute:
  - name: archive
    file: {{ dir: out, name: \"{{{{ id }}}}.xml\" }}
  - name: copy
    transform: small.rhai
    file: {{ dir: out, name: \"{{{{ id }}}}.json\" }}
  - name: system
    http: {{ url: \"{}\" }}
",
                system.url("/system")
            ),
        )
        .script("small.rhai", "#{ no: xpath(\"/order/@no\") }");
    let bus = installation.start();
    let answer = post(bus.http, "/spread", "text/xml", b"<order no='7'/>");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(installation.names("out").len(), 2);
    assert_eq!(
        installation.read(&format!("out/{}.xml", answer.id())),
        "<order no='7'/>"
    );
    assert_eq!(
        installation.read(&format!("out/{}.json", answer.id())),
        "{\"no\":\"7\"}"
    );
    assert_eq!(system.texts(), ["<order no='7'/>"]);

    // The system fails: nothing is left of the files.
    system.now(|_| Answer::Status(500, "text/plain", b"no".to_vec()));
    let answer = post(bus.http, "/spread", "text/xml", b"<order no='8'/>");
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(
        answer.text().contains("urn:xbus:reply:1"),
        "{}",
        answer.text()
    );
    assert_eq!(installation.names("out").len(), 2);
    let entry = bus.json(&["messages", "show", &answer.id()]);
    assert_eq!(entry["outcome"], "failed");
    let outcome = |name: &str| {
        entry["targets"]
            .as_array()
            .expect("targets")
            .iter()
            .find(|target| target["name"] == name)
            .map(|target| target["outcome"].clone())
    };
    assert_eq!(outcome("archive"), Some("undone".into()));
    assert_eq!(outcome("copy"), Some("undone".into()));
    assert_eq!(outcome("system"), Some("failed".into()));
}

/// Invoke then distribute: the last response goes to every target; the caller gets an acknowledgement.
#[test]
fn invoke_then_distribute() {
    let service = Destination::with(|got| {
        Answer::Status(
            200,
            "text/plain",
            format!("{} priced", got.text()).into_bytes(),
        )
    });
    let installation = Installation::new();
    installation.route(
        "both",
        &format!(
            "receive: {{ http: {{ path: /both }} }}
invoke:
  - name: price
    http: {{ url: \"{}\" }}
distribute:
  - name: a
    file: {{ dir: out, name: \"a-{{{{ id }}}}\" }}
  - name: b
    file: {{ dir: out, name: \"b-{{{{ id }}}}\" }}
",
            service.url("/price")
        ),
    );
    let bus = installation.start();
    let answer = post(bus.http, "/both", "text/plain", b"order");
    assert_eq!(answer.json()["status"], "delivered", "{}", answer.text());
    for name in ["a", "b"] {
        assert_eq!(
            installation.read(&format!("out/{name}-{}", answer.id())),
            "order priced"
        );
    }
}

/// Distribute asynchronous: acknowledged when durable, delivered in order when the system is up.
#[test]
fn distribute_asynchronous() {
    let system = Destination::with(|_| Answer::Status(503, "text/plain", b"closed".to_vec()));
    let installation = Installation::new();
    installation.route(
        "later",
        &format!(
            "receive: {{ http: {{ path: /later }} }}
distribute:
  - name: system
    async: {{ retry: {{ first: 50ms, max: 200ms }} }}
    http: {{ url: \"{}\" }}
",
            system.url("/system")
        ),
    );
    let bus = installation.start();
    let ids: Vec<String> = (0..20)
        .map(|number| {
            let answer = post(
                bus.http,
                "/later",
                "text/plain",
                format!("message {number}").as_bytes(),
            );
            assert_eq!(answer.status, 202, "{}", answer.text());
            assert_eq!(answer.json()["status"], "accepted");
            answer.id()
        })
        .collect();
    let queue = crate::support::wait_for("a blocked head", || {
        let queue = bus.queue("later.system");
        (queue["head"]["attempts"].as_u64() > Some(1)).then_some(queue)
    });
    assert_eq!(queue["depth"], 20);
    assert_eq!(queue["state"], "blocked");
    assert_eq!(queue["head"]["id"], ids[0]);
    assert!(
        queue["head"]["last_error"]
            .as_str()
            .is_some_and(|error| error.contains("503")),
        "{queue}"
    );
    // Only the head was tried.
    assert!(system.got().iter().all(|got| got.text() == "message 0"));
    let tried = system.count();
    system.now(|_| Answer::ok());
    bus.wait_for_depth("later.system", 0);
    let delivered: Vec<String> = system.texts()[tried..]
        .iter()
        .filter(|text| *text != "message 0")
        .cloned()
        .collect();
    let expected: Vec<String> = (1..20).map(|number| format!("message {number}")).collect();
    assert_eq!(delivered, expected);
    for got in system.got() {
        let number: usize = got.text()["message ".len()..].parse().expect("a number");
        assert_eq!(got.header("X-Message-Id"), Some(&*ids[number]));
        assert_eq!(
            got.header("Idempotency-Key"),
            Some(&*format!("{}/system", ids[number]))
        );
    }
    let entry = crate::support::wait_for("the journal to know", || {
        let entry = bus.json(&["messages", "show", &ids[0]]);
        (entry["outcome"] == "delivered").then_some(entry)
    });
    assert_eq!(entry["targets"][0]["name"], "system");
    assert!(entry["targets"][0]["attempts"].as_u64() > Some(1));
}

/// The classic form: one route puts envelopes into a queue, another works it off.
#[test]
fn classic_two_routes() {
    let system = Destination::with(|_| Answer::Close);
    let installation = Installation::new();
    installation
        .route(
            "in",
            "receive: { http: { path: /classic } }\ndistribute:\n  - name: queue\n    queue: { name: classic, envelope: xbus }\n",
        )
        .route(
            "out",
            &format!(
                "receive:\n  queue: {{ name: classic, envelope: xbus }}\n  retry: {{ first: 20ms, max: 50ms }}\ndistribute:\n  - name: system\n    http: {{ url: \"{}\", headers: [X-Customer] }}\n",
                system.url("/system")
            ),
        );
    let bus = installation.start();
    for number in 0..10 {
        let answer = crate::support::request(
            bus.http,
            "POST",
            "/classic",
            &[
                ("Content-Type", "text/xml; charset=iso-8859-1"),
                ("X-Customer", "C1"),
            ],
            &[
                b"<a>\xfc".as_slice(),
                number.to_string().as_bytes(),
                b"</a>",
            ]
            .concat(),
        )
        .expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json_or_xml_status(), "delivered");
    }
    crate::support::wait_for("the head to be tried again", || {
        (system.count() > 3).then_some(())
    });
    assert!(bus.queue("classic")["depth"].as_u64() == Some(10));
    system.now(|_| Answer::ok());
    bus.wait_for_depth("classic", 0);
    let got = system.got();
    let mut bodies: Vec<Vec<u8>> = got.iter().map(|got| got.body.clone()).collect();
    bodies.dedup();
    let expected: Vec<Vec<u8>> = (0..10)
        .map(|number: u32| {
            [
                b"<a>\xfc".as_slice(),
                number.to_string().as_bytes(),
                b"</a>",
            ]
            .concat()
        })
        .collect();
    assert_eq!(bodies, expected, "in order, the bytes as they came");
    assert!(got.iter().all(|got| {
        got.header("X-Customer") == Some("C1")
            && got.header("Content-Type") == Some("text/xml; charset=iso-8859-1")
    }));
}
