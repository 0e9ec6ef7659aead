//! Certificates and keys of the `http` entries with `tls`. They are read on the files thread: at the start, at
//! each reload and when the files change. What is of no use at the start keeps that address alone from being
//! served; later the one before is kept.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tracing::{error, warn};

use super::Supervisor;
use crate::{
    domain::{
        api::{EventKind, ToListener},
        config::{Config, Http, Ignore, Place, Tls, Watch},
        model::{At, BadPair, Pair, Standing},
    },
    os::{channel::Channel, clock, memfd, pair_files},
};

/// One file comes after the other when a certificate is renewed: they are looked at when nothing has changed
/// for so long.
const SETTLED: Duration = Duration::from_secs(1);

/// What stands behind a `tls`, or a sentence why nothing usable does.
pub type Found = Result<Arc<Pair>, String>;

/// What stands behind each `tls` of a config.
#[derive(Clone, Default)]
pub struct Certificates(Vec<(Tls, Found)>);

impl Certificates {
    /// Reads them all.
    #[must_use]
    pub fn read(config: &Config) -> Self {
        let now = clock::now().wall;
        Self(entries(config).map(|(_, tls)| (tls.clone(), read(tls, now))).collect())
    }

    fn known(&self, tls: &Tls) -> Option<&Found> {
        self.0.iter().find(|(known, _)| known == tls).map(|(_, found)| found)
    }

    /// # Errors
    /// Why the entry cannot be served.
    pub fn of(&self, tls: &Tls) -> Found {
        self.known(tls).cloned().unwrap_or_else(|| Err("its certificate was not read".to_owned()))
    }

    /// All that are of use.
    pub fn pairs(&self) -> impl Iterator<Item = &Arc<Pair>> {
        self.0.iter().filter_map(|(_, found)| found.as_ref().ok())
    }

    /// What is wrong here that was not, or did not matter, before.
    #[must_use]
    pub fn faults(&self, before: &Self) -> Vec<String> {
        let new = self.0.iter().filter(|(tls, _)| before.known(tls).is_none_or(Result::is_ok));
        new.filter_map(|(_, found)| found.clone().err()).collect()
    }

    /// The entries that have another certificate than before.
    #[must_use]
    pub fn renewed(&self, before: &Self, config: &Config) -> Vec<SocketAddr> {
        let is_new = |tls: &Tls| {
            let renewed = before.known(tls).zip(self.known(tls));
            renewed.is_some_and(|(old, new)| new.is_ok() && old != new)
        };
        entries(config).filter(|(_, tls)| is_new(tls)).map(|(http, _)| http.bind).collect()
    }

    /// These, with the one before in place of each that is of no use now; what is wrong with those.
    fn or_before(self, before: &Self) -> (Self, Vec<String>) {
        let mut faults = Vec::new();
        let kept = self.0.into_iter().map(|(tls, found)| match (found, before.of(&tls)) {
            (Err(fault), Ok(pair)) => {
                faults.push(fault);
                (tls, Ok(pair))
            }
            (found, _) => (tls, found),
        });
        (Self(kept.collect()), faults)
    }

    /// Their files, where there are any.
    #[must_use]
    pub fn watch(&self) -> Option<Watch> {
        let paths: Vec<PathBuf> = self.0.iter().flat_map(|(tls, _)| [tls.cert.clone(), tls.key.clone()]).collect();
        let ignore = Ignore::new(&[]).ok()?;
        (!paths.is_empty()).then_some(Watch { paths, ignore, debounce: SETTLED, poll: None })
    }

    /// When one of them stands otherwise next.
    #[must_use]
    pub fn next_moment(&self, now: At) -> Option<At> {
        self.pairs().filter_map(|pair| pair.next_moment(now)).min()
    }
}

/// How each certificate that is to be looked after stood when that was told.
#[derive(Default)]
pub struct Told(Vec<(PathBuf, At, Standing)>);

impl Told {
    /// What is to be told now: how the certificate stands, and a sentence.
    fn news(&mut self, certificates: &Certificates, now: At) -> Vec<(Standing, String)> {
        let before = std::mem::take(&mut self.0);
        let mut news = Vec::new();
        for (tls, found) in &certificates.0 {
            let Some((pair, what)) = found.as_ref().ok().and_then(|pair| Some((pair, pair.warning(now)?))) else {
                continue;
            };
            let told = (tls.cert.clone(), pair.until(), pair.standing(now));
            if self.0.contains(&told) {
                continue;
            }
            if !before.contains(&told) {
                let what = format!("the certificate {} {what}", tls.cert.display());
                news.push((told.2, placed(&what, tls.places[0].as_ref())));
            }
            self.0.push(told);
        }
        news
    }
}

impl Supervisor {
    /// The files have changed: what is of use counts from now on, of the rest the one before.
    pub fn look_at_certificates(&mut self) {
        let (config, before) = (Arc::clone(&self.config), self.certificates.clone());
        let read = Arc::clone(&config);
        let work = move || Certificates::read(&read).or_before(&before);
        self.files.run(work, move |supervisor, (new, faults)| {
            if !Arc::ptr_eq(&config, &supervisor.config) {
                // A reload came between, and may have looked before this.
                return supervisor.look_at_certificates();
            }
            for fault in faults {
                error!("a certificate is not renewed, the one before is kept: {fault}");
                supervisor.note(EventKind::Listener, None, "certificate_refused", Some(fault));
            }
            for bind in new.renewed(&supervisor.certificates, &config) {
                supervisor.note(EventKind::Listener, None, "certificate_renewed", Some(bind.to_string()));
            }
            supervisor.take_certificates(new);
            supervisor.start_failed_listeners();
            supervisor.look_at_clock();
        });
    }

    /// Tells of what should have been renewed, and of what has expired, once each.
    pub fn look_after_certificates(&mut self, now: At) {
        for (standing, what) in self.certificates_told.news(&self.certificates, now) {
            warn!("{what}");
            let name = match standing {
                Standing::Expired => "certificate_expired",
                Standing::Early | Standing::Late | Standing::Good => "certificate_due",
            };
            self.note(EventKind::Listener, None, name, Some(what));
        }
    }
}

fn entries(config: &Config) -> impl Iterator<Item = (&Http, &Tls)> {
    config.http.iter().filter_map(|http| Some((http, http.tls.as_ref()?)))
}

fn read(tls: &Tls, now: At) -> Found {
    let [cert, key] = &tls.places;
    pair_files::read(&tls.cert, &tls.key, now).map(Arc::new).map_err(|bad| match bad {
        BadPair::Chain(why) => placed(&why, cert.as_ref()),
        BadPair::Key(why) => placed(&why, key.as_ref()),
    })
}

fn placed(what: &str, place: Option<&Place>) -> String {
    place.map_or_else(|| what.to_owned(), |place| format!("{what} ({place})"))
}

/// Hands a certificate and its key to a listener's process.
///
/// # Errors
/// When descriptors run out, or the process takes nothing.
pub fn hand_over(channel: &mut Channel, pair: &Pair) -> io::Result<()> {
    let fd = memfd::holding("everhook-certificate", pair.pem().expose())?;
    channel.queue(&ToListener::Certificate, &[], Some(fd));
    if channel.flush()? { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
}
