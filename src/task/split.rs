//! Divides the rows of a task's labels into those that give rewards and those that are reported. The division depends
//! on the task's name only and never changes: what was tuned on one half never touches the other.

/// Returns the rows of the reward split (the larger half of an odd number) and of the report split, each ascending.
///
/// Rows are ordered by a hash of the task's name and their number: `key` folds SplitMix64 (Steele et al., OOPSLA 2014)
/// over the bytes of the name, and the half of the rows with smaller `mix(key ^ row)` gives rewards.
/// data/tasks/measure.py has the same lines; a test compares them.
pub fn split_rows(task: &str, rows: usize) -> (Vec<usize>, Vec<usize>) {
    let key = task.bytes().fold(0, |key, byte| mix(key ^ u64::from(byte)));
    let mut order: Vec<usize> = (0..rows).collect();
    // One step of SplitMix64 is a bijection, so there are no ties.
    order.sort_by_key(|&row| mix(key ^ row as u64));
    let mut report = order.split_off(rows.div_ceil(2));
    order.sort_unstable();
    report.sort_unstable();
    (order, report)
}

/// One step of SplitMix64 from state `x`.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_known_answer() {
        // The first output of the generator seeded with 1234567, as its reference implementation prints it.
        assert_eq!(mix(1_234_567), 6_457_827_717_110_365_317);
    }

    #[test]
    fn every_row_is_in_one_half_and_neighbours_are_parted() {
        for rows in [2, 3, 88, 601] {
            let (reward, report) = split_rows("wine", rows);
            assert_eq!((reward.len(), report.len()), (rows.div_ceil(2), rows / 2));
            let mut all = [reward.as_slice(), &report].concat();
            all.sort_unstable();
            assert_eq!(all, (0..rows).collect::<Vec<_>>());
        }
        let (reward, report) = split_rows("wine", 600);
        assert_ne!(reward, split_rows("digits", 600).0);
        // A random half parts 300 of 599 pairs of neighbours on average, with a standard deviation of 12; the bounds
        // are six of them away.
        let parted = reward.iter().filter(|&&row| report.binary_search(&(row + 1)).is_ok()).count() * 2;
        assert!((228..372).contains(&parted), "{parted} of 599 neighbours are parted");
    }
}
