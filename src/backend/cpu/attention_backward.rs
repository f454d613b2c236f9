//! The backward of packed attention. A task owns one key/value head of one root segment and its children, so every
//! gradient has one owner and a fixed order of additions.

use super::attention::{Queries, ROWS, rows_of, with_scratch};
use super::gemm::{LANES, Left, multiply, transpose};
use super::simd::{self, KEYS, Seen};
use super::tasks::{chunk_rows, run};
use crate::backend::ops::{self, Heads};
use rayon::prelude::*;

/// Inputs of the backward: qkv (T, D), o and dout (T, NH HS), lse (NH, T), and the segments.
struct Forward<'a> {
    qkv: &'a [f32],
    o: &'a [f32],
    lse: &'a [f32],
    dout: &'a [f32],
    heads: Heads,
    cu_seqlens: &'a [i32],
    parent: &'a [i32],
}

/// A root segment with its children. Rows of the tree are numbered through its members in this order.
struct Tree {
    members: Vec<usize>,
    rows: usize,
}

/// Computes the gradients by the equations of FlashAttention (arXiv 2205.14135, appendix B.2).
pub(super) fn attention_backward(op: ops::AttentionBackward) {
    let forward = Forward {
        qkv: op.qkv.slice(),
        o: op.o.slice(),
        lse: op.lse.slice(),
        dout: op.dout.slice(),
        heads: op.heads,
        cu_seqlens: op.segments.cu_seqlens.slice(),
        parent: op.segments.parent.slice(),
    };
    let dqkv = op.dqkv.slice_mut::<f32>();
    let Heads { nh, nkv, hs } = forward.heads;
    let (d, group) = (forward.heads.qkv_width(), nh / nkv);
    let roots = (0..forward.parent.len()).filter(|&s| forward.parent[s] == -1);
    let mut tree_of = vec![usize::MAX; forward.parent.len()];
    let mut trees: Vec<Tree> = Vec::new();
    for s in roots {
        tree_of[s] = trees.len();
        trees.push(Tree { members: vec![s], rows: 0 });
    }
    for (s, &p) in forward.parent.iter().enumerate() {
        if let Ok(p) = usize::try_from(p) {
            tree_of[s] = tree_of[p];
            trees[tree_of[p]].members.push(s);
        }
    }
    // The place of each row of the batch: its tree, and its row there.
    let mut place = vec![(0, 0); dqkv.len() / d];
    for (i, tree) in trees.iter_mut().enumerate() {
        for &s in &tree.members {
            for t in rows_of(forward.cu_seqlens, s) {
                place[t] = (i, tree.rows);
                tree.rows += 1;
            }
        }
    }
    let gradients: Vec<Vec<f32>> =
        (0..trees.len() * nkv).into_par_iter().map(|i| forward.tree(&trees[i / nkv], i % nkv)).collect();
    let rows = chunk_rows(d);
    run(dqkv.chunks_mut(rows * d).enumerate().collect(), |(chunk, out)| {
        for (i, out) in out.chunks_exact_mut(d).enumerate() {
            let (tree, row) = place[chunk * rows + i];
            for kv in 0..nkv {
                let from = &gradients[tree * nkv + kv][row * (group + 2) * hs..][..(group + 2) * hs];
                let (dq, dk_dv) = from.split_at(group * hs);
                out[kv * group * hs..][..group * hs].copy_from_slice(dq);
                out[(nh + kv) * hs..][..hs].copy_from_slice(&dk_dv[..hs]);
                out[(nh + nkv + kv) * hs..][..hs].copy_from_slice(&dk_dv[hs..]);
            }
        }
    });
}

