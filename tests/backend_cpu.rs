//! The CPU backend against the oracle, on ragged shapes; equal bits for any number of threads and of other rows; narrow weights.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};
use onestep::backend::Backend;
use onestep::backend::cpu::Cpu;
use onestep::backend::ops::{self, AdamW, Heads, Linear, LinearGrads, Lora, Sampling, Segments, Trained};
use onestep::backend::oracle::Oracle;
use onestep::rng::Philox;
use onestep::tensor::{DType, Tensor};

/// Random tensors of one backend: the same values for every backend, in its activation type.
struct Draw<'a> {
    backend: &'a dyn Backend,
    random: Philox,
}

impl<'a> Draw<'a> {
    fn new(backend: &'a dyn Backend) -> Self {
        Self { backend, random: Philox::new(7, 0) }
    }

    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.random.normal() as f32).collect()
    }

    /// Standard normal numbers.
    fn normal(&mut self, shape: &[usize]) -> Tensor {
        let values = Tensor::from_slice(shape, &self.values(shape.iter().product()));
        let mut tensor = self.zeros(shape);
        self.backend.write(&mut tensor, &values).unwrap();
        tensor
    }

    /// Normal numbers stored as bf16.
    fn bf16(&mut self, shape: &[usize]) -> Tensor {
        let values: Vec<bf16> = self.values(shape.iter().product()).into_iter().map(bf16::from_f32).collect();
        Tensor::from_slice(shape, &values)
    }

    fn below(&mut self, n: usize, limit: usize) -> Tensor {
        ints(&(0..n).map(|_| self.random.below(limit) as i32).collect::<Vec<_>>())
    }

    fn zeros(&self, shape: &[usize]) -> Tensor {
        self.backend.alloc(shape, self.backend.activation()).unwrap()
    }
}

fn ints(values: &[i32]) -> Tensor {
    Tensor::from_slice(&[values.len()], values)
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    match tensor.dtype() {
        DType::F64 => tensor.slice::<f64>().to_vec(),
        _ => tensor.slice::<f32>().iter().map(|&x| f64::from(x)).collect(),
    }
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.slice::<f32>().iter().map(|x| x.to_bits()).collect()
}

fn on_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// Runs an op on the f64 oracle, the f32 oracle and the CPU backend with one and two threads. The CPU backend may be wrong by
/// twice what plain f32 loops are wrong by on the same data, plus four units in the last place of the tensor's largest
/// magnitude (where the loops happen to be exact); its bits must not depend on the threads.
fn check(name: &str, op: impl Fn(&mut Draw) -> Vec<Tensor> + Sync) {
    let exact = op(&mut Draw::new(&Oracle::f64()));
    let naive = op(&mut Draw::new(&Oracle::f32()));
    let fast = on_threads(1, || op(&mut Draw::new(&Cpu)));
    let fast2 = on_threads(2, || op(&mut Draw::new(&Cpu)));
    for (i, exact) in exact.iter().enumerate() {
        assert_eq!(bits(&fast[i]), bits(&fast2[i]), "{name}: output {i} depends on the threads");
        let exact = wide(exact);
        let error = |x: &Tensor| wide(x).iter().zip(&exact).fold(0.0, |e: f64, (x, y)| e.max((x - y).abs()));
        assert!(wide(&fast[i]).iter().all(|x| x.is_finite()), "{name}: output {i} has a value that is not finite");
        let largest = exact.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        assert!(largest > 0.0, "{name}: output {i} is all zero and shows nothing");
        let bound = 2.0 * error(&naive[i]) + 4.0 * f64::from(f32::EPSILON) * largest;
        assert!(error(&fast[i]) <= bound, "{name}: output {i} is off by {:e}, allowed {bound:e}", error(&fast[i]));
    }
}

