//! `everhook exec`: a command run as an app, with its client's own streams. It lives as long as its
//! client's connection.

use std::{os::fd::OwnedFd, sync::Arc};

use super::{Supervisor, control::ReplyTo, event::Event, launch};
use crate::{
    domain::{
        api::{Refusal, RefusalKind, Reply, Saying},
        config,
        model::{AppName, InstanceId},
    },
    os::spawn::SpawnSpec,
};

/// What somebody wants to run.
pub struct Order {
    /// Whose environment it gets.
    pub instance: InstanceId,
    pub command: Vec<String>,
    pub streams: Vec<OwnedFd>,
    pub reply: ReplyTo,
}

impl Supervisor {
    /// Starts the command; its end is the answer.
    ///
    /// # Errors
    /// When it cannot be described, or the streams did not come along.
    pub fn exec(&mut self, order: Order) -> Result<(), Refusal> {
        let Order { instance, command, streams, reply } = order;
        let failed = |message: String| Refusal::new(RefusalKind::Failed, message);
        let Ok(streams) = <[OwnedFd; 3]>::try_from(streams) else {
            return Err(Refusal::new(
                RefusalKind::BadRequest,
                "exec needs its client's streams: ask over control.sock",
            ));
        };
        let app = instance.app.clone();
        let name = format!("{instance}.exec-{}", self.ticket());
        let mut spec = self.command_spec(&app, &instance, &command, &name, &[]).map_err(failed)?;
        spec.fds = (0..).zip(streams).map(|(number, stream)| (Arc::new(stream), number)).collect();
        spec.cgroup = self.limited_group(&app, &name);
        let answer = reply.clone();
        let job = self.start_command(&app, name, spec, move |_, end| {
            answer.say(match end.error {
                None => Saying::Done(Reply::Exited { exit: end.exit }),
                Some(error) => {
                    Saying::Refused(Refusal::new(RefusalKind::Failed, format!("could not be started: {error}")))
                }
            });
        });
        let events = self.events.clone();
        tokio::spawn(async move {
            reply.gone().await;
            let _ = events.send(Event::Then(Box::new(move |supervisor| supervisor.end_job(job))));
        });
        Ok(())
    }

    /// A command as the app, in the name of a job, with these variables beside the app's.
    ///
    /// # Errors
    /// When the app cannot run, or the command cannot be described.
    pub fn command_spec(
        &self,
        name: &AppName,
        instance: &InstanceId,
        command: &[String],
        job: &str,
        more: &[(&str, String)],
    ) -> Result<SpawnSpec, String> {
        let app = self.apps.get(name).ok_or("the app is gone")?;
        let spec: &config::App = app.spec();
        if let Some(problem) = &spec.problem {
            return Err(problem.to_string());
        }
        if spec.deploy.is_some() && app.release().is_none() {
            return Err(format!("{name} has no release yet: there is no directory to run in"));
        }
        let env_file = self.shells.get(name).map(|shell| shell.env_file.clone()).unwrap_or_default();
        let mut env = launch::instance_env(spec, instance, app.release(), &self.me.boot, &env_file);
        env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        // Its processes are none of the instance's.
        env.insert("EVERHOOK_INSTANCE".to_owned(), job.to_owned());
        let mut order = launch::spec(command, &env, &spec.run_as, self.me.root).map_err(|error| error.to_string())?;
        launch::limit(&mut order, &spec.limits);
        order.directory = launch::directory(spec, app.release(), &self.layout.current(name));
        order.die_with_parent = true;
        Ok(order)
    }
}
