//! Allocation of parts of one range of device memory: first fit by address, neighbours joined when freed. It computes
//! with plain numbers and touches no memory.

use std::collections::BTreeMap;

/// Alignment of every part, in bytes: the best for tensor-core loads and for the vendor's GEMMs.
const ALIGNMENT: usize = 256;

/// Free parts of a range, by start; no two are neighbours.
#[derive(Debug, Default)]
pub(super) struct FreeParts(BTreeMap<usize, usize>);

impl FreeParts {
    /// Takes the first part of at least `bytes` bytes, cut to this length.
    pub fn take(&mut self, bytes: usize) -> Option<usize> {
        let bytes = rounded(bytes);
        let (start, length) = self.0.iter().find(|&(_, &length)| length >= bytes).map(|(&s, &l)| (s, l))?;
        self.0.remove(&start);
        if length > bytes {
            self.0.insert(start + bytes, length - bytes);
        }
        Some(start)
    }

    /// Adds a part and joins it with its neighbours.
    pub fn give(&mut self, mut start: usize, bytes: usize) {
        let mut length = rounded(bytes);
        if let Some(after) = self.0.remove(&(start + length)) {
            length += after;
        }
        if let Some((&before, &before_length)) = self.0.range(..start).next_back()
            && before + before_length == start
        {
            self.0.remove(&before);
            (start, length) = (before, before_length + length);
        }
        self.0.insert(start, length);
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        self.0.values().sum()
    }

    /// Removes all parts, as (start, bytes).
    pub fn drain(&mut self) -> impl Iterator<Item = (usize, usize)> + use<> {
        std::mem::take(&mut self.0).into_iter()
    }
}

/// A range of `total` bytes and its free parts.
#[derive(Debug)]
pub(super) struct Arena {
    total: usize,
    free: FreeParts,
    in_use: usize,
    peak: usize,
}

impl Arena {
    pub fn new(total: usize) -> Self {
        let total = total / ALIGNMENT * ALIGNMENT;
        Self { total, free: FreeParts(BTreeMap::from([(0, total)])), in_use: 0, peak: 0 }
    }

    /// Takes `bytes` bytes and returns their offset, or `None` when no free part is long enough. Parts of equal sizes,
    /// taken and freed in the same order, get the same offsets again.
    pub fn take(&mut self, bytes: usize) -> Option<usize> {
        let start = self.free.take(bytes)?;
        self.in_use += rounded(bytes);
        self.peak = self.peak.max(self.in_use);
        Some(start)
    }

    /// Gives back the part that `take` returned for as many bytes.
    pub fn give(&mut self, start: usize, bytes: usize) {
        self.in_use -= rounded(bytes);
        self.free.give(start, bytes);
    }

    /// Bytes of the whole range.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Free bytes, and the bytes of the longest free part.
    pub fn available(&self) -> (usize, usize) {
        (self.total - self.in_use, self.free.0.values().copied().max().unwrap_or(0))
    }

    /// The most bytes in use at one time.
    pub fn peak(&self) -> usize {
        self.peak
    }
}

/// Rounds bytes to the size that is taken and given.
fn rounded(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::rng::Philox;

    #[test]
    fn parts_never_overlap_and_all_comes_back() {
        let mut arena = Arena::new(1 << 20);
        let mut random = Philox::new(1, 0);
        let mut held: Vec<(usize, usize)> = vec![];
        for _ in 0..5000 {
            if random.below(5) < 3 {
                let bytes = random.below(20_000);
                if let Some(start) = arena.take(bytes) {
                    assert!(start.is_multiple_of(ALIGNMENT) && start + bytes <= 1 << 20);
                    let apart = |&(s, b): &(usize, usize)| start + bytes.max(1) <= s || s + b.max(1) <= start;
                    assert!(held.iter().all(apart));
                    held.push((start, bytes));
                }
            } else if !held.is_empty() {
                let (start, bytes) = held.swap_remove(random.below(held.len()));
                arena.give(start, bytes);
            }
        }
        assert!(arena.peak() > 0);
        held.drain(..).for_each(|(start, bytes)| arena.give(start, bytes));
        assert_eq!(arena.available(), (1 << 20, 1 << 20));
    }

    #[test]
    fn what_does_not_fit_is_refused_and_takes_nothing() {
        let mut arena = Arena::new(1000);
        assert_eq!((arena.total(), arena.take(769)), (768, None));
        assert_eq!((arena.take(1), arena.take(512), arena.take(1)), (Some(0), Some(256), None));
        arena.give(0, 1);
        assert_eq!((arena.take(256), arena.available()), (Some(0), (0, 0)));
    }
}