#[test]
fn linear() {
    // (T, K, N, R); the last needs several tasks, panels and pieces of the contraction.
    for (t, k, n, r) in [(1, 5, 3, 1), (7, 33, 70, 4), (65, 192, 130, 16), (2100, 300, 400, 8)] {
        for narrow in [false, true] {
            check(&format!("linear {t} {k} {n} {r} {narrow}"), |draw| {
                let (x, bias) = (draw.normal(&[t, k]), draw.normal(&[n]));
                let w = if narrow { draw.bf16(&[n, k]) } else { draw.normal(&[n, k]) };
                let (a, b) = (draw.normal(&[r, k]), draw.normal(&[n, r]));
                let p = Linear { w: &w, bias: Some(&bias), lora: Some(Lora { a: &a, b: &b, scale: 0.5 }) };
                let (mut y, mut s) = (draw.normal(&[t, n + 5]), draw.zeros(&[t, r]));
                ops::Linears { x: &x, layers: std::slice::from_ref(&p), y: &mut y, column: 3, s: vec![Some(&mut s)] }
                    .run(draw.backend)
                    .unwrap();
                let dy = draw.normal(&[t, n + 5]);
                let mut dx = draw.normal(&[t, k]);
                let (mut da, mut db) = (draw.normal(&[r, k]), draw.normal(&[n, r]));
                let (mut dw, mut dbias) = (draw.normal(&[n, k]), draw.normal(&[n]));
                let grads = LinearGrads { lora: Some((&mut da, &mut db)), w: Some(&mut dw), bias: Some(&mut dbias) };
                ops::LinearsBackward {
                    x: &x,
                    layers: std::slice::from_ref(&p),
                    dy: &dy,
                    column: 3,
                    s: vec![Some(&s)],
                    dx: Some(&mut dx),
                    grads: vec![grads],
                }
                .run(draw.backend)
                .unwrap();
                vec![y, s, dx, da, db, dw, dbias]
            });
        }
    }
}

#[test]
fn logits_and_log_probabilities() {
    for (m, c, v, temperature) in [(1, 8, 5, 1.0), (33, 40, 1100, 0.7), (2200, 16, 200, 1.0)] {
        check(&format!("linear_logprob {m} {c} {v}"), |draw| {
            let (mut x, w, targets) = (draw.normal(&[m, c]), draw.normal(&[v, c]), draw.below(m, v));
            let mut out = draw.zeros(&[m, v]);
            ops::Logits { x: &x, w: &w, out: &mut out }.run(draw.backend).unwrap();
            // Moderate logits: entropies that are not all but zero.
            let smaller: Vec<f32> = wide(&x).iter().map(|x| (x * 0.2) as f32).collect();
            draw.backend.write(&mut x, &Tensor::from_slice(&[m, c], &smaller)).unwrap();
            let (mut logp, mut entropy, mut lse) = (draw.zeros(&[m]), draw.zeros(&[m]), draw.zeros(&[m]));
            ops::LinearLogprob {
                x: &x,
                w: &w,
                targets: &targets,
                temperature,
                logp: &mut logp,
                entropy: &mut entropy,
                lse: &mut lse,
            }
            .run(draw.backend)
            .unwrap();
            let (dlogp, dentropy) = (draw.normal(&[m]), draw.normal(&[m]));
            let (mut dx, mut dw) = (draw.normal(&[m, c]), draw.normal(&[v, c]));
            let b = draw.backend;
            ops::LinearLogprobBackward {
                x: &x,
                w: &w,
                targets: &targets,
                temperature,
                entropy: &entropy,
                lse: &lse,
                dlogp: &dlogp,
                dentropy: Some(&dentropy),
                dx: &mut dx,
                dw: Some(&mut dw),
            }
            .run(b)
            .unwrap();
            let mut plain = draw.normal(&[m, c]);
            ops::LinearLogprobBackward {
                x: &x,
                w: &w,
                targets: &targets,
                temperature,
                entropy: &entropy,
                lse: &lse,
                dlogp: &dlogp,
                dentropy: None,
                dx: &mut plain,
                dw: None,
            }
            .run(b)
            .unwrap();
            vec![out, logp, entropy, lse, dx, dw, plain]
        });
    }
}

/// Segments of 1, 130, 70, 3 and 90 rows; the third and the last are children of the second.
fn segments() -> (Tensor, Tensor, usize) {
    (ints(&[0, 1, 131, 201, 204, 294]), ints(&[-1, -1, 1, -1, 1]), 294)
}

