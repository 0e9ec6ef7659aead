//! Known secrets, taken out of whatever everhook writes down or says.

use std::borrow::Cow;

use data_encoding::{BASE64_NOPAD, BASE64URL_NOPAD, Encoding};
use memchr::memmem::{self, Finder};
use zeroize::Zeroizing;

use super::Secret;

/// Shorter ones are hidden nowhere: too much that is no secret looks like them.
const SHORTEST: usize = 8;
/// Stands in a secret's place.
const MARK: &str = "***";
/// Parts of a variable's name that say that its value is a secret.
const TELLING: [&str; 6] = ["SECRET", "TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL"];

/// What is to be hidden.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Veil {
    /// Without newlines, longest first.
    words: Vec<Secret>,
}

impl Veil {
    /// Hides these. Of a private key in PEM every line is hidden, of other texts of several lines too; what is
    /// of one line also as it stands in URLs and in logins.
    #[must_use]
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        Self::default().with(secrets)
    }

    /// Hides these too.
    #[must_use]
    pub fn with<'a>(&self, secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut words = self.words.clone();
        for secret in secrets {
            let lines = lines(secret.expose());
            for line in &lines {
                words.push(Secret::exact(line.to_vec()));
                // As it stands in JSON.
                if let Ok(text) = std::str::from_utf8(line) {
                    let quoted = Zeroizing::new(serde_json::to_string(text).unwrap_or_default());
                    words.push(Secret::exact(quoted.as_bytes()[1..quoted.len() - 1].to_vec()));
                }
            }
            if let [only] = lines[..] {
                words.extend([percent(only, b"0123456789ABCDEF"), percent(only, b"0123456789abcdef")]);
                for way in [&BASE64_NOPAD, &BASE64URL_NOPAD] {
                    words.extend((0..3).map(|before| base64(only, before, way)));
                }
            }
        }
        words.sort_by(|a, b| b.expose().len().cmp(&a.expose().len()).then_with(|| a.expose().cmp(b.expose())));
        words.dedup();
        Self { words }
    }

    /// Does a variable of this name hold a secret?
    #[must_use]
    pub fn is_secret_name(name: &str) -> bool {
        let name = name.to_ascii_uppercase();
        TELLING.iter().any(|word| name.contains(word)) || name.ends_with("KEY")
    }

    /// The password in a URL such as `https://user:password@host/path`.
    #[must_use]
    pub fn password_of(url: &str) -> Option<&str> {
        let (_, rest) = url.split_once("://")?;
        let (login, _) = rest.split(['/', '?', '#']).next()?.rsplit_once('@')?;
        login.split_once(':').map(|(_, password)| password)
    }

    /// The same as lines, to be passed on.
    #[must_use]
    pub fn pack(&self) -> Secret {
        let mut text = Vec::with_capacity(self.words.iter().map(|word| word.expose().len() + 1).sum());
        for word in &self.words {
            text.extend_from_slice(word.expose());
            text.push(b'\n');
        }
        Secret::new(text)
    }

    /// What [`Veil::pack`] gave.
    #[must_use]
    pub fn unpack(packed: &Secret) -> Self {
        let words = packed.expose().split(|byte| *byte == b'\n').filter(|word| !word.is_empty());
        Self { words: words.map(|word| Secret::new(word.to_vec())).collect() }
    }

    /// Bytes of the longest.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.words.first().map_or(0, |word| word.expose().len())
    }

    /// The text without them.
    #[must_use]
    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut clean = Cow::Borrowed(text);
        for word in &self.words {
            if let Ok(word) = std::str::from_utf8(word.expose())
                && memmem::find(clean.as_bytes(), word.as_bytes()).is_some()
            {
                clean = Cow::Owned(clean.replace(word, MARK));
            }
        }
        clean
    }

    /// Does a text hold one of them?
    #[must_use]
    pub fn hides(&self, text: &[u8]) -> bool {
        self.words.iter().any(|word| memmem::find(text, word.expose()).is_some())
    }

    /// Has a text say nothing of them.
    pub fn clean(&self, text: &mut String) {
        if let Cow::Owned(clean) = self.text(text) {
            *text = clean;
        }
    }

    /// Writes `*` over each of them: nothing becomes longer or shorter. True where there was one.
    pub fn cover(&self, bytes: &mut [u8]) -> bool {
        let mut found = false;
        for word in &self.words {
            let finder = Finder::new(word.expose());
            while let Some(at) = finder.find(bytes) {
                bytes[at..at + word.expose().len()].fill(b'*');
                found = true;
            }
        }
        found
    }
}

/// The lines of a secret that are worth hiding.
fn lines(secret: &[u8]) -> Vec<&[u8]> {
    let is_key = memmem::find(secret, b"PRIVATE KEY-----").is_some();
    let mut inside = !is_key;
    let mut found = Vec::new();
    for line in secret.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
        if line.starts_with(b"-----") {
            // Certificates beside a key are known to everybody.
            inside = memmem::find(line, b"BEGIN ").is_some() && memmem::find(line, b"PRIVATE KEY-----").is_some();
        } else if inside && line.len() >= SHORTEST && !line.iter().all(|byte| *byte == b'*') {
            found.push(line);
        }
    }
    found
}

