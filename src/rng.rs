//! Random numbers by counter (Philox 4x32-10; Salmon et al., SC'11): a draw depends only on its key and place, on any
//! device.

/// A stream of random numbers named by (seed, stream); the state is one counter.
#[derive(Debug, Clone)]
pub struct Philox {
    key: [u32; 2],
    stream: u64,
    counter: u64,
    buffer: [u32; 4],
    used: usize,
}

/// The Philox 4x32-10 block function: maps 128 bits of counter and 64 of key to 128 random bits.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let a = u64::from(c[0]) * 0xD251_1F53;
        let b = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// Converts the upper 24 of 32 random bits to a float in [0, 1).
pub fn unit_f32(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 16_777_216.0)
}

impl Philox {
    /// The stream `stream` of `seed`, from its beginning.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], stream, counter: 0, buffer: [0; 4], used: 4 }
    }

    /// A stream named by a text, for example a phase of a run: equal names give equal streams.
    pub fn named(seed: u64, name: &str) -> Self {
        let hash = blake3::hash(name.as_bytes());
        let bytes = hash.as_bytes();
        Self::new(
            seed,
            u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]),
        )
    }

    /// 32 random bits.
    pub fn bits(&mut self) -> u32 {
        if self.used == 4 {
            let (c, s) = (self.counter, self.stream);
            self.buffer = philox4x32([c as u32, (c >> 32) as u32, s as u32, (s >> 32) as u32], self.key);
            self.counter += 1;
            self.used = 0;
        }
        self.used += 1;
        self.buffer[self.used - 1]
    }

    /// A float in [0, 1) with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        let (a, b) = (u64::from(self.bits() >> 5), u64::from(self.bits() >> 6));
        (a * 67_108_864 + b) as f64 / 9_007_199_254_740_992.0
    }

    /// A whole number in 0..n; n must not be 0. Its bias is below 2^-32 for any n a run uses.
    pub fn below(&mut self, n: usize) -> usize {
        let wide = (u64::from(self.bits()) << 32) | u64::from(self.bits());
        ((u128::from(wide) * n as u128) >> 64) as usize
    }

    /// A standard normal number (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// One of `items`, which must not be empty.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Shuffles `items` (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers() {
        // Known answers of Random123 (kat_vectors, philox4x32 10).
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn draws_are_in_range_and_streams_differ() {
        let (mut a, mut b) = (Philox::new(7, 0), Philox::new(7, 1));
        let draws: Vec<usize> = (0..1000).map(|_| a.below(10)).collect();
        assert!(draws.iter().all(|&x| x < 10));
        assert!((0..10).all(|x| draws.contains(&x)));
        assert_ne!(draws, (0..1000).map(|_| b.below(10)).collect::<Vec<_>>());
        let mean = (0..10_000).map(|_| a.normal()).sum::<f64>() / 10_000.0;
        assert!(mean.abs() < 0.05, "six standard errors of the mean are 0.06: {mean}");
    }
}
