//! What kind of file system something is on.

use std::path::Path;

/// Magic numbers of statfs(2) and the names people know them by: file systems that other machines, or
/// the host of this one, change without this kernel.
const FOREIGN: [(i64, &str); 9] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x517b, "SMB"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x0bd0_0bd0, "Lustre"),
];

/// The name of the file system of this path, or of the nearest folder that is there, where changes made
/// elsewhere are not told to this kernel.
#[must_use]
pub fn foreign(path: &Path) -> Option<&'static str> {
    let facts = path.ancestors().find_map(|path| rustix::fs::statfs(path).ok())?;
    // The type is of another width on other machines.
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
    let kind = facts.f_type as i64 & 0xffff_ffff;
    FOREIGN.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name)
}

#[test]
fn what_is_here_is_not_foreign() {
    assert_eq!(foreign(Path::new("/proc/self")), None);
    assert_eq!(foreign(Path::new("/proc/self/nothing/there")), None);
}
