use super::*;
use crate::{
    overlay::Overlay,
    spec::{AllDown, Backend, Hash, Name, Protocol, ServerId},
};
use lb_common::{backend::Mode, quic::QuicConfig};
use std::net::IpAddr;

const FULL: Availability = Availability::FULL;

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn service() -> Service {
    let backend = |number: u8| Backend {
        name: name(&format!("web-{number}")),
        address: IpAddr::from([10, 20, 0, number]),
        weight: 100,
        drain: false,
        server_id: None,
    };
    Service {
        name: name("www"),
        address: IpAddr::from([10, 0, 0, 1]).into(),
        protocol: Protocol::Tcp,
        port: 80,
        mode: Mode::Ipip,
        gue_port: None,
        hash: Hash::FiveTuple,
        when_all_down: AllDown::Open,
        echo: false,
        quic: None,
        health: None,
        flows: FlowPolicy::default(),
        backends: (1..=3).map(backend).map(|b| (b.name.clone(), b)).collect(),
    }
}

fn node() -> DigestNode {
    DigestNode {
        hash_seed: 7,
        version: "0.1.0".into(),
        layout: 2,
    }
}

fn view_of(node: DigestNode, service: &Service, availability: &[Availability]) -> DigestView {
    let members: Vec<(String, u16)> = service
        .backends
        .values()
        .map(|backend| (backend.name.to_string(), backend.weight))
        .collect();
    let live = Overlay::new(&members).live(availability);
    let digest = service_digest(&node, service, &members, availability, &live);
    DigestView {
        node,
        services: vec![digest],
    }
}

fn view(change: impl FnOnce(&mut Service)) -> DigestView {
    let mut service = service();
    change(&mut service);
    let availability = vec![FULL; service.backends.len()];
    view_of(node(), &service, &availability)
}

fn change(service: &mut Service, backend: &str, change: impl FnOnce(&mut Backend)) {
    change(service.backends.get_mut(&name(backend)).unwrap());
}

/// What is said of a node that differs from ours in this way, and that its hash of inputs differs too.
fn said(difference: impl FnOnce(&mut Service)) -> Vec<String> {
    let (ours, theirs) = (view(|_| ()), view(difference));
    assert_ne!(ours.services[0].inputs, theirs.services[0].inputs);
    compare(&ours, &theirs)
}

#[test]
fn golden_digest() {
    let digest = &view(|_| ()).services[0];
    assert_eq!(
        (digest.table.as_str(), digest.inputs.as_str()),
        ("37a561b21ab9f131", "307612ef9c9235c3"),
        "nodes of different versions are compared: these must never change"
    );
}

#[test]
fn equal_nodes_have_nothing_to_say() {
    let (ours, theirs) = (view(|_| ()), view(|_| ()));
    assert_eq!(ours, theirs);
    assert_eq!(compare(&ours, &theirs), [""; 0]);
    let mut newer = theirs;
    newer.node.version = "0.2.0".into();
    newer.node.layout = 3;
    assert_eq!(compare(&ours, &newer), [""; 0], "tables are equal");
    assert_eq!(
        compare(&DigestView::default(), &DigestView::default()),
        [""; 0]
    );
}

#[test]
fn tables_are_hashed_by_name_not_by_position() {
    let live = [1, 2, NOBODY, 2];
    let members = |names: [&str; 3]| names.map(|name| (name.to_owned(), 1));
    let one = table(&members(["a", "b", "c"]), &live);
    assert_eq!(one, table(&members(["b", "a", "c"]), &[2, 1, NOBODY, 1]));
    assert_ne!(one, table(&members(["a", "c", "b"]), &live));
    assert_ne!(one, table(&members(["a", "b", "c"]), &[1, 2, 2, NOBODY]));
    assert_eq!(one.len(), 16);
}

