//! The reference page is made from the tables that the bus itself reads.

use crate::support::Installation;

#[test]
fn the_reference_page_is_the_one_that_the_tables_give() {
    let output = Installation::bare().xbus(&["schema", "reference"]);
    assert!(output.status.success());
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference.md");
    let kept = std::fs::read_to_string(page).expect("docs/reference.md");
    assert!(
        kept == String::from_utf8_lossy(&output.stdout),
        "docs/reference.md is not what the tables give: run 'make docs'"
    );
}

#[test]
fn schemas_are_json() {
    for what in ["route", "bus"] {
        let output = Installation::bare().xbus(&["schema", what]);
        let schema: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert!(schema["properties"].is_object(), "{what}");
    }
}
