//! Daemons that end in any way, and others that take over what they left.

use crate::fixture::{Fixture, fill, on};
use anyhow::Result;
use lb_common::slot::Slot;
use lb_tests::xdp::link_on;
use lb_userspace::dataplane::{Adoption, AttachMode, DataPlane, Installed, Settings, aya};
use std::fs;

#[test]
fn a_new_daemon_takes_over_maps_and_link_and_replaces_the_program() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Native)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    fill(&mut plane)?;
    let before = fixture.activate(&mut plane);
    let (installed, slots) = (plane.installed()?, plane.read_slots(5)?);
    let link = link_on(&fixture.namespace, "eth0")?;
    drop(plane);
    assert_eq!(
        link_on(&fixture.namespace, "eth0")?,
        link,
        "the link outlives the daemon"
    );
    assert!(link.is_some());

    let (mut plane, adoption) = fixture.open()?;
    assert_eq!(
        adoption,
        Adoption::Reused {
            services: 1,
            backends: 2
        }
    );
    assert_eq!(
        fixture.attachment(&plane),
        before,
        "opening changes nothing that is attached"
    );
    assert_eq!(
        (plane.installed()?, plane.read_slots(5)?),
        (installed, slots)
    );
    let after = fixture.activate(&mut plane);
    assert_ne!(after.program_id, before.program_id);
    assert_eq!(
        (after.index, after.mode, after.note.as_str()),
        (before.index, before.mode, "")
    );
    assert_eq!(
        link_on(&fixture.namespace, "eth0")?,
        link,
        "the program was replaced in place"
    );

    plane.store_slots(5, &[(1, Slot::steady(63))])?;
    assert_eq!(
        plane.read_slots(5)?[1],
        Slot::steady(63),
        "adopted tables can be written"
    );
    assert_eq!(
        fixture.activate(&mut plane),
        after,
        "activating again changes nothing"
    );
    assert_eq!(fixture.pins().len(), 2, "{:?}", fixture.pins());
    Ok(())
}

