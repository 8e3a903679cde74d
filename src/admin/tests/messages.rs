//! Messages sent, found, shown, replayed and decided.

use serde_json::json;

use super::world::{Says, World};

#[tokio::test]
async fn a_sent_message_comes_back_with_the_routes_answer() {
    let world = World::start(None).await;
    let headers = [
        ("content-type", "text/plain"),
        ("x-xbus-header", "Kunde=Müller = Söhne"),
        ("x-correlation-id", "c-1"),
    ];
    let sent = world
        .ask("POST", "/api/v1/routes/echo/send", &headers, "Grüße")
        .await;
    assert_eq!(sent.status, 200);
    let sent = sent.json();
    assert_eq!(sent["status"], "delivered");
    let reply = &sent["reply"];
    assert_eq!(
        (&reply["body"], &reply["encoding"], &reply["content_type"]),
        (&json!("Grüße"), &json!("utf-8"), &json!("text/plain"))
    );
    let accepted = world.post("/api/v1/routes/orders/send", "x").await.json();
    assert_eq!(
        (&accepted["status"], &accepted["reply"]),
        (&json!("accepted"), &json!(null))
    );
}

#[tokio::test]
async fn a_fault_says_where_and_why() {
    let world = World::start(None).await;
    world.says(Says::Down);
    let sent = world.post("/api/v1/routes/echo/send", "x").await;
    assert_eq!(sent.status, 502);
    let sent = sent.json();
    let fault = &sent["fault"];
    assert_eq!(
        (&fault["code"], &fault["step"]),
        (&json!("destination"), &json!("mirror"))
    );
    assert!(!fault["reason"].as_str().unwrap().contains("10.1.2.3"));
    assert!(fault["detail"].as_str().unwrap().contains("10.1.2.3"));
    let id = sent["id"].as_str().unwrap();
    let shown = world.get(&format!("/api/v1/messages/{id}")).await.json();
    assert_eq!(shown["outcome"], "failed");
    assert_eq!(shown["fault"]["code"], "destination");
    assert_eq!(
        shown["payload"]["text"], "x",
        "payloads of failed messages are kept"
    );
}

#[tokio::test]
async fn messages_are_found_by_route_outcome_key_and_time() {
    let world = World::start(None).await;
    let first = world.order("4711").await;
    let second = world.order("4712").await;
    world.post("/api/v1/routes/echo/send", "x").await;
    world
        .until("/api/v1/messages?outcome=delivered", |all| {
            all.as_array().unwrap().len() == 3
        })
        .await;
    let ids = async |filters: &str| -> Vec<String> {
        let found = world
            .get(&format!("/api/v1/messages?{filters}"))
            .await
            .json();
        let id = |entry: &serde_json::Value| entry["id"].as_str().unwrap().to_owned();
        found.as_array().unwrap().iter().map(id).collect()
    };
    assert_eq!(
        ids("route=orders").await,
        [second.clone(), first.clone()],
        "newest first"
    );
    assert_eq!(ids("route=orders&limit=1").await, [second]);
    assert_eq!(ids("key=order-no%3D4711").await, [first.clone()]);
    assert_eq!(ids("since=1h").await.len(), 3);
    assert_eq!(ids("until=1h").await.len(), 0);
    assert_eq!(ids("outcome=failed").await.len(), 0);
    let found = world.get("/api/v1/messages?key=order-no=4711").await.json();
    let entry = &found[0];
    assert_eq!(entry["correlation_id"], *first);
    assert_eq!(entry["keys"], json!({ "order-no": "4711" }));
    let target = &entry["targets"][0];
    assert_eq!(
        (&target["name"], &target["outcome"]),
        (&json!("erp"), &json!("delivered"))
    );
    assert_eq!(
        (&target["attempts"], &target["error"]),
        (&json!(1), &json!(null))
    );
    assert!(target["at"].is_string() && entry["received_at"].is_string());
}

#[tokio::test]
async fn a_waiting_message_tells_its_queue() {
    let world = World::start(None).await;
    world.says(Says::Down);
    let id = world.order("1").await;
    let path = format!("/api/v1/messages/{id}");
    let shown = world
        .until(&path, |m| m["queued"][0]["attempts"] == 1)
        .await;
    assert_eq!(shown["outcome"], "pending");
    assert_eq!(shown["queued"][0]["queue"], "orders.erp");
    assert!(shown["queued"][0]["next_try"].is_string());
    assert_eq!(shown["payload"]["headers"]["no"], "1");
}

#[tokio::test]
async fn a_replay_is_a_new_message_that_names_the_old_one() {
    let world = World::start(None).await;
    let old = world.order("1").await;
    let replayed = world
        .post(&format!("/api/v1/messages/{old}/replay"), "")
        .await
        .json();
    assert_eq!(
        (&replayed["cause"], &replayed["status"]),
        (&json!(old), &json!("accepted"))
    );
    let new = replayed["id"].as_str().unwrap();
    assert_ne!(new, old);
    let shown = world.get(&format!("/api/v1/messages/{new}")).await.json();
    assert_eq!(
        (&shown["cause"], &shown["correlation_id"]),
        (&json!(old), &json!(old))
    );
    assert_eq!(shown["keys"]["order-no"], "1", "headers go with it");
    // Without a payload it says so.
    let sent = world.post("/api/v1/routes/echo/send", "x").await.json();
    let path = format!("/api/v1/messages/{}/replay", sent["id"].as_str().unwrap());
    let refused = world.post(&path, "").await;
    assert_eq!(refused.status, 409);
    assert!(
        refused.json()["error"]
            .as_str()
            .unwrap()
            .contains("no payload")
    );
}

#[tokio::test]
async fn an_unknown_outcome_is_decided_once() {
    let world = World::start(None).await;
    world.says(Says::LostAnswer);
    let sent = world.post("/api/v1/routes/echo/send", "x").await;
    assert_eq!(sent.status, 504);
    let id = sent.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/messages/{id}/resolve");
    let state = world.get(&format!("/api/v1/messages/{id}")).await.json()["outcome"].clone();
    assert_eq!(world.post(&path, "{}").await.status, 400);
    if state == "in-doubt" {
        let resolved = world.post(&path, r#"{"commit": true}"#).await;
        assert_eq!(resolved.status, 200, "{}", resolved.text);
        assert_ne!(resolved.json()["outcome"], "in-doubt");
    }
    let again = world.post(&path, r#"{"commit": true}"#).await;
    assert_eq!(again.status, 409, "{}", again.text);
    assert!(
        again.json()["error"]
            .as_str()
            .unwrap()
            .contains("not in doubt")
    );
}
