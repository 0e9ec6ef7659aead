//! deploy

pub mod accept;
