//! Causal softmax attention inside packed segments, query heads sharing key/value heads (GQA, arXiv 2305.13245).

use super::real::{Real, dot};
use crate::backend::ops::{self, Heads};
use std::ops::Range;

/// Computes softmax(q k^T / sqrt(HS)) v for one query over `keys` (pairs of a key and a value, each HS). Writes o (HS)
/// and returns the log of the sum of exponentials.
pub fn attend<'a, R: Real>(q: &[R], keys: impl Iterator<Item = (&'a [R], &'a [R])> + Clone, o: &mut [R]) -> R {
    let scale = R::of(q.len() as f64).sqrt().recip();
    let scores = keys.clone().map(|(k, _)| dot(q, k) * scale);
    let max = scores.clone().fold(R::neg_infinity(), R::max);
    let sum = scores.clone().fold(R::zero(), |sum, s| sum + (s - max).exp());
    o.fill(R::zero());
    for (score, (_, v)) in scores.zip(keys) {
        let p = (score - max).exp() / sum;
        for (o, &v) in o.iter_mut().zip(v) {
            *o += p * v;
        }
    }
    max + sum.ln()
}

/// Returns the rows that row t of segment s sees: the whole parent (an empty range without one), then its own segment
/// up to and including itself.
pub fn visible(cu_seqlens: &[i32], parent: &[i32], s: usize, t: usize) -> (Range<usize>, Range<usize>) {
    let prefix = usize::try_from(parent[s]).map_or(0..0, |p| cu_seqlens[p] as usize..cu_seqlens[p + 1] as usize);
    (prefix, cu_seqlens[s] as usize..t + 1)
}

/// Returns the columns of a row of qkv at which query head h and the key and value it uses begin.
fn columns(heads: Heads, h: usize) -> (usize, usize, usize) {
    let Heads { nh, nkv, hs } = heads;
    let shared = h / (nh / nkv);
    (h * hs, (nh + shared) * hs, (nh + nkv + shared) * hs)
}

/// Computes `Attention` query by query.
pub(super) fn attention<R: Real>(op: ops::Attention) {
    let ops::Attention { heads, segments, .. } = op;
    let (cu_seqlens, parent) = (segments.cu_seqlens.slice(), segments.parent.slice());
    let (qkv, o, lse) = (op.qkv.slice::<R>(), op.o.slice_mut::<R>(), op.lse.slice_mut::<R>());
    let (Heads { nh, hs, .. }, d) = (heads, heads.qkv_width());
    let rows = lse.len() / nh;
    for h in 0..nh {
        let (q, k, v) = columns(heads, h);
        for s in 0..parent.len() {
            for t in cu_seqlens[s] as usize..cu_seqlens[s + 1] as usize {
                let (prefix, own) = visible(cu_seqlens, parent, s, t);
                let keys = prefix.chain(own).map(|j| (&qkv[j * d + k..][..hs], &qkv[j * d + v..][..hs]));
                lse[h * rows + t] = attend(&qkv[t * d + q..][..hs], keys, &mut o[(t * nh + h) * hs..][..hs]);
            }
        }
    }
}

/// Computes dq = ds k, dk = ds q and dv = p dout, with p = exp(score - lse), D = dout . o and ds = p (dout . v - D) /
/// sqrt(HS) (FlashAttention, arXiv 2205.14135, appendix B.2).
pub(super) fn attention_backward<R: Real>(op: ops::AttentionBackward) {
    let ops::AttentionBackward { heads, segments, .. } = op;
    let (cu_seqlens, parent) = (segments.cu_seqlens.slice(), segments.parent.slice());
    let (qkv, o, lse, dout) = (op.qkv.slice::<R>(), op.o.slice::<R>(), op.lse.slice::<R>(), op.dout.slice::<R>());
    let dqkv = op.dqkv.slice_mut::<R>();
    let (Heads { nh, hs, .. }, d) = (heads, heads.qkv_width());
    let rows = lse.len() / nh;
    let scale = R::of(hs as f64).sqrt().recip();
    dqkv.fill(R::zero());
    for h in 0..nh {
        let (q, k, v) = columns(heads, h);
        for s in 0..parent.len() {
            for t in cu_seqlens[s] as usize..cu_seqlens[s + 1] as usize {
                let (q, at) = (t * d + q, (t * nh + h) * hs);
                let (o, dout) = (&o[at..][..hs], &dout[at..][..hs]);
                let delta = dot(dout, o);
                let (prefix, own) = visible(cu_seqlens, parent, s, t);
                for j in prefix.chain(own) {
                    let (k, v) = (j * d + k, j * d + v);
                    let p = (dot(&qkv[q..][..hs], &qkv[k..][..hs]) * scale - lse[h * rows + t]).exp();
                    let ds = p * (dot(dout, &qkv[v..][..hs]) - delta) * scale;
                    for i in 0..hs {
                        dqkv[q + i] += ds * qkv[k + i];
                        dqkv[k + i] += ds * qkv[q + i];
                        dqkv[v + i] += p * dout[i];
                    }
                }
            }
        }
    }
}
