use std::time::Duration;

use anstyle::Style;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::{
    client::{change, look, strange},
    failure::Failure,
    find::Place,
    screen::{BAD, Screen, complain},
    settle,
    table::{Cell, Table, or_dash},
    words::{Waiting, by, local_time},
};
use crate::domain::{
    api::{Reply, Request, TokenSource},
    config::Role,
    model::{AppName, parse_span},
};

/// Tokens for the API: make one, list them, take one back
#[derive(Debug, clap::Args)]
pub struct Token {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a token and print it, this once
    Create {
        /// For the audit: whose it is, or what for
        name: String,
        /// viewer, operator, deployer or admin
        #[arg(long, value_parser = role(), ignore_case = true)]
        role: Role,
        /// For this app alone; may be repeated
        #[arg(long = "app", value_name = "APP")]
        apps: Vec<AppName>,
        /// It opens nothing any more after this long, such as 90d
        #[arg(long, value_name = "TIME", value_parser = parse_span)]
        expires: Option<Duration>,
    },
    /// Every token, without what opens
    List {
        /// As one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Take a token back, at once
    Revoke { name: String },
}

fn role() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new(["viewer", "operator", "deployer", "admin"]).map(|word| {
        match word.to_ascii_lowercase().as_str() {
            "viewer" => Role::Viewer,
            "operator" => Role::Operator,
            "deployer" => Role::Deployer,
            _ => Role::Admin,
        }
    })
}

impl Token {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let mut ask = |request| change(place, &mut screen, request, &Waiting::default(), |_, _| Ok(()));
        match &self.verb {
            Verb::Create { name, role, apps, expires } => {
                let request =
                    Request::TokenCreate { name: name.clone(), role: *role, apps: apps.clone(), expires: *expires };
                let Reply::Token { token, expires_at, .. } = ask(request)? else { return Err(strange()) };
                let until = expires_at.map_or_else(String::new, |at| format!(", good until {}", local_time(at)));
                // The token alone is on stdout, for scripts.
                complain(&format!("token {name:?}, shown this once{until}:"));
                screen.line(&token)?;
                Ok(screen.flush()?)
            }
            Verb::List { json } => list(place, &mut screen, *json),
            Verb::Revoke { name } => {
                let reply = ask(Request::TokenRevoke { name: name.clone() })?;
                settle(&mut screen, reply)
            }
        }
    }
}

fn list(place: &Place, screen: &mut Screen, json: bool) -> Result<(), Failure> {
    let Reply::Tokens(tokens) = look(place, screen, Request::Tokens)? else { return Err(strange()) };
    if json {
        return Ok(screen.document(&tokens)?);
    }
    let mut table = Table::new(&["NAME", "ROLE", "APPS", "EXPIRES", "MADE", "BY"]);
    for token in &tokens {
        let apps = token
            .apps
            .as_ref()
            .map_or_else(|| "all".to_owned(), |apps| apps.iter().map(AppName::as_str).collect::<Vec<_>>().join(", "));
        let expires = token.expires_at.map(local_time);
        let expired = if token.expired { BAD } else { Style::new() };
        let maker = match (token.source, &token.by) {
            (TokenSource::Created, Some(maker)) => by(maker),
            _ => "the config".to_owned(),
        };
        table.row(vec![
            Cell::from(&token.name),
            Cell::from(format!("{:?}", token.role)),
            Cell::from(apps),
            expires.map_or_else(|| or_dash(None::<String>), |at| Cell::styled(&at, expired)),
            or_dash(token.created_at.map(local_time).as_ref()),
            Cell::from(maker),
        ]);
    }
    Ok(table.print(screen)?)
}
