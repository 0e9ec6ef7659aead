//! The core that decides. Pure: no clock, no I/O, no async, no log macro. Events and an explicit
//! `now` go in, actions and the next deadline come out; the shells carry the actions out.
//!
//! A room may use the rooms above it in this list, never those below.

pub mod access;
pub mod api;
pub mod config;
pub mod deploy;
pub mod hook;
pub mod model;
pub mod service;
