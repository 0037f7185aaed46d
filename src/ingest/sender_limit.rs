//! Those whose deliveries prove nothing: how many of them are stored, per sender.
//!
//! Only looked at once verification has failed, so an authentic delivery is never held up, however
//! many forged ones come from the same address (behind a tunnel all senders may share one).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use crate::limits;
use crate::model::At;
use crate::providers::Headers;
use crate::server::Peer;

/// A token bucket per sender, of which there are at most [`limits::UNPROVEN_SENDERS_MAX`].
#[derive(Debug, Default)]
pub struct SenderLimit {
    buckets: Mutex<HashMap<Option<IpAddr>, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: At,
}

impl Bucket {
    fn at(self, now: At) -> Bucket {
        let gained = now.since(self.at).as_secs_f64() * limits::UNPROVEN_RATE;
        Bucket {
            tokens: (self.tokens + gained).min(limits::UNPROVEN_BURST),
            at: now,
        }
    }
}

impl SenderLimit {
    /// Whether one more delivery of this sender is stored.
    pub fn admit(&self, sender: Option<IpAddr>, now: At) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = sender.map(network);
        if !buckets.contains_key(&key) && buckets.len() >= limits::UNPROVEN_SENDERS_MAX {
            // A full bucket says nothing that a new one would not.
            buckets.retain(|_, bucket| bucket.at(now).tokens < limits::UNPROVEN_BURST);
            if buckets.len() >= limits::UNPROVEN_SENDERS_MAX {
                key = None;
            }
        }
        let full = Bucket {
            tokens: limits::UNPROVEN_BURST,
            at: now,
        };
        let bucket = buckets.entry(key).or_insert(full);
        *bucket = bucket.at(now);
        let admitted = bucket.tokens >= 1.0;
        if admitted {
            bucket.tokens -= 1.0;
        }
        admitted
    }
}

/// One IPv6 customer has a whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The address of the sender. Behind a reverse proxy on this machine that is the last address in
/// `X-Forwarded-For`: the one that the proxy itself has put there. From anybody else the header is
/// only a claim.
pub fn sender(peer: &Peer, headers: &Headers) -> Option<IpAddr> {
    let Peer::Tcp(peer) = peer else { return None };
    let peer = peer.ip().to_canonical();
    if !peer.is_loopback() {
        return Some(peer);
    }
    let forwarded = headers
        .iter()
        .rev()
        .find(|(name, _)| name == "x-forwarded-for");
    let last = forwarded.and_then(|(_, value)| value.rsplit(',').next()?.trim().parse().ok());
    Some(last.unwrap_or(peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "as the senders' addresses come")]
    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([203, 0, 113, last]))
    }

    #[test]
    fn a_burst_is_let_in_and_then_a_trickle() {
        let sender_limit = SenderLimit::default();
        let burst = (0..1_000)
            .filter(|_| sender_limit.admit(address(1), At(0)))
            .count();
        assert_eq!(burst, 120);
        assert!(
            sender_limit.admit(address(2), At(0)),
            "another sender has a bucket of its own"
        );
        let trickle = (0..100)
            .filter(|_| sender_limit.admit(address(1), At(5_000)))
            .count();
        assert_eq!(trickle, 10);
    }

    #[test]
    fn the_number_of_buckets_is_bounded_and_so_are_those_without_one() {
        let sender_limit = SenderLimit::default();
        let admitted = (0..100_000_u32)
            .filter(|n| sender_limit.admit(Some(IpAddr::from(n.to_be_bytes())), At(0)))
            .count();
        assert_eq!(admitted, limits::UNPROVEN_SENDERS_MAX + 120);
        assert!(sender_limit.buckets.lock().unwrap().len() <= limits::UNPROVEN_SENDERS_MAX + 1);
        assert!(
            sender_limit.admit(address(1), At(600_000)),
            "those who have been quiet make budget"
        );
    }

    #[test]
    fn an_ipv6_network_is_one_sender() {
        let sender_limit = SenderLimit::default();
        let of = |n: u16| Some(IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, n]));
        assert_eq!(
            (0..1_000)
                .filter(|n| sender_limit.admit(of(*n), At(0)))
                .count(),
            120
        );
    }

    #[test]
    fn only_a_proxy_of_ours_is_believed() {
        let headers = |value: &str| vec![("x-forwarded-for".to_owned(), value.to_owned())];
        let peer = |ip: &str| Peer::Tcp(std::net::SocketAddr::new(ip.parse().unwrap(), 9));
        let from = |ip: &str, value: &str| sender(&peer(ip), &headers(value)).unwrap().to_string();
        assert_eq!(from("127.0.0.1", "6.6.6.6, 203.0.113.9"), "203.0.113.9");
        assert_eq!(from("::1", "2001:db8::7"), "2001:db8::7");
        assert_eq!(from("127.0.0.1", "nonsense"), "127.0.0.1");
        assert_eq!(from("198.51.100.1", "203.0.113.9"), "198.51.100.1");
    }
}
