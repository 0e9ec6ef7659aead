//! The README's table of peers is that of the run that is kept, number for number.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn check(root: &Path) -> Output {
    Command::new("python3").arg(root.join("benches/peers/table.py")).arg("check").output().unwrap()
}

#[test]
fn the_table_of_peers_is_made_and_not_typed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = check(root);
    assert!(output.status.success(), "{output:?}");

    // And a number that somebody typed is found.
    let other = tempfile::tempdir().unwrap();
    fs::create_dir_all(other.path().join("benches/peers")).unwrap();
    for name in ["benches/peers/table.py", "benches/peers/run.json", "README.md"] {
        fs::copy(root.join(name), other.path().join(name)).unwrap();
    }
    assert!(check(other.path()).status.success());
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let typed = readme.replacen(" app (s) | ", " app (s) | 9", 1);
    assert_ne!(typed, readme);
    fs::write(other.path().join("README.md"), typed).unwrap();
    let output = check(other.path());
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stdout).contains("| start until all run"));
}
