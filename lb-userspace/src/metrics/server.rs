//! Answers scrapes over HTTP: `GET /metrics`, and `GET /healthz` for those who only ask whether the daemon is alive.
//! Both ask the control loop, so an answer means that it runs.

use crate::api::{
    handle::{Handle, Reply, Request},
    server::{Limits, serve_router},
};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use std::time::Duration;
use tokio::{net::TcpListener, time::timeout};

/// As the OpenMetrics specification 1.0 has it.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Shorter than any sensible scrape timeout, so that the scraper is told what is wrong.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections served at once: scrapers are few, and whoever reaches the address could open many.
const CONNECTIONS: usize = 16;

/// Serves metrics on `listener` until the future is dropped.
pub async fn serve(listener: TcpListener, handle: Handle) {
    let limits = Limits {
        connections: CONNECTIONS,
        ..Limits::default()
    };
    serve_within(listener, handle, limits).await;
}

/// As [`serve`], with other limits.
pub(super) async fn serve_within(listener: TcpListener, handle: Handle, limits: Limits) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .with_state(handle);
    serve_router(listener, router, limits, std::future::pending()).await;
}

async fn metrics(State(handle): State<Handle>) -> Response {
    match ask(&handle, Request::Metrics).await {
        Ok(text) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
    }
}

/// 200 with `ok` or `degraded` when the control loop answers: a degraded balancer still forwards, and to restart it
/// would not mend it.
async fn healthz(State(handle): State<Handle>) -> Response {
    match ask(&handle, Request::Status).await {
        Ok(status) => format!("{}\n", status.condition).into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
    }
}

async fn ask<T>(handle: &Handle, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, String> {
    match timeout(ANSWER_TIMEOUT, handle.ask(make)).await {
        Ok(answer) => answer.map_err(|error| format!("{}\n", error.message)),
        Err(_) => Err(format!("lbd has not answered within {ANSWER_TIMEOUT:?}\n")),
    }
}
