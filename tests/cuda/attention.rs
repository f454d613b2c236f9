//! Packed attention, forward and backward, against the oracle. The yardstick is a plain bf16 attention: f32 products and sums, but the
//! probabilities (and in the backward the gradients of the scores) rounded to bf16 before they are multiplied, outputs rounded to bf16.
//! The GPU may be wrong by twice its error, compared among rows on which about as many others bear, as rows of few keys have large
//! values and would hide errors in the others.

use crate::simt::Order;
use crate::support::{Draw, ORDERS, error, gpu};
use half::bf16;
use onestep::backend::Backend;
use onestep::backend::ops::Execute as _;
use onestep::backend::ops::{self, Heads, Segments};
use onestep::backend::oracle::Oracle;
use onestep::backend::oracle::attention::visible;
use onestep::tensor::Tensor;

/// Segments by length and parent (-1: none).
type Layout<'a> = &'a [(usize, i32)];
/// Around the tile's 64 rows, and an empty one.
const ALONE: Layout<'static> = &[(1, -1), (2, -1), (63, -1), (0, -1), (64, -1), (65, -1), (130, -1), (0, -1)];
/// Parents that are ragged, whole and empty; their children, some empty, between and behind each other.
const FAMILIES: Layout<'static> =
    &[(70, -1), (5, 0), (0, -1), (3, 2), (64, -1), (66, 0), (1, 4), (0, 0), (65, 4), (2, -1)];

