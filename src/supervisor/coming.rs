//! How apps come in at the start. What each needs on disk takes longer to make than to start it, so of many only the
//! first are made before anything runs, and the others while these start. People's wishes wait until all are known and
//! nothing is left of the last supervisor's that is to end.

use std::{collections::BTreeMap, sync::Arc, thread};

use tracing::warn;

use super::{
    Supervisor,
    control::Asked,
    event::Event,
    planning::{NewApp, new_apps},
    prepare::Kit,
};
use crate::{
    domain::{
        api::Request,
        config::{self, Config},
        model::AppName,
    },
    os::mask::with_all_blocked,
};

/// So many are made before anything runs.
pub const FIRST: usize = 64;
/// So many of the others come in at once.
const PART: usize = 16;

type Spec = Arc<config::App>;
type EnvFiles = BTreeMap<AppName, Vec<(String, String)>>;

/// Apps that the loop does not have yet.
#[derive(Default)]
pub struct Coming {
    /// Not made yet, those last that come after others.
    specs: Vec<Spec>,
    env_files: EnvFiles,
    /// Being made: so many are still to come.
    left: usize,
    /// What waits for that.
    asked: Vec<Asked>,
}

impl Coming {
    #[must_use]
    pub fn new(config: &Config, env_files: EnvFiles) -> Self {
        let mut specs: Vec<_> = config.apps.values().cloned().collect();
        specs.sort_by_key(|spec| !is_first(spec));
        Self { specs, env_files, ..Self::default() }
    }

    /// Are there some?
    #[must_use]
    pub fn any(&self) -> bool {
        self.left > 0
    }

    /// Is heard once all are known.
    pub fn ask_later(&mut self, asked: Asked) {
        self.asked.push(asked);
    }
}

impl Supervisor {
    /// Makes and takes in these many at once.
    pub fn take_first(&mut self, count: usize) {
        let mut specs = std::mem::take(&mut self.coming.specs);
        self.coming.specs = specs.split_off(count.min(specs.len()));
        self.coming.left = self.coming.specs.len();
        let made = new_apps(&self.maker, &mut specs);
        self.take_in_all(specs.into_iter().zip(made));
    }

    /// Is this heard only once all apps are known, and what the last supervisor left is ended or adopted? What is
    /// changed before would run beside that.
    pub fn must_wait(&self, asked: &Asked) -> bool {
        let request = &asked.ask.request;
        let ends = matches!(request, Request::Shutdown { .. });
        self.coming.any() || !self.begun && request.changes() && !ends
    }

    /// Has the others come in one after the other.
    pub fn take_others(&mut self) {
        let specs = std::mem::take(&mut self.coming.specs);
        if specs.is_empty() {
            self.all_are_in();
            return self.hear_all();
        }
        let (maker, events, others) = (self.maker.clone(), self.events.clone(), specs.clone());
        let work = move || {
            for part in specs.chunks(PART) {
                let mut part = part.to_vec();
                let made = new_apps(&maker, &mut part);
                let made: Vec<_> = part.into_iter().zip(made).collect();
                // Only a loop that has ended hears nothing.
                let _ = events.send(Event::Then(Box::new(move |supervisor| supervisor.take_part(made))));
            }
        };
        if let Err(error) = with_all_blocked(|| thread::Builder::new().name("makers".into()).spawn(work)) {
            warn!(%error, "no app is started before all are made");
            self.coming.specs = others;
            self.take_first(usize::MAX);
            self.let_start(|_| true);
            self.all_are_in();
            self.hear_all();
        }
    }

    fn take_part(&mut self, made: Vec<(Spec, NewApp)>) {
        self.coming.left -= made.len();
        if self.is_ending() {
            // Nothing is started any more.
            made.iter().flat_map(|(_, new)| new.kits.values()).for_each(Kit::remove_group);
        } else {
            let specs: Vec<_> = made.iter().map(|(spec, _)| Arc::clone(spec)).collect();
            self.take_in_all(made);
            for spec in specs.iter().filter(|spec| is_first(spec)) {
                self.tell_blocked(&spec.name, spec);
            }
        }
        if self.coming.any() {
            return;
        }
        if !self.is_ending() {
            self.let_start(|spec| !is_first(spec));
            self.all_are_in();
        }
        self.hear_all();
    }

    /// The end has come before the others: they are not made any more.
    pub fn forget_others(&mut self) {
        self.coming.specs.clear();
        self.coming.left = 0;
        self.hear_all();
    }

    /// Does what was wished for meanwhile.
    fn hear_all(&mut self) {
        for asked in std::mem::take(&mut self.coming.asked) {
            self.hear(asked);
        }
        self.reload_next();
        self.go_on_ending();
    }

    fn take_in_all(&mut self, made: impl IntoIterator<Item = (Spec, NewApp)>) {
        for (spec, new) in made {
            if new.unfit {
                // A reload then sees that it has to try again.
                Arc::make_mut(&mut self.config).apps.insert(spec.name.clone(), Arc::clone(&spec));
            }
            let env_file = self.coming.env_files.remove(&spec.name).unwrap_or_default();
            self.take_in(&spec, new, env_file);
        }
    }

    /// Lets those start that are here; who comes after others, when all are.
    pub fn begin_first(&mut self) {
        let all = !self.coming.any();
        self.let_start(|spec| all || is_first(spec));
    }

    fn let_start(&mut self, which: impl Fn(&config::App) -> bool) {
        let known: Vec<_> = self.apps.values().map(|app| Arc::clone(app.spec())).collect();
        for spec in known.iter().filter(|spec| which(spec)) {
            self.tell_blocked(&spec.name, spec);
        }
    }
}

/// Does it come after no other?
fn is_first(spec: &config::App) -> bool {
    spec.comes_after().next().is_none()
}
