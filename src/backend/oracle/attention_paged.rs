//! The key/value cache in pages: appending to it, and attention over it (vLLM, arXiv 2309.06180).

use super::Real;
use super::attention::attend;
use crate::backend::Heads;

/// Copies the k and v parts of qkv (T, D) to rows slots[t] of the caches (rows, NKV HS). Slots are in range.
pub fn kv_append<R: Real>(qkv: &[R], heads: Heads, slots: &[i32], k_cache: &mut [R], v_cache: &mut [R]) {
    let (k, n) = (heads.nh * heads.hs, heads.nkv * heads.hs);
    for (row, &slot) in qkv.chunks_exact(heads.qkv_width()).zip(slots) {
        let at = slot as usize * n;
        k_cache[at..at + n].copy_from_slice(&row[k..k + n]);
        v_cache[at..at + n].copy_from_slice(&row[k + n..]);
    }
}

/// The q part of qkv (Q, D) over the caches (blocks * block_size, NKV HS) -> o (Q, NH HS). block_table (B, P), lens (B),
/// cu_q (B + 1) hold valid values; the queries of a sequence are its last tokens.
#[allow(clippy::too_many_arguments)]
pub fn attention_paged<R: Real>(
    qkv: &[R],
    heads: Heads,
    k_cache: &[R],
    v_cache: &[R],
    block_size: usize,
    block_table: &[i32],
    lens: &[i32],
    cu_q: &[i32],
    o: &mut [R],
) {
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
