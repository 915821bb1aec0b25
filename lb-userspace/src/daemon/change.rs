//! Changes of the desired state: checked, kept on disk, put in force, or refused.

use super::{core::Core, impact};
use crate::{
    api::{
        handle::Change,
        protocol::{ChangeReport, ErrorBody, ErrorCode},
    },
    dataplane::DataPlane,
    desired::Document,
    health::checker::{Target, TargetId},
    plan::target::service_key,
    spec::{
        State, StateSpec,
        change::{self, ChangeError},
    },
};
use lb_common::service::ServiceKey;
use std::collections::{BTreeMap, BTreeSet};
use tracing::{info, warn};

impl<P: DataPlane> Core<P> {
    /// Changes the desired state, or says what the change would do. The caller reconciles afterwards.
    ///
    /// # Errors
    /// Why it is refused; then nothing has changed.
    pub fn change(&mut self, change: &Change, dry_run: bool) -> Result<ChangeReport, ErrorBody> {
        let result = self.try_change(change, dry_run);
        if let Err(refusal) = &result {
            self.metrics.change_refused();
            info!(code = ?refusal.code, problem = %refusal.message, "change refused");
        }
        result
    }

    fn try_change(&mut self, change: &Change, dry_run: bool) -> Result<ChangeReport, ErrorBody> {
        if !matches!(change, Change::Apply(_)) {
            self.usable()?;
        }
        let spec = change::apply(&StateSpec::from(&self.state), change).map_err(refusal)?;
        let state = State::parse(&spec, &self.limits)
            .map_err(|problems| refusal(ChangeError::Invalid(problems)))?;
        let changes = change::diff(&self.state, &state);
        let impact = impact::impact(&self.state, &state, &self.facts, false);
        let mut warnings = impact.warnings;
        warnings.extend(self.forgotten(&state));
        let changed = !changes.is_empty() || self.unreadable.is_some();
        if changed && !dry_run {
            self.put_in_force(state)?;
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

    fn put_in_force(&mut self, state: State) -> Result<(), ErrorBody> {
        let revision = self.revision + 1;
        let keep = |error: anyhow::Error| {
            failed(format!(
                "the change could not be kept on disk, so it was not made: {error:#}"
            ))
        };
        let document = Document::new(revision, StateSpec::from(&state));
        if self.unreadable.is_some() {
            self.store.save_over_damaged(&document).map_err(keep)?;
        } else {
            self.store.save(&document).map_err(keep)?;
        }
        let before = self.targets();
        (self.state, self.revision) = (state, revision);
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
        self.probes.retain(|id, _| same(id));
        let addresses = self.addresses();
        self.facts
            .next_hops
            .retain(|address, _| addresses.contains(address));
    }
}

fn failed(message: String) -> ErrorBody {
    ErrorBody {
        code: ErrorCode::Failed,
        message,
        problems: Vec::new(),
    }
}

fn refusal(error: ChangeError) -> ErrorBody {
    match error {
        ChangeError::NotFound(message) => ErrorBody {
            code: ErrorCode::NotFound,
            message,
            problems: Vec::new(),
        },
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
