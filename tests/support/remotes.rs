//! Remotes as they are out there: a real sshd, and git's own http backend behind a login.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use super::server::text;

/// sshd of OpenSSH, one process for each connection, as `sshd -i` of inetd.
pub struct Sshd {
    pub folder: PathBuf,
    pub port: u16,
}

impl Sshd {
    /// In a folder of its own; takes the key in `client`, and whoever has it for the user of this test.
    pub fn new(folder: PathBuf) -> Self {
        fs::create_dir_all(&folder).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let sshd = Self { folder, port };
        sshd.new_key("host");
        sshd.new_key("client");
        fs::copy(sshd.path("client.pub"), sshd.path("authorized")).unwrap();
        sshd.write_config("host");
        if nix::unistd::geteuid().is_root() {
            // For sshd's separation of privileges; as its package has it.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let config = sshd.path("config");
        thread::spawn(move || {
            for visitor in listener.incoming() {
                let visitor = OwnedFd::from(visitor.unwrap());
                let answers = visitor.try_clone().unwrap();
                let mut child = Command::new("/usr/sbin/sshd");
                child.arg("-i").arg("-f").arg(&config).stdin(visitor).stdout(answers).stderr(Stdio::null());
                let mut child = child.spawn().unwrap();
                thread::spawn(move || child.wait());
            }
        });
        sshd
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// A pair of keys, `name` and `name.pub`.
    pub fn new_key(&self, name: &str) {
        self.keygen(&["-t", "ed25519", "-N", "", "-C", name], name);
    }

    pub fn keygen(&self, args: &[&str], name: &str) {
        let made = Command::new("ssh-keygen").args(args).arg("-q").arg("-f").arg(self.path(name)).output().unwrap();
        assert!(made.status.success(), "{}", text(&made));
    }

    /// From here on it shows this host key.
    pub fn write_config(&self, host: &str) {
        let config = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\nLogLevel QUIET\n",
            self.path(host).display(),
            self.path("authorized").display()
        );
        fs::write(self.path("config"), config).unwrap();
    }

    pub fn url(&self, repo: &Path) -> String {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
        format!("ssh://{user}@127.0.0.1:{}{}", self.port, repo.display())
    }

    /// As `host_key` has it.
    pub fn host_key(&self, name: &str) -> String {
        self.read(&format!("{name}.pub")).split_ascii_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    pub fn fingerprint(&self, name: &str) -> String {
        let told = Command::new("ssh-keygen").arg("-lf").arg(self.path(&format!("{name}.pub"))).output().unwrap();
        text(&told).split_ascii_whitespace().nth(1).unwrap().to_owned()
    }
}

/// `git http-backend` behind a small server, which ends with this.
pub struct Http {
    server: Child,
    pub port: u16,
}

impl Http {
    /// Serves the repositories in this folder to whoever has `login`, `user:token`; to all where it is
    /// empty. `tls`: certificate and key in one file.
    pub fn new(folder: &Path, login: &str, tls: Option<&Path>) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/apps/git_http.py");
        let mut server = Command::new("/usr/bin/python3");
        server.arg(script).arg(folder).args(tls).env("LOGIN", login);
        let mut server = server.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { server, port: line.trim().parse().unwrap() }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A certificate for 127.0.0.1 that its own key has signed, and that key, in one file.
pub fn certificate(path: &Path) {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=everhook test"]);
    openssl.args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout"]).arg(path.with_extension("key"));
    let made = openssl.arg("-out").arg(path).output().unwrap();
    assert!(made.status.success(), "{}", text(&made));
    let key = fs::read_to_string(path.with_extension("key")).unwrap();
    let certificate = fs::read_to_string(path).unwrap();
    fs::write(path.with_extension("both"), certificate + &key).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}
