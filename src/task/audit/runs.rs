//! Finds runs of labels in numbers and texts: so many labels in order that no other numbers match them by chance.

use std::collections::HashSet;

/// The shortest run that counts.
const SHORTEST: usize = 16;
/// Bits that a run holds: with 2^20 places on either side, chance finds one run in 2^24 audits.
const BITS: f64 = 64.0;
/// Odd multiplier (that of PCG) for the rolling hash of a run.
const BASE: u64 = 0x5851_F42D_4C95_7F2D;

/// All runs of one length in a list of labels, as hashes.
pub struct Runs {
    length: usize,
    hashes: HashSet<u64>,
}

impl Runs {
    /// Collects the runs of `labels`: as long as `SHORTEST` and `BITS` ask, but at most all of them; none when all
    /// labels are equal.
    pub fn of(labels: &[f64]) -> Self {
        let bits = entropy(labels);
        if bits == 0.0 {
            return Self { length: usize::MAX, hashes: HashSet::new() };
        }
        let length = SHORTEST.max((BITS / bits).ceil() as usize).min(labels.len());
        Self { length, hashes: rolling(labels, length).collect() }
    }

    /// Returns the length of a run that lies in `numbers`, if one does.
    pub fn within(&self, numbers: &[f64]) -> Option<usize> {
        rolling(numbers, self.length).any(|hash| self.hashes.contains(&hash)).then_some(self.length)
    }

    /// Does the same for the numbers of a text that have nothing but separators between them.
    pub fn in_text(&self, bytes: &[u8]) -> Option<usize> {
        let is_word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.' | b'_' | 128..);
        let words = bytes.split(|b| !is_word(b)).filter(|word| !word.is_empty());
        let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse::<f64>().ok();
        let mut numbers = Vec::new();
        for word in words {
            match number(word) {
                Some(x) => numbers.push(x),
                None if self.within(&numbers).is_some() => break,
                None => numbers.clear(),
            }
        }
        self.within(&numbers)
    }
}

/// Returns the bits of a number; both zeros give the same.
pub fn token(x: f64) -> u64 {
    (x + 0.0).to_bits()
}

/// Computes the entropy in bits per label.
fn entropy(labels: &[f64]) -> f64 {
    let mut tokens: Vec<u64> = labels.iter().map(|y| token(*y)).collect();
    tokens.sort_unstable();
    let shares = tokens.chunk_by(|a, b| a == b).map(|equal| equal.len() as f64 / labels.len() as f64);
    -shares.map(|p| p * p.log2()).sum::<f64>()
}

/// Computes the hash of each run of `length` numbers: the sum of their tokens times falling powers of `BASE`.
fn rolling(numbers: &[f64], length: usize) -> impl Iterator<Item = u64> {
    let top = (1..length.min(numbers.len() + 1)).fold(1_u64, |power, _| power.wrapping_mul(BASE));
    // A float's low bits are often 0, and multiplication by an odd number alone would leave them so.
    let mixed = |x: f64| token(x).wrapping_mul(BASE).rotate_left(32).wrapping_mul(BASE);
    let mut hash = 0_u64;
    numbers.iter().enumerate().filter_map(move |(i, x)| {
        if i >= length {
            hash = hash.wrapping_sub(mixed(numbers[i - length]).wrapping_mul(top));
        }
        hash = hash.wrapping_mul(BASE).wrapping_add(mixed(*x));
        (i + 1 >= length).then_some(hash)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_and_near_misses_are_not() {
        let labels: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i * i % 7 < 2 || i % 11 == 3))).collect();
        let runs = Runs::of(&labels);
        assert!(runs.length >= 64, "a binary label holds at most one bit, a run 64: {}", runs.length);
        let mut hidden = vec![0.5; 1000];
        hidden[300..300 + runs.length].copy_from_slice(&labels[100..100 + runs.length]);
        assert_eq!(runs.within(&hidden), Some(runs.length));
        let text: String = hidden.iter().map(|x| format!("{x}, ")).collect();
        assert_eq!(runs.in_text(format!("x = [{text}]; y").as_bytes()), Some(runs.length));
        assert_eq!(runs.in_text(text.replace("0.5", "half").as_bytes()), Some(runs.length));
        hidden[300 + runs.length / 2] = 3.0;
        assert_eq!(runs.within(&hidden), None);
        assert_eq!(Runs::of(&[1.0; 50]).within(&[1.0; 100]), None, "equal labels say nothing");
        assert_eq!(runs.within(&[]), None);
    }
}
