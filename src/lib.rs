//! everhook keeps the apps of a server alive and deploys the newest commit when a forge calls its
//! webhook. The map of the house, a line a room:
//!
//! - [`domain`] decides: pure rules, no I/O
//! - [`supervisor`] is the process that keeps everything alive and carries decisions out
//! - [`listener`] takes HTTP in; `everhook serve`
//! - [`logger`] moves apps' output from FIFOs to rotated files
//! - [`courier`] tells forges what became of their commits
//! - [`step`] becomes a command of a deploy, and gives up what that may not have
//! - [`tree`] works below a release as the app's user
//! - [`cli`] is what a person types
//! - [`os`] is Linux; the only `unsafe`

pub mod cli;
pub mod courier;
pub mod domain;
pub mod listener;
pub mod logger;
pub mod os;
pub mod step;
pub mod supervisor;
pub mod tree;
