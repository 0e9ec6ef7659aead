//! Answers: bodies, and errors as RFC 9457 has them.

use std::{
    borrow::Cow,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::{
    Response, StatusCode,
    body::{Body, Bytes, Frame, SizeHint},
    header::{
        ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
        X_CONTENT_TYPE_OPTIONS,
    },
};
use serde::Serialize;
use tokio::sync::mpsc;

use super::site::FileBody;
use crate::domain::api::ProblemView;

/// What follows an answer's head.
pub(super) enum Content {
    Whole(Bytes),
    File(FileBody),
    /// As it comes, until the sender is gone.
    Stream(mpsc::Receiver<io::Result<Bytes>>),
}

impl Content {
    pub(super) fn empty() -> Self {
        Self::Whole(Bytes::new())
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let next = match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => None,
            Self::Whole(bytes) => Some(Ok(std::mem::take(bytes))),
            Self::File(file) => file.next_piece(),
            Self::Stream(pieces) => {
                return pieces.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)));
            }
        };
        Poll::Ready(next.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.size_hint().exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::File(file) => SizeHint::with_exact(file.left()),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// An answer of the listener, never stored by anybody between.
pub(super) fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Content> {
    answer(status, kind, Content::Whole(body.into()))
}

/// The same, as it comes.
pub(super) fn answer(status: StatusCode, kind: &'static str, body: Content) -> Response<Content> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// JSON that is there already; as a problem where the status says so.
pub(super) fn ready_json(status: StatusCode, body: impl Into<Bytes>) -> Response<Content> {
    let error = status.is_client_error() || status.is_server_error();
    reply(status, if error { "application/problem+json" } else { "application/json" }, body)
}

/// A value as the text of its JSON.
pub(super) fn json_text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data always serializes")
}

/// A value as JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<Content> {
    ready_json(status, json_text(value))
}

/// Why a request is not answered with what it asked for.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    detail: Cow<'static, str>,
    header: Option<(HeaderName, HeaderValue)>,
    /// The rest of the request is not wanted.
    hang_up: bool,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, detail: detail.into(), header: None, hang_up: false }
    }

    pub(super) fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(super) fn method_not_allowed(allow: &'static str) -> Self {
        let header = Some((ALLOW, HeaderValue::from_static(allow)));
        Self { header, ..Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("only {allow} is understood here")) }
    }

    /// The challenge of RFC 6750.
    pub(super) fn unauthorized(detail: impl Into<Cow<'static, str>>) -> Self {
        let header = Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        Self { header, ..Self::new(StatusCode::UNAUTHORIZED, detail) }
    }

    /// So often not; come again in so many seconds.
    pub(super) fn too_many(detail: impl Into<Cow<'static, str>>, wait_s: u32) -> Self {
        let header = Some((RETRY_AFTER, HeaderValue::from(wait_s)));
        Self { header, ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail) }
    }

    /// Nothing was kept of it: come again.
    pub(super) fn unavailable(detail: impl Into<Cow<'static, str>>) -> Self {
        let header = Some((RETRY_AFTER, HeaderValue::from_static("5")));
        Self { header, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    /// Answers without reading what is still to come.
    pub(super) fn hang_up(mut self) -> Self {
        self.hang_up = true;
        self
    }
}

impl From<Problem> for Response<Content> {
    fn from(problem: Problem) -> Self {
        let status = problem.status;
        let title = status.canonical_reason().unwrap_or("Error");
        let body = ProblemView::new(status.as_u16(), title, &problem.detail);
        let mut response = json(status, &body);
        if let Some((name, value)) = problem.header {
            response.headers_mut().insert(name, value);
        }
        if problem.hang_up {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
