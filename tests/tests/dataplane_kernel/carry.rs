//! New maps have what the old ones had.

use crate::fixture::{Fixture, address, fill, flow, pinned_flows, scan, web, www};
use anyhow::Result;
use aya::maps::{Array, HashMap, Map, MapData};
use lb_common::{
    backend::BackendEntry,
    flow_table::{FlowEntry, FlowKey},
    quic::{ServerEntry, ServerKey},
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
    stats::Counter,
};
use lb_userspace::dataplane::{
    Adoption, AttachMode, AyaDataPlane, Carried, DataPlane, Installed, Settings, clock,
};
use std::{collections::BTreeMap, fs, path::Path};

/// A slot's word as it was up to layout version 6.
fn as_of_version_6(slot: Slot) -> Slot {
    let owners = slot.0 & ((1 << 48) - 1);
    Slot(owners | u64::from(slot.is_tracked()) << 48 | u64::from(slot.is_settled()) << 49)
}

/// As [`first_daemon`], but of layout version 6 or before, which is left to say.
fn early_daemon(fixture: &Fixture) -> Result<(Installed, Vec<Slot>)> {
    first_daemon_with(fixture, as_of_version_6)
}

/// Fills the maps of a first daemon as a busy one would, attaches its program, and ends it. Returns what was in the maps.
fn first_daemon(fixture: &Fixture) -> Result<(Installed, Vec<Slot>)> {
    first_daemon_with(fixture, |slot| slot)
}

fn first_daemon_with(
    fixture: &Fixture,
    as_written: fn(Slot) -> Slot,
) -> Result<(Installed, Vec<Slot>)> {
    let (mut plane, _) = fixture.open()?;
    fill(&mut plane)?;
    let lost = BackendEntry {
        flags: BackendEntry::LOST,
        ..web(3)
    };
    plane.write_backend(40, &lost)?;
    let server = ServerKey {
        service: 5,
        length: 8,
        id: u64::MAX - 1,
    };
    let generation = lost.generation;
    let named = ServerEntry {
        backend: 40,
        generation,
    };
    plane.put_server(&server, &named)?;
    let slots: Vec<(u32, Slot)> = (1_000..65_000)
        .map(|number| match number % 4 {
            0 => (number, Slot::steady(63)),
            1 => (number, Slot::tracked(1)),
            2 => (number, Slot::moved(63, 1, true)),
            _ => (number, Slot::moved(1, 40, false)),
        })
        .collect();
    plane.store_slots(5, &slots)?;
    let meant = plane.read_slots(5)?;
    let written: Vec<(u32, Slot)> = (0..)
        .zip(meant.iter().map(|slot| as_written(*slot)))
        .collect();
    plane.store_slots(5, &written)?;
    // A table that no service uses yet, and an empty one.
    plane.create_tables(&[0, 9])?;
    let last = as_written(Slot::moved(40, 0, true));
    plane.store_slots(9, &[(65_536, last)])?;
    fixture.activate(&mut plane);
    Ok((plane.installed()?, meant))
}

fn assert_same(plane: &mut AyaDataPlane, before: &(Installed, Vec<Slot>)) -> Result<()> {
    assert_eq!(plane.installed()?, before.0);
    assert!(plane.read_slots(5)? == before.1, "slots differ");
    let other = plane.read_slots(9)?;
    assert_eq!(other[65_536], Slot::moved(40, 0, true));
    assert!(plane.read_slots(0)?.iter().all(|slot| *slot == Slot::EMPTY));
    Ok(())
}

