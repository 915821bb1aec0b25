//! What is allowed and perhaps not meant.

use super::View;
use crate::{
    plan::select::Condition,
    spec::{Backend, Service, Tracking},
};
use humantime::format_duration;

/// What the operator should know of the QUIC connections of a service that is changed: which IDs name nobody any more, or
/// another.
pub(super) fn of_connections(old: &Service, new: &Service) -> Option<String> {
    let name = &new.name;
    let fate = "from now on they go by address and port, and break when the client's change or a slot has moved";
    let quic = old.quic?;
    if new.quic.is_none() {
        return Some(format!(
            "service {name} has no `quic` any more: no connection goes by its ID; {fate}"
        ));
    }
    if new.quic != Some(quic) {
        return Some(format!(
            "the connection IDs of service {name} are read in another way: those that servers have issued name nobody; \
             {fate}; clients get new IDs once the servers issue them"
        ));
    }
    let backends = old.backends.values().filter_map(|before| {
        let after = new.backends.get(&before.name)?;
        let (id, is) = (before.server_id?, after.server_id?);
        if id != is {
            return Some(format!("{} ({id} -> {is})", before.name));
        }
        (before.address != after.address).then(|| {
            format!(
                "{} ({id}: {} -> {})",
                before.name, before.address, after.address
            )
        })
    });
    let backends: Vec<String> = backends.collect();
    (!backends.is_empty()).then(|| {
        format!(
            "server IDs of service {name} change: {}; connections with IDs that name nobody now go by address and port, \
             those with IDs that name another backend now break",
            backends.join(", ")
        )
    })
}

/// What the operator should know of a service that is new or changed.
pub(super) fn warning(old: Option<&View<'_>>, new: &View<'_>, now: bool) -> Option<String> {
    let service = new.service;
    let name = &service.name;
    if service.backends.is_empty() {
        return Some(match old {
            Some(old) if !old.service.backends.is_empty() => format!(
                "the last backend of service {name} is removed: new flows are dropped as drop_no_backend until one is \
                 added (lbctl backend add); established ones {}",
                established(service, now)
            ),
            _ => format!(
                "service {name} has no backends yet: its packets are dropped until one is added (lbctl backend add)"
            ),
        });
    }
    if new.members.is_empty() {
        return Some(format!(
            "every backend of service {name} has weight 0: new flows are dropped as drop_no_backend{}",
            match old {
                Some(_) => format!("; established ones {}", established(service, false)),
                None => String::new(),
            }
        ));
    }
    let left: Vec<&Backend> = new.members.iter().copied().filter(|b| !b.drain).collect();
    if left.is_empty() {
        return Some(format!(
            "every backend of service {name} that has a weight is drained: new flows are dropped as drop_no_backend until \
             one is undrained (lbctl backend undrain) or added; established ones {}",
            established(service, false)
        ));
    }
    let old = old.filter(|old| old.is_served())?;
    if !new.is_served() {
        return Some(format!(
            "the backends of service {name} that are left ({}) are down or cannot be reached: new flows are dropped as \
             drop_no_backend",
            names(&left)
        ));
    }
    (new.condition == Condition::AllDownOpen && old.condition == Condition::Up).then(|| {
        format!(
            "the backends of service {name} that are left ({}) are down: new flows go to them all the same, because \
             when_all_down is open",
            names(&left)
        )
    })
}

fn names(backends: &[&Backend]) -> String {
    let names: Vec<&str> = backends.iter().map(|b| b.name.as_str()).collect();
    names.join(", ")
}

/// What becomes of the established flows of a service that nobody serves any more.
fn established(service: &Service, now: bool) -> String {
    if now || service.flows.tracking == Tracking::None {
        return "are dropped at once".into();
    }
    format!(
        "stay where they are for at most {}",
        format_duration(service.flows.drain_timeout)
    )
}
