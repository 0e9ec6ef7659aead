//! One-shot processes that everhook runs for itself, and their whole trees: steps of a deploy and the
//! tree helper. A job ends with its main process; what that left behind is ended and named.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tracing::warn;

use super::{
    Supervisor,
    children::Owner,
    keys::Keys,
    launch,
    pipeline::{self, Reserve},
};
use crate::{
    domain::{
        api::{KEYS_VARIABLE, RESULT_FD, Stream, TreeTask},
        config::Identity,
        deploy::{self, JobEnd},
        model::{AppName, DeployId, Exit, ReleaseId, Signal},
    },
    os::{
        cgroup::Cgroup,
        fifo, memfd, pidfd,
        spawn::{RecordFile, SpawnError, SpawnSpec, Spawned, Tuning},
        tree::{self, TreeQuery},
    },
};

/// Names a job of this run of the supervisor.
pub type JobId = u64;

/// After the polite signal, KILL.
const GRACE: Duration = Duration::from_secs(5);
/// No answer of the tree helper is longer.
pub const LONGEST_ANSWER: usize = 1024 * 1024;
/// Lines of a failed job's log that go into its end.
const LAST_LINES: u32 = 20;

/// So many of the processes that a job left behind are named: they fit a line that a FIFO takes whole.
const NAMED: usize = 20;

/// What is to be run.
pub struct JobSpec {
    /// `None`: an errand, whose output only its end sees.
    pub deploy: Option<DeployId>,
    pub app: AppName,
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub directory: PathBuf,
    pub who: Arc<Identity>,
    /// An ordinary command of a team, to be run with less weight than apps.
    pub is_step: bool,
    pub cgroup: Option<Arc<Cgroup>>,
    /// Of the tree helper that speaks to a remote; gone with it.
    pub keys: Keys,
    /// Where a tree helper that waits for its tasks reads them, and answers.
    pub order: Option<Arc<OwnedFd>>,
    /// Capabilities that its user has not.
    pub rights: Option<u64>,
}

/// To give files away, CAP_CHOWN, and to find them in folders that their owner alone may read, CAP_DAC_READ_SEARCH.
const CAP_TAKE_OVER: u64 = 1 | 1 << 2;

/// After KILL, KILL again until the tree is empty: it may fork faster than it is read.
const KILL_AGAIN: Duration = Duration::from_secs(1);

type Then = Box<dyn FnOnce(&mut Supervisor, JobEnd) + Send>;

/// A job that runs.
pub struct Job {
    deploy: Option<DeployId>,
    app: AppName,
    /// As in `EVERHOOK_INSTANCE`.
    name: String,
    main: Option<u32>,
    pidfd: Option<OwnedFd>,
    answer: Arc<OwnedFd>,
    /// What an errand says.
    output: Option<Arc<OwnedFd>>,
    cgroup: Option<Arc<Cgroup>>,
    exit: Option<Exit>,
    /// Processes of it that were ended, as its deploy's log is to say.
    left: Option<String>,
    /// Its end was asked for.
    unwanted: bool,
    /// Of the app, what it was started in and may go on reading.
    release: Option<ReleaseId>,
    /// A shutdown does not wait for it: a person's command, or a question to a remote that may never answer.
    dispensable: bool,
    keys: Keys,
    /// Of a helper that waited and is at work, until it waits again.
    employed: Option<Reserve>,
    then: Then,
}

impl Job {
    #[must_use]
    pub fn app(&self) -> &AppName {
        &self.app
    }

    /// A helper that waited, and the deploy that it does something for.
    #[must_use]
    pub fn employed(&self) -> Option<(DeployId, &Reserve)> {
        self.deploy.zip(self.employed.as_ref())
    }

    /// Was it started in this release?
    #[must_use]
    pub fn uses(&self, app: &AppName, release: &ReleaseId) -> bool {
        self.app == *app && self.release.as_ref() == Some(release)
    }
}

impl std::fmt::Display for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} main {:?} exit {:?} unwanted {}", self.name, self.main, self.exit, self.unwanted)
    }
}

/// The jobs that run.
pub type Jobs = HashMap<JobId, Job>;

