//! The main job, from outside: a push goes live, a bad one changes nothing, one that never becomes
//! ready is taken back.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::net::SocketAddr;

use server::{Repo, Server, free_address};

/// A server in Python that answers with the file VERSION.
const APP: &str = r#"
import http.server, os, sys, time
v = open(os.path.join(os.path.dirname(os.path.realpath(__file__)), "VERSION")).read().strip()
if v == "never-ready": time.sleep(3600)
if v == "crash": sys.exit(7)
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        b = v.encode(); self.send_response(200); self.send_header("content-length", str(len(b))); self.end_headers(); self.wfile.write(b)
    def log_message(self, *a): print("served", self.path, flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()
"#;

fn site(port: u16) -> String {
    format!(
        r#""site": (command: ["python3", "app.py"], port: {port},
          ready: Http(url: "http://127.0.0.1:{port}/", within: "15s"),
          deploy: (repo: "@DIR@/repo", on: [Push(branch: "main")], secret: File("@DIR@/secret"),
            check: ["! grep -q broken VERSION"], build: ["echo built by $EVERHOOK_APP > BUILT"], settle: "200ms"))"#
    )
}

fn served(port: u16) -> String {
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    http::request(address, "GET", "/", &[("connection", "close")], &[]).text().to_owned()
}

#[test]
fn a_push_goes_live_and_a_bad_one_is_taken_back() {
    let port = free_address().port();
    let mut server = Server::with_apps(&site(port));
    let repo = Repo::new(server.path().join("repo"), &[("app.py", APP), ("VERSION", "v1")]);
    server.start();
    server.wait_state("site", "ready");
    assert_eq!(served(port), "v1", "the first deploy takes the branch's tip");

    let second = repo.commit(&[("VERSION", "v2")], "second");
    let deploy = server.deliver("site", &repo);
    assert_eq!((&deploy["state"], &deploy["commit"]), (&"live".into(), &second.into()), "{deploy}");
    assert_eq!(served(port), "v2");
    let steps: Vec<_> = deploy["steps"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(steps, ["fetch", "check", "build", "switch", "verify"]);

    let pid = server.main_pid("site");
    repo.commit(&[("VERSION", "broken")], "fails its check");
    let deploy = server.deliver("site", &repo);
    assert_eq!((&deploy["state"], &deploy["step"]), (&"failed".into(), &"check".into()), "{deploy}");
    assert_eq!((served(port).as_str(), server.main_pid("site")), ("v2", pid), "the running app is untouched");

    for bad in ["never-ready", "crash"] {
        repo.commit(&[("VERSION", bad)], bad);
        let deploy = server.deliver("site", &repo);
        assert_eq!(deploy["state"], "rolled_back", "{deploy}");
        server.wait_state("site", "ready");
        assert_eq!(served(port), "v2", "after {bad}");
    }

    repo.commit(&[("VERSION", "v3")], "third");
    assert_eq!(server.deliver("site", &repo)["state"], "live");
    server.ok(&["rollback", "site"]);
    assert_eq!(served(port), "v2", "rollback goes to the release before");
    assert!(server.stop().success());
}