fn round(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// One case: the values every backend gets.
struct Case {
    name: String,
    heads: Heads,
    cu_seqlens: Vec<i32>,
    parent: Vec<i32>,
    rows: usize,
    qkv: Vec<f32>,
    dout: Vec<f32>,
}

impl Case {
    fn new(layout: Layout, (nh, nkv, hs): (usize, usize, usize), seed: u64) -> Self {
        let heads = Heads { nh, nkv, hs };
        let mut cu_seqlens = vec![0];
        for (length, _) in layout {
            cu_seqlens.push(cu_seqlens.last().unwrap() + *length as i32);
        }
        let rows = *cu_seqlens.last().unwrap() as usize;
        let oracle = Oracle::f32();
        let mut draw = Draw::new(&oracle, seed);
        Self {
            name: format!("{heads:?}, {rows} rows, seed {seed}"),
            heads,
            cu_seqlens,
            parent: layout.iter().map(|s| s.1).collect(),
            rows,
            qkv: draw.values(rows * heads.qkv_width(), 1.0),
            dout: draw.values(rows * nh * hs, 1.0),
        }
    }

    fn o_width(&self) -> usize {
        self.heads.nh * self.heads.hs
    }

    /// o (T, NH HS) and lse (NH, T) of a backend.
    fn forward(&self, be: &dyn Backend) -> [Tensor; 2] {
        let draw = Draw::new(be, 0);
        let qkv = draw.put(&[self.rows, self.heads.qkv_width()], &self.qkv, be.activation());
        let (mut o, mut lse) =
            (draw.unwritten(&[self.rows, self.o_width()]), draw.unwritten_accumulated(&[self.heads.nh, self.rows]));
        let (cu_seqlens, parent) = self.segments(&draw);
        let segments = Segments { cu_seqlens: &cu_seqlens, parent: &parent };
        ops::Attention { qkv: &qkv, heads: self.heads, segments: &segments, o: &mut o, lse: &mut lse }.run(be).unwrap();
        [o, lse]
    }

    fn segments(&self, draw: &Draw) -> (Tensor, Tensor) {
        (draw.ints(&[self.cu_seqlens.len()], &self.cu_seqlens), draw.ints(&[self.parent.len()], &self.parent))
    }

    /// dqkv (T, D) of a backend, given o and lse.
    fn backward(&self, be: &dyn Backend, o: &Tensor, lse: &Tensor) -> Tensor {
        let draw = Draw::new(be, 0);
        let qkv = draw.put(&[self.rows, self.heads.qkv_width()], &self.qkv, be.activation());
        let dout = draw.put(&[self.rows, self.o_width()], &self.dout, be.activation());
        let mut dqkv = draw.unwritten(&[self.rows, self.heads.qkv_width()]);
        let (cu_seqlens, parent) = self.segments(&draw);
        let segments = Segments { cu_seqlens: &cu_seqlens, parent: &parent };
        ops::AttentionBackward {
            qkv: &qkv,
            o,
            lse,
            dout: &dout,
            heads: self.heads,
            segments: &segments,
            dqkv: &mut dqkv,
        }
        .run(be)
        .unwrap();
        dqkv
    }

    /// Where head h's q, k and v begin in row t of qkv.
    fn columns(&self, t: usize, h: usize) -> [usize; 3] {
        let Heads { nh, nkv, hs } = self.heads;
        let (row, shared) = (t * self.heads.qkv_width(), h / (nh / nkv));
        [row + h * hs, row + (nh + shared) * hs, row + (nh + nkv + shared) * hs]
    }

    /// For every row the rows it sees.
    fn seen(&self) -> Vec<Vec<usize>> {
        let segments = 0..self.parent.len();
        let rows = segments.flat_map(|s| (self.cu_seqlens[s]..self.cu_seqlens[s + 1]).map(move |t| (s, t as usize)));
        rows.map(|(s, t)| {
            let (prefix, own) = visible(&self.cu_seqlens, &self.parent, s, t);
            prefix.chain(own).collect()
        })
        .collect()
    }

    fn score(&self, q: usize, k: usize) -> f32 {
        dot(&self.qkv[q..][..self.heads.hs], &self.qkv[k..][..self.heads.hs]) / (self.heads.hs as f32).sqrt()
    }

    /// o of the plain bf16 attention.
    fn plain_forward(&self) -> Vec<f64> {
        let hs = self.heads.hs;
        let mut o = vec![0.0f32; self.rows * self.o_width()];
        for (t, seen) in self.seen().iter().enumerate() {
            for h in 0..self.heads.nh {
                let [q, ..] = self.columns(t, h);
                let scores: Vec<f32> = seen.iter().map(|&j| self.score(q, self.columns(j, h)[1])).collect();
                let most = scores.iter().copied().fold(f32::MIN, f32::max);
                let sum: f32 = scores.iter().map(|s| (s - most).exp()).sum();
                let o = &mut o[(t * self.heads.nh + h) * hs..][..hs];
                for (&j, s) in seen.iter().zip(scores) {
                    add(o, round((s - most).exp() / sum), &self.qkv[self.columns(j, h)[2]..][..hs]);
                }
            }
        }
        o.into_iter().map(|x| round(x).into()).collect()
    }

    /// dqkv of the plain bf16 attention, given o and lse.
    fn plain_backward(&self, o: &[f32], lse: &[f32]) -> Vec<f64> {
        let hs = self.heads.hs;
        let mut dqkv = vec![0.0f32; self.qkv.len()];
        for (t, seen) in self.seen().iter().enumerate() {
            for h in 0..self.heads.nh {
                let at = (t * self.heads.nh + h) * hs;
                let dout = &self.dout[at..][..hs];
                let delta = dot(dout, &o[at..][..hs]);
                for &j in seen {
                    let [q, ..] = self.columns(t, h);
                    let [_, k, v] = self.columns(j, h);
                    let p = (self.score(q, k) - lse[h * self.rows + t]).exp();
                    let ds = round(p * (dot(dout, &self.qkv[v..][..hs]) - delta)) / (hs as f32).sqrt();
                    add(&mut dqkv[v..][..hs], round(p), dout);
                    add(&mut dqkv[q..][..hs], ds, &self.qkv[k..][..hs]);
                    add(&mut dqkv[k..][..hs], ds, &self.qkv[q..][..hs]);
                }
            }
        }
        dqkv.into_iter().map(|x| round(x).into()).collect()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f32], factor: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| x.into()).collect()
}

/// The rows in groups of about equal `counts`: below 8, and between powers of two. (Fewer than 8 together: the error of a row on which
/// one other bears is that of a single rounding, which may be lucky.)
fn groups(counts: &[usize]) -> Vec<Vec<usize>> {
    let of = |power: u32| (0..counts.len()).filter(|&t| (counts[t] | 4).ilog2() == power).collect::<Vec<_>>();
    (0..usize::BITS).map(of).filter(|group| !group.is_empty()).collect()
}

