//! The shapes of words that are texts in JSON, for the OpenAPI document.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::domain::model::{AppName, At, CommitId, InstanceId, ReleaseId};

macro_rules! text {
    ($($kind:ident: $schema:tt,)*) => {$(
        impl JsonSchema for $kind {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($kind).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}
text! {
    AppName: { "type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,62}$", "examples": ["blog"] },
    InstanceId: { "type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,62}\\.[1-9][0-9]{0,8}$", "examples": ["blog.1"] },
    CommitId: { "type": "string", "pattern": "^([0-9a-f]{40}|[0-9a-f]{64})$" },
    ReleaseId: { "type": "string", "pattern": "^[1-9][0-9]{0,17}-[0-9a-f]{7}$", "examples": ["7-1a2b3c4"] },
    At: { "type": "string", "format": "date-time", "description": "RFC 3339, UTC, milliseconds" },
}
