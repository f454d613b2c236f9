//! Rows gathered, added back and appended to a cache: copies are exact; sums are rounded once.

use crate::support::{check, gpu};
use crate::{simt::Order, support::Draw};
use onestep::backend::Backend;
use onestep::backend::ops::Execute as _;
use onestep::backend::ops::{self, Heads};

/// (T, C, M): widths for vectors and for single elements; rows named by indices of one warp, of two and of two rounds; two slabs of columns.
const SHAPES: [(usize, usize, usize); 6] =
    [(5, 7, 300), (40, 33, 9), (9, 192, 30), (3, 264, 150), (3, 1224, 10), (12, 2056, 7)];

#[test]
fn rows_are_gathered() {
    for (t, c, m) in SHAPES {
        check("gather_rows", 0, |d| {
            let (x, rows, mut y) = (d.normal(&[t, c]), d.below(m, t), d.unwritten(&[m, c]));
            ops::GatherRows { x: &x, rows: &rows, y: &mut y }.run(d.backend).unwrap();
            vec![y]
        });
    }
}

#[test]
fn rows_are_added_back_also_when_named_more_than_once() {
    for (t, c, m) in SHAPES {
        check("scatter_add_rows", 0, |d| {
            let (dy, rows, mut dx) = (d.normal(&[m, c]), d.below(m, t), d.normal(&[t, c]));
            ops::ScatterAddRows { dy: &dy, rows: &rows, dx: &mut dx }.run(d.backend).unwrap();
            vec![dx]
        });
    }
}

#[test]
fn keys_and_values_go_to_their_slots() {
    for (nh, nkv, hs) in [(4, 2, 32), (3, 1, 6), (1, 1, 8), (2, 2, 640)] {
        let heads = Heads { nh, nkv, hs };
        check("kv_append", 0, |d| {
            let (qkv, slots) = (d.normal(&[5, heads.qkv_width()]), d.ints(&[5], &[3, 11, 0, 7, 8]));
            let (mut k, mut v) = (d.normal(&[12, nkv * hs]), d.normal(&[12, nkv * hs]));
            ops::KvAppend { qkv: &qkv, heads, slots: &slots, k_cache: &mut k, v_cache: &mut v }.run(d.backend).unwrap();
            vec![k, v]
        });
    }
}

/// What the host should have refused does no harm: NaN where it is read, nothing where it would be written.
#[test]
fn indices_outside_are_nan_or_left_out() {
    let be = gpu(Order::Forward, 0, true);
    let mut d = Draw::new(&be, 7);
    let (x, rows) = (d.normal(&[3, 8]), d.ints(&[4], &[2, 3, -1, 0]));
    let mut y = d.normal(&[4, 8]);
    ops::GatherRows { x: &x, rows: &rows, y: &mut y }.run(&be).unwrap();
    let (x, y) = (be.read(&x).unwrap(), be.read(&y).unwrap());
    assert_eq!((&y[..8], &y[24..]), (&x[16..], &x[..8]));
    assert!(y[8..24].iter().all(|y| y.is_nan()));

    let (dy, mut dx) = (d.normal(&[4, 8]), d.put(&[3, 8], &[0.0; 24], be.activation()));
    ops::ScatterAddRows { dy: &dy, rows: &rows, dx: &mut dx }.run(&be).unwrap();
    let (dy, dx) = (be.read(&dy).unwrap(), be.read(&dx).unwrap());
    assert_eq!(dx, [&dy[24..], &[0.0; 8], &dy[..8]].concat());

    let heads = Heads { nh: 1, nkv: 1, hs: 8 };
    let (qkv, mut k, mut v) = (d.normal(&[4, 24]), d.unwritten(&[3, 8]), d.unwritten(&[3, 8]));
    ops::KvAppend { qkv: &qkv, heads, slots: &rows, k_cache: &mut k, v_cache: &mut v }.run(&be).unwrap();
    let (qkv, k, v) = (be.read(&qkv).unwrap(), be.read(&k).unwrap(), be.read(&v).unwrap());
    assert_eq!((&k[16..], &v[..8]), (&qkv[8..16], &qkv[72 + 16..]));
    assert!(k[8..16].iter().chain(&v[8..16]).all(|x| x.is_nan()));
}