/// `columns` of matrices with rows of `width`: in each group of rows, `found` errs at most twice as much as `plain`, and 16 units in the
/// last place of f32 at the largest magnitude, for sums in another order (where one row sees one other, dq is the difference of equals).
fn compare(
    what: &str,
    found: &[f64],
    plain: &[f64],
    exact: &[f64],
    width: usize,
    columns: std::ops::Range<usize>,
    counts: &[usize],
) {
    let mut largest = 0.0f64;
    for row in exact.chunks(width) {
        largest = row[columns.clone()].iter().fold(largest, |m, x| m.max(x.abs()));
    }
    for group in groups(counts) {
        let pick =
            |m: &[f64]| -> Vec<f64> { group.iter().flat_map(|&t| m[t * width..][columns.clone()].to_vec()).collect() };
        let [found, plain, exact] = [pick(found), pick(plain), pick(exact)];
        assert!(found.iter().all(|x| x.is_finite()), "{what}: a value that is not finite");
        let (off, bound) =
            (error(&found, &exact), 2.0 * error(&plain, &exact) + 16.0 * f64::from(f32::EPSILON) * largest);
        let few = group.iter().map(|&t| counts[t]).min().unwrap();
        assert!(off <= bound, "{what}, rows with {few} or more on the other side: off by {off:e}, allowed {bound:e}");
    }
}

fn check_forward(layout: Layout, heads: (usize, usize, usize), seed: u64) {
    let case = Case::new(layout, heads, seed);
    let [exact_o, exact_lse] = case.forward(&Oracle::f64());
    let [_, plain_lse] = case.forward(&Oracle::f32());
    let (exact_o, exact_lse) = (exact_o.slice::<f64>(), exact_lse.slice::<f64>());
    let (plain_o, plain_lse) = (case.plain_forward(), wide(plain_lse.slice::<f32>()));
    let counts: Vec<usize> = case.seen().iter().map(Vec::len).collect();
    let mut first = None;
    for (order, random) in ORDERS {
        let be = gpu(order, random, true);
        let found = case.forward(&be).map(|t| wide(&be.read(&t).unwrap()));
        let name = format!("{}, {order:?} {random}", case.name);
        let width = case.o_width();
        compare(&format!("{name}: o"), &found[0], &plain_o, exact_o, width, 0..width, &counts);
        // lse is never rounded: as exact as sums in f32.
        let all = vec![1; case.heads.nh];
        compare(&format!("{name}: lse"), &found[1], &plain_lse, exact_lse, case.rows, 0..case.rows, &all);
        let first = first.get_or_insert_with(|| found.clone());
        assert_eq!(&found, first, "{name}: the result depends on the thread order");
    }
}

#[test]
fn forward_with_a_head_size_of_32() {
    check_forward(ALONE, (2, 2, 32), 7);
    check_forward(FAMILIES, (7, 1, 32), 8);
}

#[test]
fn forward_with_a_head_size_of_64() {
    check_forward(ALONE, (3, 1, 64), 7);
    check_forward(FAMILIES, (6, 2, 64), 8);
}

#[test]
fn forward_with_a_head_size_of_128() {
    check_forward(ALONE, (1, 1, 128), 7);
    check_forward(FAMILIES, (3, 1, 128), 8);
}

fn check_backward(layout: Layout, heads: (usize, usize, usize), seed: u64) {
    let case = Case::new(layout, heads, seed);
    // The exact o and lse, and what a backend's forward would have kept of them.
    let oracle = Oracle::f64();
    let [exact_o, exact_lse] = case.forward(&oracle);
    let kept_o: Vec<f32> = exact_o.slice::<f64>().iter().map(|&x| round(x as f32)).collect();
    let kept_lse: Vec<f32> = exact_lse.slice::<f64>().iter().map(|&x| x as f32).collect();
    let exact = case.backward(&oracle, &exact_o, &exact_lse);
    let (exact, plain) = (exact.slice::<f64>(), case.plain_backward(&kept_o, &kept_lse));
    let seen = case.seen();
    let count: Vec<usize> = seen.iter().map(Vec::len).collect();
    let seeing: Vec<usize> = (0..case.rows).map(|j| seen.iter().filter(|seen| seen.contains(&j)).count()).collect();
    let Heads { nh, nkv, hs } = case.heads;
    let (q, k) = (nh * hs, (nh + nkv) * hs);
    let mut first = None;
    for (order, random) in ORDERS {
        let be = gpu(order, random, true);
        let draw = Draw::new(&be, 0);
        let o = draw.put(exact_o.shape(), &kept_o, be.activation());
        let lse = draw.put(exact_lse.shape(), &kept_lse, be.accumulator());
        let found = wide(&be.read(&case.backward(&be, &o, &lse)).unwrap());
        let width = case.heads.qkv_width();
        let name = format!("{}, {order:?} {random}", case.name);
        compare(&format!("{name}: dq"), &found, &plain, exact, width, 0..q, &count);
        compare(&format!("{name}: dk"), &found, &plain, exact, width, q..k, &seeing);
        compare(&format!("{name}: dv"), &found, &plain, exact, width, k..width, &seeing);
        let first = first.get_or_insert_with(|| found.clone());
        assert_eq!(&found, first, "{name}: the result depends on the thread order");
    }
}

