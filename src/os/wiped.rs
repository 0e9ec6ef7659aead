//! Bytes that may hold a secret, overwritten before their memory is let go.

use std::{
    fmt, hint, io, mem,
    ops::{Deref, DerefMut},
};

/// As a `Vec`, but nothing that was in it stays behind in freed memory, also where it grows. Overwriting is a
/// memset: the byte-wise volatile writes of `zeroize` take microseconds for each delivery.
#[derive(Default)]
pub struct Wiped(Vec<u8>);

impl Wiped {
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        Self(vec![0; length])
    }

    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    pub fn clear(&mut self) {
        wipe(&mut self.0);
        self.0.clear();
    }

    pub fn extend(&mut self, more: &[u8]) {
        let needed = self.0.len() + more.len();
        if needed > self.0.capacity() {
            let mut larger = Vec::with_capacity(needed.max(self.0.capacity() * 2));
            larger.extend_from_slice(&self.0);
            drop(mem::replace(self, Self(larger)));
        }
        self.0.extend_from_slice(more);
    }
}

fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // So that the compiler does not see that nobody reads it.
    hint::black_box(bytes);
}

impl Drop for Wiped {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl From<Vec<u8>> for Wiped {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Deref for Wiped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Wiped {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl io::Write for Wiped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend(bytes);
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.extend(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Wiped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wiped({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_as_a_vec_does_and_is_empty_when_it_is_cleared() {
        let mut bytes = Wiped::default();
        let all: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        for piece in all.chunks(7) {
            bytes.extend(piece);
        }
        assert_eq!(&bytes[..], &all[..]);
        let capacity = bytes.capacity();
        bytes.clear();
        assert!(bytes.is_empty());
        assert_eq!(bytes.capacity(), capacity);
        assert_eq!(format!("{bytes:?}"), "Wiped(0 bytes)");
    }
}
