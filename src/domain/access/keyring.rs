//! The tokens that are known: those of the config, and those that `token create` made.
//!
//! Of either only the SHA-256 is kept. A token is as good as random, so one pass of the hash is
//! enough; whoever reads the hashes can still not ask for anything.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::Principal;
use crate::domain::{
    api::{By, TokenSource, TokenView},
    config::{Role, Token},
    model::{AppName, At, Secret},
};

/// The SHA-256 of a token.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    #[must_use]
    pub fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for TokenHash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

/// A token that `token create` made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeToken {
    pub name: String,
    pub hash: TokenHash,
    pub role: Role,
    /// The apps it is for; `None`: all, and the server itself.
    pub apps: Option<Vec<AppName>>,
    pub by: By,
    pub created_at: At,
    /// From here on it opens nothing; `None`: never.
    pub expires_at: Option<At>,
}

/// Every token that opens something.
#[derive(Debug, Default)]
pub struct Keyring {
    of_config: Vec<(Token, TokenHash)>,
    /// `None` until the store has been read.
    made: Option<Vec<MadeToken>>,
    /// Ends up to here have been told by [`Keyring::expire`].
    told_until: Option<At>,
}

/// Why a token opens nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Locked {
    #[error("the token is not known")]
    Unknown,
    /// It may be one that was made.
    #[error("the database with the tokens is not read yet")]
    Unread,
    #[error("the token \"{name}\" expired at {at}: have another one made with `everhook token create`")]
    Expired { name: String, at: At },
}

impl Keyring {
    /// Those of the config, in place of the ones before. Their secrets are not kept. The names of those before
    /// that open something else now, or nothing.
    pub fn set_config(&mut self, tokens: Vec<(Token, Secret)>) -> Vec<String> {
        let new = tokens.into_iter().map(|(token, secret)| (token, TokenHash::of(secret.expose()))).collect();
        let old = std::mem::replace(&mut self.of_config, new);
        let changed = old.into_iter().filter(|token| !self.of_config.contains(token));
        changed.map(|(token, _)| token.name).collect()
    }

    /// Those of the store, in place of the ones before. The names of those before that are gone.
    pub fn set_made(&mut self, tokens: Vec<MadeToken>) -> Vec<String> {
        let old = self.made.replace(tokens).unwrap_or_default();
        let is_there = |old: &MadeToken| self.made().any(|token| token.hash == old.hash);
        old.iter().filter(|old| !is_there(old)).map(|token| token.name.clone()).collect()
    }

    /// Whose token has this hash.
    ///
    /// Every token is compared, each in the same time, so that the time says nothing about which one
    /// fits, or how nearly.
    ///
    /// # Errors
    /// When it is nobody's, or not any more.
    pub fn find(&self, hash: TokenHash, now: At) -> Result<Principal, Locked> {
        let fits = |known: &TokenHash| -> Choice { known.0.ct_eq(&hash.0) };
        let of_config: Vec<bool> = self.of_config.iter().map(|(_, known)| fits(known).into()).collect();
        let made: Vec<bool> = self.made().map(|token| fits(&token.hash).into()).collect();
        if let Some(at) = of_config.iter().position(|fits| *fits) {
            return Ok(Principal::from(&self.of_config[at].0));
        }
        let Some(token) = self.made().zip(made).find_map(|(token, fits)| fits.then_some(token)) else {
            return Err(if self.made.is_some() { Locked::Unknown } else { Locked::Unread });
        };
        match token.expires_at {
            Some(at) if at <= now => Err(Locked::Expired { name: token.name.clone(), at }),
            _ => Ok(Principal::Token { name: token.name.clone(), role: token.role, apps: token.apps.clone() }),
        }
    }

    /// The names of those that have ended since this was asked last.
    pub fn expire(&mut self, now: At) -> Vec<String> {
        // A clock that was put back brings some of them back to life.
        let since = self.told_until.replace(now);
        let ended = |token: &&MadeToken| token.expires_at.is_some_and(|at| at <= now && since.is_none_or(|s| at > s));
        self.made().filter(ended).map(|token| token.name.clone()).collect()
    }

    /// When the next one ends.
    #[must_use]
    pub fn next_end(&self, now: At) -> Option<At> {
        self.made().filter_map(|token| token.expires_at).filter(|at| *at > now).min()
    }

    /// Does the token of this name open something?
    #[must_use]
    pub fn opens(&self, name: &str, now: At) -> bool {
        match self.made().find(|token| token.name == name) {
            Some(made) => made.expires_at.is_none_or(|at| at > now),
            None => self.source_of(name).is_some(),
        }
    }

    /// Is this the name of one, wherever it comes from?
    #[must_use]
    pub fn source_of(&self, name: &str) -> Option<TokenSource> {
        if self.made_names().any(|made| made == name) {
            return Some(TokenSource::Created);
        }
        self.of_config.iter().any(|(token, _)| token.name == name).then_some(TokenSource::Config)
    }

    /// Names of those that `token create` made.
    pub fn made_names(&self) -> impl Iterator<Item = &str> {
        self.made().map(|token| token.name.as_str())
    }