#[test]
fn packed_attention() {
    for heads in [Heads { nh: 2, nkv: 1, hs: 6 }, Heads { nh: 6, nkv: 2, hs: 32 }, Heads { nh: 3, nkv: 3, hs: 72 }] {
        check(&format!("attention {heads:?}"), |draw| {
            let (cu_seqlens, parent, t) = segments();
            let segments = Segments { cu_seqlens: &cu_seqlens, parent: &parent };
            let (qkv, dout) = (draw.normal(&[t, heads.qkv_width()]), draw.normal(&[t, heads.nh * heads.hs]));
            let (mut o, mut lse) = (draw.zeros(&[t, heads.nh * heads.hs]), draw.zeros(&[heads.nh, t]));
            ops::Attention { qkv: &qkv, heads, segments: &segments, o: &mut o, lse: &mut lse }
                .run(draw.backend)
                .unwrap();
            let mut dqkv = draw.normal(&[t, heads.qkv_width()]);
            ops::AttentionBackward {
                qkv: &qkv,
                o: &o,
                lse: &lse,
                dout: &dout,
                heads,
                segments: &segments,
                dqkv: &mut dqkv,
            }
            .run(draw.backend)
            .unwrap();
            vec![o, lse, dqkv]
        });
    }
}

/// Puts the k and v of `qkv` rows `rows[b]` into the pages of sequence b, then attends from the last `queries[b]` rows.
fn paged(draw: &mut Draw, qkv: &Tensor, heads: Heads, rows: &[Vec<usize>], queries: &[usize]) -> Tensor {
    let (block, pages, d) = (16, 24, heads.qkv_width());
    let mut order: Vec<i32> = (0..(rows.len() * pages) as i32).collect();
    Philox::new(3, 0).shuffle(&mut order);
    let table = Tensor::from_slice(&[rows.len(), pages], &order);
    let cache = [rows.len() * pages * block, heads.nkv * heads.hs];
    let (mut k, mut v) = (draw.normal(&cache), draw.normal(&cache));
    let (mut cu_q, mut last) = (vec![0], Vec::new());
    let pick = |draw: &Draw, rows: &[usize]| {
        let mut part = draw.zeros(&[rows.len(), d]);
        let index = ints(&rows.iter().map(|&r| r as i32).collect::<Vec<_>>());
        ops::GatherRows { x: qkv, rows: &index, y: &mut part }.run(draw.backend).unwrap();
        part
    };
    for (b, rows) in rows.iter().enumerate() {
        let slot = |t: usize| order[b * pages + t / block] * block as i32 + (t % block) as i32;
        let slots = ints(&(0..rows.len()).map(slot).collect::<Vec<_>>());
        let part = pick(draw, rows);
        ops::KvAppend { qkv: &part, heads, slots: &slots, k_cache: &mut k, v_cache: &mut v }.run(draw.backend).unwrap();
        cu_q.push(cu_q[b] + queries[b] as i32);
        last.extend(&rows[rows.len() - queries[b]..]);
    }
    let lens = ints(&rows.iter().map(|r| r.len() as i32).collect::<Vec<_>>());
    let (q, mut o) = (pick(draw, &last), draw.zeros(&[last.len(), heads.nh * heads.hs]));
    ops::AttentionPaged {
        qkv: &q,
        heads,
        k_cache: &k,
        v_cache: &v,
        block_size: block,
        block_table: &table,
        lens: &lens,
        cu_q: &ints(&cu_q),
        o: &mut o,
    }
    .run(draw.backend)
    .unwrap();
    o
}

#[test]
fn paged_attention() {
    let heads = Heads { nh: 6, nkv: 2, hs: 32 };
    check("attention_paged", |draw| {
        let qkv = draw.normal(&[300, heads.qkv_width()]);
        let rows: [Vec<usize>; 3] = [(0..300).collect(), (50..51).collect(), (100..229).collect()];
        vec![paged(draw, &qkv, heads, &rows, &[1, 1, 100])]
    });
}

