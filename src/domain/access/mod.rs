//! Who may ask what: a principal, its role for an app, and whether that is enough.
//!
//! Local people are judged by uid and groups, tokens by what the config gives them. How a principal
//! was recognised (peer credentials, a token's bytes) is the shells' business; nothing here reads a
//! secret. DESIGN.md section 9.

mod client;
mod debts;
mod guard;
mod keyring;

use std::{collections::BTreeMap, fmt};

use super::{
    config::{Role, Token},
    model::AppName,
};

pub use client::{client, is_among};
pub use debts::Debts;
pub use guard::{Admission, Guard, sender};
pub use keyring::{Keyring, Locked, MadeToken, TokenHash};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A process on this machine.
    Local {
        uid: u32,
        /// Its name, where it has one.
        user: Option<String>,
        /// Names of all its groups.
        groups: Vec<String>,
    },
    /// Whoever holds a token.
    Token {
        name: String,
        role: Role,
        /// The apps it is for; `None`: all, and the server itself.
        apps: Option<Vec<AppName>>,
    },
}

impl From<&Token> for Principal {
    fn from(token: &Token) -> Self {
        Self::Token { name: token.name.clone(), role: token.role, apps: token.apps.clone() }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { user: Some(user), .. } => write!(f, "user \"{user}\""),
            Self::Local { uid, user: None, .. } => write!(f, "uid {uid}"),
            Self::Token { name, .. } => write!(f, "token \"{name}\""),
        }
    }
}

/// A role is too low.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this needs the role {needed:?}{}; {who} has {}", scope(.app.as_ref()), shown(*.has))]
pub struct Denied {
    pub needed: Role,
    pub has: Option<Role>,
    /// `None`: it is about the server.
    pub app: Option<AppName>,
    /// Who asked, in words.
    pub who: String,
}

fn scope(app: Option<&AppName>) -> String {
    app.map(|app| format!(" for app \"{app}\"")).unwrap_or_default()
}

fn shown(role: Option<Role>) -> String {
    role.map_or("none".into(), |role| format!("{role:?}"))
}

/// The role for an app, or for the server where `app` is `None`; no role, no answer.
///
/// Root and the supervisor's own user are Admin. Other local users have the highest role that
/// `local` gives one of their groups, or everybody (`*`). A token for certain apps may look at the
/// server, where it is shown its apps alone, and change nothing of it.
#[must_use]
pub fn role_for(
    principal: &Principal,
    app: Option<&AppName>,
    local: &BTreeMap<String, Role>,
    supervisor_uid: u32,
) -> Option<Role> {
    match principal {
        Principal::Local { uid, .. } if *uid == 0 || *uid == supervisor_uid => Some(Role::Admin),
        Principal::Local { groups, .. } => {
            let fits = |group: &str| group == "*" || groups.iter().any(|own| own == group);
            local.iter().filter(|(group, _)| fits(group)).map(|(_, role)| *role).max()
        }
        Principal::Token { role, apps: None, .. } => Some(*role),
        Principal::Token { role, apps: Some(apps), .. } => match app {
            Some(app) => apps.contains(app).then_some(*role),
            None => Some(Role::Viewer),
        },
    }
}

