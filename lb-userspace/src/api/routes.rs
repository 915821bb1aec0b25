//! The paths of the API. Each handler turns a request into one question to the control loop; its annotation is its
//! part of the OpenAPI document. One list, [`router`], makes both the server's routes and the document.

use super::{
    extract::{Body, ChangeParameters, Names, NoParameters, Parameters, Refusal},
    handle::{Change, Handle, Request},
    openapi,
    protocol::{ChangeReport, ErrorCode, ServiceView, StateView, Stats, Status},
};
use crate::spec::{BackendPatch, BackendSpec, ServiceSpec, StateSpec};
use axum::{Json, extract::State};
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
    params(("dry_run" = Option<bool>, Query, description = "Only say what would change.")),
    responses((status = 200, description = "What changed.", body = ChangeReport)))]
async fn put_state(
    State(lbd): State<Handle>,
    Parameters(parameters): Parameters<ChangeParameters>,
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
    params(("dry_run" = Option<bool>, Query, description = "Only say what would change.")),
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
        ("dry_run" = Option<bool>, Query, description = "Only say what would change."),
    ),
    responses((status = 200, description = "What changed.", body = ChangeReport)))]
async fn delete_service(
    State(lbd): State<Handle>,
    Names(service): Names<String>,
    Parameters(parameters): Parameters<ChangeParameters>,
) -> Answer<ChangeReport> {
    change(&lbd, Change::RemoveService { service }, parameters).await
}

/// Add a backend to a service.
#[utoipa::path(post, path = "/v1/services/{service}/backends", tag = "backends", request_body = BackendSpec,
    params(
        ("service" = String, Path, description = "Name of the service."),
        ("dry_run" = Option<bool>, Query, description = "Only say what would change."),
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
        ("dry_run" = Option<bool>, Query, description = "Only say what would change."),
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
        ("dry_run" = Option<bool>, Query, description = "Only say what would change."),
    ),
    responses((status = 200, description = "What changed.", body = ChangeReport)))]
async fn delete_backend(
    State(lbd): State<Handle>,
    Names((service, backend)): Names<(String, String)>,
    Parameters(parameters): Parameters<ChangeParameters>,
) -> Answer<ChangeReport> {
    change(&lbd, Change::RemoveBackend { service, backend }, parameters).await
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "node",
    responses((status = 200, description = "The OpenAPI document.", body = Object)))]
async fn get_openapi(_: Parameters<NoParameters>) -> Json<utoipa::openapi::OpenApi> {
    Json(openapi::document())
}

async fn change(
    lbd: &Handle,
    change: Change,
    parameters: ChangeParameters,
) -> Answer<ChangeReport> {
    let ChangeParameters { dry_run } = parameters;
    let report = lbd
        .ask(|reply| Request::Change {
            change,
            dry_run,
            reply,
        })
        .await;
    report.and_then(|report| report).map(Json).map_err(Refusal)
}
