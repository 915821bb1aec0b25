//! What becomes of a service's established flows in a change: what was written, with the defaults for what was not.

use super::Reader;
use crate::spec::{field, raw::ServiceSpec, valid::FlowPolicy};
use std::time::Duration;

const MIN_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_DRAIN_TIMEOUT: Duration = Duration::from_secs(24 * 3_600);
const MAX_UDP_SETTLE: Duration = Duration::from_secs(3_600);
const MAX_SLOW_START: Duration = Duration::from_secs(3_600);

impl Reader {
    /// The policy, or nothing when something is wrong with it.
    pub(super) fn flows(&mut self, path: &str, spec: &ServiceSpec) -> Option<FlowPolicy> {
        let usual = FlowPolicy::default();
        let at = |field: &str| format!("{path}.{field}");
        let tracking = self.given(at("tracking"), &spec.tracking, field::tracking);
        let on_down = self.given(at("on_down"), &spec.on_down, field::on_down);
        let drain_timeout = self.given(at("drain_timeout"), &spec.drain_timeout, |text| {
            field::duration(text, MIN_DRAIN_TIMEOUT, MAX_DRAIN_TIMEOUT)
        });
        let udp_settle = self.given(at("udp_settle"), &spec.udp_settle, |text| {
            field::duration(text, Duration::ZERO, MAX_UDP_SETTLE)
        });
        let slow_start = self.given(at("slow_start"), &spec.slow_start, |text| {
            let span = field::duration(text, Duration::ZERO, MAX_SLOW_START)?;
            Ok(Some(span).filter(|span| !span.is_zero()))
        });
        Some(FlowPolicy {
            tracking: tracking?.unwrap_or(usual.tracking),
            on_down: on_down?.unwrap_or(usual.on_down),
            drain_timeout: drain_timeout?.unwrap_or(usual.drain_timeout),
            udp_settle: udp_settle?.unwrap_or(usual.udp_settle),
            slow_start: slow_start?.unwrap_or(usual.slow_start),
        })
    }
}
