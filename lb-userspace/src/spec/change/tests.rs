//! Every change, done and refused, and the words for what it does.

use super::*;
use crate::{api::protocol::ChangeLine, spec::yaml};

fn spec(text: &str) -> StateSpec {
    yaml::state_from_str(text).unwrap()
}

fn base() -> StateSpec {
    spec(
        "
services:
  - { name: dns, address: 192.0.2.1, protocol: udp, port: 53, backends: [{ name: ns, address: 10.0.0.9 }] }
  - name: www
    address: 192.0.2.1
    protocol: tcp
    port: 80
    backends: [{ name: a, address: 10.0.0.1 }, { name: b, address: 10.0.0.2 }]
",
    )
}

fn service(text: &str) -> Change {
    Change::AddService(spec(&format!("services: [{text}]")).services.remove(0))
}

fn add(service: &str, name: &str, address: &str) -> Change {
    let backend = BackendSpec {
        name: name.into(),
        address: address.into(),
        weight: 100,
        drain: false,
        server_id: None,
    };
    Change::AddBackend {
        service: service.into(),
        backend,
    }
}

fn set(service: &str, backend: &str, address: Option<&str>, weight: Option<i64>) -> Change {
    let patch = BackendPatch {
        address: address.map(Into::into),
        weight,
        drain: None,
        server_id: None,
    };
    Change::SetBackend {
        service: service.into(),
        backend: backend.into(),
        patch,
    }
}

fn drain(service: &str, backend: &str, drain: bool) -> Change {
    let patch = BackendPatch {
        drain: Some(drain),
        ..BackendPatch::default()
    };
    Change::SetBackend {
        service: service.into(),
        backend: backend.into(),
        patch,
    }
}

fn remove(service: &str, backend: &str) -> Change {
    Change::RemoveBackend {
        service: service.into(),
        backend: backend.into(),
    }
}

fn remove_service(service: &str) -> Change {
    Change::RemoveService {
        service: service.into(),
    }
}

/// A change of a state without a past.
fn apply(spec: &StateSpec, change: &Change) -> Result<StateSpec, ChangeError> {
    super::apply(spec, change, |revision| {
        panic!("revision {revision} was looked up")
    })
}

fn drain_host(backend: &str, service: Option<&str>, drain: bool) -> Change {
    Change::Drain {
        backend: backend.into(),
        service: service.map(Into::into),
        drain,
    }
}

/// What a change does to the base, in the words of `diff`.
fn lines(change: &Change) -> Vec<String> {
    let parse = |spec: &StateSpec| State::parse(spec, &Limits::default()).unwrap();
    let (before, after) = (base(), apply(&base(), change).unwrap());
    let text = |line: ChangeLine| {
        format!(
            "{} {} {}: {}",
            line.action, line.kind, line.name, line.detail
        )
    };
    diff(&parse(&before), &parse(&after))
        .into_iter()
        .map(text)
        .collect()
}

#[test]
fn what_each_change_does() {
    let table = [
        (Change::Apply(base()), vec![]),
        (
            Change::Apply(StateSpec::default()),
            vec![
                "remove service dns: ",
                "remove backend dns/ns: ",
                "remove service www: ",
                "remove backend www/a: ",
                "remove backend www/b: ",
            ],
        ),
        (
            service(
                "{ name: api, address: '2001:db8::1', protocol: tcp, port: 0, mode: l2, backends: [{ name: a, address: 10.0.0.1, weight: 7 }] }",
            ),
            vec![
                "add service api: 2001:db8::1 tcp/any, l2, 1 backend",
                "add backend api/a: 10.0.0.1, weight 7",
            ],
        ),
        (
            remove_service("dns"),
            vec!["remove service dns: ", "remove backend dns/ns: "],
        ),
        (
            add("www", "c", "10.0.0.3"),
            vec!["add backend www/c: 10.0.0.3, weight 100"],
        ),
        (
            set("www", "a", None, Some(50)),
            vec!["change backend www/a: weight 100 -> 50"],
        ),
        (
            set("www", "a", Some("10.0.0.7"), Some(0)),
            vec!["change backend www/a: address 10.0.0.1 -> 10.0.0.7, weight 100 -> 0"],
        ),
        (set("www", "a", None, None), vec![]),
        (
            drain("www", "a", true),
            vec!["change backend www/a: drain begins"],
        ),
        (drain("www", "a", false), vec![]),
        (remove("www", "b"), vec!["remove backend www/b: "]),
    ];
    for (change, expected) in table {
        assert_eq!(lines(&change), expected, "{change:?}");
    }
}

