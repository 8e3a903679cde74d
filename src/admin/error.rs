//! Errors of the API: always JSON, `{"error": "…"}`, with the HTTP status that says whose they are.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Map, Value};
use xbus_core::store::StoreError;

/// Why a request was not done.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// What stands beside `error` in the answer.
    pub(crate) more: Map<String, Value>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            more: Map::new(),
        }
    }

    /// No such queue, message, route or path.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// The request itself is wrong.
    pub(crate) fn wrong(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// It cannot be done with the thing as it is.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// A task of ours ended early.
    pub(crate) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the bus failed; its log says why",
        )
    }

    /// The HTTP status of what the store says.
    pub(crate) fn status_of(error: &StoreError) -> StatusCode {
        match error {
            StoreError::NotFound(_) => StatusCode::NOT_FOUND,
            StoreError::Full(_) => StatusCode::INSUFFICIENT_STORAGE,
            StoreError::Failed(_) | StoreError::Locked(_) | StoreError::Broker(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            StoreError::Corrupt(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::new(Self::status_of(&error), error.to_string())
    }
}

impl From<tokio::task::JoinError> for ApiError {
    fn from(error: tokio::task::JoinError) -> Self {
        tracing::error!(%error, "an admin request's task ended by a defect of the bus");
        Self::internal()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = Map::new();
        body.insert(String::from("error"), Value::String(self.message));
        body.extend(self.more);
        let mut response = (self.status, Json(Value::Object(body))).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(
                http::header::WWW_AUTHENTICATE,
                http::HeaderValue::from_static("Bearer realm=\"xbus\""),
            );
        }
        response
    }
}