    fn made(&self) -> impl Iterator<Item = &MadeToken> {
        self.made.iter().flatten()
    }

    /// As `token list` shows them: those of the config first.
    #[must_use]
    pub fn views(&self, now: At) -> Vec<TokenView> {
        let of_config = self.of_config.iter().map(|(token, _)| TokenView {
            name: token.name.clone(),
            role: token.role,
            apps: token.apps.clone(),
            source: TokenSource::Config,
            by: None,
            created_at: None,
            expires_at: None,
            expired: false,
        });
        let made = self.made().map(|token| TokenView {
            name: token.name.clone(),
            role: token.role,
            apps: token.apps.clone(),
            source: TokenSource::Created,
            by: Some(token.by.clone()),
            created_at: Some(token.created_at),
            expires_at: token.expires_at,
            expired: token.expires_at.is_some_and(|at| at <= now),
        });
        of_config.chain(made).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::config::SecretRef;

    fn made(name: &str, token: &str, expires_at: Option<At>) -> MadeToken {
        MadeToken {
            name: name.into(),
            hash: TokenHash::of(token.as_bytes()),
            role: Role::Operator,
            apps: None,
            by: By::Local { uid: 0, user: None },
            created_at: At(0),
            expires_at,
        }
    }

    fn ring() -> Keyring {
        let mut ring = Keyring::default();
        let token =
            Token { name: "ann".into(), secret: SecretRef::Env("ANN".into()), role: Role::Viewer, apps: Some(vec![]) };
        ring.set_config(vec![(token, Secret::new(b"from the file".to_vec()))]);
        ring.set_made(vec![made("ci", "made", None), made("old", "late", Some(At(1000)))]);
        ring
    }

    #[test]
    fn whose_token_opens_something_else_now_is_told() {
        let mut ring = ring();
        assert_eq!(ring.set_made(vec![made("old", "late", Some(At(1000)))]), ["ci"]);
        assert_eq!(ring.set_made(vec![made("old", "another", None)]), ["old"]);
        let token = |name: &str| (ring.of_config.iter().find(|(token, _)| token.name == name)).unwrap().0.clone();
        let ann = token("ann");
        assert_eq!(ring.set_config(vec![(ann.clone(), Secret::new(b"another".to_vec()))]), ["ann"]);
        let wider = Token { role: Role::Admin, ..ann };
        assert_eq!(ring.set_config(vec![(wider.clone(), Secret::new(b"another".to_vec()))]), ["ann"]);
        assert_eq!(ring.set_config(vec![(wider, Secret::new(b"another".to_vec()))]), [] as [String; 0]);
    }

    #[test]
    fn each_opens_as_itself() {
        let name = |token: &str| match ring().find(TokenHash::of(token.as_bytes()), At(0)) {
            Ok(Principal::Token { name, .. }) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!([name("from the file"), name("made"), name("late")], ["ann", "ci", "old"]);
        for wrong in ["", "made ", "MADE", "ann"] {
            assert_eq!(ring().find(TokenHash::of(wrong.as_bytes()), At(0)), Err(Locked::Unknown), "{wrong}");
        }
    }

    #[test]
    fn before_the_store_is_read_nobody_is_told_that_a_token_is_unknown() {
        let ring = Keyring::default();
        assert_eq!(ring.find(TokenHash::of(b"made"), At(0)), Err(Locked::Unread));
    }

    #[test]
    fn one_opens_until_its_very_moment() {
        assert!(ring().find(TokenHash::of(b"late"), At(999)).is_ok());
        assert_eq!(
            ring().find(TokenHash::of(b"late"), At(1000)),
            Err(Locked::Expired { name: "old".into(), at: At(1000) })
        );
    }

    #[test]
    fn each_end_is_told_once() {
        let mut ring = ring();
        assert_eq!((ring.expire(At(999)), ring.next_end(At(999))), (vec![], Some(At(1000))));
        assert_eq!((ring.expire(At(1000)), ring.next_end(At(1000))), (vec!["old".to_owned()], None));
        assert_eq!(ring.expire(At(2000)), [] as [String; 0]);
        // The clock was put back, and comes there again.
        assert_eq!((ring.expire(At(500)), ring.next_end(At(500))), (vec![], Some(At(1000))));
        assert_eq!(ring.expire(At(2000)), ["old"]);
    }

    #[test]
    fn nothing_shows_what_opens() {
        let shown = format!("{:?}", ring());
        assert!(!shown.contains("from the file") && !shown.contains("made\"") && shown.contains("TokenHash(…)"));
    }

    #[test]
    fn the_list_says_where_each_comes_from() {
        let views = ring().views(At(5000));
        let told: Vec<_> = views.iter().map(|view| (view.name.as_str(), view.source, view.expired)).collect();
        use TokenSource::{Config, Created};
        assert_eq!(told, [("ann", Config, false), ("ci", Created, false), ("old", Created, true)]);
        assert_eq!(ring().source_of("ann"), Some(Config));
        assert_eq!(ring().source_of("nobody"), None);
    }
}
