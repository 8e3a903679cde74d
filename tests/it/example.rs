//! The example installation in the repository's own root, as `make run` starts it.

use std::path::Path;

use crate::support::{Answer, Destination, Installation, free_port, post, wait_for};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("readable").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// A copy of the example that uses ports of its own.
fn example() -> Installation {
    let mut installation = Installation::bare();
    for folder in ["routes", "transforms"] {
        copy(&root().join(folder), &installation.path().join(folder));
    }
    let config = std::fs::read(root().join("xbus.yaml")).expect("xbus.yaml");
    installation.file("xbus.yaml", config);
    installation
        .env("HTTP_PORT", &free_port().to_string())
        .env("ADMIN_PORT", &free_port().to_string());
    installation
}

fn sample(name: &str) -> Vec<u8> {
    std::fs::read(root().join("tests/samples").join(name)).expect("a sample")
}

#[test]
fn the_example_has_no_problems() {
    let output = example().xbus(&["check", "."]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(
        !String::from_utf8_lossy(&output.stdout).contains("warning["),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn an_order_goes_through_stock_and_pricing_to_erp_archive_and_desk() {
    let installation = example();
    let bus = installation.start();
    let answer = post(
        bus.http,
        "/orders",
        "text/xml; charset=utf-8",
        &sample("order.xml"),
    );
    let text = answer.text();
    assert_eq!(answer.status, 200, "{text}\n{}", installation.log());
    assert!(
        text.contains("http://schemas.xmlsoap.org/soap/envelope/"),
        "{text}"
    );
    assert!(text.contains("<OrderNo>4711</OrderNo>"), "{text}");
    assert!(text.contains("<Status>accepted</Status>"), "{text}");
    let archived = installation.read(&format!("outbox/archive/4711-{}.xml", answer.id()));
    assert!(archived.contains("Müller"), "{archived}");
    let note = installation.read(&format!("outbox/desk/{}.txt", answer.id()));
    assert!(note.contains("Priority order 4711"), "{note}");
    assert!(note.contains("84.8"), "{note}");
    bus.wait_for_depth("orders.erp", 0);
    let filed = installation.read(&format!("outbox/erp/4711-{}.json", answer.id()));
    let filed: serde_json::Value = serde_json::from_str(&filed).expect("JSON");
    assert_eq!(filed["customer"], "C-7");
    assert_eq!(filed["positions"].as_array().map(Vec::len), Some(2));
    let found = bus.json(&["messages", "--key", "order-no=4711"]);
    assert_eq!(found[0]["id"], *answer.id());

    // Not in stock: a SOAP fault, and nothing is kept anywhere.
    let refused = String::from_utf8(sample("order.xml"))
        .expect("UTF-8")
        .replace("A-1", "NONE");
    let answer = post(bus.http, "/orders", "text/xml", refused.as_bytes());
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert!(
        answer.text().contains("not in stock: NONE"),
        "{}",
        answer.text()
    );
    assert_eq!(installation.names("outbox/archive").len(), 1);
}

#[test]
fn an_invoice_in_the_folder_becomes_rows_and_a_booking() {
    let installation = example();
    let bus = installation.start();
    installation.file("inbox/invoices/r17.xml", sample("invoice.xml"));
    installation.file("inbox/invoices/broken.xml", "<Invoice><unclosed></Invoice>");
    let rows = wait_for("the rows", || {
        installation.files("outbox/bookkeeping").first().cloned()
    });
    let rows = std::fs::read_to_string(rows).expect("readable");
    assert_eq!(
        rows,
        "invoice,date,supplier,line,text,amount,currency\r\n\
         R-2026-17,2026-11-02,Pumpen Petersen KG,1,\"Pump, \"\"small\"\"\",400.00,EUR\r\n\
         R-2026-17,2026-11-02,Pumpen Petersen KG,2,Gasket; rubber,100.00,EUR\r\n"
    );
    wait_for("the file in done", || {
        (installation.names("inbox/invoices/.done") == ["r17.xml"]).then_some(())
    });
    wait_for("the broken one in failed", || {
        (installation.names("inbox/invoices/.failed") == ["broken.xml", "broken.xml.error.json"])
            .then_some(())
    });
    let reason: serde_json::Value =
        serde_json::from_str(&installation.read("inbox/invoices/.failed/broken.xml.error.json"))
            .expect("JSON");
    assert_eq!(reason["code"], "client", "{reason}");
    assert_eq!(reason["route"], "invoices");
    let booked = bus.json(&["messages", "--route", "ledger"]);
    assert_eq!(booked.as_array().map(Vec::len), Some(1));
}

#[test]
fn a_declaration_goes_to_customs_with_a_digest_and_nobody_else_gets_in() {
    let installation = example();
    let bus = installation.start();
    let declaration = br#"{"order": "4711", "goods": "pumps"}"#;
    for _ in 0..2 {
        let answer = post(bus.http, "/declare", "application/json", declaration);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let expected = serde_json::json!({ "order": "4711", "declaration": "D-4711" });
        assert_eq!(answer.json(), expected);
    }
    let bare = "<e:Envelope xmlns:e=\"http://schemas.xmlsoap.org/soap/envelope/\"><e:Body><Declare/></e:Body></e:Envelope>";
    let answer = post(bus.http, "/customs", "text/xml", bare.as_bytes());
    assert_eq!(answer.status, 500);
    assert!(
        answer.text().contains("wsse:InvalidSecurity"),
        "{}",
        answer.text()
    );
}

#[test]
fn the_classic_pair_waits_for_a_system_that_is_down() {
    let mut installation = example();
    let port = free_port();
    installation.env("CLASSIC_URL", &format!("http://127.0.0.1:{port}/system"));
    let bus = installation.start();
    let answer = post(bus.http, "/classic", "text/plain", b"hello");
    assert_eq!(answer.status, 200, "{}", answer.text());
    wait_for("the head to be blocked", || {
        (bus.queue("classic")["state"] == "blocked").then_some(())
    });
    let system = Destination::at(port, |_| Answer::ok());
    bus.json(&["queues", "retry", "classic"]);
    bus.wait_for_depth("classic", 0);
    assert_eq!(system.texts(), ["hello"]);
}

#[test]
fn a_scan_is_uploaded_as_a_form_and_archived_as_mtom() {
    let installation = example();
    let bus = installation.start();
    let form = b"--b\r\nContent-Disposition: form-data; name=\"no\"\r\n\r\n17\r\n\
                 --b\r\nContent-Disposition: form-data; name=\"scan\"; filename=\"page.tif\"\r\n\
                 Content-Type: image/tiff\r\n\r\nII*\x00\r\n--b--\r\n";
    let answer = post(bus.http, "/scans", "multipart/form-data; boundary=b", form);
    assert_eq!(
        answer.status,
        200,
        "{}\n{}",
        answer.text(),
        installation.log()
    );
    assert_eq!(answer.json()["stored"], "17");
    assert_eq!(answer.json()["octets"], 4);
    let archived = bus.json(&["messages", "--route", "scan-archive"]);
    let id = archived[0]["id"].as_str().expect("an id");
    let shown = bus.json(&["messages", "show", id]).to_string();
    assert!(
        shown.contains("page.tif") && shown.contains("cid:scan"),
        "{shown}"
    );
}
