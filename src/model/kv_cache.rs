//! Keys and values of generated sequences in pages (vLLM, arXiv 2309.06180): the tensors, the owners of the blocks, and
//! the tensors that tell a forward pass where to write and look. Knows no sampling and no schedule.

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::indices::{index_tensor, narrow};
use crate::tensor::Tensor;
use std::ops::Range;

/// Keys and values of every layer, each (blocks * block_size, NKV HS) in the activation type.
pub struct KvCache {
    /// Keys by layer.
    pub k: Vec<Tensor>,
    /// Values by layer.
    pub v: Vec<Tensor>,
    /// Tokens per block.
    pub block_size: usize,
}

impl KvCache {
    /// Makes room for `blocks` blocks of `block_size` tokens.
    pub fn new(be: &dyn Backend, config: &ModelConfig, blocks: usize, block_size: usize) -> Result<Self> {
        let shape = [blocks * block_size, config.heads.nkv * config.heads.hs];
        let layers = || (0..config.layers).map(|_| be.alloc(&shape, be.activation())).collect::<Result<Vec<_>>>();
        Ok(Self { k: layers()?, v: layers()?, block_size })
    }

    /// The bytes of all layers.
    pub fn bytes(&self) -> usize {
        self.k.iter().chain(&self.v).map(|layer| layer.len() * layer.dtype().size()).sum()
    }
}

/// The blocks of one sequence and its length in tokens. Only its `BlockManager` makes, grows and frees it.
#[derive(Debug, Default)]
pub struct Sequence {
    blocks: Vec<usize>,
    len: usize,
    block_size: usize,
}

impl Sequence {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when it has no tokens.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The blocks that hold its tokens, in order.
    pub fn blocks(&self) -> &[usize] {
        &self.blocks
    }

    /// The cache row of token `t`, which must be below its length.
    pub fn slot(&self, t: usize) -> usize {
        self.blocks[t / self.block_size] * self.block_size + t % self.block_size
    }
}

/// Keeps track of which sequence owns which block: a free list and reference counts. A shared block is full and never
/// written again.
#[derive(Debug)]
pub struct BlockManager {
    block_size: usize,
    free: Vec<usize>,
    references: Vec<u32>,
}

impl BlockManager {
    /// Makes a manager of `blocks` free blocks of `block_size` tokens.
    pub fn new(blocks: usize, block_size: usize) -> Self {
        Self { block_size, free: (0..blocks).rev().collect(), references: vec![0; blocks] }
    }

    /// Number of all blocks, owned or not.
    pub fn total(&self) -> usize {
        self.references.len()
    }

    /// Number of blocks that nobody owns.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Number of blocks that `tokens` tokens need.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Makes a sequence of `tokens` tokens. Error: not enough free blocks; then none is taken.
    pub fn allocate(&mut self, tokens: usize) -> Result<Sequence> {
        let mut sequence = Sequence { blocks: Vec::new(), len: 0, block_size: self.block_size };
        self.append(&mut sequence, tokens)?;
        Ok(sequence)
    }

    /// Makes room for `tokens` more tokens. Error: not enough free blocks; then the sequence is unchanged.
    pub fn append(&mut self, sequence: &mut Sequence, tokens: usize) -> Result<()> {
        let more = self.blocks_for(sequence.len + tokens) - sequence.blocks.len();
        self.take(&mut sequence.blocks, more)?;
        sequence.len += tokens;
        Ok(())
    }

    /// Makes a second sequence of the same tokens, which shares the full blocks and owns its last, partial block. Also
    /// returns (from, to) pairs of cache rows: the caller must have their tokens written to both rows, by the copies of
    /// `PagedPlan`, in the pass that computes them. Error: no free block.
    pub fn fork(&mut self, sequence: &Sequence) -> Result<(Sequence, Vec<(usize, usize)>)> {
        let full = sequence.len / self.block_size;
        let mut blocks = sequence.blocks[..full].to_vec();
        self.take(&mut blocks, sequence.blocks.len() - full)?;
        for &block in &blocks[..full] {
            self.references[block] += 1;
        }
        let child = Sequence { blocks, len: sequence.len, block_size: self.block_size };
        let rows = (full * self.block_size..sequence.len).map(|t| (sequence.slot(t), child.slot(t))).collect();
        Ok((child, rows))
    }

    /// Gives the sequence's blocks back; those without another owner become free.
    pub fn free(&mut self, sequence: Sequence) {
        for block in sequence.blocks.into_iter().rev() {
            self.references[block] -= 1;
            if self.references[block] == 0 {
                self.free.push(block);
            }
        }
    }

    fn take(&mut self, blocks: &mut Vec<usize>, count: usize) -> Result<()> {
        if count > self.free.len() {
            return Err(Error::system(format!(
                "the KV cache is out of blocks: {count} needed, {} of {} free; give it more or run fewer sequences at once",
                self.free.len(),
                self.references.len()
            )));
        }
        for block in self.free.drain(self.free.len() - count..).rev() {
            self.references[block] = 1;
            blocks.push(block);
        }
        Ok(())
    }
}

