//! How the API reaches the control loop: a bounded channel of requests, each with a place for its answer.

pub use super::options::{ChangeOptions, NoPercent, Percent};

use super::announce::{AnnouncementView, NodeView};
use super::path::{ExplainRequest, Explanation, TraceRequest};
use super::protocol::{
    ChangeReport, DrainView, ErrorBody, ErrorCode, RevisionView, ServiceView, StateView, Stats,
    Status,
};
use crate::{
    daemon::Lines,
    digest::DigestView,
    spec::{BackendPatch, BackendSpec, ServiceSpec, StateSpec},
};
use tokio::sync::{mpsc, oneshot};

/// A change of the desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "few exist at a time, so that a box saves nothing"
)]
pub enum Change {
    /// Replace the whole state.
    Apply(StateSpec),
    /// Add a service, with its backends if it names some.
    AddService(ServiceSpec),
    /// Remove a service and its backends.
    RemoveService {
        /// The service.
        service: String,
    },
    /// Add a backend to a service.
    AddBackend {
        /// The service.
        service: String,
        /// The backend.
        backend: BackendSpec,
    },
    /// Change fields of a backend.
    SetBackend {
        /// The service.
        service: String,
        /// The backend.
        backend: String,
        /// What changes.
        patch: BackendPatch,
    },
    /// Remove a backend from a service.
    RemoveBackend {
        /// The service.
        service: String,
        /// The backend.
        backend: String,
    },
    /// Begin or end the drain of a host: one name is one host.
    Drain {
        /// The backend.
        backend: String,
        /// Only in this service; none: in every service that has a backend of this name.
        service: Option<String>,
        /// Begin it; false: end it.
        drain: bool,
    },
    /// Make the state of an earlier revision the state again, as a new revision.
    Rollback {
        /// The earlier revision.
        revision: u64,
    },
}

impl Change {
    /// The command of `lbctl` that makes such a change: `backend add`, `rollback 7`.
    pub fn command(&self) -> String {
        match self {
            Self::Apply(_) => "apply".into(),
            Self::AddService(_) => "service add".into(),
            Self::RemoveService { .. } => "service remove".into(),
            Self::AddBackend { .. } => "backend add".into(),
            Self::SetBackend { .. } => "backend set".into(),
            Self::RemoveBackend { .. } => "backend remove".into(),
            Self::Drain { drain: true, .. } => "backend drain".into(),
            Self::Drain { drain: false, .. } => "backend undrain".into(),
            Self::Rollback { revision } => format!("rollback {revision}"),
        }
    }
}

/// Where the answer to a request goes.
pub type Reply<T> = oneshot::Sender<T>;

/// What the API asks of the control loop.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the channel holds a few at a time, so that a box saves nothing"
)]
pub enum Request {
    /// Status of the node.
    Status(Reply<Status>),
    /// All services with their backends, in order of name.
    Services(Reply<Result<Vec<ServiceView>, ErrorBody>>),
    /// The desired state.
    State(Reply<Result<StateView, ErrorBody>>),
    /// Counters.
    Stats(Reply<Result<Stats, ErrorBody>>),
    /// Change the desired state, or say what a change would do.
    Change {
        /// The change.
        change: Change,
        /// How it is made.
        options: ChangeOptions,
        /// The answer.
        reply: Reply<Result<ChangeReport, ErrorBody>>,
    },
    /// What this node shares with the others of its fleet.
    Digest(Reply<Result<DigestView, ErrorBody>>),
    /// Backends that are being left by their flows, in order of service and name.
    Drains(Reply<Result<Vec<DrainView>, ErrorBody>>),
    /// Revisions of the desired state that are kept, newest first.
    History(Reply<Result<Vec<RevisionView>, ErrorBody>>),
    /// What the program would do with a packet.
    Explain {
        /// The packet.
        request: ExplainRequest,
        /// The answer.
        reply: Reply<Result<Explanation, ErrorBody>>,
    },
    /// Packets as they come.
    Trace {
        /// Which of them.
        request: TraceRequest,
        /// Where they come from.
        reply: Reply<Result<Lines, ErrorBody>>,
    },
    /// VIPs and whether they are announced.
    Announcements(Reply<Result<Vec<AnnouncementView>, ErrorBody>>),
    /// How the node as a whole attracts traffic.
    Node(Reply<Result<NodeView, ErrorBody>>),
    /// Begin or end the drain of the node.
    DrainNode {
        /// Begin it; false: end it.
        drain: bool,
        /// How the node stands then.
        reply: Reply<Result<NodeView, ErrorBody>>,
    },
    /// Metrics in Prometheus text format.
    Metrics(Reply<String>),
}

/// The API's end of the channel. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
}

impl Handle {
    /// A handle and the receiving end for the control loop.
    pub fn new(capacity: usize) -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(capacity);
        (Self { requests }, receiver)
    }

    /// Sends the request that `make` builds and waits for its answer.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] when the daemon is stopping.
    pub async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, ErrorBody> {
        let stopping = || {
            ErrorBody::new(
                ErrorCode::Unavailable,
                "lbd is stopping; ask again when it runs",
            )
        };
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(make(reply))
            .await
            .map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}
