//! Linear layers with adapters: by the library and one pass, by our fused kernels, and on a device without a library; layers that
//! share their input, with their weights in one piece of memory and not.

use crate::simt::{Order, Simt};
use crate::support::{Draw, ORDERS, check, error, gpu};
use half::bf16;
use onestep::backend::Backend;
use onestep::backend::cuda::{Cuda, LinearPath};
use onestep::backend::ops::{self, Linear, LinearGrads, Lora};
use onestep::backend::oracle::Oracle;
use onestep::error::{Error, Result};
use onestep::tensor::{DType, DeviceMemory, Tensor};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One layer. Dtypes are those on the GPU; the oracle takes the same.
#[derive(Debug, Clone, Copy)]
struct Case {
    t: usize,
    n: usize,
    k: usize,
    /// Rank, 0 for no adapter.
    r: usize,
    w: DType,
    bias: Option<DType>,
    /// Of y and dy beside the layer's own columns: before and after them.
    beside: [usize; 2],
}

const SCALE: f32 = 0.75;

fn round(x: f64) -> f64 {
    bf16::from_f64(x).to_f64()
}

/// a (M, K) b^T with b (N, K), or a b with b (K, N).
fn product(a: &[f64], b: &[f64], k: usize, n: usize, transpose_b: bool) -> Vec<f64> {
    let mut c = vec![];
    for a in a.chunks(k) {
        c.extend(
            (0..n).map(|j| (0..k).map(|l| a[l] * b[if transpose_b { j * k + l } else { l * n + j }]).sum::<f64>()),
        );
    }
    c
}

fn transposed(a: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|j| a.iter().skip(j).step_by(columns).copied()).collect()
}

/// The values of a case, the same for every backend.
struct Values {
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    dy: Vec<f32>,
    s: Vec<f32>,
    dx: Vec<f32>,
    grads: Vec<f32>,
}

impl Case {
    fn width(&self) -> usize {
        self.beside[0] + self.n + self.beside[1]
    }

    fn values(&self, be: &dyn Backend, seed: u64) -> Values {
        let (mut draw, Case { t, n, k, r, .. }) = (Draw::new(be, seed), *self);
        Values {
            x: draw.values(t * k, 1.0),
            w: draw.values(n * k, 1.0 / (k as f32).sqrt()),
            bias: draw.values(n, 1.0),
            a: draw.values(r * k, 1.0 / (k as f32).sqrt()),
            b: draw.values(n * r, 1.0),
            dy: draw.values(t * self.width(), 1.0),
            s: draw.values(t * r, 1.0),
            dx: draw.values(t * k, 1.0),
            grads: draw.values(n * k + n + r * (n + k), 1.0),
        }
    }

