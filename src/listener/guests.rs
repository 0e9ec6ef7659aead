//! How many connections there may be, in total and from one address.

use std::{cell::RefCell, collections::HashMap, net::IpAddr, rc::Rc, sync::Arc};

use ipnet::IpNet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::access::{is_among, sender};

/// Connections at a time; more wait in the socket's backlog.
const IN_TOTAL: usize = 1024;
/// Connections at a time from one IPv4 address or IPv6 /64; more are told so and closed. Loopback and trusted
/// proxies are exempt, as each stands for the whole world.
const FROM_ONE: u32 = 64;

type Crowd = Rc<RefCell<HashMap<IpAddr, u32>>>;

/// Everybody who is connected.
pub(super) struct Guests {
    free: Arc<Semaphore>,
    crowd: Crowd,
    proxies: Vec<IpNet>,
}

/// A place in the house; free again when dropped.
pub(super) struct Seat {
    _place: OwnedSemaphorePermit,
    from: IpAddr,
    crowd: Crowd,
}

impl Guests {
    pub(super) fn new(proxies: Vec<IpNet>) -> Self {
        Self { free: Arc::new(Semaphore::new(IN_TOTAL)), crowd: Rc::default(), proxies }
    }

    /// Waits for a free place.
    pub(super) async fn place(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.free).acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Gives the place to this address (canonical), unless too many of it are here.
    pub(super) fn seat(&self, place: OwnedSemaphorePermit, address: IpAddr) -> Option<Seat> {
        let from = sender(address);
        let mut crowd = self.crowd.borrow_mut();
        let here = crowd.entry(from).or_default();
        if *here >= FROM_ONE && !address.is_loopback() && !is_among(address, &self.proxies) {
            return None;
        }
        *here += 1;
        Some(Seat { _place: place, from, crowd: Rc::clone(&self.crowd) })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut crowd = self.crowd.borrow_mut();
        if let Some(here) = crowd.get_mut(&self.from) {
            *here -= 1;
            if *here == 0 {
                crowd.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sit(guests: &Guests, address: &str) -> Option<Seat> {
        let place = Arc::clone(&guests.free).try_acquire_owned().unwrap();
        guests.seat(place, address.parse().unwrap())
    }

    #[test]
    fn one_address_takes_its_share_and_no_more() {
        let guests = Guests::new(vec!["198.51.100.0/24".parse().unwrap()]);
        let mut seats: Vec<Seat> = (0..FROM_ONE).map(|_| sit(&guests, "192.0.2.1").unwrap()).collect();
        assert!(sit(&guests, "192.0.2.1").is_none());
        assert!(sit(&guests, "192.0.2.2").is_some());
        seats.pop();
        seats.push(sit(&guests, "192.0.2.1").unwrap());
        assert!(sit(&guests, "192.0.2.1").is_none());
        assert_eq!(guests.free.available_permits(), IN_TOTAL - seats.len());
        drop(seats);
        assert!(guests.crowd.borrow().is_empty());
        assert_eq!(guests.free.available_permits(), IN_TOTAL);
    }

    #[test]
    fn an_ipv6_host_is_its_64_bits() {
        let guests = Guests::new(vec!["198.51.100.0/24".parse().unwrap()]);
        let seats: Vec<Seat> = (0..FROM_ONE).map(|i| sit(&guests, &format!("2001:db8::{i:x}")).unwrap()).collect();
        assert!(sit(&guests, "2001:db8::ffff:ffff:ffff:ffff").is_none());
        assert!(sit(&guests, "2001:db8:0:1::1").is_some());
        drop(seats);
    }

    #[test]
    fn a_proxy_is_not_held_back() {
        let guests = Guests::new(vec!["198.51.100.0/24".parse().unwrap()]);
        for proxy in ["127.0.0.1", "198.51.100.7"] {
            let seats: Vec<Seat> = (0..FROM_ONE * 2).map(|_| sit(&guests, proxy).unwrap()).collect();
            assert_eq!(seats.len(), 128);
        }
    }
}
