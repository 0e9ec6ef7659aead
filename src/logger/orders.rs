//! What the supervisor says, and the answers.

use std::{io, os::fd::OwnedFd, path::Path};

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{
    client::{Client, Wish},
    read,
    run::{CHANNEL, Logger},
    runs::{self, Files},
};
use crate::{
    domain::{
        api::{FromLogger, Refusal, RefusalKind, Sink, Stream, ToLogger},
        model::At,
    },
    os::capture::set_nonblocking,
};

impl Logger {
    /// Does what the supervisor says, and sends what waits. Without a supervisor it goes on capturing.
    pub fn hear(&mut self) {
        loop {
            let Some(channel) = &mut self.channel else { return };
            match channel.receive().and_then(|frame| Ok((frame.message()?, frame.fds.into_iter().next()))) {
                Ok((order, fd)) => self.obey(order, fd),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => {
                    if e.kind() != io::ErrorKind::UnexpectedEof {
                        eprintln!("everhook logger: the supervisor's channel is broken: {e}");
                    }
                    self.lose_channel();
                    return;
                }
            }
        }
        self.send();
    }

    /// Answers the supervisor, if there is one.
    pub fn tell(&mut self, message: &FromLogger) {
        if let Some(channel) = &mut self.channel {
            channel.queue(message, &[], None);
            self.send();
        }
    }

    fn send(&mut self) {
        let Some(channel) = &mut self.channel else { return };
        let Ok(done) = channel.flush() else {
            self.lose_channel();
            return;
        };
        let room = if done { EpollFlags::empty() } else { EpollFlags::EPOLLOUT };
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN | room, CHANNEL);
        if let Err(error) = self.epoll.modify(&*channel, &mut event) {
            eprintln!("everhook logger: the supervisor's channel: {error}");
        }
    }

    fn lose_channel(&mut self) {
        if let Some(channel) = self.channel.take() {
            self.forget(&channel);
        }
    }

    fn obey(&mut self, order: ToLogger, fd: Option<OwnedFd>) {
        match order {
            ToLogger::Open { source, stream, sink } => self.begin(&source, stream, sink, fd),
            ToLogger::Retarget { ticket, source, stream, sink } => self.retarget(ticket, &source, stream, sink),
            ToLogger::Close { source } => self.close(|s| s.name == source, None),
            ToLogger::Mark { source, at } => {
                self.mark(&source, at);
                drop(fd);
            }
            ToLogger::Echo { on } => {
                if let Err(error) = self.echo.set(on) {
                    eprintln!("everhook logger: standard output: {error}");
                }
            }
            ToLogger::Tail { ticket, path, n } => self.tail(ticket, &path, n),
            ToLogger::Serve { sources, follow, n, previous, stderr } => {
                self.serve(&Wish { sources, follow, n, previous, stderr }, fd);
            }
            ToLogger::Reopen => self.sinks.values_mut().for_each(|sink| sink.opened = None),
            ToLogger::Finish => self.finished = true,
        }
    }

    fn begin(&mut self, source: &str, stream: Stream, sink: Sink, fifo: Option<OwnedFd>) {
        let opened = match fifo {
            Some(fifo) => self.open(source.to_owned(), stream, sink, fifo),
            None => Err(io::Error::other("no FIFO came with it")),
        };
        if let Err(error) = opened {
            eprintln!("everhook logger: {source} {} cannot be captured: {error}", stream.as_str());
        }
    }

    fn retarget(&mut self, ticket: u64, name: &str, stream: Stream, sink: Sink) {
        self.drain_where(|s| s.name == name && s.stream == stream);
        let path = self.sink(sink);
        let source = self.sources.values_mut().find(|s| s.name == name && s.stream == stream);
        let old = source.map(|source| std::mem::replace(&mut source.sink, path.clone()));
        if let Some(old) = old.filter(|old| *old != path) {
            self.leave(name, &old);
        }
        self.leave(name, &path);
        self.tell(&FromLogger::Done { ticket });
    }

    fn mark(&mut self, name: &str, at: At) {
        self.drain_where(|s| s.name == name);
        let files = self.sources.values().find(|s| s.name == name).and_then(|s| Files::of(&s.sink));
        let Some(files) = files else { return };
        if let Err(error) = runs::note(&files, at) {
            eprintln!("everhook logger: {}: {error}", files.runs.display());
        }
    }

    fn tail(&mut self, ticket: u64, path: &Path, n: u32) {
        let (lines, refusal) = if read::is_below(path, &self.logs) {
            self.drain_where(|s| s.sink == path);
            match read::lines(path, n.into()) {
                Ok(lines) => (lines, None),
                Err(e) => (Vec::new(), Some(Refusal::new(RefusalKind::Failed, format!("{}: {e}", path.display())))),
            }
        } else {
            let why = format!("{} is not below {}", path.display(), self.logs.display());
            (Vec::new(), Some(Refusal::new(RefusalKind::Forbidden, why)))
        };
        self.tell(&FromLogger::Lines { ticket, lines, refusal });
    }

    fn serve(&mut self, wish: &Wish, socket: Option<OwnedFd>) {
        let Some(socket) = socket else { return };
        let names = |path: &Path| wish.sources.iter().any(|s| s.out == path || s.err == path);
        if let Some(bad) = wish.sources.iter().flat_map(|s| [&s.out, &s.err]).find(|p| !read::is_below(p, &self.logs)) {
            eprintln!("everhook logger: {} is not below {}", bad.display(), self.logs.display());
            return;
        }
        self.drain_where(|s| names(&s.sink));
        let token = self.token();
        let watched = set_nonblocking(&socket)
            .and_then(|()| Ok(self.epoll.add(&socket, EpollEvent::new(EpollFlags::empty(), token))?));
        if let Err(error) = watched {
            eprintln!("everhook logger: a reader's socket: {error}");
            return;
        }
        self.clients.insert(token, Client::new(socket, wish, self.closer.clone()));
        self.step_client(token);
    }
}