#[test]
fn a_change_of_the_limits_forgets_nothing() -> Result<()> {
    let Some(mut fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let before = first_daemon(&fixture)?;
    let recorded = pinned_flows(&fixture, "maps-7-1")?;
    let mut expected: BTreeMap<_, _> = (0..500).map(flow).collect();
    for (key, entry) in &expected {
        recorded.insert(key, entry)?;
    }
    fixture.settings = Settings {
        services: 10,
        backends: 64 + 1,
        flows: 4_096,
        ..fixture.settings
    };
    let (mut plane, adoption) = fixture.open()?;
    let Adoption::Replaced {
        differences,
        carried,
    } = adoption
    else {
        panic!("{adoption:?}")
    };
    assert_eq!(differences.len(), 7, "{differences:?}");
    let flows =
        "FLOWS: array of 172 entries, key 4 B, value 1024 B, flags 0x400 -> array of 684 entries";
    assert!(
        differences.iter().any(|line| line.starts_with(flows)),
        "{differences:?}"
    );
    let all = Carried {
        services: 1,
        backends: 3,
        flows: 500,
    };
    assert_eq!(carried, Ok(all));
    assert_same(&mut plane, &before)?;
    assert_eq!(scan(&mut plane)?, expected);
    assert_eq!(plane.service_counter(5)?, Counter::default());

    // The old program records on until the new one takes over; what the new maps know by then stays as it is.
    let seen = clock::seconds(clock::monotonic());
    let seen_now = |(key, entry)| (key, FlowEntry { seen, ..entry });
    for (key, entry) in (500..700).map(flow).map(seen_now) {
        recorded.insert(&key, &entry)?;
        expected.insert(key, entry);
    }
    let (key, entry) = seen_now(flow(3));
    let other = FlowEntry {
        backend: 63,
        ..entry
    };
    recorded.insert(&key, &other)?;
    let link = fixture.activate(&mut plane).index;
    assert_eq!(scan(&mut plane)?, expected);
    assert_same(&mut plane, &before)?;
    assert_eq!(
        fixture.pins(),
        [format!("link-{link}"), "maps-7-2".into()],
        "the old maps are removed"
    );

    // They are done with.
    let (key, entry) = seen_now(flow(900));
    recorded.insert(&key, &entry)?;
    assert_eq!(plane.remove_flows(&[flow(4).0])?, 1);
    expected.remove(&flow(4).0);
    fixture.activate(&mut plane);
    assert_eq!(scan(&mut plane)?, expected);
    drop(plane);
    let adopted = Adoption::Reused {
        services: 1,
        backends: 3,
    };
    assert_eq!(fixture.open()?.1, adopted);
    Ok(())
}

/// The services map as layout versions up to 3 had it, in place of the one in `folder`.
fn make_services_a_hash_map(folder: &Path, before: &Installed) -> Result<()> {
    let path = folder.join("SERVICES");
    fs::remove_file(&path)?;
    let mut services: HashMap<MapData, ServiceKey, ServiceEntry> = HashMap::create(32, 1)?;
    for (key, entry) in before.services.iter().chain(&before.addresses) {
        services.insert(key, entry, 0)?;
    }
    Ok(services.pin(path)?)
}

/// Layout version 1 had no flow table, and another services map; the rest of it means what it means now.
#[test]
fn maps_of_the_first_layout_are_carried_over() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let mut before = early_daemon(&fixture)?;
    before.0.servers.clear();
    let pins = fixture.session.pins();
    fs::rename(pins.join("maps-7-1"), pins.join("maps-1-1"))?;
    fs::remove_file(pins.join("maps-1-1/FLOWS"))?;
    for name in [
        "SERVICE_PREFIXES",
        "FLOW_EVENTS",
        "FRAGMENTS",
        "ANSWERS",
        "QUIC_SERVERS",
    ] {
        fs::remove_file(pins.join("maps-1-1").join(name))?;
    }
    make_services_a_hash_map(&pins.join("maps-1-1"), &before.0)?;
    let (mut plane, adoption) = fixture.open()?;
    let expected = Adoption::Replaced {
        differences: vec![
            "layout version 1 -> 7".into(),
            "SERVICES: hash of 32 entries, key 20 B, value 8 B, flags 0x1 -> array of 129 entries, key 4 B, value 32 B, \
             flags 0x400"
                .into(),
            "SERVICE_PREFIXES: missing -> trie of prefixes of 32 entries, key 24 B, value 8 B, flags 0x1"
                .into(),
            "FLOWS: missing -> array of 172 entries, key 4 B, value 1024 B, flags 0x400".into(),
            "FLOW_EVENTS: missing -> per-CPU array of 9 entries, key 4 B, value 8 B".into(),
            "FRAGMENTS: missing -> LRU hash of 32768 entries, key 40 B, value 24 B".into(),
            "ANSWERS: missing -> per-CPU array of 2 entries, key 4 B, value 8 B".into(),
            "QUIC_SERVERS: missing -> hash of 64 entries, key 16 B, value 8 B, flags 0x1".into(),
        ],
        carried: Ok(Carried {
            services: 1,
            backends: 3,
            flows: 0,
        }),
    };
    assert_eq!(adoption, expected);
    assert_same(&mut plane, &before)?;
    let link = fixture.activate(&mut plane).index;
    assert_same(&mut plane, &before)?;
    let left = [format!("link-{link}"), "maps-7-2".into()];
    assert_eq!(fixture.pins(), left);
    Ok(())
}

