//! The program on interfaces that come, go, refuse and are taken.

use crate::fixture::{Fixture, fill, on};
use anyhow::Result;
use lb_tests::xdp::{HostProgram, link_on};
use lb_userspace::dataplane::{Adoption, AttachMode, Settings, XdpMode, aya};

#[test]
fn each_mode_is_attached_as_configured_and_changed_when_configured_anew() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    let not_yet = fixture.attachment(&plane);
    assert_eq!(
        (not_yet.mode, not_yet.note.as_str()),
        (None, "not attached yet")
    );
    for (attach, mode) in [
        (AttachMode::Auto, XdpMode::Native),
        (AttachMode::Generic, XdpMode::Generic),
        (AttachMode::Native, XdpMode::Native),
        (AttachMode::Generic, XdpMode::Generic),
    ] {
        plane.set_interfaces(vec![on("eth0", attach)]);
        let attachment = fixture.activate(&mut plane);
        assert_eq!(
            (attachment.mode, attachment.note.as_str()),
            (Some(mode), ""),
            "{attach:?}"
        );
        assert!(attachment.program_id != 0 && attachment.index != 0);
    }
    let generic = link_on(&fixture.namespace, "eth0")?;
    plane.set_interfaces(vec![on("eth0", AttachMode::Auto)]);
    let kept = fixture.activate(&mut plane);
    assert_eq!(kept.mode, Some(XdpMode::Generic));
    assert!(
        kept.note.contains("kept from an earlier lbd"),
        "{}",
        kept.note
    );
    assert_eq!(
        link_on(&fixture.namespace, "eth0")?,
        generic,
        "auto does not interrupt what works"
    );
    Ok(())
}

#[test]
fn auto_falls_back_to_generic_and_says_why() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    // The loopback driver has no native XDP.
    plane.set_interfaces(vec![on("lo", AttachMode::Auto)]);
    for _ in 0..2 {
        let attachment = fixture.activate(&mut plane);
        assert_eq!(attachment.mode, Some(XdpMode::Generic));
        assert!(
            attachment
                .note
                .contains("no native XDP on lo: its driver does not offer it"),
            "{}",
            attachment.note
        );
    }
    // Configured native, it keeps what it has rather than nothing.
    let link = link_on(&fixture.namespace, "lo")?;
    plane.set_interfaces(vec![on("lo", AttachMode::Native)]);
    let attachment = fixture.activate(&mut plane);
    assert_eq!(attachment.mode, Some(XdpMode::Generic));
    assert!(
        attachment
            .note
            .contains("stays in generic mode: no native XDP on lo"),
        "{}",
        attachment.note
    );
    let kept = link_on(&fixture.namespace, "lo")?;
    assert_ne!(kept, link);
    let attachment = fixture.activate(&mut plane);
    assert!(
        attachment.note.contains("no native XDP on lo"),
        "{}",
        attachment.note
    );
    assert_eq!(
        link_on(&fixture.namespace, "lo")?,
        kept,
        "the refusal is remembered, traffic flows on"
    );
    Ok(())
}

#[test]
fn native_alone_is_refused_where_the_mtu_is_too_large() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Native)? else {
        return Ok(());
    };
    // The program for jumbo frames is loaded where there are some; this one is loaded before.
    let (mut plane, _) = fixture.open()?;
    for interface in ["eth0", "peer"] {
        fixture
            .namespace
            .ip(&format!("link set {interface} mtu 9000"))?;
    }
    let attachment = fixture.activate(&mut plane);
    assert_eq!((attachment.mode, attachment.program_id), (None, 0));
    assert!(
        attachment.note.contains("MTU") && attachment.note.contains("ip link set mtu"),
        "{}",
        attachment.note
    );
    for interface in ["eth0", "peer"] {
        fixture
            .namespace
            .ip(&format!("link set {interface} mtu 1500"))?;
    }
    let attachment = fixture.activate(&mut plane);
    assert_eq!(
        (attachment.mode, attachment.note.as_str()),
        (Some(XdpMode::Native), ""),
        "it is tried again"
    );
    Ok(())
}

