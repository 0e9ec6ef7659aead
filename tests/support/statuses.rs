//! A forge that takes commits' statuses as it documents it and nothing else, and keeps what it was told.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::Path,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Map, Value, json};

/// Nothing that a test waits for takes longer.
const LIMIT: Duration = Duration::from_secs(60);
/// What it takes as proof.
pub const TOKEN: &str = "frg_5ea1-70ken";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    GitHub,
    GitLab,
    Gitea,
}

/// What it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub commit: String,
    /// In the forge's own words.
    pub state: String,
    pub context: String,
    pub description: String,
    /// At GitLab.
    pub ref_name: Option<String>,
}

/// How it is in.
#[derive(Debug, Clone)]
pub enum Mood {
    Well,
    /// Answers so, whatever it is told.
    Says(u16, &'static str, String),
    /// Reads, and never answers.
    Hangs,
    /// Takes what it is told and closes the connection without a word.
    Mute,
}

struct State {
    mood: Mood,
    told: Vec<Told>,
    /// What no forge would have taken.
    faults: Vec<String>,
    /// Requests in a bad mood.
    turned_away: usize,
    /// Those of them that came before the mood was set, or before a test had last what it waited for.
    past: usize,
}

struct Shared {
    kind: Kind,
    /// Path of the repository.
    project: &'static str,
    state: Mutex<State>,
    changed: Condvar,
}

pub struct Statuses {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Statuses {
    pub fn new(kind: Kind, project: &'static str) -> Self {
        Self::start(kind, project, None)
    }

    /// Over TLS, with this certificate and the key beside it.
    pub fn with_tls(kind: Kind, project: &'static str, certificate: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(certificate).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(certificate.with_extension("key")).unwrap();
        let config = ServerConfig::builder_with_provider(ring::default_provider().into());
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Self::start(kind, project, Some(Arc::new(config.with_single_cert(chain, key).unwrap())))
    }

    fn start(kind: Kind, project: &'static str, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { mood: Mood::Well, told: Vec::new(), faults: Vec::new(), turned_away: 0, past: 0 };
        let shared = Arc::new(Shared { kind, project, state: Mutex::new(state), changed: Condvar::new() });
        let house = Arc::clone(&shared);
        thread::spawn(move || {
            for visitor in listener.incoming() {
                let (house, tls) = (Arc::clone(&house), tls.clone());
                thread::spawn(move || {
                    let visitor = visitor.unwrap();
                    match tls {
                        None => house.serve(visitor),
                        Some(config) => {
                            house.serve(StreamOwned::new(ServerConnection::new(config).unwrap(), visitor));
                        }
                    }
                });
            }
        });
        Self { port, shared }
    }

    pub fn set(&self, mood: Mood) {
        let mut state = self.shared.state.lock().unwrap();
        (state.mood, state.past) = (mood, state.turned_away);
    }