/// Up to layout version 5 entries of backends had no sum.
#[test]
fn entries_of_backends_get_their_sum() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let before = early_daemon(&fixture)?;
    let pins = fixture.session.pins();
    fs::rename(pins.join("maps-7-1"), pins.join("maps-5-1"))?;
    let backends = |generation: &str| -> Result<Array<MapData, BackendEntry>> {
        let map = MapData::from_pin(pins.join(generation).join("BACKENDS"))?;
        Ok(Array::try_from(Map::from_map_data(map)?)?)
    };
    let mut old = backends("maps-5-1")?;
    for (index, entry) in &before.0.backends {
        assert_eq!(entry.sum, 0);
        old.set(*index, entry, 0)?;
    }
    let (mut plane, adoption) = fixture.open()?;
    assert!(
        matches!(&adoption, Adoption::Replaced { differences, carried: Ok(_) } if differences[..] == ["layout version 5 -> 7"]),
        "{adoption:?}"
    );
    let new = backends("maps-7-2")?;
    for (index, entry) in &before.0.backends {
        let found = new.get(index, 0)?;
        assert_ne!(found.sum, 0);
        assert_eq!(found, entry.sealed());
    }
    fixture.activate(&mut plane);
    assert_same(&mut plane, &before)
}

/// Up to layout version 4 the flow table was an LRU map of the kernel.
#[test]
fn flows_of_an_lru_map_are_carried_over() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let before = early_daemon(&fixture)?;
    let pins = fixture.session.pins();
    fs::rename(pins.join("maps-7-1"), pins.join("maps-4-1"))?;
    let path = pins.join("maps-4-1/FLOWS");
    fs::remove_file(&path)?;
    const LRU_HASH: u32 = 9;
    let shape = aya_obj::Map::new_from_params(LRU_HASH, 40, 24, 1_024, 0);
    let old = MapData::create(shape, "FLOWS", None)?;
    old.pin(&path)?;
    let mut old: HashMap<_, FlowKey, FlowEntry> = HashMap::try_from(Map::from_map_data(old)?)?;
    let mut expected: BTreeMap<_, _> = (0..500).map(flow).collect();
    for (key, entry) in &expected {
        old.insert(key, entry, 0)?;
    }
    let (mut plane, adoption) = fixture.open()?;
    let differences = vec![
        "layout version 4 -> 7".into(),
        "FLOWS: LRU hash of 1024 entries, key 40 B, value 24 B -> array of 172 entries, key 4 B, value 1024 B, flags \
         0x400"
            .into(),
    ];
    let carried = Ok(Carried {
        services: 1,
        backends: 3,
        flows: 500,
    });
    assert_eq!(
        adoption,
        Adoption::Replaced {
            differences,
            carried
        }
    );
    assert_eq!(scan(&mut plane)?, expected);
    // What its program records until the new one takes over comes later.
    let (key, entry) = flow(600);
    let seen = clock::seconds(clock::monotonic());
    let entry = FlowEntry { seen, ..entry };
    old.insert(key, entry, 0)?;
    expected.insert(key, entry);
    fixture.activate(&mut plane);
    assert_eq!(scan(&mut plane)?, expected);
    assert_same(&mut plane, &before)
}

