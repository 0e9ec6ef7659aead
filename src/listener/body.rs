//! Bodies: read whole under limits of size, time and memory. What is larger than a frame takes goes
//! into a sealed memfd as it comes, so that it is in memory once.

use std::{fs::File, future::poll_fn, io, io::Write, os::fd::OwnedFd, pin::Pin, task::Poll, time::Duration};

use http_body_util::BodyExt;
use hyper::{
    StatusCode,
    body::{Body, Bytes, Frame, Incoming},
};
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{answer::Problem, guests::Guest, request::too_large};
use crate::domain::api::{INLINE_BODY, MAX_BODY};

/// How long a body may take to come.
const TIME: Duration = Duration::from_secs(30);
/// Bytes of bodies over [`INLINE_BODY`] that are under way at a time. They are in memfds, not in this process.
const LARGE: usize = 64 * 1024 * 1024;
/// The same of those up to [`INLINE_BODY`], which need not wait for the large ones.
const SMALL: usize = 16 * 1024 * 1024;

/// Room for the bodies under way, from their first byte to their answer.
pub(super) struct Cellar {
    small: Semaphore,
    large: Semaphore,
}

/// A sealed memfd and its length in bytes.
pub(super) type Sealed = (OwnedFd, usize);

/// A body that is there in full.
pub(super) struct Whole<'a> {
    /// The bytes, where no memfd holds them.
    pub bytes: Bytes,
    pub memfd: Option<Sealed>,
    /// Kept until the answer is known.
    _room: SemaphorePermit<'a>,
}

impl Cellar {
    pub(super) fn new() -> Self {
        Self { small: Semaphore::new(SMALL), large: Semaphore::new(LARGE) }
    }

    /// Reads a body of this announced length (`None`: in chunks).
    ///
    /// # Errors
    /// 408, 413, 400 for one that breaks off, 503 when there is no room.
    pub(super) async fn take(
        &self,
        mut body: Incoming,
        announced: Option<usize>,
        guest: &Guest,
    ) -> Result<Whole<'_>, Problem> {
        let small = announced.filter(|bytes| *bytes <= INLINE_BODY);
        let room = small.and_then(|bytes| Some((bytes, self.small.try_acquire_many(permits(bytes)).ok()?)));
        let Some((bytes, room)) = room else { return Box::pin(self.wait(body, announced, guest)).await };
        let there = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx)));
        let first = if let Poll::Ready(Some(frame)) = there.await { data_of(frame)? } else { Bytes::new() };
        // Most come with their head.
        if first.len() == bytes {
            guest.is_heard();
            return Ok(Whole { bytes: first, memfd: None, _room: room });
        }
        guest.speaks(bytes);
        Box::pin(self.read_in_time(first, body, announced, room, guest)).await
    }

    /// The same where it has to wait for room.
    async fn wait(&self, body: Incoming, announced: Option<usize>, guest: &Guest) -> Result<Whole<'_>, Problem> {
        let room = self.room(announced.unwrap_or(INLINE_BODY), guest).await?;
        self.read_in_time(Bytes::new(), body, announced, room, guest).await
    }

    async fn read_in_time<'a>(
        &'a self,
        first: Bytes,
        body: Incoming,
        announced: Option<usize>,
        room: SemaphorePermit<'a>,
        guest: &Guest,
    ) -> Result<Whole<'a>, Problem> {
        let late = "the body did not come in time";
        let whole = timeout(TIME, self.read(first, body, announced, room, guest))
            .await
            .map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, late).hang_up())?;
        guest.is_heard();
        whole
    }

    /// All at once, so that two half-read bodies never wait for each other.
    async fn room(&self, bytes: usize, guest: &Guest) -> Result<SemaphorePermit<'_>, Problem> {
        let room = if bytes > INLINE_BODY { &self.large } else { &self.small };
        match guest.wait_for(room.acquire_many(permits(bytes))).await {
            Some(Ok(room)) => {
                guest.speaks(bytes);
                Ok(room)
            }
            _ => Err(Problem::unavailable("too many bodies are under way").hang_up()),
        }
    }

    async fn read<'a>(
        &'a self,
        first: Bytes,
        mut body: Incoming,
        announced: Option<usize>,
        mut room: SemaphorePermit<'a>,
        guest: &Guest,
    ) -> Result<Whole<'a>, Problem> {
        let mut store = Store::Memory(Vec::new());
        let mut next = Some(first);
        while let Some(data) = next {
            // It may come in one piece all the same.
            if announced == Some(data.len()) && data.len() <= INLINE_BODY {
                return Ok(Whole { bytes: data, memfd: None, _room: room });
            }
            if let Store::Memory(bytes) = &mut store
                && bytes.is_empty()
                && !data.is_empty()
            {
                bytes.reserve_exact(room.num_permits().min(INLINE_BODY));
            }
            let length = store.len() + data.len();
            if length > MAX_BODY {
                return Err(too_large());
            }
            if store.len() <= INLINE_BODY && length > room.num_permits() {
                // In chunks, and larger than most.
                room = self.room(MAX_BODY, guest).await?;
            }
            store.push(&data).map_err(|e| no_memory(&e))?;
            next = body.frame().await.map(data_of).transpose()?;
        }
        let length = store.len();
        // One in chunks took the most that it may be.
        drop(room.split(room.num_permits().saturating_sub(length)));
        let (bytes, memfd) = store.seal().map_err(|e| no_memory(&e))?;
        Ok(Whole { bytes: bytes.into(), memfd, _room: room })
    }
}

/// What a frame brings: a trailer nothing.
fn data_of(frame: hyper::Result<Frame<Bytes>>) -> Result<Bytes, Problem> {
    let frame = frame.map_err(|_| Problem::bad_request("the body broke off").hang_up())?;
    Ok(frame.into_data().unwrap_or_default())
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.min(MAX_BODY)).expect("25 MiB fit")
}

fn no_memory(error: &io::Error) -> Problem {
    Problem::unavailable(format!("the body cannot be kept: {error}")).hang_up()
}

enum Store {
    Memory(Vec<u8>),
    Memfd(File, usize),
}

impl Store {
    fn len(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::Memfd(_, length) => *length,
        }
    }

    fn push(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Memory(bytes) if bytes.len() + data.len() <= INLINE_BODY => bytes.extend_from_slice(data),
            Self::Memory(bytes) => {
                let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
                let mut file = File::from(memfd_create(c"everhook-body", flags)?);
                file.write_all(bytes)?;
                file.write_all(data)?;
                *self = Self::Memfd(file, bytes.len() + data.len());
            }
            Self::Memfd(file, length) => {
                file.write_all(data)?;
                *length += data.len();
            }
        }
        Ok(())
    }

    /// Nobody changes it any more, this process included: the reader may map it without fear.
    fn seal(self) -> io::Result<(Vec<u8>, Option<Sealed>)> {
        match self {
            Self::Memory(bytes) => Ok((bytes, None)),
            Self::Memfd(file, length) => {
                let seals =
                    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
                fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
                Ok((Vec::new(), Some((file.into(), length))))
            }
        }
    }
}
