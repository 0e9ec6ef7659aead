//! What processes and people say to each other: requests and replies of every client, the views of
//! SURFACE.md section 4, and the messages of the internal channels. CLI, HTTP and control socket
//! speak these types and no others.
//!
//! On every stream a message is one frame of `os::channel`: a JSON head, and bytes or a passed
//! descriptor beside it where the type says so.

mod courier;
mod hooks;
mod http;
mod listener;
mod logger;
mod metrics;
mod people;
mod places;
mod preview;
#[cfg(test)]
mod schema;
mod step;
mod tree;
mod view;

pub use courier::*;
pub use hooks::*;
pub use http::*;
pub use listener::*;
pub use logger::*;
pub use metrics::*;
pub use people::*;
pub use places::*;
pub use preview::*;
pub use step::*;
pub use tree::*;
pub use view::*;
