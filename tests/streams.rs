//! Events and logs over HTTP, as lists and as they come.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use http::{Answer, Client, head};
use serde_json::{Value, json};
use server::Server;

const CONFIG: &str = r#"(state_dir: "@DIR@/state", http: [(bind: "127.0.0.1:0", serve: [Api])],
    tokens: [
        (name: "boss", secret: File("@DIR@/boss"), role: Admin),
        (name: "eye", secret: File("@DIR@/eye"), role: Viewer, apps: ["blog"]),
    ],
    apps: {
        "blog": (command: "echo first; echo wrong >&2; while read line; do echo \"$line\"; done < @DIR@/say",
            ready: Immediate, restart: (policy: Never)),
        "shop": (command: ["sleep", "1000"], ready: Immediate),
    })"#;

fn server() -> Server {
    let server = Server::new(CONFIG);
    server.write_secret("boss", "boss");
    server.write_secret("eye", "eye");
    nix::unistd::mkfifo(&server.path().join("say"), nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    server.started()
}

/// What the app of [`CONFIG`] writes.
fn say(server: &Server, text: &str) {
    std::fs::write(server.path().join("say"), text).unwrap();
}

fn get(server: &Server, token: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
    let token = format!("Bearer {token}");
    let headers = [&[("authorization", token.as_str())], headers].concat();
    http::request(server.address("api"), "GET", &format!("/api/v1/{target}"), &headers, b"")
}

/// One who reads server-sent events.
struct Reader {
    client: Client,
    text: String,
}

/// An event: its id and its data.
type Told = (String, Value);

impl Reader {
    fn open(server: &Server, token: &str, target: &str, last: Option<&str>) -> Self {
        let mut client = Client::connect(server.address("api"));
        let token = format!("Bearer {token}");
        let mut headers = vec![("authorization", token.as_str()), ("accept", "text/event-stream")];
        headers.extend(last.map(|id| ("last-event-id", id)));
        client.send(&head("GET", &format!("/api/v1/{target}"), &headers, None));
        let answer = client.begin();
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        Self { client, text: String::new() }
    }

    /// The next event; ids without data, comments and the like are passed over, but the id counts.
    fn next(&mut self) -> Told {
        let mut id = String::new();
        loop {
            let Some((block, rest)) = self.text.split_once("\n\n") else {
                let chunk = self.client.chunk().expect("the stream goes on");
                self.text.push_str(std::str::from_utf8(&chunk).unwrap());
                continue;
            };
            let (block, rest) = (block.to_owned(), rest.to_owned());
            self.text = rest;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            id = field("id: ").unwrap_or(id);
            if let Some(data) = field("data: ") {
                return (id, serde_json::from_str(&data).unwrap());
            }
        }
    }

    fn until(&mut self, mut fits: impl FnMut(&Value) -> bool) -> Told {
        loop {
            let told = self.next();
            if fits(&told.1) {
                return told;
            }
        }
    }
}

#[test]
fn events_come_as_they_happen_and_go_on_where_a_reader_was() {
    let server = server();
    let mut reader = Reader::open(&server, "boss", "events", None);
    server.ok(&["restart", "shop"]);
    let (id, ready) = reader.until(|event| event["app"] == "shop" && event["from"] == "stopping");
    assert_eq!(ready["id"].to_string(), id);
    drop(reader);
    server.ok(&["stop", "shop"]);
    let mut reader = Reader::open(&server, "boss", "events?app=shop", Some(&id));
    let (_, next) = reader.next();
    assert!(next["id"].as_i64().unwrap() > ready["id"].as_i64().unwrap());
    reader.until(|event| event["to"] == "stopped");
    let after = |event: &&Value| event["app"] == "shop" && event["id"].as_i64() > ready["id"].as_i64();
    assert_eq!(server.events().iter().find(after), Some(&next), "none is missed");
}

#[test]
fn a_reader_sees_its_own_apps_alone() {
    let server = server();
    let mut reader = Reader::open(&server, "eye", "events", None);
    server.ok(&["restart", "shop"]);
    server.ok(&["restart", "blog"]);
    let mut apps = Vec::new();
    reader.until(|event| {
        apps.push(event["app"].clone());
        event["app"] == "blog" && event["from"] == "stopping"
    });
    assert!(apps.iter().all(|app| *app == json!("blog")), "{apps:?}");
    for (token, target, status) in [
        ("eye", "events?app=shop", 404),
        ("eye", "logs/shop", 404),
        ("eye", "logs/blog.7", 404),
        ("eye", "apps/shop", 404),
        ("eye", "logs/Blog!", 404),
        ("nobody", "events", 401),
        ("nobody", "logs/blog", 401),
        ("boss", "logs/blog?grep=(", 400),
        ("boss", "logs/blog?since=yesterday", 400),
        ("boss", "events?before=x", 400),
    ] {
        for accept in ["application/json", "text/event-stream"] {
            let answer = get(&server, token, target, &[("accept", accept)]);
            assert_eq!(answer.status, status, "{target}: {}", answer.text());
            assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        }
    }
    // The channel that they came over serves everybody as before.
    assert_eq!(get(&server, "eye", "apps/blog", &[]).json()["name"], "blog");
}

#[test]
fn logs_come_as_they_are_written_and_go_on_where_a_reader_was() {
    let server = server();
    let mut reader = Reader::open(&server, "eye", "logs/blog", None);
    let (_, first) = reader.until(|told| told["line"] == "first");
    assert_eq!(first, json!({"at": null, "instance": "blog.1", "stream": "out", "line": "first"}));
    say(&server, "one\ntwo\n");
    let (id, _) = reader.until(|told| told["line"] == "two");
    drop(reader);
    server.wait_state("blog", "done");
    server.ok(&["start", "blog"]);
    say(&server, "three\n");
    let mut reader = Reader::open(&server, "eye", "logs/blog.1", Some(&id));
    let mut told = Vec::new();
    reader.until(|line| {
        told.push(line["line"].as_str().unwrap().to_owned());
        line["line"] == "three"
    });
    told.retain(|line| line != "wrong");
    assert_eq!(told, ["first", "three"], "what was told is not told again");
}

#[test]
fn logs_are_a_list_for_whoever_asks_once() {
    let server = server();
    say(&server, "one\n");
    server.wait_state("blog", "done");
    let lines = |target: &str| {
        let answer = get(&server, "eye", target, &[]);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{target}");
        let list = answer.json();
        list.as_array().unwrap().iter().map(|line| line["line"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        server.until("both streams are written", |_| Some(lines("logs/blog")).filter(|all| all.len() == 3)),
        ["first", "one", "wrong"]
    );
    assert_eq!(lines("logs/blog?stderr=true"), ["wrong"]);
    assert_eq!(lines("logs/blog.1?n=1"), ["one", "wrong"]);
    assert_eq!(lines("logs/blog?grep=^o"), ["one"]);
    assert!(lines("logs/blog?grep=nothing").is_empty());
}

#[test]
fn lists_have_pages_and_what_did_not_change_is_not_sent_again() {
    let server = server();
    for _ in 0..3 {
        server.ok(&["restart", "shop"]);
    }
    let first = get(&server, "boss", "events?n=4", &[]);
    let oldest = first.json()[0]["id"].as_i64().unwrap();
    let link = format!("</api/v1/events?n=4&before={oldest}>; rel=\"next\"");
    assert_eq!(first.header("link"), Some(link.as_str()));
    let second = get(&server, "boss", &format!("events?n=4&before={oldest}"), &[]).json();
    let told: Vec<_> = second.as_array().unwrap().iter().chain(first.json().as_array().unwrap()).cloned().collect();
    // More may have happened since.
    let all = server.events();
    let begin = all.iter().position(|event| *event == told[0]).unwrap();
    assert_eq!((told.len(), &told[..]), (8, &all[begin..begin + 8]));
    assert_eq!(get(&server, "boss", "events?n=1000", &[]).header("link"), None);

    let app = get(&server, "boss", "deploys", &[]);
    let tag = app.header("etag").unwrap().to_owned();
    let again = get(&server, "boss", "deploys", &[("if-none-match", &tag)]);
    assert_eq!((again.status, again.body.len()), (304, 0));
    assert_eq!(get(&server, "boss", "events", &[("if-none-match", &tag)]).status, 200);
}

#[test]
fn a_stream_outlives_a_reader_that_does_not_read_and_ends_with_the_supervisor() {
    let mut server = server();
    let deaf = Reader::open(&server, "boss", "events", None);
    let mut reader = Reader::open(&server, "boss", "events", None);
    for _ in 0..20 {
        server.ok(&["restart", "shop"]);
    }
    reader.until(|event| event["app"] == "shop" && event["from"] == "stopping");
    drop(deaf);
    assert!(server.stop().success());
}

/// Reads until the stream is over, which must be long before it would be by itself.
fn is_over(mut reader: Reader) -> bool {
    let mut silences = 0;
    while let Some(chunk) = reader.client.chunk() {
        silences += usize::from(chunk == b":\n\n");
        if silences > 3 {
            return false;
        }
    }
    true
}

#[test]
fn streams_end_with_the_token_that_opened_them() {
    let server = server();
    let token = |name: &str| server.ok(&["token", "create", name, "--role", "viewer"]).trim().to_owned();
    let (gone, stays) = (token("gone"), token("stays"));
    let open = |token: &str| {
        let (events, mut logs) =
            (Reader::open(&server, token, "events", None), Reader::open(&server, token, "logs/blog", None));
        logs.until(|line| line["line"] == "first");
        (events, logs)
    };
    let ((events, logs), (mut kept_events, mut kept_logs)) = (open(&gone), open(&stays));
    server.ok(&["token", "revoke", "gone"]);
    assert!(is_over(events) && is_over(logs));
    assert_eq!(get(&server, &gone, "status", &[]).status, 401);
    // Others go on.
    say(&server, "more\n");
    kept_logs.until(|line| line["line"] == "more");
    kept_events.until(|event| event["app"] == "blog");

    // So do those of the config, until the config says otherwise.
    let (events, logs) = open("eye");
    server.edit_config("role: Viewer, apps: [\"blog\"]", "role: Viewer, apps: [\"shop\"]");
    server.ok(&["reload"]);
    assert!(is_over(events) && is_over(logs));
}

#[test]
fn streams_end_when_their_token_does() {
    let server = server();
    let token = |name: &str, expires: &str| {
        let made = server.ok(&["token", "create", name, "--role", "viewer", "--expires", expires]);
        made.trim().to_owned()
    };
    let (short, long) = (token("short", "15s"), token("long", "1h"));
    let (events, logs) =
        (Reader::open(&server, &short, "events", None), Reader::open(&server, &short, "logs/blog", None));
    let mut kept = Reader::open(&server, &long, "events", None);
    assert!(is_over(events) && is_over(logs));
    assert_eq!(get(&server, &short, "status", &[]).status, 401);
    server.ok(&["restart", "shop"]);
    kept.until(|event| event["app"] == "shop");
}

/// Whoever may look at one app keeps nobody else from a stream or an answer, however many it opens.
#[test]
fn the_streams_of_one_token_leave_room_for_others() {
    let server = server();
    let mut open = Vec::new();
    let begin = |target: &str| {
        let mut client = Client::connect(server.address("api"));
        client.send(&head("GET", target, &[("authorization", "Bearer eye"), ("accept", "text/event-stream")], None));
        let answer = client.begin();
        (answer, client)
    };
    let refused = loop {
        assert!(open.len() < 256, "as many as all tokens may have");
        let target = if open.len() % 2 == 0 { "/api/v1/events" } else { "/api/v1/logs/blog" };
        match begin(target) {
            (answer, client) if answer.status == 200 => open.push(client),
            (answer, _) => break answer,
        }
    };
    assert_eq!((refused.status, open.len()), (429, 64));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(get(&server, "eye", "status", &[]).status, 200);
    drop(Reader::open(&server, "boss", "events", None));
    let target = "/api/v1/apps/shop/restart?wait=60s";
    let waits = http::request(server.address("api"), "POST", target, &[("authorization", "Bearer boss")], b"");
    assert_eq!(waits.status, 200);
    drop(open);
    server.until("its places are free", |_| (begin("/api/v1/events").0.status == 200).then_some(()));
}
