//! The OpenAPI document: what `/api/v1` and its neighbours take and answer.
//!
//! `document.json` is made out of the types of `domain::api` and the table in `document.rs`, in the tests alone:
//! the listener carries a finished text. A test fails when the two differ, or when a route is missing.

#[cfg(test)]
mod document;

/// OpenAPI 3.1.
pub(super) const DOCUMENT: &str = include_str!("document.json");