    /// y, s, dx, da, db, dw, dbias of a backend; those of an adapter only with one, dbias only with a bias.
    fn run(&self, be: &dyn Backend, v: &Values) -> Vec<Tensor> {
        let (draw, Case { t, n, k, r, .. }) = (Draw::new(be, 0), *self);
        let (activation, accumulator) = (be.activation(), be.accumulator());
        let x = draw.put(&[t, k], &v.x, activation);
        let w = draw.put(&[n, k], &v.w, self.w);
        let bias = self.bias.map(|dtype| draw.put(&[n], &v.bias, dtype));
        let (a, b) = (
            draw.put(&[r.max(1), k], &v.a_or_zero(r, k), DType::F32),
            draw.put(&[n, r.max(1)], &v.b_or_zero(r, n), DType::F32),
        );
        let lora = (r > 0).then_some(Lora { a: &a, b: &b, scale: SCALE });
        let p = Linear { w: &w, bias: bias.as_ref(), lora };
        let mut y = draw.put(&[t, self.width()], &v.dy, activation);
        let mut s = (r > 0).then(|| draw.unwritten(&[t, r]));
        ops::Linears {
            x: &x,
            layers: std::slice::from_ref(&p),
            y: &mut y,
            column: self.beside[0],
            s: vec![s.as_mut()],
        }
        .run(be)
        .unwrap();

        let dy = draw.put(&[t, self.width()], &v.dy, activation);
        let given = (r > 0).then(|| draw.put(&[t, r], &v.s, activation));
        let mut dx = draw.put(&[t, k], &v.dx, activation);
        let [of_w, of_bias, of_a] = [n * k, n * k + n, n * k + n + r * k];
        let mut dw = draw.put(&[n, k], &v.grads[..of_w], accumulator);
        let mut dbias = bias.is_some().then(|| draw.put(&[n], &v.grads[of_w..of_bias], accumulator));
        let mut lora_grads = (r > 0).then(|| {
            (draw.put(&[r, k], &v.grads[of_bias..of_a], accumulator), draw.put(&[n, r], &v.grads[of_a..], accumulator))
        });
        let grads =
            LinearGrads { lora: lora_grads.as_mut().map(|(da, db)| (da, db)), w: Some(&mut dw), bias: dbias.as_mut() };
        ops::LinearsBackward {
            x: &x,
            layers: std::slice::from_ref(&p),
            dy: &dy,
            column: self.beside[0],
            s: vec![given.as_ref()],
            dx: Some(&mut dx),
            grads: vec![grads],
        }
        .run(be)
        .unwrap();
        let mut all = vec![y, dx, dw];
        all.extend(dbias);
        all.extend(s);
        if let Some((da, db)) = lora_grads {
            all.extend([da, db]);
        }
        all
    }

    /// The same in bf16 as a plain program computes it: every tensor that such a program has in memory is rounded, sums are not.
    fn plain(&self, v: &Values) -> Vec<Vec<f64>> {
        let Case { t, n, k, r, .. } = *self;
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (x, w, a, b, width, column) =
            (wide(&v.x), wide(&v.w), wide(&v.a), wide(&v.b), self.width(), self.beside[0]);
        let rounded = |x: Vec<f64>| x.into_iter().map(round).collect::<Vec<_>>();
        let dy: Vec<f64> = v.dy.chunks(width).flat_map(|dy| wide(&dy[column..column + n])).collect();
        let mut own = rounded(product(&x, &w, k, n, true));
        let mut dx: Vec<f64> =
            product(&dy, &w, n, k, false).iter().zip(&v.dx).map(|(p, &x)| round(p + f64::from(x))).collect();
        let add = |from: &[f32], p: Vec<f64>| {
            p.iter().zip(from).map(|(p, &x)| f64::from((p + f64::from(x)) as f32)).collect::<Vec<_>>()
        };
        let [of_w, of_bias, of_a] = [n * k, n * k + n, n * k + n + r * k];
        let dw = add(&v.grads[..of_w], product(&transposed(&dy, n), &x, t, k, false));
        let dbias = add(&v.grads[of_w..of_bias], product(&vec![1.0; t], &dy, t, n, false));
        let mut adapter = vec![];
        let mut up = vec![0.0; t * n];
        if r > 0 {
            let s = rounded(product(&x, &a, k, r, true));
            up = product(&s, &b, r, n, true).iter().map(|x| x * f64::from(SCALE)).collect();
            let ds: Vec<f64> = product(&dy, &b, n, r, false).iter().map(|x| round(x * f64::from(SCALE))).collect();
            for (dx, p) in dx.iter_mut().zip(product(&ds, &a, r, k, false)) {
                *dx = round(*dx + p);
            }
            let da = add(&v.grads[of_bias..of_a], product(&transposed(&ds, r), &x, t, k, false));
            let db =
                product(&transposed(&dy, n), &wide(&v.s), t, r, false).iter().map(|x| x * f64::from(SCALE)).collect();
            adapter = vec![s, da, add(&v.grads[of_a..], db)];
        }
        for (i, y) in own.iter_mut().enumerate() {
            *y = round(*y + up[i] + if self.bias.is_some() { f64::from(v.bias[i % n]) } else { 0.0 });
        }
        let mut y = wide(&v.dy);
        for (y, own) in y.chunks_mut(width).zip(own.chunks(n)) {
            y[column..column + n].copy_from_slice(own);
        }
        let mut all = vec![y, dx, dw];
        all.extend(self.bias.map(|_| dbias));
        all.extend(adapter);
        all
    }

