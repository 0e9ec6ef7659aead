//! Places for answers that take as long as they like: streams, and those that wait for what was asked for. There are
//! fewer than turns, so that some are left for whoever wants an answer at once, and of one token fewer still, so that
//! a program that forgets to close its streams is in nobody's way but its own.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use sha2::{Digest, Sha256};

use super::{answer::Problem, guests::TURNS};

/// Of all.
const ALL: usize = TURNS / 2;
/// Of one token.
const OWN: usize = 64;
/// Seconds after which whoever has so many may look again.
const LATER: u32 = 5;

/// A token, which is kept nowhere.
type Whose = [u8; 32];

/// How many of each are taken.
#[derive(Clone, Default)]
pub(super) struct Lasting(Rc<RefCell<HashMap<Whose, usize>>>);

/// One of them, until it is dropped.
pub(super) struct Place {
    of: Lasting,
    whose: Whose,
}

impl Lasting {
    /// # Errors
    /// 429 when this token has all that it may have, 503 when all are taken.
    pub(super) fn take(&self, token: &str) -> Result<Place, Problem> {
        let whose = Sha256::digest(token).into();
        let mut taken = self.0.borrow_mut();
        if taken.values().sum::<usize>() >= ALL {
            return Err(Problem::unavailable("too many streams and requests that wait are open here"));
        }
        let own = taken.entry(whose).or_default();
        if *own >= OWN {
            let detail = format!("{OWN} streams and requests that wait are open with this token: close some");
            return Err(Problem::too_many(detail, LATER));
        }
        *own += 1;
        Ok(Place { of: self.clone(), whose })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.0.borrow_mut();
        if let Some(own) = taken.get_mut(&self.whose) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::{Response, StatusCode};

    use super::{super::answer::Content, *};

    fn refused(lasting: &Lasting, token: &str) -> Option<StatusCode> {
        lasting.take(token).err().map(|problem| Response::<Content>::from(problem).status())
    }

    #[test]
    fn a_token_has_its_share_and_all_have_theirs() {
        let lasting = Lasting::default();
        let mut places: Vec<Place> = (0..OWN).map(|_| lasting.take("a").unwrap()).collect();
        assert_eq!(refused(&lasting, "a"), Some(StatusCode::TOO_MANY_REQUESTS));
        assert_eq!(refused(&lasting, "b"), None, "another one has its own");
        places.pop();
        assert_eq!(refused(&lasting, "a"), None, "what was given back is free");
        for token in ["a", "b", "c", "d", "e"] {
            places.extend(std::iter::from_fn(|| lasting.take(token).ok()));
        }
        assert_eq!(places.len(), ALL);
        assert_eq!(refused(&lasting, "f"), Some(StatusCode::SERVICE_UNAVAILABLE));
        drop(places);
        assert!(lasting.0.borrow().is_empty());
    }
}
