//! The paths of the API. Each handler turns a request into one question to the control loop; its annotation is its
//! part of the OpenAPI document. One list, [`router`], makes both the server's routes and the document.

use super::{
    announce::{AnnouncementView, NodeView},
    extract::{
        Body, ChangeParameters, DrainParameters, Names, NoParameters, Parameters, Refusal,
        RemovalParameters,
    },
    handle::{Change, ChangeOptions, Handle, Request},
    openapi,
    path::{ExplainRequest, Explanation, TraceLine, TraceRequest},
    protocol::{
        ChangeReport, DrainView, ErrorCode, RevisionView, ServiceView, StateView, Stats, Status,
    },
    server::Patience,
};
use crate::{
    digest::DigestView,
    spec::{BackendPatch, BackendSpec, ServiceSpec, StateSpec},
};
use axum::{
    Extension, Json,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use futures::stream;
use utoipa_axum::{router::OpenApiRouter, routes};

type Answer<T> = Result<Json<T>, Refusal>;

/// All routes, and their description on top of `base`.
pub(super) fn router(base: utoipa::openapi::OpenApi) -> OpenApiRouter<Handle> {
    OpenApiRouter::with_openapi(base)
        .routes(routes!(get_status))
        .routes(routes!(get_stats))
        .routes(routes!(get_state, put_state))
        .routes(routes!(get_services, post_service))
        .routes(routes!(get_service, delete_service))
        .routes(routes!(post_backend))
        .routes(routes!(patch_backend, delete_backend))
        .routes(routes!(get_digest))
        .routes(routes!(get_drains))
        .routes(routes!(put_drain, delete_drain))
        .routes(routes!(get_announcements))
        .routes(routes!(get_node))
        .routes(routes!(put_node_drain, delete_node_drain))
        .routes(routes!(post_explain))
        .routes(routes!(get_trace))
        .routes(routes!(get_history))
        .routes(routes!(post_rollback))
        .routes(routes!(get_openapi))
}

/// Status of the node.
#[utoipa::path(get, path = "/v1/status", tag = "node",
    responses((status = 200, description = "Status of the node.", body = Status)))]
async fn get_status(State(lbd): State<Handle>, _: Parameters<NoParameters>) -> Answer<Status> {
    lbd.ask(Request::Status).await.map(Json).map_err(Refusal)
}

/// Counters.
#[utoipa::path(get, path = "/v1/stats", tag = "node",
    responses((status = 200, description = "Counters.", body = Stats)))]
async fn get_stats(State(lbd): State<Handle>, _: Parameters<NoParameters>) -> Answer<Stats> {
    lbd.ask(Request::Stats)
        .await
        .and_then(|stats| stats)
        .map(Json)
        .map_err(Refusal)
}

/// What this node shares with the others of its fleet: equal where they send each flow to the same backend.
#[utoipa::path(get, path = "/v1/digest", tag = "node",
    responses((status = 200, description = "The digest.", body = DigestView)))]
async fn get_digest(State(lbd): State<Handle>, _: Parameters<NoParameters>) -> Answer<DigestView> {
    lbd.ask(Request::Digest)
        .await
        .flatten()
        .map(Json)
        .map_err(Refusal)
}

/// The desired state and its revision.
#[utoipa::path(get, path = "/v1/state", tag = "state",
    responses((status = 200, description = "The desired state.", body = StateView)))]
async fn get_state(State(lbd): State<Handle>, _: Parameters<NoParameters>) -> Answer<StateView> {
    lbd.ask(Request::State)
        .await
        .flatten()
        .map(Json)
        .map_err(Refusal)
}

/// Replace the whole desired state.
#[utoipa::path(put, path = "/v1/state", tag = "state", request_body = StateSpec,
    params(RemovalParameters),
    responses((status = 200, description = "What changed.", body = ChangeReport)))]
