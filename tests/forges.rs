//! A push of every forge is proven, deployed once, and refused like anything else where it is not.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use data_encoding::{BASE64, HEXLOWER};
use hmac::{Hmac, KeyInit, Mac};
use http::Answer;
use serde_json::{Value, json};
use server::{Repo, SECRET, Server, unique};
use sha2::{Sha256, Sha512};

/// A signing token, as GitLab and senders of Standard Webhooks give it.
const SIGNING: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

const APPS: &str = r#"
    "site": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret"), settle: "10ms")),
    "signed": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/signing"), settle: "10ms")),
    "told": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret"), settle: "10ms",
        dialect: Generic(proof: Hmac(header: "X-Sig", prefix: "sha512=", hash: Sha512, encoding: Base64), event: "X-What",
            id: "X-Id", ref: "/push/refs/0", commit: "/push/new", repository: "/repo"))),
    "bearer": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret"), settle: "10ms",
        dialect: Generic(proof: Bearer, ref: "/ref"))),
    "many": (deploy: (repo: "@DIR@/repo", on: [Push(branch: "main"), Push(branch: "next"), Tag("v*")], settle: "10ms",
        secret: File("@DIR@/secret")))"#;

type Headers = Vec<(&'static str, String)>;

/// A push as one forge sends it.
struct Push {
    dialect: &'static str,
    app: &'static str,
    headers: Headers,
    body: String,
}

fn server() -> (Server, Repo) {
    let server = Server::with_apps(APPS);
    server.write_secret("secret", SECRET);
    server.write_secret("signing", SIGNING);
    let repo = Repo::new(server.path().join("repo"), &[("VERSION", "1")]);
    (server.started(), repo)
}

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn post(server: &Server, app: &str, headers: &Headers, body: &str) -> Answer {
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    http::request(server.address("hooks"), "POST", &format!("/hooks/{app}"), &headers, body.as_bytes())
}

fn sha256(key: &[u8], message: &str) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(message);
    mac.finalize().into_bytes().to_vec()
}

fn hex(body: &str) -> String {
    HEXLOWER.encode(&sha256(SECRET.as_bytes(), body))
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

fn standard(id: &str, body: &str) -> Headers {
    let stamp = (now_ms() / 1000).to_string();
    let key = BASE64.decode(SIGNING.strip_prefix("whsec_").unwrap().as_bytes()).unwrap();
    let signature = format!("v1,{}", BASE64.encode(&sha256(&key, &format!("{id}.{stamp}.{body}"))));
    vec![("webhook-id", id.to_owned()), ("webhook-timestamp", stamp), ("webhook-signature", signature)]
}

fn basic(password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("anybody:{password}").as_bytes()))
}

/// GitHub's body, which others share.
fn like_github(file: &str, commit: &str) -> String {
    let mut body = fixture(file);
    (body["ref"], body["after"]) = ("refs/heads/main".into(), commit.into());
    body.to_string()
}

fn like_gitlab(commit: &str) -> String {
    let mut body = fixture("gitlab/push-event.json");
    (body["ref"], body["after"], body["checkout_sha"]) = ("refs/heads/main".into(), commit.into(), commit.into());
    body.to_string()
}

fn bitbucket_change(name: &str, commit: &str) -> Value {
    let mut change = fixture("bitbucket/repo-push.json")["push"]["changes"][0].clone();
    (change["new"]["name"], change["new"]["target"]["hash"]) = (name.into(), commit.into());
    change
}

fn bitbucket_cloud(changes: &[Value]) -> (Headers, String) {
    let mut body = fixture("bitbucket/repo-push.json");
    body["push"]["changes"] = changes.to_vec().into();
    let body = body.to_string();
    let signature = format!("sha256={}", hex(&body));
    let headers = vec![
        ("x-event-key", "repo:push".to_owned()),
        ("x-hook-uuid", "{a}".to_owned()),
        ("x-request-uuid", unique()),
        ("x-hub-signature", signature),
    ];
    (headers, body)
}

