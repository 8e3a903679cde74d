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
