//! Cases for `compare::check`: every op of `Backend` on small ragged shapes. A user runs them to trust a new GPU.
//! `large` takes shapes that also reach the fast paths of a real GPU; the small ones suit its emulation.

use super::compare::{Draw, Op, Output};
use crate::backend::cuda::device::{Gemm, Matrix};
use crate::backend::duplicate;
use crate::backend::ops::{
    self, AdamW, Heads, KlEstimator, Linear, LinearGrads, Lora, PpoInputs, PpoParams, PpoStats, QkNorm, Sampling,
    Segments, Surrogate, Trained, ValueInputs,
};
use crate::error::{Error, Result};
use crate::optimizer::squared_norm;
use crate::tensor::{DType, Tensor};

/// One op at one shape.
pub struct Case {
    /// Name of the op, without its mode.
    pub kernel: &'static str,
    /// `forward`, `backward` or `full`.
    pub mode: &'static str,
    /// Description of the shape.
    pub shape: String,
    /// Number of roundings of intermediates to bf16 that a plain bf16 computation has too; see `compare::allowance`.
    pub rounded: usize,
    /// Runs the op on drawn inputs.
    pub op: Op,
}

fn case(
    list: &mut Vec<Case>,
    kernel: &'static str,
    mode: &'static str,
    shape: impl Into<String>,
    rounded: usize,
    op: impl Fn(&mut Draw) -> Result<Vec<Output>> + 'static,
) {
    list.push(Case { kernel, mode, shape: shape.into(), rounded, op: Box::new(op) });
}

fn outputs<const N: usize>(tensors: [Tensor; N]) -> Result<Vec<Output>> {
    Ok(tensors.into_iter().map(Output::Tensor).collect())
}

/// All cases.
pub fn cases(large: bool) -> Vec<Case> {
    let mut list = vec![];
    whole_tensors(&mut list, large);
    gemm(&mut list, large);
    linear(&mut list, large);
    attention(&mut list, large);
    paged(&mut list, large);
    head(&mut list, large);
    elementwise(&mut list, large);
    rows(&mut list, large);
    losses(&mut list, large);
    value_head(&mut list, large);
    optimizer(&mut list, large);
    list
}

fn whole_tensors(list: &mut Vec<Case>, _large: bool) {
    case(list, "tensor", "full", "n 1003, casts and fill", 0, |d| {
        let (narrow, mut wide) = (d.normal(&[17, 59], 1.0)?, d.unwritten_accumulated(&[17, 59])?);
        d.backend.write(&mut wide, &narrow)?;
        let mut back = d.unwritten(&[17, 59])?;
        d.backend.write(&mut back, &wide)?;
        let mut filled = d.unwritten(&[17, 59])?;
        d.backend.fill(&mut filled, 1.5)?;
        let copied = duplicate(d.backend, &wide)?;
        outputs([wide, back, filled, copied])
    });
}

/// Products of the vendor's library, on which everything else and the ceiling depend; without a device, a plain loop.
fn gemm(list: &mut Vec<Case>, large: bool) {
    let (m, n, k) = if large { (200, 136, 328) } else { (20, 24, 40) };
    for (transpose_a, transpose_b) in [(false, true), (false, false), (true, false)] {
        let shape = format!("M {m}, N {n}, K {k}, transposed a {transpose_a}, b {transpose_b}");
        case(list, "gemm", "full", shape, 0, move |d| {
            let (a_shape, b_shape) =
                (if transpose_a { [k, m] } else { [m, k] }, if transpose_b { [n, k] } else { [k, n] });
            let (a, b) = (d.normal(&a_shape, 1.0)?, d.normal(&b_shape, 1.0)?);
            let c = d.accumulated(&[m, n], 1.0)?;
            let Some(device) = d.device else {
                let (a, b, c) = (d.backend.read(&a)?, d.backend.read(&b)?, d.backend.read(&c)?);
                let at = |i: usize, j: usize| {
                    let term = |l: usize| {
                        let a = a[if transpose_a { l * m + i } else { i * k + l }];
                        f64::from(a) * f64::from(b[if transpose_b { j * k + l } else { l * n + j }])
                    };
                    0.5 * (0..k).map(term).sum::<f64>() + f64::from(c[i * n + j])
                };
                return Ok(vec![Output::Values((0..m * n).map(|e| at(e / n, e % n)).collect())]);
            };
            let matrix = |t: &Tensor| {
                let address = t.device_address().ok_or_else(|| Error::system("a tensor that is not on the device"))?;
                Ok::<_, Error>(Matrix { address, stride: t.columns(), dtype: t.dtype() })
            };
            let (a, b, c_matrix) = (matrix(&a)?, matrix(&b)?, matrix(&c)?);
            let gemm = Gemm { m, n, k, a, transpose_a, b, transpose_b, c: c_matrix, alpha: 0.5, beta: 1.0 };
            match device.gemm(&gemm)? {
                true => outputs([c]),
                false => Err(Error::system("the device has no library for matrix products")),
            }
        });
    }
}