async fn put_state(
    State(lbd): State<Handle>,
    Parameters(parameters): Parameters<RemovalParameters>,
    Body(state): Body<StateSpec>,
) -> Answer<ChangeReport> {
    change(&lbd, Change::Apply(state), parameters).await
}

/// All services with their backends, in order of name.
#[utoipa::path(get, path = "/v1/services", tag = "services",
    responses((status = 200, description = "All services.", body = Vec<ServiceView>)))]
async fn get_services(
    State(lbd): State<Handle>,
    _: Parameters<NoParameters>,
) -> Answer<Vec<ServiceView>> {
    lbd.ask(Request::Services)
        .await
        .flatten()
        .map(Json)
        .map_err(Refusal)
}

/// Add a service, with its backends if it names some.
#[utoipa::path(post, path = "/v1/services", tag = "services", request_body = ServiceSpec,
    params(ChangeParameters),
    responses((status = 200, description = "What changed.", body = ChangeReport)))]
async fn post_service(
    State(lbd): State<Handle>,
    Parameters(parameters): Parameters<ChangeParameters>,
    Body(service): Body<ServiceSpec>,
) -> Answer<ChangeReport> {
    change(&lbd, Change::AddService(service), parameters).await
}

/// One service with its backends.
#[utoipa::path(get, path = "/v1/services/{service}", tag = "services",
    params(("service" = String, Path, description = "Name of the service.")),
    responses((status = 200, description = "The service.", body = ServiceView)))]
async fn get_service(
    State(lbd): State<Handle>,
    Names(name): Names<String>,
    _: Parameters<NoParameters>,
) -> Answer<ServiceView> {
    let services = lbd
        .ask(Request::Services)
        .await
        .flatten()
        .map_err(Refusal)?;
    services
        .into_iter()
        .find(|service| service.name == name)
        .map(Json)
        .ok_or_else(|| {
            let message = format!("there is no service {name:?}; `lbctl service list` shows all");
            Refusal::new(ErrorCode::NotFound, message)
        })
}

/// Remove a service and its backends.
#[utoipa::path(delete, path = "/v1/services/{service}", tag = "services",
    params(
        ("service" = String, Path, description = "Name of the service."),
        RemovalParameters,
    ),
    responses((status = 200, description = "What changed.", body = ChangeReport)))]
async fn delete_service(
    State(lbd): State<Handle>,
    Names(service): Names<String>,
    Parameters(parameters): Parameters<RemovalParameters>,
) -> Answer<ChangeReport> {
    change(&lbd, Change::RemoveService { service }, parameters).await
}

/// Add a backend to a service.
#[utoipa::path(post, path = "/v1/services/{service}/backends", tag = "backends", request_body = BackendSpec,
    params(
        ("service" = String, Path, description = "Name of the service."),
        ChangeParameters,
    ),
    responses((status = 200, description = "What changed.", body = ChangeReport)))]
async fn post_backend(
    State(lbd): State<Handle>,
    Names(service): Names<String>,
    Parameters(parameters): Parameters<ChangeParameters>,
    Body(backend): Body<BackendSpec>,
) -> Answer<ChangeReport> {
    change(&lbd, Change::AddBackend { service, backend }, parameters).await
}

/// Change fields of a backend.
#[utoipa::path(patch, path = "/v1/services/{service}/backends/{backend}", tag = "backends",
    request_body = BackendPatch,
    params(
        ("service" = String, Path, description = "Name of the service."),
        ("backend" = String, Path, description = "Name of the backend."),
        ChangeParameters,
    ),
    responses((status = 200, description = "What changed.", body = ChangeReport)))]
async fn patch_backend(
    State(lbd): State<Handle>,
    Names((service, backend)): Names<(String, String)>,
    Parameters(parameters): Parameters<ChangeParameters>,
    Body(patch): Body<BackendPatch>,
) -> Answer<ChangeReport> {
    change(
        &lbd,
        Change::SetBackend {
            service,
            backend,
            patch,
        },
        parameters,
    )
    .await
}

