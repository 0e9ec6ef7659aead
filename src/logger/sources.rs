//! What is captured: a FIFO and the file that it goes to, found by epoll's token and by name.

use std::{collections::HashMap, os::fd::OwnedFd, path::Path, sync::Arc};

use super::{lines::Lines, sink::SinkFile};
use crate::domain::{api::Stream, model::InstanceId};

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
    by_token: HashMap<u64, Box<Source>>,
    /// The tokens of both streams.
    by_name: HashMap<Arc<str>, [Option<u64>; 2]>,
}

impl Sources {
    #[must_use]
    pub fn get(&self, token: u64) -> Option<&Source> {
        self.by_token.get(&token).map(|source| &**source)
    }

    pub fn get_mut(&mut self, token: u64) -> Option<&mut Source> {
        self.by_token.get_mut(&token).map(|source| &mut **source)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Source> {
        self.by_token.values_mut().map(|source| &mut **source)
    }

    #[must_use]
    pub fn all(&self) -> Vec<u64> {
        self.by_token.keys().copied().collect()
    }

    /// Both streams of a name.
    pub fn named(&self, name: &str) -> impl Iterator<Item = u64> + use<> {
        self.by_name.get(name).copied().unwrap_or_default().into_iter().flatten()
    }

    #[must_use]
    pub fn stream(&self, name: &str, stream: Stream) -> Option<u64> {
        self.by_name.get(name)?[stream as usize]
    }

    /// All that go to this file.
    #[must_use]
    pub fn filling(&self, path: &Path) -> Vec<u64> {
        // Bytes are compared, as all of these were made by the same hand; and many at each end of an app.
        let is = |source: &Source| source.sink.sink.path.as_os_str() == path.as_os_str();
        self.by_token.iter().filter(|(_, source)| is(source)).map(|(token, _)| *token).collect()
    }

    pub fn insert(&mut self, token: u64, mut source: Source) {
        let names = self.by_name.entry(Arc::clone(&source.name));
        source.name = Arc::clone(names.key());
        names.or_default()[source.stream as usize] = Some(token);
        self.by_token.insert(token, Box::new(source));
    }

    pub fn remove(&mut self, token: u64) -> Option<Source> {
        let source = *self.by_token.remove(&token)?;
        if let Some(tokens) = self.by_name.get_mut(&source.name) {
            tokens[source.stream as usize].take_if(|known| *known == token);
            if *tokens == [None; 2] {
                self.by_name.remove(&source.name);
            }
        }
        Some(source)
    }
}