#[test]
fn an_interface_that_comes_back_is_attached_again() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    fill(&mut plane)?;
    let first = fixture.activate(&mut plane);
    fixture.namespace.ip("link del eth0")?;
    let gone = fixture.attachment(&plane);
    assert_eq!((gone.index, gone.mode, gone.program_id), (0, None, 0));
    assert!(
        gone.note
            .starts_with("no interface eth0; interfaces here: lo"),
        "{}",
        gone.note
    );

    fixture.add_eth0()?;
    let second = fixture.activate(&mut plane);
    assert_ne!(second.index, first.index);
    assert_eq!(
        (second.mode, second.program_id, second.note.as_str()),
        (Some(XdpMode::Native), first.program_id, "")
    );
    assert_eq!(
        fixture.pins(),
        [format!("link-{}", second.index), "maps-7-1".into()]
    );

    // The same index again: the link that is pinned for it is another interface's.
    fixture.namespace.ip("link del eth0")?;
    fixture.namespace.ip(&format!(
        "link add eth0 index {} type veth peer name peer",
        second.index
    ))?;
    let third = fixture.activate(&mut plane);
    assert_eq!(
        (third.index, third.mode, third.note.as_str()),
        (second.index, Some(XdpMode::Native), "")
    );
    assert!(link_on(&fixture.namespace, "eth0")?.is_some());
    Ok(())
}

#[test]
fn maps_are_adopted_though_their_interface_is_gone() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    fill(&mut plane)?;
    fixture.activate(&mut plane);
    drop(plane);
    fixture.namespace.ip("link del eth0")?;
    fixture.add_eth0()?;
    let (mut plane, adoption) = fixture.open()?;
    assert_eq!(
        adoption,
        Adoption::Reused {
            services: 1,
            backends: 2
        }
    );
    let attachment = fixture.activate(&mut plane);
    assert_eq!(
        (attachment.mode, attachment.note.as_str()),
        (Some(XdpMode::Native), "")
    );
    assert_eq!(
        fixture.pins().len(),
        2,
        "the stale link is removed: {:?}",
        fixture.pins()
    );
    Ok(())
}

#[test]
fn an_interface_that_is_no_longer_configured_is_left() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    fixture.activate(&mut plane);
    plane.set_interfaces(vec![on("peer", AttachMode::Auto)]);
    assert_eq!(fixture.activate(&mut plane).mode, Some(XdpMode::Native));
    assert_eq!(link_on(&fixture.namespace, "eth0")?, None);
    assert!(link_on(&fixture.namespace, "peer")?.is_some());
    Ok(())
}

#[test]
fn the_program_of_somebody_else_is_named_and_left_alone() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    let foreign = HostProgram::decapsulator(&fixture.session.pins())?;
    foreign.attach(&fixture.namespace, "eth0")?;
    let attachment = fixture.activate(&mut plane);
    assert_eq!((attachment.mode, attachment.program_id), (None, 0));
    assert!(
        attachment
            .note
            .contains("another XDP program is on eth0: id "),
        "{}",
        attachment.note
    );
    assert!(
        attachment.note.contains("name \"decap\""),
        "{}",
        attachment.note
    );
    assert!(
        attachment.note.contains("ip link set dev eth0 xdpdrv off"),
        "{}",
        attachment.note
    );

    fixture.namespace.ip("link set dev eth0 xdpdrv off")?;
    assert_eq!(fixture.activate(&mut plane).mode, Some(XdpMode::Native));
    Ok(())
}

#[test]
fn another_guideway_is_named_with_the_way_to_take_it_down() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Auto)? else {
        return Ok(());
    };
    let (mut plane, _) = fixture.open()?;
    fixture.activate(&mut plane);
    let second = Settings {
        pin_directory: fixture.session.pins().join("second"),
        ..fixture.settings.clone()
    };
    let note = fixture.namespace.run(|| -> Result<String> {
        let (mut second, _) = aya::open(&second)?;
        Ok(second.activate()?.remove(0).note)
    })?;
    assert!(
        note.contains("lbd detach --config") && !note.contains("ip link set"),
        "{note}"
    );
    Ok(())
}

/// With jumbo frames the program that takes several buffers is loaded; the ordinary one takes its place once they are gone.
#[test]
fn jumbo_frames_are_taken_natively() -> Result<()> {
    let Some(fixture) = Fixture::new(AttachMode::Native)? else {
        return Ok(());
    };
    let grow = |mtu: u32| {
        for interface in ["eth0", "peer"] {
            let set = format!("link set {interface} mtu {mtu}");
            fixture.namespace.ip(&set)?;
        }
        anyhow::Ok(())
    };
    grow(9_000)?;
    let (mut plane, _) = fixture.open()?;
    let jumbo = fixture.activate(&mut plane);
    assert_eq!(
        (jumbo.mode, jumbo.note.as_str()),
        (Some(XdpMode::Native), "")
    );
    let link = link_on(&fixture.namespace, "eth0")?;
    drop(plane);
    grow(1_500)?;
    let (mut plane, _) = fixture.open()?;
    let ordinary = fixture.activate(&mut plane);
    assert_eq!(
        (ordinary.mode, ordinary.note.as_str()),
        (Some(XdpMode::Native), "")
    );
    assert_ne!(ordinary.program_id, jumbo.program_id);
    assert_eq!(link_on(&fixture.namespace, "eth0")?, link);
    Ok(())
}