#[test]
fn each_field_that_differs_is_named() {
    type Difference = fn(&mut Service);
    let cases: [(Difference, &str); 16] = [
        (
            |s| s.address = IpAddr::from([10, 0, 0, 2]).into(),
            "service www: address differs: ours 10.0.0.1, theirs 10.0.0.2",
        ),
        (
            |s| s.protocol = Protocol::Udp,
            "service www: protocol differs: ours tcp, theirs udp",
        ),
        (
            |s| s.port = 81,
            "service www: port differs: ours 80, theirs 81",
        ),
        (
            |s| s.mode = Mode::L2,
            "service www: mode differs: ours ipip, theirs l2",
        ),
        (
            |s| s.hash = Hash::SourceIp,
            "service www: hash differs: ours 5-tuple, theirs source-ip",
        ),
        (
            |s| (s.mode, s.gue_port) = (Mode::Gue, Some(7_000)),
            "service www: mode differs: ours ipip, theirs gue 7000",
        ),
        (
            |s| {
                s.quic = Some(QuicConfig {
                    config_rotation: 1,
                    server_id_length: 4,
                });
            },
            "service www: quic differs: ours none, theirs 1 4",
        ),
        (
            |s| change(s, "web-2", |b| b.server_id = ServerId::parse("0b")),
            "service www: backend web-2: server_id differs: ours none, theirs 0b",
        ),
        (
            |s| s.flows.tracking = Tracking::All,
            "service www: tracking differs: ours moved, theirs all",
        ),
        (
            |s| s.flows.on_down = OnDown::Keep,
            "service www: on_down differs: ours reset, theirs keep",
        ),
        (
            |s| s.flows.drain_timeout = Duration::from_secs(1),
            "service www: drain_timeout (ms) differs: ours 300000, theirs 1000",
        ),
        (
            |s| s.flows.udp_settle = Duration::ZERO,
            "service www: udp_settle (ms) differs: ours 60000, theirs 0",
        ),
        (
            |s| s.flows.slow_start = Some(Duration::from_secs(2)),
            "service www: slow_start (ms) differs: ours 0, theirs 2000",
        ),
        (
            |s| change(s, "web-2", |b| b.address = IpAddr::from([10, 9, 9, 9])),
            "service www: backend web-2: address differs: ours 10.20.0.2, theirs 10.9.9.9",
        ),
        (
            |s| change(s, "web-2", |b| b.weight = 50),
            "service www: backend web-2: weight differs: ours 100, theirs 50",
        ),
        (
            |s| drop(s.backends.remove(&name("web-3"))),
            "service www: backend web-3 is only in ours",
        ),
    ];
    for (difference, sentence) in cases {
        assert_eq!(said(difference), [sentence]);
    }
}

#[test]
fn an_availability_that_differs_is_named() {
    let (mut service, half) = (service(), Availability::ratio(1, 2));
    let ours = view_of(node(), &service, &[FULL; 3]);
    let theirs = view_of(node(), &service, &[FULL, half, FULL]);
    assert_eq!(
        compare(&ours, &theirs),
        ["service www: backend web-2: availability (of 65536) differs: ours 65536, theirs 32768"]
    );
    change(&mut service, "web-1", |backend| backend.drain = true);
    let theirs = view_of(node(), &service, &[Availability::NONE, FULL, FULL]);
    assert_eq!(
        compare(&ours, &theirs),
        [
            "service www: backend web-1: drain differs: ours false, theirs true",
            "service www: backend web-1: availability (of 65536) differs: ours 65536, theirs 0"
        ]
    );
}

#[test]
fn another_seed_is_said_once() {
    let other = DigestNode {
        hash_seed: 8,
        ..node()
    };
    let (ours, theirs) = (view(|_| ()), view_of(other, &service(), &[FULL; 3]));
    assert_eq!(ours.services[0].table, theirs.services[0].table);
    assert_ne!(ours.services[0].inputs, theirs.services[0].inputs);
    assert_eq!(
        compare(&ours, &theirs),
        ["hash_seed differs: ours 7, theirs 8"]
    );
}

#[test]
fn a_service_that_only_one_has_is_named() {
    let (ours, none) = (
        view(|_| ()),
        DigestView {
            node: node(),
            services: vec![],
        },
    );
    assert_eq!(compare(&ours, &none), ["service www is only in ours"]);
    assert_eq!(compare(&none, &ours), ["service www is only in theirs"]);
}

#[test]
fn another_table_from_the_same_inputs_is_another_version() {
    let ours = view(|_| ());
    let mut theirs = ours.clone();
    theirs.node.version = "0.2.0".into();
    theirs.services[0].table = "0123456789abcdef".into();
    let differences = compare(&ours, &theirs);
    assert_eq!(differences.len(), 1);
    for part in [
        "the tables differ",
        "theirs 0123456789abcdef",
        "lbd 0.1.0",
        "lbd 0.2.0",
    ] {
        assert!(differences[0].contains(part), "{differences:?}");
    }
    // It is said beside a difference that does not explain it, and left out beside one that does.
    theirs.services[0].port = 81;
    assert_eq!(compare(&ours, &theirs).len(), 2);
    theirs.services[0].backends[0].weight = 1;
    assert!(
        !compare(&ours, &theirs)
            .concat()
            .contains("the tables differ")
    );
    // Inputs that differ in a field that only a newer version has.
    let mut theirs = ours.clone();
    theirs.services[0].inputs = "0123456789abcdef".into();
    assert!(compare(&ours, &theirs)[0].contains("do not show"));
}

#[test]
fn it_survives_json() {
    let ours = view(|_| ());
    let json = serde_json::to_string(&ours).unwrap();
    assert_eq!(serde_json::from_str::<DigestView>(&json).unwrap(), ours);
}
