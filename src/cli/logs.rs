use std::io;

use serde::Deserialize;

use super::{
    client::{Client, look, strange},
    failure::Failure,
    find::Place,
    screen::{BAD, DIM, Screen, visible},
    words::SomeApps,
};
use crate::domain::api::{LogLine, LogsRequest, Reply, Request, Said, Saying, Target};

/// Lines of each stream without `-n`.
const LINES: u32 = 20;

/// What apps wrote, over rotations and restarts
#[derive(Debug, clap::Args)]
pub struct Logs {
    #[command(flatten)]
    apps: SomeApps,
    /// Go on with what is written from now on
    #[arg(short, long)]
    follow: bool,
    /// Last lines of each stream [default: 20]
    #[arg(short, value_name = "N")]
    n: Option<u32>,
    /// The run before the current one: all of it, unless -n is given
    #[arg(long, conflicts_with = "follow")]
    previous: bool,
    /// The error stream alone
    #[arg(long)]
    stderr: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// The logger sends lines; the supervisor speaks only to refuse.
#[derive(Deserialize)]
#[serde(untagged)]
enum Heard {
    Line(LogLine),
    Said(Said),
}

impl Logs {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let apps = self.apps.targets();
        let prefix = if self.json { None } else { prefix_width(place, &mut screen, &apps)? };
        let n = if self.previous { self.n } else { Some(self.n.unwrap_or(LINES)) };
        let request = LogsRequest { apps, follow: self.follow, n, previous: self.previous, stderr: self.stderr };
        read(place, &mut screen, request, |screen, line| {
            if self.json { screen.object(line) } else { screen.line(&shown(screen, line, prefix)) }
        })?;
        Ok(screen.flush()?)
    }
}

/// Gives each line as it comes, until there are no more.
///
/// # Errors
/// When it is refused, or `take` fails.
pub fn read(
    place: &Place,
    screen: &mut Screen,
    request: LogsRequest,
    mut take: impl FnMut(&mut Screen, &LogLine) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut client = Client::connect(place)?;
    client.ask(Request::Logs(request), false, None);
    while let Some(frame) = client.frame(screen)? {
        match frame.message().map_err(|_| strange())? {
            Heard::Line(line) => take(screen, &line)?,
            Heard::Said(Said { what: Saying::Refused(refusal), .. }) => return Err(refusal.into()),
            Heard::Said(_) => return Err(strange()),
        }
    }
    Ok(())
}

/// How wide the instances' names are, where lines of several come together.
fn prefix_width(place: &Place, screen: &mut Screen, apps: &[Target]) -> Result<Option<usize>, Failure> {
    if let [Target::Instance(_)] = apps {
        return Ok(None);
    }
    let request = Request::Status { apps: apps.to_vec() };
    let Reply::Status(status) = look(place, screen, request)? else { return Err(strange()) };
    let names = status.apps.iter().flat_map(|app| &app.instances).map(|one| one.name.to_string().len());
    let widths: Vec<usize> = names.collect();
    Ok(widths.iter().max().copied().filter(|_| widths.len() > 1))
}

fn shown(screen: &Screen, line: &LogLine, prefix: Option<usize>) -> String {
    let text = if screen.terminal { visible(&line.line) } else { line.line.clone() };
    match prefix {
        Some(width) => {
            let style = if line.stream == "err" { BAD } else { DIM };
            format!("{} {text}", screen.paint(style, &format!("{:width$} |", line.instance)))
        }
        None => text,
    }
}
