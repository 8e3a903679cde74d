//! Every mistake that one route file can have: see mistakes.txt.

use super::problems_of_route;

#[test]
fn each_mistake_is_said_with_its_place_and_a_way_to_mend_it() {
    let cases = include_str!("mistakes.txt");
    let mut count = 0;
    for case in cases.split("---\n").skip(1) {
        // A document that begins with '---' is written '--- ' here.
        let case = case.replace("\n--- \n", "\n---\n");
        let (expected, text): (Vec<&str>, Vec<&str>) =
            case.lines().partition(|line| line.starts_with("=> "));
        let expected: Vec<&str> = expected.iter().map(|line| &line[3..]).collect();
        let text = text.join("\n") + "\n";
        assert_eq!(problems_of_route(&text), expected, "for\n{text}");
        count += 1;
    }
    assert!(count > 100, "only {count} cases were read");
}

#[test]
fn what_an_answer_cannot_have_is_an_error() {
    let text = "receive: { http: { path: /a } }\nreply: { headers: { X-A: a, Connection: b } }\n";
    let problems = super::problems_of_route(text);
    let told = "error bad-value routes/r.yaml:2:29 an answer cannot have a header 'Connection' of the route's own | leave it out";
    assert_eq!(problems, [told]);
}

#[test]
fn a_response_is_read_of_a_step_that_has_run() {
    let route = |first: &str, second: &str, reply: &str| {
        super::problems_of_route(&format!(
            "receive: {{ http: {{ path: /a }} }}\ninvoke:\n  - name: stock\n    when: {first}\n    http: {{ url: x }}\n  - name: price\n    when: {second}\n    http: {{ url: x }}\nreply: {{ headers: {{ X-A: '{{{{ {reply} }}}}' }} }}\n"
        ))
    };
    let none: [&str; 0] = [];
    assert_eq!(route("a", "responses.stock", "responses.price"), none);
    let told = route("responses.price", "responses.stok", "responses.prise");
    let parts = [
        (
            "r.yaml:4:",
            "it comes before the step 'price'",
            "there are: stock",
        ),
        ("r.yaml:7:", "no step 'stok'", "did you mean 'stock'?"),
        ("r.yaml:9:", "no step 'prise'", "did you mean 'price'?"),
    ];
    assert_eq!(told.len(), 3, "{told:?}");
    for (told, (place, message, help)) in told.iter().zip(parts) {
        assert!(
            [place, message, help]
                .iter()
                .all(|part| told.contains(part)),
            "{told}"
        );
    }
}
