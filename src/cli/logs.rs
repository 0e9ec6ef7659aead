use std::{
    io, thread,
    time::{Duration, Instant},
};

use anstyle::AnsiColor;

use super::{
    client::{Client, look, strange},
    failure::{Code, Failure},
    find::Place,
    screen::{BAD, DIM, Screen, visible},
    words::{SomeApps, since},
};
use crate::domain::{
    api::{
        LogFrame, LogLine, LogMark, LogPlace, LogPlaces, LogsRequest, Reply, Request, Said, Saying, Target,
        rename_places,
    },
    model::{At, DeployId, InstanceId},
};

/// Lines of each stream without `-n`.
const LINES: u32 = 20;
/// A lost connection is looked for again so long.
const PATIENCE: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Of instances' names, in turn.
const COLOURS: [AnsiColor; 6] =
    [AnsiColor::Cyan, AnsiColor::Green, AnsiColor::Yellow, AnsiColor::Blue, AnsiColor::Magenta, AnsiColor::BrightCyan];

/// What apps wrote, over rotations and restarts
#[derive(Debug, clap::Args)]
pub struct Logs {
    #[command(flatten)]
    apps: SomeApps,
    /// Go on with what is written from now on
    #[arg(short, long)]
    follow: bool,
    /// Last lines of each stream [default: 20; with --since or --previous: all]
    #[arg(short, value_name = "N")]
    n: Option<u32>,
    /// Written since a moment (2026-11-25T04:15:39Z), or so long ago (1h)
    #[arg(long, value_name = "T", value_parser = since)]
    since: Option<At>,
    /// With this regular expression in them
    #[arg(long, value_name = "RE")]
    grep: Option<String>,
    /// What the steps of a deploy wrote
    #[arg(long, value_name = "ID", conflicts_with_all = ["apps", "all", "previous", "stderr"])]
    deploy: Option<DeployId>,
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

impl Logs {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let apps = self.apps.targets();
        let alone = self.json || self.deploy.is_some();
        let mut names = if alone { Names::default() } else { Names::of(place, &mut screen, &apps)? };
        let all = self.previous || self.since.is_some();
        let request = LogsRequest {
            apps,
            follow: self.follow,
            n: if all { self.n } else { Some(self.n.unwrap_or(LINES)) },
            previous: self.previous,
            stderr: self.stderr,
            since: self.since,
            grep: self.grep.clone(),
            deploy: self.deploy,
            resume: Vec::new(),
        };
        read(place, &mut screen, request, |screen, line| {
            if self.json { screen.object(line) } else { screen.line(&names.shown(screen, line)) }
        })?;
        Ok(screen.flush()?)
    }
}

/// Gives each line as it comes, until there are no more. A connection that is lost, as when the logger is
/// killed, is made again, and the answer goes on where it was.
///
/// # Errors
/// When it is refused, nobody answers for a while, or `take` fails.
pub fn read(
    place: &Place,
    screen: &mut Screen,
    mut request: LogsRequest,
    mut take: impl FnMut(&mut Screen, &LogLine) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut client = Client::connect(place)?;
    let mut known = LogPlaces::new();
    let mut pause = FIRST_PAUSE;
    let mut lost = Instant::now();
    loop {
        client.ask(Request::Logs(request.clone()), false, None);
        while let Some(frame) = client.frame(screen)? {
            let behind = LogPlace::read(frame.body());
            let key = match frame.message().map_err(|_| strange())? {
                LogFrame::Line(line) => {
                    take(screen, &line)?;
                    (line.instance, line.stream)
                }
                LogFrame::Here { instance, stream } => (instance, stream),
                LogFrame::Renamed { was, instance } => {
                    rename_places(&mut known, &was, &instance);
                    rename(&mut request.apps, &was, &instance);
                    continue;
                }
                LogFrame::Said(Said { what: Saying::Done(Reply::Lines(_)), .. }) => return Ok(()),
                LogFrame::Said(Said { what: Saying::Refused(refusal), .. }) => return Err(refusal.into()),
                LogFrame::Said(_) => return Err(strange()),
            };
            known.extend(behind.map(|behind| (key, behind)));
            (pause, lost) = (FIRST_PAUSE, Instant::now());
        }
        screen.flush()?;
        let mark = |((instance, stream), place): (&(String, String), &LogPlace)| LogMark {
            instance: instance.clone(),
            stream: stream.clone(),
            place: *place,
        };
        request.resume = known.iter().map(mark).collect();
        client = again(place, lost, &mut pause)?;
    }
}

/// Who is asked for, by the name that they have now.
fn rename(targets: &mut [Target], was: &str, instance: &str) {
    let (Ok(was), Ok(now)) = (was.parse::<InstanceId>(), instance.parse::<InstanceId>()) else { return };
    for target in targets {
        match target {
            Target::App(app) if *app == was.app => app.clone_from(&now.app),
            Target::Instance(id) if id.app == was.app => id.app.clone_from(&now.app),
            _ => {}
        }
    }
}

/// Another connection, as soon as there is one.
fn again(place: &Place, lost: Instant, pause: &mut Duration) -> Result<Client, Failure> {
    loop {
        thread::sleep(*pause);
        *pause = (*pause * 2).min(LONGEST_PAUSE);
        let late = lost.elapsed() > PATIENCE;
        match Client::connect(place) {
            Ok(_) if late => return Err(Failure::new(Code::NoSupervisor, "the logger cannot be reached any more")),
            Err(failure) if late || failure.code != Code::NoSupervisor => return Err(failure),
            Err(_) => {}
            Ok(client) => return Ok(client),
        }
    }
}

/// The instances that speak, where lines of several come together.
#[derive(Default)]
struct Names {
    names: Vec<String>,
    width: usize,
}

impl Names {
    fn of(place: &Place, screen: &mut Screen, apps: &[Target]) -> Result<Self, Failure> {
        if let [Target::Instance(_)] = apps {
            return Ok(Self::default());
        }
        let request = Request::Status { apps: apps.to_vec() };
        let Reply::Status(status) = look(place, screen, request)? else { return Err(strange()) };
        let instances = status.apps.iter().flat_map(|app| &app.instances);
        let names: Vec<String> = instances.map(|one| one.name.to_string()).collect();
        let width = names.iter().map(String::len).max().unwrap_or(0);
        Ok(if names.len() > 1 { Self { names, width } } else { Self::default() })
    }

    fn shown(&mut self, screen: &Screen, line: &LogLine) -> String {
        let text = if screen.terminal { visible(&line.line) } else { line.line.clone() };
        let text = match line.at {
            Some(at) => format!("{} {text}", screen.paint(DIM, &at.to_string())),
            None => text,
        };
        if self.names.is_empty() {
            return text;
        }
        // One that came with a reload gets the next colour.
        let known = self.names.iter().position(|name| *name == line.instance);
        let number = known.unwrap_or_else(|| {
            self.names.push(line.instance.clone());
            self.names.len() - 1
        });
        let name = format!("{:width$}", line.instance, width = self.width);
        let colour = COLOURS[number % COLOURS.len()].on_default();
        let bar = screen.paint(if line.stream == "err" { BAD } else { DIM }, "|");
        format!("{} {bar} {text}", screen.paint(colour, &name))
    }
}