/// The FIFO of an app's deploys.
#[must_use]
pub fn stream_name(app: &AppName) -> String {
    format!("{app}.deploy")
}

impl Supervisor {
    /// Runs a job of a deploy; the deploy hears of its end.
    pub fn start_job(&mut self, job: JobSpec) {
        let Some(deploy) = job.deploy else { return };
        let name = format!("{}.job", job.app);
        self.run(job, name, None, of_deploy(deploy));
    }

    /// Starts one that nothing hangs on until it is [employed](Self::employ), unless one of this name is there.
    pub fn start_reserve(&mut self, job: JobSpec, name: String, out: Arc<OwnedFd>) -> Option<JobId> {
        let unused = !self.jobs.values().any(|job| job.name == name);
        unused.then(|| self.run(job, name, Some(out), Box::new(|_, _| ())))
    }

    /// Makes it the job that this deploy runs; false: it has ended.
    pub fn employ(&mut self, reserve: Reserve, deploy: DeployId) -> bool {
        let job = self.jobs.get_mut(&reserve.job).filter(|job| job.exit.is_none() && !job.unwanted);
        let Some(job) = job else { return false };
        job.deploy = Some(deploy);
        job.dispensable = false;
        job.then = of_deploy(deploy);
        job.employed = Some(reserve);
        true
    }

    /// It has done its task: nothing hangs on it any more. Of which deploy that was, and what may be done by it next.
    pub fn dismiss(&mut self, id: JobId) -> Option<(DeployId, Reserve)> {
        let job = self.jobs.get_mut(&id)?;
        let reserve = job.employed.take()?;
        let deploy = job.deploy.take()?;
        job.dispensable = true;
        job.then = Box::new(|_, _| ());
        let keys = std::mem::take(&mut job.keys);
        self.put_away(keys);
        Some((deploy, reserve))
    }

    /// Runs the tree helper outside of any deploy.
    pub fn start_errand(
        &mut self,
        app: &AppName,
        who: &Arc<Identity>,
        task: &TreeTask,
        keys: Keys,
        then: impl FnOnce(&mut Supervisor, JobEnd) + Send + 'static,
    ) -> JobId {
        self.start_errand_in(self.layout.app(app), app, who, task, keys, then)
    }

    /// The same in another folder than the app's.
    pub fn start_errand_in(
        &mut self,
        directory: PathBuf,
        app: &AppName,
        who: &Arc<Identity>,
        task: &TreeTask,
        keys: Keys,
        then: impl FnOnce(&mut Supervisor, JobEnd) + Send + 'static,
    ) -> JobId {
        let dispensable = !matches!(task, TreeTask::Empty { .. });
        if dispensable && self.is_ending() {
            // Those that ran were ended, and a remote may never answer this one.
            self.put_away(keys);
            then(self, never_was("everhook is shutting down".to_owned()));
            return self.ticket();
        }
        let name = format!("{app}.errand-{}", self.ticket());
        let job = JobSpec {
            deploy: None,
            app: app.clone(),
            args: pipeline::tree_args(task),
            env: launch::base_env(who),
            directory,
            who: who.clone(),
            is_step: false,
            cgroup: self.job_cgroup(app, &name),
            keys,
            order: None,
            rights: matches!(task, TreeTask::TakeOver { .. }).then_some(CAP_TAKE_OVER),
        };
        let id = self.run(job, name, None, Box::new(then));
        if let Some(job) = self.jobs.get_mut(&id) {
            job.dispensable = dispensable;
        }
        id
    }

    /// A group for the tree of a job: without one every process of the machine is looked at for it.
    pub fn job_cgroup(&self, app: &AppName, name: &str) -> Option<Arc<Cgroup>> {
        self.maker.cgroup(name).unwrap_or_else(|error| {
            warn!(%app, %error, "a job runs without a cgroup");
            None
        })
    }

