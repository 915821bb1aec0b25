//! How the API reaches the control loop: a bounded channel of requests, each with a place for its answer.

use super::protocol::{ChangeReport, ErrorBody, ErrorCode, ServiceView, StateView, Stats, Status};
use crate::spec::{BackendPatch, BackendSpec, ServiceSpec, StateSpec};
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
        /// Only say what it would do.
        dry_run: bool,
        /// The answer.
        reply: Reply<Result<ChangeReport, ErrorBody>>,
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
