//! Which apps a proven delivery deploys, and when a delivery repeats an earlier one: DESIGN.md
//! section 7 ("Repeats") and section 8. What the store knows of earlier deploys is handed in.

use crate::domain::{
    config::Trigger,
    model::{AppName, Secret},
};

/// An app that deploys, as acceptance needs it.
#[derive(Debug, Clone)]
pub struct App {
    pub name: AppName,
    /// URL or absolute path, as configured.
    pub repo: String,
    /// Empty: the remote's default branch, which is judged after the fetch.
    pub on: Vec<Trigger>,
    /// `secret`, then `previous_secret`; empty: no hook is accepted for it.
    pub secrets: Vec<Secret>,
}

/// No more distinct secrets are tried for a delivery that names no app.
pub const MOST_SECRETS: usize = 64;

/// All apps that deploy, prepared for acceptance.
#[derive(Debug, Default)]
pub struct Snapshot {
    apps: Vec<App>,
    /// The distinct secrets of all apps, at most [`MOST_SECRETS`].
    secrets: Vec<Secret>,
}

impl Snapshot {
    #[must_use]
    pub fn new(apps: Vec<App>) -> Self {
        let mut secrets: Vec<Secret> = Vec::new();
        for secret in apps.iter().flat_map(|app| &app.secrets) {
            if secrets.len() == MOST_SECRETS {
                break;
            }
            if !secrets.contains(secret) {
                secrets.push(secret.clone());
            }
        }
        Self { apps, secrets }
    }

    #[must_use]
    pub fn apps(&self) -> &[App] {
        &self.apps
    }

    #[must_use]
    pub fn secrets(&self) -> &[Secret] {
        &self.secrets
    }
}
