//! Events of deliveries that deploy nothing. Where very many come they are not told one by one: they would push what
//! happened to the app out of its history, which is bounded. The deliveries themselves are all recorded.

use std::collections::BTreeMap;

use super::say::NewEvent;
use crate::domain::{
    api::{DeliveryState, EventKind},
    model::{AppName, At},
};

/// So many of an app are told between two commits of all there is, which are half a second apart at most.
const TOLD: u32 = 1_000;

/// How many of each app came since the last such commit, `None` for no app.
#[derive(Debug, Clone, Default)]
pub(super) struct Sparing(BTreeMap<Option<AppName>, u32>);

impl Sparing {
    /// One more came: is it told?
    pub(super) fn tells(&mut self, app: Option<&AppName>) -> bool {
        let count = self.0.entry(app.cloned()).or_default();
        *count = count.saturating_add(1);
        *count <= TOLD
    }

    /// What is told of the others.
    pub(super) fn rest(&self, at: At) -> impl Iterator<Item = NewEvent> {
        self.0.iter().filter(|(_, count)| **count > TOLD).map(move |(app, count)| NewEvent {
            at,
            app: app.clone(),
            instance: None,
            kind: EventKind::Delivery,
            from: None,
            to: Some(DeliveryState::Skipped.to_string()),
            cause: Some(format!("{} more deliveries came", count - TOLD)),
            detail: Some("too many at once to be told one by one; `everhook deliveries` lists them".to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_the_number_is_told() {
        let (blog, mut sparing) = ("blog".parse::<AppName>().unwrap(), Sparing::default());
        let told = (0..TOLD + 7).filter(|_| sparing.tells(Some(&blog))).count();
        assert_eq!(told, TOLD as usize);
        assert!(sparing.tells(None), "another's are counted apart");
        let rest: Vec<_> = sparing.rest(At(5)).collect();
        let [NewEvent { at: At(5), app: Some(app), cause: Some(cause), .. }] = &rest[..] else { panic!("{rest:?}") };
        assert_eq!((app, &**cause), (&blog, "7 more deliveries came"));
    }
}
