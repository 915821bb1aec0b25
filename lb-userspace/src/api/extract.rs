//! What a request carries, taken apart so that every refusal is an [`ErrorBody`] that names the field.

use super::{
    options::{ChangeOptions, Percent},
    protocol::{ErrorBody, ErrorCode},
};
use crate::problem::Problem;
use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{
    Deserialize,
    de::{self, DeserializeOwned, Unexpected},
};
use utoipa::IntoParams;

/// A refusal on its way to the client.
pub(super) struct Refusal(pub(super) ErrorBody);

impl Refusal {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(ErrorBody::new(code, message))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

/// Variables of a path.
pub(super) struct Names<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Names<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(names)) => Ok(Self(names)),
            Err(error) => Err(Refusal::new(
                ErrorCode::Malformed,
                format!("the path: {}", error.body_text()),
            )),
        }
    }
}

/// The query of a request that takes no parameters.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoParameters {}

/// The query of a change that removes nothing.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ChangeParameters {
    /// Only say what would change.
    #[serde(default)]
    #[param(required = false)]
    dry_run: bool,
    /// Refuse the change unless this revision is in force.
    if_revision: Option<u64>,
    /// Refuse the change if it would move more than this share of the slots of a service that is there already, in
    /// percent.
    #[param(value_type = Option<f64>, minimum = 0, maximum = 100)]
    max_move: Option<Percent>,
}

/// The query of a change that may remove something.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RemovalParameters {
    /// Only say what would change.
    #[serde(default)]
    #[param(required = false)]
    dry_run: bool,
    /// Refuse the change unless this revision is in force.
    if_revision: Option<u64>,
    /// Refuse the change if it would move more than this share of the slots of a service that is there already, in
    /// percent.
    #[param(value_type = Option<f64>, minimum = 0, maximum = 100)]
    max_move: Option<Percent>,
    /// Backends that are removed give up their flows at once.
    #[serde(default)]
    #[param(required = false)]
    now: bool,
}

/// The query of a drain's begin or end.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DrainParameters {
    /// Only in this service. Default: in every service that has a backend of this name.
    pub(super) service: Option<String>,
    /// Only say what would change.
    #[serde(default)]
    #[param(required = false)]
    dry_run: bool,
    /// Refuse the change unless this revision is in force.
    if_revision: Option<u64>,
    /// Refuse the change if it would move more than this share of the slots of a service that is there already, in
    /// percent.
    #[param(value_type = Option<f64>, minimum = 0, maximum = 100)]
    max_move: Option<Percent>,
}

impl From<ChangeParameters> for ChangeOptions {
    fn from(parameters: ChangeParameters) -> Self {
        Self {
            dry_run: parameters.dry_run,
            if_revision: parameters.if_revision,
            max_move: parameters.max_move,
            now: false,
        }
    }
}

impl From<RemovalParameters> for ChangeOptions {
    fn from(parameters: RemovalParameters) -> Self {
        Self {
            dry_run: parameters.dry_run,
            if_revision: parameters.if_revision,
            max_move: parameters.max_move,
            now: parameters.now,
        }
    }
}

impl DrainParameters {
    pub(super) fn options(&self) -> ChangeOptions {
        ChangeOptions {
            dry_run: self.dry_run,
            if_revision: self.if_revision,
            max_move: self.max_move,
            now: false,
        }
    }
}

/// A query; parameters that `T` does not know are refused.
pub(super) struct Parameters<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(parameters)) => Ok(Self(parameters)),
            Err(error) => Err(Refusal::new(
                ErrorCode::Malformed,
                format!("the query: {}", error.body_text()),
            )),
        }
    }
}

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        if !is_json(request.headers()) {
            let message = "the body must be JSON: send it with `Content-Type: application/json`";
            return Err(Refusal::new(ErrorCode::UnsupportedMediaType, message));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|error| {
            let code = match error.status() {
                StatusCode::PAYLOAD_TOO_LARGE => ErrorCode::TooLarge,
                _ => ErrorCode::Malformed,
            };
            Refusal::new(
                code,
                format!("the body could not be read: {}", error.body_text()),
            )
        })?;
        parse(&bytes).map(Self).map_err(Refusal)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, ErrorBody> {
    // Serde takes a list for a struct with its fields in order: `[]` would be the state without services.
    if json.trim_ascii_start().starts_with(b"[") {
        let error = de::Error::invalid_type(Unexpected::Seq, &"an object");
        return Err(malformed(String::new(), error));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = Some(error.path().to_string())
            .filter(|path| path != ".")
            .unwrap_or_default();
        malformed(field, error.into_inner())
    })?;
    deserializer
        .end()
        .map_err(|error| malformed(String::new(), error))?;
    Ok(value)
}

fn malformed(field: String, error: serde_json::Error) -> ErrorBody {
    let (message, hint) = if error.is_data() {
        (
            "the body has not the right shape",
            "see `lbctl openapi` for the shape",
        )
    } else {
        ("the body is not JSON", "")
    };
    ErrorBody {
        code: ErrorCode::Malformed,
        message: message.into(),
        problems: vec![Problem::new(field, "", error.to_string(), hint)],
    }
}
