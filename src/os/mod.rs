//! Linux: every system call that the standard library has no safe name for. The only room with
//! `unsafe`; each block says why it is sound. Speaks plain words (`domain::model`), knows no app.
#![allow(unsafe_code)]

pub mod channel;
pub mod inherited;
pub mod spawn;
