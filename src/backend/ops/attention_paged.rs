//! The key/value cache in pages (vLLM, arXiv 2309.06180): appending to it, and attention over it.

use super::door::{Heads, Operands, Types, door, indices, indices_of, offsets};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Copies the k and v parts of qkv to rows `slots[t]` of the cache. Error: a slot outside it.
pub struct KvAppend<'a> {
    /// (T, D)
    pub qkv: &'a Tensor,
    /// Head counts, which say how the columns of qkv are split.
    pub heads: Heads,
    /// (T)
    pub slots: &'a Tensor,
    /// (blocks * block_size, NKV HS)
    pub k_cache: &'a mut Tensor,
    /// The same shape.
    pub v_cache: &'a mut Tensor,
}

impl Operands for KvAppend<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let (door, heads) = (door("kv_append", types), self.heads);
        door.heads(heads)?;
        let [t, _] = door.matrix("qkv (T, D)", self.qkv)?;
        door.input("qkv (T, D)", self.qkv, &[t, heads.qkv_width()])?;
        door.int("slots (T)", self.slots, &[t])?;
        let [rows, _] = door.matrix("k_cache", self.k_cache)?;
        door.output("k_cache (blocks block_size, NKV HS)", self.k_cache, &[rows, heads.nkv * heads.hs])?;
        door.output("v_cache (blocks block_size, NKV HS)", self.v_cache, &[rows, heads.nkv * heads.hs])
    }

    fn check_values(&self) -> Result<()> {
        indices("kv_append", "slot", self.slots, "rows", self.k_cache.rows())
    }
}

/// Attention of the q part of qkv over the cache. The queries of sequence b are cu_q[b]..cu_q[b + 1], the last of its
/// lens[b] tokens. Its token t lies in row block_table[b, t / block_size] * block_size + t % block_size.
pub struct AttentionPaged<'a> {
    /// (Q, D)
    pub qkv: &'a Tensor,
    /// Head counts, which say how the columns of qkv are split.
    pub heads: Heads,
    /// (blocks * block_size, NKV HS)
    pub k_cache: &'a Tensor,
    /// The same shape.
    pub v_cache: &'a Tensor,
    /// Rows per page.
    pub block_size: usize,
    /// (B, P)
    pub block_table: &'a Tensor,
    /// (B)
    pub lens: &'a Tensor,
    /// (B + 1), from 0 to Q.
    pub cu_q: &'a Tensor,
    /// (Q, NH HS)
    pub o: &'a mut Tensor,
}

impl Operands for AttentionPaged<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let (door, heads, block_size) = (door("attention_paged", types), self.heads, self.block_size);
        door.heads(heads)?;
        let [q, _] = door.matrix("qkv (Q, D)", self.qkv)?;
        door.input("qkv (Q, D)", self.qkv, &[q, heads.qkv_width()])?;
        let [rows, _] = door.matrix("k_cache", self.k_cache)?;
        door.input("k_cache (blocks block_size, NKV HS)", self.k_cache, &[rows, heads.nkv * heads.hs])?;
        door.input("v_cache (blocks block_size, NKV HS)", self.v_cache, &[rows, heads.nkv * heads.hs])?;
        door.require(block_size > 0 && rows.is_multiple_of(block_size), || {
            format!("block_size {block_size} does not divide the rows of k_cache, which is {:?}", self.k_cache)
        })?;
        let [b, p] = door.matrix("block_table (B, P)", self.block_table)?;
        door.int("block_table (B, P)", self.block_table, &[b, p])?;
        door.int("lens (B)", self.lens, &[b])?;
        door.int("cu_q (B + 1)", self.cu_q, &[b + 1])?;
        door.output("o (Q, NH HS)", self.o, &[q, heads.nh * heads.hs])
    }

    /// Checks that cu_q covers all queries, no sequence has more queries than tokens, and every page in use exists.
    fn check_values(&self) -> Result<()> {
        let (op, block_size, blocks) = ("attention_paged", self.block_size, self.k_cache.rows() / self.block_size);
        let cu_q = self.cu_q.slice::<i32>();
        offsets(op, "cu_q", cu_q, self.qkv.rows())?;
        let pages = self.block_table.columns();
        let tables = self.block_table.slice::<i32>().chunks_exact(pages);
        for (b, (&len, table)) in self.lens.slice::<i32>().iter().zip(tables).enumerate() {
            let queries = cu_q[b + 1] - cu_q[b];
            let used = usize::try_from(len).unwrap_or(usize::MAX).div_ceil(block_size);
            if len < queries || used > pages {
                return Err(Error::content(format!(
                    "{op}: sequence {b} has {len} tokens and {queries} queries; expected at least as many tokens as queries, and \
                     at most {pages} pages of {block_size}"
                )));
            }
            indices_of(op, "page", &table[..used], "blocks", blocks)?;
        }
        Ok(())
    }
}
