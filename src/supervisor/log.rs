//! The supervisor's own log: to stderr, and to a file a day below `logs/`.

use std::path::Path;

use tracing_appender::{
    non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard},
    rolling::{RollingFileAppender, Rotation},
};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

use super::veil::Veiled;
use crate::{
    domain::config::{Log, LogFormat},
    os::mask::with_all_blocked,
};

/// Lines that wait for a slow disk; the appender's default of 128,000 costs 4 MB at once.
const QUEUE: usize = 1024;

type Layers = Box<dyn Layer<Registry> + Send + Sync>;

/// The log as it is written now; must live as long as there is something to say.
pub struct Writing {
    layers: reload::Handle<Layers, Registry>,
    guards: Vec<WorkerGuard>,
}

/// A log that nothing goes to yet.
pub struct Made {
    layers: Layers,
    guards: Vec<WorkerGuard>,
}

/// Makes everything that the log needs.
///
/// # Errors
/// When the file cannot be made, or the level is none.
pub fn make(log: &Log, folder: &Path) -> Result<Made, String> {
    let filter = EnvFilter::try_new(&log.level).map_err(|e| format!("log level {:?}: {e}", log.level))?;
    let rolling = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("everhook.log")
        .latest_symlink("everhook.log")
        .max_log_files(log.keep.max(1) as usize)
        .build(folder)
        .map_err(|e| format!("cannot log to {}: {e}", folder.display()))?;
    let queue = || NonBlockingBuilder::default().buffered_lines_limit(QUEUE);
    let (file, file_guard) = with_all_blocked(|| queue().finish(rolling));
    // Stderr may be a pipe that nobody reads: that must never hold the loop.
    let (stderr, stderr_guard) = with_all_blocked(|| queue().finish(std::io::stderr()));
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    // The filter is the outermost: in a list of layers the one that is most curious would decide.
    let layers = layer(log.format, file, false).and_then(layer(log.format, stderr, colour)).and_then(filter).boxed();
    Ok(Made { layers, guards: vec![file_guard, stderr_guard] })
}

/// Begins logging.
///
/// # Errors
/// When something in this process logs already.
pub fn start(made: Made) -> Result<Writing, String> {
    let (layers, handle) = reload::Layer::new(made.layers);
    tracing_subscriber::registry().with(layers).try_init().map_err(|e| e.to_string())?;
    Ok(Writing { layers: handle, guards: made.guards })
}

impl Writing {
    /// Logs there from now on; what was said before is written out where it belongs.
    pub fn switch(&mut self, made: Made) {
        // Fails only where nothing logs any more.
        if self.layers.reload(made.layers).is_ok() {
            self.guards = made.guards;
        }
    }
}

fn layer(format: LogFormat, to: NonBlocking, colour: bool) -> Layers {
    let plain = fmt::layer().with_writer(Veiled(to)).with_target(false).with_ansi(colour);
    match format {
        LogFormat::Text => plain.boxed(),
        LogFormat::Json => plain.json().boxed(),
    }
}
