//! From what was written to what is valid. Everything that is wrong is found in one pass, so that a person mends a
//! file once.

mod flows;
mod health;
mod quic;

use super::{
    field::{self, Fault},
    raw::{BackendSpec, ServiceSpec, StateSpec},
    valid::{Backend, Limits, Name, Protocol, Service, State},
};
use crate::{
    prefix::Prefix,
    problem::{Problem, Problems},
};
use lb_common::{backend::Mode, gue, limits::MAX_WEIGHT};
use std::{collections::BTreeMap, fmt::Display, net::IpAddr};

impl State {
    /// Checks a state as it was written.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order in which it was written.
    pub fn parse(spec: &StateSpec, limits: &Limits) -> Result<Self, Problems> {
        let mut reader = Reader::default();
        reader.room(spec, limits);
        let mut state = Self::default();
        for (i, service) in spec.services.iter().enumerate() {
            if let Some(service) = reader.service(&format!("services[{i}]"), service) {
                state.services.insert(service.name.clone(), service);
            }
        }
        Problems::or(reader.found, state)
    }
}

/// What has been read so far: what is wrong with it, and what must not come twice.
#[derive(Default)]
struct Reader {
    found: Vec<Problem>,
    /// Path of the service with a name.
    names: BTreeMap<Name, String>,
    /// Name of the service with an address, protocol and port.
    vips: BTreeMap<(Prefix, Protocol, u16), String>,
    /// Address of the backends with a name, and the first service that has one.
    hosts: BTreeMap<Name, (IpAddr, String)>,
}

impl Reader {
    fn take<T>(
        &mut self,
        field: String,
        value: impl Display,
        parsed: Result<T, Fault>,
    ) -> Option<T> {
        parsed
            .map_err(|fault| {
                self.found
                    .push(Problem::new(field, value, fault.message, fault.hint))
            })
            .ok()
    }