#[test]
fn paged_attention_has_the_bits_of_packed_attention() {
    let heads = Heads { nh: 6, nkv: 2, hs: 32 };
    let mut draw = Draw::new(&Cpu);
    let (cu_seqlens, parent, t) = segments();
    let qkv = draw.normal(&[t, heads.qkv_width()]);
    let (mut o, mut lse) = (draw.zeros(&[t, heads.nh * heads.hs]), draw.zeros(&[heads.nh, t]));
    let segments = Segments { cu_seqlens: &cu_seqlens, parent: &parent };
    ops::Attention { qkv: &qkv, heads, segments: &segments, o: &mut o, lse: &mut lse }.run(&Cpu).unwrap();
    let o = bits(&o);
    let row = |t: usize| &o[t * heads.nh * heads.hs..][..heads.nh * heads.hs];
    // Every row of the last segment (a child) decoded alone, and all of them in one prefill.
    let list = |last: usize| (1..131).chain(204..last + 1).collect::<Vec<usize>>();
    let alone: Vec<Vec<usize>> = (204..294).map(list).collect();
    let decoded = bits(&paged(&mut draw, &qkv, heads, &alone, &[1; 90]));
    let prefilled = bits(&paged(&mut draw, &qkv, heads, &[list(293)], &[90]));
    for t in 204..294 {
        let at = (t - 204) * heads.nh * heads.hs;
        assert_eq!(&decoded[at..][..heads.nh * heads.hs], row(t), "row {t} decoded alone");
        assert_eq!(&prefilled[at..][..heads.nh * heads.hs], row(t), "row {t} prefilled");
    }
}

#[test]
fn elementwise_ops() {
    let heads = Heads { nh: 4, nkv: 2, hs: 10 };
    for (t, c) in [(1, 3), (37, 192), (700, 50)] {
        check(&format!("elementwise {t} {c}"), |draw| {
            let b = draw.backend;
            let (ids, wte) = (draw.below(t, 11), draw.bf16(&[11, c]));
            let mut embedded = draw.zeros(&[t, c]);
            ops::Embed { ids: &ids, wte: &wte, out: &mut embedded }.run(b).unwrap();
            let (x, w) = (draw.normal(&[t, c]), draw.normal(&[c]));
            let [mut sum, mut y, mut only] = [0; 3].map(|_| draw.zeros(&[t, c]));
            let (mut rstd, mut rstd_only) = (draw.zeros(&[t]), draw.zeros(&[t]));
            ops::AddRmsnorm {
                residual: &embedded,
                x: Some(&x),
                w: &w,
                eps: 1e-5,
                sum: Some(&mut sum),
                y: &mut y,
                rstd: &mut rstd,
            }
            .run(b)
            .unwrap();
            ops::AddRmsnorm { residual: &x, x: None, w: &w, eps: 1e-5, sum: None, y: &mut only, rstd: &mut rstd_only }
                .run(b)
                .unwrap();
            let (dy, mut dsum, mut dw) = (draw.normal(&[t, c]), draw.normal(&[t, c]), draw.normal(&[c]));
            ops::AddRmsnormBackward { sum: &sum, w: &w, rstd: &rstd, dy: &dy, dsum: &mut dsum, dw: Some(&mut dw) }
                .run(b)
                .unwrap();
            let (positions, table) = (draw.below(t, 9), draw.normal(&[9, heads.hs]));
            let (mut qkv, mut dqkv) = (draw.normal(&[t, heads.qkv_width()]), draw.normal(&[t, heads.qkv_width()]));
            ops::QkNormRope { qkv: &mut qkv, heads, norm: None, positions: &positions, table: &table, raw: None }
                .run(b)
                .unwrap();
            ops::QkNormRopeBackward {
                dqkv: &mut dqkv,
                heads,
                norm: None,
                positions: &positions,
                table: &table,
                raw: None,
                dnorm: None,
            }
            .run(b)
            .unwrap();
            let (gate_up, mut dgate_up) = (draw.normal(&[t, 2 * c]), draw.normal(&[t, 2 * c]));
            let mut mlp = draw.zeros(&[t, c]);
            ops::Swiglu { gate_up: &gate_up, y: &mut mlp }.run(b).unwrap();
            ops::SwigluBackward { gate_up: &gate_up, dy: &dy, dgate_up: &mut dgate_up }.run(b).unwrap();
            vec![embedded, sum, y, rstd, only, rstd_only, dsum, dw, qkv, dqkv, mlp, dgate_up]
        });
    }
}

#[test]
fn adamw() {
    check("adamw", |draw| {
        let shapes: [&[usize]; 2] = [&[7], &[300, 90]];
        let [mut p, g, mut m] = [0; 3].map(|_| shapes.map(|shape| draw.normal(shape)));
        let mut v = shapes.map(|shape| {
            let mut v = draw.zeros(shape);
            draw.backend.fill(&mut v, 0.5).unwrap();
            v
        });
        let settings =
            AdamW { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 3, grad_scale: 0.7 };
        let tensors = Trained::of(&mut p, &g, &mut m, &mut v);
        ops::AdamWStep { settings, tensors }.run(draw.backend).unwrap();
        p.into_iter().chain(m).chain(v).collect()
    });
}

