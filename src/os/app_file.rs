//! Files that are read for an app, perhaps as root, while its user may have put anything in their place: another kind
//! of file, of which somebody would wait for ever, or a link to what that user may not read itself.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};

use super::files;

/// No such file is longer, in bytes.
const LONGEST: u64 = 1024 * 1024;
/// Links on the way, as the kernel counts them.
const MOST_LINKS: u32 = 40;

/// Its text. A link is followed where nobody but root and we could have put it, or where it leads to a file of one of
/// `owners`, who are the app's own.
///
/// # Errors
/// As the file system says; `InvalidInput` for what is no file or too long, `PermissionDenied` for a link of others.
pub fn read(path: &Path, owners: &[u32]) -> io::Result<String> {
    let file = if nix::unistd::geteuid().is_root() { open(path, owners)? } else { files::open_regular(path)? };
    if file.metadata()?.len() > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is longer than 1 MiB"));
    }
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

fn open(path: &Path, owners: &[u32]) -> io::Result<File> {
    match vouched(path) {
        Err(e) if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            let file = files::open_regular(path)?;
            if owners.contains(&file.metadata()?.uid()) {
                return Ok(file);
            }
            let why = "a link that others than root could have made leads there, to what is not the app's own: name \
                       the file itself";
            Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
        }
        other => other,
    }
}

/// `ELOOP`: there is a link that nobody vouches for.
fn vouched(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // What was a folder a moment ago may be a link now.
    let resolve = ResolveFlags::NO_SYMLINKS;
    files::regular(openat2(CWD, &without_links(path)?, flags, Mode::empty(), resolve)?.into(), path)
}

/// The path with its links followed, all of which root or we have made.
fn without_links(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let mut todo: Vec<_> = path.components().rev().map(|part| part.as_os_str().to_owned()).collect();
    let (mut found, mut links) = (PathBuf::from("/"), 0);
    while let Some(part) = todo.pop() {
        match Path::new(&part).components().next() {
            Some(Component::Normal(name)) => found.push(name),
            Some(Component::ParentDir) => {
                found.pop();
                continue;
            }
            Some(Component::RootDir) => {
                found = PathBuf::from("/");
                continue;
            }
            _ => continue,
        }
        let facts = fs::symlink_metadata(&found)?;
        if !facts.is_symlink() {
            continue;
        }
        let folder = found.parent().unwrap_or(Path::new("/"));
        links += 1;
        if links > MOST_LINKS || !is_ours(facts.uid()) || !is_closed(folder)? {
            return Err(Errno::LOOP.into());
        }
        let target = fs::read_link(&found)?;
        found.pop();
        todo.extend(target.components().rev().map(|part| part.as_os_str().to_owned()));
    }
    Ok(found)
}

fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

/// Does nobody but root and us rename what is in this folder?
fn is_closed(folder: &Path) -> io::Result<bool> {
    let facts = fs::metadata(folder)?;
    Ok(is_ours(facts.uid()) && (facts.mode() & 0o022 == 0 || facts.mode() & 0o1000 != 0))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{chown, symlink},
        time::Duration,
    };

    use super::*;

    const APP: u32 = 60_999;

    /// A folder of the app's in one of ours, and a file of ours that is not the app's to read.
    fn world() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (home, secret) = (folder.path().join("home"), folder.path().join("secret"));
        fs::create_dir(&home).unwrap();
        fs::write(&secret, "A=secret\n").unwrap();
        (folder, home, secret)
    }

    #[test]
    fn what_is_no_file_is_told_and_not_waited_for() {
        let (_folder, home, secret) = world();
        let fifo = home.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let (told, heard) = std::sync::mpsc::channel();
        let asked = fifo.clone();
        std::thread::spawn(move || told.send(read(&asked, &[APP]).map_err(|e| e.kind())));
        assert_eq!(heard.recv_timeout(Duration::from_secs(60)).unwrap(), Err(io::ErrorKind::InvalidInput));
        assert!(read(&home, &[APP]).is_err() && read(Path::new("/dev/zero"), &[APP]).is_err());
        assert_eq!(read(&home.join("none"), &[APP]).unwrap_err().kind(), io::ErrorKind::NotFound);
        File::create(&secret).unwrap().set_len(LONGEST + 1).unwrap();
        assert!(read(&secret, &[APP]).unwrap_err().to_string().contains("longer"));
    }

    #[test]
    fn a_link_of_the_app_leads_to_what_is_its_own_and_to_nothing_else() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("left out: another user needs root");
        }
        let (folder, home, secret) = world();
        let (link, own) = (home.join("link"), home.join("own"));
        fs::write(&own, "A=own\n").unwrap();
        chown(&own, Some(APP), None).unwrap();
        let by_folder = home.join("folder");
        symlink(folder.path(), &by_folder).unwrap();
        for path in [&home, &own] {
            chown(path, Some(APP), None).unwrap();
        }
        let denied = |path: &Path| {
            assert_eq!(read(path, &[APP]).unwrap_err().kind(), io::ErrorKind::PermissionDenied, "{}", path.display());
        };
        symlink(&secret, &link).unwrap();
        denied(&link);
        std::os::unix::fs::lchown(&link, Some(APP), None).unwrap();
        denied(&link);
        denied(&by_folder.join("secret"));
        // Also behind one of ours.
        let ours = folder.path().join("ours");
        symlink("home/link", &ours).unwrap();
        denied(&ours);
        fs::remove_file(&link).unwrap();
        symlink("own", &link).unwrap();
        for path in [&link, &ours, &own] {
            assert_eq!(read(path, &[APP]).unwrap(), "A=own\n");
        }
    }

    #[test]
    fn links_that_only_we_could_make_are_followed() {
        let (folder, home, secret) = world();
        symlink("../secret", home.join("link")).unwrap();
        symlink("home", folder.path().join("folder")).unwrap();
        for path in [secret, home.join("link"), home.join("../folder/./link")] {
            assert_eq!(read(&path, &[APP]).unwrap(), "A=secret\n", "{}", path.display());
        }
        symlink("round", home.join("round")).unwrap();
        assert!(read(&home.join("round"), &[APP]).is_err());
    }
}
