//! Self-tests: a packet for each service through the program, loaded once more with the maps that it forwards by, as
//! `lbctl explain` sends one. It leaves no trace in counters or the flow table.

use super::{core::Core, look::mac_of, run::Daemon};
use crate::{
    announce::Announcing,
    dataplane::{DataPlane, Explained, clock::monotonic},
    explain::frame::{self, Words},
    plan::target::service_key,
    prefix::Prefix,
    spec::{Name, Service, State},
};
use anyhow::{Error, Result};
use lb_common::verdict::{Action, Verdict};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};
use tracing::warn;

/// Time that the tests of one turn of the loop may take; the rest goes on in the next.
const BUDGET: Duration = Duration::from_millis(10);
/// Who the packets come from: addresses of benchmarks, nobody's (RFC 2544, RFC 5180).
const SENDER_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const SENDER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1);
/// Addresses of a prefix that are tried, for one that no other service has.
const ADDRESSES: u128 = 64;

/// A packet for a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    service: Name,
    protocol: &'static str,
    destination: SocketAddr,
}

/// Tests the services that are due, for a few milliseconds.
pub(super) fn run(daemon: &mut Daemon) {
    let now = monotonic();
    let due = daemon.core.due_tests(now);
    if due.is_empty() {
        return;
    }
    let present = |attachment: &&crate::dataplane::Attachment| attachment.mode.is_some();
    let Some(interface) = daemon.core.attachments().iter().find(present) else {
        return;
    };
    let (index, mac) = (interface.index, mac_of(&interface.name));
    let Some(explainer) = daemon.looking.explainer_or_load(&daemon.core.plane) else {
        return;
    };
    // Another port each time: another slot.
    let port = 1_024 + (now.subsec_micros() % 60_000) as u16;
    let tested = daemon.core.test(due, now, |probe| {
        explainer.run(&probe.frame(port, mac)?, index)
    });
    match tested {
        Ok(()) => daemon.untested = false,
        Err(problem) => {
            if !std::mem::replace(&mut daemon.untested, true) {
                warn!("services cannot be tested now, what is known of them stays: {problem:#}");
            }
        }
    }
}

impl Probe {
    fn frame(&self, port: u16, receiver: [u8; 6]) -> Result<Vec<u8>> {
        let sender = match self.destination.ip() {
            IpAddr::V4(_) => IpAddr::V4(SENDER_V4),
            IpAddr::V6(_) => IpAddr::V6(SENDER_V6),
        };
        let words = Words {
            protocol: self.protocol,
            source: &SocketAddr::new(sender, port).to_string(),
            destination: &self.destination.to_string(),
            flags: "syn",
            payload: &[],
            size: None,
        };
        frame::build(&words, receiver).map_err(Error::msg)
    }
}

impl<P: DataPlane> Core<P> {
    /// Services whose self-test is due, those that have waited longest first.
    pub(super) fn due_tests(&mut self, now: Duration) -> Vec<Name> {
        let testable = |announcing: &&mut Announcing| announcing.is_testable();
        let Some(announcing) = self.announcing.as_mut().filter(testable) else {
            return Vec::new();
        };
        announcing.keep_tests(|name| self.state.services.contains_key(name));
        let mut due: Vec<(Duration, &Name)> = self
            .state
            .services
            .values()
            .filter(|service| self.mirror.service_index(&service_key(service)).is_some())
            .filter(|service| announcing.test_due(&service.name) <= now)
            .map(|service| (announcing.last_test(&service.name), &service.name))
            .collect();
        due.sort();
        due.into_iter().map(|(_, name)| name.clone()).collect()
    }

    /// Tests services, in this order, for a few milliseconds. `run`: what becomes of a packet.
    ///
    /// # Errors
    /// When a packet could not be run. That says nothing about its service, which stays due like those after it.
    pub(super) fn test(
        &mut self,
        due: Vec<Name>,
        now: Duration,
        mut run: impl FnMut(&Probe) -> Result<Explained>,
    ) -> Result<()> {
        let started = Instant::now();
        for service in due {
            let result = match probe(&service, &self.state) {
                Some(probe) => self.judge(&probe, &run(&probe)?),
                // More specific services have all its addresses that were looked at: no packet can tell.
                None => Ok(()),
            };
            self.on_test(&service, result, now);
            if started.elapsed() > BUDGET {
                break;
            }
        }
        Ok(())
    }