    /// Against the f64 oracle: off by at most twice what plain bf16 is off by, and by 16 units in the last place of the largest
    /// magnitude for f32 sums in another order. The same bits in all thread orders.
    fn check(&self) {
        // Without a library the kernels are those of `Fused` but for dw: one order serves.
        let devices = [
            ("library", true, LinearPath::Library, &ORDERS[..]),
            ("fused", true, LinearPath::Fused, &ORDERS),
            ("no library", false, LinearPath::Library, &ORDERS[2..3]),
        ];
        let oracle = Oracle::f64();
        let v = self.values(&oracle, 11);
        let exact: Vec<Vec<f64>> = self.run(&oracle, &v).iter().map(|t| t.slice::<f64>().to_vec()).collect();
        let plain = self.plain(&v);
        for (device, has_gemm, path, orders) in devices {
            let mut first: Option<Vec<Vec<f32>>> = None;
            for &(order, seed) in orders {
                let be = gpu(order, seed, has_gemm).with_linear_path(path);
                let found: Vec<Vec<f32>> = self.run(&be, &v).iter().map(|t| be.read(t).unwrap()).collect();
                if let Some(first) = &first {
                    assert!(&found == first, "{self:?} {device}: the result depends on the thread order");
                    continue;
                }
                for (i, found) in found.iter().enumerate() {
                    let found: Vec<f64> = found.iter().map(|&x| x.into()).collect();
                    assert!(found.iter().all(|x| x.is_finite()), "{self:?} {device}: output {i} is not finite");
                    let largest = exact[i].iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                    let bound = 2.0 * error(&plain[i], &exact[i]) + 16.0 * f64::from(f32::EPSILON) * largest;
                    let off = error(&found, &exact[i]);
                    assert!(
                        off <= bound,
                        "{self:?} {device} {order:?}: output {i} is off by {off:e}, allowed {bound:e}"
                    );
                }
                let (y, column, n) = (&found[0], self.beside[0], self.n);
                for (y, before) in y.chunks(self.width()).zip(v.dy.chunks(self.width())) {
                    assert_eq!(y[..column], before[..column], "columns before the layer's own");
                    assert_eq!(y[column + n..], before[column + n..], "columns after the layer's own");
                }
                first = Some(found);
            }
        }
    }
}

impl Values {
    fn a_or_zero(&self, r: usize, k: usize) -> Vec<f32> {
        if r > 0 { self.a.clone() } else { vec![0.0; k] }
    }

    fn b_or_zero(&self, r: usize, n: usize) -> Vec<f32> {
        if r > 0 { self.b.clone() } else { vec![0.0; n] }
    }
}

const FROZEN: Case = Case { t: 5, n: 9, k: 33, r: 0, w: DType::BF16, bias: None, beside: [0, 0] };

#[test]
fn frozen_and_trained_weights_without_adapter() {
    FROZEN.check();
    Case { t: 70, n: 40, k: 48, w: DType::F32, bias: Some(DType::F32), beside: [8, 16], ..FROZEN }.check();
    Case { t: 20, n: 31, k: 50, bias: Some(DType::BF16), beside: [3, 2], ..FROZEN }.check();
}

#[test]
fn value_head_of_one_column() {
    Case { t: 37, n: 1, k: 64, w: DType::F32, bias: Some(DType::F32), ..FROZEN }.check();
}

#[test]
fn adapters_of_small_rank_on_every_tile() {
    Case { t: 3, n: 40, k: 64, r: 8, ..FROZEN }.check();
    Case { t: 70, n: 150, k: 47, r: 5, bias: Some(DType::BF16), beside: [3, 0], ..FROZEN }.check();
    Case { t: 140, n: 136, k: 72, r: 16, beside: [8, 8], ..FROZEN }.check();
}