    /// Runs what is described already, with streams of its own, outside of any deploy. Its cgroup goes with it.
    pub fn start_command(
        &mut self,
        app: &AppName,
        name: String,
        spec: SpawnSpec,
        then: impl FnOnce(&mut Supervisor, JobEnd) + Send + 'static,
    ) -> JobId {
        let id = self.ticket();
        let running = Job {
            deploy: None,
            app: app.clone(),
            name,
            main: None,
            pidfd: None,
            answer: Arc::clone(&self.me.null),
            output: None,
            cgroup: spec.cgroup.clone(),
            exit: None,
            left: None,
            unwanted: false,
            release: self.apps.get(app).and_then(|app| app.release()).map(|release| release.id.clone()),
            dispensable: true,
            keys: Keys::default(),
            employed: None,
            then: Box::new(then),
        };
        self.jobs.insert(id, running);
        self.spawn(Owner::Job(id), spec);
        id
    }

    /// Removes keys that nobody needs any more: that is the disk's work.
    pub fn put_away(&mut self, keys: Keys) {
        self.files.run(move || drop(keys), |_, ()| ());
    }

    /// A shutdown needs this one.
    pub fn is_needed(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.dispensable = false;
        }
    }

    /// Ends every job that no shutdown waits for.
    pub fn end_dispensable(&mut self) {
        let dispensable = self.jobs.iter().filter(|(_, job)| job.dispensable);
        for id in dispensable.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end_job(id);
        }
    }

    /// Runs a command that asks an instance how it is; nobody keeps what it prints into `out`.
    pub fn start_probe_job(
        &mut self,
        job: JobSpec,
        name: String,
        out: OwnedFd,
        then: impl FnOnce(&mut Supervisor, JobEnd) + Send + 'static,
    ) -> JobId {
        self.run(job, name, Some(Arc::new(out)), Box::new(then))
    }

    fn run(&mut self, job: JobSpec, name: String, out: Option<Arc<OwnedFd>>, then: Then) -> JobId {
        let id = self.ticket();
        match self.job_order(&job, &name, out) {
            Ok((answer, output, spec)) => {
                let running = Job {
                    dispensable: job.deploy.is_none() && output.is_none(),
                    deploy: job.deploy,
                    app: job.app,
                    name,
                    main: None,
                    pidfd: None,
                    answer,
                    output,
                    cgroup: job.cgroup,
                    exit: None,
                    left: None,
                    unwanted: false,
                    release: None,
                    keys: job.keys,
                    employed: None,
                    then,
                };
                self.jobs.insert(id, running);
                self.spawn(Owner::Job(id), spec);
            }
            Err(error) => then(self, never_was(error)),
        }
        id
    }

    #[allow(clippy::type_complexity)]
    fn job_order(
        &mut self,
        job: &JobSpec,
        name: &str,
        out: Option<Arc<OwnedFd>>,
    ) -> Result<(Arc<OwnedFd>, Option<Arc<OwnedFd>>, SpawnSpec), String> {
        let mut env = job.env.clone();
        env.insert("EVERHOOK_BOOT".to_owned(), self.me.boot.clone());
        env.insert("EVERHOOK_INSTANCE".to_owned(), name.to_owned());
        if let Some(folder) = job.keys.folder() {
            env.insert(KEYS_VARIABLE.to_owned(), folder.display().to_string());
        }
        let mut spec = launch::spec(&job.args, &env, &job.who, self.me.root).map_err(|e| e.to_string())?;
        let scratch = |name| memfd::anonymous(name).map(Arc::new).map_err(|e| e.to_string());
        let answer = scratch("answer")?;
        let is_errand = job.deploy.is_none() && out.is_none();
        let output = if is_errand { Some(scratch("output")?) } else { None };
        let to = match output.clone().or(out) {
            Some(to) => to,
            None => self.deploy_stream(&job.app, &job.who).ok_or("the deploy's log is not there")?,
        };
        spec.directory.clone_from(&job.directory);
        let input = job.order.as_ref().unwrap_or(&self.me.null);
        spec.fds = vec![(Arc::clone(input), 0), (Arc::clone(&to), 1), (to, 2)];
        if job.is_step {
            spec.nice = Tuning::at_best(10);
            spec.oom_score_adj = Tuning::at_best(500);
        } else if job.order.is_none() {
            spec.fds.push((Arc::clone(&answer), RESULT_FD));
        }
        spec.die_with_parent = true;
        spec.no_new_privs = true;
        spec.capabilities = job.rights;
        spec.cgroup.clone_from(&job.cgroup);
        if !is_errand {
            let record = self.record_file(name).map_err(|e| e.to_string())?;
            spec.record =
                Some(RecordFile { file: Arc::new(record), everhook_boot: self.me.boot.clone(), started_as: None });
        }
        Ok((answer, output, spec))
    }

    pub fn job_never_was(&mut self, deploy: DeployId, error: String) {
        self.deploy_event(deploy::Event::JobEnded { deploy, end: never_was(error) });
    }

    /// What the tree helper was to do cannot be done, for this reason.
    pub fn job_refused(&mut self, deploy: DeployId, why: String) {
        let end = JobEnd { exit: Exit::Code(1), error: None, answer: Vec::new(), last_lines: vec![why] };
        self.deploy_event(deploy::Event::JobEnded { deploy, end });
    }

    pub fn job_spawned(&mut self, id: JobId, result: Result<Spawned, SpawnError>) {
        match result {
            Ok(Spawned { pid, pidfd }) => {
                let Some(job) = self.jobs.get_mut(&id) else { return };
                job.main = Some(pid);
                job.pidfd = Some(pidfd);
                if job.unwanted {
                    self.end_job(id);
                }
            }
            Err(error) => {
                if let Some(job) = self.jobs.remove(&id) {
                    (job.then)(self, never_was(error.to_string()));
                    self.go_on_ending();
                }
            }
        }
    }

    /// Ends the tree of the job that this deploy runs.
    pub fn end_running_job_of(&mut self, deploy: DeployId) {
        let found = self.jobs.iter().find(|(_, job)| job.deploy == Some(deploy)).map(|(id, _)| *id);
        let Some(id) = found else { return };
        if let Some(job) = self.jobs.get(&id).filter(|job| job.main.is_some() && !job.unwanted) {
            // What took too long may be none of what its command names.
            let named = self.name_left(job, &self.job_tree(job), "ended while it ran");
            if let Some(job) = self.jobs.get_mut(&id) {
                job.left = Some(named);
            }
        }
        self.end_job(id);
    }

    /// Ends the whole tree of a job; nothing where it has ended.
    pub fn end_job(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.unwanted = true;
        if job.main.is_none() && job.exit.is_none() {
            return;
        }
        self.signal_job(id, Signal::TERM);
        self.later(GRACE, move |supervisor| supervisor.signal_job(id, Signal::KILL));
    }

    /// KILL to a job's whole tree, as soon as it runs and until it is empty; nothing where it has ended.
    pub fn kill_job(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.unwanted = true;
        if let Some(Err(error)) = job.cgroup.as_ref().map(|group| group.kill()) {
            warn!(app = %job.app, %error, "the cgroup of a job cannot be killed as a whole");
        }
        self.signal_job(id, Signal::KILL);
        self.later(KILL_AGAIN, move |supervisor| supervisor.kill_job(id));
    }

    fn signal_job(&mut self, id: JobId, signal: Signal) {
        let Some(job) = self.jobs.get(&id) else { return };
        if let Some(fd) = &job.pidfd {
            let _ = pidfd::signal(fd, signal);
        }
        match signal {
            Signal::KILL => drop(tree::kill(&self.job_query(job))),
            _ => self.job_tree(job).iter().for_each(|member| drop(pidfd::signal(&member.pidfd, signal))),
        }
        self.look_at_ending_jobs();
    }

    pub fn job_tree(&self, job: &Job) -> Vec<tree::Member> {
        tree::members(&self.job_query(job)).unwrap_or_default()
    }

    /// Is nobody of its tree alive? By its cgroup that is a single look.
    fn is_gone(&self, job: &Job) -> bool {
        match &job.cgroup {
            Some(group) => group.is_empty().unwrap_or(true),
            None => self.job_tree(job).is_empty(),
        }
    }

    fn job_query<'a>(&'a self, job: &'a Job) -> TreeQuery<'a> {
        TreeQuery {
            root: job.main,
            boot: &self.me.boot,
            instance: &job.name,
            outputs: &[],
            session: None,
            cgroup: job.cgroup.as_deref(),
        }
    }

    pub fn job_exited(&mut self, id: JobId, exit: Exit) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.exit = Some(exit);
        job.main = None;
        job.pidfd = None;
        let Some(job) = self.jobs.get(&id) else { return };
        let left = if self.is_gone(job) { Vec::new() } else { self.job_tree(job) };
        if !left.is_empty() {
            let named = (!job.unwanted).then(|| self.name_left(job, &left, "left running and ended"));
            if let Some(job) = self.jobs.get_mut(&id) {
                job.left = named.or(job.left.take());
            }
            self.end_job(id);
        }
        self.look_at_ending_jobs();
    }

    /// Tells of processes of a job that were ended: in the log, and of a deploy's also where its team looks. Returns the
    /// sentence.
    fn name_left(&self, job: &Job, left: &[tree::Member], how: &str) -> String {
        // A process names itself as it likes.
        let name = |member: &tree::Member| format!("{} ({})", member.name.escape_debug(), member.pid);
        let names: Vec<String> = left.iter().take(NAMED).map(name).collect();
        let more = left.len().checked_sub(NAMED).filter(|n| *n > 0).map(|n| format!(" and {n} more"));
        let cause = format!("{how}: {}{}", names.join(", "), more.unwrap_or_default());
        warn!(app = %job.app, job = job.name, "{cause}");
        let Some(deploy) = job.deploy else { return cause };
        self.tell_of_deploy(&job.app, deploy, &cause);
        cause
    }

    /// Adds a line of ours to the log of this app's deploy.
    pub fn add_to_deploy_log(&self, app: &AppName, line: &str) {
        let fifo = self.layout.fifo(&stream_name(app), Stream::Out);
        if let Err(error) = fifo::add_line(&fifo, &format!("everhook: {line}")) {
            warn!(%app, %error, "the deploy's log does not take a line");
        }
    }

    /// Jobs whose main process is gone end when their tree is empty.
    pub fn look_at_ending_jobs(&mut self) {
        let is_over = |job: &Job| job.exit.is_some() && self.is_gone(job);
        let over: Vec<JobId> = self.jobs.iter().filter(|(_, job)| is_over(job)).map(|(id, _)| *id).collect();
        for id in over {
            if let Some(job) = self.jobs.remove(&id) {
                self.job_is_over(job);
            }
        }
        // An errand may be the last that a shutdown waits for.
        self.go_on_ending();
    }

    fn job_is_over(&mut self, job: Job) {
        // Whoever could not be killed keeps it.
        let _ = job.cgroup.as_ref().map(|group| group.remove());
        self.put_away(job.keys);
        if !self.doomed.is_empty() {
            self.remove_doomed(&job.app);
        }
        let exit = job.exit.unwrap_or(Exit::Unknown);
        let answer = memfd::read_all(&job.answer, LONGEST_ANSWER).unwrap_or_default();
        let then = job.then;
        let end = move |last_lines| JobEnd { exit, error: None, answer, last_lines };
        match (job.deploy, job.output) {
            (Some(_), _) if exit.success() => {
                if let Some(left) = job.left {
                    self.add_to_deploy_log(&job.app, &left);
                }
                then(self, end(Vec::new()));
            }
            (Some(deploy), _) => {
                let path = self.layout.deploy_log(deploy);
                let (app, left) = (job.app, job.left);
                self.tail(path, LAST_LINES, None, move |supervisor, lines| {
                    // Not before: the last line is the reason of a failure, and the job's own.
                    if let Some(left) = left {
                        supervisor.add_to_deploy_log(&app, &left);
                    }
                    then(supervisor, end(lines));
                });
            }
            (None, Some(output)) => {
                let text = memfd::read_all(&output, LONGEST_ANSWER).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                then(self, end(text.lines().map(str::to_owned).collect()));
            }
            (None, None) => then(self, end(Vec::new())),
        }
    }
}

/// The deploy hears of the end.
fn of_deploy(deploy: DeployId) -> Then {
    Box::new(move |supervisor, end| supervisor.deploy_event(deploy::Event::JobEnded { deploy, end }))
}

fn never_was(error: String) -> JobEnd {
    JobEnd { exit: Exit::Unknown, error: Some(error), answer: Vec::new(), last_lines: Vec::new() }
}
