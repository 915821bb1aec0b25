//! What the trait promises of the flow table.

use crate::fixture::{Fixture, flow, pinned_flows, scan};
use anyhow::Result;
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use lb_common::flow_table::{FlowEvent, FlowKey};
use lb_userspace::dataplane::{AttachMode, DataPlane};
use std::collections::BTreeMap;

#[test]
fn flows_are_shown_and_removed() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    assert_eq!(plane.flow_capacity(), 1_024);
    assert_eq!(scan(&mut plane)?, BTreeMap::new());
    let pinned = pinned_flows(&fixture, "maps-7-1")?;
    let mut expected: BTreeMap<_, _> = (0..500).map(flow).collect();
    for (key, entry) in &expected {
        pinned.insert(key, entry)?;
    }
    assert_eq!(scan(&mut plane)?, expected);

    let keys: Vec<FlowKey> = (450..550).map(|number| flow(number).0).collect();
    assert_eq!(plane.remove_flows(&keys)?, 50);
    assert_eq!(plane.remove_flows(&keys)?, 0);
    expected.retain(|key, _| !keys.contains(key));
    assert_eq!(scan(&mut plane)?, expected);
    Ok(())
}

#[test]
fn events_are_summed_over_cpus() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    assert_eq!(plane.flow_events()?, [0; FlowEvent::COUNT as usize]);
    let path = fixture.session.pins().join("maps-7-1/FLOW_EVENTS");
    let map = Map::from_map_data(MapData::from_pin(path)?)?;
    let mut events: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)? as u64;
    for event in FlowEvent::ALL {
        let counts = vec![10 + event as u64; cpus as usize];
        events.set(event as u32, PerCpuValues::try_from(counts)?, 0)?;
    }
    let expected: Vec<u64> = (10..10 + u64::from(FlowEvent::COUNT))
        .map(|count| count * cpus)
        .collect();
    assert_eq!(plane.flow_events()?, expected);
    Ok(())
}
