//! The route language where all is well.

use std::time::Duration;

use super::Folder;
use crate::Mode;

#[test]
fn a_whole_route_becomes_a_plan() {
    let folder = Folder::new(&[
        (
            "routes/orders.yaml",
            r#"
description: Shop orders
receive:
  http: { path: /orders }
when: 'header("x") == "1"'
once: { key: 'header("id")' }
keys: { no: 'xpath("//No")' }
concurrency: 4
rate: 100/s
invoke:
  - name: stock
    transform: good.rhai
    http: { url: "http://a/{{ id }}" }
    timeout: 5s
    retry: { attempts: 4 }
    breaker: {}
distribute:
  - name: erp
    transform: [good.rhai, { convert: { from: xml, to: json } }]
    async: { order_by: 'header("c")', retry: { first: 2s }, on_reject: park }
    http: { url: "http://b" }
  - file: { dir: archive }
  - file: { dir: archive2 }
    when: 'header("p") == "high"'
reply: { status: 202, headers: { X-A: '{{ id }}' } }
on_fault:
  - name: dead
    file: { dir: dead }
"#,
        ),
        ("transforms/good.rhai", "body"),
    ]);
    let (loaded, problems) = folder.load(Mode::Run);
    assert!(problems.is_empty(), "{problems:?}");
    let plan = loaded.unwrap().plan;
    let route = &plan.routes["orders"];
    assert!(route.answers && route.once.is_some() && route.gate.is_some() && route.pace.is_some());
    assert_eq!(route.steps[0].timeout, Duration::from_secs(5));
    assert_eq!(route.steps[0].retry.unwrap().attempts, 4);
    assert!(route.steps[0].breaker.is_some());
    let erp = &route.targets[0];
    assert_eq!(erp.step.transforms.len(), 2);
    assert_eq!(erp.step.timeout, Duration::from_secs(30));
    let lane = erp.lane.as_ref().unwrap();
    assert_eq!(&*lane.queue, "orders.erp");
    assert!(lane.order_by.is_some() && lane.policy.park_rejected);
    assert_eq!(lane.policy.retry.first, Duration::from_secs(2));
    let names: Vec<&str> = route.targets.iter().map(|t| &*t.step.name).collect();
    assert_eq!(names, ["erp", "file", "file-2"]);
    assert_eq!(route.reply.as_ref().unwrap().status, Some(202));
    assert_eq!(route.on_fault.len(), 1);
}