fn of_github(commit: &str) -> Vec<Push> {
    let own = |dialect, file, event: &'static str, id, signature, prefix: &str, form: bool| {
        let json = like_github(file, commit);
        let mut headers =
            vec![(event, "push".to_owned()), (id, unique()), (signature, format!("{prefix}{}", hex(&json)))];
        // As they do, those that stem from GitHub's shape send its headers too.
        if dialect != "github" {
            headers.push(("x-github-event", "push".to_owned()));
        }
        let mut body = json;
        if form {
            headers.push(("content-type", "application/x-www-form-urlencoded".to_owned()));
            body = format!("payload={}", body.bytes().map(|b| format!("%{b:02x}")).collect::<String>());
        }
        Push { dialect, app: "site", headers, body }
    };
    let (gitea, gogs) = ("gitea/push-event.json", "gogs/push-event.json");
    vec![
        own(
            "github",
            "github/push.4.json",
            "x-github-event",
            "x-github-delivery",
            "x-hub-signature-256",
            "sha256=",
            false,
        ),
        own("gitea", gitea, "x-gitea-event", "x-gitea-delivery", "x-gitea-signature", "", true),
        own("forgejo", gitea, "x-forgejo-event", "x-forgejo-delivery", "x-forgejo-signature", "", false),
        own("gogs", gogs, "x-gogs-event", "x-gogs-delivery", "x-gogs-signature", "", false),
    ]
}

fn of_gitlab(commit: &str) -> Vec<Push> {
    let body = like_gitlab(commit);
    let event = || ("x-gitlab-event", "Push Hook".to_owned());
    let token = vec![event(), ("x-gitlab-token", SECRET.to_owned()), ("x-gitlab-event-uuid", unique())];
    let mut signed = standard(&unique(), &body);
    signed.extend([event(), ("x-gitlab-token", "another".to_owned())]);
    vec![
        Push { dialect: "gitlab", app: "site", headers: token, body: body.clone() },
        Push { dialect: "gitlab", app: "signed", headers: signed, body },
    ]
}

fn of_gitee(commit: &str) -> Vec<Push> {
    let mut body: Value = serde_json::from_str(&like_github("gitea/push-event.json", commit)).unwrap();
    body["password"] = SECRET.into();
    let headers = |stamp: &str, token: String| {
        vec![
            ("x-gitee-event", "Push Hook".to_owned()),
            ("x-gitee-timestamp", stamp.to_owned()),
            ("x-gitee-token", token),
        ]
    };
    let (first, second) = ((now_ms() - 2).to_string(), (now_ms() - 1).to_string());
    let signed = BASE64.encode(&sha256(SECRET.as_bytes(), &format!("{second}\n{SECRET}")));
    let push = |headers| Push { dialect: "gitee", app: "site", headers, body: body.to_string() };
    vec![
        push(headers(&first, SECRET.to_owned())),
        push(headers(&second, signed.replace('+', "%2B").replace('=', "%3D"))),
    ]
}

fn of_others(commit: &str) -> Vec<Push> {
    let (headers, body) = bitbucket_cloud(&[bitbucket_change("main", commit)]);
    let cloud = Push { dialect: "bitbucket_cloud", app: "site", headers, body };

    let mut body = fixture("bitbucket-server/repo-refs-changed.json");
    let change = &mut body["changes"][0];
    (change["refId"], change["toHash"], change["type"]) = ("refs/heads/main".into(), commit.into(), "UPDATE".into());
    let body = body.to_string();
    let key = || ("x-event-key", "repo:refs_changed".to_owned());
    let headers = vec![key(), ("x-request-id", unique()), ("x-hub-signature", format!("sha256={}", hex(&body)))];
    let data_center = Push { dialect: "bitbucket_data_center", app: "site", headers, body: body.clone() };
    let headers = vec![key(), ("x-request-id", unique()), ("authorization", basic(SECRET))];
    let by_password = Push { dialect: "bitbucket_data_center", app: "site", headers, body };

    let mut body = fixture("azuredevops/git.push.json");
    body["id"] = unique().into();
    let update = &mut body["resource"]["refUpdates"][0];
    (update["name"], update["newObjectId"]) = ("refs/heads/main".into(), commit.into());
    let headers = vec![("x-vss-subscriptionid", "1".to_owned()), ("authorization", basic(SECRET))];
    let azure = Push { dialect: "azure_devops", app: "site", headers, body: body.to_string() };

    let body = json!({"type": "push", "data": {"ref": "refs/heads/main", "commit": commit}}).to_string();
    let any = Push { dialect: "standard_webhooks", app: "signed", headers: standard(&unique(), &body), body };

    let body = json!({"push": {"refs": ["main"], "new": commit}, "repo": "/nowhere"}).to_string();
    let mac = Hmac::<Sha512>::new_from_slice(SECRET.as_bytes()).unwrap().chain_update(&body).finalize().into_bytes();
    let headers =
        vec![("x-sig", format!("sha512={}", BASE64.encode(&mac))), ("x-id", unique()), ("x-what", "moved".into())];
    let told = Push { dialect: "generic", app: "told", headers, body };
    let headers = vec![("authorization", format!("Bearer {SECRET}"))];
    // No commit is named: the tip is taken.
    let bearer =
        Push { dialect: "generic", app: "bearer", headers, body: json!({"ref": "main", "n": unique()}).to_string() };
    vec![cloud, data_center, by_password, azure, any, told, bearer]
}

