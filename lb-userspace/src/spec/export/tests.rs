//! Writing and reading a state changes nothing.

use super::*;
use crate::prefix::Prefix;
use crate::spec::{Limits, Name, Protocol, ServerId, yaml};
use lb_common::quic::QuicConfig;
use proptest::{collection::btree_map, option, prelude::*};
use std::{collections::BTreeMap, net::IpAddr};

prop_compose! {
    fn check()(port in 1u16.., interval in 100u64..3_600_000, share in 0.0..1.0, rise in 1u32..=100, fall in 1u32..=100,
               jitter_percent in 0u32..=50) -> HealthCheck {
        let interval = Duration::from_millis(interval);
        let timeout = interval.mul_f64(share).clamp(Duration::from_millis(10), interval);
        HealthCheck { port, interval, timeout, rise, fall, jitter_percent }
    }
}

prop_compose! {
    fn flows()(
        tracking in prop_oneof![Just(Tracking::Moved), Just(Tracking::All), Just(Tracking::None)],
        keep in any::<bool>(), drain_timeout in 1_000u64..=86_400_000, udp_settle in 0u64..=3_600_000,
        slow_start in option::of(1u64..=3_600_000), usual in any::<bool>(),
    ) -> FlowPolicy {
        let policy = FlowPolicy {
            tracking,
            on_down: if keep { OnDown::Keep } else { OnDown::Reset },
            drain_timeout: Duration::from_millis(drain_timeout),
            udp_settle: Duration::from_millis(udp_settle),
            slow_start: slow_start.map(Duration::from_millis),
        };
        if usual { FlowPolicy::default() } else { policy }
    }
}

prop_compose! {
    fn service(number: u8)(
        udp in any::<bool>(), port in any::<u16>(), l2 in any::<bool>(), closed in any::<bool>(),
        hash in 0usize..3, health in option::of(check()), flows in flows(), echo in any::<bool>(), length in 24u8..=32,
        quic in option::of((0_u8..7, 1_u8..=8)),
        weights in btree_map(any::<u8>(), (0u16..=1000, any::<bool>()), 0..5),
    ) -> Service {
        let quic = quic.filter(|_| udp && port != 0).map(|(config_rotation, server_id_length)| QuicConfig {
            config_rotation,
            server_id_length,
        });
        let server_id = |host: u8| {
            let digits = 2 * usize::from(quic?.server_id_length);
            ServerId::parse(&format!("{host:0digits$x}"))
        };
        let backends = weights.into_iter().map(|(host, (weight, drain))| {
            let name = Name::parse(&format!("b{host}")).unwrap();
            (name.clone(), Backend { name, address: IpAddr::from([10, 0, 1, host]), weight, drain, server_id: server_id(host) })
        });
        Service {
            name: Name::parse(&format!("s{number}")).unwrap(),
            address: Prefix::around(IpAddr::from([100, 64, number, number]), length).unwrap(),
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            port,
            mode: if l2 { Mode::L2 } else { Mode::Ipip },
            gue_port: None,
            hash: Hash::ALL[hash],
            when_all_down: if closed { AllDown::Closed } else { AllDown::Open },
            echo,
            quic,
            health,
            flows,
            backends: backends.collect(),
        }
    }
}

fn state() -> impl Strategy<Value = State> {
    prop::collection::vec(any::<u8>().prop_flat_map(service), 0..6).prop_map(|services| {
        let services = services
            .into_iter()
            .map(|service| (service.name.clone(), service));
        State {
            services: services.collect::<BTreeMap<_, _>>(),
        }
    })
}

proptest! {
    #[test]
    fn a_state_survives_export_yaml_and_parse(state in state(), seed in any::<u64>()) {
        let mut spec = StateSpec::from(&state);
        let text = yaml::to_string(&spec).unwrap();
        prop_assert_eq!(&yaml::state_from_str(&text).unwrap(), &spec);
        // The order in which things are written means nothing.
        fastrand::Rng::with_seed(seed).shuffle(&mut spec.services);
        prop_assert_eq!(State::parse(&spec, &Limits::default()).unwrap(), state);
    }
}

#[test]
fn what_becomes_of_flows_is_written_where_it_is_not_the_default() {
    let exported = |fields: &str| {
        let text = format!(
            "services: [{{ name: s, address: 192.0.2.1, protocol: udp, port: 53, {fields}, backends: [{{ name: a, \
             address: 10.0.0.1, drain: true }}, {{ name: b, address: 10.0.0.2, drain: false }}] }}]"
        );
        let state = State::parse(&yaml::state_from_str(&text).unwrap(), &Limits::default());
        yaml::to_string(&StateSpec::from(&state.unwrap())).unwrap()
    };
    let defaults =
        "tracking: moved, on_down: reset, drain_timeout: 300s, udp_settle: 1m, slow_start: 0s";
    let (before, after) = (
        "    when_all_down: open\n",
        "    backends:
      - name: a
        address: \"10.0.0.1\"
        weight: 100
        drain: true
      - name: b
        address: \"10.0.0.2\"
        weight: 100
",
    );
    let usual = exported(defaults);
    assert!(usual.ends_with(&format!("{before}{after}")), "{usual}");
    let fields = "    tracking: all
    on_down: keep
    drain_timeout: 1h
    udp_settle: 0s
    slow_start: 1m 30s
";
    let unusual = exported(
        "tracking: all, on_down: keep, drain_timeout: 60m, udp_settle: 0s, slow_start: 90s",
    );
    assert!(
        unusual.ends_with(&format!("{before}{fields}{after}")),
        "{unusual}"
    );
}

#[test]
fn a_probe_that_a_service_has_anyway_is_left_out() {
    let text = "services: [{ name: s, address: 192.0.2.1, protocol: tcp, port: 80, health: { rise: 2, port: 80 } }]";
    let state = State::parse(&yaml::state_from_str(text).unwrap(), &Limits::default()).unwrap();
    let expected = "\
services:
  - name: s
    address: \"192.0.2.1\"
    protocol: tcp
    port: 80
    mode: ipip
    when_all_down: open
    backends: []
";
    assert_eq!(yaml::to_string(&StateSpec::from(&state)).unwrap(), expected);
}
