//! The OpenAPI description of the API, made from the same list as the server's routes.

use super::{protocol::ErrorBody, routes};
use utoipa::{
    OpenApi,
    openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder, path::PathItem},
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Guideway",
        description = "The API of lbd, HTTP/JSON on a unix socket. Unknown fields and parameters are refused.",
    ),
    components(schemas(ErrorBody)),
    tags(
        (name = "node", description = "The node itself"),
        (name = "state", description = "The desired state as a whole"),
        (name = "services", description = "Services"),
        (name = "backends", description = "Backends of a service"),
    ),
)]
struct Base;

/// The OpenAPI 3.1 document.
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = routes::router(Base::openapi()).into_openapi();
    for item in document.paths.paths.values_mut() {
        describe_refusals(item);
    }
    document
}

/// Every operation can be refused, always in the same form.
fn describe_refusals(item: &mut PathItem) {
    let operations = [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.patch,
        &mut item.delete,
    ];
    for operation in operations.into_iter().flatten() {
        operation
            .responses
            .responses
            .insert("default".into(), RefOr::T(refusal()));
    }
}

fn refusal() -> Response {
    let body = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("ErrorBody")))
        .build();
    ResponseBuilder::new()
        .description("Refused: the status is that of the code in the body.")
        .content("application/json", body)
        .build()
}