    /// The outer option is none when the text is wrong, the inner one when there is none.
    fn given<T>(
        &mut self,
        field: String,
        text: &Option<String>,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<Option<T>> {
        match text {
            None => Some(None),
            Some(text) => self.take(field, text, parse(text)).map(Some),
        }
    }

    fn refuse(
        &mut self,
        field: String,
        value: impl Display,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.found.push(Problem::new(field, value, message, hint));
    }

    fn room(&mut self, spec: &StateSpec, limits: &Limits) {
        let backends = spec
            .services
            .iter()
            .map(|service| service.backends.len())
            .sum();
        for (what, given, most) in [
            ("services", spec.services.len(), limits.services),
            ("backends", backends, limits.backends),
        ] {
            if u32::try_from(given).is_ok_and(|given| given <= most) {
                continue;
            }
            let hint = format!("raise `limits.{what}` in the node configuration");
            self.refuse(
                "services".into(),
                given,
                format!("more than the {most} {what} this node can hold"),
                hint,
            );
        }
    }

    fn service(&mut self, path: &str, spec: &ServiceSpec) -> Option<Service> {
        let at = |field: &str| format!("{path}.{field}");
        let name = self.take(at("name"), &spec.name, field::name(&spec.name));
        let address = self.take(
            at("address"),
            &spec.address,
            field::service_address(&spec.address),
        );
        let protocol = self.take(
            at("protocol"),
            &spec.protocol,
            field::protocol(&spec.protocol),
        );
        let port = self.take(at("port"), spec.port, field::number(spec.port, 0, u16::MAX));
        let mode = self.take(at("mode"), &spec.mode, field::mode(&spec.mode));
        let gue_port = self.gue_port(at("gue_port"), spec, mode);
        let hash = self.given(at("hash"), &spec.hash, field::hash);
        let when_all_down = field::when_all_down(&spec.when_all_down);
        let when_all_down = self.take(at("when_all_down"), &spec.when_all_down, when_all_down);
        if let Some(name) = &name {
            self.name_once(path, name);
        }
        if let (Some(address), Some(protocol), Some(port)) = (address, protocol, port) {
            self.vip_once(path, &spec.name, (address, protocol, port));
        }
        let health = self.health(&at("health"), spec.health.as_ref(), protocol, port);
        let flows = self.flows(path, spec);
        let quic = self.quic(&at("quic"), spec, protocol, port);
        let backends = self.backends(path, spec, address);
        Some(Service {
            name: name?,
            address: address?,
            protocol: protocol?,
            port: port?,
            mode: mode?,
            gue_port: gue_port?,
            hash: hash?.unwrap_or_default(),
            when_all_down: when_all_down?,
            echo: spec.echo,
            quic: quic?,
            health: health?,
            flows: flows?,
            backends: backends?,
        })
    }

    /// The outer option is none when what is written is wrong, the inner one when the mode has no such port.
    fn gue_port(
        &mut self,
        field: String,
        spec: &ServiceSpec,
        mode: Option<Mode>,
    ) -> Option<Option<u16>> {
        match (mode, spec.gue_port) {
            (Some(Mode::Gue), None) => Some(Some(gue::DEFAULT_PORT)),
            (Some(Mode::Gue) | None, Some(port)) => self
                .take(field, port, field::number(port, 1, u16::MAX))
                .map(Some),
            (Some(Mode::Ipip | Mode::L2), Some(port)) => {
                let message = format!("is only for mode gue, and this is {}", spec.mode);
                self.refuse(field, port, message, "remove it, or use `mode: gue`");
                None
            }
            (_, None) => Some(None),
        }
    }

    fn name_once(&mut self, path: &str, name: &Name) {
        match self.names.get(name) {
            Some(first) => {
                let message = format!("{first} has this name already");
                self.refuse(
                    format!("{path}.name"),
                    name,
                    message,
                    "give each service its own name",
                );
            }
            None => {
                self.names.insert(name.clone(), path.to_owned());
            }
        }
    }

    fn vip_once(&mut self, path: &str, name: &str, vip: (Prefix, Protocol, u16)) {
        match self.vips.get(&vip) {
            Some(first) => {
                let message =
                    format!("service `{first}` has this address, protocol and port already");
                let value = format!("`{name}`: {} {}/{}", vip.0, vip.1.as_str(), vip.2);
                self.refuse(
                    path.to_owned(),
                    value,
                    message,
                    format!("change one, or add the backends to `{first}`"),
                );
            }
            None => {
                self.vips.insert(vip, name.to_owned());
            }
        }
    }

    fn backends(
        &mut self,
        path: &str,
        spec: &ServiceSpec,
        vip: Option<Prefix>,
    ) -> Option<BTreeMap<Name, Backend>> {
        let before = self.found.len();
        let mut backends: BTreeMap<Name, Backend> = BTreeMap::new();
        let mut addresses: BTreeMap<IpAddr, Name> = BTreeMap::new();
        let mut server_ids = BTreeMap::new();
        for (i, backend) in spec.backends.iter().enumerate() {
            let path = format!("{path}.backends[{i}]");
            let Some(backend) = self.backend(&path, backend, spec, vip) else {
                continue;
            };
            self.server_id_once(&path, &backend, &mut server_ids);
            if let Some(other) = addresses.insert(backend.address, backend.name.clone())
                && other != backend.name
            {
                let message = format!("backend `{other}` of this service has this address already");
                self.refuse(
                    format!("{path}.address"),
                    backend.address,
                    message,
                    "use weights to give a host more",
                );
            }
            if let Some(other) = backends.insert(backend.name.clone(), backend) {
                let hint = "give each backend of a service its own name";
                self.refuse(
                    format!("{path}.name"),
                    other.name,
                    "another backend of this service has this name",
                    hint,
                );
            }
        }
        (self.found.len() == before).then_some(backends)
    }

    fn backend(
        &mut self,
        path: &str,
        spec: &BackendSpec,
        service: &ServiceSpec,
        vip: Option<Prefix>,
    ) -> Option<Backend> {
        let at = |field: &str| format!("{path}.{field}");
        let name = self.take(at("name"), &spec.name, field::name(&spec.name));
        let address = self.take(
            at("address"),
            &spec.address,
            field::backend_address(&spec.address),
        );
        let weight = self.take(
            at("weight"),
            spec.weight,
            field::number(spec.weight, 0, MAX_WEIGHT),
        );
        if let (Some(address), Some(vip)) = (address, vip)
            && vip.contains(address.into())
        {
            let whose = if vip.is_address() {
                "the service's own address".to_owned()
            } else {
                format!("one of the service's own addresses, {vip}")
            };
            let message = format!("is {whose}: packets would come back here");
            let hint = "give the backend's own address";
            self.refuse(at("address"), &spec.address, message, hint);
        }
        let server_id = self.server_id(path, spec, service.quic.as_ref());
        let backend = Backend {
            name: name?,
            address: address?,
            weight: weight?,
            drain: spec.drain,
            server_id: server_id?,
        };
        self.one_host(path, &backend, &service.name);
        Some(backend)
    }

    /// One name is one host: the same name in two services with two addresses is a slip of the pen.
    fn one_host(&mut self, path: &str, backend: &Backend, service: &str) {
        match self.hosts.get(&backend.name) {
            // Twice in one service is refused as such.
            Some((address, first)) if *address != backend.address && first != service => {
                let message = format!(
                    "backend `{}` of service `{first}` is {address}",
                    backend.name
                );
                let hint = "one name is one host: use that address or another name";
                self.refuse(format!("{path}.address"), backend.address, message, hint);
            }
            Some(_) => {}
            None => {
                self.hosts
                    .insert(backend.name.clone(), (backend.address, service.to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
