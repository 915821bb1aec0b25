//! What is in the program's maps, as a value: it can be installed, compared, and read by a model.

use crate::{fixture, packet::Packet, prog_run::Balancer};
use anyhow::Result;
use lb_common::{
    backend::BackendEntry,
    flow_table::{FlowEntry, FlowKey},
    fragment::{FragmentEntry, FragmentKey},
    quic::{QuicConfig, ServerEntry, ServerKey},
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
};
use lb_userspace::prefix::Prefix;
use std::collections::{BTreeMap, BTreeSet};

/// The slot table of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slots {
    /// There is none: a defect that the program must survive.
    Missing,
    /// Every slot has the same word.
    All(Slot),
    /// Steady slots of backends 1 to this many. No neighbour of a slot has the same owner, so a slot that is off by one
    /// shows.
    Spread(u32),
    /// Slots of every kind (steady, tracked, moved, settled, empty) among backends 0 to this many.
    Mixed(u32),
}

impl Slots {
    /// The word of a slot; `None` where there is no table.
    pub fn word(self, number: u32) -> Option<Slot> {
        let scrambled = number.wrapping_mul(0x9e37_79b1);
        Some(match self {
            Self::Missing => return None,
            Self::All(slot) => slot,
            Self::Spread(backends) => Slot::steady(1 + number.wrapping_mul(31) % backends),
            Self::Mixed(backends) => {
                let (new, old) = (
                    scrambled % (backends + 1),
                    (scrambled >> 9) % (backends + 1),
                );
                match scrambled >> 27 {
                    0..22 => Slot::steady(new),
                    22..24 => Slot::tracked(new),
                    24..28 => Slot::moved(new, old, false),
                    28..31 => Slot::moved(new, old, true),
                    _ => Slot::EMPTY,
                }
            }
        })
    }
}

/// A service and its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Address, protocol and port.
    pub key: ServiceKey,
    /// Index of its table and counters.
    pub index: u32,
    /// Flags of its entry.
    pub flags: u32,
    /// Who owns its slots.
    pub slots: Slots,
}

/// What is in the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Services; no two have one key.
    pub services: Vec<Service>,
    /// Backends by index.
    pub backends: BTreeMap<u32, BackendEntry>,
    /// The flow table.
    pub flows: BTreeMap<FlowKey, FlowEntry>,
    /// Interfaces to redirect to, and their MACs. They must exist where the world is installed.
    pub exits: BTreeMap<u32, [u8; 6]>,
    /// The entries of addresses and prefixes that answer pings.
    pub pingable: BTreeSet<ServiceKey>,
    /// What is known of fragments.
    pub fragments: BTreeMap<FragmentKey, FragmentEntry>,
    /// Who has which server ID.
    pub servers: BTreeMap<ServerKey, ServerEntry>,
    /// Whether all answers have been given, and none is left.
    pub silent: bool,
}

impl World {
    /// One service, the packet's, and one backend that owns every slot: what [`fixture::balancer`] has.
    pub fn of(packet: &Packet, entry: &BackendEntry) -> Self {
        let port = packet.to.port();
        Self::default()
            .service(packet, port, Slots::All(Slot::steady(fixture::BACKEND)))
            .backend(fixture::BACKEND, entry)
    }

    /// These, and a service of the packet's address and protocol on `port` (host order; 0 for any). The first has index
    /// [`fixture::SERVICE`], each other the next one.
    pub fn service(mut self, packet: &Packet, port: u16, slots: Slots) -> Self {
        let index = fixture::SERVICE + self.services.len() as u32;
        let key = fixture::key(packet, port);
        self.services.push(Service {
            key,
            index,
            flags: 0,
            slots,
        });
        self
    }

    /// These, and the packets of the service that was added last go by their connection IDs.
    ///
    /// # Panics
    /// Without a service.
    pub fn quic(self, config_rotation: u8, server_id_length: u8) -> Self {
        let service = self.services.last().expect("a service");
        let flags = ServiceEntry::quic_flags(QuicConfig {
            config_rotation,
            server_id_length,
        });
        let flags = service.flags | flags;
        self.flags(flags)
    }

    /// These, and a backend has this server ID at the service that was added last.
    ///
    /// # Panics
    /// Without a service.
    pub fn server(mut self, id: u64, backend: u32, generation: u32) -> Self {
        let service = self.services.last().expect("a service");
        let config = ServiceEntry::quic_config(service.flags);
        let key = ServerKey {
            service: service.index,
            length: config.server_id_length.into(),
            id,
        };
        let entry = ServerEntry {
            backend,
            generation,
        };
        self.servers.insert(key, entry);
        self
    }

