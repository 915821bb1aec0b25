//! What `lbctl` and tests use to talk to `lbd`. Whatever goes wrong comes back as an [`ErrorBody`] in words that say
//! what to do, whether `lbd` refused or could not be asked ([`ErrorCode::Unavailable`]).

use super::{
    announce::{AnnouncementView, NodeView},
    handle::{Change, ChangeOptions},
    path::{ExplainRequest, Explanation, TraceLine, TraceRequest},
    protocol::{
        ChangeReport, DrainView, ErrorBody, ErrorCode, RevisionView, ServiceView, StateView, Stats,
        Status,
    },
};
use crate::digest::DigestView;
use nix::unistd::{Gid, Group};
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    error::Error,
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// Longer than `lbd` takes to answer that it has no time.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// For answers that end when their reader does.
const NO_LIMIT: Duration = Duration::from_secs(u32::MAX as u64);

/// The answer to [`Client::trace`].
#[derive(Debug)]
pub struct TraceLines {
    response: Response,
    /// Read and not yet handed out: less than a line, but for a moment.
    read: Vec<u8>,
    client: Client,
}

impl TraceLines {
    /// The next line; none when `lbd` has ended the trace.
    ///
    /// # Errors
    /// When the conversation breaks, or it is not one with an `lbd` of this version.
    pub async fn next(&mut self) -> Result<Option<TraceLine>, ErrorBody> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let line = serde_json::from_slice(&line);
                return line
                    .map(Some)
                    .map_err(|error| self.client.not_understood(200, &error));
            }
            let more = self.response.chunk().await;
            match more.map_err(|error| self.client.unreachable(&error))? {
                Some(bytes) => self.read.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }
}

/// A client of one `lbd`.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    socket: PathBuf,
}

impl Client {
    /// A client of the `lbd` that listens on `socket`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ErrorCode::Failed`] when the system has no means for one.
    pub fn new(socket: &Path) -> Result<Self, ErrorBody> {
        let http = reqwest::Client::builder()
            .unix_socket(socket)
            .timeout(TIME_LIMIT)
            .build();
        let http = http.map_err(|error| ErrorBody::new(ErrorCode::Failed, causes(&error)))?;
        Ok(Self {
            http,
            socket: socket.into(),
        })
    }

    /// Status of the node.
    pub async fn status(&self) -> Result<Status, ErrorBody> {
        self.get(&["status"]).await
    }

    /// Counters.
    pub async fn stats(&self) -> Result<Stats, ErrorBody> {
        self.get(&["stats"]).await
    }

    /// The desired state.
    pub async fn state(&self) -> Result<StateView, ErrorBody> {
        self.get(&["state"]).await
    }

    /// All services.
    pub async fn services(&self) -> Result<Vec<ServiceView>, ErrorBody> {
        self.get(&["services"]).await
    }

    /// One service.
    pub async fn service(&self, name: &str) -> Result<ServiceView, ErrorBody> {
        self.get(&["services", name]).await
    }

    /// What the node shares with the others of its fleet.
    pub async fn digest(&self) -> Result<DigestView, ErrorBody> {
        self.get(&["digest"]).await
    }

    /// Backends that get no new flows and may still have old ones.
    pub async fn drains(&self) -> Result<Vec<DrainView>, ErrorBody> {
        self.get(&["drains"]).await
    }

    /// Revisions that are kept, newest first.
    pub async fn history(&self) -> Result<Vec<RevisionView>, ErrorBody> {
        self.get(&["history"]).await
    }

    /// VIPs and whether they are announced.
    pub async fn announcements(&self) -> Result<Vec<AnnouncementView>, ErrorBody> {
        self.get(&["announcements"]).await
    }

    /// How the node as a whole attracts traffic.
    pub async fn node(&self) -> Result<NodeView, ErrorBody> {
        self.get(&["node"]).await
    }

    /// Begins or ends the drain of the node.
    pub async fn drain_node(&self, drain: bool) -> Result<NodeView, ErrorBody> {
        let method = if drain { Method::PUT } else { Method::DELETE };
        self.send(self.request(method, &["node", "drain"])?).await
    }

    /// What the program would do with a packet.
    pub async fn explain(&self, packet: &ExplainRequest) -> Result<Explanation, ErrorBody> {
        self.send(self.with_body(Method::POST, &["explain"], packet)?)
            .await
    }

    /// Packets as they come.
    pub async fn trace(&self, packets: &TraceRequest) -> Result<TraceLines, ErrorBody> {
        let request = self.request(Method::GET, &["trace"])?.query(packets);
        let response = request
            .timeout(NO_LIMIT)
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        Ok(TraceLines {
            response,
            read: Vec::new(),
            client: self.clone(),
        })
    }

