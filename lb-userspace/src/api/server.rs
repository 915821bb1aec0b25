//! Serves the API. A connection carries one request and has a limited time for it, and there is a limited number of
//! connections: a client that is slow, silent or half gone costs its own place for a while and nothing else.

use super::{extract::Refusal, handle::Handle, protocol::ErrorCode, routes};
use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{Method, Uri},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{
    future::Future,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

pub use super::socket::bind;

/// What clients may take of the daemon.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections served at once; more wait in the kernel's backlog.
    pub connections: usize,
    /// Time for the head of a request, from `accept` on.
    pub head: Duration,
    /// Time for a request: to send its body, and for its answer.
    pub request: Duration,
    /// Time for a connection, from `accept` to the last byte of the answer.
    pub connection: Duration,
    /// Size of a body in bytes.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 32,
            head: Duration::from_secs(5),
            request: Duration::from_secs(20),
            connection: Duration::from_secs(30),
            body: 8 << 20,
        }
    }
}

/// Time that requests under way get when the daemon stops.
const GRACE: Duration = Duration::from_secs(2);

/// How long to wait before accepting again when the system has no file or memory to spare for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests on `listener` from `handle` until `shutdown` completes, with the usual [`Limits`].
pub async fn serve(listener: UnixListener, handle: Handle, shutdown: impl Future<Output = ()>) {
    serve_within(listener, handle, Limits::default(), shutdown).await;
}

/// As [`serve`], with other limits.
pub async fn serve_within(
    listener: UnixListener,
    handle: Handle,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    serve_router(listener, router(handle, limits), limits, shutdown).await;
}

/// What connections are accepted on.
pub(crate) trait Listen {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(UnixListener::accept(self).await?.0)
    }
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        Ok(TcpListener::accept(self).await?.0)
    }
}

/// Serves any router within the limits of connections and their times; those of requests and bodies are the router's.
pub(crate) async fn serve_router(
    listener: impl Listen,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            // The semaphore is never closed, so that a place is always got in the end.
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            while connections.try_join_next().is_some() {}
            match listener.accept().await {
                Ok(stream) => {
                    let connection = serve_connection(stream, router.clone(), limits);
                    connections.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown => {}
    }
    drop(listener);
    // Requests under way get their answer; clients that only hold a connection are cut off.
    let _ = timeout(GRACE, async {
        while connections.join_next().await.is_some() {}
    })
    .await;
}

/// Lifts the time limit of a connection whose answer has no end of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Patience(Arc<AtomicBool>);

impl Patience {
    /// The connection may last as long as its client does.
    pub(super) fn never_ends(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    limits: Limits,
) {
    let patience = Patience::default();
    let router = router.layer(Extension(patience.clone()));
    let connection = http1::Builder::new()
        .keep_alive(false)
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let result = match timeout(limits.connection, &mut connection).await {
        Err(_) if patience.0.load(Ordering::Relaxed) => Ok(connection.await),
        result => result,
    };
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection broke"),
        Err(_) => tracing::debug!("a connection ran out of time"),
    }
}

fn router(handle: Handle, limits: Limits) -> Router {
    Router::from(routes::router(utoipa::openapi::OpenApi::default()))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(limits.body))
        .layer(middleware::from_fn_with_state(limits, in_time))
        .with_state(handle)
}

async fn in_time(State(limits): State<Limits>, request: Request, next: Next) -> Response {
    timeout(limits.request, next.run(request)).await.unwrap_or_else(|_| {
        let message = format!(
            "no answer within {}; whether a change was made is not known: look with `lbctl status`",
            humantime::format_duration(limits.request)
        );
        Refusal::new(ErrorCode::Unavailable, message).into_response()
    })
}

async fn unknown_path(uri: Uri) -> Refusal {
    let message = format!(
        "there is no path {}; GET /v1/openapi.json describes all",
        uri.path()
    );
    Refusal::new(ErrorCode::NotFound, message)
}

async fn unknown_method(method: Method, uri: Uri) -> Refusal {
    let message = format!(
        "{} does not take {method}; GET /v1/openapi.json says what it takes",
        uri.path()
    );
    Refusal::new(ErrorCode::MethodNotAllowed, message)
}
