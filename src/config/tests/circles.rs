//! Routes that feed themselves, and those that only look like it.

use super::{Folder, problems_of_route};

fn problems(routes: &[(&str, &str)]) -> Vec<String> {
    Folder::new(routes).problems()
}

#[test]
fn a_circle_over_several_routes_is_told_once_with_all_its_places() {
    let told = problems(&[
        (
            "routes/a.yaml",
            "receive: { file: { dir: in } }\ndistribute:\n  - { name: out, queue: { name: q } }\n",
        ),
        (
            "routes/b.yaml",
            "receive: { queue: { name: q } }\ndistribute:\n  - { name: aside, file: { dir: x } }\n  - { name: on, file: { dir: mid } }\n",
        ),
        (
            "routes/c.yaml",
            "receive: { file: { dir: mid } }\ndistribute:\n  - { name: back, async: true, file: { dir: in } }\n",
        ),
        (
            "routes/d.yaml",
            "receive: { http: { path: /a } }\ndistribute:\n  - { name: start, file: { dir: in } }\n",
        ),
    ]);
    assert_eq!(
        told,
        [
            "warning feeds-itself routes/a.yaml:3:18 each message makes the next one, without end: \
             'a.out' feeds the route 'b', which receives at routes/b.yaml:1:12; \
             'b.on' at routes/b.yaml:4:17 feeds the route 'c', which receives at routes/c.yaml:1:12; \
             'c.back' at routes/c.yaml:3:32 feeds the route 'a', which receives at routes/a.yaml:1:12 \
             | put into another queue; where it does end, say so with a 'when' at the target"
        ]
    );
}

#[test]
fn what_may_end_is_no_circle() {
    for route in [
        "receive: { queue: { name: q } }\ndistribute:\n  - { when: 'a', queue: { name: q } }\n",
        "receive: { queue: { name: q } }\nwhen: 'a'\ndistribute:\n  - { queue: { name: q } }\n",
        "receive: { queue: { name: q } }\nonce: { key: 'a' }\ndistribute:\n  - { queue: { name: q } }\n",
        "receive: { queue: { name: q } }\nreply: {}\non_fault:\n  - { queue: { name: q } }\n",
        "receive: { queue: { name: q } }\ndistribute:\n  - { name: a, when: 'a', file: { dir: x } }\n  - { name: b, otherwise: true, queue: { name: q } }\n",
        "receive: { file: { dir: in } }\ndistribute:\n  - { file: { dir: out } }\n",
        "receive: { file: { dir: in } }\nenabled: false\ndistribute:\n  - { file: { dir: in } }\n",
    ] {
        assert_eq!(problems_of_route(route), [""; 0], "{route}");
    }
}

#[test]
fn a_chain_that_does_not_come_back_is_no_circle() {
    let told = problems(&[
        (
            "routes/a.yaml",
            "receive: { file: { dir: a } }\ndistribute:\n  - { file: { dir: b } }\n",
        ),
        (
            "routes/b.yaml",
            "receive: { file: { dir: b } }\ndistribute:\n  - { file: { dir: c } }\n",
        ),
        (
            "routes/c.yaml",
            "receive: { file: { dir: c } }\ndistribute:\n  - { when: 'a', file: { dir: a } }\n",
        ),
    ]);
    assert_eq!(told, [""; 0]);
}
