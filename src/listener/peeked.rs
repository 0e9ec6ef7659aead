//! A connection whose next bytes were read already, so that one that says nothing needs no buffer, and whose end
//! can wait until what was asked is answered.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::body::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much is kept while a request waits for its turn.
const FIRST: usize = 64;

/// Waits for the next bytes; none at the end.
///
/// # Errors
/// When the connection breaks.
pub(super) async fn first(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    poll_fn(|cx| {
        // On this poll's stack alone.
        let mut space = [MaybeUninit::uninit(); FIRST];
        let mut read = ReadBuf::uninit(&mut space);
        Pin::new(&mut *stream).poll_read(cx, &mut read).map_ok(|()| Bytes::copy_from_slice(read.filled()))
    })
    .await
}

/// What was read, and then the rest.
pub(super) struct Peeked<S, W> {
    first: Bytes,
    stream: S,
    waits: W,
}

impl<S, W: Fn() -> bool> Peeked<S, W> {
    /// A peer that ends its side while an answer `waits` for nothing but us is not gone: it has said everything.
    /// hyper's own `half_close` would hold for streams too, and those are to end with their peer.
    pub(super) fn new(first: Bytes, stream: S, waits: W) -> Self {
        Self { first, stream, waits }
    }

    /// The connection, and what nobody has read of it yet.
    pub(super) fn into_parts(self) -> (S, Bytes) {
        (self.stream, self.first)
    }
}

impl<S: AsyncRead + Unpin, W: Fn() -> bool + Unpin> AsyncRead for Peeked<S, W> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            let before = into.filled().len();
            return match Pin::new(&mut self.stream).poll_read(cx, into) {
                // Whoever has the answer reads on after it, and finds the end.
                Poll::Ready(Ok(())) if into.filled().len() == before && (self.waits)() => Poll::Pending,
                read => read,
            };
        }
        let length = self.first.len().min(into.remaining());
        into.put_slice(&self.first[..length]);
        self.first.advance(length);
        if self.first.is_empty() {
            // Its memory is not needed any more.
            self.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin, W: Unpin> AsyncWrite for Peeked<S, W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Left to whoever takes the connection back: it may go on.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
