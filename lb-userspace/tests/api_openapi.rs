//! The OpenAPI document and the server say the same.

mod support;

use lb_userspace::api::openapi;
use serde_json::{Value, json};
use support::FakeLbd;

fn document() -> Value {
    serde_json::to_value(openapi::document()).unwrap()
}

#[test]
fn it_describes_exactly_the_routes_that_exist() {
    let lbd = FakeLbd::start();
    let document = document();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["GET", "PUT", "POST", "PATCH", "DELETE"] {
            let described = item.get(method.to_lowercase()).is_some();
            let (code, body) = lbd.http(method, path, "");
            assert_eq!(described, code != 405, "{method} {path}: {code}");
            assert!(
                !body["message"]
                    .as_str()
                    .unwrap_or_default()
                    .starts_with("there is no path"),
                "{method} {path}"
            );
            operations.extend(described.then(|| format!("{method} {path}")));
        }
    }
    let expected = [
        "GET /v1/announcements",
        "GET /v1/digest",
        "GET /v1/drains",
        "PUT /v1/drains/{backend}",
        "DELETE /v1/drains/{backend}",
        "POST /v1/explain",
        "GET /v1/history",
        "GET /v1/node",
        "PUT /v1/node/drain",
        "DELETE /v1/node/drain",
        "GET /v1/openapi.json",
        "POST /v1/rollback/{revision}",
        "GET /v1/services",
        "POST /v1/services",
        "GET /v1/services/{service}",
        "DELETE /v1/services/{service}",
        "POST /v1/services/{service}/backends",
        "PATCH /v1/services/{service}/backends/{backend}",
        "DELETE /v1/services/{service}/backends/{backend}",
        "GET /v1/state",
        "PUT /v1/state",
        "GET /v1/stats",
        "GET /v1/status",
        "GET /v1/trace",
    ];
    assert_eq!(operations, expected);
}

#[test]
fn it_is_served_as_it_is_printed() {
    let lbd = FakeLbd::start();
    assert_eq!(lbd.http("GET", "/v1/openapi.json", ""), (200, document()));
    assert_eq!(document()["openapi"], "3.1.0");
    assert_eq!(document()["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn what_is_sent_may_have_no_unknown_fields() {
    let schemas = &document()["components"]["schemas"];
    for name in [
        "StateSpec",
        "ServiceSpec",
        "HealthSpec",
        "BackendSpec",
        "BackendPatch",
    ] {
        assert_eq!(
            schemas[name]["additionalProperties"],
            json!(false),
            "{name}"
        );
    }
    assert_eq!(schemas["StateSpec"]["required"], json!(["services"]));
}

#[test]
fn what_an_older_lbd_does_not_tell_is_described_and_not_required() {
    let schemas = &document()["components"]["schemas"];
    let told = [
        (
            "TableChange",
            "slots_changed",
            "necessary collateral new_flows_basis_points expiring_slots lost_slots old_flows seconds",
        ),
        (
            "ServiceView",
            "when_all_down",
            "tracking on_down drain_timeout_ms udp_settle_ms slow_start_ms",
        ),
        ("BackendView", "weight", "drain slow_start_percent"),
    ];
    for (name, always, fields) in told {
        let schema = &schemas[name];
        let required = schema["required"].as_array().unwrap();
        assert!(required.contains(&json!(always)), "{name}: {always}");
        for field in fields.split(' ') {
            let described = &schema["properties"][field]["description"];
            assert!(described.is_string(), "{name}: {field}");
            assert!(!required.contains(&json!(field)), "{name}: {field}");
        }
    }
}

#[test]
fn every_change_takes_the_same_options() {
    let document = document();
    let mut changes = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let parameters = operation["parameters"].as_array();
            let queries: Vec<&Value> = parameters
                .into_iter()
                .flatten()
                .filter(|parameter| parameter["in"] == "query")
                .collect();
            if method == "get" || path == "/v1/explain" || path == "/v1/node/drain" {
                // Questions, of which only a trace has something to choose by; and what changes no desired state.
                assert!(queries.is_empty() || path == "/v1/trace", "{method} {path}");
                continue;
            }
            changes += 1;
            for name in ["dry_run", "if_revision", "max_move"] {
                let parameter = queries.iter().find(|parameter| parameter["name"] == name);
                let parameter = parameter.unwrap_or_else(|| panic!("{method} {path}: {name}"));
                assert_eq!(parameter["required"], false, "{method} {path}: {name}");
                assert!(
                    parameter["description"]
                        .as_str()
                        .is_some_and(|said| !said.is_empty()),
                    "{method} {path}: {name}"
                );
            }
        }
    }
    assert_eq!(changes, 9);
}

#[test]
fn every_reference_leads_somewhere_and_every_operation_can_be_refused() {
    let document = document();
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(
                    fields
                        .get("$ref")
                        .and_then(Value::as_str)
                        .map(str::to_owned),
                );
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 20);
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(
            document.pointer(pointer).is_some(),
            "{reference} leads nowhere"
        );
    }
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let refusal =
                &operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"];
            assert_eq!(refusal, "#/components/schemas/ErrorBody", "{method} {path}");
        }
    }
}