/// As it stands in a URL (RFC 3986, section 2.1).
fn percent(secret: &[u8], digits: &[u8; 16]) -> Secret {
    let mut text = Vec::with_capacity(secret.len() * 3);
    for byte in secret {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(*byte),
            _ => text.extend([b'%', digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]),
        }
    }
    Secret::exact(text)
}

/// As it stands in base64 (RFC 4648) behind so many bytes, modulo 3, as a user's name in `Authorization: Basic`:
/// the characters that nothing but the secret decides.
fn base64(secret: &[u8], before: usize, way: &Encoding) -> Secret {
    let bytes = Zeroizing::new([&[0; 2][..before], secret].concat());
    let text = Zeroizing::new(way.encode(&bytes).into_bytes());
    Secret::exact(text[(before * 8).div_ceil(6)..bytes.len() * 8 / 6].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn veil(secrets: &[&str]) -> Veil {
        Veil::new(&secrets.iter().map(|text| Secret::new(text.as_bytes().to_vec())).collect::<Vec<_>>())
    }

    #[test]
    fn a_secret_is_hidden_wherever_it_stands() {
        let veil = veil(&["hunter2hunter2", "short", "with \"quotes\" and \\", "hunter2hunter2andmore"]);
        assert_eq!(veil.text("a hunter2hunter2, a hunter2hunter2andmore, short"), "a ***, a ***, short");
        assert_eq!(veil.text(r#"{"a":"with \"quotes\" and \\"}"#), r#"{"a":"***"}"#);
        let mut bytes = b"x hunter2hunter2andmore hunter2hunter2 y".to_vec();
        assert!(veil.cover(&mut bytes));
        assert_eq!(bytes, b"x ********************* ************** y");
        assert!(!veil.cover(&mut bytes));
    }

    #[test]
    fn a_secret_is_hidden_in_urls_and_logins() {
        let veil = veil(&["pa/ss wörd+1~"]);
        assert_eq!(veil.text("https://me:pa%2Fss%20w%C3%B6rd%2B1~@h/"), "https://me:***@h/");
        assert_eq!(veil.text("https://me:pa%2fss%20w%c3%b6rd%2b1~@h/"), "https://me:***@h/");
        for user in ["", "a", "me", "git", "oauth2"] {
            for way in [BASE64_NOPAD, BASE64URL_NOPAD] {
                for tail in ["", "x", "xy"] {
                    let login = way.encode(format!("{user}:pa/ss wörd+1~{tail}").as_bytes());
                    let said = veil.text(&login);
                    // What the bytes beside it have a part in may stay.
                    let (before, after) = said.split_once(MARK).unwrap_or_else(|| panic!("{user}{tail}: {said}"));
                    assert!(before.len() <= (user.len() + 1).div_ceil(3) * 4 && after.len() <= 4, "{said}");
                }
            }
        }
    }

    #[test]
    fn what_is_hidden_too_is_hidden_as_if_from_the_start() {
        let [one, two] = ["hunter2hunter2", "a longer secret"].map(|text| Secret::new(text.as_bytes().to_vec()));
        assert_eq!(Veil::new([&one]).with([&two, &one]), Veil::new([&two, &one]));
        assert_eq!(Veil::new([&one]).with([&one]), Veil::new([&one]));
    }

    #[test]
    fn of_a_key_every_line_counts_and_of_a_certificate_none() {
        let pem = "-----BEGIN CERTIFICATE-----\nknown to everybody\n-----END CERTIFICATE-----\n\
            -----BEGIN PRIVATE KEY-----\nfirst line\nsecond line\n-----END PRIVATE KEY-----\n";
        let veil = veil(&[pem]);
        assert_eq!(
            veil.text("second line, known to everybody, -----BEGIN PRIVATE KEY-----"),
            "***, known to everybody, -----BEGIN PRIVATE KEY-----"
        );
        assert_eq!(Veil::unpack(&veil.pack()), veil);
    }

    #[test]
    fn names_say_what_is_secret() {
        for name in ["DB_PASSWORD", "npm_token", "API_KEY", "SESSION_SECRET", "AWS_SECRET_ACCESS_KEY"] {
            assert!(Veil::is_secret_name(name), "{name}");
        }
        for name in ["NODE_ENV", "PORT", "DATABASE_HOST", "KEYBOARD"] {
            assert!(!Veil::is_secret_name(name), "{name}");
        }
        assert_eq!(Veil::password_of("postgres://app:pass:word@host:1/db?a=b@c"), Some("pass:word"));
        assert_eq!(Veil::password_of("https://host/a:b@c"), None);
    }
}
