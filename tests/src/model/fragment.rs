//! Fragments: the later ones of a datagram go where the first one went, for half a minute.

use super::{
    Model, Way,
    bytes::{self, Address},
    parse::Ip,
};
use lb_common::{
    fragment::{FragmentEntry, FragmentKey},
    verdict::Verdict,
};
use std::collections::{BTreeMap, HashMap};

/// Seconds for which a first fragment is remembered.
const REMEMBERED: u32 = 30;

/// What the fragments of a datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Datagram {
    source: Address,
    destination: Address,
    id: u32,
    /// IPv4 only.
    protocol: u8,
}

impl Datagram {
    fn of(ip: &Ip) -> Self {
        Self {
            source: ip.source,
            destination: ip.destination,
            id: ip.datagram,
            protocol: if ip.four { ip.protocol } else { 0 },
        }
    }

    /// As it is in the program's map.
    fn of_key(key: &FragmentKey) -> Self {
        let destination = bytes::address(&key.destination);
        Self {
            source: bytes::address(&key.source),
            destination,
            id: if bytes::is_v4(&destination) {
                u16::from_be(key.id as u16).into()
            } else {
                u32::from_be(key.id)
            },
            protocol: key.protocol as u8,
        }
    }
}

/// What is known of fragments.
pub type Fragments = HashMap<Datagram, FragmentEntry>;

impl Model {
    /// Replaces what is known of fragments.
    pub fn set_fragments(&mut self, fragments: &BTreeMap<FragmentKey, FragmentEntry>) {
        let all = fragments.iter();
        self.fragments = all
            .map(|(key, entry)| (Datagram::of_key(key), *entry))
            .collect();
    }

    /// What is different in the program's map of fragments, the moment aside by a second or two.
    pub fn differing_fragments(&self, real: &BTreeMap<FragmentKey, FragmentEntry>) -> Vec<String> {
        let mut differing = Vec::new();
        for (key, entry) in real {
            let expected = self.fragments.get(&Datagram::of_key(key));
            let same = expected.is_some_and(|expected| {
                let at_once = FragmentEntry {
                    seen: entry.seen,
                    ..*expected
                };
                entry.seen.abs_diff(expected.seen) <= 2 && at_once == *entry
            });
            if !same {
                differing.push(format!("{key:?}: {entry:?} instead of {expected:?}"));
            }
        }
        let (is, should) = (real.len(), self.fragments.len());
        if is < should {
            differing.push(format!("{is} datagrams instead of {should}"));
        }
        differing
    }

    /// The way of a later fragment.
    pub(super) fn way_of_later(&self, ip: &Ip, now: u32) -> Result<Way, Verdict> {
        if self.address(&ip.destination).is_none() {
            return Err(Verdict::PassFragment);
        }
        let known = self.fragments.get(&Datagram::of(ip));
        let known = known.filter(|entry| entry.seen + REMEMBERED >= now);
        let entry = known.ok_or(Verdict::DropFragment)?;
        if entry.backend == 0 {
            return Err(Verdict::PassFragment);
        }
        let backend = self.backends.get(&entry.backend);
        let same = backend.is_some_and(|backend| backend.generation() == Ok(entry.generation));
        if !same {
            return Err(Verdict::DropFragment);
        }
        Ok(Way {
            service: entry.service,
            owner: entry.backend,
            second: 0,
            hash: entry.hash,
        })
    }

    /// What becomes of a first fragment that has no way, because of what is true of whole packets under this verdict.
    pub(super) fn first_without_way(&mut self, ip: &Ip, verdict: Verdict, now: u32) -> Verdict {
        let ours = self.address(&ip.destination).is_some();
        match verdict {
            Verdict::PassTruncated if ours => Verdict::DropShortFragment,
            Verdict::PassNoService if ours => {
                let nobody = FragmentEntry {
                    seen: now,
                    ..FragmentEntry::default()
                };
                self.fragments.insert(Datagram::of(ip), nobody);
                Verdict::PassFragment
            }
            Verdict::PassTruncated | Verdict::PassNoService => Verdict::PassFragment,
            other => other,
        }
    }

    /// Remembers where a first fragment went.
    pub(super) fn record(&mut self, ip: &Ip, way: &Way, now: u32) {
        let backend = self.backends.get(&way.owner);
        if let Some(Ok(generation)) = backend.map(|backend| backend.generation()) {
            let entry = FragmentEntry {
                hash: way.hash,
                backend: way.owner,
                generation,
                service: way.service,
                seen: now,
            };
            self.fragments.insert(Datagram::of(ip), entry);
        }
    }
}