#[test]
fn adapters_of_large_rank() {
    Case { t: 20, n: 40, k: 56, r: 33, beside: [0, 8], ..FROZEN }.check();
    Case { t: 140, n: 136, k: 40, r: 64, bias: Some(DType::F32), ..FROZEN }.check();
    Case { t: 40, n: 50, k: 70, r: 82, bias: Some(DType::BF16), beside: [1, 1], ..FROZEN }.check();
}

#[test]
fn long_contractions_are_split() {
    // The product of x and A over K, that of dy and B over N, and the sums over tokens.
    Case { t: 5, n: 24, k: 4200, r: 7, ..FROZEN }.check();
    Case { t: 5, n: 4200, k: 24, r: 7, ..FROZEN }.check();
    Case { t: 1100, n: 16, k: 24, r: 4, bias: Some(DType::F32), ..FROZEN }.check();
}

#[test]
fn the_bits_of_a_row_do_not_depend_on_the_other_rows() {
    for r in [8, 40, 80] {
        for path in [LinearPath::Library, LinearPath::Fused] {
            let be = gpu(Order::Forward, 0, true).with_linear_path(path);
            let case = Case { t: 200, n: 70, k: 90, r, bias: Some(DType::BF16), ..FROZEN };
            let v = case.values(&be, 2);
            let rows = |t: usize| forward(&be, &Case { t, ..case }, &v);
            let (y, s) = rows(200);
            for t in [1, 3, 17, 70] {
                let (few_y, few_s) = rows(t);
                assert_eq!(few_s, s[..t * r], "s of {t} rows, rank {r}, {path:?}");
                assert_eq!(few_y, y[..t * 70], "y of {t} rows, rank {r}, {path:?}");
            }
        }
    }
}

/// The first rows of a case: y and s.
fn forward(be: &Cuda, case: &Case, v: &Values) -> (Vec<f32>, Vec<f32>) {
    let (draw, Case { t, n, k, r, .. }) = (Draw::new(be, 0), *case);
    let x = draw.put(&[t, k], &v.x[..t * k], DType::BF16);
    let (w, bias) = (draw.put(&[n, k], &v.w, DType::BF16), draw.put(&[n], &v.bias, DType::BF16));
    let (a, b) = (draw.put(&[r, k], &v.a, DType::F32), draw.put(&[n, r], &v.b, DType::F32));
    let p = Linear { w: &w, bias: Some(&bias), lora: Some(Lora { a: &a, b: &b, scale: SCALE }) };
    let (mut y, mut s) = (draw.unwritten(&[t, n]), draw.unwritten(&[t, r]));
    ops::Linears { x: &x, layers: std::slice::from_ref(&p), y: &mut y, column: 0, s: vec![Some(&mut s)] }
        .run(be)
        .unwrap();
    (be.read(&y).unwrap(), be.read(&s).unwrap())
}

#[test]
fn what_is_not_wanted_is_not_computed() {
    let be = gpu(Order::Forward, 0, false);
    let case = Case { t: 4, n: 16, k: 24, r: 4, ..FROZEN };
    let v = case.values(&be, 1);
    let draw = Draw::new(&be, 0);
    let (x, w) = (draw.put(&[4, 24], &v.x, DType::BF16), draw.put(&[16, 24], &v.w, DType::BF16));
    let (a, b) = (draw.put(&[4, 24], &v.a, DType::F32), draw.put(&[16, 4], &v.b, DType::F32));
    let p = Linear { w: &w, bias: None, lora: Some(Lora { a: &a, b: &b, scale: SCALE }) };
    let dy = draw.put(&[4, 16], &v.dy, DType::BF16);
    let mut dx = draw.put(&[4, 24], &v.dx, DType::BF16);
    // A frozen adapter: only dx, and s is not needed.
    ops::LinearsBackward {
        x: &x,
        layers: std::slice::from_ref(&p),
        dy: &dy,
        column: 0,
        s: vec![None],
        dx: Some(&mut dx),
        grads: vec![LinearGrads::default()],
    }
    .run(&be)
    .unwrap();
    assert_ne!(be.read(&dx).unwrap(), v.dx);
    // Nothing at all.
    ops::LinearsBackward {
        x: &x,
        layers: std::slice::from_ref(&p),
        dy: &dy,
        column: 0,
        s: vec![None],
        dx: None,
        grads: vec![LinearGrads::default()],
    }
    .run(&be)
    .unwrap();
}

