//! What the supervisor says, and the answers.

use std::{io, os::fd::OwnedFd, path::Path};

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{
    client::Client,
    history::{Chapter, End, Past},
    read,
    run::{CHANNEL, Logger},
    runs::{self, Files},
};
use crate::{
    domain::{
        api::{FromLogger, LARGEST_VEIL, LogFeed, LogWish, Refusal, RefusalKind, Sink, Stream, ToLogger},
        config::Form,
        model::{At, Secret, Veil},
    },
    os::{capture::set_nonblocking, files, memfd, memory, notes::Notes},
};

impl Logger {
    /// Does what the supervisor says, and sends what waits. Without a supervisor it goes on capturing.
    pub fn hear(&mut self) {
        while let Some(channel) = &mut self.channel {
            match channel.receive().and_then(|frame| Ok((frame.message()?, frame.fds))) {
                Ok((order, fds)) => {
                    // Whatever was marked before this was said comes before it.
                    self.heed_marks();
                    self.obey(order, fds);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => {
                    if e.kind() != io::ErrorKind::UnexpectedEof {
                        eprintln!("everhook logger: the supervisor's channel is broken: {e}");
                    }
                    self.lose_channel();
                }
            }
        }
        self.send();
    }

    /// Notes the runs that have begun without waiting for us, before the first byte of theirs is read.
    ///
    /// Such a run begins at FIFOs that were empty: all that was in them before has been read by us, and, as we
    /// write what we read before anything else, it is in the file (or a successor of ours writes it before it
    /// hears anything: `Capture::take_over`). The run's mark is left before its program is executed.
    /// So whoever first counts what a FIFO holds, then looks here, and then reads no more than it counted,
    /// reads no byte of the run without having noted where it begins. (Of two seats with one FIFO the older
    /// one may write between; that is before the new run's first byte, or beside it, in any case.)
    pub fn heed_marks(&mut self) {
        while let Some(mark) = self.marks.as_ref().and_then(Notes::take) {
            let ToLogger::Mark { source, at } = mark else { continue };
            self.begun = true;
            if !self.note(&source, at) {
                // That it is to be captured, or called so, is still to be heard.
                self.unplaced.insert(source, at);
            }
        }
    }

    /// A source has this name from now on.
    pub fn place_mark(&mut self, name: &str) {
        if let Some(at) = self.unplaced.remove(name) {
            self.note(name, at);
        }
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

    fn obey(&mut self, order: ToLogger, mut fds: Vec<OwnedFd>) {
        match order {
            ToLogger::Open { source, sinks } => self.begin(&source, sinks, fds),
            ToLogger::Retarget { ticket, source, stream, sink } => self.retarget(ticket, &source, stream, sink),
            ToLogger::Marks => {
                self.marks = fds.pop().map(Notes::new);
                self.unplaced.clear();
            }
            // It was done when this was heard.
            ToLogger::Look => {}
            ToLogger::Close { source } => self.close(self.sources.named(&source)),
            ToLogger::Rename { source, to, from, sinks } => self.rename(&source, &to, &from, sinks),
            ToLogger::Mark { source, at } => {
                self.sources.named(&source).for_each(|token| self.drain(token));
                self.note(&source, at);
                drop(fds);
            }
            ToLogger::Echo { on } => {
                if let Err(error) = self.echo.set(on) {
                    eprintln!("everhook logger: standard output: {error}");
                }
            }
            ToLogger::Tail { ticket, path, n, run } => self.tail(ticket, &path, n, run),
            ToLogger::Serve { feeds, token, wish } => self.serve(feeds, token, wish, fds.pop()),
            ToLogger::Dismiss { token } => self.dismiss_of(&token),
            ToLogger::End { path } => self.end(&path),
            ToLogger::Veil => {
                let packed = fds.pop().ok_or_else(|| io::ErrorKind::InvalidData.into());
                match packed.and_then(|fd| memfd::read_sealed(fd, LARGEST_VEIL)) {
                    Ok(packed) => self.capture.set_veil(Veil::unpack(&Secret::new(packed))),
                    Err(error) => eprintln!("everhook logger: what is to be hidden is not known: {error}"),
                }
            }
            ToLogger::GiveBack => memory::give_back_at_rest(),
            ToLogger::Reopen => self.sources.values_mut().for_each(|source| source.sink.opened = None),
            ToLogger::Finish => self.finished = true,
        }
    }

    fn begin(&mut self, source: &str, sinks: Vec<(Stream, Sink)>, fifos: Vec<OwnedFd>) {
        for ((stream, sink), fifo) in sinks.into_iter().zip(fifos) {
            if let Err(error) = self.open(source, stream, sink, fifo) {
                eprintln!("everhook logger: {source} {} cannot be captured: {error}", stream.as_str());
            }
        }
        self.place_mark(source);
    }

    fn retarget(&mut self, ticket: u64, name: &str, stream: Stream, sink: Sink) {
        if let Some(token) = self.sources.stream(name, stream) {
            self.drain(token);
            if let Some(mut source) = self.sources.remove(token) {
                source.sink = self.file(name, Some(source.sink), sink);
                self.sources.insert(token, source);
            }
        }
        self.tell(&FromLogger::Done { ticket });
    }

    fn rename(&mut self, name: &str, to: &str, from: &Path, sinks: Vec<(Stream, Sink)>) {
        let folder = sinks.first().and_then(|(_, sink)| sink.path.parent()).map(Path::to_owned);
        let mut renamed = Vec::new();
        for (stream, sink) in sinks {
            let Some(token) = self.sources.stream(name, stream) else { continue };
            self.drain(token);
            if let Some(mut source) = self.sources.remove(token) {
                self.close_file(name, &mut source.sink);
                let old = &source.sink.path;
                self.clients.values_mut().for_each(|client| client.renamed(old, &sink.path, to));
                renamed.push((token, source, sink));
            }
        }
        if let Some(folder) = folder {
            let aside = self.aside.clone();
            let _names = aside.names();
            if let Err(error) = files::move_named(from, &folder, name, to) {
                eprintln!("everhook logger: the logs of {name} cannot be taken over by {to}: {error}");
            }
        }
        for (token, mut source, sink) in renamed {
            source.name = to.into();
            source.sink = self.file(to, None, sink);
            self.sources.insert(token, source);
        }
        self.place_mark(to);
        self.step_clients();
    }

    /// Notes that a run begins where the logs end; false: there is no such source.
    fn note(&self, name: &str, at: At) -> bool {
        let source = self.sources.named(name).next().and_then(|token| self.sources.get(token));
        let Some(files) = source.and_then(|source| Files::of(&source.sink.path)) else { return false };
        if let Err(error) = runs::note(&files, at) {
            eprintln!("everhook logger: {}: {error}", files.runs.display());
        }
        true
    }

    fn tail(&mut self, ticket: u64, path: &Path, n: u32, run: Option<At>) {
        let (lines, refusal) = if read::is_below(path, &self.logs) {
            let form = self.drain_into(path).unwrap_or(Form::Raw);
            let run = run.and_then(|at| runs::begun_at(path, at));
            match read::lines(path, form, n as usize, run) {
                Ok(lines) => (lines, None),
                Err(e) => (Vec::new(), Some(Refusal::new(RefusalKind::Failed, format!("{}: {e}", path.display())))),
            }
        } else {
            let why = format!("{} is not below {}", path.display(), self.logs.display());
            (Vec::new(), Some(Refusal::new(RefusalKind::Forbidden, why)))
        };
        self.tell(&FromLogger::Lines { ticket, lines, refusal });
    }

    /// Moves what the FIFOs of this file hold to it; how its lines are written, where they are.
    fn drain_into(&mut self, path: &Path) -> Option<Form> {
        let tokens = self.sources.filling(path);
        tokens.iter().for_each(|token| self.drain(*token));
        self.sources.get(*tokens.first()?).map(|source| source.sink.how.form)
    }

    fn end(&mut self, path: &Path) {
        self.drain_into(path);
        for client in self.clients.values_mut() {
            client.ended(path);
        }
        self.step_clients();
    }

    fn serve(&mut self, feeds: Vec<LogFeed>, opener: Option<String>, wish: LogWish, socket: Option<OwnedFd>) {
        let Some(socket) = socket else { return };
        if let Some(bad) = feeds.iter().find(|feed| !read::is_below(&feed.path, &self.logs)) {
            eprintln!("everhook logger: {} is not below {}", bad.path.display(), self.logs.display());
            return;
        }
        for feed in &feeds {
            self.drain_into(&feed.path);
        }
        if let Err(error) = self.begin_to_serve(feeds, opener, wish, socket) {
            eprintln!("everhook logger: a reader's socket: {error}");
        }
    }

    fn begin_to_serve(
        &mut self,
        feeds: Vec<LogFeed>,
        opener: Option<String>,
        mut wish: LogWish,
        socket: OwnedFd,
    ) -> io::Result<()> {
        set_nonblocking(&socket)?;
        let token = self.token();
        wish.follow &= !wish.previous;
        let (socket, chapters) = if wish.follow {
            let theirs = socket.try_clone()?;
            self.epoll.add(&socket, EpollEvent::new(EpollFlags::empty(), token))?;
            let client = Client::new(socket, feeds, opener, self.aside.clone());
            let past = client.past();
            self.clients.insert(token, client);
            (theirs, past)
        } else {
            (socket, feeds.into_iter().map(|feed| Chapter { feed, end: End::Open }).collect())
        };
        let bell = self.bell.clone();
        self.telling += 1;
        Past { socket, chapters, wish, aside: self.aside.clone() }.tell(move |filter| bell.ring(token, filter));
        Ok(())
    }
}
