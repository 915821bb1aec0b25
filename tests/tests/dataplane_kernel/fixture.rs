//! A namespace, a pin directory, and daemons that come and go.

use ::aya::maps::{Map, MapData};
use anyhow::Result;
use lb_common::{
    address::Address,
    backend::{BackendEntry, Mode, NextHop},
    flow_table::{FlowEntry, FlowKey},
    header::Ports,
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
};
use lb_tests::{netns::Namespace, require, session::Session};
use lb_userspace::dataplane::{
    Adoption, AttachMode, Attachment, AyaDataPlane, DataPlane, FlowTable, InterfaceSetting,
    Settings, aya,
};
use std::{collections::BTreeMap, fs, net::IpAddr};

/// Fields are dropped in this order: the session removes the pins last.
pub struct Fixture {
    pub namespace: Namespace,
    pub settings: Settings,
    pub session: Session,
}

impl Fixture {
    /// A namespace with a veth pair, or nothing where such tests cannot run.
    pub fn new(attach: AttachMode) -> Result<Option<Self>> {
        if !require::network() {
            return Ok(None);
        }
        let session = Session::unique();
        let namespace = Namespace::create(&session.namespace("lb"))?;
        let fixture = Self {
            settings: Settings {
                pin_directory: session.pins(),
                interfaces: vec![on("eth0", attach)],
                hash_seed: 7,
                services: 16,
                backends: 64,
                flows: 1_024,
            },
            namespace,
            session,
        };
        fixture.add_eth0()?;
        Ok(Some(fixture))
    }

    pub fn add_eth0(&self) -> Result<()> {
        self.namespace
            .ip("link add eth0 type veth peer name peer")?;
        self.namespace.ip("link set eth0 up")?;
        self.namespace.ip("link set peer up")
    }

    /// Starts a daemon's data plane with the present settings.
    pub fn open(&self) -> Result<(AyaDataPlane, Adoption)> {
        self.namespace.run(|| aya::open(&self.settings))
    }

    /// Activates and returns what is on the one configured interface.
    pub fn activate(&self, plane: &mut AyaDataPlane) -> Attachment {
        let mut attachments = self.namespace.run(|| plane.activate()).unwrap();
        assert_eq!(attachments.len(), 1);
        attachments.remove(0)
    }

    /// What is on the one configured interface.
    pub fn attachment(&self, plane: &AyaDataPlane) -> Attachment {
        self.namespace
            .run(|| plane.attachments())
            .unwrap()
            .remove(0)
    }

    pub fn detach(&self) -> Result<Vec<String>> {
        self.namespace
            .run(|| aya::detach(&self.settings.pin_directory))
    }

    /// What is in the pin directory, in order.
    pub fn pins(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.session.pins()) else {
            return Vec::new();
        };
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub fn on(name: &str, attach: AttachMode) -> InterfaceSetting {
    InterfaceSetting {
        name: name.into(),
        attach,
    }
}

/// The service 10.0.0.1:80.
pub fn www() -> ServiceKey {
    ServiceKey::new(address("10.0.0.1"), 6, 80)
}

pub fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

/// A backend entry in which every field has a value.
pub fn web(last: u8) -> BackendEntry {
    BackendEntry {
        next_hop: NextHop::new([2, 0, 0, 0, 0, last]),
        address: address(&format!("10.0.1.{last}")),
        outer_source: address("10.0.0.254"),
        interface: 3,
        mtu: 1500,
        mode: Mode::Ipip as u8,
        generation: 9,
        id: 0x1122_3344_5566_7788,
        ..BackendEntry::default()
    }
}

/// Two backends, a table with three slots set, and a service, in the order in which a daemon writes them.
pub fn fill(plane: &mut AyaDataPlane) -> Result<()> {
    plane.write_backend(1, &web(1))?;
    plane.write_backend(63, &web(2))?;
    plane.create_tables(&[5])?;
    plane.store_slots(
        5,
        &[
            (0, Slot::steady(1)),
            (777, Slot::moved(63, 1, false)),
            (65_536, Slot::steady(63)),
        ],
    )?;
    let address = ServiceKey::of_address(www().address);
    plane.put_service(&address, &ServiceEntry::default())?;
    plane.put_service(&www(), &ServiceEntry { index: 5, flags: 0 })
}

/// The flow table of a generation of maps, opened as the program of those maps has it.
pub fn pinned_flows(fixture: &Fixture, generation: &str) -> Result<FlowTable> {
    let path = fixture.session.pins().join(generation).join("FLOWS");
    FlowTable::open(&Map::from_map_data(MapData::from_pin(path)?)?)
}

/// The flow with this number; every field has a value.
pub fn flow(number: u16) -> (FlowKey, FlowEntry) {
    let ports = Ports {
        source: number,
        destination: 80_u16.to_be(),
    };
    let entry = FlowEntry {
        backend: 1,
        generation: 9,
        service: 5,
        slot: number.into(),
        seen: 1_000 + u32::from(number),
        flags: FlowEntry::CLOSING,
    };
    let key = FlowKey::new(address("192.0.2.1"), address("10.0.0.1"), ports, 6);
    (key, entry)
}

/// All entries of the flow table.
pub fn scan(plane: &mut AyaDataPlane) -> Result<BTreeMap<FlowKey, FlowEntry>> {
    let mut flows = BTreeMap::new();
    plane.scan_flows(&mut |key, entry| {
        flows.insert(*key, *entry);
    })?;
    Ok(flows)
}