fn linear(list: &mut Vec<Case>, large: bool) {
    // (T, K, N, R, bias, trained weight, column)
    let mut shapes =
        vec![(13, 40, 24, 4, true, false, 3), (13, 40, 24, 0, false, false, 0), (9, 17, 11, 0, true, true, 0)];
    if large {
        shapes.extend([
            (256, 512, 384, 16, true, false, 0),
            (67, 264, 200, 8, false, false, 16),
            (1, 256, 512, 16, true, false, 0),
        ]);
    }
    for (t, k, n, r, bias, trained, column) in shapes {
        let shape = format!("T {t}, K {k}, N {n}, R {r}, column {column}{}", if trained { ", trained" } else { "" });
        let inputs = move |d: &mut Draw| -> Result<[Tensor; 5]> {
            let scale = 1.0 / (k as f32).sqrt();
            Ok([
                d.normal(&[t, k], 1.0)?,
                d.parameter(&[n, k], scale, trained)?,
                d.parameter(&[n], 1.0, trained)?,
                d.accumulated(&[r.max(1), k], scale)?,
                d.accumulated(&[n, r.max(1)], 0.5)?,
            ])
        };
        // s = x A^T is rounded to bf16 on the way.
        case(list, "linear", "forward", shape.clone(), usize::from(r > 0), move |d| {
            let [x, w, b, a, up] = inputs(d)?;
            let lora = (r > 0).then_some(Lora { a: &a, b: &up, scale: 2.0 });
            let mut y = d.normal(&[t, n + column + 5], 1.0)?;
            let mut s = d.unwritten(&[t, r.max(1)])?;
            let p = Linear { w: &w, bias: bias.then_some(&b), lora };
            ops::Linears {
                x: &x,
                layers: std::slice::from_ref(&p),
                y: &mut y,
                column,
                s: vec![(r > 0).then_some(&mut s)],
            }
            .run(d.backend)?;
            if r > 0 { outputs([y, s]) } else { outputs([y]) }
        });
        // Rounded: dS = dY B, and dx before it is added to the values already there.
        case(list, "linear", "backward", shape, 2, move |d| {
            let [x, w, b, a, up] = inputs(d)?;
            let lora = (r > 0).then_some(Lora { a: &a, b: &up, scale: 2.0 });
            let p = Linear { w: &w, bias: bias.then_some(&b), lora };
            let (dy, s) = (d.normal(&[t, n + column + 5], 1.0)?, d.normal(&[t, r.max(1)], 1.0)?);
            let mut dx = d.normal(&[t, k], 1.0)?;
            let (mut da, mut db) = (d.accumulated(&[r.max(1), k], 1.0)?, d.accumulated(&[n, r.max(1)], 1.0)?);
            let (mut dw, mut dbias) = (d.accumulated(&[n, k], 1.0)?, d.accumulated(&[n], 1.0)?);
            let grads = LinearGrads {
                lora: (r > 0).then_some((&mut da, &mut db)),
                w: trained.then_some(&mut dw),
                bias: (trained && bias).then_some(&mut dbias),
            };
            ops::LinearsBackward {
                x: &x,
                layers: std::slice::from_ref(&p),
                dy: &dy,
                column,
                s: vec![(r > 0).then_some(&s)],
                dx: Some(&mut dx),
                grads: vec![grads],
            }
            .run(d.backend)?;
            outputs([dx, da, db, dw, dbias])
        });
    }
    case(list, "merge_lora", "full", "N 24, K 40, R 4", 0, |d| {
        let mut w = d.normal(&[24, 40], 1.0)?;
        let (a, b) = (d.accumulated(&[4, 40], 0.5)?, d.accumulated(&[24, 4], 0.5)?);
        ops::MergeLora { w: &mut w, lora: Lora { a: &a, b: &b, scale: 2.0 } }.run(d.backend)?;
        outputs([w])
    });
}

