//! What a request's head says, and what is refused for it before a byte of the body is read.

use std::{borrow::Cow, str::FromStr};

use hyper::{
    HeaderMap, Method, StatusCode,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING},
};

use super::answer::Problem;
use crate::domain::{api::MAX_BODY, hook::field};

pub(super) const JSON: &str = "application/json";
pub(super) const FORM: &str = "application/x-www-form-urlencoded";

/// # Errors
/// 405 for another method than these, which stand as in the `Allow` header.
pub(super) fn only(method: &Method, allowed: &'static str) -> Result<(), Problem> {
    if allowed.split(", ").any(|name| name == method.as_str()) {
        return Ok(());
    }
    Err(Problem::method_not_allowed(allowed))
}

/// Bodies are taken as they are: unpacking is an invitation to bombs, and signatures are over what
/// came over the wire.
///
/// # Errors
/// 415 for anything but `identity`.
pub(super) fn refuse_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let plain = |value: &str| value.trim().eq_ignore_ascii_case("identity");
    if headers.get_all(CONTENT_ENCODING).iter().all(|value| value.to_str().is_ok_and(plain)) {
        return Ok(());
    }
    let detail = "a Content-Encoding is not understood here: send the body as it is";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail).hang_up())
}

/// A type that is not named is JSON; parameters make no difference.
///
/// # Errors
/// 415 when another type than these is named.
pub(super) fn refuse_type(headers: &HeaderMap, known: &[&'static str]) -> Result<(), Problem> {
    let Some(named) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let named = named.to_str().unwrap_or("?").split(';').next().unwrap_or_default().trim();
    if named.is_empty() || known.iter().any(|kind| named.eq_ignore_ascii_case(kind)) {
        return Ok(());
    }
    let detail = format!("expected a body of type {}", known.join(" or "));
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail).hang_up())
}

/// The length that a body announces; `None` for one in chunks.
///
/// # Errors
/// 411 when nothing is announced, 413 when it is over [`MAX_BODY`].
pub(super) fn announced(headers: &HeaderMap) -> Result<Option<usize>, Problem> {
    if headers.contains_key(TRANSFER_ENCODING) {
        return Ok(None);
    }
    let length = headers.get(CONTENT_LENGTH).ok_or_else(|| {
        Problem::new(StatusCode::LENGTH_REQUIRED, "a delivery has a body: Content-Length or chunks are missing")
    })?;
    let length = length.to_str().ok().and_then(|n| n.parse::<u64>().ok());
    match length.and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= MAX_BODY) {
        Some(length) => Ok(Some(length)),
        None => Err(too_large()),
    }
}

pub(super) fn too_large() -> Problem {
    let detail = format!("no body may be larger than {} MiB", MAX_BODY / 1024 / 1024);
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).hang_up()
}

/// The bearer token (RFC 6750).
///
/// # Errors
/// 401 when there is none.
pub(super) fn token(headers: &HeaderMap) -> Result<String, Problem> {
    let bearer = |value: &str| {
        let (scheme, token) = value.split_once(' ')?;
        let token = token.trim();
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
    };
    headers
        .get(AUTHORIZATION)
        .and_then(|value| bearer(value.to_str().ok()?))
        .ok_or_else(|| Problem::unauthorized("a token is needed: Authorization: Bearer …"))
}

/// A parameter of the query, read as what is expected of it.
///
/// # Errors
/// 400 with `expected` when it is something else, and so when it is empty.
pub(super) fn parameter<T: FromStr>(query: Option<&str>, name: &str, expected: &str) -> Result<Option<T>, Problem> {
    let bad = || Problem::bad_request(format!("`{name}` in the query is no {expected}"));
    let value = field(query.unwrap_or_default().as_bytes(), name).map_err(|_| bad())?;
    let Some(value) = value else { return Ok(None) };
    let text = String::from_utf8(Cow::into_owned(value)).map_err(|_| bad())?;
    text.parse().map(Some).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.clone(), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn named_types_are_known_or_refused() {
        let known = |named| refuse_type(&headers(&[(CONTENT_TYPE, named)]), &[JSON, FORM]).is_ok();
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/x-www-form-urlencoded", ""] {
            assert!(known(good), "{good}");
        }
        for bad in ["text/plain", "application/jsonx", "multipart/form-data; boundary=x"] {
            assert!(!known(bad), "{bad}");
        }
        assert!(refuse_type(&headers(&[]), &[JSON]).is_ok());
    }

    #[test]
    fn packed_bodies_are_refused() {
        assert!(refuse_encoding(&headers(&[])).is_ok());
        assert!(refuse_encoding(&headers(&[(CONTENT_ENCODING, "identity")])).is_ok());
        for packed in ["gzip", "br", "identity, gzip", ""] {
            assert!(refuse_encoding(&headers(&[(CONTENT_ENCODING, packed)])).is_err(), "{packed}");
        }
    }

    #[test]
    fn lengths_are_announced_and_bounded() {
        let length = |value| announced(&headers(&[(CONTENT_LENGTH, value)]));
        assert_eq!(length("26214400").unwrap(), Some(26_214_400));
        assert!(length("26214401").is_err());
        assert!(length("99999999999999999999").is_err());
        assert!(announced(&headers(&[])).is_err());
        assert_eq!(announced(&headers(&[(TRANSFER_ENCODING, "chunked")])).unwrap(), None);
    }

    #[test]
    fn tokens_stand_behind_bearer() {
        let told = |value| token(&headers(&[(AUTHORIZATION, value)])).ok();
        assert_eq!(told("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(told("bearer  abc ").as_deref(), Some("abc"));
        for bad in ["abc", "Bearer", "Bearer ", "Basic abc"] {
            assert_eq!(told(bad), None, "{bad}");
        }
        assert!(token(&headers(&[])).is_err());
    }

    #[test]
    fn parameters_are_what_is_expected_or_absent() {
        assert_eq!(parameter::<u32>(Some("app=blog&n=5"), "n", "number").unwrap(), Some(5));
        assert_eq!(parameter::<String>(Some("app=%62log&n=5"), "app", "name").unwrap().as_deref(), Some("blog"));
        assert_eq!(parameter::<u32>(None, "n", "number").unwrap(), None);
        for bad in ["n=-1", "n=", "n=1.0"] {
            assert!(parameter::<u32>(Some(bad), "n", "number").is_err(), "{bad}");
        }
        assert!(parameter::<u32>(Some("n=%"), "n", "number").is_err());
    }
}
