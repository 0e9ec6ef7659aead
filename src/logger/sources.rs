//! What is captured: a FIFO and the file that it goes to, found by epoll's token and by name.

use std::{collections::HashMap, num::NonZeroU64, os::fd::OwnedFd, path::Path, sync::Arc};

use super::{lines::Lines, sink::SinkFile};
use crate::domain::{
    api::{How, Stream},
    model::InstanceId,
};

/// A FIFO and where it goes.
pub struct Source {
    pub name: Arc<str>,
    pub stream: Stream,
    pub fifo: OwnedFd,
    pub sink: SinkFile,
    /// Nobody has it open for writing: woken by the next writer only, as it is always "ready".
    pub hung_up: bool,
    /// How often in a row its pipe was full; no more is counted where it has become larger.
    pub full: u8,
    /// An app's output, which is echoed; a job's is not.
    pub is_app: bool,
    /// Of what is echoed.
    pub lines: Option<Box<Lines>>,
}

impl Source {
    #[must_use]
    pub fn new(name: &str, stream: Stream, fifo: OwnedFd, sink: SinkFile) -> Self {
        let is_app = name.parse::<InstanceId>().is_ok();
        Self { name: name.into(), stream, fifo, sink, hung_up: false, full: 0, is_app, lines: None }
    }
}

/// All of them. Boxed, as a table keeps room for more than it has.
#[derive(Default)]
pub struct Sources {
    /// In the order of their tokens, which is that of their coming.
    by_token: Vec<(u64, Box<Source>)>,
    /// The tokens of both streams, none of which is 0.
    by_name: HashMap<Arc<str>, [Option<NonZeroU64>; 2]>,
    /// The ways in which some of them are written.
    ways: Vec<Arc<How>>,
}

impl Sources {
    #[must_use]
    pub fn get(&self, token: u64) -> Option<&Source> {
        Some(&self.by_token[self.place(token).ok()?].1)
    }

    pub fn get_mut(&mut self, token: u64) -> Option<&mut Source> {
        let place = self.place(token).ok()?;
        Some(&mut self.by_token[place].1)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Source> {
        self.by_token.iter_mut().map(|(_, source)| &mut **source)
    }

    #[must_use]
    pub fn all(&self) -> Vec<u64> {
        self.by_token.iter().map(|(token, _)| *token).collect()
    }

    /// Both streams of a name.
    pub fn named(&self, name: &str) -> impl Iterator<Item = u64> + use<> {
        self.by_name.get(name).copied().unwrap_or_default().into_iter().flatten().map(NonZeroU64::get)
    }

    #[must_use]
    pub fn stream(&self, name: &str, stream: Stream) -> Option<u64> {
        self.by_name.get(name)?[stream as usize].map(NonZeroU64::get)
    }

    /// All that go to this file.
    #[must_use]
    pub fn filling(&self, path: &Path) -> Vec<u64> {
        // Bytes are compared, as all of these were made by the same hand; and many at each end of an app.
        let is = |source: &Source| source.sink.path.as_os_str() == path.as_os_str();
        self.by_token.iter().filter(|(_, source)| is(source)).map(|(token, _)| *token).collect()
    }

    /// The one of these that is written in this way already has it.
    pub fn share(&mut self, how: How) -> Arc<How> {
        self.ways.retain(|way| Arc::strong_count(way) > 1);
        if let Some(same) = self.ways.iter().find(|way| ***way == how) {
            return Arc::clone(same);
        }
        let way = Arc::new(how);
        self.ways.push(Arc::clone(&way));
        way
    }

    pub fn insert(&mut self, token: u64, mut source: Source) {
        let names = self.by_name.entry(Arc::clone(&source.name));
        source.name = Arc::clone(names.key());
        names.or_default()[source.stream as usize] = NonZeroU64::new(token);
        let source = (token, Box::new(source));
        match self.place(token) {
            Ok(place) => self.by_token[place] = source,
            Err(place) => self.by_token.insert(place, source),
        }
    }

    pub fn remove(&mut self, token: u64) -> Option<Source> {
        let place = self.place(token).ok()?;
        let (_, source) = self.by_token.remove(place);
        if let Some(tokens) = self.by_name.get_mut(&source.name) {
            tokens[source.stream as usize].take_if(|known| known.get() == token);
            if *tokens == [None; 2] {
                self.by_name.remove(&source.name);
            }
        }
        Some(*source)
    }

    /// Where it is, or would be.
    fn place(&self, token: u64) -> Result<usize, usize> {
        self.by_token.binary_search_by_key(&token, |(token, _)| *token)
    }
}
