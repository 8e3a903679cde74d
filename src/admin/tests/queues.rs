//! Queues shown, retried, parked, released and dropped.

use std::sync::Arc;

use serde_json::json;
use xbus_core::Message;
use xbus_core::store::{Change, Commit, Durability, Store};

use super::world::{Says, World};

const QUEUE: &str = "/api/v1/queues/orders.erp";

#[tokio::test]
async fn an_empty_queue_of_the_plan_is_listed_idle() {
    let world = World::start(None).await;
    let queues = world.get("/api/v1/queues").await.json();
    assert_eq!(
        queues,
        json!([{ "name": "orders.erp", "depth": 0, "parked": 0, "state": "idle", "head": null, "blocked_keys": 0 }])
    );
}

#[tokio::test]
async fn a_blocked_head_is_shown_and_goes_out_when_retried() {
    let world = World::start(None).await;
    world.says(Says::Down);
    let first = world.order("1").await;
    let second = world.order("2").await;
    let queues = world
        .until("/api/v1/queues", |all| {
            all[0]["state"] == "blocked" && all[0]["depth"] == 2
        })
        .await;
    let head = &queues[0]["head"];
    assert_eq!(head["id"], *first);
    assert_eq!(head["attempts"], 1);
    assert!(
        head["last_error"]
            .as_str()
            .unwrap()
            .contains("refused the connection")
    );
    assert!(head["next_try"].is_string() && head["since"].is_string());
    let shown = world.get(QUEUE).await.json();
    assert_eq!(shown["waiting_messages"][1]["id"], *second);
    assert_eq!(
        (&shown["route"], &shown["target"]),
        (&json!("orders"), &json!("erp"))
    );
    let one = world.get(&format!("{QUEUE}?limit=1")).await.json();
    assert_eq!(one["waiting_messages"].as_array().unwrap().len(), 1);
    let open = world.get("/api/v1/incidents").await.json();
    assert_eq!(open[0]["queue"], "orders.erp");
    world.says(Says::Yes);
    let behind = json!({ "ids": [second] }).to_string();
    let refused = world.post(&format!("{QUEUE}/retry"), &behind).await;
    assert_eq!(refused.status, 404, "{}", refused.text);
    assert!(refused.text.contains("is not the head of its lane"));
    let retried = world.post(&format!("{QUEUE}/retry"), "").await;
    assert_eq!(retried.status, 200, "{}", retried.text);
    world
        .until("/api/v1/queues", |all| {
            all[0]["state"] == "idle" && all[0]["depth"] == 0
        })
        .await;
    world
        .until("/api/v1/messages", |all| all[0]["outcome"] == "delivered")
        .await;
    world
        .until("/api/v1/incidents", |open| {
            open.as_array().unwrap().is_empty()
        })
        .await;
}

#[tokio::test]
async fn a_parked_message_lets_others_pass_and_its_release_says_which() {
    let world = World::start(None).await;
    world.says(Says::Down);
    let first = world.order("1").await;
    world
        .until("/api/v1/queues", |all| all[0]["state"] == "blocked")
        .await;
    let parked = world
        .post(&format!("{QUEUE}/park"), r#"{"reason": "wrong customer"}"#)
        .await
        .json();
    assert_eq!(parked["results"], json!([{ "id": first, "ok": true }]));
    let shown = world.get(QUEUE).await.json();
    assert_eq!(shown["parked_messages"][0]["parked"], "wrong customer");
    assert_eq!((&shown["depth"], &shown["parked"]), (&json!(0), &json!(1)));
    world.says(Says::Yes);
    let second = world.order("2").await;
    world
        .until(&format!("/api/v1/messages/{second}"), |m| {
            m["outcome"] == "delivered"
        })
        .await;
    let ids = json!({ "ids": [first] }).to_string();
    let released = world.post(&format!("{QUEUE}/release"), &ids).await.json();
    let result = &released["results"][0];
    assert_eq!((&result["ok"], &result["key"]), (&json!(true), &json!("")));
    assert_eq!(
        result["overtaken_by"],
        json!({ "count": 1, "complete": true, "newest": [second] })
    );
    world
        .until(&format!("/api/v1/messages/{first}"), |m| {
            m["outcome"] == "delivered"
        })
        .await;
}

#[tokio::test]
async fn each_of_several_messages_has_its_own_result() {
    let world = World::start(None).await;
    world.says(Says::Down);
    let first = world.order("1").await;
    let second = world.order("2").await;
    let third = world.order("3").await;
    world
        .until("/api/v1/queues", |all| all[0]["state"] == "blocked")
        .await;
    // Given the wrong way round, and one that does not exist: heads go in their order.
    let ids = json!({ "ids": [second, first, "nonsense"] }).to_string();
    let dropped = world.post(&format!("{QUEUE}/drop"), &ids).await;
    assert_eq!(dropped.status, 404);
    let dropped = dropped.json();
    assert_eq!(dropped["done"], 2, "{dropped}");
    assert!(dropped["error"].as_str().unwrap().starts_with("1 of 3"));
    let good = |id: &str| {
        let results = dropped["results"].as_array().unwrap();
        results
            .iter()
            .any(|result| result["id"] == *id && result["ok"] == true)
    };
    assert!(good(&first) && good(&second) && !good("nonsense"));
    let queues = world.get("/api/v1/queues").await.json();
    assert_eq!(queues[0]["head"]["id"], *third);
    let gone = world.get(&format!("/api/v1/messages/{first}")).await.json();
    assert_eq!(gone["targets"][0]["outcome"], "failed");
}

#[tokio::test]
async fn a_queue_that_no_route_takes_from_is_blocked_and_cannot_be_retried() {
    let world = World::start(None).await;
    let put = Change::Put {
        queue: "old".into(),
        key: "".into(),
        message: Arc::new(Message::new("x")),
        target: "erp".into(),
        cause: None,
    };
    let commit = Commit::of(put);
    world
        .store
        .commit(commit, Durability::Synced)
        .await
        .unwrap();
    let shown = world.get("/api/v1/queues/old").await.json();
    assert_eq!(
        (&shown["state"], &shown["attended"]),
        (&json!("blocked"), &json!(false))
    );
    let refused = world.post("/api/v1/queues/old/retry", "").await;
    assert_eq!(refused.status, 409, "{}", refused.text);
    assert!(refused.text.contains("no route takes messages"));
}
