//! The key/value cache in pages: appending to it, and attention over it (vLLM, arXiv 2309.06180).

use super::attention::attend;
use super::real::Real;
use crate::backend::ops::{self, Heads};

/// Copies k and v row by row.
pub(super) fn kv_append<R: Real>(op: ops::KvAppend) {
    let (heads, qkv, slots) = (op.heads, op.qkv.slice::<R>(), op.slots.slice::<i32>());
    let (k_cache, v_cache) = (op.k_cache.slice_mut::<R>(), op.v_cache.slice_mut::<R>());
    let (k, n) = (heads.nh * heads.hs, heads.nkv * heads.hs);
    for (row, &slot) in qkv.chunks_exact(heads.qkv_width()).zip(slots) {
        let at = slot as usize * n;
        k_cache[at..at + n].copy_from_slice(&row[k..k + n]);
        v_cache[at..at + n].copy_from_slice(&row[k + n..]);
    }
}

/// Computes `AttentionPaged` query by query.
pub(super) fn attention_paged<R: Real>(op: ops::AttentionPaged) {
    let ops::AttentionPaged { heads, block_size, .. } = op;
    let (block_table, lens, cu_q) = (op.block_table.slice::<i32>(), op.lens.slice::<i32>(), op.cu_q.slice::<i32>());
    let (qkv, k_cache, v_cache) = (op.qkv.slice::<R>(), op.k_cache.slice::<R>(), op.v_cache.slice::<R>());
    let o = op.o.slice_mut::<R>();
    let (Heads { nh, nkv, hs }, d) = (heads, heads.qkv_width());
    let pages = block_table.len().checked_div(lens.len()).unwrap_or(0);
    for (b, &len) in lens.iter().enumerate() {
        let table = &block_table[b * pages..(b + 1) * pages];
        let (first, end) = (cu_q[b] as usize, cu_q[b + 1] as usize);
        for i in first..end {
            let position = len as usize - (end - i);
            for h in 0..nh {
                let keys = (0..=position).map(|t| {
                    let row = table[t / block_size] as usize * block_size + t % block_size;
                    let at = (row * nkv + h / (nh / nkv)) * hs;
                    (&k_cache[at..at + hs], &v_cache[at..at + hs])
                });
                attend(&qkv[i * d + h * hs..][..hs], keys, &mut o[(i * nh + h) * hs..][..hs]);
            }
        }
    }
}
