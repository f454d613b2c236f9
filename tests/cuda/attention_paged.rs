//! Attention over a paged cache: decoding and prompts against the oracle, and that a token's result depends on its own keys only.

use crate::simt::Order;
use crate::support::{Draw, check, gpu};
use onestep::backend::Backend;
use onestep::backend::ops::Execute as _;
use onestep::backend::ops::{self, Heads};
use onestep::tensor::Tensor;

/// A batch: (length, queries) of each sequence, in pages of `block_size` that lie anywhere in the cache.
struct Batch<'a> {
    sequences: &'a [(usize, usize)],
    block_size: usize,
}

impl Batch<'_> {
    fn queries(&self) -> usize {
        self.sequences.iter().map(|s| s.1).sum()
    }

    fn pages(&self) -> usize {
        self.sequences.iter().map(|s| s.0.div_ceil(self.block_size)).max().unwrap()
    }

    /// Page p of sequence b: another one for each, none of them in order. Two more rows of pages than sequences are in the cache.
    fn page(&self, b: usize, p: usize) -> usize {
        (b + 1) + (self.pages() - 1 - p) * (self.sequences.len() + 2)
    }

    fn cache_rows(&self) -> usize {
        self.pages() * (self.sequences.len() + 2) * self.block_size
    }

    fn run(&self, d: &Draw, heads: Heads, qkv: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let (b, pages) = (self.sequences.len(), self.pages());
        let table: Vec<i32> = (0..b * pages).map(|i| self.page(i / pages, i % pages) as i32).collect();
        let lens: Vec<i32> = self.sequences.iter().map(|s| s.0 as i32).collect();
        let mut cu_q = vec![0];
        self.sequences.iter().for_each(|s| cu_q.push(cu_q[cu_q.len() - 1] + s.1 as i32));
        let mut o = d.unwritten(&[self.queries(), heads.nh * heads.hs]);
        let (table, lens, cu_q) = (d.ints(&[b, pages], &table), d.ints(&[b], &lens), d.ints(&[b + 1], &cu_q));
        ops::AttentionPaged {
            qkv,
            heads,
            k_cache: k,
            v_cache: v,
            block_size: self.block_size,
            block_table: &table,
            lens: &lens,
            cu_q: &cu_q,
            o: &mut o,
        }
        .run(d.backend)
        .unwrap();
        o
    }
}

/// One rounding more than the output's: that of the probabilities, which the matrix product with v takes in bf16.
fn check_batch(heads: Heads, batch: &Batch) {
    check(&format!("attention_paged {heads:?} {:?}", batch.sequences), 1, |d| {
        let qkv = d.normal(&[batch.queries(), heads.qkv_width()]);
        let shape = [batch.cache_rows(), heads.nkv * heads.hs];
        let (k, v) = (d.normal(&shape), d.normal(&shape));
        vec![batch.run(d, heads, &qkv, &k, &v)]
    });
}

#[test]
fn one_query_a_sequence() {
    let batch = Batch { sequences: &[(1, 1), (300, 1), (128, 1), (129, 1), (57, 1)], block_size: 16 };
    for (nh, nkv, hs) in [(4, 2, 32), (7, 1, 64)] {
        check_batch(Heads { nh, nkv, hs }, &batch);
    }
    check_batch(Heads { nh: 2, nkv: 2, hs: 128 }, &Batch { sequences: &[(131, 1), (9, 1)], block_size: 7 });
}

#[test]
fn more_heads_of_a_key_head_than_a_block_has_rows() {
    check_batch(Heads { nh: 20, nkv: 1, hs: 32 }, &Batch { sequences: &[(130, 1), (20, 1)], block_size: 16 });
}

/// As many queries as sequences, but not one each.
#[test]
fn queries_are_found_by_their_offsets() {
    let batch = Batch { sequences: &[(9, 0), (140, 3), (5, 0), (31, 2), (2, 1)], block_size: 16 };
    check_batch(Heads { nh: 2, nkv: 1, hs: 32 }, &batch);
}