#[test]
fn a_push_of_every_forge_is_deployed_once() {
    let (server, repo) = server();
    for app in ["site", "signed", "told", "bearer"] {
        server.until("the first deploy", |s| Some(()).filter(|()| s.app(app)["release"].is_string()));
    }
    let all: [fn(&str) -> Vec<Push>; 4] = [of_github, of_gitlab, of_gitee, of_others];
    let mut seen = Vec::new();
    for made in all {
        for number in 0..made(&repo.head()).len() {
            let commit = repo.commit(&[], "next");
            let Push { dialect, app, headers, body } = made(&commit).remove(number);
            let answer = post(&server, app, &headers, &body);
            assert_eq!(answer.status, 202, "{dialect} {app}: {}", answer.text());
            let (delivery, deploy) =
                (answer.json()["delivery"].clone(), answer.json()["deploys"][0]["id"].as_i64().unwrap());
            let again = post(&server, app, &headers, &body);
            assert_eq!((again.status, &again.json()["duplicate_of"]), (200, &delivery), "{dialect}: {}", again.text());
            let ended = server.deploy_end(deploy);
            assert_eq!((&ended["state"], &ended["commit"]), (&json!("live"), &json!(commit)), "{dialect}: {ended}");
            let told = server.json(&["deliveries", "show", &delivery.to_string()]);
            assert_eq!((&told["dialect"], &told["ref"]), (&json!(dialect), &json!("refs/heads/main")), "{told}");
            assert!(told["sender_id"].is_string(), "{dialect}: {told}");
            seen.push(dialect);
        }
    }
    seen.dedup();
    assert_eq!(seen.len(), 11, "{seen:?}");
}

/// Every piece of proof, made wrong in a way of its own.
#[test]
fn a_push_that_does_not_prove_itself_gets_the_same_answer_and_its_own_reason() {
    let (server, repo) = server();
    let commit = repo.head();
    let unknown = post(&server, "nobody", &vec![], "{}");
    assert_eq!(unknown.status, 401);
    let same = |app: &str, headers: &Headers, body: &str| {
        let answer = post(&server, app, headers, body);
        assert_eq!((answer.status, answer.text()), (401, unknown.text()), "{headers:?}");
        let reason = server.json(&["deliveries", "-n", "1"])[0]["reason"].as_str().unwrap().to_owned();
        assert!(!reason.contains(SECRET) && !reason.contains(SIGNING), "{reason}");
        reason
    };
    const PROOFS: [&str; 9] = [
        "x-hub-signature-256",
        "x-gitea-signature",
        "x-forgejo-signature",
        "x-gogs-signature",
        "x-gitlab-token",
        "x-gitee-token",
        "x-hub-signature",
        "authorization",
        "x-sig",
    ];
    let mut all: Vec<Push> = of_github(&commit);
    all.extend(of_gitlab(&commit).into_iter().chain(of_gitee(&commit)).chain(of_others(&commit)));
    for Push { dialect, app, headers, body } in all {
        let proof =
            |(name, _): &&(&str, String)| PROOFS.contains(name) && app != "signed" || *name == "webhook-signature";
        let shown = headers.iter().find(proof).unwrap_or_else(|| panic!("{dialect}: no proof")).clone();
        let with = |value: Option<String>| {
            let mut headers = headers.clone();
            headers.retain(|(name, _)| *name != shown.0);
            headers.extend(value.map(|value| (shown.0, value)));
            headers
        };
        assert_ne!(same(app, &with(None), &body), "", "{dialect}");
        assert!(same(app, &with(Some(String::new())), &body).contains("its"), "{dialect}");
        let other = if shown.1.starts_with("Basic ") {
            basic("another")
        } else {
            // Hexadecimal digits are good in either case.
            let end = if shown.1.ends_with(['a', 'A']) { '0' } else { 'A' };
            format!("{}{end}", &shown.1[..shown.1.len() - 1])
        };
        same(app, &with(Some(other)), &body);
        if !["gitee", "azure_devops"].contains(&dialect) && !["x-gitlab-token", "authorization"].contains(&shown.0) {
            same(app, &headers, &format!("{body} "));
        }
    }
    let weak = vec![("x-github-event", "push".to_owned()), ("x-hub-signature", "sha1=00".to_owned())];
    assert!(same("site", &weak, "{}").contains("SHA-1 alone"));
    let token = vec![("x-gitlab-event", "Push Hook".to_owned()), ("x-gitlab-token", SIGNING.to_owned())];
    assert_eq!(same("signed", &token, &like_gitlab(&commit)), "no secret fits");
    let mut old = standard("msg_1", "{}");
    old[1].1 = (now_ms() / 1000 - 301).to_string();
    assert!(same("signed", &old, "{}").contains("at most 5m"));
    let stamp = (now_ms() - 3_700_000).to_string();
    let signed = BASE64.encode(&sha256(SECRET.as_bytes(), &format!("{stamp}\n{SECRET}")));
    let old = vec![("x-gitee-event", "Push Hook".to_owned()), ("x-gitee-timestamp", stamp), ("x-gitee-token", signed)];
    assert!(same("site", &old, "{}").contains("at most 1h"));
    let ping = vec![("x-event-key", "diagnostics:ping".to_owned()), ("x-request-id", unique())];
    assert!(same("site", &ping, "{\"test\": true}").contains("do not sign the test"));
    // A dialect that the config fixes is the only one.
    assert!(same("told", &of_github(&commit)[0].headers, &of_github(&commit)[0].body).contains("no X-Sig"));
}

