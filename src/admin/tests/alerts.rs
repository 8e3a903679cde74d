//! The ways to administrators, by the API.

use super::world::{Says, World};

#[tokio::test]
async fn ways_are_shown_and_tried() {
    let world = World::start(None).await;
    let ways = world.get("/api/v1/alerts").await.json();
    assert_eq!(
        (&ways[0]["way"], &ways[1]["way"]),
        (&"mail".into(), &"webhook".into())
    );
    assert_eq!(ways[0]["waiting"], 0);
    assert_eq!(ways[0]["to"], "ops@acme.example");
    let tried = world.ask("POST", "/api/v1/alerts/test", &[], "").await;
    assert_eq!(tried.status, 200);
    let tried = tried.json();
    assert_eq!(tried[0]["ok"], true);
    assert_eq!(tried[0]["said"], "250 heard");
    assert_eq!(tried[1]["ok"], false);
    assert_eq!(tried[1]["error"], "nobody there");
}

#[tokio::test]
async fn an_incident_says_what_waits_for_it() {
    let world = World::start(None).await;
    world.says(Says::Down);
    world.order("1").await;
    let open = world
        .until("/api/v1/incidents", |open| {
            open[0]["waiting"].as_u64() == Some(1)
        })
        .await;
    assert_eq!(open[0]["queue"], "orders.erp");
    assert!(open[0]["oldest"].is_string(), "{open}");
    assert_eq!(open[0]["level"], 0);
}