#[test]
fn a_changed_service_is_described_field_by_field() {
    let mut whole = base();
    let www = &mut whole.services[1];
    (www.port, www.mode, www.when_all_down) = (8080, "l2".into(), "closed".into());
    (www.tracking, www.on_down) = (Some("all".into()), Some("keep".into()));
    (www.drain_timeout, www.udp_settle) = (Some("60s".into()), Some("0s".into()));
    www.slow_start = Some("90s".into());
    www.echo = true;
    assert_eq!(
        lines(&Change::Apply(whole)),
        [
            "change service www: vip 192.0.2.1 tcp/80 -> 192.0.2.1 tcp/8080, mode ipip -> l2, when_all_down open -> closed, \
         echo false -> true, health (tcp/80 every 2s, timeout 1s, rise 2, fall 3, jitter 10%) -> (tcp/8080 every 2s, timeout 1s, rise 2, \
         fall 3, jitter 10%), tracking moved -> all, on_down reset -> keep, drain_timeout 5m -> 1m, udp_settle 1m -> 0s, \
         slow_start none -> 1m 30s"
        ]
    );
}

#[test]
fn the_end_of_a_drain_is_said() {
    let parse = |spec: &StateSpec| State::parse(spec, &Limits::default()).unwrap();
    let draining = apply(&base(), &drain("www", "a", true)).unwrap();
    let ended = apply(&draining, &drain("www", "a", false)).unwrap();
    let details = |before: &StateSpec, after: &StateSpec| -> Vec<String> {
        let lines = diff(&parse(before), &parse(after));
        lines.into_iter().map(|line| line.detail).collect()
    };
    assert_eq!(details(&draining, &ended), ["drain ends"]);
    assert_eq!(
        details(&StateSpec::default(), &draining)[3],
        "10.0.0.1, weight 100, draining"
    );
    let weighed = apply(&draining, &set("www", "a", None, Some(7))).unwrap();
    assert_eq!(details(&draining, &weighed), ["weight 100 -> 7"]);
}

/// The base, with the host `a` behind both services.
fn shared() -> StateSpec {
    apply(&base(), &add("dns", "a", "10.0.0.1")).unwrap()
}

fn draining(spec: &StateSpec) -> Vec<String> {
    let of = |service: &ServiceSpec| {
        let drained: Vec<_> = service
            .backends
            .iter()
            .filter(|backend| backend.drain)
            .map(|backend| format!("{}/{}", service.name, backend.name))
            .collect();
        drained
    };
    spec.services.iter().flat_map(of).collect()
}

#[test]
fn a_host_is_drained_everywhere_or_in_one_service_and_again_is_nothing() {
    let all = apply(&shared(), &drain_host("a", None, true)).unwrap();
    assert_eq!(draining(&all), ["dns/a", "www/a"]);
    assert_eq!(apply(&all, &drain_host("a", None, true)).unwrap(), all);
    let one = apply(&shared(), &drain_host("a", Some("www"), true)).unwrap();
    assert_eq!(draining(&one), ["www/a"]);
    assert_eq!(
        apply(&one, &drain_host("a", Some("www"), true)).unwrap(),
        one
    );
    let rest = apply(&all, &drain_host("a", Some("www"), false)).unwrap();
    assert_eq!(draining(&rest), ["dns/a"]);
    assert_eq!(apply(&rest, &drain_host("a", None, false)), Ok(shared()));
}

#[test]
fn a_rollback_takes_the_state_that_was_and_checks_it() {
    let rollback = Change::Rollback { revision: 7 };
    let past = |revision| {
        assert_eq!(revision, 7);
        let mut past = shared();
        past.services.reverse();
        Ok(past)
    };
    assert_eq!(super::apply(&base(), &rollback, past), Ok(shared()));
    let lost = || ChangeError::Lost("gone".into());
    assert_eq!(
        super::apply(&base(), &rollback, |_| Err(lost())),
        Err(lost())
    );
    let bad = |_| {
        Ok(spec(
            "services: [{ name: s, address: x, protocol: tcp, port: 1 }]",
        ))
    };
    assert!(matches!(
        super::apply(&base(), &rollback, bad),
        Err(ChangeError::Invalid(_))
    ));
}