/// A few rows of a (T, K) tensor from `start`.
fn rows_of(x: &Tensor, start: usize, rows: usize) -> Tensor {
    let k = x.columns();
    Tensor::from_slice(&[rows, k], &x.slice::<f32>()[start * k..(start + rows) * k])
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let mut draw = Draw::new(&Cpu);
    let (t, n, r, v) = (900, 75, 16, 1300);
    for k in [64, 192, 512, 896, 4864] {
        let (x, w, bias) = (draw.normal(&[t, k]), draw.bf16(&[n, k]), draw.normal(&[n]));
        let (a, b, head) = (draw.normal(&[r, k]), draw.normal(&[n, r]), draw.bf16(&[v, 64]));
        let p = Linear { w: &w, bias: Some(&bias), lora: Some(Lora { a: &a, b: &b, scale: 2.0 }) };
        let targets = draw.below(t, v).slice::<i32>().to_vec();
        let run = |start: usize, rows: usize| {
            let x = rows_of(&x, start, rows);
            let zeros = |width: usize| Tensor::zeros(&[rows, width], DType::F32);
            let (mut y, mut s) = (zeros(n), zeros(r));
            ops::Linears { x: &x, layers: std::slice::from_ref(&p), y: &mut y, column: 0, s: vec![Some(&mut s)] }
                .run(&Cpu)
                .unwrap();
            let mut outputs = vec![y, s];
            if k == 64 {
                let [mut logp, mut entropy, mut lse] = [0; 3].map(|_| Tensor::zeros(&[rows], DType::F32));
                let targets = ints(&targets[start..start + rows]);
                ops::LinearLogprob {
                    x: &x,
                    w: &head,
                    targets: &targets,
                    temperature: 0.8,
                    logp: &mut logp,
                    entropy: &mut entropy,
                    lse: &mut lse,
                }
                .run(&Cpu)
                .unwrap();
                let mut logits = zeros(v);
                ops::Logits { x: &x, w: &head, out: &mut logits }.run(&Cpu).unwrap();
                outputs.extend([logp, entropy, lse, logits]);
            }
            outputs
        };
        let all = run(0, t);
        for m in 1..=70 {
            let start = 3 * m;
            for (i, (part, all)) in run(start, m).iter().zip(&all).enumerate() {
                let width = part.len() / m;
                assert_eq!(bits(part), bits(all)[start * width..][..m * width], "K {k}, {m} rows, output {i}");
            }
        }
    }
}

#[test]
fn narrow_weights_give_the_bits_of_widened_ones() {
    let mut draw = Draw::new(&Cpu);
    let (t, k, n) = (50, 300, 70);
    let (x, values, dy) = (draw.normal(&[t, k]), draw.values(n * k), draw.normal(&[t, n]));
    let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
    let brains: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
    let wide_halves: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
    let wide_brains: Vec<f32> = brains.iter().map(|x| x.to_f32()).collect();
    let run = |w: &Tensor| {
        let p = Linear { w, bias: None, lora: None };
        let (mut y, mut dx) = (Tensor::zeros(&[t, n], DType::F32), Tensor::zeros(&[t, k], DType::F32));
        ops::Linears { x: &x, layers: std::slice::from_ref(&p), y: &mut y, column: 0, s: vec![None] }
            .run(&Cpu)
            .unwrap();
        ops::LinearsBackward {
            x: &x,
            layers: std::slice::from_ref(&p),
            dy: &dy,
            column: 0,
            s: vec![None],
            dx: Some(&mut dx),
            grads: vec![LinearGrads::default()],
        }
        .run(&Cpu)
        .unwrap();
        (bits(&y), bits(&dx))
    };
    let shape = [n, k];
    assert_eq!(run(&Tensor::from_slice(&shape, &halves)), run(&Tensor::from_slice(&shape, &wide_halves)));
    assert_eq!(run(&Tensor::from_slice(&shape, &brains)), run(&Tensor::from_slice(&shape, &wide_brains)));
    assert_ne!(run(&Tensor::from_slice(&shape, &brains)).0, run(&Tensor::from_slice(&shape, &wide_halves)).0);
}

