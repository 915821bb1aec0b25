//! The interfaces that packets can be redirected to: a device map for the kernel, and the MAC of each for the program.
//!
//! **Invariant.** An interface in one map and not in the other is none to redirect to: the program drops what should leave
//! there, with its reason. The kernel itself takes an interface that is removed out of the device map.

use anyhow::{Context as _, Result};
use aya::maps::{
    HashMap, Map, MapData, MapError,
    xdp::{DevMapHash, XdpMapError},
};
use lb_common::{
    backend::NextHop,
    maps::{EXIT_MACS, EXITS},
};
use std::collections::{BTreeMap, BTreeSet};

/// Interfaces to redirect to, by index, with their own MACs.
pub(super) type Wanted = BTreeMap<u32, [u8; 6]>;

/// Both maps.
pub(super) struct Exits {
    devices: DevMapHash<MapData>,
    macs: HashMap<MapData, u32, NextHop>,
}

impl Exits {
    /// Takes over the maps with what is in them.
    pub(super) fn open(devices: Map, macs: Map) -> Result<Self> {
        Ok(Self {
            devices: DevMapHash::try_from(devices)?,
            macs: HashMap::try_from(macs)?,
        })
    }

    /// Makes the maps hold these interfaces and no others.
    pub(super) fn set(&mut self, wanted: &Wanted) -> Result<()> {
        let macs: BTreeMap<u32, NextHop> = self
            .macs
            .iter()
            .collect::<Result<_, _>>()
            .with_context(|| format!("cannot read map {EXIT_MACS}"))?;
        let devices: BTreeSet<u32> = self
            .devices
            .keys()
            .collect::<Result<_, _>>()
            .with_context(|| format!("cannot read map {EXITS}"))?;
        for index in macs.keys().filter(|index| !wanted.contains_key(index)) {
            gone(self.macs.remove(index))
                .with_context(|| format!("cannot remove interface {index} from {EXIT_MACS}"))?;
        }
        for index in devices.iter().filter(|index| !wanted.contains_key(index)) {
            let removed = self.devices.remove(*index);
            gone(removed)
                .with_context(|| format!("cannot remove interface {index} from {EXITS}"))?;
        }
        for (index, mac) in wanted {
            let own = NextHop::new(*mac);
            if macs.get(index) != Some(&own) {
                self.macs
                    .insert(index, own, 0)
                    .with_context(|| format!("cannot write interface {index} to {EXIT_MACS}"))?;
            }
            if !devices.contains(index) {
                self.add(*index)?;
            }
        }
        Ok(())
    }

    /// An interface that is gone by now is no error: the next look finds that too.
    fn add(&mut self, index: u32) -> Result<()> {
        match self.devices.insert(index, index, None, 0) {
            Err(XdpMapError::MapError(MapError::SyscallError(error)))
                if error.io_error.raw_os_error() == Some(libc::EINVAL) =>
            {
                Ok(())
            }
            result => result.with_context(|| format!("cannot write interface {index} to {EXITS}")),
        }
    }
}

/// What is gone already needs no removal.
fn gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        result => result,
    }
}