#[test]
fn an_adapter_is_merged_into_its_weight() {
    let (n, k) = (37, 300);
    for (r, dtype) in [(5, DType::BF16), (40, DType::F32)] {
        let merged = |be: &dyn Backend, dtype: DType| {
            let mut draw = Draw::new(be, 4);
            let (w, a, b) = (draw.values(n * k, 1.0), draw.values(r * k, 1.0), draw.values(n * r, 1.0));
            let mut w = draw.put(&[n, k], &w, dtype);
            let (a, b) = (draw.put(&[r, k], &a, DType::F32), draw.put(&[n, r], &b, DType::F32));
            ops::MergeLora { w: &mut w, lora: Lora { a: &a, b: &b, scale: SCALE } }.run(be).unwrap();
            w
        };
        let exact = merged(&Oracle::f64(), DType::F64);
        for (order, seed) in ORDERS {
            let be = gpu(order, seed, true);
            let found = be.read(&merged(&be, dtype)).unwrap();
            for (&found, &exact) in found.iter().zip(exact.slice::<f64>()) {
                // One rounding to the type of w (2^-8 of a bf16), and f32 sums of r + 1 terms of magnitude up to about 100.
                let allowed = (r + 2) as f64 * 100.0 * f64::from(f32::EPSILON)
                    + if dtype == DType::BF16 { exact.abs() / 255.0 } else { 0.0 };
                assert!((f64::from(found) - exact).abs() <= allowed, "rank {r}: {found} for {exact}");
            }
        }
    }
}

/// Rows of a tensor on the device.
struct Part {
    whole: Arc<Tensor>,
    offset: u64,
}

impl DeviceMemory for Part {
    fn address(&self) -> u64 {
        self.whole.device_address().unwrap() + self.offset
    }

    fn download(&self, _: &mut [u8]) -> Result<()> {
        Err(Error::system("a part is not read"))
    }
}

/// Layers that share their input: (N, rank or 0, has a bias).
type Layers = &'static [(usize, usize, bool)];