    /// Whether a packet came out as it should.
    fn judge(&self, probe: &Probe, explained: &Explained) -> Result<(), String> {
        let record = &explained.event.record;
        let verdict = Verdict::from_number(record.verdict);
        let Probe {
            destination,
            protocol,
            ..
        } = probe;
        if verdict.action() != Action::Forward {
            let (name, meaning) = (verdict.name(), verdict.description());
            return Err(format!(
                "a {protocol} packet to {destination} is not forwarded: {name} ({meaning})"
            ));
        }
        let meant = self.state.services.get(&probe.service);
        let index = meant.and_then(|service| self.mirror.service_index(&service_key(service)));
        if index != Some(record.service) {
            return Err(format!(
                "a {protocol} packet to {destination} is taken for another service's"
            ));
        }
        if !self.mirror.backends.contains_key(&record.backend) {
            let index = record.backend;
            return Err(format!(
                "a {protocol} packet to {destination} goes to the index {index}, which is no backend's"
            ));
        }
        Ok(())
    }

    fn on_test(&mut self, service: &Name, result: Result<(), String>, now: Duration) {
        if let Some(announcing) = &mut self.announcing {
            announcing.on_test(service, result, now);
        }
    }
}

/// A packet that is for this service and no other; none if there is no such packet among those that are tried.
fn probe(name: &Name, state: &State) -> Option<Probe> {
    let service = state.services.get(name)?;
    // One port of one address is nobody else's.
    let is_exact = service.address.is_address() && service.port != 0;
    let others = state.services.values().filter(|_| !is_exact);
    let rivals: Vec<&Service> = others
        .filter(|other| other.name != service.name && service.address.contains(other.address))
        .collect();
    let is_its_own = |address: &IpAddr| {
        let one = Prefix::from(*address);
        !rivals
            .iter()
            .any(|other| other.address != service.address && other.address.contains(one))
    };
    let address = addresses(service.address).find(is_its_own)?;
    let port = match service.port {
        0 => {
            let named = |port: &u16| {
                let mut rivals = rivals.iter();
                rivals.any(|other| {
                    other.address == service.address
                        && other.protocol == service.protocol
                        && other.port == *port
                })
            };
            (1..=u16::MAX).find(|port| !named(port))?
        }
        port => port,
    };
    Some(Probe {
        service: service.name.clone(),
        protocol: service.protocol.as_str(),
        destination: SocketAddr::new(address, port),
    })
}

/// The first addresses of a prefix.
fn addresses(prefix: Prefix) -> impl Iterator<Item = IpAddr> {
    let bits = if prefix.is_ipv4() { 32 } else { 128 };
    let rest = bits - u32::from(prefix.length());
    let count = 1_u128.checked_shl(rest).unwrap_or(u128::MAX).min(ADDRESSES);
    (0..count).map(move |offset| match prefix.address() {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4).wrapping_add(offset as u32))),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6).wrapping_add(offset))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Limits, yaml};

    #[test]
    fn a_packet_is_for_its_service_and_no_other() {
        let text = "
services:
  - { name: any, address: 192.0.2.1, protocol: tcp, port: 0 }
  - { name: one, address: 192.0.2.1, protocol: tcp, port: 1 }
  - { name: wide, address: 198.51.100.0/24, protocol: udp, port: 53 }
  - { name: narrow, address: 198.51.100.0/31, protocol: udp, port: 53 }
  - { name: v6, address: '2001:db8::/64', protocol: tcp, port: 443 }
";
        let state = State::parse(&yaml::parse(text, "").unwrap(), &Limits::default()).unwrap();
        let probes: Vec<(String, String)> = state
            .services
            .keys()
            .map(|name| probe(name, &state).unwrap())
            .map(|probe| (probe.service.to_string(), probe.destination.to_string()))
            .collect();
        let expected = [
            ("any", "192.0.2.1:2"),
            ("narrow", "198.51.100.0:53"),
            ("one", "192.0.2.1:1"),
            ("v6", "[2001:db8::]:443"),
            ("wide", "198.51.100.2:53"),
        ];
        assert_eq!(
            probes,
            expected.map(|(name, end)| (name.to_owned(), end.to_owned()))
        );
    }
}
