//! The clipped value loss.

use crate::simt::Order;
use crate::support::{Draw, check, gpu};
use onestep::backend::ops::{self, ValueInputs};
use onestep::backend::oracle::Oracle;
use onestep::tensor::Tensor;

/// Values move by N(0, 1) around the old ones: on both sides of a clip of 0.5.
fn loss(draw: &mut Draw, clip: Option<f32>, m: usize) -> (f64, Vec<Tensor>) {
    let [value, old_value, target, weight] = [1.0, 1.0, 1.0, 0.1].map(|scale| {
        let values = draw.values(m, scale);
        draw.put(&[m], &values, draw.backend.accumulator())
    });
    let mut dvalue = draw.unwritten_accumulated(&[m]);
    let inputs = ValueInputs { value: &value, old_value: &old_value, target: &target, weight: &weight };
    let mut loss = 0.0;
    ops::ValueLoss { clip, inputs: &inputs, dvalue: &mut dvalue, loss: &mut loss }.run(draw.backend).unwrap();
    (loss, vec![dvalue])
}

#[test]
fn gradients_are_the_oracles() {
    for (m, clip) in [(5, None), (33, Some(0.5)), (300, Some(0.5))] {
        // A token's arithmetic is in f64: no rounding but that of the output.
        check("value_loss", 0, |draw| loss(draw, clip, m).1);
    }
}

#[test]
fn the_loss_is_the_oracles_to_f64s_rounding() {
    let oracle = Oracle::f64();
    for (m, clip) in [(0, Some(0.5)), (1, None), (1000, Some(0.5)), (66_000, Some(0.5))] {
        let exact = loss(&mut Draw::new(&oracle, 3), clip, m).0;
        for order in [Order::Forward, Order::Reverse] {
            let be = gpu(order, 0, true);
            let found = loss(&mut Draw::new(&be, 3), clip, m).0;
            // m terms below 10, summed in two orders.
            let bound = 20.0 * (m as f64) * f64::EPSILON * (m as f64).sqrt();
            assert!((found - exact).abs() <= bound, "{m}: {found} for {exact}, allowed {bound:e}");
        }
    }
}
