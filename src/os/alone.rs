//! For tests only: a test that changes or needs something of the whole process runs in one of its own.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

/// Names the test that the process was made for.
const ALONE: &str = "EVERHOOK_TEST_ALONE";
/// An unprivileged user that every machine has.
pub(super) const NOBODY: u32 = 65534;

/// Runs `body` in a process of its own, as whoever we are. `name` is the whole path of the calling test.
pub(super) fn alone(name: &str, body: impl FnOnce()) {
    run(name, None, body);
}

/// The same as nobody; not under root, as whoever we are.
pub(super) fn alone_as_nobody(name: &str, body: impl FnOnce()) {
    run(name, nix::unistd::geteuid().is_root().then_some(NOBODY), body);
}

fn run(name: &str, uid: Option<u32>, body: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some_and(|alone| alone == name) {
        return body();
    }
    // The file itself may lie where nobody can go.
    let mut command = Command::new("/proc/self/exe");
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(ALONE, name).stdin(Stdio::null());
    if let Some(uid) = uid {
        command.uid(uid).gid(uid).current_dir("/").env("TMPDIR", "/tmp");
    }
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("1 passed"), "no test is called {name}");
}
