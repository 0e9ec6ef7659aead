//! The supervisor's own log: to stderr, and to a file a day below `logs/`.

use std::path::Path;

use tracing_appender::{
    non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard},
    rolling::{RollingFileAppender, Rotation},
};
use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, registry::LookupSpan, util::SubscriberInitExt};

use crate::domain::config::{Log, LogFormat};

/// Lines that wait for a slow disk; the appender's default of 128,000 costs 4 MB at once.
const QUEUE: usize = 1024;

/// Begins logging; what it returns must live as long as there is something to say.
///
/// # Errors
/// When the file cannot be made, or the level is none.
pub fn start(log: &Log, folder: &Path) -> Result<Vec<WorkerGuard>, String> {
    let filter = EnvFilter::try_new(&log.level).map_err(|e| format!("log level {:?}: {e}", log.level))?;
    let rolling = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("everhook.log")
        .latest_symlink("everhook.log")
        .max_log_files(log.keep.max(1) as usize)
        .build(folder)
        .map_err(|e| format!("cannot log to {}: {e}", folder.display()))?;
    let queue = || NonBlockingBuilder::default().buffered_lines_limit(QUEUE);
    let (file, file_guard) = queue().finish(rolling);
    // Stderr may be a pipe that nobody reads: that must never hold the loop.
    let (stderr, stderr_guard) = queue().finish(std::io::stderr());
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::registry()
        .with(filter)
        .with(layer(log.format, file, false))
        .with(layer(log.format, stderr, colour))
        .try_init()
        .map_err(|e| e.to_string())?;
    Ok(vec![file_guard, stderr_guard])
}

fn layer<S>(format: LogFormat, to: NonBlocking, colour: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let plain = fmt::layer().with_writer(to).with_target(false).with_ansi(colour);
    match format {
        LogFormat::Text => plain.boxed(),
        LogFormat::Json => plain.json().boxed(),
    }
}
