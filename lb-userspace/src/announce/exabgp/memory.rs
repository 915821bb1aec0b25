//! What `lbd exabgp` was told and what ExaBGP has taken of it. What was told is kept in a file, so that it is announced
//! again after ExaBGP (and this process with it) has been restarted, also while `lbd` is dead.
//!
//! After a reboot it is not: nobody knows yet whether the node balances.

use crate::{
    announce::{
        bgp::{Route, Routes},
        kept::Kept,
    },
    prefix::Prefix,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};
use tracing::warn;

/// What was told about a prefix, and what ExaBGP is known to announce.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    /// None: it is to be withdrawn, and ExaBGP has not said that it has done so.
    wanted: Option<Route>,
    /// None: nothing, as far as is known.
    announced: Option<Route>,
}

/// What the file says of each prefix that was told; none: to withdraw it.
type Told = BTreeMap<Prefix, Option<Route>>;

/// The memory.
#[derive(Debug)]
pub struct Memory {
    file: PathBuf,
    boot: String,
    entries: BTreeMap<Prefix, Entry>,
    /// Whether the file is not what it should be.
    stale: bool,
}

impl Memory {
    /// Reads the file. `boot`: the kernel's boot; what was told in another one is forgotten.
    pub fn read(file: PathBuf, boot: String) -> Self {
        let mut memory = Self {
            file,
            boot,
            entries: BTreeMap::new(),
            stale: false,
        };
        match Kept::<Told>::read(&memory.file) {
            Ok(Some(kept)) if kept.boot == memory.boot => {
                let entry = |wanted| Entry {
                    wanted,
                    announced: None,
                };
                let entries = kept.routes.into_iter();
                memory.entries = entries
                    .map(|(prefix, wanted)| (prefix, entry(wanted)))
                    .collect();
            }
            Ok(Some(_) | None) => {}
            Err(problem) => {
                warn!(%problem, file = %memory.file.display(), "what was announced before is not known");
            }
        }
        memory
    }

    /// Takes what is to be announced from now on; whether that differs from what was told before.
    pub fn want(&mut self, mut routes: Routes) -> bool {
        let mut differs = false;
        for (prefix, entry) in &mut self.entries {
            let wanted = routes.remove(prefix);
            differs |= entry.wanted != wanted;
            entry.wanted = wanted;
        }
        differs |= !routes.is_empty();
        let new = routes.into_iter().map(|(prefix, route)| {
            let entry = Entry {
                wanted: Some(route),
                announced: None,
            };
            (prefix, entry)
        });
        self.entries.extend(new);
        self.stale |= differs;
        differs
    }

    /// Prefixes to withdraw.
    pub fn surplus(&self) -> Vec<Prefix> {
        let surplus = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.wanted.is_none());
        surplus.map(|(prefix, _)| *prefix).collect()
    }

    /// Routes to announce.
    pub fn lacking(&self) -> Routes {
        let lacking = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.announced != entry.wanted);
        lacking
            .filter_map(|(prefix, entry)| Some((*prefix, entry.wanted.clone()?)))
            .collect()
    }

    /// ExaBGP has taken the last word about a prefix.
    pub fn confirm(&mut self, prefix: Prefix) {
        match self.entries.get_mut(&prefix) {
            Some(entry) if entry.wanted.is_some() => entry.announced.clone_from(&entry.wanted),
            Some(_) | None => {
                self.stale |= self.entries.remove(&prefix).is_some();
            }
        }
    }

    /// ExaBGP has these prefixes: those that are missing are not announced, whatever was known.
    pub fn compare(&mut self, table: &BTreeSet<Prefix>) {
        for (prefix, entry) in &mut self.entries {
            if !table.contains(prefix) {
                entry.announced = None;
            }
        }
    }

    /// What is announced as far as is known.
    pub fn announced(&self) -> Routes {
        self.routes(|entry| entry.announced.as_ref())
    }

    /// What was told, and what is announced although it should not be any more.
    pub fn told(&self) -> Routes {
        self.routes(|entry| entry.wanted.as_ref().or(entry.announced.as_ref()))
    }

    fn routes(&self, of: impl Fn(&Entry) -> Option<&Route>) -> Routes {
        let route = |(prefix, entry): (&Prefix, _)| Some((*prefix, of(entry)?.clone()));
        self.entries.iter().filter_map(route).collect()
    }

    /// Whether ExaBGP has taken all.
    pub fn is_settled(&self) -> bool {
        self.entries
            .values()
            .all(|entry| entry.wanted.is_some() && entry.announced == entry.wanted)
    }

    /// Writes down what was told.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&mut self) -> Result<(), String> {
        if !self.stale {
            return Ok(());
        }
        let routes = self.entries.iter();
        let kept = Kept {
            boot: self.boot.clone(),
            routes: routes
                .map(|(prefix, entry)| (*prefix, entry.wanted.clone()))
                .collect::<Told>(),
        };
        kept.write(&self.file).map_err(|error| {
            let file = self.file.display();
            format!("{file} cannot be written, so that a restart of ExaBGP would not bring back what is announced: {error}")
        })?;
        self.stale = false;
        Ok(())
    }
}
