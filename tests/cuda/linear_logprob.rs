//! From hidden states to log-probabilities and back.

use crate::simt::Order;
use crate::support::{Draw, check, gpu};
use onestep::backend::Backend;
use onestep::backend::ops::{self};
use onestep::tensor::{DType, Tensor};

/// Vocabularies of one thread, without and with 16-byte rows, and beyond the block's unrolled loop; one row, some, more than a chunk.
const SHAPES: [[usize; 3]; 5] = [[1, 5, 8], [33, 1000, 16], [3, 4099, 24], [2, 16_400, 8], [200, 37, 8]]; // M, V, C

fn head(draw: &mut Draw, [m, v, c]: [usize; 3], is_trained: bool) -> [Tensor; 3] {
    let x = draw.normal(&[m, c]);
    // Logits of deviation 1.5 at temperature 1.
    let values = draw.values(v * c, 1.5 / (c as f32).sqrt());
    let w = draw.put(&[v, c], &values, if is_trained { draw.backend.accumulator() } else { draw.backend.activation() });
    let mut targets = draw.below(m, v);
    // The last id is a target, too.
    let mut ids = draw.backend.read_i32(&targets).unwrap();
    ids[m - 1] = v as i32 - 1;
    draw.backend.write(&mut targets, &Tensor::from_slice(&[m], &ids)).unwrap();
    [x, w, targets]
}

fn forward(draw: &Draw, [x, w, targets]: &[Tensor; 3], temperature: f32) -> [Tensor; 3] {
    let m = x.rows();
    let [mut logp, mut entropy, mut lse] = [0, 1, 2].map(|_| draw.unwritten_accumulated(&[m]));
    ops::LinearLogprob { x, w, targets, temperature, logp: &mut logp, entropy: &mut entropy, lse: &mut lse }
        .run(draw.backend)
        .unwrap();
    [logp, entropy, lse]
}

#[test]
fn log_probabilities_are_the_oracles() {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        // Logits stay in f32: no rounding but that of the inputs, which are exact in bf16.
        check("linear_logprob", 0, |draw| {
            let head = head(draw, shape, i % 2 == 0);
            forward(draw, &head, [1.0, 0.7][i % 2]).into()
        });
    }
}

#[test]
fn gradients_are_the_oracles() {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        // The gradient of the logits is rounded to bf16 once, as PyTorch's is.
        check("linear_logprob_backward", 1, |draw| {
            let head = head(draw, shape, i % 2 == 0);
            let temperature = [1.0, 0.7][i % 2];
            let [_, entropy, lse] = forward(draw, &head, temperature);
            let [x, w, targets] = head;
            let (dlogp, dentropy) = (draw.accumulated(&[shape[0]]), draw.accumulated(&[shape[0]]));
            let dentropy = (i != 1).then_some(&dentropy);
            let mut dx = draw.unwritten(x.shape());
            // What is there stays: added to.
            let mut dw = draw.accumulated(w.shape());
            let wanted = (i != 3).then_some(&mut dw);
            ops::LinearLogprobBackward {
                x: &x,
                w: &w,
                targets: &targets,
                temperature,
                entropy: &entropy,
                lse: &lse,
                dlogp: &dlogp,
                dentropy,
                dx: &mut dx,
                dw: wanted,
            }
            .run(draw.backend)
            .unwrap();
            vec![dx, dw]
        });
    }
}

/// Every output of both directions, as f32.
fn both(be: &dyn Backend, shape: [usize; 3]) -> Vec<Vec<f32>> {
    let mut draw = Draw::new(be, 9);
    let head = head(&mut draw, shape, false);
    let [logp, entropy, lse] = forward(&draw, &head, 0.7);
    let [x, w, targets] = head;
    let (dlogp, dentropy) = (draw.accumulated(&[shape[0]]), draw.accumulated(&[shape[0]]));
    let (mut dx, mut dw) = (draw.unwritten(x.shape()), draw.accumulated(w.shape()));
    ops::LinearLogprobBackward {
        x: &x,
        w: &w,
        targets: &targets,
        temperature: 0.7,
        entropy: &entropy,
        lse: &lse,
        dlogp: &dlogp,
        dentropy: Some(&dentropy),
        dx: &mut dx,
        dw: Some(&mut dw),
    }
    .run(be)
    .unwrap();
    [logp, entropy, lse, dx, dw].iter().map(|t| be.read(t).unwrap()).collect()
}

#[test]
fn chunks_give_what_one_chunk_gives() {
    for m in [128, 129, 300] {
        let shape = [m, 40, 8];
        let whole = both(&gpu(Order::Forward, 0, true), shape);
        let chunked = both(&gpu(Order::Forward, 0, true).with_logits_bytes(1), shape);
        // Rows do not depend on each other: equal to the bit.
        assert!(whole[..4] == chunked[..4], "{m} rows differ");
        // A chunk is added to f32 in memory: as many roundings more as there are chunks, of values below 30.
        for (a, b) in whole[4].iter().zip(&chunked[4]) {
            assert!((a - b).abs() <= 3.0 * 30.0 * f32::EPSILON * 4.0, "{a} and {b}");
        }
    }
    let be = gpu(Order::Forward, 0, true);
    let draw = Draw::new(&be, 0);
    let head = [draw.unwritten(&[0, 8]), draw.unwritten(&[5, 8]), draw.ints(&[0], &[])];
    forward(&draw, &head, 1.0);
}

#[test]
fn large_logits_and_sure_rows_stay_finite() {
    let be = gpu(Order::Forward, 0, true);
    let draw = Draw::new(&be, 0);
    let x = draw.put(&[1, 1], &[1.0], DType::BF16);
    let w = draw.put(&[3, 1], &[-20_000.0, 20_000.0, 0.0], DType::BF16);
    let targets = draw.ints(&[1], &[1]);
    let [logp, entropy, lse] = forward(&draw, &[x, w, targets], 0.5);
    assert_eq!([&logp, &entropy, &lse].map(|t| be.read(t).unwrap()[0]), [0.0, 0.0, 39_936.0]);
}

#[test]
fn logits_are_the_products() {
    for [b, v, c] in [[1, 5, 8], [33, 100, 16]] {
        // Products of bf16 added in f32.
        check("logits", 0, |draw| {
            let [x, w, _] = head(draw, [b, v, c], b == 1);
            let mut out = draw.unwritten_accumulated(&[b, v]);
            ops::Logits { x: &x, w: &w, out: &mut out }.run(draw.backend).unwrap();
            vec![out]
        });
    }
}
