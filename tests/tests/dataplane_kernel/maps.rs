//! What the trait promises of each map.

use crate::fixture::{Fixture, address, fill, web, www};
use anyhow::Result;
use aya::maps::{Array, ArrayOfMaps, Map, MapData, PerCpuArray, PerCpuValues};
use lb_common::{
    backend::{BackendEntry, NextHop},
    limits::SLOTS,
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
    stats::Counter,
    verdict::Verdict,
};
use lb_userspace::dataplane::{Adoption, AttachMode, AyaDataPlane, DataPlane, Installed};

/// The map of this name in the first generation, opened as another process would.
fn pinned(fixture: &Fixture, name: &str) -> Result<Map> {
    let path = fixture.session.pins().join("maps-7-1").join(name);
    Ok(Map::from_map_data(MapData::from_pin(path)?)?)
}

#[test]
fn what_is_written_is_what_the_kernel_has() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, adoption) = fixture.open()?;
    assert_eq!(adoption, Adoption::Fresh);
    assert_eq!(plane.installed()?, Installed::default());
    assert_eq!(
        (plane.service_capacity(), plane.backend_capacity()),
        (16, 64)
    );
    fill(&mut plane)?;

    let installed = plane.installed()?;
    assert_eq!(
        installed.services,
        [(www(), ServiceEntry { index: 5, flags: 0 })].into()
    );
    assert_eq!(installed.backends, [(1, web(1)), (63, web(2))].into());
    assert_eq!(installed.tables, [5]);

    let outer: ArrayOfMaps<_, Array<MapData, u64>> =
        ArrayOfMaps::try_from(pinned(&fixture, "SLOT_TABLES")?)?;
    let table = outer.get(&5, 0)?;
    let expected = |slot| match slot {
        0 => Slot::steady(1),
        777 => Slot::moved(63, 1, false),
        65_536 => Slot::steady(63),
        _ => Slot::EMPTY,
    };
    let read = plane.read_slots(5)?;
    assert_eq!(read.len(), SLOTS as usize);
    for slot in 0..SLOTS {
        assert_eq!(table.get(&slot, 0)?, expected(slot).0, "slot {slot}");
        assert_eq!(read[slot as usize], expected(slot), "slot {slot}");
    }
    let backends: Array<_, BackendEntry> = Array::try_from(pinned(&fixture, "BACKENDS")?)?;
    assert_eq!(backends.get(&63, 0)?, web(2).sealed());

    let moved = BackendEntry {
        next_hop: NextHop::default(),
        mtu: 9000,
        ..web(2)
    };
    plane.write_backend(63, &moved)?;
    assert_eq!(backends.get(&63, 0)?, moved.sealed());
    Ok(())
}