impl Forward<'_> {
    /// Returns the gradients of one key/value head, (rows of the tree, (group + 2) HS): dq of the group's heads, dk,
    /// dv.
    fn tree(&self, tree: &Tree, kv: usize) -> Vec<f32> {
        let Heads { nh, nkv, hs } = self.heads;
        let (d, group, width) = (self.heads.qkv_width(), nh / nkv, hs.next_multiple_of(LANES));
        let total = self.qkv.len() / d;
        let out_width = (group + 2) * hs;
        let mut out = vec![0.0; tree.rows * out_width];
        let (mut dk, mut dv) = (vec![0.0; tree.rows * width], vec![0.0; tree.rows * width]);
        let root = rows_of(self.cu_seqlens, tree.members[0]);
        let mut base = 0;
        for &s in &tree.members {
            let own = rows_of(self.cu_seqlens, s);
            let prefix = if self.parent[s] == -1 { 0..0 } else { root.clone() };
            for t in own.clone().step_by(ROWS) {
                let rows = ROWS.min(own.end - t);
                let m = rows * group;
                // Runs of keys: first row in the batch, first row in the tree, length, and index of the first key in
                // the list.
                let seen = t - own.start + rows;
                let runs = [(prefix.start, 0, prefix.len(), 0), (own.start, base, seen, prefix.len())];
                let first_seen = prefix.len() + t - own.start + 1;
                let queries =
                    Queries { qkv: &self.qkv[t * d..(t + rows) * d], rows, heads: self.heads, kv, first_seen };
                let lengths =
                    [m * width, m * width, m * width, m, m, m * KEYS, m * KEYS, hs * KEYS, hs * KEYS, KEYS * width];
                with_scratch(lengths, |[q, dq, dout, delta, lse, p, ds, keys, values, key_rows]| {
                    queries.gather(width, q);
                    dq.fill(0.0);
                    for i in 0..m {
                        let at = ((t + i / group) * nh + kv * group + i % group) * hs;
                        let line = &mut dout[i * width..(i + 1) * width];
                        line[..hs].copy_from_slice(&self.dout[at..at + hs]);
                        line[hs..].fill(0.0);
                        lse[i] = self.lse[(kv * group + i % group) * total + t + i / group];
                        delta[i] = simd::dot(&self.dout[at..at + hs], &self.o[at..at + hs]);
                    }
                    for (from, to, length, index) in runs {
                        for start in (0..length).step_by(KEYS) {
                            let count = KEYS.min(length - start);
                            // Rows before `first` see none of these keys.
                            let first = (index + start + 1).saturating_sub(first_seen) * group;
                            let left = m - first;
                            let at = |j: usize, head: usize| &self.qkv[(from + start + j) * d + head * hs..][..hs];
                            let mut lines: [&[f32]; KEYS] = [&[]; KEYS];
                            (0..count).for_each(|j| lines[j] = at(j, nh + kv));
                            transpose(&lines[..count], hs, keys, KEYS);
                            for (key, line) in key_rows.chunks_exact_mut(width).zip(&lines[..count]) {
                                key[..hs].copy_from_slice(line);
                                key[hs..].fill(0.0);
                            }
                            (0..count).for_each(|j| lines[j] = at(j, nh + nkv + kv));
                            transpose(&lines[..count], hs, values, KEYS);
                            let (q, dout) = (&q[first * width..], &dout[first * width..]);
                            let (p, ds) = (&mut p[..left * KEYS], &mut ds[..left * KEYS]);
                            p.fill(0.0);
                            ds.fill(0.0);
                            multiply(left, count, hs, Left::rows(q, width), keys, KEYS, p, KEYS);
                            multiply(left, count, hs, Left::rows(dout, width), values, KEYS, ds, KEYS);
                            let seen = Seen { first: first_seen + first / group - index - start, group, count };
                            simd::softmax_gradient_rows(p, ds, &seen, &lse[first..], &delta[first..]);
                            let place = (to + start) * width;
                            multiply(count, hs, left, Left::columns(p, KEYS), dout, width, &mut dv[place..], width);
                            multiply(count, hs, left, Left::columns(ds, KEYS), q, width, &mut dk[place..], width);
                            let dq = &mut dq[first * width..];
                            multiply(left, hs, count, Left::rows(ds, KEYS), key_rows, width, dq, width);
                        }
                    }
                    let scale = (hs as f32).sqrt().recip();
                    for i in 0..m {
                        let row = base + t - own.start + i / group;
                        let line = &mut out[row * out_width + i % group * hs..][..hs];
                        line.copy_from_slice(&dq[i * width..][..hs]);
                        simd::scale(line, scale);
                    }
                });
            }
            base += own.len();
        }
        for (row, line) in out.chunks_exact_mut(out_width).enumerate() {
            line[group * hs..][..hs].copy_from_slice(&dk[row * width..][..hs]);
            line[(group + 1) * hs..].copy_from_slice(&dv[row * width..][..hs]);
        }
        out
    }
}
