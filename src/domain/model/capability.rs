//! Capabilities of processes, by the names of capabilities(7).

use std::{fmt, str::FromStr};

use super::nearest;

/// By number. The kernel only ever adds to them.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A set of capabilities, a bit for each number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(pub u64);

/// A text names no capability.
#[derive(Debug, thiserror::Error)]
#[error("{name:?} is no capability{}", near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default())]
pub struct BadCapability {
    name: String,
    near: Option<&'static str>,
}

impl Capabilities {
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The set of one. Upper or lower case, with or without `CAP_`.
impl FromStr for Capabilities {
    type Err = BadCapability;

    fn from_str(text: &str) -> Result<Self, BadCapability> {
        let upper = text.to_ascii_uppercase();
        let whole = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        match NAMES.iter().position(|name| *name == whole) {
            Some(number) => Ok(Self(1 << number)),
            None => Err(BadCapability { name: text.to_owned(), near: nearest(&whole, NAMES) }),
        }
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = NAMES.iter().enumerate().filter(|(number, _)| self.0 & 1 << number != 0).map(|(_, name)| *name);
        f.write_str(&set.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_reads_as_it_is_written() {
        let one = |text: &str| text.parse::<Capabilities>().unwrap();
        let set = one("cap_net_bind_service").with(one("CHOWN")).with(one("CAP_CHECKPOINT_RESTORE"));
        assert_eq!(set.0, 1 << 10 | 1 | 1 << 40);
        assert_eq!(set.to_string(), "CAP_CHOWN, CAP_NET_BIND_SERVICE, CAP_CHECKPOINT_RESTORE");
        let wrong = "NET_BIND".parse::<Capabilities>().unwrap_err().to_string();
        assert!(wrong.starts_with("\"NET_BIND\" is no capability"), "{wrong}");
        let near = "CAP_NET_RAV".parse::<Capabilities>().unwrap_err().to_string();
        assert_eq!(near, "\"CAP_NET_RAV\" is no capability; did you mean \"CAP_NET_RAW\"?");
    }
}
