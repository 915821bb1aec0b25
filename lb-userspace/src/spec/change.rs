//! Changes of the desired state as pure functions: what a change makes of a state, and in which words two states
//! differ.
//!
//! **Invariant.** What is changed is put last before the whole is checked, so that a clash is blamed on the change
//! and not on what was there before. The order in which a state is written means nothing.

mod diff;

pub use diff::diff;

use super::{
    nearest,
    raw::{BackendPatch, BackendSpec, ServiceSpec, StateSpec},
    valid::{Hash, Limits, State},
};
use crate::{
    api::handle::Change,
    problem::{Problem, Problems},
};
use std::collections::BTreeSet;

/// Names of what exists that an error lists before it says "and so on".
const LISTED: usize = 10;

/// What fits a node is not asked here.
const UNLIMITED: Limits = Limits {
    services: u32::MAX,
    backends: u32::MAX,
};

/// Why a change cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// What it names does not exist: a sentence for people.
    NotFound(String),
    /// It is fine by itself but not beside what is there: a sentence for people, and the fields at fault.
    Conflict(String, Vec<Problem>),
    /// Its values are not valid. Fields are named relative to what the change brings.
    Invalid(Problems),
    /// What it needs cannot be read: a sentence for people.
    Lost(String),
}

/// The state after a change: valid, except that it may be more than a node can hold, and in canonical order.
/// `spec` must be valid itself. `past` looks up the state of an earlier revision.
///
/// # Errors
/// Why the change cannot be made.
pub fn apply(
    spec: &StateSpec,
    change: &Change,
    past: impl FnOnce(u64) -> Result<StateSpec, ChangeError>,
) -> Result<StateSpec, ChangeError> {
    let before = spec;
    let mut spec = spec.clone();
    match change {
        Change::Apply(whole) => return whole_state(before, whole),
        Change::AddService(service) => return with_service(spec, service.clone()),
        Change::RemoveService { service } => {
            take_service(&mut spec, service)?;
        }
        Change::AddBackend { service, backend } => {
            let service = take_service(&mut spec, service)?;
            if service
                .backends
                .iter()
                .any(|other| other.name == backend.name)
            {
                let message = format!(
                    "service `{}` has a backend `{}` already",
                    service.name, backend.name
                );
                return Err(taken(
                    &backend.name,
                    message,
                    "change that one, or choose another name",
                ));
            }
            return with_backend(spec, service, backend.clone());
        }
        Change::SetBackend {
            service,
            backend,
            patch,
        } => {
            let mut service = take_service(&mut spec, service)?;
            let backend = take_backend(&spec, &mut service, backend)?;
            return with_backend(spec, service, patched(backend, patch));
        }
        Change::RemoveBackend { service, backend } => {
            let mut service = take_service(&mut spec, service)?;
            take_backend(&spec, &mut service, backend)?;
            spec.services.push(service);
        }
        Change::Drain {
            backend,
            service,
            drain,
        } => match service {
            Some(service) => {
                let mut service = take_service(&mut spec, service)?;
                let backend = take_backend(&spec, &mut service, backend)?;
                service.backends.push(BackendSpec {
                    drain: *drain,
                    ..backend
                });
                spec.services.push(service);
            }
            None => drain_host(&mut spec, backend, *drain)?,
        },
        Change::Rollback { revision } => return whole_state(before, &past(*revision)?),
    }
    canonical(&spec).map_err(ChangeError::Invalid)
}

/// A state in the place of another.
fn whole_state(before: &StateSpec, whole: &StateSpec) -> Result<StateSpec, ChangeError> {
    let after = canonical(whole).map_err(ChangeError::Invalid)?;
    let problems = other_hashes(before, &after, whole);
    if problems.is_empty() {
        Ok(after)
    } else {
        Err(clash(Problems(problems)))
    }
}

/// A problem for each service that would hash flows by something else than before: all its flows would change their
/// slots, and established ones break.
fn other_hashes(before: &StateSpec, after: &StateSpec, written: &StateSpec) -> Vec<Problem> {
    let mut problems = Vec::new();
    for service in &after.services {
        let vip = |spec: &ServiceSpec| (spec.address.clone(), spec.protocol.clone(), spec.port);
        let mut others = before.services.iter();
        let Some(old) = others.find(|old| vip(old) == vip(service) && old.hash != service.hash)
        else {
            continue;
        };
        let hash = |spec: &ServiceSpec| {
            let default = Hash::default().as_str();
            spec.hash.clone().unwrap_or_else(|| default.into())
        };
        let mut places = written.services.iter();
        let place = places.position(|written| written.name == service.name);
        problems.push(Problem::new(
            format!("services[{}].hash", place.unwrap_or_default()),
            hash(service),
            format!(
                "service `{}` hashes by {}, and in another way every flow would get another slot",
                old.name,
                hash(old)
            ),
            format!(
                "keep `hash: {}`, or remove service `{}`, which ends its connections, and add it again",
                hash(old),
                old.name
            ),
        ));
    }
    problems
}

fn canonical(spec: &StateSpec) -> Result<StateSpec, Problems> {
    State::parse(spec, &UNLIMITED).map(|state| StateSpec::from(&state))
}