    /// Makes a change, or asks what it would do.
    pub async fn change(
        &self,
        change: &Change,
        options: &ChangeOptions,
    ) -> Result<ChangeReport, ErrorBody> {
        let request = match change {
            Change::Apply(state) => self.with_body(Method::PUT, &["state"], state),
            Change::AddService(service) => self.with_body(Method::POST, &["services"], service),
            Change::RemoveService { service } => {
                self.request(Method::DELETE, &["services", service])
            }
            Change::AddBackend { service, backend } => {
                self.with_body(Method::POST, &["services", service, "backends"], backend)
            }
            Change::SetBackend {
                service,
                backend,
                patch,
            } => self.with_body(
                Method::PATCH,
                &["services", service, "backends", backend],
                patch,
            ),
            Change::RemoveBackend { service, backend } => {
                self.request(Method::DELETE, &["services", service, "backends", backend])
            }
            Change::Drain {
                backend,
                service,
                drain,
            } => {
                let method = if *drain { Method::PUT } else { Method::DELETE };
                let request = self.request(method, &["drains", backend]);
                request.map(|request| request.query(&[("service", service)]))
            }
            Change::Rollback { revision } => {
                self.request(Method::POST, &["rollback", &revision.to_string()])
            }
        }?;
        self.send(request.query(options)).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, ErrorBody> {
        self.send(self.request(Method::GET, path)?).await
    }

    fn with_body(
        &self,
        method: Method,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<RequestBuilder, ErrorBody> {
        Ok(self.request(method, path)?.json(body))
    }

    fn request(&self, method: Method, path: &[&str]) -> Result<RequestBuilder, ErrorBody> {
        // A URL would take these for directions and ask for another path.
        if let Some(name) = path.iter().find(|name| ["", ".", ".."].contains(name)) {
            return Err(ErrorBody::new(
                ErrorCode::Invalid,
                format!("{name:?} is not a name"),
            ));
        }
        // The host is never looked up: the connection is the socket.
        let mut url = Url::parse("http://lbd/v1")
            .map_err(|error| ErrorBody::new(ErrorCode::Failed, error.to_string()))?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path);
        }
        Ok(self.http.request(method, url))
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ErrorBody> {
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(self.refusal(response).await);
        }
        let body = response
            .bytes()
            .await
            .map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&body).map_err(|error| self.not_understood(status.as_u16(), &error))
    }

    /// What a refusal says.
    async fn refusal(&self, response: Response) -> ErrorBody {
        let status = response.status().as_u16();
        match response.bytes().await {
            Err(error) => self.unreachable(&error),
            Ok(body) => serde_json::from_slice(&body)
                .unwrap_or_else(|error| self.not_understood(status, &error)),
        }
    }

    fn not_understood(&self, status: u16, error: &serde_json::Error) -> ErrorBody {
        let message = format!(
            "what listens on {} answered with HTTP status {status} and a body that is no answer of lbd ({error}): \
             is it an lbd of this version ({})?",
            self.socket.display(),
            env!("CARGO_PKG_VERSION")
        );
        ErrorBody::new(ErrorCode::Unavailable, message)
    }

    fn unreachable(&self, error: &reqwest::Error) -> ErrorBody {
        let socket = self.socket.display();
        let message = match io_kind(error) {
            Some(ErrorKind::NotFound) => format!(
                "lbd is not running, or its socket is not at {socket}: start it with `systemctl start lbd`, or name \
                 the socket with --socket"
            ),
            Some(ErrorKind::ConnectionRefused) => format!(
                "lbd is not running: nobody listens on {socket}; start it with `systemctl start lbd`, or name \
                 another socket with --socket"
            ),
            Some(ErrorKind::PermissionDenied) => {
                format!("permission denied on {socket}: {}", who_may(&self.socket))
            }
            _ if error.is_timeout() => format!(
                "lbd did not answer on {socket} within {} seconds: look at its log with `journalctl -u lbd`",
                TIME_LIMIT.as_secs()
            ),
            _ => format!(
                "the conversation with lbd on {socket} broke: {}",
                causes(error)
            ),
        };
        ErrorBody::new(ErrorCode::Unavailable, message)
    }
}

/// Who may use a socket, as advice to one who may not.
fn who_may(socket: &Path) -> String {
    let Ok(metadata) = fs::metadata(socket) else {
        return "use sudo".into();
    };
    let open_to_group = metadata.permissions().mode() & 0o060 == 0o060;
    match Group::from_gid(Gid::from_raw(metadata.gid())) {
        Ok(Some(group)) if open_to_group => {
            format!(
                "use sudo, or join the group {0} (`usermod -aG {0} $USER`, then log in again)",
                group.name
            )
        }
        _ => "only its owner may use it; use sudo".into(),
    }
}

/// What the operating system said, wherever in the chain it is.
fn io_kind(error: &reqwest::Error) -> Option<ErrorKind> {
    chain(error)
        .find_map(|cause| cause.downcast_ref::<io::Error>())
        .map(io::Error::kind)
}

fn causes(error: &reqwest::Error) -> String {
    chain(error)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        (*error).source()
    })
}
