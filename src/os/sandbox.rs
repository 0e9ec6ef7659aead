//! What an internal process gives up by itself after exec, for good. The rest is taken from it
//! before: own user, no capabilities, no_new_privs (see [`super::spawn`]).

use std::io;

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

use super::spawn::raw;

/// Makes our memory nobody's to trace and no core dump's; exec had made it traceable again.
///
/// # Errors
/// Never on Linux.
pub fn undumpable() -> io::Result<()> {
    Ok(prctl::set_dumpable(false)?)
}

/// Nothing that we execute gains a privilege.
///
/// # Errors
/// Never on Linux.
pub fn no_new_privs() -> io::Result<()> {
    Ok(prctl::set_no_new_privs()?)
}

/// Drops every capability of this thread, and of threads that it starts later: so before any.
///
/// # Errors
/// Never on Linux.
pub fn drop_capabilities() -> io::Result<()> {
    let dropped = raw::bound_capabilities(0).and_then(|()| raw::set_capabilities(0));
    dropped.map_err(|raw::Errno(errno)| io::Error::from_raw_os_error(errno))
}

/// Sets a limit, soft and hard.
///
/// # Errors
/// `EPERM` above the hard one without privilege.
pub fn limit(resource: Resource, most: u64) -> io::Result<()> {
    Ok(setrlimit(resource, most, most)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::alone::alone;

    #[test]
    fn what_is_given_up_is_gone() {
        alone("os::sandbox::tests::what_is_given_up_is_gone", || {
            limit(Resource::RLIMIT_CORE, 0).unwrap();
            drop_capabilities().unwrap();
            no_new_privs().unwrap();
            undumpable().unwrap();
            assert!(!prctl::get_dumpable().unwrap());
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"] {
                assert!(status.contains(line), "{line} in {status}");
            }
            assert!(limit(Resource::RLIMIT_CORE, 1).is_err());
        });
    }
}
