//! SwiGLU forward and backward: intermediates in f32, outputs rounded once.

use crate::support::check;
use onestep::backend::ops;

/// (T, F): vectors, single elements, more than one block a row.
const SHAPES: [(usize, usize); 6] = [(5, 7), (4, 33), (7, 192), (3, 200), (2, 2064), (2, 259)];

#[test]
fn forward() {
    for (t, f) in SHAPES {
        check("swiglu", 0, |d| {
            let (gate_up, mut y) = (d.normal(&[t, 2 * f]), d.unwritten(&[t, f]));
            ops::Swiglu { gate_up: &gate_up, y: &mut y }.run(d.backend).unwrap();
            vec![y]
        });
    }
}

#[test]
fn backward() {
    for (t, f) in SHAPES {
        check("swiglu_backward", 0, |d| {
            let (gate_up, dy, mut dgate_up) = (d.normal(&[t, 2 * f]), d.normal(&[t, f]), d.unwritten(&[t, 2 * f]));
            ops::SwigluBackward { gate_up: &gate_up, dy: &dy, dgate_up: &mut dgate_up }.run(d.backend).unwrap();
            vec![dgate_up]
        });
    }
}

/// Gates whose exponential overflows or vanishes: 0 or the gate itself, never NaN.
#[test]
fn large_gates_saturate() {
    check("swiglu", 0, |d| {
        let values: Vec<f32> = (0..16).map(|i| (i as f32 - 8.0) * 50.0).collect();
        let (gate_up, mut y) = (d.put(&[2, 16], &values.repeat(2), d.backend.activation()), d.unwritten(&[2, 8]));
        let (dy, mut dgate_up) = (d.normal(&[2, 8]), d.unwritten(&[2, 16]));
        ops::Swiglu { gate_up: &gate_up, y: &mut y }.run(d.backend).unwrap();
        ops::SwigluBackward { gate_up: &gate_up, dy: &dy, dgate_up: &mut dgate_up }.run(d.backend).unwrap();
        let swapped: Vec<f32> = values[8..].iter().chain(&values[..8]).copied().collect();
        let (other, mut z) = (d.put(&[1, 16], &swapped, d.backend.activation()), d.unwritten(&[1, 8]));
        ops::Swiglu { gate_up: &other, y: &mut z }.run(d.backend).unwrap();
        vec![dgate_up, z]
    });
}
