//! What becomes of the flows that are established when a slot moves.

use super::View;
use crate::{
    plan::target::backend_id,
    spec::{Backend, Protocol, Service, Tracking},
};
use humantime::format_duration;
use lb_common::limits::SLOTS;

/// The slots that change owner, by what becomes of their established flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// They stay with the owner of before as long as they live.
    pub kept: u32,
    /// They stay with it until the drain timeout.
    pub expiring: u32,
    /// They end at once.
    pub lost: u32,
}

/// `moved`: slots that each member of before gives up.
pub(super) fn fate(old: &View<'_>, new: &View<'_>, moved: &[u32], now: bool) -> Fate {
    let mut fate = Fate::default();
    let untracked = new.service.flows.tracking == Tracking::None;
    for (backend, moved) in old.members.iter().zip(moved) {
        let heir = successor(old, new, backend);
        let slots = match heir {
            _ if untracked => &mut fate.lost,
            None if now => &mut fate.lost,
            Some(heir) if !heir.drain && heir.weight > 0 => &mut fate.kept,
            Some(_) | None => &mut fate.expiring,
        };
        *slots += moved;
    }
    fate
}

/// The same backend in the new state. With another address or mode it is another one.
fn successor<'a>(old: &View<'_>, new: &View<'a>, backend: &Backend) -> Option<&'a Backend> {
    let heir = new.service.backends.get(&backend.name)?;
    (backend_id(new.service, heir) == backend_id(old.service, backend)).then_some(heir)
}

/// Part of all slots, in 1/100 percent, rounded up: what is there is never shown as 0.
pub(super) fn basis_points(slots: u32) -> u32 {
    (u64::from(slots) * 10_000).div_ceil(u64::from(SLOTS)) as u32
}

impl Fate {
    /// In words.
    pub(super) fn sentence(self, service: &Service) -> String {
        let flows = service.flows;
        let drain = format_duration(flows.drain_timeout);
        let silent = match service.protocol {
            Protocol::Tcp => flows.drain_timeout,
            Protocol::Udp => flows.udp_settle,
        };
        let silent = format_duration(silent);
        let parts = [
            (
                self.kept,
                format!("stay with their backend unless they send nothing for {silent}"),
            ),
            (
                self.expiring,
                format!("stay with a drained or removed backend for at most {drain} and then end"),
            ),
            (self.lost, "end at once".to_owned()),
        ];
        let parts: Vec<String> = parts
            .into_iter()
            .filter(|(slots, _)| *slots > 0)
            .map(|(slots, what)| {
                let points = basis_points(slots);
                format!("{}.{:02} % {what}", points / 100, points % 100)
            })
            .collect();
        if parts.is_empty() {
            return "none is affected: the slots that change had no owner".into();
        }
        let rest = SLOTS.saturating_sub(self.kept + self.expiring + self.lost);
        let rest = if rest > 0 {
            "; the others are not touched"
        } else {
            ""
        };
        format!("{}{rest}", parts.join(", "))
    }

    /// Seconds until its slots are settled again, at the earliest.
    pub(super) fn seconds(self, service: &Service) -> u64 {
        if self.kept == 0 && self.expiring == 0 {
            return 0;
        }
        service.flows.drain_timeout.as_secs()
    }
}
