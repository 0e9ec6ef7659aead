//! Files that are read for an app, perhaps as root, while its user may have put anything in their place: another kind
//! of file, of which somebody would wait for ever, or a link to what that user may not read itself.

use std::{
    ffi::OsString,
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
const MOST_LINKS: usize = 40;

/// Its text. A link is followed where it is root's or ours, or of whoever owns the file that it leads to, or where
/// that file belongs to one of `owners`, who are the app's own.
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
    let (found, makers) = without_links(path)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // What was none a moment ago may be a link now.
    let file = openat2(CWD, &found, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let file = files::regular(file.into(), path)?;
    let owner = file.metadata()?.uid();
    let vouches = |maker: &u32| *maker == 0 || *maker == owner || *maker == nix::unistd::geteuid().as_raw();
    if owners.contains(&owner) || makers.iter().all(vouches) {
        return Ok(file);
    }
    let why = format!("a link of another user leads to it, which is uid {owner}'s: name the file itself");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

/// The path with its links followed, and whose these are: a link is of whoever made it.
fn without_links(path: &Path) -> io::Result<(PathBuf, Vec<u32>)> {
    let path = std::path::absolute(path)?;
    let mut todo = parts_last_first(&path);
    let (mut found, mut makers) = (PathBuf::from("/"), Vec::new());
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
        if facts.is_symlink() {
            if makers.len() == MOST_LINKS {
                return Err(Errno::LOOP.into());
            }
            makers.push(facts.uid());
            let target = fs::read_link(&found)?;
            found.pop();
            todo.extend(parts_last_first(&target));
        }
    }
    Ok((found, makers))
}

fn parts_last_first(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{lchown, symlink},
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
        let (link, own, by_folder, ours) =
            (home.join("link"), home.join("own"), home.join("folder"), folder.path().join("ours"));
        fs::write(&own, "A=own\n").unwrap();
        symlink(&secret, &link).unwrap();
        symlink(folder.path(), &by_folder).unwrap();
        symlink("home/link", &ours).unwrap();
        let all = [&link, &by_folder.join("secret"), &ours];
        for path in all {
            assert_eq!(read(path, &[APP]).unwrap(), "A=secret\n", "root has made it");
        }
        for path in [&home, &own, &link, &by_folder] {
            lchown(path, Some(APP), None).unwrap();
        }
        for path in all {
            assert_eq!(read(path, &[APP]).unwrap_err().kind(), io::ErrorKind::PermissionDenied, "{}", path.display());
        }
        lchown(&secret, Some(APP + 1), None).unwrap();
        lchown(&link, Some(APP + 1), None).unwrap();
        assert_eq!(read(&link, &[APP]).unwrap(), "A=secret\n", "of whoever has the file");
        fs::remove_file(&link).unwrap();
        symlink("own", &link).unwrap();
        lchown(&link, Some(APP), None).unwrap();
        for path in [&link, &ours, &own] {
            assert_eq!(read(path, &[APP]).unwrap(), "A=own\n");
        }
    }

    #[test]
    fn links_are_followed_as_the_kernel_does() {
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
