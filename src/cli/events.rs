use std::io;

use super::{
    client::{Client, look, strange},
    failure::Failure,
    find::Place,
    progress::transition,
    screen::{DIM, Screen, visible},
    words::{local_time, since, target},
};
use crate::domain::{
    api::{EventView, Reply, Request, Saying, Target},
    model::At,
};

/// Every transition, with its cause
#[derive(Debug, clap::Args)]
pub struct Events {
    /// Of this app or instance alone
    #[arg(value_name = "APP", value_parser = target)]
    app: Option<Target>,
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
    /// How many of the latest
    #[arg(short, value_name = "N", default_value_t = 50)]
    n: u32,
    /// From this moment on: RFC 3339, or how long ago (1h)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<At>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Events {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let Self { app, n, since, follow, .. } = self;
        let (n, since, follow) = (*n, *since, *follow);
        let (app, number) = match app.clone() {
            Some(Target::App(app)) => (Some(app), None),
            Some(Target::Instance(id)) => (Some(id.app), Some(id.number)),
            Some(Target::All) | None => (None, None),
        };
        let request = Request::Events { app, number, n, since, follow, after: None, before: None };
        if self.follow {
            return self.follow(place, &mut screen, request);
        }
        let Reply::Events(events) = look(place, &mut screen, request)? else { return Err(strange()) };
        events.iter().try_for_each(|event| self.show(&mut screen, event))?;
        Ok(screen.flush()?)
    }

    fn follow(&self, place: &Place, screen: &mut Screen, request: Request) -> Result<(), Failure> {
        let mut client = Client::connect(place)?;
        client.ask(request, false, None);
        loop {
            match client.hear(screen)? {
                Saying::Event(event) => self.show(screen, &event)?,
                Saying::Done(Reply::Events(events)) => events.iter().try_for_each(|event| self.show(screen, event))?,
                _ => return Err(strange()),
            }
        }
    }

    fn show(&self, screen: &mut Screen, event: &EventView) -> io::Result<()> {
        if self.json {
            return screen.object(event);
        }
        let instance = event.instance.as_ref().map(ToString::to_string);
        let who = instance.or_else(|| event.app.as_ref().map(ToString::to_string)).unwrap_or_else(|| "-".into());
        let at = screen.paint(DIM, &local_time(event.at));
        let what = format!("{who:<14}  {:<10}  {:<22}", event.kind.to_string(), visible(&transition(event)));
        // What an app said last stands in lines of its own below.
        let (detail, words) = match &event.detail {
            Some(detail) if detail.contains('\n') => (None, Some(detail)),
            detail => (detail.as_ref(), None),
        };
        let why: Vec<String> = [event.cause.as_ref(), detail].into_iter().flatten().map(|text| visible(text)).collect();
        screen.line(format!("{at}  {what}  {}", why.join("; ")).trim_end())?;
        words
            .iter()
            .flat_map(|words| words.lines())
            .try_for_each(|line| screen.line(&format!("    | {}", visible(line))))
    }
}