/// Segments: (length, parent).
type Lengths = &'static [(usize, i32)];

fn attention(list: &mut Vec<Case>, large: bool) {
    const RAGGED: Lengths = &[(9, -1), (5, 0), (1, 0), (12, -1)];
    const LONGER: Lengths = &[(130, -1), (65, 0), (1, 0), (77, -1), (64, 3)];
    let heads = |nh, nkv, hs| Heads { nh, nkv, hs };
    let mut shapes = vec![(heads(2, 1, 64), RAGGED), (heads(2, 2, 128), RAGGED)];
    if large {
        shapes.extend([(heads(7, 1, 128), LONGER), (heads(4, 2, 64), LONGER)]);
    }
    for (heads, lengths) in shapes {
        let t: usize = lengths.iter().map(|(n, _)| n).sum();
        let shape = format!("T {t} in {} segments, NH {}, NKV {}, HS {}", lengths.len(), heads.nh, heads.nkv, heads.hs);
        let (width, d_) = (heads.nh * heads.hs, heads.qkv_width());
        let forward = move |d: &mut Draw| -> Result<([Tensor; 2], [Tensor; 3])> {
            let qkv = d.normal(&[t, d_], 1.0)?;
            let mut offsets = vec![0];
            offsets.extend(lengths.iter().scan(0, |end, (n, _)| {
                *end += *n as i32;
                Some(*end)
            }));
            let parents: Vec<i32> = lengths.iter().map(|(_, p)| *p).collect();
            let (cu, parent) = (d.ints(&[offsets.len()], &offsets)?, d.ints(&[parents.len()], &parents)?);
            let (mut o, mut lse) = (d.unwritten(&[t, width])?, d.unwritten_accumulated(&[heads.nh, t])?);
            let segments = Segments { cu_seqlens: &cu, parent: &parent };
            ops::Attention { qkv: &qkv, heads, segments: &segments, o: &mut o, lse: &mut lse }.run(d.backend)?;
            Ok(([cu, parent], [qkv, o, lse]))
        };
        // The probabilities are rounded.
        case(list, "attention", "forward", shape.clone(), 1, move |d| {
            let (_, [_, o, lse]) = forward(d)?;
            outputs([o, lse])
        });
        // Rounded: the probabilities, their gradient, the gradient of the scores, and o, from which the backward
        // starts.
        case(list, "attention", "backward", shape, 4, move |d| {
            let ([cu, parent], [qkv, o, lse]) = forward(d)?;
            let (dout, mut dqkv) = (d.normal(&[t, width], 1.0)?, d.unwritten(&[t, d_])?);
            let segments = Segments { cu_seqlens: &cu, parent: &parent };
            ops::AttentionBackward {
                qkv: &qkv,
                o: &o,
                lse: &lse,
                dout: &dout,
                heads,
                segments: &segments,
                dqkv: &mut dqkv,
            }
            .run(d.backend)?;
            outputs([dqkv])
        });
    }
    for (norm, t, heads) in [(false, 7, heads(3, 1, 64)), (true, 7, heads(2, 1, 64)), (true, 5, heads(4, 2, 128))] {
        let shape =
            format!("T {t}, NH {}, NKV {}, HS {}{}", heads.nh, heads.nkv, heads.hs, if norm { ", norm" } else { "" });
        let hs = heads.hs;
        let inputs = move |d: &mut Draw| -> Result<[Tensor; 6]> {
            let angles: Vec<f32> = (0..9 * hs / 2).map(|i| i as f32 * 0.37).collect();
            let table: Vec<f32> = angles
                .chunks(hs / 2)
                .flat_map(|row| row.iter().map(|a| a.cos()).chain(row.iter().map(|a| a.sin())).collect::<Vec<_>>())
                .collect();
            let raw = d.normal(&[t, (heads.nh + heads.nkv) * hs], 1.0)?;
            Ok([
                d.normal(&[t, heads.qkv_width()], 1.0)?,
                d.below(t, 9)?,
                d.put(&[9, hs], &table, d.backend.accumulator())?,
                d.normal(&[hs], 1.0)?,
                d.normal(&[hs], 1.0)?,
                raw,
            ])
        };
        // The normalised values are rounded before they are rotated.
        case(list, "qk_norm_rope", "forward", shape.clone(), usize::from(norm), move |d| {
            let [mut qkv, positions, table, q, k, mut raw] = inputs(d)?;
            let norm_weights = norm.then_some(QkNorm { q: &q, k: &k, eps: 1e-6 });
            ops::QkNormRope {
                qkv: &mut qkv,
                heads,
                norm: norm_weights,
                positions: &positions,
                table: &table,
                raw: norm.then_some(&mut raw),
            }
            .run(d.backend)?;
            outputs([qkv, raw])
        });
        case(list, "qk_norm_rope", "backward", shape, usize::from(norm), move |d| {
            let [mut dqkv, positions, table, q, k, raw] = inputs(d)?;
            let norm_weights = norm.then_some(QkNorm { q: &q, k: &k, eps: 1e-6 });
            let (mut dq, mut dk) = (d.accumulated(&[hs], 1.0)?, d.accumulated(&[hs], 1.0)?);
            let wanted = norm.then_some((&mut dq, &mut dk));
            let raw = norm.then_some(&raw);
            ops::QkNormRopeBackward {
                dqkv: &mut dqkv,
                heads,
                norm: norm_weights,
                positions: &positions,
                table: &table,
                raw,
                dnorm: wanted,
            }
            .run(d.backend)?;
            outputs([dqkv, dq, dk])
        });
    }
}

