//! Who reads logs: the right was judged, the logger does the rest on the client's own socket.

use super::{Supervisor, control::ReplyTo, event::Event, ledger::Query};
use crate::domain::{
    api::{LogFeed, LogPlace, LogWish, LogsRequest, Reply, Saying, Stream, ToLogger},
    config::Form,
    model::{AppName, DeployId, InstanceId},
};

impl Supervisor {
    /// Serves the output of these instances.
    pub fn serve_logs(&self, ids: &[InstanceId], logs: LogsRequest, token: Option<String>, reply: &ReplyTo) {
        let streams = if logs.stderr { &[Stream::Err][..] } else { &[Stream::Out, Stream::Err] };
        let mut feeds = Vec::new();
        for id in ids {
            let form = self.apps.get(&id.app).map_or(Form::Raw, |app| app.spec().logs.form);
            for stream in streams {
                let (instance, path) = (id.to_string(), self.layout.log(id, *stream));
                let from = resumed(&logs, &instance, *stream);
                feeds.push(LogFeed { instance, stream: *stream, path, form, from });
            }
        }
        self.hand_to_logger(feeds, logs, None, token, reply);
    }

    /// Serves the log of a deploy, until it is over.
    pub fn serve_deploy_log(
        &mut self,
        id: DeployId,
        apps: Option<Vec<AppName>>,
        mut logs: LogsRequest,
        token: Option<String>,
        reply: ReplyTo,
    ) {
        self.ask_ledger(Query::Deploy { id, apps }, move |supervisor, found| match found {
            Ok(Reply::Deploy { deploy, .. }) => {
                logs.follow &= deploy.ended_at.is_none();
                let instance = format!("deploy {id}");
                let from = resumed(&logs, &instance, Stream::Out);
                let path = supervisor.layout.deploy_log(id);
                let feed = LogFeed { instance, stream: Stream::Out, path, form: Form::Raw, from };
                supervisor.hand_to_logger(vec![feed], logs, Some(id), token, &reply);
            }
            Ok(_) => {}
            Err(refusal) => {
                reply.say(Saying::Refused(refusal));
            }
        });
    }

    /// A deploy's log is whole: nobody follows it further.
    pub fn end_deploy_log(&self, id: DeployId) {
        self.logger.tell(ToLogger::End { path: self.layout.deploy_log(id) }, None);
    }

    /// `deploy`: whose log it is, where nobody follows one that is over. `token`: what opened it; the logger lets
    /// the client go when that is taken back.
    fn hand_to_logger(
        &self,
        feeds: Vec<LogFeed>,
        logs: LogsRequest,
        deploy: Option<DeployId>,
        token: Option<String>,
        reply: &ReplyTo,
    ) {
        let LogsRequest { follow, n, previous, since, grep, .. } = logs;
        let message =
            ToLogger::Serve { feeds, token: token.clone(), wish: LogWish { follow, n, previous, since, grep } };
        let events = self.events.clone();
        reply.hand_over(move |socket| {
            let then = move |supervisor: &mut Supervisor| {
                if token.is_some_and(|name| supervisor.tokens.source_of(&name).is_none()) {
                    // The client that loses its socket sees that it is over.
                    return;
                }
                supervisor.logger.tell_any(message, socket);
                // Its end was told before, if that came while this was on its way.
                if let Some(id) = deploy.filter(|id| supervisor.deploys.find(*id).is_none()) {
                    supervisor.end_deploy_log(id);
                }
            };
            let _ = events.send(Event::Then(Box::new(then)));
        });
    }
}

/// Where a client goes on that lost its logger.
fn resumed(logs: &LogsRequest, instance: &str, stream: Stream) -> Option<LogPlace> {
    let mark = logs.resume.iter().find(|mark| mark.instance == instance && mark.stream == stream.as_str())?;
    Some(mark.place)
}
