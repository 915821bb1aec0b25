//! Backends that get no new flows and may still have old ones, in the API's words.

use super::core::Core;
use crate::{
    api::protocol::{DrainView, ErrorBody},
    dataplane::DataPlane,
};

impl<P: DataPlane> Core<P> {
    /// `GET /v1/drains`.
    ///
    /// # Errors
    /// While there is no usable desired state.
    pub fn drains(&mut self) -> Result<Vec<DrainView>, ErrorBody> {
        self.usable()?;
        let backends = self.state.services.values().flat_map(|service| {
            let draining = service.backends.values().filter(|backend| backend.drain);
            draining.map(move |backend| (service, backend))
        });
        // Whether flows are left is not known here, so nothing is said to be safe.
        let view = |(service, backend): (&crate::spec::Service, &crate::spec::Backend)| DrainView {
            service: service.name.to_string(),
            backend: backend.name.to_string(),
            address: backend.address.to_string(),
            reason: "drain".into(),
            since_seconds: 0,
            seconds_left: None,
            flows: 0,
            packets_per_second: 0.0,
            slots: 0,
            safe: false,
        };
        Ok(backends.map(view).collect())
    }
}