/// Remove a backend from a service.
#[utoipa::path(delete, path = "/v1/services/{service}/backends/{backend}", tag = "backends",
    params(
        ("service" = String, Path, description = "Name of the service."),
        ("backend" = String, Path, description = "Name of the backend."),
        RemovalParameters,
    ),
    responses((status = 200, description = "What changed.", body = ChangeReport)))]
async fn delete_backend(
    State(lbd): State<Handle>,
    Names((service, backend)): Names<(String, String)>,
    Parameters(parameters): Parameters<RemovalParameters>,
) -> Answer<ChangeReport> {
    change(&lbd, Change::RemoveBackend { service, backend }, parameters).await
}

/// Backends on their way out: they get no new flows and may still have old ones.
#[utoipa::path(get, path = "/v1/drains", tag = "backends",
    responses((status = 200, description = "All of them, in order of service and name.", body = Vec<DrainView>)))]
async fn get_drains(
    State(lbd): State<Handle>,
    _: Parameters<NoParameters>,
) -> Answer<Vec<DrainView>> {
    lbd.ask(Request::Drains)
        .await
        .flatten()
        .map(Json)
        .map_err(Refusal)
}

/// Begin the drain of a backend; one that is being drained already is left as it is.
#[utoipa::path(put, path = "/v1/drains/{backend}", tag = "backends",
    params(("backend" = String, Path, description = "Name of the backend."), DrainParameters),
    responses((status = 200, description = "What changed.", body = ChangeReport)))]
async fn put_drain(
    State(lbd): State<Handle>,
    Names(backend): Names<String>,
    Parameters(parameters): Parameters<DrainParameters>,
) -> Answer<ChangeReport> {
    drain(&lbd, backend, parameters, true).await
}

/// End the drain of a backend: it gets new flows again.
#[utoipa::path(delete, path = "/v1/drains/{backend}", tag = "backends",
    params(("backend" = String, Path, description = "Name of the backend."), DrainParameters),
    responses((status = 200, description = "What changed.", body = ChangeReport)))]
async fn delete_drain(
    State(lbd): State<Handle>,
    Names(backend): Names<String>,
    Parameters(parameters): Parameters<DrainParameters>,
) -> Answer<ChangeReport> {
    drain(&lbd, backend, parameters, false).await
}

/// What the program would do with a packet now, and why. Leaves no trace in counters or the flow table.
#[utoipa::path(post, path = "/v1/explain", tag = "node", request_body = ExplainRequest,
    responses((status = 200, description = "What becomes of the packet.", body = Explanation)))]
async fn post_explain(
    State(lbd): State<Handle>,
    _: Parameters<NoParameters>,
    Body(request): Body<ExplainRequest>,
) -> Answer<Explanation> {
    let answer = lbd.ask(|reply| Request::Explain { request, reply }).await;
    answer.flatten().map(Json).map_err(Refusal)
}

/// Packets as they come, for as long as the connection lasts: a line of JSON each, and one a second that says how it
/// goes. One trace at a time; meanwhile a slower program is attached.
#[utoipa::path(get, path = "/v1/trace", tag = "node", params(TraceRequest),
    responses((status = 200, description = "Lines of JSON.", body = TraceLine, content_type = "application/x-ndjson")))]
async fn get_trace(
    State(lbd): State<Handle>,
    Extension(patience): Extension<Patience>,
    Parameters(request): Parameters<TraceRequest>,
) -> Result<Response, Refusal> {
    let lines = lbd
        .ask(|reply| Request::Trace { request, reply })
        .await
        .flatten()
        .map_err(Refusal)?;
    patience.never_ends();
    let body = stream::unfold(lines, |mut lines| async {
        let line = lines.recv().await?;
        let text = serde_json::to_string(&line).map(|text| text + "\n");
        Some((text, lines))
    });
    let kind = [(CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, axum::body::Body::from_stream(body)).into_response())
}

