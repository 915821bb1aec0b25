//! What this node shares with the others of its fleet, from the tables in force.

use super::core::Core;
use crate::{
    api::protocol::{ErrorBody, ErrorCode},
    dataplane::DataPlane,
    digest::{DigestNode, DigestView, service_digest},
    plan::{table::positions, target::service_key},
    spec::Service,
};
use lb_common::maps::LAYOUT_VERSION;

impl<P: DataPlane> Core<P> {
    /// `GET /v1/digest`. `hash_seed` is the one that the program was loaded with.
    ///
    /// # Errors
    /// While there is no usable desired state, and while a table is not the one that follows from it.
    pub fn digest(&mut self, hash_seed: u64) -> Result<DigestView, ErrorBody> {
        self.usable()?;
        let node = DigestNode {
            hash_seed,
            version: env!("CARGO_PKG_VERSION").into(),
            layout: LAYOUT_VERSION,
        };
        let mut services = Vec::new();
        for service in self.state.services.values() {
            let table = self.mirror.table(&service_key(service));
            let index = self.mirror.service_index(&service_key(service));
            let Some((inputs, index)) = table.and_then(|table| table.inputs()).zip(index) else {
                return Err(not_in_force(service));
            };
            let words = self.plane.read_slots(index).map_err(|problem| {
                let message = format!(
                    "the table of service `{}` cannot be read: {problem:#}",
                    service.name
                );
                ErrorBody::new(ErrorCode::Failed, message)
            })?;
            let live = positions(&words, &inputs.owners);
            let (members, availability) = (inputs.members.list(), &inputs.availability);
            services.push(service_digest(&node, service, members, availability, &live));
        }
        Ok(DigestView { services, node })
    }
}

fn not_in_force(service: &Service) -> ErrorBody {
    let message = format!(
        "the table of service `{}` is not in force yet: ask again in a few seconds, and look at `lbctl status` if that \
         does not help",
        service.name
    );
    ErrorBody::new(ErrorCode::Unavailable, message)
}