#[test]
fn prompts() {
    let batch = Batch { sequences: &[(70, 70), (3, 0), (200, 40), (150, 1), (1, 1)], block_size: 16 };
    check_batch(Heads { nh: 2, nkv: 1, hs: 32 }, &batch);
    let batch = Batch { sequences: &[(140, 45)], block_size: 5 };
    check_batch(Heads { nh: 3, nkv: 1, hs: 64 }, &batch);
    check_batch(Heads { nh: 3, nkv: 1, hs: 128 }, &batch);
}

/// A prompt at once, and each of its tokens decoded by itself or in a batch, agree to the bit.
#[test]
fn results_do_not_depend_on_the_batch_or_the_kernel() {
    for hs in [32, 64, 128] {
        let (heads, len, count) = (Heads { nh: 6, nkv: 2, hs }, 260, 150);
        let be = gpu(Order::Forward, 0, true);
        let mut d = Draw::new(&be, 7);
        let prompt = Batch { sequences: &[(len, count)], block_size: 8 };
        let shape = [prompt.cache_rows(), heads.nkv * heads.hs];
        let (k, v, width) = (d.normal(&shape), d.normal(&shape), heads.qkv_width());
        let values = d.values(count * width, 1.0);
        let qkv = d.put(&[count, width], &values, be.activation());
        let whole = be.read(&prompt.run(&d, heads, &qkv, &k, &v)).unwrap();
        let row = heads.nh * heads.hs;
        for i in [0, 17, 100, count - 1] {
            // Alone, with the same pages: the table is that of the prompt.
            let end = len - count + i + 1;
            let (lens, cu_q) = (d.ints(&[1], &[end as i32]), d.ints(&[2], &[0, 1]));
            let pages: Vec<i32> = (0..prompt.pages()).map(|p| prompt.page(0, p) as i32).collect();
            let table = d.ints(&[1, pages.len()], &pages);
            let one = d.put(&[1, width], &values[i * width..][..width], be.activation());
            let mut o = d.unwritten(&[1, row]);
            ops::AttentionPaged {
                qkv: &one,
                heads,
                k_cache: &k,
                v_cache: &v,
                block_size: 8,
                block_table: &table,
                lens: &lens,
                cu_q: &cu_q,
                o: &mut o,
            }
            .run(&be)
            .unwrap();
            assert_eq!(be.read(&o).unwrap(), whole[i * row..][..row], "token {i}, head size {hs}");
            // Beside others, of which one is longer.
            let three = [&values[..width], &values[i * width..][..width], &values[width..2 * width]].concat();
            let (lens, cu_q) = (d.ints(&[3], &[len as i32, end as i32, 3]), d.ints(&[4], &[0, 1, 2, 3]));
            let (table, three) =
                (d.ints(&[3, pages.len()], &pages.repeat(3)), d.put(&[3, width], &three, be.activation()));
            let mut o = d.unwritten(&[3, row]);
            ops::AttentionPaged {
                qkv: &three,
                heads,
                k_cache: &k,
                v_cache: &v,
                block_size: 8,
                block_table: &table,
                lens: &lens,
                cu_q: &cu_q,
                o: &mut o,
            }
            .run(&be)
            .unwrap();
            assert_eq!(be.read(&o).unwrap()[row..2 * row], whole[i * row..][..row], "token {i}, head size {hs}");
        }
    }
}

#[test]
fn another_head_size_is_an_error() {
    let be = gpu(Order::Forward, 0, true);
    let mut d = Draw::new(&be, 7);
    let heads = Heads { nh: 1, nkv: 1, hs: 48 };
    let (qkv, k, v) = (d.normal(&[1, 144]), d.normal(&[16, 48]), d.normal(&[16, 48]));
    let (table, lens, cu_q, mut o) =
        (d.ints(&[1, 1], &[0]), d.ints(&[1], &[1]), d.ints(&[2], &[0, 1]), d.unwritten(&[1, 48]));
    let error = ops::AttentionPaged {
        qkv: &qkv,
        heads,
        k_cache: &k,
        v_cache: &v,
        block_size: 16,
        block_table: &table,
        lens: &lens,
        cu_q: &cu_q,
        o: &mut o,
    }
    .run(&be)
    .unwrap_err();
    assert!(error.to_string().contains("head size 48"), "{error}");
}