#[test]
fn sampling_is_the_oracles() {
    let mut draw = Draw::new(&Cpu);
    let (b, v) = (40, 300);
    let logits = draw.normal(&[b, v]);
    let temperature = Tensor::from_slice(&[b], &(0..b).map(|i| i as f32 * 0.05).collect::<Vec<f32>>());
    let top_p = Tensor::from_slice(&[b], &(0..b).map(|i| 1.0 - i as f32 * 0.01).collect::<Vec<f32>>());
    let top_k = ints(&(0..b as i32).collect::<Vec<_>>());
    let seed = Tensor::from_slice(&[b, 2], &(0..2 * b as i32).collect::<Vec<_>>());
    let counter = ints(&(0..b as i32).collect::<Vec<_>>());
    let sampling = Sampling { temperature: &temperature, top_p: &top_p, top_k: &top_k, seed: &seed, counter: &counter };
    let run = |backend: &dyn Backend| {
        let (mut ids, mut logp) = (ints(&vec![0; b]), Tensor::zeros(&[b], DType::F32));
        ops::Sample { logits: &logits, sampling: &sampling, ids: &mut ids, logp: &mut logp }.run(backend).unwrap();
        (ids.slice::<i32>().to_vec(), logp)
    };
    let ((ids, logp), (expected, expected_logp)) = (run(&Cpu), run(&Oracle::f32()));
    assert_eq!(ids, expected);
    // Four units in the last place of the largest logit after division by the temperature.
    for (i, (x, y)) in wide(&logp).iter().zip(wide(&expected_logp)).enumerate() {
        let divisor = if i == 0 { 1.0 } else { i as f64 * 0.05 };
        let largest = wide(&rows_of(&logits, i, 1)).iter().fold(0.0, |m: f64, z| m.max(z.abs())) / divisor;
        assert!((x - y).abs() <= 4.0 * f64::from(f32::EPSILON) * largest, "row {i}: {x} {y}");
    }
    let mut broken = Tensor::from_slice(logits.shape(), logits.slice::<f32>());
    broken.slice_mut::<f32>()[7 * v + 3] = f32::NAN;
    let (mut ids, mut logp) = (ints(&vec![0; b]), Tensor::zeros(&[b], DType::F32));
    let error =
        ops::Sample { logits: &broken, sampling: &sampling, ids: &mut ids, logp: &mut logp }.run(&Cpu).unwrap_err();
    assert!(error.to_string().contains("row 7"), "{error}");
}

#[test]
fn sampling_records_the_bits_that_training_computes() {
    let mut draw = Draw::new(&Cpu);
    let (m, c, v) = (30, 64, 1500);
    let (x, w) = (draw.normal(&[m, c]), draw.bf16(&[v, c]));
    let mut logits = draw.zeros(&[m, v]);
    ops::Logits { x: &x, w: &w, out: &mut logits }.run(&Cpu).unwrap();
    for t in [1.0, 0.7] {
        let temperature = Tensor::from_slice(&[m], &vec![t; m]);
        let (top_p, top_k) = (Tensor::from_slice(&[m], &vec![1.0f32; m]), ints(&vec![0; m]));
        let (seed, counter) = (Tensor::zeros(&[m, 2], DType::I32), ints(&(0..m as i32).collect::<Vec<_>>()));
        let sampling =
            Sampling { temperature: &temperature, top_p: &top_p, top_k: &top_k, seed: &seed, counter: &counter };
        let (mut ids, mut sampled) = (ints(&vec![0; m]), draw.zeros(&[m]));
        ops::Sample { logits: &logits, sampling: &sampling, ids: &mut ids, logp: &mut sampled }.run(&Cpu).unwrap();
        let [mut logp, mut entropy, mut lse] = [0; 3].map(|_| draw.zeros(&[m]));
        ops::LinearLogprob {
            x: &x,
            w: &w,
            targets: &ids,
            temperature: t,
            logp: &mut logp,
            entropy: &mut entropy,
            lse: &mut lse,
        }
        .run(&Cpu)
        .unwrap();
        assert_eq!(bits(&sampled), bits(&logp), "temperature {t}");
    }
}