#[test]
fn backward_with_split_tiles_of_keys() {
    // The prompt's two tiles of keys are seen by 12 and 11 tiles of queries, all tiles by 43: the emulated GPU's 3 multiprocessors make
    // 12 parts of 4 or more of it, so 3 and 2 of the prompt's.
    let layout = [&[(66, -1)][..], &[(30, 0); 20]].concat();
    check_backward(&layout, (2, 1, 32), 7);
}

#[test]
fn backward_with_a_head_size_of_32() {
    check_backward(ALONE, (2, 2, 32), 7);
    check_backward(FAMILIES, (7, 1, 32), 8);
}

#[test]
fn backward_with_a_head_size_of_64() {
    check_backward(ALONE, (3, 1, 64), 7);
    check_backward(FAMILIES, (6, 2, 64), 8);
}

#[test]
fn backward_with_a_head_size_of_128() {
    check_backward(ALONE, (1, 1, 128), 7);
    check_backward(FAMILIES, (3, 1, 128), 8);
}

/// More segments than the list's block has threads, most of them empty, the first one's children far from it and from each other.
#[test]
fn very_many_segments() {
    let layout: Vec<(usize, i32)> = (0..1100)
        .map(|i| match i {
            0 => (70, -1),
            _ if i % 90 == 0 => (2, 0),
            _ if i % 100 == 0 => (i % 3, -1),
            _ => (0, -1),
        })
        .collect();
    check_forward(&layout, (1, 1, 32), 7);
    check_backward(&layout, (1, 1, 32), 7);
}

#[test]
fn nothing_to_attend_to() {
    for layout in [&[][..], &[(0, -1), (0, 0)]] {
        let (case, be) = (Case::new(layout, (2, 1, 32), 7), gpu(Order::Forward, 0, true));
        let [o, lse] = case.forward(&be);
        assert!(case.backward(&be, &o, &lse).is_empty());
    }
}

#[test]
fn a_head_size_without_a_kernel_is_refused() {
    let (case, be) = (Case::new(&[(3, -1)], (1, 1, 48), 7), gpu(Order::Forward, 0, true));
    let (draw, rows) = (Draw::new(&be, 0), 3);
    let (wide, narrow) = (draw.unwritten(&[rows, 3 * 48]), draw.unwritten(&[rows, 48]));
    let (mut o, mut lse, mut dqkv) =
        (draw.unwritten(&[rows, 48]), draw.unwritten_accumulated(&[1, rows]), draw.unwritten(&[rows, 144]));
    let (cu_seqlens, parent) = case.segments(&draw);
    let segments = Segments { cu_seqlens: &cu_seqlens, parent: &parent };
    let forward =
        ops::Attention { qkv: &wide, heads: case.heads, segments: &segments, o: &mut o, lse: &mut lse }.run(&be);
    let backward = ops::AttentionBackward {
        qkv: &wide,
        o: &narrow,
        lse: &lse,
        dout: &narrow,
        heads: case.heads,
        segments: &segments,
        dqkv: &mut dqkv,
    }
    .run(&be);
    for (op, result) in [("attention:", forward), ("attention_backward:", backward)] {
        let error = result.unwrap_err().to_string();
        assert!([op, "48", "32, 64 and 128"].iter().all(|part| error.contains(part)), "{error}");
    }
}
