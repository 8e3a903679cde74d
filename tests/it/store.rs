//! The store: a full disk, a folder that another process has, and depth.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lanes::Keep;
use crate::support::{Answer, Destination, Installation, post, wait_for};

/// A small file system of its own, unmounted when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn mount(at: &Path, size: &str) -> Self {
        std::fs::create_dir_all(at).expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(at)
            .status()
            .expect("mount");
        assert!(
            mounted.success(),
            "this test mounts a tmpfs and needs to be root"
        );
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn queueing(system: &Destination) -> Installation {
    let installation = Installation::new();
    installation.file(
        "xbus.yaml",
        "name: test\nhttp: { listen: \"127.0.0.1:0\" }\nadmin: { listen: \"127.0.0.1:0\" }\njournal: { payloads: none, max_size: 1MiB }\n",
    );
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}\ndistribute:\n  - name: t\n    async: {{ retry: {{ first: 50ms, max: 500ms }} }}\n    http: {{ url: \"{}\" }}\n",
            system.url("/")
        ),
    );
    installation
}

#[test]
fn a_full_disk_is_a_refusal_and_work_goes_on_when_there_is_room() {
    let system = Destination::with(|_| Answer::Status(503, "text/plain", Vec::new()));
    let installation = queueing(&system);
    let disk = SmallDisk::mount(&installation.path().join("data"), "160m");
    let bus = installation.start();
    let body = "x".repeat(256 * 1024);
    let mut accepted = Vec::new();
    let refused = loop {
        let answer = post(bus.http, "/r", "text/plain", body.as_bytes());
        match answer.status {
            202 => accepted.push(answer.id()),
            _ => break answer,
        }
        assert!(accepted.len() < 2000, "160 MiB cannot hold this");
    };
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.json()["fault"]["code"], "overloaded");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(crate::support::get(bus.admin, "/health/ready").status, 503);
    assert!(!accepted.is_empty());
    assert_eq!(bus.queue("r.t")["depth"], accepted.len());
    // What was accepted can be delivered although the disk is full, which makes room again.
    system.now(|_| Answer::ok());
    bus.json(&["queues", "retry", "r.t"]);
    bus.wait_for_depth("r.t", 0);
    let tried: Vec<String> = system
        .got()
        .iter()
        .map(|got| got.header("X-Message-Id").expect("an id").to_owned())
        .collect();
    for id in &accepted {
        assert!(tried.contains(id), "{id} was acknowledged and is lost");
    }
    wait_for("messages to be taken again", || {
        (post(bus.http, "/r", "text/plain", b"small").status == 202).then_some(())
    });
    assert!(bus.stop().success());
    drop(disk);
}

#[test]
fn a_store_that_another_bus_has_is_refused_with_its_process() {
    let system = Destination::start();
    let installation = queueing(&system);
    let bus = installation.start();
    let second = installation.xbus(&["run", "."]);
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains(&bus.pid().to_string()), "{said}");
}

#[test]
fn a_deep_queue_stays_small_in_memory_opens_quickly_and_keeps_its_order() {
    const DEPTH: usize = 60_000;
    let system = Destination::with(|_| Answer::Status(503, "text/plain", Vec::new()));
    let installation = queueing(&system);
    let bus = installation.start();
    let mut keep = Keep::open(bus.http);
    for number in 0..1000 {
        keep.post("/r", "", &number.to_string());
    }
    let before = bus.resident_kib();
    for number in 1000..DEPTH {
        keep.post("/r", "", &number.to_string());
    }
    let after = bus.resident_kib();
    assert_eq!(bus.queue("r.t")["depth"], DEPTH);
    // 59,000 messages more: a hundred bytes of memory each would be 6 MiB.
    assert!(
        after < before + 24 * 1024,
        "resident {before} KiB at 1,000, {after} KiB at {DEPTH}"
    );
    bus.kill();
    let bus = installation.start();
    assert_eq!(bus.queue("r.t")["depth"], DEPTH);
    let tried = system.count();
    system.now(|_| Answer::ok());
    bus.json(&["queues", "retry", "r.t"]);
    wait_for("a thousand in order", || {
        (system.count() >= tried + 1000).then_some(())
    });
    let texts = system.texts();
    let mut numbers: Vec<usize> = texts
        .iter()
        .map(|text| text.parse().expect("a number"))
        .collect();
    numbers.dedup();
    let expected: Vec<usize> = (0..numbers.len()).collect();
    assert_eq!(numbers, expected);
}
