//! What is wrong with a text is said with its line, field and value.

use super::*;

fn refused(text: &str) -> Problem {
    let Problems(mut problems) = state_from_str(text).unwrap_err();
    assert_eq!(problems.len(), 1);
    problems.remove(0)
}

fn said(text: &str) -> String {
    refused(text).to_string()
}

const GOOD: &str = "\
services:
  - name: www
    address: 192.0.2.1
    protocol: tcp
    port: 80
    backends:
      - name: web-1
        address: 198.51.100.11
      - { name: web-2, address: 198.51.100.12, weight: 5 }
";

#[test]
fn a_state_is_read_with_its_defaults() {
    let spec = state_from_str(GOOD).unwrap();
    let service = &spec.services[0];
    assert_eq!(
        (
            service.port,
            service.mode.as_str(),
            service.when_all_down.as_str()
        ),
        (80, "ipip", "open")
    );
    let weights: Vec<_> = service
        .backends
        .iter()
        .map(|backend| backend.weight)
        .collect();
    assert_eq!(weights, [100, 5]);
}

#[test]
fn writing_and_reading_is_the_identity() {
    let spec = state_from_str(GOOD).unwrap();
    assert_eq!(state_from_str(&to_string(&spec).unwrap()).unwrap(), spec);
    assert_eq!(
        state_from_str("services: []").unwrap(),
        StateSpec::default()
    );
}

#[test]
fn shape_errors_name_line_field_value_and_what_to_do() {
    let edit = |from: &str, to: &str| said(&GOOD.replace(from, to));
    assert_eq!(
        edit("port: 80", "porrt: 80"),
        "line 5: services[0].porrt: unknown field; did you mean `port`?"
    );
    assert_eq!(
        edit("port: 80", "port: http"),
        "line 5: services[0].port: must be a whole number (given: http)"
    );
    assert_eq!(
        edit("weight: 5", "weight: 5.5"),
        "line 9: services[0].backends[1].weight: must be a whole number (given: 5.5)"
    );
    assert_eq!(
        edit("    protocol: tcp\n", ""),
        "line 2: services[0].protocol: is missing; add `protocol: ...`"
    );
    assert_eq!(
        edit("port: 80", "port: 80\n    port: 81"),
        "line 6: services[0].port: is given twice; keep one of the two"
    );
    assert_eq!(
        edit("name: web-1", "name: null"),
        "line 7: services[0].backends[0].name: must be text (given: null)"
    );
    assert_eq!(
        said("services: 5"),
        "line 1: services: must be a list (given: 5)"
    );
    assert_eq!(
        said("servces: []"),
        "line 1: servces: unknown field; did you mean `services`?"
    );
    assert_eq!(
        said("zzz: []"),
        "line 1: zzz: unknown field; known here: services"
    );
    assert_eq!(said("- 1"), "line 1: must be a group of fields");
}

#[test]
fn text_that_is_not_yaml_is_refused_with_its_line() {
    let problem = refused("services:\n  - name: [www\n");
    assert!(problem.line.is_some_and(|line| line >= 2), "{problem}");
}

#[test]
fn a_second_document_is_refused_in_our_own_words() {
    for text in [
        "services: []\n---\nservices: []\n",
        "services: []\n---\n",
        "services: []\n---\n- [\n",
        &format!("{GOOD}---\n{GOOD}"),
    ] {
        let said = said(text);
        assert!(
            said.ends_with(": more than one document (`---`); give one"),
            "{text}: {said}"
        );
    }
    assert!(state_from_str("---\nservices: []\n...\n").is_ok());
}

#[test]
fn an_empty_text_is_refused() {
    for text in ["", "\n", "# nothing\n", "---\n", "null", "~"] {
        assert_eq!(refused(text).message, "the text is empty", "{text:?}");
    }
}

#[test]
fn only_an_empty_list_is_no_services() {
    assert_eq!(
        said("{}"),
        "line 1: services: is missing; add `services: ...`"
    );
    assert_eq!(
        said(""),
        "the text is empty; write `services: []` if nothing is what you mean"
    );
}

#[test]
fn bombs_and_floods_are_refused() {
    assert_eq!(
        refused(&" ".repeat(MAX_BYTES + 1)).message,
        "the text is too long"
    );
    let deep = format!("services: {}{}", "[".repeat(40), "]".repeat(40));
    assert!(state_from_str(&deep).is_err());
    let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x]\n");
    for (from, to) in [
        ('a', 'b'),
        ('b', 'c'),
        ('c', 'd'),
        ('d', 'e'),
        ('e', 'f'),
        ('f', 'g'),
        ('g', 'h'),
    ] {
        bomb += &format!("{to}: &{to} [{}]\n", vec![format!("*{from}"); 9].join(", "));
    }
    assert!(parse::<std::collections::BTreeMap<String, serde_json::Value>>(&bomb, "").is_err());
}

#[test]
fn lines_are_found_as_far_as_the_path_goes() {
    let at = |field: &str| {
        let mut problems = Problems::from(Problem::new(field, "", "", ""));
        locate(GOOD, &mut problems);
        problems.0[0].line
    };
    assert_eq!(at(""), Some(1));
    assert_eq!(at("services[0].port"), Some(5));
    assert_eq!(at("services[0].backends[1].weight"), Some(9));
    assert_eq!(at("services[0].backends[0].weight"), Some(7));
    assert_eq!(at("services[7].port"), Some(2));
}

#[test]
fn anchors_and_merge_keys_can_be_used() {
    let text = GOOD.replace("port: 80", "port: 80\n    health: &probe { interval: 1s }");
    let second = "  - { name: b, address: 192.0.2.2, protocol: tcp, port: 1, health: { <<: *probe, rise: 1 } }\n";
    let spec = state_from_str(&(text + second)).unwrap();
    let health = spec.services[1].health.clone().unwrap();
    assert_eq!(
        (health.interval.as_deref(), health.rise),
        (Some("1s"), Some(1))
    );
}

#[test]
fn a_list_with_nothing_behind_it_is_refused() {
    for text in [
        "services:\n",
        &GOOD.replace("    backends:", "    backends:\n  - name: x\n    x:"),
    ] {
        assert!(state_from_str(text).is_err(), "{text}");
    }
    let said = said("services:\n");
    assert!(
        said.contains("services") && said.contains("write `[]`"),
        "{said}"
    );
}