fn with_service(mut spec: StateSpec, service: ServiceSpec) -> Result<StateSpec, ChangeError> {
    if spec.services.iter().any(|other| other.name == service.name) {
        let message = format!("service `{}` exists already", service.name);
        return Err(taken(
            &service.name,
            message,
            "remove that one first, or choose another name",
        ));
    }
    let alone = StateSpec {
        services: vec![service.clone()],
    };
    canonical(&alone)
        .map_err(|problems| ChangeError::Invalid(relative(problems, "services[0]")))?;
    spec.services.push(service);
    let path = format!("services[{}]", spec.services.len() - 1);
    canonical(&spec).map_err(|problems| clash(relative(problems, &path)))
}

fn with_backend(
    mut spec: StateSpec,
    mut service: ServiceSpec,
    backend: BackendSpec,
) -> Result<StateSpec, ChangeError> {
    let alone = ServiceSpec {
        backends: vec![backend.clone()],
        ..service.clone()
    };
    canonical(&StateSpec {
        services: vec![alone],
    })
    .map_err(|problems| ChangeError::Invalid(relative(problems, "services[0].backends[0]")))?;
    service.backends.push(backend);
    let path = format!(
        "services[{}].backends[{}]",
        spec.services.len(),
        service.backends.len() - 1
    );
    spec.services.push(service);
    canonical(&spec).map_err(|problems| clash(relative(problems, &path)))
}

fn patched(backend: BackendSpec, patch: &BackendPatch) -> BackendSpec {
    BackendSpec {
        name: backend.name,
        address: patch.address.clone().unwrap_or(backend.address),
        weight: patch.weight.unwrap_or(backend.weight),
        drain: patch.drain.unwrap_or(backend.drain),
        server_id: patch.server_id.clone().or(backend.server_id),
    }
}

fn take_service(spec: &mut StateSpec, name: &str) -> Result<ServiceSpec, ChangeError> {
    match spec
        .services
        .iter()
        .position(|service| service.name == name)
    {
        Some(at) => Ok(spec.services.remove(at)),
        None => {
            let known = spec
                .services
                .iter()
                .map(|service| service.name.as_str())
                .collect();
            Err(ChangeError::NotFound(format!(
                "there is no service `{name}`; {}",
                known_names(name, known, "services")
            )))
        }
    }
}

/// Takes a backend out of a service that was taken out of `rest`.
fn take_backend(
    rest: &StateSpec,
    service: &mut ServiceSpec,
    name: &str,
) -> Result<BackendSpec, ChangeError> {
    if let Some(at) = service
        .backends
        .iter()
        .position(|backend| backend.name == name)
    {
        return Ok(service.backends.remove(at));
    }
    let has_it = |other: &&ServiceSpec| other.backends.iter().any(|backend| backend.name == name);
    let elsewhere: Vec<_> = rest
        .services
        .iter()
        .filter(has_it)
        .map(|other| format!("`{}`", other.name))
        .collect();
    let hint = if elsewhere.is_empty() {
        let known = service
            .backends
            .iter()
            .map(|backend| backend.name.as_str())
            .collect();
        known_names(name, known, "backends")
    } else {
        format!("it is a backend of {}", elsewhere.join(", "))
    };
    Err(ChangeError::NotFound(format!(
        "service `{}` has no backend `{name}`; {hint}",
        service.name
    )))
}

/// Begins or ends the drain of all backends of a name.
fn drain_host(spec: &mut StateSpec, name: &str, drain: bool) -> Result<(), ChangeError> {
    let all = || spec.services.iter().flat_map(|service| &service.backends);
    if !all().any(|backend| backend.name == name) {
        let known: BTreeSet<&str> = all().map(|backend| backend.name.as_str()).collect();
        let hint = known_names(name, known.into_iter().collect(), "backends");
        return Err(ChangeError::NotFound(format!(
            "no service has a backend `{name}`; {hint}"
        )));
    }
    let backends = spec
        .services
        .iter_mut()
        .flat_map(|service| &mut service.backends);
    for backend in backends.filter(|backend| backend.name == name) {
        backend.drain = drain;
    }
    Ok(())
}

fn known_names(given: &str, known: Vec<&str>, what: &str) -> String {
    if let Some(near) = nearest(given, known.iter().copied()) {
        return format!("did you mean `{near}`?");
    }
    match known.len() {
        0 => format!("there are no {what}"),
        n if n <= LISTED => format!("there are: {}", known.join(", ")),
        n => format!(
            "there are: {} and {} more",
            known[..LISTED].join(", "),
            n - LISTED
        ),
    }
}

fn taken(name: &str, message: String, hint: &str) -> ChangeError {
    clash(Problem::new("name", name, message, hint).into())
}

fn clash(problems: Problems) -> ChangeError {
    ChangeError::Conflict(problems.to_string(), problems.0)
}

/// The same problems with fields named from `path` on, where they lie below it.
fn relative(mut problems: Problems, path: &str) -> Problems {
    for problem in &mut problems.0 {
        if let Some(below) = problem.field.strip_prefix(path) {
            problem.field = below.trim_start_matches('.').to_owned();
        }
    }
    problems
}

#[cfg(test)]
mod tests;
