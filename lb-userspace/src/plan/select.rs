//! Which backends of a service get traffic, and why the others do not.

use super::Facts;
use crate::{
    health::{checker::TargetId, state::HealthState},
    neighbour::ResolvedHop,
    overlay::Availability,
    prefix::Prefix,
    spec::{AllDown, Backend, Name, Service, mode_name},
};
use lb_common::{backend::Mode, mtu};
use std::{collections::BTreeMap, time::Duration};

/// How a service stands as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// At least one backend is up.
    Up,
    /// None is up; all that can be reached get traffic.
    AllDownOpen,
    /// None is up and none gets traffic.
    AllDownClosed,
    /// No backend could get traffic even if it were up: none configured, weights 0, or no next hop.
    NoBackends,
    /// No probe has ended yet.
    Starting,
}

impl Condition {
    /// Stable name, as in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::AllDownOpen => "all_down_open",
            Self::AllDownClosed => "all_down_closed",
            Self::NoBackends => "no_backends",
            Self::Starting => "starting",
        }
    }
}

/// The choice for one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// How the service stands.
    pub condition: Condition,
    /// Each backend: where its packets go, or why it gets none.
    pub backends: BTreeMap<Name, Result<ResolvedHop, String>>,
    /// The availability of those that are in their slow start.
    rising: BTreeMap<Name, Availability>,
}

impl Selection {
    /// The availability of a backend.
    pub fn availability(&self, backend: &Name) -> Availability {
        match self.backends.get(backend) {
            Some(Ok(_)) => self
                .rising
                .get(backend)
                .copied()
                .unwrap_or(Availability::FULL),
            Some(Err(_)) | None => Availability::NONE,
        }
    }

    /// Whether a backend is in its slow start.
    pub fn is_rising(&self) -> bool {
        !self.rising.is_empty()
    }
}

/// Smallest availability in a slow start, as a share: a backend without any traffic cannot warm up.
const FIRST_STEP: u64 = 32;

/// The availability of a backend in its slow start, while that lasts.
fn rising(service: &Service, backend: &Name, facts: &Facts) -> Option<Availability> {
    let span = service.flows.slow_start?;
    let id = TargetId {
        service: service.name.clone(),
        backend: backend.clone(),
    };
    let up = facts.now.saturating_sub(*facts.risen.get(&id)?);
    let first = Availability::ratio(1, FIRST_STEP);
    let share = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    (up < span).then(|| Availability::ratio(share(up), share(span)).max(first))
}

/// Chooses the backends of a service that get traffic.
pub fn select(service: &Service, facts: &Facts) -> Selection {
    let reachable: BTreeMap<Name, Result<ResolvedHop, String>> = service
        .backends
        .values()
        .map(|backend| (backend.name.clone(), next_hop(backend, service, facts)))
        .collect();
    let verdicts: BTreeMap<Name, HealthState> = reachable
        .iter()
        .filter(|(_, hop)| hop.is_ok())
        .map(|(name, _)| (name.clone(), health(service, name, facts)))
        .collect();
    let is_up = |name: &Name| verdicts.get(name) == Some(&HealthState::Up);
    let any = |state| verdicts.values().any(|verdict| *verdict == state);
    let condition = if verdicts.is_empty() {
        Condition::NoBackends
    } else if any(HealthState::Up) {
        Condition::Up
    } else if !any(HealthState::Down) {
        Condition::Starting
    } else {
        match service.when_all_down {
            AllDown::Open => Condition::AllDownOpen,
            AllDown::Closed => Condition::AllDownClosed,
        }
    };
    let all_get_traffic = match condition {
        Condition::AllDownOpen => true,
        Condition::Starting => service.when_all_down == AllDown::Open,
        Condition::Up | Condition::AllDownClosed | Condition::NoBackends => false,
    };
    let backends = reachable
        .into_iter()
        .map(|(name, hop)| {
            let refusal = match verdicts.get(&name) {
                Some(HealthState::Down) => "down",
                _ => "no probe has ended yet",
            };
            let hop = hop.and_then(|hop| {
                if all_get_traffic || is_up(&name) {
                    Ok(hop)
                } else {
                    Err(refusal.into())
                }
            });
            (name, hop)
        })
        .collect();
    let rising = match condition {
        Condition::Up => {
            let up = verdicts.keys().filter(|name| is_up(name));
            up.filter_map(|name| Some((name.clone(), rising(service, name, facts)?)))
                .collect()
        }
        Condition::AllDownOpen
        | Condition::AllDownClosed
        | Condition::NoBackends
        | Condition::Starting => BTreeMap::new(),
    };
    Selection {
        condition,
        backends,
        rising,
    }
}

/// The health of a backend; backends of services without probes count as up.
fn health(service: &Service, backend: &Name, facts: &Facts) -> HealthState {
    if service.health.is_none() {
        return HealthState::Up;
    }
    let id = TargetId {
        service: service.name.clone(),
        backend: backend.clone(),
    };
    facts
        .health
        .get(&id)
        .copied()
        .unwrap_or(HealthState::Unknown)
}

/// Where packets for a backend would go, or why it cannot have any, health apart.
fn next_hop(backend: &Backend, service: &Service, facts: &Facts) -> Result<ResolvedHop, String> {
    if backend.drain {
        return Err("draining".into());
    }
    if backend.weight == 0 {
        return Err("weight is 0".into());
    }
    let hop = match facts.next_hops.get(&backend.address) {
        None => return Err("next hop: being looked up".into()),
        Some(Err(unresolved)) => return Err(format!("next hop: {unresolved}")),
        Some(Ok(hop)) => hop,
    };
    if !facts.interfaces.contains(&hop.interface) {
        return Err(format!(
            "next hop: behind {}, on which no program is attached; add it to `interfaces` in the node config, or \
             route the backend another way",
            hop.interface_name
        ));
    }
    if let (Mode::L2, Some(gateway)) = (service.mode, hop.gateway) {
        // The gateway would get a packet for the VIP, and send it back to the balancer.
        return Err(format!(
            "next hop: behind gateway {gateway}, but mode l2 needs the backend on this link; use mode ipip or gue"
        ));
    }
    let carried = mtu::inner(hop.mtu, service.mode, backend.address.is_ipv4());
    let least = least_mtu(service.address);
    if carried < least {
        return Err(format!(
            "next hop: the MTU of the way by {}, {} bytes, leaves {carried} for packets in mode {}, which is less than \
             the {least} that every host may send; raise the MTU, or use mode l2",
            hop.interface_name,
            hop.mtu,
            mode_name(service.mode),
        ));
    }
    Ok(hop.clone())
}

/// The IP packets that every host may send without asking, in bytes: RFC 8200, section 5, and RFC 1122, section 3.3.3.
const fn least_mtu(service: Prefix) -> u16 {
    if service.is_ipv4() { 576 } else { 1_280 }
}
