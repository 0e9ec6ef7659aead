//! Whose output the logger captures, and into which file. It is told everything anew when it is: what it is
//! to know follows from what runs.

use std::{collections::hash_map::Entry, os::fd::OwnedFd, sync::Arc};

use tracing::warn;

use super::{Supervisor, jobs::stream_name};
use crate::{
    domain::{
        api::{Sink, Stream, ToLogger},
        config::{self, Identity},
        model::{AppName, DeployId, InstanceId, Size},
        service::Seat,
    },
    os::fifo,
};

/// Of a deploy's log the last part and what there is of the next one are kept: what a step that floods it
/// said at last tells more than what it said first.
const LOG_PART: Size = Size(5 << 20);

/// What an app's deploys write to.
pub struct DeployStream {
    /// The child's end.
    pub fifo: Arc<OwnedFd>,
    /// Whose log the logger writes it to.
    captured: Option<DeployId>,
}

/// What the logger calls the output of an app's deploys.
fn log_source(app: &AppName) -> String {
    format!("{app}/deploy")
}

impl Supervisor {
    /// Has a logger that knows nothing capture all there is.
    pub fn capture_everything(&self) {
        self.apps.values().for_each(|app| self.capture(app.spec()));
        for (app, stream) in &self.deploy_streams {
            if let Some(deploy) = stream.captured {
                self.capture_deploy(app, &stream.fifo, deploy);
            }
        }
    }

    /// Has an app's output captured as its config says now.
    pub fn capture(&self, app: &config::App) {
        if app.command.is_none() {
            return;
        }
        let Some(shell) = self.shells.get(&app.name) else { return };
        for number in shell.numbers() {
            let Some(seat) = shell.seat(Seat::first(number)) else { continue };
            let id = InstanceId { app: app.name.clone(), number };
            let sink = |stream| Sink::of(self.layout.log(&id, stream), &app.logs);
            let outputs = [(Stream::Out, &*seat.kit.out), (Stream::Err, &*seat.kit.err)];
            self.logger.open(&id.to_string(), outputs.map(|(stream, output)| (stream, output, sink(stream))));
        }
    }

    fn deploy_sink(&self, deploy: DeployId) -> Sink {
        Sink::raw(self.layout.deploy_log(deploy), Some(LOG_PART), 1).with(|how| how.veiled = true)
    }

    fn capture_deploy(&self, app: &AppName, fifo: &OwnedFd, deploy: DeployId) {
        self.logger.open(&log_source(app), [(Stream::Out, fifo, self.deploy_sink(deploy))]);
    }

    /// Goes on once the output of this app's jobs goes to the log of this deploy, with what they wrote before in
    /// the log of theirs.
    pub fn with_deploy_log(
        &mut self,
        app: &config::App,
        deploy: DeployId,
        then: impl FnOnce(&mut Supervisor) + Send + 'static,
    ) {
        let Some(fifo) = self.deploy_stream(&app.name, &app.work_as) else { return then(self) };
        let before = self.deploy_streams.get_mut(&app.name).and_then(|stream| stream.captured.replace(deploy));
        if before == Some(deploy) {
            return then(self);
        }
        if before.is_none() || !self.logger.is_there() {
            self.capture_deploy(&app.name, &fifo, deploy);
            return then(self);
        }
        let (ticket, source, sink) = (self.ticket(), log_source(&app.name), self.deploy_sink(deploy));
        self.logger.tell(ToLogger::Retarget { ticket, source, stream: Stream::Out, sink }, None);
        self.retargets.insert(ticket, Box::new(then));
    }

    /// The child's end of the FIFO that this app's deploys write to.
    pub fn deploy_stream(&mut self, app: &AppName, who: &Identity) -> Option<Arc<OwnedFd>> {
        match self.deploy_streams.entry(app.clone()) {
            Entry::Occupied(known) => Some(Arc::clone(&known.get().fifo)),
            Entry::Vacant(place) => match self.maker.stream(&stream_name(app), Stream::Out, who) {
                Ok(fifo) => {
                    let stream = DeployStream { fifo: Arc::new(fifo), captured: None };
                    Some(Arc::clone(&place.insert(stream).fifo))
                }
                Err(error) => {
                    warn!(%app, "{error}");
                    None
                }
            },
        }
    }

    /// Forgets what the deploys of an app wrote to, which has another name now.
    pub fn forget_deploy_stream(&mut self, old: &AppName) {
        self.deploy_streams.remove(old);
        self.logger.close(&log_source(old));
    }

    /// What is captured goes to the files of another name; those that are there go along.
    pub fn rename_outputs(&self, old: &AppName, spec: &config::App) {
        for number in self.shells.get(&spec.name).into_iter().flat_map(|shell| shell.numbers()) {
            let to = InstanceId { app: spec.name.clone(), number };
            let source = InstanceId { app: old.clone(), number }.to_string();
            let sinks =
                [Stream::Out, Stream::Err].map(|stream| (stream, Sink::of(self.layout.log(&to, stream), &spec.logs)));
            let from = self.layout.logs().join(old.as_str());
            self.logger.tell(ToLogger::Rename { source, to: to.to_string(), from, sinks: sinks.into() }, None);
        }
    }

    /// Makes a FIFO larger. Where we may not either, it stays as it is, which costs speed alone.
    pub fn widen(&self, source: &str, stream: Stream) {
        let of_instance = |id: InstanceId| {
            let kit = &self.shells.get(&id.app)?.seat(Seat::first(id.number))?.kit;
            Some(if stream == Stream::Out { &kit.out } else { &kit.err })
        };
        let of_deploys = || self.deploy_streams.iter().find(|(app, _)| log_source(app) == source);
        let fifo = match source.parse() {
            Ok(id) => of_instance(id),
            Err(_) => of_deploys().map(|(_, stream)| &stream.fifo),
        };
        let _ = fifo.map(|fifo| fifo::set_pipe_size(fifo, fifo::WIDE));
    }
}