#[test]
fn what_is_hashed_cannot_be_changed_in_place() {
    let hashed = |hash: Option<&str>| {
        let mut spec = base();
        spec.services[1].hash = hash.map(Into::into);
        spec
    };
    let by_source = State::parse(&hashed(Some("source-ip")), &Limits::default()).unwrap();
    let by_source = StateSpec::from(&by_source);
    // The same service under another name, and said to be what it is anyway.
    let mut renamed = hashed(Some("source-ip-port"));
    renamed.services[1].name = "web".into();
    for (before, after, message) in [
        (
            base(),
            hashed(Some("source-ip")),
            "services[1].hash: service `www` hashes by 5-tuple, and in another way every flow would get another slot \
             (given: source-ip); keep `hash: 5-tuple`, or remove service `www`, which ends its connections, and add it \
             again",
        ),
        (
            by_source.clone(),
            base(),
            "services[1].hash: service `www` hashes by source-ip, and in another way every flow would get another slot \
             (given: 5-tuple); keep `hash: source-ip`, or remove service `www`, which ends its connections, and add it \
             again",
        ),
        (
            by_source.clone(),
            renamed,
            "services[1].hash: service `www` hashes by source-ip, and in another way every flow would get another slot \
             (given: source-ip-port); keep `hash: source-ip`, or remove service `www`, which ends its connections, and \
             add it again",
        ),
    ] {
        let whole = Change::Apply(after.clone());
        let rollback = Change::Rollback { revision: 1 };
        for change in [whole, rollback] {
            let refusal = super::apply(&before, &change, |_| Ok(after.clone())).unwrap_err();
            let ChangeError::Conflict(said, problems) = refusal else {
                panic!("{refusal:?}");
            };
            assert_eq!((said.as_str(), problems.len()), (message, 1));
        }
    }
    let same = Change::Apply(hashed(Some("5-tuple")));
    assert!(apply(&base(), &same).is_ok());
    // Another port is another service.
    let mut moved = hashed(Some("source-ip"));
    moved.services[1].port = 8080;
    assert!(apply(&base(), &Change::Apply(moved)).is_ok());
    let without = apply(&base(), &remove_service("www")).unwrap();
    let again = Change::Apply(hashed(Some("source-ip")));
    assert_eq!(apply(&without, &again), Ok(by_source));
}

#[test]
fn what_does_not_exist_is_not_found_with_a_pointer_to_what_does() {
    let table = [
        (
            remove_service("wwx"),
            "there is no service `wwx`; did you mean `www`?",
        ),
        (
            remove_service("zzz"),
            "there is no service `zzz`; there are: dns, www",
        ),
        (
            add("zzz", "c", "10.0.0.3"),
            "there is no service `zzz`; there are: dns, www",
        ),
        (
            set("www", "ns", None, Some(1)),
            "service `www` has no backend `ns`; it is a backend of `dns`",
        ),
        (
            remove("dns", "a"),
            "service `dns` has no backend `a`; it is a backend of `www`",
        ),
        (
            remove("www", "zzz"),
            "service `www` has no backend `zzz`; there are: a, b",
        ),
        (
            drain_host("ab", Some("www"), true),
            "service `www` has no backend `ab`; did you mean `a`?",
        ),
        (
            drain_host("ns", Some("www"), true),
            "service `www` has no backend `ns`; it is a backend of `dns`",
        ),
        (
            drain_host("a", Some("wwx"), false),
            "there is no service `wwx`; did you mean `www`?",
        ),
        (
            drain_host("zzz", None, true),
            "no service has a backend `zzz`; there are: a, b, ns",
        ),
        (
            drain_host("nss", None, false),
            "no service has a backend `nss`; did you mean `ns`?",
        ),
    ];
    for (change, expected) in table {
        assert_eq!(
            apply(&base(), &change),
            Err(ChangeError::NotFound(expected.into()))
        );
    }
    let nothing = apply(&StateSpec::default(), &remove_service("www"));
    assert_eq!(
        nothing,
        Err(ChangeError::NotFound(
            "there is no service `www`; there are no services".into()
        ))
    );
}