/// Revisions of the desired state that are kept, newest first.
#[utoipa::path(get, path = "/v1/history", tag = "state",
    responses((status = 200, description = "The newest 100 revisions.", body = Vec<RevisionView>)))]
async fn get_history(
    State(lbd): State<Handle>,
    _: Parameters<NoParameters>,
) -> Answer<Vec<RevisionView>> {
    lbd.ask(Request::History)
        .await
        .flatten()
        .map(Json)
        .map_err(Refusal)
}

/// Make the state of an earlier revision the state again, as a new revision.
#[utoipa::path(post, path = "/v1/rollback/{revision}", tag = "state",
    params(("revision" = u64, Path, description = "The earlier revision."), RemovalParameters),
    responses((status = 200, description = "What changed.", body = ChangeReport)))]
async fn post_rollback(
    State(lbd): State<Handle>,
    Names(revision): Names<u64>,
    Parameters(parameters): Parameters<RemovalParameters>,
) -> Answer<ChangeReport> {
    change(&lbd, Change::Rollback { revision }, parameters).await
}

/// VIPs of all services, whether they are announced, and why or why not.
#[utoipa::path(get, path = "/v1/announcements", tag = "node",
    responses((status = 200, description = "All of them, in order of address.", body = Vec<AnnouncementView>)))]
async fn get_announcements(
    State(lbd): State<Handle>,
    _: Parameters<NoParameters>,
) -> Answer<Vec<AnnouncementView>> {
    lbd.ask(Request::Announcements)
        .await
        .flatten()
        .map(Json)
        .map_err(Refusal)
}

/// How the node as a whole attracts traffic.
#[utoipa::path(get, path = "/v1/node", tag = "node",
    responses((status = 200, description = "The node.", body = NodeView)))]
async fn get_node(State(lbd): State<Handle>, _: Parameters<NoParameters>) -> Answer<NodeView> {
    lbd.ask(Request::Node)
        .await
        .flatten()
        .map(Json)
        .map_err(Refusal)
}

/// Begin the drain of the node: its VIPs are announced so that routers avoid it, then withdrawn. One that is being drained
/// already is left as it is.
#[utoipa::path(put, path = "/v1/node/drain", tag = "node",
    responses((status = 200, description = "How the node stands now.", body = NodeView)))]
async fn put_node_drain(
    State(lbd): State<Handle>,
    _: Parameters<NoParameters>,
) -> Answer<NodeView> {
    drain_node(&lbd, true).await
}

/// End the drain of the node: it announces again what it can serve.
#[utoipa::path(delete, path = "/v1/node/drain", tag = "node",
    responses((status = 200, description = "How the node stands now.", body = NodeView)))]
async fn delete_node_drain(
    State(lbd): State<Handle>,
    _: Parameters<NoParameters>,
) -> Answer<NodeView> {
    drain_node(&lbd, false).await
}

async fn drain_node(lbd: &Handle, drain: bool) -> Answer<NodeView> {
    let answer = lbd.ask(|reply| Request::DrainNode { drain, reply }).await;
    answer.flatten().map(Json).map_err(Refusal)
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "node",
    responses((status = 200, description = "The OpenAPI document.", body = Object)))]
async fn get_openapi(_: Parameters<NoParameters>) -> Json<utoipa::openapi::OpenApi> {
    Json(openapi::document())
}

async fn drain(
    lbd: &Handle,
    backend: String,
    parameters: DrainParameters,
    drain: bool,
) -> Answer<ChangeReport> {
    let (options, service) = (parameters.options(), parameters.service);
    change(
        lbd,
        Change::Drain {
            backend,
            service,
            drain,
        },
        options,
    )
    .await
}

async fn change(
    lbd: &Handle,
    change: Change,
    options: impl Into<ChangeOptions>,
) -> Answer<ChangeReport> {
    let options = options.into();
    let report = lbd
        .ask(|reply| Request::Change {
            change,
            options,
            reply,
        })
        .await;
    report.flatten().map(Json).map_err(Refusal)
}
