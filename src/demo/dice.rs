//! Seeded chance: the same seed throws the same dice, on every machine and for ever.

use std::time::Duration;

use crate::model::schedule::unit;

/// A stream of pseudo-random numbers (splitmix64). Not for secrets.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The dice of `seed`, for the purpose `stream`: two streams of one seed do not resemble each
    /// other, so adding a throw for one purpose does not change what another one throws.
    pub fn new(seed: u64, stream: u64) -> Dice {
        Dice(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        unit(self.0)
    }

    /// 64 bits, of which the lowest 11 are made from a second throw.
    pub fn bits(&mut self) -> u64 {
        (self.below(1 << 32) << 32) | self.below(1 << 32)
    }

    /// A whole number in `[0, bound)`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a unit times the bound"
        )]
        #[expect(
            clippy::cast_precision_loss,
            reason = "no caller's bound exceeds 53 bits"
        )]
        let thrown = (self.unit() * bound as f64) as u64;
        thrown
    }

    /// True this often.
    pub fn chance(&mut self, rate: f64) -> bool {
        self.unit() < rate
    }

    /// A duration of so many milliseconds.
    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to.saturating_sub(from) + 1))
    }

    /// A part of `span`, between two fractions of it.
    pub fn part(&mut self, span: Duration, from: f64, to: f64) -> Duration {
        span.mul_f64(from + (to - from) * self.unit())
    }

    /// One of these, which must not be none.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        let index = usize::try_from(self.below(choices.len() as u64)).unwrap_or(0);
        &choices[index]
    }

    /// One of these, as often as its weight says.
    pub fn weigh<'a, T>(&mut self, choices: &'a [(u32, T)]) -> &'a T {
        let total: u64 = choices.iter().map(|(weight, _)| u64::from(*weight)).sum();
        let mut thrown = self.below(total);
        for (weight, choice) in choices {
            if thrown < u64::from(*weight) {
                return choice;
            }
            thrown -= u64::from(*weight);
        }
        &choices[choices.len() - 1].1
    }

    /// So many decimal digits, the first of them not zero.
    pub fn digits(&mut self, count: usize) -> String {
        (0..count)
            .map(|n| {
                if n == 0 {
                    1 + self.below(9)
                } else {
                    self.below(10)
                }
                .to_string()
            })
            .collect()
    }

    /// So many letters and digits.
    pub fn base62(&mut self, count: usize) -> String {
        const ALPHABET: &[u8; 62] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        (0..count)
            .map(|_| char::from(*self.pick(ALPHABET)))
            .collect()
    }

    /// A UUID of this version.
    pub fn uuid(&mut self, version: u8) -> String {
        let (high, low) = (self.bits(), self.bits());
        format!(
            "{:08x}-{:04x}-{version}{:03x}-{:x}{:03x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xfff,
            8 + (low >> 62),
            (low >> 48) & 0xfff,
            low & 0xffff_ffff_ffff
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_throws_the_same_and_streams_differ() {
        let throw = |seed, stream| {
            let mut dice = Dice::new(seed, stream);
            (0..8).map(|_| dice.bits()).collect::<Vec<_>>()
        };
        assert_eq!(throw(1, 2), throw(1, 2));
        assert_ne!(throw(1, 2), throw(1, 3));
        assert_ne!(throw(1, 2), throw(2, 2));
    }

    #[test]
    fn chances_and_weights_come_out_as_stated() {
        let mut dice = Dice::new(7, 0);
        let hits = (0..10_000).filter(|_| dice.chance(0.3)).count();
        assert!((2_800..3_200).contains(&hits), "{hits}");
        let heavy = (0..10_000)
            .filter(|_| *dice.weigh(&[(1, 'a'), (3, 'b')]) == 'b')
            .count();
        assert!((7_300..7_700).contains(&heavy), "{heavy}");
    }

    #[test]
    fn ids_look_like_the_providers() {
        let mut dice = Dice::new(1, 1);
        let uuid = dice.uuid(7);
        assert_eq!((uuid.len(), &uuid[14..15]), (36, "7"));
        assert!(matches!(&uuid[19..20], "8" | "9" | "a" | "b"), "{uuid}");
        assert_eq!(dice.digits(18).len(), 18);
        assert_eq!(dice.base62(11).len(), 11);
    }
}
