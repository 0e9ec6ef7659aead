//! A remote over git's own protocol that keeps its visitors waiting.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        mpsc::{Receiver, channel},
    },
    thread,
};

use super::server::LIMIT;

pub struct Forge {
    pub port: u16,
    open: Arc<(Mutex<bool>, Condvar)>,
    visitors: Receiver<()>,
}

impl Forge {
    /// Serves the repositories in this folder; as `git://127.0.0.1:<port>/<name>`.
    pub fn new(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = Arc::new((Mutex::new(true), Condvar::new()));
        let (came, visitors) = channel();
        let (gate, folder) = (Arc::clone(&open), folder.to_owned());
        thread::spawn(move || {
            for visitor in listener.incoming() {
                let (gate, folder) = (Arc::clone(&gate), folder.clone());
                if came.send(()).is_err() {
                    return;
                }
                thread::spawn(move || {
                    let (open, changed) = &*gate;
                    drop(changed.wait_while(open.lock().unwrap(), |open| !*open).unwrap());
                    serve(&folder, visitor.unwrap());
                });
            }
        });
        Self { port, open, visitors }
    }

    pub fn url(&self, name: &str) -> String {
        format!("git://127.0.0.1:{}/{name}", self.port)
    }

    /// From here on visitors wait.
    pub fn close(&self) {
        while self.visitors.try_recv().is_ok() {}
        *self.open.0.lock().unwrap() = false;
    }

    /// Waits for one that came since it was closed.
    pub fn visited(&self) {
        self.visitors.recv_timeout(LIMIT).expect("nobody comes");
    }

    pub fn open(&self) {
        *self.open.0.lock().unwrap() = true;
        self.open.1.notify_all();
    }
}

fn serve(folder: &PathBuf, visitor: TcpStream) {
    let mut base = std::ffi::OsString::from("--base-path=");
    base.push(folder);
    let answers = OwnedFd::from(visitor.try_clone().unwrap());
    let mut daemon = Command::new("git");
    daemon.args(["daemon", "--inetd", "--export-all"]).arg(base);
    daemon.stdin(Stdio::from(OwnedFd::from(visitor))).stdout(answers).stderr(Stdio::null());
    let _ = daemon.status();
}
