//! Who gets in, and what errors look like.

use std::sync::atomic::Ordering::SeqCst;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xbus_core::store::StoreError;

use super::world::World;

#[tokio::test]
async fn a_token_opens_the_api_and_nothing_else_does() {
    let world = World::start(Some("s3cret")).await;
    assert_eq!(world.get("/api/v1/queues").await.status, 200);
    for wrong in [
        "Bearer s3cre",
        "Bearer s3cret2",
        "Bearer ",
        "Basic s3cret",
        "s3cret",
        "",
    ] {
        let answer = world
            .ask("GET", "/api/v1/queues", &[("authorization", wrong)], "")
            .await;
        assert_eq!(answer.status, 401, "{wrong:?}");
        assert!(answer.json()["error"].is_string());
    }
    let lower = [("authorization", "bearer s3cret")];
    assert_eq!(
        world.ask("GET", "/api/v1/status", &lower, "").await.status,
        200
    );
    // Paths that do not exist tell strangers nothing.
    let stranger = [("authorization", "Bearer x")];
    assert_eq!(
        world
            .ask("GET", "/api/v1/nothing", &stranger, "")
            .await
            .status,
        401
    );
    // Health is for everybody, metrics for this machine.
    assert_eq!(
        world.ask("GET", "/health/live", &stranger, "").await.status,
        200
    );
    assert_eq!(
        world.ask("GET", "/metrics", &stranger, "").await.status,
        200
    );
    let elsewhere = [("authorization", "Bearer x"), ("host", "bus.example")];
    assert_eq!(
        world.ask("GET", "/metrics", &elsewhere, "").await.status,
        401
    );
}

#[tokio::test]
async fn without_a_token_web_pages_do_not_get_in() {
    let world = World::start(None).await;
    let own = world.address.to_string();
    for (status, headers) in [
        (200, vec![("host", "localhost:9090")]),
        (200, vec![("host", "[::1]:9090")]),
        (200, vec![("origin", &*format!("http://{own}"))]),
        (403, vec![("host", "evil.example")]),
        (403, vec![("host", "127.0.0.1.evil.example")]),
        (403, vec![("origin", "http://evil.example")]),
        (403, vec![("origin", "null")]),
        (403, vec![("sec-fetch-site", "cross-site")]),
    ] {
        let answer = world.ask("GET", "/api/v1/queues", &headers, "").await;
        assert_eq!(answer.status, status, "{headers:?}");
        let posted = world
            .ask("POST", "/api/v1/routes/echo/send", &headers, "x")
            .await;
        assert_eq!(posted.status, status, "{headers:?}");
    }
}

#[tokio::test]
async fn an_open_address_without_a_token_is_refused() {
    let world = World::start(None).await;
    let settings = crate::Settings {
        listen: "0.0.0.0:0".parse().unwrap(),
        token: Some(String::new()),
        max_body: 1024,
        version: "1",
        refused: std::sync::Arc::default(),
        ready: world.ready.clone(),
    };
    let incidents = xbus_core::incident::Incidents::new(
        world.store.clone(),
        xbus_core::incident::AlertSettings::new("x", ".".as_ref()),
        Vec::new(),
    );
    let bus = xbus_core::bus::Bus::new(
        world.store.clone(),
        xbus_core::Plan::default(),
        std::sync::Arc::new(incidents),
    );
    let refused = crate::serve(settings.clone(), bus.clone(), world.stop.clone()).await;
    let error = refused.map(|(address, _)| address).unwrap_err();
    assert!(error.to_string().contains("admin.token"), "{error}");
    // An address that is taken is said with its name.
    let taken = crate::Settings {
        listen: world.address,
        ..settings
    };
    let error = crate::serve(taken, bus, world.stop.clone())
        .await
        .map(|(at, _)| at)
        .unwrap_err();
    assert!(
        error.message.contains(&world.address.to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn errors_are_json_whatever_was_asked() {
    let world = World::start(None).await;
    for (method, path, body, status) in [
        ("GET", "/", "", 404),
        ("GET", "/api/v1/nothing", "", 404),
        ("DELETE", "/api/v1/queues", "", 405),
        ("POST", "/health/live", "", 405),
        ("GET", "/api/v1/messages?colour=red", "", 400),
        ("GET", "/api/v1/messages?limit=many", "", 400),
        ("GET", "/api/v1/messages?outcome=delivred", "", 400),
        ("GET", "/api/v1/messages?since=yesterday", "", 400),
        ("GET", "/api/v1/messages?key=order-no", "", 400),
        ("GET", "/api/v1/messages?route=ordes", "", 404),
        ("GET", "/api/v1/messages/nonsense", "", 404),
        (
            "GET",
            "/api/v1/messages/0192e4a6-0000-7000-8000-000000000000",
            "",
            404,
        ),
        ("GET", "/api/v1/queues/nothing", "", 404),
        ("GET", "/api/v1/queues/%FF", "", 400),
        ("POST", "/api/v1/queues/orders.erp/explode", "", 404),
        ("POST", "/api/v1/queues/orders.erp/drop", "", 400),
        (
            "POST",
            "/api/v1/queues/orders.erp/drop",
            "{\"ids\": 7}",
            400,
        ),
        ("POST", "/api/v1/queues/orders.erp/retry", "", 404),
        ("POST", "/api/v1/routes/nothing/send", "x", 404),
        ("POST", "/api/v1/routes/off/send", "x", 409),
        ("POST", "/api/v1/routes/echo/send", &"x".repeat(2000), 413),
    ] {
        let answer = world.ask(method, path, &[], body).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        assert!(answer.json()["error"].is_string(), "{method} {path}");
    }
    let near = world.get("/api/v1/messages?route=ordes").await.json();
    assert!(
        near["error"]
            .as_str()
            .unwrap()
            .contains("did you mean 'orders'")
    );
    let near = world.get("/api/v1/queues/orders.epr").await.json();
    assert!(near["error"].as_str().unwrap().contains("'orders.erp'"));
}

#[tokio::test]
async fn health_turns_red_with_its_reasons() {
    let world = World::start(None).await;
    assert_eq!(world.get("/health/ready").await.status, 200);
    world.ready.store(false, SeqCst);
    *world.store.broken.lock().unwrap() = Some(StoreError::Full("/data/x".into()));
    let red = world.get("/health/ready").await;
    assert_eq!(red.status, 503);
    let reasons = red.json()["reasons"].clone();
    assert_eq!(reasons[0], "the receivers are not open");
    assert_eq!(reasons[1], "the store has no room");
    assert!(!red.text.contains("/data"), "paths are not for everybody");
    assert_eq!(world.get("/health/live").await.status, 200);
    let status = world.get("/api/v1/status").await.json();
    assert_eq!(status["store"]["healthy"], false);
    assert_eq!(status["version"], "1.2.3");
}

#[tokio::test]
async fn stopping_ends_idle_connections_at_once() {
    let world = World::start(None).await;
    let mut idle = tokio::net::TcpStream::connect(world.address).await.unwrap();
    idle.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut some = [0; 512];
    assert!(idle.read(&mut some).await.unwrap() > 0);
    world.stop.cancel();
    world.serving.await.unwrap();
    let mut rest = Vec::new();
    assert_eq!(idle.read_to_end(&mut rest).await.unwrap_or(0), 0);
}