#[test]
fn removals_leave_nothing_and_can_be_repeated() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    fill(&mut plane)?;
    for _ in 0..2 {
        plane.remove_service(&www())?;
        plane.remove_service(&ServiceKey::of_address(www().address))?;
        plane.remove_table(5)?;
        plane.write_backend(1, &BackendEntry::default())?;
        plane.write_backend(63, &BackendEntry::default())?;
    }
    assert_eq!(plane.installed()?, Installed::default());

    plane.create_tables(&[5])?;
    plane.store_slots(5, &[(1, Slot::steady(1))])?;
    plane.create_tables(&[5])?;
    assert_eq!(
        plane.read_slots(5)?[1],
        Slot::steady(1),
        "creating a table that exists changes nothing"
    );
    plane.remove_table(5)?;
    plane.create_tables(&[5])?;
    assert_eq!(plane.read_slots(5)?[1], Slot::EMPTY, "a new table is empty");
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    plane.create_tables(&[0])?;
    for (place, result) in [
        ("backend index 0", plane.write_backend(0, &web(1))),
        ("backend index 64", plane.write_backend(64, &web(1))),
        ("service index 16", plane.create_tables(&[16])),
        (
            "service index 16",
            plane.put_service(
                &www(),
                &ServiceEntry {
                    index: 16,
                    flags: 0,
                },
            ),
        ),
        (
            "service index 3 has no slot table",
            plane.store_slots(3, &[]),
        ),
        (
            "service index 3 has no slot table",
            plane.read_slots(3).map(drop),
        ),
        (
            "slot 65537",
            plane.store_slots(0, &[(0, Slot::steady(1)), (65_537, Slot::steady(1))]),
        ),
        ("service 16", plane.service_counter(16).map(drop)),
        ("backend 64", plane.reset_backend_counter(64)),
    ] {
        let message = format!("{:#}", result.expect_err(place));
        assert!(message.contains(place), "{message}");
    }
    assert_eq!(
        plane.installed()?,
        Installed {
            tables: vec![0],
            ..Installed::default()
        }
    );
    assert_eq!(
        plane.read_slots(0)?[0],
        Slot::EMPTY,
        "all slots of a call are checked before one is stored"
    );

    let key = |port| ServiceKey::new(address("10.0.0.1"), 6, port);
    // As many again as services: each may have an address of its own.
    for port in 0..32 {
        plane.put_service(
            &key(port),
            &ServiceEntry {
                index: u32::from(port) % 16,
                flags: 0,
            },
        )?;
    }
    let full = plane
        .put_service(&key(32), &ServiceEntry::default())
        .expect_err("the map is full");
    assert!(
        format!("{full:#}").contains("room for 16 services"),
        "{full:#}"
    );
    Ok(())
}

#[test]
fn counters_are_summed_over_cpus_and_reset_one_by_one() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)? as u64;
    let sum = cpus * (cpus - 1) / 2;
    let counters = || {
        PerCpuValues::try_from(
            (0..cpus)
                .map(|n| Counter {
                    packets: n,
                    bytes: 100 * n,
                })
                .collect::<Vec<_>>(),
        )
    };
    for map in ["SERVICE_STATS", "BACKEND_STATS"] {
        let mut stats: PerCpuArray<_, Counter> = PerCpuArray::try_from(pinned(&fixture, map)?)?;
        stats.set(1, counters()?, 0)?;
        stats.set(2, counters()?, 0)?;
    }
    let mut verdicts: PerCpuArray<_, u64> = PerCpuArray::try_from(pinned(&fixture, "VERDICTS")?)?;
    let number = Verdict::DropNoBackend as u32;
    verdicts.set(
        number,
        PerCpuValues::try_from((0..cpus).collect::<Vec<_>>())?,
        0,
    )?;

    let expected = Counter {
        packets: sum,
        bytes: 100 * sum,
    };
    plane.reset_service_counter(2)?;
    plane.reset_backend_counter(2)?;
    assert_eq!(
        (plane.service_counter(1)?, plane.service_counter(2)?),
        (expected, Counter::default())
    );
    assert_eq!(
        (plane.backend_counter(1)?, plane.backend_counter(2)?),
        (expected, Counter::default())
    );
    // A service is counted for as long as it has a table, and what it had been counted for stays.
    let counted = |plane: &mut AyaDataPlane| -> Result<u64> {
        let counts = plane.verdicts()?;
        assert_eq!(counts.len(), Verdict::COUNT as usize);
        assert_eq!(counts[number as usize], sum);
        let forwarded = counts[Verdict::Forwarded as usize];
        assert_eq!(counts.iter().sum::<u64>(), sum + forwarded);
        Ok(forwarded)
    };
    assert_eq!(counted(&mut plane)?, sum);
    plane.create_tables(&[1])?;
    assert_eq!(counted(&mut plane)?, 2 * sum);
    plane.remove_table(1)?;
    assert_eq!(counted(&mut plane)?, 2 * sum);
    assert_eq!(plane.service_counter(1)?, Counter::default());
    plane.reset_service_counter(1)?;
    assert_eq!(counted(&mut plane)?, 2 * sum);
    Ok(())
}
