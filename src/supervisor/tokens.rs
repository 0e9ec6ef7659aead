//! Tokens that people make and take back, and who it is that sends one. DESIGN.md section 9.

use std::{net::IpAddr, time::Instant};

use super::{Supervisor, control::From, ledger::Command, requests::Wish, secrets::random_hex};
use crate::{
    domain::{
        access::{Admission, Locked, MadeToken, Principal, TokenHash},
        api::{Ask, Refusal, RefusalKind, Reply, Request, Saying, TokenSource},
        model::{At, Bearer, nearest},
    },
    os::clock,
};

/// What every token begins with, so that scanners for leaked secrets find one.
const PREFIX: &str = "everhook_";
/// Characters of a name.
const LONGEST_NAME: usize = 64;

/// Nobody who is known.
pub struct Stranger {
    pub refusal: Refusal,
    /// Does it stand in the audit? A crowd of strangers writes nothing: what was not looked at is no row, and
    /// neither is the same wrong token again.
    pub noted: bool,
}

impl Stranger {
    fn new(kind: RefusalKind, message: impl Into<String>, noted: bool) -> Self {
        Self { refusal: Refusal::new(kind, message), noted }
    }
}

impl Supervisor {
    /// Who asks: the peer's uid on `control.sock`, the token on a people channel.
    pub fn principal(&mut self, from: From, ask: &Ask) -> Result<Principal, Stranger> {
        if let From::Local { uid, user, groups } = from {
            return Ok(Principal::Local { uid, user, groups });
        }
        let Some(given) = ask.token.as_deref().filter(|token| !token.is_empty()) else {
            return Err(Stranger::new(RefusalKind::Unknown, "a token is needed", false));
        };
        let (hash, now) = (TokenHash::of(given.as_bytes()), Instant::now());
        let address: Option<IpAddr> = ask.address.as_deref().and_then(|address| address.parse().ok());
        let admission = address.map(|address| self.guard.admit(address, hash, now)).transpose().map_err(|wait| {
            let wait_s = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
            let message = format!("too many unknown tokens came from this address; come again in {wait_s} s");
            Stranger::new(RefusalKind::TooMany { wait_s }, message, false)
        })?;
        let again = admission == Some(Admission::Again);
        let found = self.tokens.find(hash, clock::now().wall);
        match (address, &found) {
            (Some(address), Ok(_)) => self.guard.right(address, hash),
            (Some(address), Err(Locked::Unknown)) if !again => self.guard.wrong(address, hash, now),
            _ => {}
        }
        found.map_err(|locked| {
            let kind = if locked == Locked::Unread { RefusalKind::Unavailable } else { RefusalKind::Unknown };
            Stranger::new(kind, locked.to_string(), !again)
        })
    }

    /// Makes a token; the only copy of it goes to whoever asked.
    pub fn create_token(&mut self, wish: Wish) -> Result<(), Refusal> {
        let Request::TokenCreate { name, role, apps, expires } = wish.request.clone() else { return Ok(()) };
        judge_name(&name)?;
        match self.tokens.source_of(&name) {
            Some(TokenSource::Created) => {
                let message = format!("there is a token {name:?} already; `everhook token revoke {name}` ends it");
                return Err(Refusal::new(RefusalKind::Failed, message));
            }
            Some(TokenSource::Config) => {
                let message = format!("there is a token {name:?} already, in {}", self.config.path.display());
                return Err(Refusal::new(RefusalKind::Failed, message));
            }
            None => {}
        }
        for app in &apps {
            self.known(app, &wish.who)?;
        }
        let created_at = clock::now().wall;
        let expires_at =
            expires.map(|span| At(created_at.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX))));
        let token = format!("{PREFIX}{}", random_hex());
        let made = MadeToken {
            name: name.clone(),
            hash: TokenHash::of(token.as_bytes()),
            role,
            apps: Some(apps).filter(|apps| !apps.is_empty()),
            by: wish.by.clone(),
            created_at,
            expires_at,
        };
        let ticket = self.answer_later(wish, move |_| Reply::Token { name, token: Bearer::new(token), expires_at });
        self.ledger.send(Command::NewToken { ticket, token: made });
        Ok(())
    }

    /// Takes a token back: from the answer on it opens nothing.
    pub fn revoke_token(&mut self, wish: Wish, name: String) -> Result<(), Refusal> {
        match self.tokens.source_of(&name) {
            Some(TokenSource::Created) => {}
            Some(TokenSource::Config) => {
                let path = self.config.path.display();
                let message = format!("the token {name:?} stands in {path}: take it out there and reload");
                return Err(Refusal::new(RefusalKind::Failed, message));
            }
            None => {
                let hint = nearest(&name, self.tokens.made_names())
                    .map(|near| format!("; did you mean {near:?}?"))
                    .unwrap_or_default();
                return Err(Refusal::new(RefusalKind::NotFound, format!("token {name:?} does not exist{hint}")));
            }
        }
        let message = format!("the token {name:?} opens nothing any more");
        let ticket = self.answer_later(wish, |_| Reply::Changed { app: None, deploy: None, message });
        self.ledger.send(Command::RevokeToken { ticket, name });
        Ok(())
    }

    /// Answers a wish, and notes it in the audit, when the ledger has.
    fn answer_later(&mut self, wish: Wish, done: impl FnOnce(Reply) -> Reply + Send + 'static) -> u64 {
        let ticket = self.ticket();
        let then = move |supervisor: &mut Supervisor, found: Result<Reply, Refusal>| match found {
            Ok(reply) => {
                supervisor.audit_done(&wish);
                wish.reply.say(Saying::Done(done(reply)));
            }
            Err(refusal) => {
                supervisor.audit_refused(&wish, &refusal.message);
                wish.reply.say(Saying::Refused(refusal));
            }
        };
        self.questions.insert(ticket, Box::new(then));
        ticket
    }
}

/// Names stand in the audit, in tables and on command lines.
fn judge_name(name: &str) -> Result<(), Refusal> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    if !name.is_empty() && name.chars().count() <= LONGEST_NAME && name.chars().all(plain) && !name.starts_with('-') {
        return Ok(());
    }
    let message = format!("{name:?} is no name for a token: letters, digits and -_.@, at most {LONGEST_NAME}");
    Err(Refusal::new(RefusalKind::BadRequest, message))
}
