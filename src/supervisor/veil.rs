//! What is hidden in everything that everhook writes down or answers: the log, the store, the logs of deploys, and
//! what clients are told. An app's own log is the app's own. DESIGN.md section 9.
//!
//! There is one for the process, as there is one log of it: whatever thread writes, it is the same.

use std::{
    io,
    sync::{Arc, PoisonError, RwLock},
};

use serde::Serialize;
use serde_json::value::RawValue;
use tracing_subscriber::fmt::MakeWriter;

use super::{Supervisor, ledger::Command};
use crate::{
    domain::model::{Secret, Veil},
    os::wiped::Wiped,
};

static VEIL: RwLock<Option<Arc<Veil>>> = RwLock::new(None);

/// Hides this from now on, and nothing else.
pub fn set(veil: &Veil) {
    *VEIL.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(veil.clone()));
}

impl Supervisor {
    /// Hides these too, which were exchanged since the config was read.
    pub fn hide<'a>(&mut self, secrets: impl IntoIterator<Item = &'a Secret>) {
        let veil = now().unwrap_or_default();
        let more = veil.with(secrets);
        if more != *veil {
            set(&more);
            self.logger.set_veil(more);
        }
    }
}

fn now() -> Option<Arc<Veil>> {
    VEIL.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A person's words without secrets.
pub fn text(words: &str) -> String {
    now().map_or_else(|| words.to_owned(), |veil| veil.text(words).into_owned())
}

/// Takes secrets out of these. Nearly always there are none, which is seen of all at once: no secret holds a newline.
pub fn clean_all<'a>(texts: impl IntoIterator<Item = &'a mut String>) {
    let Some(veil) = now() else { return };
    let texts: Vec<&mut String> = texts.into_iter().collect();
    let mut joined = Wiped::with_capacity(texts.iter().map(|text| text.len() + 1).sum());
    for text in &texts {
        joined.extend(text.as_bytes());
        joined.extend(b"\n");
    }
    if veil.hides(&joined) {
        texts.into_iter().for_each(|text| veil.clean(text));
    }
}

/// A message without secrets; `None` where it cannot be written, which plain data always can.
pub fn message(message: &impl Serialize) -> Option<Box<RawValue>> {
    let mut text = serde_json::to_string(message).ok()?;
    if let Some(veil) = now() {
        veil.clean(&mut text);
    }
    RawValue::from_string(text).ok()
}

/// Takes secrets out of what is to be stored.
pub fn clean(command: &mut Command) {
    let texts: Vec<&mut String> = match command {
        Command::Event(event) => [&mut event.cause, &mut event.detail].into_iter().flatten().collect(),
        Command::Audit(audit) => audit.app.iter_mut().chain(&mut audit.reason).collect(),
        Command::NewDeploy(new) => new.rev.iter_mut().collect(),
        Command::Update { deploy, .. } => {
            let commands = deploy.steps.iter_mut().filter_map(|step| step.command.as_mut());
            deploy.reason.iter_mut().chain(commands).collect()
        }
        _ => Vec::new(),
    };
    clean_all(texts);
}

/// Writes lines of the log, each as a whole.
#[derive(Clone)]
pub struct Veiled<W>(pub W);

impl<W: io::Write> io::Write for Veiled<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match now() {
            None => self.0.write_all(line)?,
            Some(veil) => self.0.write_all(veil.text(&String::from_utf8_lossy(line)).as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<'a, W: io::Write + Clone + 'a> MakeWriter<'a> for Veiled<W> {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