/// y, every s; dx and the gradients of every layer. On a GPU the weights lie in one piece of memory when `stacked`.
fn group(draw: &mut Draw, t: usize, k: usize, layers: Layers, stacked: bool) -> [Vec<Tensor>; 2] {
    let (activation, accumulator) = (draw.backend.activation(), draw.backend.accumulator());
    let n: usize = layers.iter().map(|&(n, ..)| n).sum();
    let values = draw.values(n * k, 1.0 / (k as f32).sqrt());
    let whole = stacked.then(|| Arc::new(draw.put(&[n, k], &values, activation)));
    let (mut row, mut weights) = (0, vec![]);
    for &(n, ..) in layers {
        weights.push(match &whole {
            Some(whole) if whole.device_address().is_some() => {
                let part = Part { whole: whole.clone(), offset: (row * k * activation.size()) as u64 };
                Tensor::on_device(&[n, k], activation, Arc::new(part))
            }
            _ => draw.put(&[n, k], &values[row * k..][..n * k], activation),
        });
        row += n;
    }
    let x = draw.normal(&[t, k]);
    let biases: Vec<_> = layers.iter().map(|&(n, _, has)| has.then(|| draw.normal(&[n]))).collect();
    let pair = |&(n, r, _): &(usize, usize, bool)| {
        let a = draw.values(r * k, 1.0 / (k as f32).sqrt());
        let b = draw.values(n * r, 1.0);
        (r > 0).then(|| (draw.put(&[r, k], &a, accumulator), draw.put(&[n, r], &b, accumulator)))
    };
    let pairs: Vec<_> = layers.iter().map(pair).collect();
    let linears: Vec<Linear> = (0..layers.len())
        .map(|i| {
            let lora = pairs[i].as_ref().map(|(a, b)| Lora { a, b, scale: SCALE + i as f32 });
            Linear { w: &weights[i], bias: biases[i].as_ref(), lora }
        })
        .collect();
    let mut y = draw.unwritten(&[t, n]);
    let mut s: Vec<_> = layers.iter().map(|&(_, r, _)| (r > 0).then(|| draw.unwritten(&[t, r]))).collect();
    let of = s.iter_mut().map(Option::as_mut).collect();
    ops::Linears { x: &x, layers: &linears, y: &mut y, column: 0, s: of }.run(draw.backend).unwrap();

    let given: Vec<_> = layers.iter().map(|&(_, r, _)| (r > 0).then(|| draw.normal(&[t, r]))).collect();
    let (dy, mut dx) = (draw.normal(&[t, n]), draw.normal(&[t, k]));
    let mut of_weights: Vec<_> = layers.iter().map(|&(n, ..)| draw.accumulated(&[n, k])).collect();
    let gradients =
        |&(n, r, _): &(usize, usize, bool)| (r > 0).then(|| (draw.accumulated(&[r, k]), draw.accumulated(&[n, r])));
    let mut of_adapters: Vec<_> = layers.iter().map(gradients).collect();
    let grads = of_weights.iter_mut().zip(&mut of_adapters);
    let grads = grads.map(|(w, pair)| LinearGrads { lora: pair.as_mut().map(|(a, b)| (a, b)), w: Some(w), bias: None });
    let (s_given, grads) = (given.iter().map(Option::as_ref).collect(), grads.collect());
    let (layers, dx_) = (&linears, Some(&mut dx));
    ops::LinearsBackward { x: &x, layers, dy: &dy, column: 0, s: s_given, dx: dx_, grads }.run(draw.backend).unwrap();
    let mut forward = vec![y];
    forward.extend(s.into_iter().flatten());
    let mut backward = vec![dx];
    backward.extend(of_weights);
    backward.extend(of_adapters.into_iter().flatten().flat_map(|(a, b)| [a, b]));
    [forward, backward]
}

/// Equal ranks with biases; ranks on both sides of 16, a layer without adapter; contractions of one and of two splits; two layers.
const GROUPS: [(usize, usize, Layers); 4] = [
    (67, 40, &[(70, 8, true), (24, 8, true), (24, 8, true)]),
    (5, 33, &[(300, 4, false), (9, 0, true), (17, 40, false)]),
    (3, 4200, &[(24, 7, false), (40, 7, false), (8, 3, true)]),
    (9, 24, &[(4200, 5, false), (30, 5, false)]),
];

#[test]
fn layers_that_share_their_input_are_computed_as_one() {
    for (t, k, layers) in GROUPS {
        let name = format!("{t} rows, K {k}, {layers:?}");
        // The product of W and, before it, s are rounded; in the backward dS, and the product before it is added to what is there.
        check(&name, 2, |draw| group(draw, t, k, layers, true).into_iter().next().unwrap());
        check(&name, 2 * layers.len(), |draw| group(draw, t, k, layers, true).into_iter().nth(1).unwrap());
    }
}

#[test]
fn one_product_serves_weights_in_one_piece_of_memory() {
    let (t, k, layers) = GROUPS[0];
    let mut seen = vec![];
    for stacked in [true, false] {
        let device = Simt::new(Order::Forward, 0, true);
        let (gemms, be) = (device.gemms.clone(), Cuda::new(Arc::new(device)));
        let [forward, _] = group(&mut Draw::new(&be, 3), t, k, layers, stacked);
        let values: Vec<_> = forward.iter().map(|t| be.read(t).unwrap()).collect();
        seen.push((gemms.load(Ordering::Relaxed), values));
    }
    let [(together, one), (apart, other)] = &seen[..] else { panic!("two runs") };
    // Forward, dx, and one dw a layer; the forward's bits are the same.
    assert_eq!((*together, *apart), (1 + 1 + 3, 3 + 3 + 3));
    assert_eq!(one, other);
}
