//! A certificate and its key, out of their files: DESIGN.md section 9.

use std::{io::Read, path::Path};

use super::{files, secret_file};
use crate::domain::model::{At, BadPair, Pair, Secret};

/// No chain is longer, in bytes.
const LONGEST: u64 = 256 * 1024;

/// Reads and judges both. The key must be root's or ours, and nobody else's to read.
///
/// # Errors
/// A sentence with the path and what to do.
pub fn read(cert: &Path, key: &Path, now: At) -> Result<Pair, BadPair> {
    let named = |bad: BadPair| match bad {
        BadPair::Chain(what) => BadPair::Chain(format!("the certificate {} {what}", cert.display())),
        BadPair::Key(what) => BadPair::Key(format!("the key {} {what}", key.display())),
    };
    let mut chain = Vec::new();
    let opened = files::open_regular(cert).and_then(|file| file.take(LONGEST).read_to_end(&mut chain));
    opened.map_err(|error| named(BadPair::Chain(format!("cannot be read: {error}"))))?;
    let secret = Secret::new(secret_file::read_linked(key, &[]).map_err(BadPair::Key)?);
    let pair = Pair::read(&chain, secret.expose()).map_err(named)?;
    pair.judge(now).map_err(named)?;
    Ok(pair)
}