#[test]
fn every_ref_of_a_push_is_judged() {
    let (server, repo) = server();
    repo.git(&["branch", "next"]);
    repo.git(&["tag", "v1"]);
    let head = repo.commit(&[], "on main");
    let first = repo.git(&["rev-parse", "next"]);
    let mut tag = bitbucket_change("v1", &first);
    tag["new"]["type"] = "tag".into();
    let mut deleted = bitbucket_change("old", &first);
    (deleted["old"], deleted["new"]) = (deleted["new"].clone(), Value::Null);
    let changes = [
        bitbucket_change("dev", &head),
        bitbucket_change("main", &head),
        bitbucket_change("next", &first),
        tag,
        deleted,
    ];
    let (headers, body) = bitbucket_cloud(&changes);
    let answer = post(&server, "many", &headers, &body);
    assert_eq!(answer.status, 202, "{}", answer.text());
    let deploys = answer.json()["deploys"].as_array().unwrap().clone();
    assert_eq!(deploys.len(), 3, "{deploys:?}");
    let refs: Vec<String> = deploys
        .iter()
        .map(|deploy| server.deploy_end(deploy["id"].as_i64().unwrap())["ref"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(refs, ["refs/heads/main", "refs/heads/next", "refs/tags/v1"]);

    let (headers, body) = bitbucket_cloud(&[changes[0].clone(), changes[4].clone()]);
    let answer = post(&server, "many", &headers, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["skipped"], "branch \"dev\" is not deployed; branch \"old\" was deleted");
}

#[test]
fn what_is_kept_of_a_delivery_holds_no_secret() {
    let (server, repo) = server();
    server.until("the first deploy", |s| Some(()).filter(|()| s.app("site")["release"].is_string()));
    let commit = repo.commit(&[], "next");
    // Gitee puts the password into the body too.
    let Push { headers, body, .. } = of_gitee(&commit).remove(0);
    assert!(body.contains(SECRET));
    let answer = post(&server, "site", &headers, &body);
    assert_eq!(answer.status, 202, "{}", answer.text());
    server.deploy_end(answer.json()["deploys"][0]["id"].as_i64().unwrap());
    let state = server.path().join("state");
    let files: Vec<_> =
        fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path()).filter(|p| p.is_file()).collect();
    assert!(files.iter().any(|path| path.ends_with("everhook.db")));
    for path in files {
        // What is written under another name first may have its own by now.
        let bytes = fs::read(&path).unwrap_or_default();
        assert!(!bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "{}", path.display());
    }
    // It can be judged anew all the same.
    let again = server.json(&["deliveries", "redeliver", &answer.json()["delivery"].to_string()]);
    assert!(again["duplicate_of"].is_i64(), "{again}");
}