    /// These, with the service that was added last at all addresses of a prefix: that of its own one of `length` bits.
    ///
    /// # Panics
    /// If an address has not so many.
    pub fn within(mut self, length: u8) -> Self {
        if let Some(service) = self.services.last_mut() {
            let prefix = Prefix::around(service.key.address.into(), length).expect("a length");
            let key = ServiceKey {
                address: prefix.address().into(),
                ..service.key
            };
            service.key = key.within(prefix.mapped().0 as u8);
        }
        self
    }

    /// These, with other flags of the service that was added last.
    pub fn flags(mut self, flags: u32) -> Self {
        if let Some(service) = self.services.last_mut() {
            service.flags = flags;
        }
        self
    }

    /// These, and a backend.
    pub fn backend(mut self, index: u32, entry: &BackendEntry) -> Self {
        self.backends.insert(index, *entry);
        self
    }

    /// These, and a flow.
    pub fn flow(mut self, key: FlowKey, entry: FlowEntry) -> Self {
        self.flows.insert(key, entry);
        self
    }

    /// These, and an interface to redirect to.
    pub fn exit(mut self, interface: u32, mac: [u8; 6]) -> Self {
        self.exits.insert(interface, mac);
        self
    }

    /// These, and pings to the packet's destination are answered.
    pub fn pingable(mut self, packet: &Packet) -> Self {
        let key = ServiceKey::of_address(packet.to.ip().into());
        self.pingable.insert(key);
        self
    }

    /// These, and pings to all addresses of the service that was added last are answered.
    pub fn pingable_all(mut self) -> Self {
        if let Some(service) = self.services.last() {
            self.pingable.insert(service.key.its_address());
        }
        self
    }

    /// These, and something known of fragments.
    pub fn fragment(mut self, key: FragmentKey, entry: FragmentEntry) -> Self {
        self.fragments.insert(key, entry);
        self
    }

    /// These, without an answer left to give.
    pub fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    /// The entries of the addresses and prefixes of services.
    pub fn addresses(&self) -> BTreeSet<ServiceKey> {
        let of_services = self
            .services
            .iter()
            .map(|service| service.key.its_address());
        of_services.chain(self.pingable.iter().copied()).collect()
    }

    /// A balancer with all that.
    pub fn install(&self) -> Result<Balancer> {
        self.install_in(Balancer::load()?)
    }

    /// `balancer`, which is empty, with this in its maps.
    pub fn install_in(&self, mut balancer: Balancer) -> Result<Balancer> {
        self.fill(&mut balancer)?;
        Ok(balancer)
    }

    /// A balancer with this instead of what `before` put into it. Loading takes longer than filling.
    pub fn install_over(&self, mut balancer: Balancer, before: &Self) -> Result<Balancer> {
        let lacks_a_table = |service: &Service| service.slots == Slots::Missing;
        // A table cannot be taken away again, nor an exit.
        if self.services.iter().any(lacks_a_table) || self.exits != before.exits {
            return self.install();
        }
        for service in &before.services {
            balancer.remove_service(service.key)?;
        }
        for address in before.addresses() {
            balancer.remove_service(address)?;
        }
        for index in before.backends.keys() {
            balancer.set_backend(*index, &BackendEntry::default())?;
        }
        for key in before.servers.keys() {
            balancer.remove_server(key)?;
        }
        for key in balancer.flows()?.keys() {
            balancer.remove_flow(key)?;
        }
        for key in balancer.fragments()?.keys() {
            balancer.remove_fragment(key)?;
        }
        self.fill(&mut balancer)?;
        Ok(balancer)
    }

    fn fill(&self, balancer: &mut Balancer) -> Result<()> {
        for (index, entry) in &self.backends {
            balancer.set_backend(*index, entry)?;
        }
        for (key, entry) in &self.servers {
            balancer.set_server(key, entry)?;
        }
        for service in &self.services {
            let Service {
                key, index, slots, ..
            } = service;
            if *slots == Slots::Missing {
                balancer.add_service_without_table(*key, *index)?;
            } else {
                let word = |number| slots.word(number).unwrap_or_default();
                balancer.add_service_of_slots(*key, *index, word)?;
            }
            let flags = service.flags | ServiceEntry::prefix_flags(key.prefix);
            let index = *index;
            balancer.put_service(*key, ServiceEntry { index, flags })?;
        }
        for address in &self.pingable {
            let flags = ServiceEntry::ECHO | ServiceEntry::prefix_flags(address.prefix);
            balancer.put_service(*address, ServiceEntry { index: 0, flags })?;
        }
        for (key, entry) in &self.flows {
            balancer.set_flow(key, entry)?;
        }
        for (key, entry) in &self.fragments {
            balancer.set_fragment(key, entry)?;
        }
        balancer.set_answers(!self.silent)?;
        for (interface, mac) in &self.exits {
            balancer.set_exit(*interface, *mac)?;
        }
        Ok(())
    }
}
