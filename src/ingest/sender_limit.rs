//! The sender limit: how many deliveries that are not authentic settled stores, and how many bytes
//! of them, per sender.
//!
//! Only looked at once verification has failed, so an authentic delivery is never held up, however
//! many forged ones come from the same address (behind a tunnel all senders may share one).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
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
    /// Whether one more delivery of this sender, with a body of `bytes`, is stored.
    ///
    /// A large body may overdraw the bucket: the sender waits longer for the next delivery, but a
    /// single one is never too large.
    pub fn admit(&self, sender: Option<IpAddr>, bytes: usize, now: At) -> bool {
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
            let units = u32::try_from(bytes / limits::UNPROVEN_UNIT_BYTES).unwrap_or(u32::MAX);
            bucket.tokens -= 1.0 + f64::from(units);
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

/// The sender of a request. Behind a reverse proxy on this machine that is the last address in
/// `X-Forwarded-For`: the proxy itself has added it. From other peers the header is only a claim.
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
    let last = forwarded.and_then(|(_, value)| forwarded_address(value.rsplit(',').next()?.trim()));
    Some(last.unwrap_or(peer))
}

/// The address in one entry of `X-Forwarded-For`. Some proxies add the port, and then write an IPv6
/// address in brackets; some write brackets without a port.
fn forwarded_address(entry: &str) -> Option<IpAddr> {
    let bracketed = || entry.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || entry.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address: Option<IpAddr> = entry.parse().ok();
    address.or_else(with_port).or_else(bracketed)
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
            .filter(|_| sender_limit.admit(address(1), 100, At(0)))
            .count();
        assert_eq!(burst, 120);
        assert!(
            sender_limit.admit(address(2), 100, At(0)),
            "another sender has a bucket of its own"
        );
        let trickle = (0..100)
            .filter(|_| sender_limit.admit(address(1), 100, At(5_000)))
            .count();
        assert_eq!(trickle, 10);
    }

    #[test]
    fn a_sender_is_charged_for_bytes_whatever_their_number_of_bodies() {
        const MIB: usize = 1 << 20;
        for bytes in [100, 64 << 10, 200 << 10, MIB, 30 * MIB] {
            let sender_limit = SenderLimit::default();
            let stored = (0..600_000)
                .step_by(50)
                .filter(|now| sender_limit.admit(address(1), bytes, At(*now)))
                .count();
            // The burst and ten minutes of the rate, and one body that overdraws.
            let most = (120 + 1_200) * limits::UNPROVEN_UNIT_BYTES + bytes;
            assert!(stored * bytes <= most, "{stored} of {bytes} bytes");
            assert!(stored >= 1, "a single body is never too large");
        }
    }

    #[test]
    fn the_number_of_buckets_is_bounded_and_so_are_those_without_one() {
        let sender_limit = SenderLimit::default();
        let admitted = (0..100_000_u32)
            .filter(|n| sender_limit.admit(Some(IpAddr::from(n.to_be_bytes())), 100, At(0)))
            .count();
        assert_eq!(admitted, limits::UNPROVEN_SENDERS_MAX + 120);
        assert!(sender_limit.buckets.lock().unwrap().len() <= limits::UNPROVEN_SENDERS_MAX + 1);
        assert!(
            sender_limit.admit(address(1), 100, At(600_000)),
            "those who have been quiet make budget"
        );
    }

    #[test]
    fn an_ipv6_network_is_one_sender() {
        let sender_limit = SenderLimit::default();
        let of = |n: u16| Some(IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, n]));
        assert_eq!(
            (0..1_000)
                .filter(|n| sender_limit.admit(of(*n), 100, At(0)))
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
        assert_eq!(from("127.0.0.1", "203.0.113.9:5555"), "203.0.113.9");
        assert_eq!(from("127.0.0.1", "6.6.6.6, [2001:db8::1]"), "2001:db8::1");
        assert_eq!(from("127.0.0.1", "[2001:db8::1]:443"), "2001:db8::1");
        assert_eq!(from("127.0.0.1", "nonsense"), "127.0.0.1");
        assert_eq!(from("127.0.0.1", "[203.0.113.9"), "127.0.0.1");
        assert_eq!(from("198.51.100.1", "203.0.113.9"), "198.51.100.1");
    }
}
