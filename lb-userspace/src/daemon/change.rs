//! Changes of the desired state: checked, kept on disk, put in force, or refused.

use super::{core::Core, impact};
use crate::{
    api::{
        handle::{Change, ChangeOptions, Percent},
        protocol::{ChangeLine, ChangeReport, ErrorBody, ErrorCode, RevisionView, TableChange},
    },
    dataplane::DataPlane,
    desired::{
        Document,
        history::{History, Missing, Origin},
    },
    health::checker::{Target, TargetId},
    plan::{roster::Roster, target::service_key},
    spec::{
        Service, State, StateSpec,
        change::{self, ChangeError},
    },
};
use lb_common::{
    limits::SLOTS,
    service::{ServiceEntry, ServiceKey},
};
use std::collections::{BTreeMap, BTreeSet};
use tracing::{info, warn};

impl<P: DataPlane> Core<P> {
    /// Changes the desired state, or says what the change would do. The caller reconciles afterwards.
    ///
    /// # Errors
    /// Why it is refused; then nothing has changed.
    pub fn change(
        &mut self,
        change: &Change,
        options: &ChangeOptions,
    ) -> Result<ChangeReport, ErrorBody> {
        let result = self.try_change(change, options);
        if let Err(refusal) = &result {
            self.metrics.change_refused();
            info!(code = ?refusal.code, problem = %refusal.message, "change refused");
        }
        result
    }

    fn try_change(
        &mut self,
        change: &Change,
        options: &ChangeOptions,
    ) -> Result<ChangeReport, ErrorBody> {
        // These two bring a whole state, which is what is missing.
        if !matches!(change, Change::Apply(_) | Change::Rollback { .. }) {
            self.usable()?;
        }
        self.meant_for(options.if_revision)?;
        let before = StateSpec::from(&self.state);
        let spec =
            change::apply(&before, change, |revision| self.past(revision)).map_err(refusal)?;
        let state = State::parse(&spec, &self.limits)
            .map_err(|problems| refusal(ChangeError::Invalid(problems)))?;
        let changes = change::diff(&self.state, &state);
        let roster = Roster::new(&state, &self.roster);
        let (before, after) = ((&self.state, &self.roster), (&state, &roster));
        let impact = impact::impact(before, after, &self.facts, options.now);
        if let Some(most) = options.max_move {
            self.moves_at_most(most, &state, &impact.tables)?;
        }
        let mut warnings = impact.warnings;
        warnings.extend(self.forgotten(&state));
        warnings.extend(self.hashed_anew(&state));
        let changed = !changes.is_empty() || self.unreadable.is_some();
        let dry_run = options.dry_run;
        if changed && !dry_run {
            let origin = Origin {
                change: change.command(),
                summary: summary(&changes),
            };
            self.put_in_force((state, roster), &origin, options)?;
            for line in &changes {
                info!(revision = self.revision, action = %line.action, kind = %line.kind, name = %line.name,
                    detail = %line.detail, "desired state changed");
            }
        }
        Ok(ChangeReport {
            revision: self.revision,
            dry_run,
            changed,
            changes,
            tables: impact.tables,
            warnings,
        })
    }

    /// While there is no usable state, what the new one would silently leave out: services that run.
    fn forgotten(&self, state: &State) -> Option<String> {
        self.unreadable.as_ref()?;
        let kept: BTreeSet<ServiceKey> = state.services.values().map(service_key).collect();
        let gone = self
            .mirror
            .services
            .keys()
            .filter(|key| !kept.contains(key))
            .count();
        (gone > 0).then(|| {
            format!("{gone} services that are running are not in this state: their traffic ends")
        })
    }

    /// While there is no usable state, whose flows the new one would hash in another way than those that run: this is
    /// refused where it is known before.
    fn hashed_anew(&self, state: &State) -> Option<String> {
        self.unreadable.as_ref()?;
        let differs = |service: &&Service| {
            let old = self.mirror.services.get(&service_key(service));
            old.is_some_and(|old| (old.flags ^ service.hash.flags()) & ServiceEntry::HASH != 0)
        };
        let names: Vec<String> = state
            .services
            .values()
            .filter(differs)
            .map(|service| format!("`{}`", service.name))
            .collect();
        (!names.is_empty()).then(|| {
            format!(
                "`hash` is another than what runs for {}: their established connections break",
                names.join(", ")
            )
        })
    }

    /// Refuses a change that was meant for another revision than the one in force.
    fn meant_for(&self, revision: Option<u64>) -> Result<(), ErrorBody> {
        let current = self.revision;
        match revision {
            Some(meant) if meant != current => Err(conflict(format!(
                "the change is meant for revision {meant}, but revision {current} is in force: look at what has changed \
                 (`lbctl history`, `lbctl export`), then ask again with {current} as the revision"
            ))),
            Some(_) | None => Ok(()),
        }
    }

