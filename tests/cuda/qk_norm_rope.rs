//! Per-head norm and rotary embedding: head sizes for vectors and for single elements, with and without a norm.

use crate::support::{Draw, check};
use onestep::backend::ops::{self, Heads, QkNorm};
use onestep::tensor::{DType, Tensor};

const POSITIONS: usize = 50;
/// (nh, nkv, hs): vectors with 1 to 8 lanes a head and a last round that is not full, then single elements.
const HEADS: [(usize, usize, usize); 7] =
    [(2, 1, 16), (4, 2, 32), (3, 1, 64), (6, 3, 128), (2, 2, 6), (2, 1, 48), (1, 1, 200)];

/// Every head size without a norm and with one, whose type alternates.
fn every(run: impl Fn(Heads, Option<DType>)) {
    for (i, (nh, nkv, hs)) in HEADS.into_iter().enumerate() {
        for norm in [None, Some([DType::BF16, DType::F32][i % 2])] {
            run(Heads { nh, nkv, hs }, norm);
        }
    }
}

fn table(d: &mut Draw, hs: usize) -> Tensor {
    let angles = d.values(POSITIONS * hs / 2, 2.0);
    let values: Vec<f32> =
        angles.chunks(hs / 2).flat_map(|row| row.iter().map(|x| x.cos()).chain(row.iter().map(|x| x.sin()))).collect();
    d.put(&[POSITIONS, hs], &values, DType::F32)
}

fn weights(d: &mut Draw, hs: usize, norm: Option<DType>) -> Option<(Tensor, Tensor)> {
    let (q, k) = (d.values(hs, 1.0), d.values(hs, 1.0));
    norm.map(|dtype| (d.put(&[hs], &q, dtype), d.put(&[hs], &k, dtype)))
}

fn qk_norm(weights: &Option<(Tensor, Tensor)>) -> Option<QkNorm<'_>> {
    weights.as_ref().map(|(q, k)| QkNorm { q, k, eps: 1e-6 })
}

#[test]
fn forward_leaves_values_and_saves_what_was() {
    every(|heads, norm| {
        check(&format!("qk_norm_rope {heads:?} {norm:?}"), 0, |d| {
            let t = 3;
            let (mut qkv, positions, table) =
                (d.normal(&[t, heads.qkv_width()]), d.below(t, POSITIONS), table(d, heads.hs));
            let (w, mut raw) = (weights(d, heads.hs, norm), d.unwritten(&[t, (heads.nh + heads.nkv) * heads.hs]));
            let saved = norm.is_some().then_some(&mut raw);
            ops::QkNormRope {
                qkv: &mut qkv,
                heads,
                norm: qk_norm(&w),
                positions: &positions,
                table: &table,
                raw: saved,
            }
            .run(d.backend)
            .unwrap();
            if norm.is_some() { vec![qkv, raw] } else { vec![qkv] }
        });
    });
}

fn backward(heads: Heads, norm: Option<DType>, t: usize, wants_weights: bool) {
    check(&format!("qk_norm_rope_backward {heads:?} {norm:?}"), 0, |d| {
        let (mut dqkv, positions, table) =
            (d.normal(&[t, heads.qkv_width()]), d.below(t, POSITIONS), table(d, heads.hs));
        let (w, raw) = (weights(d, heads.hs, norm), d.normal(&[t, (heads.nh + heads.nkv) * heads.hs]));
        let (mut dq, mut dk) = (d.accumulated(&[heads.hs]), d.accumulated(&[heads.hs]));
        let wanted = wants_weights.then_some((&mut dq, &mut dk));
        let saved = norm.is_some().then_some(&raw);
        ops::QkNormRopeBackward {
            dqkv: &mut dqkv,
            heads,
            norm: qk_norm(&w),
            positions: &positions,
            table: &table,
            raw: saved,
            dnorm: wanted,
        }
        .run(d.backend)
        .unwrap();
        vec![dqkv, dq, dk]
    });
}

#[test]
fn backward_is_in_place_and_accumulates_the_weights() {
    every(|heads, norm| backward(heads, norm, 3, norm.is_some()));
}

#[test]
fn backward_without_gradients_of_the_weights() {
    for heads in [Heads { nh: 4, nkv: 2, hs: 32 }, Heads { nh: 2, nkv: 2, hs: 6 }] {
        backward(heads, Some(DType::F32), 5, false);
    }
}

/// More tokens than blocks that add up the weights' gradients.
#[test]
fn backward_of_many_tokens() {
    for heads in [Heads { nh: 1, nkv: 1, hs: 16 }, Heads { nh: 1, nkv: 1, hs: 6 }] {
        backward(heads, Some(DType::F32), 300, true);
    }
}
