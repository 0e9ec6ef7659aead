//! Linux: every system call that the standard library has no safe name for. The only room with
//! `unsafe`; each block says why it is sound. Speaks plain words (`domain::model`), knows no app.
#![allow(unsafe_code)]

pub mod accepted;
pub mod access;
#[cfg(test)]
mod alone;
pub mod app_file;
pub mod beneath;
mod call;
pub mod capture;
pub mod cgroup;
pub mod channel;
pub mod clock;
pub mod confine;
pub mod fifo;
pub mod files;
pub mod held;
pub mod holder;
pub mod identity;
pub mod inherited;
pub mod init;
pub mod limits;
pub mod lock;
pub mod mask;
pub mod memfd;
pub mod memory;
pub mod mounts;
pub mod notes;
pub mod notify;
pub mod open_files;
pub mod pair_files;
pub mod pidfd;
pub mod reap;
pub mod record;
pub mod replace;
pub mod sandbox;
pub mod secret_file;
pub mod socket;
pub mod spawn;
pub mod stat;
pub mod threads;
pub mod timer;
pub mod tree;
pub mod users;
pub mod watched;
pub mod wiped;