#[test]
fn services_at_prefixes_are_adopted_and_carried_over() -> Result<()> {
    let Some(mut fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let key = ServiceKey::new(address("10.0.0.0"), 6, 0).within(96 + 24);
    let flags = ServiceEntry::prefix_flags(key.prefix);
    let wrong = ServiceEntry { index: 5, flags: 0 };
    let (mut plane, _) = fixture.open()?;
    fill(&mut plane)?;
    assert!(plane.put_service(&key, &wrong).is_err());
    plane.put_service(&key.its_address(), &ServiceEntry { index: 0, flags })?;
    plane.put_service(&key, &ServiceEntry { index: 5, flags })?;
    let before = plane.installed()?;
    assert_eq!((before.services.len(), before.addresses.len()), (2, 2));
    assert_eq!(
        before.services.get(&key),
        Some(&ServiceEntry { index: 5, flags })
    );
    fixture.activate(&mut plane);
    drop(plane);

    let (mut plane, adoption) = fixture.open()?;
    assert!(matches!(adoption, Adoption::Reused { services: 2, .. }));
    assert_eq!(plane.installed()?, before);
    fixture.activate(&mut plane);
    drop(plane);

    fixture.settings.services += 1;
    let (mut plane, adoption) = fixture.open()?;
    let Adoption::Replaced { carried, .. } = adoption else {
        panic!("{adoption:?}")
    };
    assert_eq!(carried.map(|carried| carried.services), Ok(2));
    assert_eq!(plane.installed()?, before);
    for _ in 0..2 {
        plane.remove_service(&key)?;
        plane.remove_service(&key.its_address())?;
    }
    let left = plane.installed()?;
    assert_eq!((left.services.len(), left.addresses.len()), (1, 1));
    Ok(())
}

#[test]
fn what_does_not_fit_is_not_carried_over_and_the_old_program_goes_on() -> Result<()> {
    let Some(mut fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    first_daemon(&fixture)?;
    let old = fixture.settings.clone();
    for (services, backends, why) in [
        (
            9,
            64,
            "service index 9 is in use and not below 9 (limits.services)",
        ),
        (
            16,
            63,
            "backend index 63 is in use and not below 63 (limits.backends)",
        ),
    ] {
        fixture.settings = Settings {
            services,
            backends,
            ..old.clone()
        };
        let (mut plane, adoption) = fixture.open()?;
        let Adoption::Replaced { carried, .. } = adoption else {
            panic!("{adoption:?}")
        };
        assert_eq!(carried, Err(why.to_owned()));
        assert_eq!(plane.installed()?, Installed::default());
        assert!(fixture.attachment(&plane).program_id != 0);
        assert!(fixture.pins().contains(&"maps-7-1".into()));
    }
    // It is filled and takes over, as if nothing had been there.
    let (mut plane, _) = fixture.open()?;
    plane.write_backend(1, &web(1))?;
    fixture.activate(&mut plane);
    assert_eq!(plane.installed()?.backends.len(), 1);
    assert!(!plane.installed()?.services.contains_key(&www()));
    Ok(())
}

#[test]
fn maps_of_an_unknown_layout_are_not_read() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    first_daemon(&fixture)?;
    let pins = fixture.session.pins();
    let mut path = pins.join("maps-7-1");
    for version in [0, 8] {
        let other = pins.join(format!("maps-{version}-1"));
        fs::rename(&path, &other)?;
        path = other;
        let (mut plane, adoption) = fixture.open()?;
        let expected = Adoption::Replaced {
            differences: vec![format!("layout version {version} -> 7")],
            carried: Err(format!(
                "this lbd cannot read maps of layout version {version}"
            )),
        };
        assert_eq!(adoption, expected);
        assert_eq!(plane.installed()?, Installed::default());
    }
    Ok(())
}
