//! Attention over packed segments (forward) and over a paged cache. One function computes a query's output from its
//! list of keys, so packed and paged attention of a row have the same bits.
//!
//! Keys are taken in blocks of 64, counted from the first key of the list, so a row's result depends only on its keys.

use super::gemm::{LANES, Left, multiply, transpose};
use super::simd::{self, KEYS, Seen};
use super::tasks::run;
use crate::backend::ops::{self, Heads};
use std::cell::RefCell;

/// Query rows per task.
pub(super) const ROWS: usize = 64;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs `body` with scratch buffers of these lengths and undefined contents.
pub(super) fn with_scratch<const N: usize>(lengths: [usize; N], body: impl FnOnce([&mut [f32]; N])) {
    SCRATCH.with_borrow_mut(|scratch| {
        let total = lengths.iter().sum();
        if scratch.len() < total {
            scratch.resize(total, 0.0);
        }
        let mut rest = scratch.as_mut_slice();
        body(lengths.map(|length| {
            let (buffer, tail) = std::mem::take(&mut rest).split_at_mut(length);
            rest = tail;
            buffer
        }));
    });
}

/// Queries of one key/value head: query row i of `group` heads sees the first `first_seen + i` keys.
pub(super) struct Queries<'a> {
    /// Rows of qkv from the first query on.
    pub qkv: &'a [f32],
    pub rows: usize,
    pub heads: Heads,
    pub kv: usize,
    pub first_seen: usize,
}

impl Queries<'_> {
    fn group(&self) -> usize {
        self.heads.nh / self.heads.nkv
    }

    /// Copies the queries times 1 / sqrt(HS) into q as (rows * group, padded HS).
    pub fn gather(&self, width: usize, q: &mut [f32]) {
        let Heads { hs, .. } = self.heads;
        let scale = (hs as f32).sqrt().recip();
        for (row, q) in self.qkv.chunks(self.heads.qkv_width()).zip(q.chunks_exact_mut(self.group() * width)) {
            let heads = row[self.kv * self.group() * hs..].chunks_exact(hs);
            for (head, q) in heads.zip(q.chunks_exact_mut(width)) {
                q[..hs].copy_from_slice(head);
                simd::scale(&mut q[..hs], scale);
                q[hs..].fill(0.0);
            }
        }
    }

    /// Attends to `key(j)` and `value(j)`; calls `out(row, head of the group, o, lse)` with each result.
    fn attend<'k>(
        &self,
        key: impl Fn(usize) -> &'k [f32],
        value: impl Fn(usize) -> &'k [f32],
        mut out: impl FnMut(usize, usize, &[f32], f32),
    ) {
        let (hs, group) = (self.heads.hs, self.group());
        let (m, width) = (self.rows * group, hs.next_multiple_of(LANES));
        let lengths = [m * width, m * width, m * KEYS, hs * KEYS, KEYS * width, m, m];
        with_scratch(lengths, |[q, o, scores, keys, values, tops, sums]| {
            self.gather(width, q);
            o.fill(0.0);
            tops.fill(f32::NEG_INFINITY);
            sums.fill(0.0);
            for start in (0..self.first_seen + self.rows - 1).step_by(KEYS) {
                let count = KEYS.min(self.first_seen + self.rows - 1 - start);
                // Rows before `first` see none of these keys.
                let first = (start + 1).saturating_sub(self.first_seen) * group;
                let mut rows: [&[f32]; KEYS] = [&[]; KEYS];
                for (j, line) in values.chunks_exact_mut(width).take(count).enumerate() {
                    rows[j] = key(start + j);
                    line[..hs].copy_from_slice(value(start + j));
                    line[hs..].fill(0.0);
                }
                transpose(&rows[..count], hs, keys, KEYS);
                let scores = &mut scores[first * KEYS..];
                scores.fill(0.0);
                multiply(m - first, count, hs, Left::rows(&q[first * width..], width), keys, KEYS, scores, KEYS);
                let seen = Seen { first: self.first_seen + first / group - start, group, count };
                let o = &mut o[first * width..];
                simd::softmax_rows(scores, &seen, &mut tops[first..], &mut sums[first..], o, width);
                multiply(m - first, hs, count, Left::rows(scores, KEYS), values, width, o, width);
            }
            for i in 0..m {
                let o = &mut o[i * width..][..hs];
                simd::scale(o, sums[i].recip());
                out(i / group, i % group, o, tops[i] + sums[i].ln());
            }
        });
    }
}

/// Returns the segment that contains row t.
fn segment_of(cu_seqlens: &[i32], t: usize) -> usize {
    cu_seqlens.partition_point(|&start| start as usize <= t) - 1
}

