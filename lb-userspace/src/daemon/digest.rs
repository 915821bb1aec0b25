//! What this node shares with the others of its fleet, from the tables in force.

use super::core::Core;
use crate::{
    api::protocol::{ErrorBody, ErrorCode},
    dataplane::DataPlane,
    digest::{DigestNode, DigestView, ServiceDigest, service_digest},
    plan::target::service_key,
    spec::Service,
};
use lb_common::maps::LAYOUT_VERSION;

impl<P: DataPlane> Core<P> {
    /// `GET /v1/digest`. `hash_seed` is the one that the program was loaded with.
    ///
    /// # Errors
    /// While there is no usable desired state, and while a table is not the one that follows from it.
    pub fn digest(&self, hash_seed: u64) -> Result<DigestView, ErrorBody> {
        self.usable()?;
        let node = DigestNode {
            hash_seed,
            version: env!("CARGO_PKG_VERSION").into(),
            layout: LAYOUT_VERSION,
        };
        let services = self.state.services.values();
        let services = services.map(|service| self.service_digest(&node, service));
        Ok(DigestView {
            services: services.collect::<Result<_, _>>()?,
            node,
        })
    }

    fn service_digest(
        &self,
        node: &DigestNode,
        service: &Service,
    ) -> Result<ServiceDigest, ErrorBody> {
        let index = self.mirror.service_index(&service_key(service));
        let table = index.and_then(|index| self.mirror.known.get(&index));
        let found = table.and_then(|table| table.inputs().zip(Some(table.live())));
        let Some((inputs, live)) = found else {
            let message = format!(
                "the table of service `{}` is not in force yet: ask again in a few seconds, and look at `lbctl status` if \
                 that does not help",
                service.name
            );
            return Err(ErrorBody::new(ErrorCode::Unavailable, message));
        };
        let (members, availability) = (&inputs.members, &inputs.availability);
        Ok(service_digest(node, service, members, availability, live))
    }
}