/// May it do what needs this role?
///
/// # Errors
/// Says which role it needs, and which it has.
pub fn may(
    principal: &Principal,
    app: Option<&AppName>,
    needed: Role,
    local: &BTreeMap<String, Role>,
    supervisor_uid: u32,
) -> Result<(), Denied> {
    let has = role_for(principal, app, local, supervisor_uid);
    if has >= Some(needed) {
        return Ok(());
    }
    Err(Denied { needed, has, app: app.cloned(), who: principal.to_string() })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*, sample::select};

    use super::*;

    const ROLES: [Role; 4] = [Role::Viewer, Role::Operator, Role::Deployer, Role::Admin];

    fn app(name: &str) -> AppName {
        name.parse().unwrap()
    }

    fn person(uid: u32, groups: &[&str]) -> Principal {
        Principal::Local { uid, user: None, groups: groups.iter().map(ToString::to_string).collect() }
    }

    fn token(role: Role, apps: Option<&[&str]>) -> Principal {
        Principal::Token { name: "ci".into(), role, apps: apps.map(|names| names.iter().map(|n| app(n)).collect()) }
    }

    fn local(given: &[(&str, Role)]) -> BTreeMap<String, Role> {
        given.iter().map(|(group, role)| ((*group).to_owned(), *role)).collect()
    }

    #[test]
    fn the_highest_role_that_fits_counts() {
        let given =
            local(&[("*", Role::Viewer), ("ops", Role::Deployer), ("dev", Role::Operator), ("boss", Role::Admin)]);
        let role = |groups: &[&str]| role_for(&person(1000, groups), None, &given, 500);
        assert_eq!(role(&[]), Some(Role::Viewer));
        assert_eq!(role(&["dev", "ops"]), Some(Role::Deployer));
        assert_eq!(role_for(&person(1000, &["dev"]), None, &local(&[("ops", Role::Admin)]), 500), None);
    }

    #[test]
    fn a_group_named_star_is_nobodys_key() {
        assert_eq!(role_for(&person(1000, &["*"]), None, &local(&[("ops", Role::Admin)]), 500), None);
    }

    #[test]
    fn root_and_the_own_user_are_admin() {
        for uid in [0, 500] {
            assert_eq!(role_for(&person(uid, &[]), Some(&app("blog")), &local(&[]), 500), Some(Role::Admin));
        }
    }

    #[test]
    fn a_token_is_for_its_apps() {
        let ci = token(Role::Deployer, Some(&["blog"]));
        let may = |app: Option<&AppName>, role| may(&ci, app, role, &local(&[("*", Role::Admin)]), 500);
        assert!(may(Some(&app("blog")), Role::Deployer).is_ok());
        assert!(may(Some(&app("blog")), Role::Admin).is_err());
        assert!(may(Some(&app("api")), Role::Viewer).is_err());
        assert!(may(None, Role::Viewer).is_ok());
        assert!(may(None, Role::Operator).is_err());
    }

    #[test]
    fn a_refusal_names_the_role() {
        let denied = may(&token(Role::Viewer, None), Some(&app("blog")), Role::Operator, &local(&[]), 0).unwrap_err();
        assert_eq!(denied.to_string(), "this needs the role Operator for app \"blog\"; token \"ci\" has Viewer");
        let denied = may(&person(7, &[]), None, Role::Admin, &local(&[]), 0).unwrap_err();
        assert_eq!(denied.to_string(), "this needs the role Admin; uid 7 has none");
    }

    fn groups() -> impl Strategy<Value = BTreeMap<String, Role>> {
        btree_map("[ab*]", select(ROLES.to_vec()), 0..3)
    }

    fn principals() -> impl Strategy<Value = Principal> {
        prop_oneof![
            (0u32..4, proptest::collection::vec("[ab]", 0..3)).prop_map(|(uid, groups)| Principal::Local {
                uid,
                user: None,
                groups
            }),
            (select(ROLES.to_vec()), proptest::option::of(proptest::collection::vec("[ab]", 0..2))).prop_map(
                |(role, apps)| Principal::Token {
                    name: "t".into(),
                    role,
                    apps: apps.map(|names| names.iter().map(|name| app(name)).collect()),
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn who_may_do_more_may_do_less(who in principals(), name in "[ab]", local in groups(), own in 0u32..4) {
            for about in [None, Some(&app(&name))] {
                let allowed: Vec<bool> =
                    ROLES.iter().map(|role| may(&who, about, *role, &local, own).is_ok()).collect();
                prop_assert!(allowed.is_sorted_by(|more, less| more >= less), "{allowed:?}");
            }
        }

        #[test]
        fn more_groups_never_take_rights_away(groups_had in proptest::collection::vec("[ab]", 0..2), more in "[ab]", local in groups()) {
            let with = |groups: Vec<String>| role_for(&Principal::Local { uid: 9, user: None, groups }, None, &local, 1);
            let before = with(groups_had.clone());
            prop_assert!(with([groups_had, vec![more]].concat()) >= before);
        }

        #[test]
        fn a_token_never_exceeds_its_role(who in principals(), name in "[ab]", local in groups()) {
            if let Principal::Token { role, .. } = &who {
                for about in [None, Some(&app(&name))] {
                    prop_assert!(role_for(&who, about, &local, 0) <= Some(*role));
                }
            }
        }
    }
}
