//! Users, groups and programs of the machine, and who is at the other end of a socket.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::{self, Gid, Uid, getgrouplist},
};

use crate::domain::model::{Account, Facts, Group};

/// Where programs are looked for, and `PATH` of every child. SURFACE.md section 6.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// True answers to the questions of the core.
#[must_use]
pub fn facts() -> Facts {
    Facts {
        uid: unistd::geteuid().as_raw(),
        user: account,
        group,
        is_directory: |path| fs::metadata(path).map(|facts| facts.is_dir()).ok(),
        closed: |path, uid, gid, groups| super::access::denied(path, super::access::Who { uid, gid, groups }),
        is_program: |name| find_program(name).is_some(),
        can_limit: super::cgroup::can_limit,
        matching: super::files::matching,
        zone: super::clock::zone,
    }
}

/// The program's file: a name without a slash is looked for in [`PATH`].
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let executable =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(executable);
    }
    let candidates = PATH.split(':').map(|folder| Path::new(folder).join(name));
    candidates.filter(|_| !name.is_empty()).find(executable)
}

/// Looks up a user by name or number, with all its groups. A number that no row has is a user
/// with the group of the same number and no home.
#[must_use]
pub fn account(name_or_uid: &str) -> Option<Account> {
    let Some(uid) = number(name_or_uid) else {
        return match unistd::User::from_name(name_or_uid) {
            Ok(row) => row.map(of_row),
            Err(_) => of_file(|row| row.name == name_or_uid),
        };
    };
    let row = match unistd::User::from_uid(Uid::from_raw(uid)) {
        Ok(row) => row.map(of_row),
        Err(_) => of_file(|row| row.uid == uid),
    };
    let nameless = Account { name: None, uid, gid: uid, home: "/".into(), shell: "/bin/sh".into(), groups: vec![uid] };
    Some(row.unwrap_or(nameless))
}

/// Looks up a group by name or number; a number that no row has is a nameless group.
#[must_use]
pub fn group(name_or_gid: &str) -> Option<Group> {
    let Some(gid) = number(name_or_gid) else {
        let gid = match unistd::Group::from_name(name_or_gid) {
            Ok(row) => row.map(|row| row.gid.as_raw()),
            Err(_) => group_rows().into_iter().find(|row| row.name == name_or_gid).map(|row| row.gid),
        };
        return gid.map(|gid| Group { name: Some(name_or_gid.to_owned()), gid });
    };
    Some(Group { name: group_name(gid), gid })
}

/// The name of a group, if it has one.
#[must_use]
pub fn group_name(gid: u32) -> Option<String> {
    match unistd::Group::from_gid(Gid::from_raw(gid)) {
        Ok(row) => row.map(|row| row.name),
        Err(_) => group_rows().into_iter().find(|row| row.gid == gid).map(|row| row.name),
    }
}

/// The name of a user, if it has one.
#[must_use]
pub fn user_name(uid: u32) -> Option<String> {
    account(&uid.to_string()).and_then(|account| account.name)
}

/// An id: digits alone, and not the -1 that means "unchanged" to the kernel.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| digits && *n != u32::MAX)
}

fn of_row(row: unistd::User) -> Account {
    let gid = row.gid.as_raw();
    let groups = CString::new(row.name.as_str()).map(|name| getgrouplist(&name, row.gid));
    let groups = match groups {
        Ok(Ok(groups)) => groups.into_iter().map(Gid::as_raw).collect(),
        _ => groups_in_file(&row.name, gid),
    };
    Account { groups, name: Some(row.name), uid: row.uid.as_raw(), gid, home: row.dir, shell: row.shell }
}

/// Looks into `/etc/passwd` itself, where the C library's ways fail (a directory server that is
/// down, a container without its modules).
fn of_file(wanted: impl Fn(&PasswdRow) -> bool) -> Option<Account> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    let row = text.lines().filter_map(passwd_row).find(wanted)?;
    Some(Account {
        groups: groups_in_file(row.name, row.gid),
        name: Some(row.name.to_owned()),
        uid: row.uid,
        gid: row.gid,
        home: row.home.into(),
        shell: if row.shell.is_empty() { "/bin/sh".into() } else { row.shell.into() },
    })
}

struct PasswdRow<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

/// `name:password:uid:gid:comment:home:shell`.
fn passwd_row(line: &str) -> Option<PasswdRow<'_>> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
    Some(PasswdRow { name, uid: number(uid)?, gid: number(gid)?, home, shell })
}

struct GroupRow {
    name: String,
    gid: u32,
    members: Vec<String>,
}

fn group_rows() -> Vec<GroupRow> {
    fs::read_to_string("/etc/group").unwrap_or_default().lines().filter_map(group_row).collect()
}

