//! What an earlier daemon left: which maps the attached program uses, and whether the new program can use them too.
//!
//! **Invariant.** Maps are adopted only when a pinned link's program uses them at this moment, and when all their
//! shapes are as wanted. Everything else that lies in the pin directory is a left-over.

use super::{
    carry::Carried,
    interfaces,
    pins::{Generation, PinDirectory},
    shape::{Shape, Wanted},
    slots, sys,
};
use anyhow::{Result, ensure};
use aya::{
    maps::{ArrayOfMaps, Map, MapData, MapInfo},
    programs::{ProgramInfo, loaded_links, loaded_programs},
};
use lb_common::maps;
use std::{collections::BTreeSet, os::fd::AsFd as _, path::Path};

/// What opening the data plane found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// No program with maps was attached; the maps are new.
    Fresh,
    /// The attached program's maps go on being used, with what is in them.
    Reused {
        /// Services in them.
        services: usize,
        /// Backend entries in use in them.
        backends: usize,
    },
    /// The attached program's maps do not fit. It goes on forwarding with them until
    /// [`AyaDataPlane::activate`](super::aya::AyaDataPlane::activate).
    Replaced {
        /// Each difference in words, such as `BACKENDS: array of 16384 entries, ... -> array of 1024 entries, ...`.
        differences: Vec<String>,
        /// What the new maps have from the old ones: everything but the counters, or nothing, and why.
        carried: Result<Carried, String>,
    },
}

/// The maps that an earlier daemon left, seen with the new program's eyes.
pub(super) enum Found {
    /// None that are in use.
    Nothing,
    /// Maps that the new program can use.
    Fitting(Generation),
    /// Maps that it cannot use, and why.
    Differing(Generation, Vec<String>),
}

/// Refuses pins that hold a program on an interface of another network namespace: from here its link would look like
/// one whose interface is gone. A link is of this namespace when the interface of its index has its program, and of none
/// when the kernel says that its interface is gone.
pub(super) fn check_namespace(pins: &PinDirectory) -> Result<()> {
    let present = interfaces::list()?;
    for pinned in pins.links()? {
        let Some(link) = pins.link(pinned)? else {
            continue;
        };
        let Some(index) = sys::link_interface(link.as_fd())? else {
            continue;
        };
        let program = Some(sys::link_program(link.as_fd())?);
        let here = present.iter().any(|interface| {
            interface.index == index && interface.xdp.map(|xdp| xdp.program) == program
        });
        ensure!(
            here,
            "the pin directory {} holds an XDP program on interface index {index} of another network namespace; \
             run lbd and lbd detach there, configure another pin_directory here, or take the program down with rm {}",
            pins.path().display(),
            pins.link_path(pinned).display(),
        );
    }
    Ok(())
}

/// Looks for the newest generation of maps in use.
pub(super) fn find(pins: &PinDirectory, wanted: &Wanted) -> Result<Found> {
    let used = used_maps(pins)?;
    let Some(generation) = pins
        .generations()?
        .into_iter()
        .rfind(|generation| in_use(generation, &used))
    else {
        return Ok(Found::Nothing);
    };
    let differences = differences(&generation, wanted)?;
    Ok(if differences.is_empty() {
        Found::Fitting(generation)
    } else {
        Found::Differing(generation, differences)
    })
}

/// Removes every generation but `keep` that no attached program uses: half-made ones, and those whose programs have
/// been replaced.
pub(super) fn sweep(pins: &PinDirectory, keep: &Generation) -> Result<()> {
    let others: Vec<_> = pins
        .generations()?
        .into_iter()
        .filter(|generation| generation != keep)
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    let used = used_maps(pins)?;
    for generation in others
        .iter()
        .filter(|generation| !in_use(generation, &used))
    {
        pins.remove_generation(generation)?;
        tracing::info!(maps = %generation.path.display(), "maps that no program uses any more are removed");
    }
    Ok(())
}

/// The loaded program with this id, unless it has gone meanwhile.
pub(super) fn program(id: u32) -> Option<ProgramInfo> {
    loaded_programs()
        .flatten()
        .find(|program| program.id() == id)
}

/// Whether a BPF link, pinned anywhere or held by any process, has this program attached.
pub(super) fn has_link(program: u32) -> bool {
    loaded_links()
        .flatten()
        .any(|link| link.program_id() == program)
}

/// Ids of the maps that the programs of pinned links use.
fn used_maps(pins: &PinDirectory) -> Result<BTreeSet<u32>> {
    let mut used = BTreeSet::new();
    for interface in pins.links()? {
        let Some(link) = pins.link(interface)? else {
            continue;
        };
        let Some(program) = program(sys::link_program(link.as_fd())?) else {
            continue;
        };
        used.extend(program.map_ids()?.unwrap_or_default());
    }
    Ok(used)
}

fn in_use(generation: &Generation, used: &BTreeSet<u32>) -> bool {
    maps::ALL
        .iter()
        .filter_map(|name| pinned(generation, name))
        .any(|map| used.contains(&map.id()))
}

fn pinned(generation: &Generation, map: &str) -> Option<MapInfo> {
    MapInfo::from_pin(generation.path.join(map)).ok()
}

fn differences(generation: &Generation, wanted: &Wanted) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    if generation.layout != maps::LAYOUT_VERSION {
        differences.push(format!(
            "layout version {} -> {}",
            generation.layout,
            maps::LAYOUT_VERSION
        ));
    }
    for (name, new) in &wanted.maps {
        match pinned(generation, name)
            .map(|info| Shape::of(&info))
            .transpose()?
        {
            None => differences.push(format!("{name}: missing -> {new}")),
            Some(old) if old != *new => differences.push(format!("{name}: {old} -> {new}")),
            Some(_) => {}
        }
    }
    if let Some(old) = slot_table(&generation.path.join(maps::SLOT_TABLES))?
        && old != wanted.slot_table
    {
        differences.push(format!("slot table: {old} -> {}", wanted.slot_table));
    }
    Ok(differences)
}

/// Shape of the first slot table in the outer map that is pinned at `path`. All have the same: the kernel sees to it.
fn slot_table(path: &Path) -> Result<Option<Shape>> {
    let Ok(outer) = MapData::from_pin(path) else {
        return Ok(None);
    };
    let Ok(outer) = ArrayOfMaps::try_from(Map::from_map_data(outer)?) else {
        return Ok(None);
    };
    for index in 0..outer.len() {
        if let Some(table) = slots::get(&outer, index)? {
            return Shape::of(&table.info()?).map(Some);
        }
    }
    Ok(None)
}
