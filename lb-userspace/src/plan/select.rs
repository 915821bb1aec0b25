//! Which backends of a service get traffic, and why the others do not.

use super::Facts;
use crate::{
    health::{checker::TargetId, state::HealthState},
    overlay::Availability,
    prefix::Prefix,
    spec::{AllDown, Backend, Name, Service, mode_name},
};
use lb_common::{backend::Mode, mtu};
use std::{borrow::Cow, time::Duration};

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
    /// Its backends, in order of name.
    backends: Vec<Chosen>,
}

/// The choice for one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    name: Name,
    /// Why it gets no traffic; nothing if it does.
    pub refusal: Option<Cow<'static, str>>,
    /// Which share of its slots it takes.
    pub availability: Availability,
    /// Whether that is for now only: its next hop or the first verdict on its health is awaited.
    pub is_awaited: bool,
}

impl Selection {
    /// The choice for each backend, in order of name.
    pub fn backends(&self) -> &[Chosen] {
        &self.backends
    }

    fn backend(&self, name: &Name) -> Option<&Chosen> {
        let place = self.backends.binary_search_by(|one| one.name.cmp(name));
        self.backends.get(place.ok()?)
    }

    /// Why a backend gets no traffic, if it does not.
    pub fn refusal(&self, backend: &Name) -> Option<&str> {
        self.backend(backend)?.refusal.as_deref()
    }

    /// The availability of a backend.
    pub fn availability(&self, backend: &Name) -> Availability {
        self.backend(backend)
            .map_or(Availability::NONE, |chosen| chosen.availability)
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
    let backends = service.backends.values();
    let ways = backends.map(|backend| refusal(backend, service, facts));
    // Of what cannot be reached the health does not matter.
    let standing: Vec<Result<HealthState, String>> = ways
        .zip(health(service, facts))
        .map(|(way, health)| way.map_or(Ok(health), Err))
        .collect();
    let any = |state| standing.contains(&Ok(state));
    let condition = if standing.iter().all(Result::is_err) {
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
    let chosen = |(backend, standing): (&Backend, Result<HealthState, String>)| {
        let name = &backend.name;
        let is_awaited = match standing {
            Err(_) => !backend.drain && !facts.next_hops.contains_key(&backend.address),
            Ok(health) => health == HealthState::Unknown,
        };
        let refusal = match standing {
            Err(refusal) => Some(refusal.into()),
            Ok(_) if all_get_traffic => None,
            Ok(HealthState::Up) => None,
            Ok(HealthState::Down) => Some("down".into()),
            Ok(HealthState::Unknown) => Some("no probe has ended yet".into()),
        };
        let availability = match (&refusal, condition) {
            (Some(_), _) => Availability::NONE,
            (None, Condition::Up) => rising(service, name, facts).unwrap_or(Availability::FULL),
            (None, _) => Availability::FULL,
        };
        Chosen {
            name: name.clone(),
            refusal,
            availability,
            is_awaited,
        }
    };
    let backends = service.backends.values();
    let backends = backends.zip(standing).map(chosen).collect();
    Selection {
        condition,
        backends,
    }
}

/// The health of each backend in order of name; backends of services without probes count as up. Facts are in that order too, so
/// both are gone through once.
fn health(service: &Service, facts: &Facts) -> impl Iterator<Item = HealthState> {
    let first = service.backends.keys().next().map(|backend| TargetId {
        service: service.name.clone(),
        backend: backend.clone(),
    });
    let mut known = first.map(|first| facts.health.range(first..).peekable());
    let is_probed = service.health.is_some();
    service.backends.keys().map(move |name| {
        let Some(known) = known.as_mut().filter(|_| is_probed) else {
            return HealthState::Up;
        };
        let of_service = |id: &TargetId| id.service == service.name;
        while known
            .next_if(|(id, _)| of_service(id) && id.backend < *name)
            .is_some()
        {}
        let found = known.next_if(|(id, _)| of_service(id) && id.backend == *name);
        found.map_or(HealthState::Unknown, |(_, state)| *state)
    })
}

/// Why a backend cannot have packets, health apart.
fn refusal(backend: &Backend, service: &Service, facts: &Facts) -> Option<String> {
    if backend.drain {
        return Some("draining".into());
    }
    if backend.weight == 0 {
        return Some("weight is 0".into());
    }
    let hop = match facts.next_hops.get(&backend.address) {
        None => return Some("next hop: being looked up".into()),
        Some(Err(unresolved)) => return Some(format!("next hop: {unresolved}")),
        Some(Ok(hop)) => hop,
    };
    if !facts.interfaces.contains(&hop.interface) {
        return Some(format!(
            "next hop: behind {}, on which no program is attached; add it to `interfaces` in the node config, or \
             route the backend another way",
            hop.interface_name
        ));
    }
    if let (Mode::L2, Some(gateway)) = (service.mode, hop.gateway) {
        // The gateway would get a packet for the VIP, and send it back to the balancer.
        return Some(format!(
            "next hop: behind gateway {gateway}, but mode l2 needs the backend on this link; use mode ipip or gue"
        ));
    }
    let carried = mtu::inner(hop.mtu, service.mode, backend.address.is_ipv4());
    let least = least_mtu(service.address);
    if carried < least {
        return Some(format!(
            "next hop: the MTU of the way by {}, {} bytes, leaves {carried} for packets in mode {}, which is less than \
             the {least} that every host may send; raise the MTU, or use mode l2",
            hop.interface_name,
            hop.mtu,
            mode_name(service.mode),
        ));
    }
    None
}

/// The IP packets that every host may send without asking, in bytes: RFC 8200, section 5, and RFC 1122, section 3.3.3.
const fn least_mtu(service: Prefix) -> u16 {
    if service.is_ipv4() { 576 } else { 1_280 }
}