/// `name:password:gid:member,member`.
fn group_row(line: &str) -> Option<GroupRow> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, gid, members] = fields[..] else { return None };
    let members = members.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect();
    Some(GroupRow { name: name.to_owned(), gid: number(gid)?, members })
}

fn groups_in_file(user: &str, gid: u32) -> Vec<u32> {
    let others = group_rows().into_iter().filter(|row| row.gid != gid && row.members.iter().any(|m| m == user));
    std::iter::once(gid).chain(others.map(|row| row.gid)).collect()
}

/// Who connected (or, on the connecting side, who listens).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// `None` when it lives outside our pid namespace.
    pub pid: Option<u32>,
    pub uid: u32,
    pub gid: u32,
}

/// Credentials of the peer of a unix socket, as they were when it connected. Those of a socketpair
/// say who made the pair, not who holds the other end.
///
/// # Errors
/// When it is no unix socket.
pub fn peer(socket: &impl AsFd) -> io::Result<Peer> {
    let credentials = getsockopt(socket, PeerCredentials)?;
    let pid = u32::try_from(credentials.pid()).ok().filter(|pid| *pid > 0);
    Ok(Peer { pid, uid: credentials.uid(), gid: credentials.gid() })
}

/// All groups of the peer but its first ([`Peer::gid`]), as they were when it connected.
///
/// # Errors
/// When it is no unix socket.
pub fn peer_groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let mut length = libc::socklen_t::try_from(groups.len() * size_of::<u32>()).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: the list is valid for the length given, and the length for writing.
        let result = unsafe {
            let socket = socket.as_fd().as_raw_fd();
            libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERGROUPS, groups.as_mut_ptr().cast(), &raw mut length)
        };
        let error = io::Error::last_os_error();
        groups.resize(length as usize / size_of::<u32>(), 0);
        if result == 0 {
            return Ok(groups);
        }
        if error.raw_os_error() != Some(libc::ERANGE) {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let root = account("root").unwrap();
        assert_eq!((root.uid, root.gid, root.home.to_str()), (0, 0, Some("/root")));
        assert!(root.groups.contains(&0));
        assert_eq!(account("0"), Some(root.clone()));
        assert_eq!(of_file(|row| row.name == "root").unwrap().home, root.home);
        assert_eq!(account("no-such-user"), None);
        assert_eq!(account(""), None);
        assert_eq!(account("4294967295"), None);
    }

    #[test]
    fn a_number_without_a_row_is_a_user() {
        let account = account("4123456789").unwrap();
        assert_eq!((account.name, account.uid, account.gid), (None, 4_123_456_789, 4_123_456_789));
        assert_eq!(account.groups, [4_123_456_789]);
    }

    #[test]
    fn groups_are_found_by_name_and_number() {
        assert_eq!(group("root"), Some(Group { name: Some("root".into()), gid: 0 }));
        assert_eq!(group("0"), group("root"));
        assert_eq!(group("4123456789"), Some(Group { name: None, gid: 4_123_456_789 }));
        assert_eq!(group("no-such-group"), None);
        assert_eq!(group_name(0).as_deref(), Some("root"));
    }

    #[test]
    fn rows_of_the_files_are_read() {
        let row = passwd_row("blog:x:1001:1002:A, B:/home/blog:/bin/bash").unwrap();
        assert_eq!((row.name, row.uid, row.gid, row.home, row.shell), ("blog", 1001, 1002, "/home/blog", "/bin/bash"));
        let row = group_row("media:x:44:blog,api").unwrap();
        assert_eq!((row.name.as_str(), row.gid, row.members.len()), ("media", 44, 2));
        assert!(group_row("empty:x:45:").unwrap().members.is_empty());
        for broken in ["", "blog", "blog:x:a:1:::", "+::::::", "#blog:x:1:1::/"] {
            assert!(passwd_row(broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn programs_are_found_in_the_fixed_path() {
        assert!(find_program("sh").unwrap().is_absolute());
        assert_eq!(find_program("/bin/sh"), Some("/bin/sh".into()));
        for none in ["", "no-such-program", "/etc/passwd", "/bin", "/no/such"] {
            assert_eq!(find_program(none), None, "{none}");
        }
    }

    #[test]
    fn the_peer_of_a_socket_is_known() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let me = peer(&ours).unwrap();
        assert_eq!(me.pid, Some(std::process::id()));
        assert_eq!((me.uid, me.gid), (unistd::geteuid().as_raw(), unistd::getegid().as_raw()));
        let groups = peer_groups(&ours).unwrap();
        assert_eq!(groups.len(), unistd::getgroups().unwrap().len());
        assert!(peer(&fs::File::open("/dev/null").unwrap()).is_err());
    }
}