#[test]
fn maps_of_other_sizes_are_replaced_only_when_the_new_ones_are_filled() -> Result<()> {
    let Some(mut fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    fill(&mut plane)?;
    let before = fixture.activate(&mut plane);
    let link = link_on(&fixture.namespace, "eth0")?;
    drop(plane);

    fixture.settings = Settings {
        backends: 128,
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
    assert!(carried.is_ok(), "{carried:?}");
    assert_eq!(differences.len(), 3, "{differences:?}");
    assert!(
        differences[0].starts_with("BACKENDS: array of 64 entries"),
        "{differences:?}"
    );
    assert!(
        differences[0].contains("-> array of 128 entries"),
        "{differences:?}"
    );
    assert!(
        differences[1].starts_with("BACKEND_STATS: per-CPU array of 64 entries"),
        "{differences:?}"
    );
    assert_eq!(
        fixture.attachment(&plane),
        before,
        "the old program forwards on"
    );
    assert!(
        fixture.pins().contains(&"maps-7-1".into()),
        "with its maps: {:?}",
        fixture.pins()
    );

    let after = fixture.activate(&mut plane);
    assert_ne!(after.program_id, before.program_id);
    assert_eq!(link_on(&fixture.namespace, "eth0")?, link);
    assert_eq!(
        fixture.pins(),
        [format!("link-{}", after.index), "maps-7-2".into()]
    );
    drop(plane);
    assert_eq!(
        fixture.open()?.1,
        Adoption::Reused {
            services: 1,
            backends: 2
        }
    );
    Ok(())
}

#[test]
fn a_daemon_that_died_before_it_activated_leaves_the_old_maps_in_charge() -> Result<()> {
    let Some(mut fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    fill(&mut plane)?;
    fixture.activate(&mut plane);
    drop(plane);
    let old = fixture.settings.clone();
    fixture.settings = Settings {
        services: 32,
        ..old.clone()
    };
    assert!(matches!(fixture.open()?.1, Adoption::Replaced { .. }));
    // Another one died while it made its maps.
    fs::create_dir(fixture.session.pins().join("maps-7-9"))?;

    fixture.settings = old;
    let (mut plane, adoption) = fixture.open()?;
    assert_eq!(
        adoption,
        Adoption::Reused {
            services: 1,
            backends: 2
        }
    );
    let index = fixture.activate(&mut plane).index;
    assert_eq!(
        fixture.pins(),
        [format!("link-{index}"), "maps-7-1".into()],
        "left-overs are removed"
    );
    Ok(())
}

#[test]
fn maps_that_no_program_uses_are_removed() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    fill(&mut plane)?;
    drop(plane);
    let (mut plane, adoption) = fixture.open()?;
    assert_eq!(
        (adoption, plane.installed()?),
        (Adoption::Fresh, Installed::default())
    );
    assert_eq!(fixture.pins(), ["maps-7-2"]);
    Ok(())
}

#[test]
fn a_second_daemon_is_refused_and_told_who_runs() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let running = fixture.open()?;
    for refused in [fixture.open().map(drop), fixture.detach().map(drop)] {
        let message = format!("{:#}", refused.expect_err("the pin directory is in use"));
        assert!(
            message.contains(&format!("(pid {})", std::process::id())),
            "{message}"
        );
        assert!(message.contains("stop that first"), "{message}");
    }
    drop(running);
    fixture.open()?;
    Ok(())
}

#[test]
fn detach_leaves_nothing_behind() -> Result<()> {
    let Some(mut fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    assert_eq!(fixture.detach()?, [""; 0], "nothing to do is no error");
    fixture.settings.interfaces = vec![on("eth0", AttachMode::Auto), on("lo", AttachMode::Generic)];
    let (mut plane, _) = fixture.open()?;
    fill(&mut plane)?;
    fixture.namespace.run(|| plane.activate())?;
    assert!(
        link_on(&fixture.namespace, "eth0")?.is_some()
            && link_on(&fixture.namespace, "lo")?.is_some()
    );
    drop(plane);
    // What a crash may leave: the link of an interface that is gone, and a generation that was never finished.
    fixture.namespace.ip("link del eth0")?;
    fs::create_dir(fixture.session.pins().join("maps-7-7"))?;

    let done = fixture.detach()?.join("; ");
    assert!(done.contains("detached from lo"), "{done}");
    assert!(done.contains("which is gone"), "{done}");
    assert!(!fixture.session.pins().exists());
    assert_eq!(link_on(&fixture.namespace, "lo")?, None);
    Ok(())
}

#[test]
fn a_pin_directory_elsewhere_is_refused_with_the_mount_command() -> Result<()> {
    let Some(mut fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    fixture.settings.pin_directory = fixture.session.directory().join("pins");
    let error = aya::open(&fixture.settings)
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default();
    assert!(
        error.contains("is not on a BPF file system; mount one: mount -t bpf bpf /"),
        "{error}"
    );
    Ok(())
}

/// Both namespaces have an interface of the same index, each with an XDP program: only the program tells them apart.
#[test]
fn pins_of_another_network_namespace_are_left_alone() -> Result<()> {
    let (Some(fixture), Some(other)) = (
        Fixture::new(AttachMode::Auto)?,
        Fixture::new(AttachMode::Auto)?,
    ) else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    fill(&mut plane)?;
    let before = fixture.activate(&mut plane);
    drop(plane);
    let (mut elsewhere, _) = other.open()?;
    assert_eq!(other.activate(&mut elsewhere).index, before.index);
    let pins = fixture.pins();

    let open = other.namespace.run(|| aya::open(&fixture.settings).err());
    let detach = other
        .namespace
        .run(|| aya::detach(&fixture.settings.pin_directory).err());
    for refusal in [open, detach] {
        let refusal = format!("{:#}", refusal.expect("a refusal"));
        assert!(
            refusal.contains("of another network namespace"),
            "{refusal}"
        );
    }
    assert_eq!(fixture.pins(), pins);
    let (plane, _) = fixture.open()?;
    assert_eq!(fixture.attachment(&plane), before);
    drop(plane);

    // Once its interface is gone a link is nobody's.
    fixture.namespace.ip("link del eth0")?;
    let link = link_on(&other.namespace, "eth0")?;
    other
        .namespace
        .run(|| aya::detach(&fixture.settings.pin_directory))?;
    assert_eq!(link_on(&other.namespace, "eth0")?, link);
    assert_eq!(fixture.pins(), Vec::<String>::new());
    Ok(())
}
