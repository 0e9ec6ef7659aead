//! The wish to end.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
};

use futures_core::Stream;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

/// Ready when TERM or INT has come. The handlers stand once this returns.
///
/// # Errors
/// When the handlers cannot be set.
pub(super) fn told_to_end() -> io::Result<impl Future<Output = ()>> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    Ok(async move {
        poll_fn(|cx| Pin::new(&mut signals).poll_next(cx)).await;
    })
}
