//! Speed of the CPU backend's main ops against the `gemm` crate on the same machine: writes one JSON line a measurement. Results are
//! checked against each other before they are timed. Not a test: nothing passes or fails by time.
#![allow(clippy::unwrap_used)]

use half::bf16;
use onestep::backend::cpu::Cpu;
use onestep::backend::ops::{self, Heads, Linear, Lora, Segments};
use onestep::rng::Philox;
use onestep::tensor::{DType, Tensor};
use std::time::Instant;

fn normal(random: &mut Philox, shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.normal() as f32).collect();
    Tensor::from_slice(shape, &values)
}

/// The best time of a call in seconds, over at least five calls and a fifth of a second.
fn best(mut call: impl FnMut()) -> f64 {
    call();
    let (begin, mut best, mut calls) = (Instant::now(), f64::INFINITY, 0);
    while calls < 5 || begin.elapsed().as_secs_f64() < 0.2 {
        let start = Instant::now();
        call();
        best = best.min(start.elapsed().as_secs_f64());
        calls += 1;
    }
    best
}

fn report(op: &str, provider: &str, shape: &[usize], flops: f64, seconds: f64) {
    let line = serde_json::json!({
        "op": op, "provider": provider, "shape": shape, "seconds": seconds, "gflops": flops / seconds / 1e9,
        "threads": rayon::current_num_threads(),
    });
    println!("{line}");
}

