//! Makes the document, and holds that it says the same as the routes.

use std::{collections::BTreeSet, fs, path::Path};

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::super::routes::{Action, Route, Sentence};
use crate::domain::{
    api::{
        AppView, ChangedView, DeliveryView, DeployBody, DeployView, EventView, FreezeBody, Heard, LogLine, NoBody,
        Preview, ProblemView, Redelivered, RollbackBody, Status,
    },
    model::{AppName, At, InstanceId},
};

/// Every path, with what stands in it for the parameters.
fn routes() -> Vec<(String, Route)> {
    let id = || "7".to_owned();
    let mut routes = vec![
        ("/hooks".to_owned(), Route::Hook(None)),
        ("/deploy".to_owned(), Route::Hook(None)),
        ("/hooks/{app}".to_owned(), Route::Hook(Some("blog".into()))),
        ("/deploy/{app}".to_owned(), Route::Hook(Some("blog".into()))),
        ("/healthz".to_owned(), Route::Health),
        ("/metrics".to_owned(), Route::Metrics),
        ("/api/v1/status".to_owned(), Route::Status),
        ("/api/v1/apps/{app}".to_owned(), Route::App("blog".into())),
        ("/api/v1/events".to_owned(), Route::Events),
        ("/api/v1/logs/{of}".to_owned(), Route::Logs("blog".into())),
        ("/api/v1/deploys".to_owned(), Route::Deploys),
        ("/api/v1/deploys/{id}".to_owned(), Route::Deploy(id())),
        ("/api/v1/deploys/{id}/cancel".to_owned(), Route::Judge(id(), Sentence::Cancel)),
        ("/api/v1/deploys/{id}/approve".to_owned(), Route::Judge(id(), Sentence::Approve)),
        ("/api/v1/deliveries".to_owned(), Route::Deliveries),
        ("/api/v1/deliveries/{id}".to_owned(), Route::Delivery(id())),
        ("/api/v1/deliveries/{id}/redeliver".to_owned(), Route::Redeliver(id())),
        ("/api/v1/openapi.json".to_owned(), Route::OpenApi),
    ];
    routes.extend(
        Action::ALL
            .map(|action| (format!("/api/v1/apps/{{app}}/{}", action.name()), Route::Change("blog".into(), action))),
    );
    routes
}

/// The schemas that the document has so far: of what is answered, and of what is asked, where what has a default
/// may be missing.
struct Schemas {
    answered: SchemaGenerator,
    asked: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let mut settings = SchemaSettings::draft2020_12();
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
        let asked = settings.clone().into_generator();
        Self { answered: settings.for_serialize().into_generator(), asked }
    }

    fn of<T: JsonSchema>(&mut self) -> Value {
        self.answered.subschema_for::<T>().to_value()
    }

    fn json<T: JsonSchema>(&mut self) -> Value {
        json!({"application/json": {"schema": self.of::<T>()}})
    }

    fn body<T: JsonSchema>(&mut self) -> Value {
        json!({"content": {"application/json": {"schema": self.asked.subschema_for::<T>().to_value()}}})
    }

    fn all(mut self) -> Value {
        let mut all = self.asked.take_definitions(true);
        all.append(&mut self.answered.take_definitions(true));
        all.into()
    }
}

