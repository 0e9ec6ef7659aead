//! Where the supervisor is: SURFACE.md section 1.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{
    failure::{Code, Failure},
    screen::complain,
};
use crate::{
    domain::{
        api::{CONTROL_SOCKET, note_folder, note_name},
        config::{self, Loaded, Places},
        model::Facts,
    },
    os::users,
};

/// Looked for in this order where neither option nor variable names one.
const CONFIGS: [&str; 2] = ["supervisor.ron", LAST_CONFIG];
/// The last place to look.
pub const LAST_CONFIG: &str = "/etc/everhook/supervisor.ron";

/// Which supervisor is meant.
#[derive(Debug, Clone, clap::Args)]
pub struct Place {
    /// The config [default: ./supervisor.ron, else /etc/everhook/supervisor.ron]
    #[arg(short, long, global = true, value_name = "PATH", env = "EVERHOOK_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// The supervisor's socket [default: control.sock in the config's run_dir]
    #[arg(long, global = true, value_name = "PATH", env = "EVERHOOK_SOCKET", hide_env_values = true)]
    socket: Option<PathBuf>,
}

impl Place {
    /// The config's absolute path. One that was named need not exist.
    ///
    /// # Errors
    /// When none is named and none is at the usual places.
    pub fn config(&self) -> Result<PathBuf, Failure> {
        let named = self.config.as_deref().filter(|path| !path.as_os_str().is_empty());
        let found = named.or_else(|| CONFIGS.iter().map(Path::new).find(|path| path.exists()));
        let Some(path) = found else {
            let message = "no config: neither ./supervisor.ron nor /etc/everhook/supervisor.ron exists; \
                           name one with --config or $EVERHOOK_CONFIG";
            return Err(Failure::new(Code::Failed, message));
        };
        std::path::absolute(path).map_err(|e| Failure::new(Code::Failed, format!("{}: {e}", path.display())))
    }

    /// The socket to connect to.
    ///
    /// # Errors
    /// When nothing tells where it is; the sentence says how to start a supervisor.
    pub fn socket(&self) -> Result<PathBuf, Failure> {
        if let Some(socket) = self.socket.as_deref().filter(|path| !path.as_os_str().is_empty()) {
            return Ok(socket.to_owned());
        }
        let config = self.config().map_err(|Failure { message, .. }| {
            Failure::new(Code::NoSupervisor, format!("no supervisor is known: {message}, or its socket with --socket"))
        })?;
        // Only where it is counts here, so nothing is tried out for warnings that nobody hears.
        match load_by(&config, &Facts { can_limit: |_| Ok(()), ..users::facts() }) {
            Ok(loaded) => {
                let socket = loaded.config.run_dir.join(CONTROL_SOCKET);
                // The defaults of whoever asks may be others than those of whoever runs it.
                Ok(if socket.exists() { socket } else { noted(&config).unwrap_or(socket) })
            }
            Err(fault) => match noted(&config) {
                Some(socket) => {
                    let fault = fault.lines().next().unwrap_or_default();
                    complain(&format!(
                        "everhook: warning: {fault}; asking the supervisor that runs an earlier reading"
                    ));
                    Ok(socket)
                }
                None => {
                    Err(Failure::new(Code::NoSupervisor, format!("no supervisor is known for this config: {fault}")))
                }
            },
        }
    }

    /// The command that starts the supervisor meant here.
    pub fn how_to_start(&self) -> String {
        match &self.config {
            Some(path) => format!("everhook run --config {}", path.display()),
            None => "everhook run".into(),
        }
    }
}

/// The socket by the note that the supervisor of this config left. Root's come first: anybody may
/// ask its supervisor.
fn noted(config: &Path) -> Option<PathBuf> {
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let uid = users::facts().uid;
    let folders = [0, uid].into_iter().filter_map(|uid| note_folder(uid, session.as_deref()));
    let note = folders.map(|folder| folder.join(note_name(config))).find_map(|path| fs::read(path).ok())?;
    Some(Path::new(OsStr::from_bytes(&note)).join(CONTROL_SOCKET))
}

/// Reads and judges a config by this machine.
///
/// # Errors
/// Every fault with its place, or why the file cannot be read.
pub fn load(path: &Path) -> Result<Loaded, String> {
    load_by(path, &users::facts())
}

fn load_by(path: &Path, facts: &Facts) -> Result<Loaded, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let places = Places::of(variable("XDG_STATE_HOME"), variable("HOME"));
    config::load(&text, path, &places, facts).map_err(|faults| faults.to_string())
}