    /// Waits until `look` finds something in what it was told.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut(&[Told]) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        let mut state = self.shared.state.lock().unwrap();
        loop {
            assert_eq!(state.faults, [] as [String; 0], "it was told what no forge takes");
            if let Some(found) = look(&state.told) {
                state.past = state.turned_away;
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never: {what}; told were {:#?}, turned away {}", state.told, state.turned_away);
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits until the last word about this commit is this.
    pub fn until_last(&self, commit: &str, state: &str) -> Told {
        self.until(&format!("{commit} is {state}"), |told| {
            let last = told.iter().rev().find(|told| told.commit == commit)?;
            (last.state == state).then(|| last.clone())
        })
    }

    /// Waits until so many requests came in a bad mood, since it was set or since something was waited for here.
    pub fn turns_away(&self, more: usize) {
        let mut state = self.shared.state.lock().unwrap();
        let want = state.past + more;
        let end = Instant::now() + LIMIT;
        while state.turned_away < want {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nobody comes");
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
        state.past = state.turned_away;
    }

    /// The words about this commit, oldest first.
    pub fn states(&self, commit: &str) -> Vec<String> {
        let state = self.shared.state.lock().unwrap();
        state.told.iter().filter(|told| told.commit == commit).map(|told| told.state.clone()).collect()
    }

    pub fn told(&self) -> Vec<Told> {
        self.shared.state.lock().unwrap().told.clone()
    }
}

impl Shared {
    fn serve(&self, stream: impl Read + Write) {
        let mut stream = BufReader::new(stream);
        while let Some(request) = read(&mut stream) {
            let Some((status, header, body)) = self.answer(&request) else { return };
            let head = format!(
                "HTTP/1.1 {status} X\r\n{header}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let stream = stream.get_mut();
            if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).is_err() {
                return;
            }
            let _ = stream.flush();
        }
    }

    /// `None`: the connection is closed.
    fn answer(&self, request: &Request) -> Option<(u16, String, String)> {
        let mut state = self.state.lock().unwrap();
        let mood = state.mood.clone();
        let (status, header, body) = match mood {
            Mood::Well => self.take(&mut state, request),
            Mood::Says(status, header, body) => {
                state.turned_away += 1;
                (status, header.to_owned(), body)
            }
            Mood::Hangs => {
                state.turned_away += 1;
                self.changed.notify_all();
                // Until it is well again, and then it is too late.
                drop(self.changed.wait_while(state, |state| matches!(state.mood, Mood::Hangs)).unwrap());
                return None;
            }
            Mood::Mute => {
                self.take(&mut state, request);
                state.turned_away += 1;
                self.changed.notify_all();
                return None;
            }
        };
        drop(state);
        self.changed.notify_all();
        Some((status, header, body))
    }

    fn take(&self, state: &mut State, request: &Request) -> (u16, String, String) {
        let answer = |status: u16, message: &str| (status, String::new(), json!({ "message": message }).to_string());
        match self.judge(request) {
            // GitLab has states that follow one another, within one run.
            Ok(told) if self.kind == Kind::GitLab && !follows(&state.told, &told) => {
                let how = format!("Cannot transition status via :run from :{} (Reason(s): …)", told.state);
                answer(400, &how)
            }
            Ok(told) => {
                state.told.push(told);
                (201, String::new(), json!({"id": state.told.len()}).to_string())
            }
            Err(fault) => {
                let message = format!("{fault}: {} {}", request.method, request.target);
                state.faults.push(message);
                answer(422, &fault)
            }
        }
    }

    /// As the documentation has it, to the letter.
    fn judge(&self, request: &Request) -> Result<Told, String> {
        let require = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
        require(request.method == "POST", "the method")?;
        let one = |name: &str| {
            let mut found = request.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str());
            found.next().filter(|_| found.next().is_none())
        };
        require(one("content-type") == Some("application/json"), "the content type")?;
        require(one("user-agent").is_some_and(|agent| agent.starts_with("everhook/")), "the user agent")?;
        require(one("host").is_some(), "the host")?;
        let (front, proof, accept) = match self.kind {
            Kind::GitHub => (
                format!("/repos/{}/statuses/", self.project),
                ("authorization", format!("Bearer {TOKEN}")),
                "application/vnd.github+json",
            ),
            Kind::GitLab => (
                format!("/api/v4/projects/{}/statuses/", self.project.replace('/', "%2F")),
                ("private-token", TOKEN.to_owned()),
                "application/json",
            ),
            Kind::Gitea => (
                format!("/api/v1/repos/{}/statuses/", self.project),
                ("authorization", format!("token {TOKEN}")),
                "application/json",
            ),
        };
        require(one("accept") == Some(accept), "what is accepted")?;
        require(one(proof.0) == Some(&proof.1), "the token")?;
        if self.kind == Kind::GitHub {
            require(one("x-github-api-version") == Some("2022-11-28"), "the version of the API")?;
        }
        let commit = request.target.strip_prefix(&front).ok_or("the path")?.to_owned();
        let hex = commit.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        require(hex && commit.len() == 40, "the commit")?;
        let body: Map<String, Value> = serde_json::from_slice(&request.body).map_err(|e| e.to_string())?;
        self.judge_body(commit, &body)
    }

    fn judge_body(&self, commit: String, body: &Map<String, Value>) -> Result<Told, String> {
        let (fields, states): (&[&str], &[&str]) = match self.kind {
            Kind::GitHub => (&["state", "context", "description"], &["error", "failure", "pending", "success"]),
            Kind::Gitea => {
                (&["state", "context", "description"], &["pending", "success", "error", "failure", "warning"])
            }
            Kind::GitLab => {
                (&["state", "name", "description", "ref"], &["pending", "running", "success", "failed", "canceled"])
            }
        };
        if let Some(unknown) = body.keys().find(|key| !fields.contains(&key.as_str())) {
            return Err(format!("the field {unknown}"));
        }
        let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
        let needed = |name: &str| text(name).ok_or_else(|| format!("the field {name}"));
        let told = Told {
            commit,
            state: needed("state")?,
            context: needed(if self.kind == Kind::GitLab { "name" } else { "context" })?,
            description: needed("description")?,
            ref_name: text("ref"),
        };
        if !states.contains(&told.state.as_str()) {
            return Err(format!("the state {}", told.state));
        }
        let line = told.description.chars().count() <= 140 && !told.description.contains(char::is_control);
        if !line || told.description.is_empty() {
            return Err(format!("the description {:?}", told.description));
        }
        Ok(told)
    }
}

/// From `pending` over `running` to an end, from which another run begins.
fn follows(before: &[Told], told: &Told) -> bool {
    let last = before.iter().rev().find(|other| other.commit == told.commit && other.context == told.context);
    let rank = |state: &str| match state {
        "pending" => 1,
        "running" => 2,
        _ => 3,
    };
    last.is_none_or(|last| rank(&last.state) == 3 || rank(&told.state) > rank(&last.state))
}

fn read(stream: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    let mut next = |stream: &mut dyn BufRead| {
        line.clear();
        stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
        Some(line.trim_end().to_owned())
    };
    let first = next(stream)?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let line = next(stream)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ")?;
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, n)| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Request { method, target, headers, body })
}
