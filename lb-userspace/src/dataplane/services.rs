//! The services map and the map of prefixes, as one: which of the two has an entry is in its key.

use super::buckets::Buckets;
use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{
        HashMap, Map, MapData, MapError,
        lpm_trie::{Key, LpmTrie},
    },
    sys::SyscallError,
};
use lb_common::service::{PrefixKey, ServiceEntry, ServiceKey};
use std::{collections::BTreeMap, io::ErrorKind, net::IpAddr};

type Prefixes = LpmTrie<MapData, PrefixKey, ServiceEntry>;

/// Both maps.
pub(super) struct Services {
    exact: Buckets,
    prefixes: Prefixes,
}

/// All entries of maps that a daemon has left; what ran before there were prefixes has no map of them.
pub(super) fn entries(
    services: Map,
    prefixes: Option<Map>,
) -> Result<BTreeMap<ServiceKey, ServiceEntry>> {
    let mut entries: BTreeMap<_, _> = if let Map::Array(_) = services {
        Buckets::open(&services)?.entries().collect()
    } else {
        // Up to layout version 3.
        let exact: HashMap<_, ServiceKey, ServiceEntry> = HashMap::try_from(services)?;
        let exact = exact.iter().collect::<Result<_, _>>();
        exact.context("cannot read the services map")?
    };
    if let Some(prefixes) = prefixes {
        add_prefixes(&Prefixes::try_from(prefixes)?, &mut entries)?;
    }
    Ok(entries)
}

fn add_prefixes(
    prefixes: &Prefixes,
    entries: &mut BTreeMap<ServiceKey, ServiceEntry>,
) -> Result<()> {
    for found in prefixes.iter() {
        let (key, entry) = found.context("cannot read the map of prefixes")?;
        entries.insert(ServiceKey::of_prefix(key.prefix_len(), &key.data()), entry);
    }
    Ok(())
}

impl Services {
    /// Takes over the maps with what is in them.
    pub(super) fn open(services: &Map, prefixes: Map) -> Result<Self> {
        Ok(Self {
            exact: Buckets::open(services)?,
            prefixes: Prefixes::try_from(prefixes)?,
        })
    }

    /// All entries.
    pub(super) fn entries(&self) -> Result<BTreeMap<ServiceKey, ServiceEntry>> {
        let mut entries = self.exact.entries().collect();
        add_prefixes(&self.prefixes, &mut entries)?;
        Ok(entries)
    }

    /// Writes an entry.
    pub(super) fn put(&mut self, key: &ServiceKey, entry: &ServiceEntry) -> Result<()> {
        let written = match key.in_prefixes() {
            None => self.exact.put(key, entry),
            Some((bits, inner)) => {
                let expected = ServiceEntry::prefix_flags(key.prefix);
                ensure!(
                    entry.flags & ServiceEntry::prefix_flags(u8::MAX) == expected,
                    "the entry of {} does not tell its length: this is a defect",
                    name(key)
                );
                self.put_prefix(&Key::new(bits, inner), entry)
            }
        };
        written.with_context(|| format!("cannot write {} to the services maps", name(key)))
    }

    /// The program looks for prefixes as long as any is counted.
    fn put_prefix(&mut self, key: &Key<PrefixKey>, entry: &ServiceEntry) -> Result<()> {
        let is_new = matches!(self.prefixes.get(key, 0), Err(MapError::KeyNotFound));
        if is_new {
            self.exact.count_other(1)?;
        }
        let written = self.prefixes.insert(key, entry, 0);
        if is_new && written.is_err() {
            self.exact.count_other(-1)?;
        }
        Ok(written?)
    }

    /// Removes an entry, if it is there.
    pub(super) fn remove(&mut self, key: &ServiceKey) -> Result<()> {
        let removed = match key.in_prefixes() {
            None => self.exact.remove(key),
            Some((bits, inner)) => self.remove_prefix(&Key::new(bits, inner)),
        };
        removed.with_context(|| format!("cannot remove {} from the services maps", name(key)))
    }

    fn remove_prefix(&mut self, key: &Key<PrefixKey>) -> Result<()> {
        match self.prefixes.remove(key) {
            Ok(()) => self.exact.count_other(-1),
            error => Ok(absent_is_fine(error)?),
        }
    }
}

/// What is not there any more need not be removed.
pub(super) fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::SyscallError(SyscallError { io_error, .. }))
            if io_error.kind() == ErrorKind::NotFound =>
        {
            Ok(())
        }
        result => result,
    }
}

/// A service as errors name it.
fn name(key: &ServiceKey) -> String {
    let mut address = IpAddr::from(key.address).to_string();
    if key.prefix > 0 {
        let before = if key.address.is_v4() { 96 } else { 0 };
        address = format!("{address}/{}", key.prefix.saturating_sub(before));
    }
    if key.is_of_address() {
        return format!("address {address}");
    }
    let port = u16::from_be(key.port);
    format!("service {address}, protocol {}, port {port}", key.protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_prefixes_as_they_are_written() {
        let key = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            ServiceKey::new(address.into(), 6, 80)
        };
        for (key, expected) in [
            (key("192.0.2.1"), "service 192.0.2.1, protocol 6, port 80"),
            (
                key("192.0.2.0").within(120),
                "service 192.0.2.0/24, protocol 6, port 80",
            ),
            (
                key("2001:db8::").within(64).its_address(),
                "address 2001:db8::/64",
            ),
        ] {
            assert_eq!(name(&key), expected);
        }
    }
}
