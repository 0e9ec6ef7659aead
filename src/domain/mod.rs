//! The core that decides. Pure: no clock, no I/O, no async, no log macro. Events and an explicit
//! `now` go in, actions and the next deadline come out; the shells carry the actions out.
//!
//! The rooms build on each other in this order: `model`, `config`, `api`, `hook`, `access`, `service`,
//! `deploy`, `outbox`; none uses one that comes after it. `api` comes early, since a deploy is decided on in the
//! very shape in which it is stored and shown.

pub mod access;
pub mod api;
pub mod config;
pub mod deploy;
pub mod hook;
pub mod model;
pub mod outbox;
pub mod service;
