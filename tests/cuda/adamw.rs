//! The optimiser over lists of tensors.

use crate::simt::Order;
use crate::support::{Draw, ORDERS, check, gpu};
use onestep::backend::Backend;
use onestep::backend::ops::{self, AdamW, Trained};
use onestep::backend::oracle::Oracle;
use onestep::optimizer::squared_norm;
use onestep::tensor::{DType, Tensor};

/// Ragged, empty, of one element, more than one block (32768 elements) and exactly two.
const SHAPES: [&[usize]; 6] = [&[3, 5], &[0], &[1], &[33_000], &[2, 32_768], &[7, 64]];
const SETTINGS: AdamW =
    AdamW { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-6, weight_decay: 0.1, step: 1, grad_scale: 0.5 };

#[test]
fn steps_are_the_oracles() {
    for shapes in [&SHAPES[..3], &SHAPES[2..]] {
        // All in f32 with the oracle's operations.
        check("adamw", 0, |draw| {
            let mut list = |_| -> Vec<Tensor> { shapes.iter().map(|s| draw.accumulated(s)).collect() };
            let [mut params, first, second] = [0, 1, 2].map(&mut list);
            let zeros = || -> Vec<Tensor> {
                shapes.iter().map(|s| draw.put(s, &vec![0.0; s.iter().product()], draw.backend.accumulator())).collect()
            };
            let (mut m, mut v) = (zeros(), zeros());
            for (i, grads) in [first, second].iter().enumerate() {
                let settings = AdamW { step: i as u32 + 1, ..SETTINGS };
                let tensors = Trained::of(&mut params, grads, &mut m, &mut v);
                ops::AdamWStep { settings, tensors }.run(draw.backend).unwrap();
            }
            params.into_iter().chain(m).chain(v).filter(|t| !t.is_empty()).collect()
        });
    }
}

#[test]
fn the_norm_is_the_oracles_to_f64s_rounding() {
    let oracle = Oracle::f64();
    let norm = |backend: &dyn Backend| {
        let mut draw = Draw::new(backend, 5);
        let tensors: Vec<Tensor> = SHAPES.iter().map(|s| draw.accumulated(s)).collect();
        squared_norm(backend, &tensors.iter().collect::<Vec<_>>()).unwrap()
    };
    let exact = norm(&oracle);
    for (order, random) in ORDERS {
        let found = norm(&gpu(order, random, true));
        // 1e5 positive terms, each exact in f64: at most as many roundings of the sum.
        assert!((found - exact).abs() <= 1e5 * f64::EPSILON * exact, "{found} for {exact}");
    }
    let be = gpu(Order::Forward, 0, true);
    assert_eq!(squared_norm(&be, &[]).unwrap(), 0.0);
    ops::AdamWStep { settings: SETTINGS, tensors: vec![] }.run(&be).unwrap();
}

#[test]
fn a_gradient_that_is_not_finite_shows_in_the_norm() {
    let be = gpu(Order::Forward, 0, true);
    let draw = Draw::new(&be, 0);
    let mut values = vec![1.0; 5000];
    values[4321] = f32::INFINITY;
    let tensor = draw.put(&[5000], &values, DType::F32);
    assert_eq!(squared_norm(&be, &[&tensor]).unwrap(), f64::INFINITY);
}