/// One operation, but for what all have.
struct Operation {
    summary: &'static str,
    parameters: Vec<Value>,
    body: Option<Value>,
    /// Status, when, and content.
    answers: Vec<(u16, &'static str, Value)>,
    /// What else may be answered than 503.
    problems: &'static [u16],
}

const LOOK: &[u16] = &[400, 401, 403, 404, 429];
const CHANGE: &[u16] = &[400, 401, 403, 404, 408, 409, 413, 415, 429];
const DELIVERY: &[u16] = &[400, 401, 408, 411, 413, 415, 429];

/// A route that is added does not compile until it is told here.
#[allow(clippy::too_many_lines, reason = "one table")]
fn operation(route: &Route, schemas: &mut Schemas) -> Operation {
    let look = |summary, parameters, content| Operation {
        summary,
        parameters,
        body: None,
        answers: vec![(200, "This is how it is.", content)],
        problems: LOOK,
    };
    match route {
        Route::Hook(app) => Operation {
            summary: match app {
                Some(_) => "A delivery of a forge's webhook, for this app",
                None => "A delivery of a forge's webhook, for the app whose repository it names",
            },
            parameters: Vec::new(),
            body: Some(json!({
                "description": "What the forge sends, with its headers; these, or the body, must prove the app's secret.",
                "required": true,
                "content": {
                    "application/json": {"schema": {"type": "object"}},
                    "application/x-www-form-urlencoded": {"schema": {
                        "type": "object",
                        "properties": {"payload": {"type": "string"}},
                        "required": ["payload"],
                    }},
                },
            })),
            answers: vec![
                (202, "It is on disk, and these deploys are queued.", schemas.json::<Heard>()),
                (200, "It is proven, and nothing is deployed.", schemas.json::<Heard>()),
            ],
            problems: DELIVERY,
        },
        Route::Health => Operation {
            answers: vec![(200, "The supervisor answers.", json!({"text/plain": {"schema": {"const": "ok"}}}))],
            problems: &[],
            ..look("Does the supervisor answer?", Vec::new(), Value::Null)
        },
        Route::Metrics => {
            let text = json!({"schema": {"type": "string"}});
            let content = json!({"text/plain": text, "application/openmetrics-text": text});
            Operation { problems: &[], ..look("Everything that is measured, for Prometheus", Vec::new(), content) }
        }
        Route::OpenApi => Operation {
            problems: &[],
            ..look("This document", Vec::new(), json!({"application/json": {"schema": {"type": "object"}}}))
        },
        Route::Status => look("The server and its apps", vec![app_filter(schemas)], schemas.json::<Status>()),
        Route::App(_) => look("One app", Vec::new(), schemas.json::<AppView>()),
        Route::Deploys => look("Deploys, newest first", list(schemas), schemas.json::<Vec<DeployView>>()),
        Route::Deploy(_) => look("One deploy", Vec::new(), schemas.json::<DeployView>()),
        Route::Deliveries => look("Deliveries, newest first", list(schemas), schemas.json::<Vec<DeliveryView>>()),
        Route::Delivery(_) => look("One delivery", Vec::new(), schemas.json::<DeliveryView>()),
        Route::Events => {
            let mut parameters = list(schemas);
            parameters.extend([since(schemas), resume()]);
            look("Events, oldest first; or as they come", parameters, streamed(schemas.json::<Vec<EventView>>()))
        }
        Route::Logs(_) => {
            let flag = |name, what| query(name, what, json!({"type": "boolean"}));
            let parameters = vec![
                number("n", "How many lines of each stream, at most 1000; else 20", u32::MAX.into()),
                since(schemas),
                query("grep", "Lines in which this regular expression fits", json!({"type": "string"})),
                flag("stderr", "The error stream alone"),
                flag("previous", "The run before the current one"),
                resume(),
            ];
            look(
                "Output of an app or an instance; or as it comes",
                parameters,
                streamed(schemas.json::<Vec<LogLine>>()),
            )
        }
        Route::Change(_, action) => {
            let (summary, body) = match action {
                Action::Restart => ("Restart an app", schemas.body::<NoBody>()),
                Action::Start => ("Start an app", schemas.body::<NoBody>()),
                Action::Stop => ("Stop an app until it is started", schemas.body::<NoBody>()),
                Action::Deploy => ("Deploy an app", schemas.body::<DeployBody>()),
                Action::Rollback => ("Go back to a release that was live", schemas.body::<RollbackBody>()),
                Action::Freeze => {
                    let mut body = schemas.body::<FreezeBody>();
                    body["required"] = true.into();
                    ("Let no deploy of an app start", body)
                }
                Action::Unfreeze => ("Let deploys of an app start again", schemas.body::<NoBody>()),
            };
            let previews = matches!(action, Action::Deploy | Action::Rollback);
            change(
                summary,
                body,
                if previews { schemas.json::<Done>() } else { schemas.json::<ChangedView>() },
                schemas,
            )
        }
        Route::Judge(_, sentence) => {
            let summary = match sentence {
                Sentence::Cancel => "End a deploy",
                Sentence::Approve => "Let a deploy go on that awaits approval",
            };
            change(summary, schemas.body::<NoBody>(), schemas.json::<ChangedView>(), schemas)
        }
        Route::Redeliver(_) => Operation {
            summary: "Judge an accepted delivery as if it had come again",
            parameters: Vec::new(),
            body: Some(schemas.body::<NoBody>()),
            answers: vec![
                (202, "These deploys are queued.", schemas.json::<Redelivered>()),
                (200, "It repeats what is under way or live.", schemas.json::<Redelivered>()),
            ],
            problems: CHANGE,
        },
    }
}

/// What is answered once it is so, or would be so.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "a shape")]
enum Done {
    Changed(ChangedView),
    Preview(Box<Preview>),
}

fn change(summary: &'static str, body: Value, done: Value, schemas: &mut Schemas) -> Operation {
    let wait = json!({"type": "string", "pattern": "^([1-9]|[1-5][0-9]|[1-9]m[0-5]?[0-9])s$", "examples": ["30s"]});
    Operation {
        summary,
        parameters: vec![query(
            "wait",
            "Answer when it is so, or after this time at most, such as `30s`; up to `10m`",
            wait,
        )],
        body: Some(body),
        answers: vec![
            (202, "It is begun.", schemas.json::<ChangedView>()),
            (200, "With `wait`: it is so. With `dry_run`: this would be done.", done),
        ],
        problems: CHANGE,
    }
}

fn parameter(place: &str, name: &str, what: &str, schema: impl Into<Value>) -> Value {
    let schema = schema.into();
    json!({"in": place, "name": name, "description": what, "required": place == "path", "schema": schema})
}

fn query(name: &str, what: &str, schema: Value) -> Value {
    parameter("query", name, what, schema)
}

fn number(name: &str, what: &str, maximum: i64) -> Value {
    query(name, what, json!({"type": "integer", "minimum": 0, "maximum": maximum}))
}

fn app_filter(schemas: &mut Schemas) -> Value {
    query("app", "Of this app alone", schemas.of::<AppName>())
}

fn since(schemas: &mut Schemas) -> Value {
    query("since", "Not older than this", schemas.of::<At>())
}

fn list(schemas: &mut Schemas) -> Vec<Value> {
    vec![
        app_filter(schemas),
        number("n", "How many, at most 1000; else 20", u32::MAX.into()),
        number("before", "The page before this number; `Link` names it", i64::MAX),
    ]
}

fn resume() -> Value {
    parameter("header", "Last-Event-ID", "Of a stream: the `id` of the last that was heard", json!({"type": "string"}))
}

fn streamed(mut content: Value) -> Value {
    content["text/event-stream"] = json!({"schema": {"type": "string"}});
    content
}

/// The parameters that stand in a path.
fn places(path: &str, schemas: &mut Schemas) -> Vec<Value> {
    let id = json!({"type": "integer", "minimum": 1, "maximum": i64::MAX});
    let of = json!({"anyOf": [schemas.of::<AppName>(), schemas.of::<InstanceId>()]});
    let known = [
        ("{app}", parameter("path", "app", "The app's name", schemas.of::<AppName>())),
        ("{of}", parameter("path", "of", "An app, or an instance of one", of)),
        ("{id}", parameter("path", "id", "Its number", id)),
    ];
    known.into_iter().filter(|(place, _)| path.contains(place)).map(|(_, parameter)| parameter).collect()
}

/// A header's name, and what it says.
type Header = (&'static str, &'static str);

/// Every problem: its status, when it is answered, and the header that it has.
const PROBLEMS: [(u16, &str, Option<Header>); 11] = [
    (400, "It is not understood.", None),
    (401, "It is not proven who asks.", Some(("WWW-Authenticate", "`Bearer`, where a token is wanted"))),
    (403, "The role is too low, or the address is not among those that are answered.", None),
    (404, "There is none, or none that the token may see.", None),
    (408, "The body did not come in time.", None),
    (409, "It was tried or refused, and is not so: the reason.", None),
    (411, "Neither a Content-Length nor chunks.", None),
    (413, "The body is too large.", None),
    (415, "A Content-Encoding, or another type of body.", None),
    (429, "Too many requests, or unknown tokens, of this address, or streams of this token.", Some(RETRY)),
    (503, "The supervisor cannot answer now. Nothing of it was kept.", Some(RETRY)),
];

const RETRY: Header = ("Retry-After", "Seconds after which it may be tried again");

fn header(what: &str) -> Value {
    json!({"description": what, "schema": {"type": "string"}})
}

fn problems(schemas: &mut Schemas) -> Value {
    let content = json!({"application/problem+json": {"schema": schemas.of::<ProblemView<'_>>()}});
    let mut problems = Map::new();
    for (status, when, special) in PROBLEMS {
        let mut response = json!({"description": when, "content": content});
        if let Some((name, what)) = special {
            response["headers"] = json!({name: header(what)});
        }
        problems.insert(status.to_string(), response);
    }
    problems.into()
}

fn responses(route: &Route, operation: &Operation) -> Value {
    let mut responses = Map::new();
    let looks = route.methods() != "POST" && !matches!(route, Route::Health | Route::Metrics);
    for (status, when, content) in &operation.answers {
        let mut response = json!({"description": when, "content": content});
        if looks && !matches!(route, Route::Logs(_)) {
            response["headers"] = json!({"ETag": header("For `If-None-Match`")});
            responses.insert("304".into(), json!({"description": "It is what `If-None-Match` names."}));
        }
        if matches!(route, Route::Deploys | Route::Deliveries | Route::Events) {
            response["headers"]["Link"] = header("`rel=\"next\"`: the page before this one (RFC 8288)");
        }
        responses.insert(status.to_string(), response);
    }
    let also: &[u16] = if *route == Route::OpenApi { &[403] } else { &[403, 503] };
    for status in operation.problems.iter().chain(also) {
        assert!(PROBLEMS.iter().any(|(known, ..)| known == status), "{status} is told nowhere");
        responses.insert(status.to_string(), json!({"$ref": format!("#/components/responses/{status}")}));
    }
    responses.into()
}

fn document() -> Value {
    let mut schemas = Schemas::new();
    let mut paths = Map::new();
    for (path, route) in routes() {
        let told = operation(&route, &mut schemas);
        let method = if route.methods() == "POST" { "post" } else { "get" };
        let mut operation = json!({
            "operationId": operation_id(&path),
            "summary": told.summary,
            "responses": responses(&route, &told),
        });
        let parameters = [places(&path, &mut schemas), told.parameters].concat();
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(body) = told.body {
            operation["requestBody"] = body;
        }
        if path.starts_with("/api/") && route != Route::OpenApi {
            operation["security"] = json!([{"token": []}]);
        }
        paths.insert(path, json!({method: operation}));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "everhook",
            "version": "1",
            "description": "Keeps the apps of a server alive and deploys the newest commit when a forge calls its webhook.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "responses": problems(&mut schemas),
            "schemas": schemas.all(),
            "securitySchemes": {"token": {
                "type": "http",
                "scheme": "bearer",
                "description": "A token of the config, or made by `everhook token create`.",
            }},
        },
    })
}

/// Its words in their order: `apps_app_restart`.
fn operation_id(path: &str) -> String {
    let words = path.trim_start_matches("/api/v1").split('/').filter(|word| !word.is_empty());
    words.map(|word| word.trim_matches(['{', '}']).replace('.', "_")).collect::<Vec<_>>().join("_")
}

#[test]
fn it_says_what_the_code_says() {
    let made = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/listener/openapi/document.json");
    if std::env::var_os("EVERHOOK_BLESS").is_some() {
        fs::write(&path, &made).unwrap();
    }
    assert!(made == fs::read_to_string(path).unwrap(), "EVERHOOK_BLESS=1 cargo test --lib openapi writes it anew");
}

#[test]
fn every_path_of_it_is_a_route() {
    for (path, route) in routes() {
        let filled = path.replace("{app}", "blog").replace("{of}", "blog").replace("{id}", "7");
        assert_eq!(Route::find(&filled), Some(route), "{path}");
    }
}

/// Everything that can be made of the words of all paths.
#[test]
fn every_route_is_in_it() {
    let told: BTreeSet<String> = routes().into_iter().map(|(path, _)| path).collect();
    let words: BTreeSet<&str> = told.iter().flat_map(|path| path.split('/')).filter(|word| !word.is_empty()).collect();
    let mut found = BTreeSet::new();
    for start in ["", "/api/v1"] {
        let mut paths = vec![start.to_owned()];
        for _ in 0..3 {
            paths = paths.iter().flat_map(|path| words.iter().map(move |word| format!("{path}/{word}"))).collect();
            found.extend(paths.iter().filter(|path| Route::find(path).is_some()).cloned());
        }
    }
    // What is a parameter to the routes takes any word.
    let is_told = |path: &String| {
        told.iter().any(|told| {
            let pairs = told.split('/').zip(path.split('/'));
            told.matches('/').count() == path.matches('/').count()
                && pairs.into_iter().all(|(told, word)| told == word || told.starts_with('{'))
        })
    };
    let untold: Vec<_> = found.iter().filter(|path| !is_told(path)).collect();
    assert!(untold.is_empty(), "{untold:?}");
    assert!(told.iter().all(|path| found.contains(path)), "a path of the document is none");
}
