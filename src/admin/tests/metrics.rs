//! The metrics as a scraper reads them.

use super::world::{Says, World};

#[tokio::test]
async fn metrics_count_what_happened() {
    let world = World::start(None).await;
    world.post("/api/v1/routes/echo/send", "x").await;
    world.says(Says::Down);
    world.post("/api/v1/routes/echo/send", "x").await;
    world.order("1").await;
    world
        .until("/api/v1/queues", |all| all[0]["state"] == "blocked")
        .await;
    let scraped = world.get("/metrics").await;
    assert!(
        scraped
            .content_type
            .starts_with("application/openmetrics-text")
    );
    let lines: Vec<&str> = scraped.text.lines().collect();
    for line in [
        "xbus_messages_received_total{route=\"echo\"} 2",
        "xbus_messages_acknowledged_total{route=\"echo\"} 1",
        "xbus_messages_failed_total{route=\"echo\"} 1",
        "xbus_messages_filtered_total{route=\"orders\"} 0",
        "xbus_messages_running{route=\"echo\"} 0.0",
        "xbus_message_duration_seconds_count{route=\"echo\"} 2",
        "xbus_message_duration_seconds_bucket{le=\"+Inf\",route=\"echo\"} 2",
        "xbus_target_delivered_total{route=\"echo\",target=\"mirror\"} 1",
        "xbus_target_failed_total{route=\"orders\",target=\"erp\"} 1",
        "xbus_queue_depth{queue=\"orders.erp\"} 1.0",
        "xbus_queue_parked{queue=\"orders.erp\"} 0.0",
        "xbus_queue_blocked_keys{queue=\"orders.erp\"} 1.0",
        "xbus_store_disk_bytes 4096.0",
        "xbus_store_healthy 1.0",
        "xbus_outbox_mails 0.0",
        "xbus_ready 1.0",
        "xbus_build_info{version=\"1.2.3\"} 1.0",
        "# EOF",
    ] {
        assert!(lines.contains(&line), "{line} is not in:\n{}", scraped.text);
    }
    for line in lines.iter().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with("xbus_"), "{line}");
    }
    let resident = lines
        .iter()
        .find_map(|line| line.strip_prefix("xbus_process_resident_memory_bytes "))
        .and_then(|bytes| bytes.parse::<f64>().ok());
    assert!(resident.is_some_and(|bytes| bytes > 1e6), "{resident:?}");
}
