//! The interfaces that packets can be redirected to: those that the program is on, as they come and go.

use crate::fixture::{Fixture, on};
use ::aya::maps::{HashMap, Map, MapData, xdp::DevMapHash};
use anyhow::Result;
use lb_common::{
    backend::NextHop,
    maps::{EXIT_MACS, EXITS},
};
use lb_userspace::dataplane::{Adoption, AttachMode, AyaDataPlane};
use std::collections::BTreeMap;

/// What the program finds: interfaces that are in both maps, with their MACs.
fn exits(fixture: &Fixture) -> Result<BTreeMap<u32, [u8; 6]>> {
    let map = |name: &str| -> Result<Map> {
        let generation = fixture
            .pins()
            .into_iter()
            .rfind(|name| name.starts_with("maps-"))
            .expect("pinned maps");
        let path = fixture.session.pins().join(generation).join(name);
        Ok(Map::from_map_data(MapData::from_pin(path)?)?)
    };
    let macs: HashMap<_, u32, NextHop> = HashMap::try_from(map(EXIT_MACS)?)?;
    let devices = DevMapHash::try_from(map(EXITS)?)?;
    let mut both = BTreeMap::new();
    for entry in macs.iter() {
        let (index, own) = entry?;
        if let Ok(device) = devices.get(index, 0) {
            assert_eq!(device.if_index, index);
            both.insert(index, own.mac);
        }
    }
    Ok(both)
}

/// Activates; the indexes of the interfaces that the program is on.
fn activate(fixture: &Fixture, plane: &mut AyaDataPlane) -> Vec<u32> {
    let attachments = fixture.namespace.run(|| plane.activate()).unwrap();
    let attached = attachments.iter().filter(|found| found.mode.is_some());
    attached.map(|found| found.index).collect()
}

#[test]
fn they_follow_the_interfaces_and_outlive_the_daemon() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let add_eth1 = || {
        fixture
            .namespace
            .ip("link add eth1 address 02:00:00:00:00:11 type veth peer name peer1")
    };
    add_eth1()?;
    let (mut plane, _) = fixture.open()?;
    let both = vec![on("eth0", AttachMode::Auto), on("eth1", AttachMode::Auto)];
    plane.set_interfaces(both.clone());
    assert_eq!(exits(&fixture)?, [].into(), "nothing is attached");
    let found = activate(&fixture, &mut plane);
    let before = exits(&fixture)?;
    assert!(before.keys().eq(found.iter()), "{before:?}");
    assert_eq!(before[&found[1]], [2, 0, 0, 0, 0, 0x11]);

    fixture
        .namespace
        .ip("link set eth1 address 02:00:00:00:00:22")?;
    activate(&fixture, &mut plane);
    assert_eq!(exits(&fixture)?[&found[1]], [2, 0, 0, 0, 0, 0x22]);
    fixture.namespace.ip("link del eth1")?;
    assert!(exits(&fixture)?.keys().eq([&found[0]]), "the kernel itself");
    activate(&fixture, &mut plane);
    add_eth1()?;
    let again = activate(&fixture, &mut plane);
    assert!(exits(&fixture)?.keys().eq(again.iter()));
    assert_eq!(again.len(), 2);

    drop(plane);
    assert_eq!(exits(&fixture)?.len(), 2, "without a daemon");
    let (mut plane, adoption) = fixture.open()?;
    assert!(matches!(adoption, Adoption::Reused { .. }), "{adoption:?}");
    plane.set_interfaces(both);
    activate(&fixture, &mut plane);
    assert_eq!(exits(&fixture)?.len(), 2);
    plane.set_interfaces(vec![on("eth0", AttachMode::Auto)]);
    activate(&fixture, &mut plane);
    assert!(exits(&fixture)?.keys().eq([&again[0]]), "taken off");
    Ok(())
}

/// One in generic mode beside one in native mode takes nothing from it, and its note says so.
#[test]
fn modes_do_not_mix() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    fixture
        .namespace
        .ip("link add eth1 type veth peer name peer1")?;
    let (mut plane, _) = fixture.open()?;
    plane.set_interfaces(vec![
        on("eth0", AttachMode::Native),
        on("eth1", AttachMode::Generic),
    ]);
    let attachments = fixture.namespace.run(|| plane.activate())?;
    assert!(exits(&fixture)?.keys().eq([&attachments[0].index]));
    assert_eq!(attachments[0].note, "");
    assert!(attachments[1].note.contains("drop_wrong_interface"));
    Ok(())
}
