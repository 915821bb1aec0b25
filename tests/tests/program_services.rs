//! Services come and go in the services map, at random: the program finds those that are there, and no others.

use anyhow::Result;
use lb_common::{
    service::{ServiceEntry, ServiceKey},
    service_bucket::ServiceBucket,
    verdict::Verdict,
};
use lb_tests::{
    effort,
    fixture::v4,
    packet::{Packet, Protocol},
    prog_run::{Balancer, SERVICE_BUCKETS},
    require,
};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

/// As many as there is room for.
const CROWD: usize = ServiceBucket::keys(SERVICE_BUCKETS) as usize;
const PORTS: [u16; 3] = [0, 80, 443];

fn key(random: &mut fastrand::Rng) -> ServiceKey {
    let address = Ipv4Addr::new(203, 0, 113, random.u8(..));
    let port = PORTS[random.usize(..PORTS.len())];
    ServiceKey::new(std::net::IpAddr::V4(address).into(), 6, port)
}

fn packet(key: &ServiceKey, port: u16) -> Packet {
    let to = SocketAddr::new(key.address.into(), port);
    Packet {
        to,
        ..v4(Protocol::Tcp)
    }
}

/// A service that is found has no table, and that is what its packets are dropped for.
fn is_found(balancer: &Balancer, packet: &Packet) -> Result<bool> {
    let (_, counters) = balancer.run_counted(&packet.frame())?;
    let verdicts = counters.verdicts;
    assert_eq!(verdicts.values().sum::<u64>(), 1);
    Ok(verdicts.contains_key(&Verdict::DropBadState))
}

#[test]
fn what_is_put_is_found_until_it_is_removed() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut balancer = Balancer::load()?;
    let mut model: BTreeMap<ServiceKey, ServiceEntry> = BTreeMap::new();
    for step in 0..effort::of(6_000) {
        let new = key(&mut random);
        let index = random.u32(16..32);
        let entry = ServiceEntry { index, flags: 0 };
        if model.len() >= CROWD || random.u32(..20) < 9 {
            let key = *model
                .keys()
                .nth(random.usize(..model.len().max(1)))
                .unwrap_or(&new);
            balancer.remove_service(key)?;
            model.remove(&key);
        } else {
            balancer.put_service(new, entry)?;
            model.insert(new, entry);
            if model.len() == CROWD {
                let other = ServiceKey::new(std::net::IpAddr::from([192, 0, 2, 1]).into(), 6, 80);
                assert!(
                    balancer.put_service(other, entry).is_err(),
                    "there is no room"
                );
            }
        }
        let asked = key(&mut random);
        let port = PORTS[random.usize(1..PORTS.len())];
        let wanted = ServiceKey {
            port: port.to_be(),
            ..asked
        };
        let any_port = ServiceKey { port: 0, ..asked };
        let expected = model.contains_key(&wanted) || model.contains_key(&any_port);
        let found = is_found(&balancer, &packet(&asked, port))?;
        assert_eq!(
            found, expected,
            "seed {seed}, step {step}: {asked:?}, port {port}"
        );
    }
    assert_eq!(balancer.service_entries()?, model, "seed {seed}");
    for key in model.into_keys() {
        balancer.remove_service(key)?;
    }
    assert!(balancer.service_entries()?.is_empty());
    assert!(!is_found(&balancer, &packet(&key(&mut random), 80))?);
    Ok(())
}