#[test]
fn what_is_taken_is_a_conflict_that_names_it() {
    let table = [
        (
            service("{ name: www, address: 192.0.2.9, protocol: tcp, port: 80 }"),
            "name",
            "name: service `www` exists already (given: www); remove that one first, or choose another name",
        ),
        (
            service("{ name: w2, address: 192.0.2.1, protocol: tcp, port: 80 }"),
            "",
            "service `www` has this address, protocol and port already (given: `w2`: 192.0.2.1 tcp/80); change one, or \
             add the backends to `www`",
        ),
        (
            service(
                "{ name: abc, address: 192.0.2.9, protocol: tcp, port: 80, backends: [{ name: a, address: 10.0.0.5 }] }",
            ),
            "backends[0].address",
            "backends[0].address: backend `a` of service `www` is 10.0.0.1 (given: 10.0.0.5); one name is one host: use \
             that address or another name",
        ),
        (
            add("www", "a", "10.0.0.3"),
            "name",
            "name: service `www` has a backend `a` already (given: a); change that one, or choose another name",
        ),
        (
            add("www", "c", "10.0.0.1"),
            "address",
            "address: backend `a` of this service has this address already (given: 10.0.0.1); use weights to give a host \
             more",
        ),
        (
            add("dns", "a", "10.0.0.3"),
            "address",
            "address: backend `a` of service `www` is 10.0.0.1 (given: 10.0.0.3); one name is one host: use that address \
             or another name",
        ),
    ];
    for (change, field, expected) in table {
        let Err(ChangeError::Conflict(message, problems)) = apply(&base(), &change) else {
            panic!("{change:?}")
        };
        assert_eq!(message, expected);
        assert_eq!(
            problems
                .iter()
                .map(|problem| problem.field.as_str())
                .collect::<Vec<_>>(),
            [field]
        );
    }
}

#[test]
fn what_is_not_valid_is_named_from_the_change_on() {
    let table = [
        (
            service("{ name: s, address: 192.0.2.9, protocol: tcp, port: 70000 }"),
            "port",
        ),
        (
            service(
                "{ name: s, address: 192.0.2.9, protocol: tcp, port: 1, backends: [{ name: a, address: x }] }",
            ),
            "backends[0].address",
        ),
        (add("www", "c", "0.0.0.0"), "address"),
        (add("www", "c", "192.0.2.1"), "address"),
        (set("www", "a", None, Some(1001)), "weight"),
        (
            Change::Apply(spec(
                "services: [{ name: s, address: x, protocol: tcp, port: 1 }]",
            )),
            "services[0].address",
        ),
    ];
    for (change, field) in table {
        let Err(ChangeError::Invalid(Problems(problems))) = apply(&base(), &change) else {
            panic!("{change:?}")
        };
        assert_eq!(
            problems
                .iter()
                .map(|problem| problem.field.as_str())
                .collect::<Vec<_>>(),
            [field]
        );
    }
}

#[test]
fn the_result_is_in_canonical_order() {
    let spec = apply(&base(), &set("dns", "ns", None, Some(1))).unwrap();
    let names: Vec<_> = spec
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    assert_eq!(names, ["dns", "www"]);
}

#[test]
fn server_ids_come_with_backends_and_are_changed_like_weights() {
    let text =
        "{ name: q, address: 192.0.2.9, protocol: udp, port: 443, quic: { server_id_length: 1 } }";
    let base = apply(&base(), &service(text)).unwrap();
    let Err(ChangeError::Invalid(problems)) = apply(&base, &add("q", "a", "10.0.1.1")) else {
        panic!("a backend without a server ID");
    };
    assert_eq!(problems.0[0].field, "server_id");
    let with_id = |name: &str, address: &str, id: &str| {
        let Change::AddBackend { service, backend } = add("q", name, address) else {
            unreachable!()
        };
        let server_id = Some(id.into());
        let backend = BackendSpec {
            server_id,
            ..backend
        };
        Change::AddBackend { service, backend }
    };
    let one = apply(&base, &with_id("a1", "10.0.1.1", "01")).unwrap();
    let Err(ChangeError::Conflict(_, problems)) = apply(&one, &with_id("b1", "10.0.1.2", "01"))
    else {
        panic!("an ID given twice");
    };
    assert_eq!(problems[0].field, "server_id");
    let two = Change::SetBackend {
        service: "q".into(),
        backend: "a1".into(),
        patch: BackendPatch {
            server_id: Some("02".into()),
            ..BackendPatch::default()
        },
    };
    let after = apply(&one, &two).unwrap();
    let lines = diff(
        &State::parse(&one, &UNLIMITED).unwrap(),
        &State::parse(&after, &UNLIMITED).unwrap(),
    );
    let details: Vec<_> = lines.iter().map(|line| line.detail.as_str()).collect();
    assert_eq!(details, ["server_id 01 -> 02"]);
}
