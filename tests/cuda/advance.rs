//! From one decode step to the next.

use crate::support::{Draw, ORDERS, gpu};
use onestep::backend::Backend;
use onestep::backend::ops::{self};
use onestep::backend::oracle::Oracle;

#[test]
fn advance() {
    let (rows, pages, block_size) = (131, 3, 4);
    let step = |be: &dyn Backend| {
        let draw = Draw::new(be, 0);
        let table: Vec<i32> = (0..(rows * pages) as i32).rev().collect();
        let start: Vec<i32> = (0..rows as i32).map(|b| b % 9).collect();
        let table = draw.ints(&[rows, pages], &table);
        let [mut positions, mut lens, mut counter] =
            [0, 1, 5].map(|more| draw.ints(&[rows], &start.iter().map(|s| s + more).collect::<Vec<_>>()));
        let mut slots = draw.ints(&[rows], &vec![-1; rows]);
        for _ in 0..3 {
            ops::Advance {
                block_size,
                block_table: &table,
                positions: &mut positions,
                lens: &mut lens,
                slots: &mut slots,
                counter: &mut counter,
            }
            .run(be)
            .unwrap();
        }
        [positions, lens, slots, counter].map(|t| be.read_i32(&t).unwrap())
    };
    let expected = step(&Oracle::f32());
    // Sequence 10 had two tokens, now five: the last one is token 4, in its second block, 131 * 3 - 1 - 31.
    assert_eq!((expected[1][10], expected[2][10]), (5, (131 * 3 - 1 - 31) * 4));
    for (order, seed) in ORDERS {
        assert_eq!(step(&gpu(order, seed, true)), expected);
    }
}