fn paged(list: &mut Vec<Case>, large: bool) {
    // (heads, block size, (length, queries) of each sequence)
    type Shape = (Heads, usize, &'static [(usize, usize)]);
    let mut shapes: Vec<Shape> = vec![
        (Heads { nh: 4, nkv: 2, hs: 64 }, 16, &[(19, 1), (1, 1), (33, 1)]),
        (Heads { nh: 2, nkv: 1, hs: 128 }, 16, &[(21, 5), (3, 3)]),
    ];
    if large {
        shapes.push((Heads { nh: 7, nkv: 1, hs: 128 }, 16, &[(1030, 1), (257, 1), (5, 1)]));
        shapes.push((Heads { nh: 4, nkv: 2, hs: 64 }, 32, &[(300, 130), (64, 64)]));
    }
    for (heads, block, sequences) in shapes {
        let (b, q) = (sequences.len(), sequences.iter().map(|s| s.1).sum::<usize>());
        let shape = format!("B {b}, Q {q}, NH {}, NKV {}, HS {}, block {block}", heads.nh, heads.nkv, heads.hs);
        case(list, "attention_paged", "forward", shape, 1, move |d| {
            let pages = sequences.iter().map(|s| s.0.div_ceil(block)).max().unwrap_or(1);
            // Page p of sequence b lies in block p B + b: neighbours in text are not neighbours in memory.
            let table: Vec<i32> = (0..b * pages).map(|i| ((i % pages) * b + i / pages) as i32).collect();
            let lens: Vec<i32> = sequences.iter().map(|s| s.0 as i32).collect();
            let mut cu = vec![0];
            sequences.iter().for_each(|s| cu.push(cu[cu.len() - 1] + s.1 as i32));
            let (table, lens) = (d.ints(&[b, pages], &table)?, d.ints(&[b], &lens)?);
            let cu = d.ints(&[cu.len()], &cu)?;
            let cache = [b * pages * block, heads.nkv * heads.hs];
            let (k, v, qkv) = (d.normal(&cache, 1.0)?, d.normal(&cache, 1.0)?, d.normal(&[q, heads.qkv_width()], 1.0)?);
            let mut o = d.unwritten(&[q, heads.nh * heads.hs])?;
            ops::AttentionPaged {
                qkv: &qkv,
                heads,
                k_cache: &k,
                v_cache: &v,
                block_size: block,
                block_table: &table,
                lens: &lens,
                cu_q: &cu,
                o: &mut o,
            }
            .run(d.backend)?;
            outputs([o])
        });
    }
    case(list, "advance", "forward", "B 3", 0, |d| {
        let table = d.ints(&[3, 3], &[4, 1, 7, 2, 5, 0, 3, 6, 8])?;
        let (mut positions, mut lens) = (d.ints(&[3], &[2, 3, 10])?, d.ints(&[3], &[3, 4, 11])?);
        let (mut slots, mut counter) = (d.ints(&[3], &[18, 11, 34])?, d.ints(&[3], &[0, 1, 2])?);
        ops::Advance {
            block_size: 4,
            block_table: &table,
            positions: &mut positions,
            lens: &mut lens,
            slots: &mut slots,
            counter: &mut counter,
        }
        .run(d.backend)?;
        outputs([positions, lens, slots, counter])
    });
    case(list, "kv_append", "forward", "T 5, NKV 2, HS 64", 0, |d| {
        let heads = Heads { nh: 4, nkv: 2, hs: 64 };
        let qkv = d.normal(&[5, heads.qkv_width()], 1.0)?;
        let slots = d.ints(&[5], &[3, 0, 17, 8, 31])?;
        let (mut k, mut v) = (d.normal(&[32, 128], 1.0)?, d.normal(&[32, 128], 1.0)?);
        ops::KvAppend { qkv: &qkv, heads, slots: &slots, k_cache: &mut k, v_cache: &mut v }.run(d.backend)?;
        outputs([k, v])
    });
}

fn head(list: &mut Vec<Case>, large: bool) {
    // (M, C, V, trained)
    let mut shapes = vec![(7, 24, 53, false), (5, 17, 64, true)];
    if large {
        shapes.push((70, 256, 3001, false));
    }
    for (m, c, v, trained) in shapes {
        let shape = format!("M {m}, C {c}, V {v}{}", if trained { ", trained" } else { "" });
        let forward = move |d: &mut Draw| -> Result<[Tensor; 6]> {
            let (x, targets) = (d.normal(&[m, c], 1.0)?, d.below(m, v)?);
            let w = d.parameter(&[v, c], 2.0 / (c as f32).sqrt(), trained)?;
            let [mut logp, mut entropy, mut lse] =
                [d.unwritten_accumulated(&[m])?, d.unwritten_accumulated(&[m])?, d.unwritten_accumulated(&[m])?];
            ops::LinearLogprob {
                x: &x,
                w: &w,
                targets: &targets,
                temperature: 0.7,
                logp: &mut logp,
                entropy: &mut entropy,
                lse: &mut lse,
            }
            .run(d.backend)?;
            Ok([x, w, targets, logp, entropy, lse])
        };
        case(list, "linear_logprob", "forward", shape.clone(), 0, move |d| {
            let [_, _, _, logp, entropy, lse] = forward(d)?;
            outputs([logp, entropy, lse])
        });
        // The gradient of the logits is rounded.
        case(list, "linear_logprob", "backward", shape, 1, move |d| {
            let [x, w, targets, _, entropy, lse] = forward(d)?;
            let (dlogp, dentropy) = (d.accumulated(&[m], 1.0)?, d.accumulated(&[m], 1.0)?);
            let (mut dx, mut dw) = (d.unwritten(&[m, c])?, d.accumulated(&[v, c], 1.0)?);
            let wanted = trained.then_some(&mut dw);
            let de = Some(&dentropy);
            ops::LinearLogprobBackward {
                x: &x,
                w: &w,
                targets: &targets,
                temperature: 0.7,
                entropy: &entropy,
                lse: &lse,
                dlogp: &dlogp,
                dentropy: de,
                dx: &mut dx,
                dw: wanted,
            }
            .run(d.backend)?;
            outputs([dx, dw])
        });
    }
    let (b, c, v) = if large { (33, 256, 1001) } else { (3, 24, 53) };
    case(list, "logits", "forward", format!("B {b}, C {c}, V {v}"), 0, move |d| {
        let (x, w) = (d.normal(&[b, c], 1.0)?, d.normal(&[v, c], 0.2)?);
        let mut out = d.unwritten_accumulated(&[b, v])?;
        ops::Logits { x: &x, w: &w, out: &mut out }.run(d.backend)?;
        outputs([out])
    });
    let (b, v) = if large { (24, 5003) } else { (12, 101) };
    case(list, "sample", "forward", format!("B {b}, V {v}, greedy, top-k, top-p"), 0, move |d| {
        let logits = d.accumulated(&[b, v], 2.0)?;
        let of = |values: [f32; 4]| -> Vec<f32> { (0..b).map(|i| values[i % 4]).collect() };
        let top_k: Vec<i32> = (0..b).map(|i| [0, 0, 5, 20][i % 4]).collect();
        let seeds: Vec<i32> = (0..2 * b as i32).map(|i| i * 77 + 5).collect();
        let sampling = Sampling {
            temperature: &d.put(&[b], &of([0.0, 1.0, 0.7, 1.3]), DType::F32)?,
            top_p: &d.put(&[b], &of([1.0, 1.0, 1.0, 0.9]), DType::F32)?,
            top_k: &d.ints(&[b], &top_k)?,
            seed: &d.ints(&[b, 2], &seeds)?,
            counter: &d.ints(&[b], &(0..b as i32).collect::<Vec<_>>())?,
        };
        let (mut ids, mut logp) = (d.ints(&[b], &vec![-1; b])?, d.unwritten_accumulated(&[b])?);
        ops::Sample { logits: &logits, sampling: &sampling, ids: &mut ids, logp: &mut logp }.run(d.backend)?;
        outputs([ids, logp])
    });
}

fn elementwise(list: &mut Vec<Case>, large: bool) {
    let mut shapes = vec![(5, 40, false), (3, 37, true)];
    if large {
        shapes.push((33, 3584, false));
    }
    for (t, c, trained) in shapes {
        let shape = format!("T {t}, C {c}{}", if trained { ", trained" } else { "" });
        // The sum is rounded before it is normalised.
        case(list, "add_rmsnorm", "forward", shape.clone(), 1, move |d| {
            let (residual, x, w) = (d.normal(&[t, c], 1.0)?, d.normal(&[t, c], 1.0)?, d.parameter(&[c], 1.0, trained)?);
            let (mut sum, mut y, mut rstd) =
                (d.unwritten(&[t, c])?, d.unwritten(&[t, c])?, d.unwritten_accumulated(&[t])?);
            ops::AddRmsnorm {
                residual: &residual,
                x: Some(&x),
                w: &w,
                eps: 1e-6,
                sum: Some(&mut sum),
                y: &mut y,
                rstd: &mut rstd,
            }
            .run(d.backend)?;
            let (mut alone, mut rstd_alone) = (d.unwritten(&[t, c])?, d.unwritten_accumulated(&[t])?);
            ops::AddRmsnorm {
                residual: &residual,
                x: None,
                w: &w,
                eps: 1e-6,
                sum: None,
                y: &mut alone,
                rstd: &mut rstd_alone,
            }
            .run(d.backend)?;
            outputs([sum, y, rstd, alone, rstd_alone])
        });
        case(list, "add_rmsnorm", "backward", shape, 1, move |d| {
            let (sum, w, dy) = (d.normal(&[t, c], 1.0)?, d.parameter(&[c], 1.0, trained)?, d.normal(&[t, c], 1.0)?);
            let rstd = d.accumulated(&[t], 1.0)?;
            let (mut dsum, mut dw) = (d.normal(&[t, c], 1.0)?, d.accumulated(&[c], 1.0)?);
            ops::AddRmsnormBackward {
                sum: &sum,
                w: &w,
                rstd: &rstd,
                dy: &dy,
                dsum: &mut dsum,
                dw: trained.then_some(&mut dw),
            }
            .run(d.backend)?;
            outputs([dsum, dw])
        });
    }
    let mut shapes = vec![(5, 24), (3, 19)];
    if large {
        shapes.push((9, 18944));
    }
    for (t, f) in shapes {
        case(list, "swiglu", "forward", format!("T {t}, F {f}"), 1, move |d| {
            let (gate_up, mut y) = (d.normal(&[t, 2 * f], 1.0)?, d.unwritten(&[t, f])?);
            ops::Swiglu { gate_up: &gate_up, y: &mut y }.run(d.backend)?;
            outputs([y])
        });
        case(list, "swiglu", "backward", format!("T {t}, F {f}"), 1, move |d| {
            let (gate_up, dy) = (d.normal(&[t, 2 * f], 1.0)?, d.normal(&[t, f], 1.0)?);
            let mut dgate_up = d.unwritten(&[t, 2 * f])?;
            ops::SwigluBackward { gate_up: &gate_up, dy: &dy, dgate_up: &mut dgate_up }.run(d.backend)?;
            outputs([dgate_up])
        });
    }
}

fn rows(list: &mut Vec<Case>, large: bool) {
    let (t, c) = if large { (300, 264) } else { (9, 27) };
    case(list, "embed", "forward", format!("T {t}, C {c}"), 0, move |d| {
        let (ids, wte) = (d.below(t, 13)?, d.normal(&[13, c], 1.0)?);
        let mut out = d.unwritten(&[t, c])?;
        ops::Embed { ids: &ids, wte: &wte, out: &mut out }.run(d.backend)?;
        outputs([out])
    });
    case(list, "embed", "backward", format!("T {t}, C {c}"), 0, move |d| {
        let (ids, dout) = (d.below(t, 13)?, d.normal(&[t, c], 1.0)?);
        let mut dwte = d.accumulated(&[13, c], 1.0)?;
        ops::EmbedBackward { ids: &ids, dout: &dout, dwte: &mut dwte }.run(d.backend)?;
        outputs([dwte])
    });
    case(list, "gather_rows", "forward", format!("M 7, T {t}, C {c}"), 0, move |d| {
        let (x, rows) = (d.normal(&[t, c], 1.0)?, d.below(7, t)?);
        let mut y = d.unwritten(&[7, c])?;
        ops::GatherRows { x: &x, rows: &rows, y: &mut y }.run(d.backend)?;
        outputs([y])
    });
    // Rows named more than once are added one after the other, each sum rounded.
    case(list, "scatter_add_rows", "forward", format!("M 12, T 5, C {c}"), 4, move |d| {
        let (dy, rows) = (d.normal(&[12, c], 1.0)?, d.below(12, 5)?);
        let mut dx = d.normal(&[5, c], 1.0)?;
        ops::ScatterAddRows { dy: &dy, rows: &rows, dx: &mut dx }.run(d.backend)?;
        outputs([dx])
    });
}

fn losses(list: &mut Vec<Case>, large: bool) {
    let m = if large { 3001 } else { 41 };
    case(list, "ppo_loss", "full", format!("M {m}"), 0, move |d| {
        let params = PpoParams {
            surrogate: Surrogate::Clip,
            clip_low: 0.2,
            clip_high: 0.28,
            dual_clip: Some(3.0),
            kl_coefficient: 0.1,
            kl_estimator: KlEstimator::K3,
            entropy_coefficient: 0.01,
        };
        let mut vector = |scale| d.accumulated(&[m], scale);
        let [logp, entropy, behaviour] = [vector(0.5)?, vector(1.0)?, vector(0.5)?];
        let [reference, advantage, weight] = [vector(0.5)?, vector(1.0)?, vector(0.1)?];
        let (mut dlogp, mut dentropy) = (d.unwritten_accumulated(&[m])?, d.unwritten_accumulated(&[m])?);
        let inputs = PpoInputs {
            logp: &logp,
            entropy: &entropy,
            behaviour: &behaviour,
            reference: &reference,
            advantage: &advantage,
            weight: &weight,
        };
        let mut s = PpoStats::default();
        ops::PpoLoss { params: &params, inputs: &inputs, dlogp: &mut dlogp, dentropy: &mut dentropy, stats: &mut s }
            .run(d.backend)?;
        let stats = vec![s.loss, s.policy_loss, s.kl, s.entropy, s.clip_fraction, s.approx_kl, s.ratio_max];
        Ok(vec![dlogp.into(), dentropy.into(), Output::Values(stats)])
    });
    for clip in [None, Some(0.2)] {
        case(list, "value_loss", "full", format!("M {m}, clip {clip:?}"), 0, move |d| {
            let mut vector = || d.accumulated(&[m], 1.0);
            let [value, old_value] = [vector()?, vector()?];
            let [target, weight] = [vector()?, vector()?];
            let mut dvalue = d.unwritten_accumulated(&[m])?;
            let inputs = ValueInputs { value: &value, old_value: &old_value, target: &target, weight: &weight };
            let mut loss = 0.0;
            ops::ValueLoss { clip, inputs: &inputs, dvalue: &mut dvalue, loss: &mut loss }.run(d.backend)?;
            Ok(vec![dvalue.into(), Output::Values(vec![loss])])
        });
    }
}

fn value_head(list: &mut Vec<Case>, large: bool) {
    let (m, c) = if large { (3001, 3584) } else { (41, 37) };
    case(list, "value_head", "forward", format!("M {m}, C {c}"), 0, move |d| {
        let x = d.normal(&[m, c], 1.0)?;
        let [w, bias] = [d.accumulated(&[1, c], 0.1)?, d.accumulated(&[1], 1.0)?];
        let mut value = d.unwritten_accumulated(&[m])?;
        ops::ValueHead { x: &x, w: &w, bias: &bias, value: &mut value }.run(d.backend)?;
        outputs([value])
    });
    case(list, "value_head", "backward", format!("M {m}, C {c}"), 0, move |d| {
        let x = d.normal(&[m, c], 1.0)?;
        let [w, dvalue] = [d.accumulated(&[1, c], 0.1)?, d.accumulated(&[m], 1.0)?];
        let [mut dw, mut dbias] = [d.accumulated(&[1, c], 1.0)?, d.accumulated(&[1], 1.0)?];
        let mut dx = d.unwritten(&[m, c])?;
        ops::ValueHeadBackward { x: &x, w: &w, dvalue: &dvalue, dx: &mut dx, dw: &mut dw, dbias: &mut dbias }
            .run(d.backend)?;
        outputs([dx, dw, dbias])
    });
}

fn optimizer(list: &mut Vec<Case>, large: bool) {
    let shapes: &'static [[usize; 2]] =
        if large { &[[16, 3584], [333, 16], [1, 7]] } else { &[[4, 37], [19, 4], [1, 7]] };
    case(list, "squared_norm", "full", format!("{} tensors", shapes.len()), 0, move |d| {
        let tensors = shapes.iter().map(|s| d.accumulated(s, 1.0)).collect::<Result<Vec<_>>>()?;
        Ok(vec![Output::Values(vec![squared_norm(d.backend, &tensors.iter().collect::<Vec<_>>())?])])
    });
    case(list, "adamw", "full", format!("{} tensors", shapes.len()), 0, move |d| {
        let settings =
            AdamW { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 3, grad_scale: 0.5 };
        let mut draw = || shapes.iter().map(|s| d.accumulated(s, 1.0)).collect::<Result<Vec<_>>>();
        let (mut params, grads, mut m) = (draw()?, draw()?, draw()?);
        let squares = |s: &[usize; 2]| {
            let values: Vec<f32> = d.values(s[0] * s[1], 1.0).iter().map(|x| x * x + 0.5).collect();
            d.put(s, &values, d.backend.accumulator())
        };
        let mut v = shapes.iter().map(squares).collect::<Result<Vec<_>>>()?;
        ops::AdamWStep { settings, tensors: Trained::of(&mut params, &grads, &mut m, &mut v) }.run(d.backend)?;
        Ok(params.into_iter().chain(m).chain(v).map(Output::Tensor).collect())
    });
}