    /// Refuses a change that moves more than a share of the slots of a service that is there already.
    fn moves_at_most(
        &self,
        most: Percent,
        after: &State,
        tables: &[TableChange],
    ) -> Result<(), ErrorBody> {
        let before: BTreeSet<ServiceKey> = self.state.services.values().map(service_key).collect();
        // What was not there has no flows to move.
        let is_new = |table: &TableChange| {
            let service = after
                .services
                .values()
                .find(|service| service.name.as_str() == table.service);
            service.is_some_and(|service| !before.contains(&service_key(service)))
        };
        let too_many = tables
            .iter()
            .find(|table| most.is_exceeded_by(table.slots_changed, SLOTS) && !is_new(table));
        match too_many {
            Some(TableChange {
                service,
                slots_changed,
                ..
            }) => {
                let share = f64::from(*slots_changed) * 100.0 / f64::from(SLOTS);
                Err(conflict(format!(
                    "the change would move {slots_changed} of {SLOTS} slots of service `{service}` ({share:.2} %), and at \
                     most {most} % may move: look at it with a dry run, then allow more or change less at once"
                )))
            }
            None => Ok(()),
        }
    }

    /// The state of an earlier revision.
    fn past(&self, revision: u64) -> Result<StateSpec, ChangeError> {
        if self.unreadable.is_none() && revision == self.revision {
            return Ok(StateSpec::from(&self.state));
        }
        self.history()
            .state(revision)
            .map_err(|missing| match missing {
                Missing::NotKept(said) => ChangeError::NotFound(said),
                Missing::Unreadable(said) => ChangeError::Lost(said),
            })
    }

    /// The revisions that can be looked at and gone back to.
    pub fn history(&self) -> History {
        let current = self.unreadable.is_none().then_some(self.revision);
        self.store.history(current)
    }

    fn put_in_force(
        &mut self,
        (state, roster): (State, Roster),
        origin: &Origin,
        options: &ChangeOptions,
    ) -> Result<(), ErrorBody> {
        let lost = self.unreadable.is_some();
        // What is left of a lost state's history stays before the new state.
        let kept = if lost { self.history().newest() } else { None };
        let revision = self.revision.max(kept.unwrap_or(0)) + 1;
        let keep = |error: anyhow::Error| {
            failed(format!(
                "the change could not be kept on disk, so it was not made: {error:#}"
            ))
        };
        let document = Document::new(revision, StateSpec::from(&state));
        self.store.commit(&document, origin, lost).map_err(keep)?;
        let before = self.targets();
        let (old, old_roster) = self.take_state(state, roster);
        self.revision = revision;
        if lost {
            // Which backends are removed is known only now: their time begins.
            self.facts.departures.clear();
        }
        self.begin_leaving((&old, &old_roster), options.now);
        self.forget_removed(&before);
        if self.unreadable.take().is_some()
            && let Err(problem) = self.seed_health()
        {
            warn!(problem = %format!("{problem:#}"), "the running data plane could not be read");
        }
        Ok(())
    }

    /// Drops what is known of backends that are gone, and of those whose address changed: they are others now.
    fn forget_removed(&mut self, before: &BTreeMap<TargetId, Target>) {
        let now = self.targets();
        let same = |id: &TargetId| {
            let address =
                |targets: &BTreeMap<TargetId, Target>| targets.get(id).map(|target| target.address);
            address(&now).is_some() && address(&now) == address(before)
        };
        self.facts.health.retain(|id, _| same(id));
        let services = &self.state.services;
        self.facts.risen.retain(|id, _| {
            services
                .get(&id.service)
                .is_some_and(|service| service.backends.contains_key(&id.backend))
        });
        self.probes.retain(|id, _| same(id));
        let addresses = self.addresses();
        self.facts
            .next_hops
            .retain(|address, _| addresses.contains(address));
    }
}

/// The first difference, and how many more there are.
fn summary(changes: &[ChangeLine]) -> String {
    let Some(first) = changes.first() else {
        return "the state was given anew".into();
    };
    let ChangeLine {
        action, kind, name, ..
    } = first;
    let detail = match first.detail.as_str() {
        "" => String::new(),
        detail => format!(": {detail}"),
    };
    let more = match changes.len() {
        1 => String::new(),
        n => format!(", and {} more", n - 1),
    };
    format!("{action} {kind} {name}{detail}{more}")
}

/// `GET /v1/history`. This reads many files.
///
/// # Errors
/// When their directory cannot be read.
pub(super) fn revisions(history: &History) -> Result<Vec<RevisionView>, ErrorBody> {
    history
        .list()
        .map_err(|problem| failed(format!("the history could not be read: {problem:#}")))
}

fn failed(message: String) -> ErrorBody {
    ErrorBody::new(ErrorCode::Failed, message)
}

fn conflict(message: String) -> ErrorBody {
    ErrorBody::new(ErrorCode::Conflict, message)
}

fn refusal(error: ChangeError) -> ErrorBody {
    match error {
        ChangeError::NotFound(message) => ErrorBody::new(ErrorCode::NotFound, message),
        ChangeError::Lost(message) => failed(message),
        ChangeError::Conflict(message, problems) => ErrorBody {
            code: ErrorCode::Conflict,
            message,
            problems,
        },
        ChangeError::Invalid(problems) => {
            let message = match &problems.0[..] {
                [one] => one.to_string(),
                many => format!("{} values are not valid", many.len()),
            };
            ErrorBody {
                code: ErrorCode::Invalid,
                message,
                problems: problems.0,
            }
        }
    }
}

#[cfg(test)]
mod tests;
