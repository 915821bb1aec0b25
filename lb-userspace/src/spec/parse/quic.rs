//! Connection IDs of QUIC: how a service reads them, and which server ID a backend has.

use super::Reader;
use crate::spec::{
    field,
    raw::{BackendSpec, QuicSpec, ServiceSpec},
    valid::{Backend, Name, Protocol, ServerId},
};
use lb_common::quic::{MAX_SERVER_ID, QuicConfig, UNROUTABLE};
use std::collections::BTreeMap;

impl Reader {
    /// The outer option is none when what is written is wrong, the inner one when nothing is.
    pub(super) fn quic(
        &mut self,
        path: &str,
        spec: &ServiceSpec,
        protocol: Option<Protocol>,
        port: Option<u16>,
    ) -> Option<Option<QuicConfig>> {
        let Some(quic) = &spec.quic else {
            return Some(None);
        };
        let before = self.found.len();
        if protocol == Some(Protocol::Tcp) {
            let hint = "remove it, or use `protocol: udp`";
            self.refuse(
                path.to_owned(),
                quic,
                "is only for UDP, and this is tcp",
                hint,
            );
        }
        if port == Some(0) {
            let message = "is only for one port, and this is any port";
            let hint = "give the port that the servers speak QUIC on";
            self.refuse(path.to_owned(), quic, message, hint);
        }
        let config_rotation = self.take(
            format!("{path}.config_rotation"),
            quic.config_rotation,
            field::number(quic.config_rotation, 0, UNROUTABLE - 1),
        );
        let server_id_length = self.take(
            format!("{path}.server_id_length"),
            quic.server_id_length,
            field::number(quic.server_id_length, 1, MAX_SERVER_ID),
        );
        let config = QuicConfig {
            config_rotation: config_rotation?,
            server_id_length: server_id_length?,
        };
        (self.found.len() == before).then_some(Some(config))
    }

    /// Likewise. `quic` is what the backend's service says.
    pub(super) fn server_id(
        &mut self,
        path: &str,
        spec: &BackendSpec,
        quic: Option<&QuicSpec>,
    ) -> Option<Option<ServerId>> {
        let field = format!("{path}.server_id");
        let (text, quic) = match (&spec.server_id, quic) {
            (None, None) => return Some(None),
            (Some(text), None) => {
                let hint = "remove it, or give the service `quic`";
                self.refuse(field, text, "is only for services with `quic`", hint);
                return None;
            }
            (None, Some(quic)) => {
                let message = "is missing, and the service has `quic`";
                self.refuse(field, "nothing", message, octets(quic));
                return None;
            }
            (Some(text), Some(quic)) => (text, quic),
        };
        let id = ServerId::parse(text);
        let id = id.filter(|id| i64::from(id.length()) == quic.server_id_length);
        if id.is_none() {
            let length = quic.server_id_length;
            let message =
                format!("is not a server ID of {length} octets (`quic.server_id_length`)");
            self.refuse(field, text, message, octets(quic));
        }
        id.map(Some)
    }

    /// Refuses a server ID that another backend of the service has.
    pub(super) fn server_id_once(
        &mut self,
        path: &str,
        backend: &Backend,
        known: &mut BTreeMap<ServerId, Name>,
    ) {
        if let Some(id) = backend.server_id
            && let Some(other) = known.insert(id, backend.name.clone())
            && other != backend.name
        {
            let message = format!("backend `{other}` of this service has this server ID already");
            let hint = "give each backend its own, and its server the same";
            self.refuse(format!("{path}.server_id"), id, message, hint);
        }
    }
}

/// How a server ID is written.
fn octets(quic: &QuicSpec) -> String {
    let length = quic.server_id_length.clamp(1, i64::from(MAX_SERVER_ID)) as usize;
    let example = "0".repeat(2 * length - 1);
    format!(
        "write {} hexadecimal digits, such as \"{example}1\", in quotes",
        2 * length
    )
}