/// Returns the rows of a segment.
pub(super) fn rows_of(cu_seqlens: &[i32], s: usize) -> std::ops::Range<usize> {
    cu_seqlens[s] as usize..cu_seqlens[s + 1] as usize
}

pub(super) fn attention(op: ops::Attention) {
    let ops::Attention { heads, segments, .. } = op;
    let (cu_seqlens, parent) = (segments.cu_seqlens.slice::<i32>(), segments.parent.slice::<i32>());
    let (qkv, o, lse) = (op.qkv.slice::<f32>(), op.o.slice_mut::<f32>(), op.lse.slice_mut::<f32>());
    let (Heads { nh, nkv, hs }, d, group) = (heads, heads.qkv_width(), heads.nh / heads.nkv);
    let total = qkv.len() / d;
    let mut lse_rows = vec![0.0f32; total * nh];
    let chunks = o.chunks_mut(ROWS * nh * hs).zip(lse_rows.chunks_mut(ROWS * nh));
    run(chunks.enumerate().collect(), |(chunk, (o, lse))| {
        let (begin, end) = (chunk * ROWS, total.min((chunk + 1) * ROWS));
        let mut t = begin;
        while t < end {
            let s = segment_of(cu_seqlens, t);
            let own = rows_of(cu_seqlens, s);
            let prefix = usize::try_from(parent[s]).map_or(0..0, |p| rows_of(cu_seqlens, p));
            let rows = end.min(own.end) - t;
            let row_of = |j: usize| if j < prefix.len() { prefix.start + j } else { own.start + j - prefix.len() };
            for kv in 0..nkv {
                let first_seen = prefix.len() + t - own.start + 1;
                let queries = Queries { qkv: &qkv[t * d..(t + rows) * d], rows, heads, kv, first_seen };
                let key = |j| &qkv[row_of(j) * d + (nh + kv) * hs..][..hs];
                let value = |j| &qkv[row_of(j) * d + (nh + nkv + kv) * hs..][..hs];
                queries.attend(key, value, |row, g, out, sum| {
                    let at = (t - begin + row) * nh + kv * group + g;
                    o[at * hs..][..hs].copy_from_slice(out);
                    lse[at] = sum;
                });
            }
            t += rows;
        }
    });
    for (t, row) in lse_rows.chunks_exact(nh).enumerate() {
        row.iter().enumerate().for_each(|(h, &value)| lse[h * total + t] = value);
    }
}

pub(super) fn attention_paged(op: ops::AttentionPaged) {
    let ops::AttentionPaged { heads, block_size, .. } = op;
    let (qkv, k_cache, v_cache) = (op.qkv.slice::<f32>(), op.k_cache.slice::<f32>(), op.v_cache.slice::<f32>());
    let (lens, cu_q, mut o) = (op.lens.slice::<i32>(), op.cu_q.slice::<i32>(), op.o.slice_mut::<f32>());
    let (block_table, pages) = (op.block_table.slice::<i32>(), op.block_table.columns());
    let (Heads { nh, nkv, hs }, d, group) = (heads, heads.qkv_width(), heads.nh / heads.nkv);
    // The heads of a single query are consecutive in its output, so each key/value head is a task of its own; several
    // rows stay together.
    let mut tasks = Vec::with_capacity(lens.len() * nkv);
    for (b, &len) in lens.iter().enumerate() {
        let own = rows_of(cu_q, b);
        for t in own.clone().step_by(ROWS) {
            let rows = ROWS.min(own.end - t);
            let seen = len as usize - (own.end - t) + 1;
            let (mut out, rest) = std::mem::take(&mut o).split_at_mut(rows * nh * hs);
            o = rest;
            if rows > 1 {
                tasks.push((b, t, rows, seen, 0..nkv, out));
                continue;
            }
            for kv in 0..nkv {
                let (head, rest) = out.split_at_mut(group * hs);
                out = rest;
                tasks.push((b, t, rows, seen, kv..kv + 1, head));
            }
        }
    }
    run(tasks, |(b, t, rows, first_seen, kvs, o)| {
        let table = &block_table[b * pages..(b + 1) * pages];
        let row_of = |j: usize| table[j / block_size] as usize * block_size + j % block_size;
        let (first, width) = (kvs.start, kvs.len() * group);
        for kv in kvs {
            let queries = Queries { qkv: &qkv[t * d..(t + rows) * d], rows, heads, kv, first_seen };
            let key = |j| &k_cache[(row_of(j) * nkv + kv) * hs..][..hs];
            let value = |j| &v_cache[(row_of(j) * nkv + kv) * hs..][..hs];
            queries.attend(key, value, |row, g, out, _| {
                o[(row * width + (kv - first) * group + g) * hs..][..hs].copy_from_slice(out);
            });
        }
    });
}
