//! Where things are: SURFACE.md section 1.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::domain::{
    api::Stream,
    model::{AppName, DeployId, InstanceId, ReleaseId},
};

/// Ends the name of what is noted of an app's sockets.
pub const SOCKETS: &str = ".sockets";

/// The folders of one supervisor.
#[derive(Debug, Clone)]
pub struct Layout {
    pub state: PathBuf,
    pub run: PathBuf,
}

impl Layout {
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state.join("everhook.db")
    }

    #[must_use]
    pub fn app(&self, app: &AppName) -> PathBuf {
        self.state.join("apps").join(app.as_str())
    }

    #[must_use]
    pub fn live(&self, app: &AppName) -> PathBuf {
        self.app(app).join("live")
    }

    /// What it is about to be called.
    #[must_use]
    pub fn renaming(&self, app: &AppName) -> PathBuf {
        self.app(app).join("renaming")
    }

    /// What runs in place of the live release.
    #[must_use]
    pub fn unproven(&self, app: &AppName) -> PathBuf {
        self.app(app).join("unproven")
    }

    /// Up to when a scheduled app's runs are dealt with.
    #[must_use]
    pub fn last_run(&self, app: &AppName) -> PathBuf {
        self.app(app).join("last_run")
    }

    #[must_use]
    pub fn down(&self, app: &AppName) -> PathBuf {
        self.app(app).join("down")
    }

    #[must_use]
    pub fn frozen(&self, app: &AppName) -> PathBuf {
        self.app(app).join("frozen")
    }

    /// The link to what is live, for others.
    #[must_use]
    pub fn current(&self, app: &AppName) -> PathBuf {
        self.app(app).join("current")
    }

    #[must_use]
    pub fn releases(&self, app: &AppName) -> PathBuf {
        self.app(app).join("releases")
    }

    #[must_use]
    pub fn release(&self, app: &AppName, release: &ReleaseId) -> PathBuf {
        self.releases(app).join(release.to_string())
    }

    #[must_use]
    pub fn cache(&self, app: &AppName) -> PathBuf {
        self.app(app).join("cache")
    }

    /// What is temporary in its deploys.
    #[must_use]
    pub fn tmp(&self, app: &AppName) -> PathBuf {
        self.app(app).join("tmp")
    }

    /// One mirror for all apps with this repository, this group, which may read it, and this user, who fetches: what
    /// one has fetched no other may add to.
    #[must_use]
    pub fn mirror(&self, repo: &str, group: u32, fetcher: u32) -> PathBuf {
        self.state.join("mirrors").join(format!("{}.git", &hash(&format!("{repo}\n{group}\n{fetcher}"))[..24]))
    }

    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    #[must_use]
    pub fn log(&self, instance: &InstanceId, stream: Stream) -> PathBuf {
        self.logs().join(instance.app.as_str()).join(format!("{instance}.{}.log", stream.as_str()))
    }

    #[must_use]
    pub fn deploy_log(&self, deploy: DeployId) -> PathBuf {
        self.logs().join("deploys").join(format!("{deploy}.log"))
    }

    /// What a later supervisor knows a process by; `name` is an instance's or an internal process's.
    #[must_use]
    pub fn record(&self, name: &str) -> PathBuf {
        self.run.join("records").join(name)
    }

    /// Which files the sockets of an app are.
    #[must_use]
    pub fn sockets(&self, app: &AppName) -> PathBuf {
        self.record(&format!("{app}{SOCKETS}"))
    }

    #[must_use]
    pub fn fifos(&self) -> PathBuf {
        self.run.join("fifo")
    }

    #[must_use]
    pub fn fifo(&self, source: &str, stream: Stream) -> PathBuf {
        self.fifos().join(format!("{source}.{}", stream.as_str()))
    }

    /// Where an instance says how it is; `second`: the one beside another of the same number.
    #[must_use]
    pub fn notify(&self, instance: &InstanceId, second: bool) -> PathBuf {
        self.run.join("notify").join(format!("{instance}{}", if second { "-2" } else { "" }))
    }

    /// Keys for the length of one job.
    #[must_use]
    pub fn keys(&self, job: u64) -> PathBuf {
        self.run.join("keys").join(job.to_string())
    }

    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.run.join("control.sock")
    }

    /// Each folder is one supervisor's alone: what is live is decided in the one, who runs in the other.
    #[must_use]
    pub fn locks(&self) -> [PathBuf; 2] {
        [self.state.join("lock"), self.run.join("lock")]
    }

    /// Copies of binaries that were to run in our place.
    #[must_use]
    pub fn binaries(&self) -> PathBuf {
        self.state.join("bin")
    }

    /// The logger's buffer, which outlives it.
    #[must_use]
    pub fn buffer(&self) -> PathBuf {
        self.run.join("logger.buffer")
    }

    /// The same over restarts and different for every `state_dir`, for names that others may use too.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("everhook-{}", &hash(&self.state.to_string_lossy())[..12])
    }
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