/// Everything that changes between two passes over a paged cache, as tensors. Q is the number of new tokens of all
/// sequences.
pub struct PagedPlan {
    /// (Q), position of each token in its sequence.
    pub positions: Tensor,
    /// (Q), the cache rows that receive the new keys and values.
    pub slots: Tensor,
    /// (B, P), blocks of each sequence, padded with 0.
    pub block_table: Tensor,
    /// (B), lengths including the new tokens.
    pub lens: Tensor,
    /// (B + 1), offsets of each sequence's new tokens.
    pub cu_q: Tensor,
    /// Rows of this pass (X), and cache rows (X) that get their keys and values too: the partial blocks of forks.
    pub copies: Option<(Tensor, Tensor)>,
}

impl PagedPlan {
    /// Makes the plan for a range of new tokens of each sequence, which see all tokens before them. `copies` are pairs
    /// (row of this pass, cache row). The block table has `width` columns, or more if a sequence needs them. Error: a
    /// range beyond the end of its sequence.
    pub fn new(
        be: &dyn Backend,
        sequences: &[(&Sequence, Range<usize>)],
        copies: &[(usize, usize)],
        width: usize,
    ) -> Result<Self> {
        let width = sequences.iter().map(|(s, _)| s.blocks.len()).max().unwrap_or(0).max(width).max(1);
        let (mut positions, mut slots, mut table) = (Vec::new(), Vec::new(), Vec::new());
        let (mut lens, mut cu_q) = (Vec::new(), vec![0]);
        for (sequence, new) in sequences {
            if new.end > sequence.len {
                return Err(Error::system(format!("tokens {new:?} of a sequence of {} tokens", sequence.len)));
            }
            slots.extend(new.clone().map(|t| sequence.slot(t)));
            positions.extend(new.clone());
            table.extend_from_slice(&sequence.blocks);
            table.resize(table.len() + width - sequence.blocks.len(), 0);
            lens.push(new.end);
            cu_q.push(positions.len());
        }
        let (rows, extra): (Vec<usize>, Vec<usize>) = copies.iter().copied().unzip();
        Ok(Self {
            positions: index_tensor(be, &[positions.len()], &narrow(&positions)?)?,
            slots: index_tensor(be, &[slots.len()], &narrow(&slots)?)?,
            block_table: index_tensor(be, &[lens.len(), width], &narrow(&table)?)?,
            lens: index_tensor(be, &[lens.len()], &narrow(&lens)?)?,
            cu_q: index_tensor(be, &[cu_q.len()], &narrow(&cu_q)?)?,
            copies: match rows.is_empty() {
                true => None,
                false => Some((
                    index_tensor(be, &[rows.len()], &narrow(&rows)?)?,
                    index_tensor(be, &[extra.len()], &narrow(&extra)?)?,
                )),
            },
        })
    }

    /// Takes over the values of `other`, a plan of the same extents without copies. The tensors stay where they are.
    pub fn set(&mut self, be: &dyn Backend, other: &Self) -> Result<()> {
        be.copy(&other.positions, &mut self.positions)?;
        be.copy(&other.slots, &mut self.slots)?;
        be.copy(&other.block_table, &mut self.block_table)?;
        be.copy(&other.lens, &mut self.lens)?;
        be.copy(&other.cu_q, &mut self.cu_q)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn forks_share_full_blocks_and_own_the_partial_one() {
        let mut manager = BlockManager::new(4, 4);
        let parent = manager.allocate(6).unwrap();
        let (mut child, rows) = manager.fork(&parent).unwrap();
        assert_eq!(parent.blocks()[0], child.blocks()[0]);
        assert_ne!(parent.blocks()[1], child.blocks()[1]);
        assert_eq!(rows, vec![(parent.slot(4), child.slot(4)), (parent.slot(5), child.slot(5))]);
        manager.append(&mut child, 2).unwrap();
        assert_eq!((child.len(), child.blocks().len(), manager.available()), (8, 2, 1));
        let shared = parent.blocks()[0];
        manager.free(parent);
        assert_eq!(manager.available(), 2, "the shared block {shared} still has an owner");
        manager.free(child);
        assert_eq!(manager.available(), 4);
    }

    #[test]
    fn a_full_last_block_is_shared_whole() {
        let mut manager = BlockManager::new(3, 4);
        let parent = manager.allocate(8).unwrap();
        let (mut child, rows) = manager.fork(&parent).unwrap();
        assert!(rows.is_empty());
        assert_eq!(manager.available(), 1);
        manager.append(&mut child, 1).unwrap();
        assert_eq!(child.slot(8), child.blocks()[2] * 4);
        assert!(!parent.blocks().contains(&child.blocks()[2]));
    }

    #[test]
    fn out_of_blocks_is_an_error_that_takes_nothing() {
        let mut manager = BlockManager::new(2, 4);
        let mut sequence = manager.allocate(5).unwrap();
        assert!(manager.append(&mut sequence, 4).unwrap_err().to_string().contains("1 needed, 0 of 2 free"));
        assert!(manager.fork(&sequence).is_err());
        assert!(manager.allocate(1).is_err());
        assert_eq!((sequence.len(), manager.available()), (5, 0));
        manager.append(&mut sequence, 3).unwrap();
        manager.free(sequence);
        assert_eq!(manager.available(), 2);
    }
}