/// y (T, N) = x (T, K) w (N, K)^T by the `gemm` crate.
fn reference(t: usize, k: usize, n: usize, x: &[f32], w: &[f32], y: &mut [f32]) {
    assert!(y.len() == t * n && x.len() == t * k && w.len() == n * k);
    let threads = gemm::Parallelism::Rayon(0);
    // SAFETY: the three matrices hold what the extents and strides name.
    unsafe {
        gemm::gemm(
            t,
            n,
            k,
            y.as_mut_ptr(),
            1,
            n as isize,
            false,
            x.as_ptr(),
            1,
            k as isize,
            w.as_ptr(),
            k as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

fn linear(random: &mut Philox, t: usize, k: usize, n: usize) {
    let (x, w, mut y) = (normal(random, &[t, k]), normal(random, &[n, k]), Tensor::zeros(&[t, n], DType::F32));
    let narrow: Vec<bf16> = w.slice::<f32>().iter().map(|&x| bf16::from_f32(x)).collect();
    let narrow = Tensor::from_slice(&[n, k], &narrow);
    let flops = 2.0 * (t * k * n) as f64;
    let mut expected = vec![0.0f32; t * n];
    reference(t, k, n, x.slice(), w.slice(), &mut expected);
    ops::Linears {
        x: &x,
        layers: std::slice::from_ref(&Linear { w: &w, bias: None, lora: None }),
        y: &mut y,
        column: 0,
        s: vec![None],
    }
    .run(&Cpu)
    .unwrap();
    for (a, b) in y.slice::<f32>().iter().zip(&expected) {
        assert!((a - b).abs() <= 1e-4 * (k as f32).sqrt(), "{a} {b}");
    }
    let shape = [t, k, n];
    let seconds = best(|| reference(t, k, n, x.slice(), w.slice(), &mut expected));
    report("linear f32", "gemm", &shape, flops, seconds);
    for (name, w) in [("linear f32", &w), ("linear bf16", &narrow)] {
        let p = Linear { w, bias: None, lora: None };
        report(
            name,
            "onestep",
            &shape,
            flops,
            best(|| {
                ops::Linears { x: &x, layers: std::slice::from_ref(&p), y: &mut y, column: 0, s: vec![None] }
                    .run(&Cpu)
                    .unwrap()
            }),
        );
    }
    let (a, b) = (normal(random, &[16, k]), normal(random, &[n, 16]));
    let p = Linear { w: &w, bias: None, lora: Some(Lora { a: &a, b: &b, scale: 1.0 }) };
    let [mut s, mut dx, mut da, mut db] =
        [[t, 16], [t, k], [16, k], [n, 16]].map(|shape| Tensor::zeros(&shape, DType::F32));
    let seconds = best(|| {
        ops::Linears { x: &x, layers: std::slice::from_ref(&p), y: &mut y, column: 0, s: vec![Some(&mut s)] }
            .run(&Cpu)
            .unwrap()
    });
    report("linear lora", "onestep", &shape, flops, seconds);
    if t > 1 {
        let seconds = best(|| {
            let grads = ops::LinearGrads { lora: Some((&mut da, &mut db)), ..Default::default() };
            ops::LinearsBackward {
                x: &x,
                layers: std::slice::from_ref(&p),
                dy: &y,
                column: 0,
                s: vec![Some(&s)],
                dx: Some(&mut dx),
                grads: vec![grads],
            }
            .run(&Cpu)
            .unwrap();
        });
        report("linear lora backward", "onestep", &shape, flops, seconds);
        let mut dw = Tensor::zeros(&[n, k], DType::F32);
        let p = Linear { lora: None, ..p };
        let seconds = best(|| {
            let grads = ops::LinearGrads { w: Some(&mut dw), ..Default::default() };
            ops::LinearsBackward {
                x: &x,
                layers: std::slice::from_ref(&p),
                dy: &y,
                column: 0,
                s: vec![None],
                dx: None,
                grads: vec![grads],
            }
            .run(&Cpu)
            .unwrap();
        });
        report("linear dw", "onestep", &shape, flops, seconds);
    }
}

fn attention(random: &mut Philox, segments: usize, length: usize, heads: Heads) {
    let t = segments * length;
    let ends: Vec<i32> = (0..=segments).map(|s| (s * length) as i32).collect();
    let cu_seqlens = Tensor::from_slice(&[segments + 1], &ends);
    let parent = Tensor::from_slice(&[segments], &vec![-1; segments]);
    let packed = Segments { cu_seqlens: &cu_seqlens, parent: &parent };
    let width = heads.nh * heads.hs;
    let qkv = normal(random, &[t, heads.qkv_width()]);
    let dout = normal(random, &[t, width]);
    let [mut o, mut lse, mut dqkv] =
        [[t, width], [heads.nh, t], [t, heads.qkv_width()]].map(|shape| Tensor::zeros(&shape, DType::F32));
    // Causal: two products over half the keys forward, five backward.
    let flops = 2.0 * (segments * length * length * width) as f64;
    let shape = [segments, length, heads.nh, heads.nkv, heads.hs];
    let seconds =
        best(|| ops::Attention { qkv: &qkv, heads, segments: &packed, o: &mut o, lse: &mut lse }.run(&Cpu).unwrap());
    report("attention", "onestep", &shape, flops, seconds);
    let seconds = best(|| {
        ops::AttentionBackward { qkv: &qkv, o: &o, lse: &lse, dout: &dout, heads, segments: &packed, dqkv: &mut dqkv }
            .run(&Cpu)
            .unwrap()
    });
    report("attention backward", "onestep", &shape, 2.5 * flops, seconds);
}

fn paged(random: &mut Philox, sequences: usize, length: usize, heads: Heads) {
    let block = 16;
    let blocks = length / block;
    let table: Vec<i32> = (0..(sequences * blocks) as i32).rev().collect();
    let table = Tensor::from_slice(&[sequences, blocks], &table);
    let cache = [sequences * length, heads.nkv * heads.hs];
    let (k, v) = (normal(random, &cache), normal(random, &cache));
    let qkv = normal(random, &[sequences, heads.qkv_width()]);
    let lens = Tensor::from_slice(&[sequences], &vec![length as i32; sequences]);
    let cu_q = Tensor::from_slice(&[sequences + 1], &(0..=sequences as i32).collect::<Vec<_>>());
    let mut o = Tensor::zeros(&[sequences, heads.nh * heads.hs], DType::F32);
    let seconds = best(|| {
        ops::AttentionPaged {
            qkv: &qkv,
            heads,
            k_cache: &k,
            v_cache: &v,
            block_size: block,
            block_table: &table,
            lens: &lens,
            cu_q: &cu_q,
            o: &mut o,
        }
        .run(&Cpu)
        .unwrap()
    });
    let flops = 4.0 * (sequences * length * heads.nh * heads.hs) as f64;
    report("attention_paged", "onestep", &[sequences, length, heads.nh, heads.nkv, heads.hs], flops, seconds);
}

fn log_probabilities(random: &mut Philox, m: usize, c: usize, v: usize) {
    let (x, w) = (normal(random, &[m, c]), normal(random, &[v, c]));
    let targets = Tensor::from_slice(&[m], &(0..m).map(|i| (i % v) as i32).collect::<Vec<_>>());
    let [mut logp, mut entropy, mut lse] = [0; 3].map(|_| Tensor::zeros(&[m], DType::F32));
    let mut dx = Tensor::zeros(&[m, c], DType::F32);
    let flops = 2.0 * (m * c * v) as f64;
    let seconds = best(|| {
        ops::LinearLogprob {
            x: &x,
            w: &w,
            targets: &targets,
            temperature: 1.0,
            logp: &mut logp,
            entropy: &mut entropy,
            lse: &mut lse,
        }
        .run(&Cpu)
        .unwrap()
    });
    report("linear_logprob", "onestep", &[m, c, v], flops, seconds);
    let dlogp = normal(random, &[m]);
    let seconds = best(|| {
        ops::LinearLogprobBackward {
            x: &x,
            w: &w,
            targets: &targets,
            temperature: 1.0,
            entropy: &entropy,
            lse: &lse,
            dlogp: &dlogp,
            dentropy: None,
            dx: &mut dx,
            dw: None,
        }
        .run(&Cpu)
        .unwrap();
    });
    report("linear_logprob_backward", "onestep", &[m, c, v], 2.0 * flops, seconds);
}

fn elementwise(random: &mut Philox, t: usize, c: usize, f: usize) {
    let (gate_up, mut y) = (normal(random, &[t, 2 * f]), Tensor::zeros(&[t, f], DType::F32));
    report(
        "swiglu",
        "onestep",
        &[t, f],
        (t * f) as f64,
        best(|| ops::Swiglu { gate_up: &gate_up, y: &mut y }.run(&Cpu).unwrap()),
    );
    let mut dgate_up = Tensor::zeros(&[t, 2 * f], DType::F32);
    let seconds =
        best(|| ops::SwigluBackward { gate_up: &gate_up, dy: &y, dgate_up: &mut dgate_up }.run(&Cpu).unwrap());
    report("swiglu_backward", "onestep", &[t, f], (t * f) as f64, seconds);
    let (x, w) = (normal(random, &[t, c]), normal(random, &[c]));
    let [mut sum, mut out] = [0; 2].map(|_| Tensor::zeros(&[t, c], DType::F32));
    let mut rstd = Tensor::zeros(&[t], DType::F32);
    let seconds = best(|| {
        ops::AddRmsnorm {
            residual: &x,
            x: Some(&x),
            w: &w,
            eps: 1e-6,
            sum: Some(&mut sum),
            y: &mut out,
            rstd: &mut rstd,
        }
        .run(&Cpu)
        .unwrap()
    });
    report("add_rmsnorm", "onestep", &[t, c], (t * c) as f64, seconds);
}

fn main() {
    let random = &mut Philox::new(1, 0);
    for (t, k, n) in [
        (4096, 192, 512),
        (4096, 512, 192),
        (192, 192, 512),
        (16, 192, 512),
        (1, 192, 512),
        (1024, 896, 4864),
        (1, 896, 9728),
    ] {
        linear(random, t, k, n);
    }
    let small = Heads { nh: 6, nkv: 2, hs: 32 };
    attention(random, 8, 512, small);
    attention(random, 1, 2048, Heads { nh: 14, nkv: 2, hs: 64 });
    paged(random, 192, 512, small);
    paged(random, 1, 512, small);
    log_probabilities(random, 2048, 192, 1000);
    elementwise(random, 4096, 192, 512);
}
