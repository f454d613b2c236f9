//! Whole tensors on the device.

use crate::simt::Order;
use crate::support::{ORDERS, gpu};
use half::bf16;
use onestep::backend::Backend;
use onestep::rng::philox4x32;
use onestep::tensor::{DType, Tensor};

#[test]
fn recorded_work_is_done_once_a_replay_in_memory_that_stays_its_own() {
    let be = gpu(Order::Forward, 0, true);
    let (mut x, mut y) = (be.alloc(&[300], DType::F32).unwrap(), be.alloc(&[300], DType::F32).unwrap());
    be.fill(&mut x, 1.5).unwrap();
    let recording = be.device().record(&mut || {
        let mut narrow = be.alloc(&[300], DType::BF16)?; // freed before the replays
        be.write(&mut narrow, &x)?;
        be.write(&mut y, &narrow)
    });
    assert_eq!(be.read(&y).unwrap(), [0.0; 300], "recording does nothing");
    let recording = recording.unwrap();
    recording.replay().unwrap();
    assert_eq!(be.read(&y).unwrap(), [1.5; 300]);
    be.fill(&mut x, -2.0).unwrap();
    recording.replay().unwrap();
    assert_eq!(be.read(&y).unwrap(), [-2.0; 300]);
    let error = be.device().record(&mut || be.read(&x).map(drop)).err().unwrap();
    assert!(error.to_string().contains("while work was recorded"), "{error}");
}

#[test]
fn values_come_back_as_they_went_in_rounded_to_the_tensors_type() {
    let be = gpu(Order::Forward, 0, true);
    let values: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 0.123).collect();
    let host = Tensor::from_slice(&[10, 100], &values);
    let (mut wide, mut narrow) =
        (be.alloc(&[10, 100], DType::F32).unwrap(), be.alloc(&[10, 100], DType::BF16).unwrap());
    be.write(&mut wide, &host).unwrap();
    assert_eq!(be.read(&wide).unwrap(), values);
    be.write(&mut narrow, &host).unwrap();
    let rounded: Vec<f32> = values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    assert_eq!(be.read(&narrow).unwrap(), rounded);
    // On the device: f32 to bf16 as the host rounds, and back exactly.
    be.fill(&mut narrow, 3.0).unwrap();
    assert_eq!(be.read(&narrow).unwrap(), vec![3.0; 1000]);
    be.write(&mut narrow, &wide).unwrap();
    assert_eq!(be.read(&narrow).unwrap(), rounded);
    be.write(&mut wide, &narrow).unwrap();
    assert_eq!(be.read(&wide).unwrap(), rounded);
    be.fill(&mut wide, 0.0).unwrap();
    assert_eq!(be.read(&wide).unwrap(), vec![0.0; 1000]);
}

/// The same numbers on the host in f64: Box-Muller of Philox's words at counter (i / 4, 1).
fn expected(n: usize, deviation: f64, seed: u64) -> Vec<f64> {
    let quarter = |i: u32| {
        let words = philox4x32([i, 0, 1, 0], [seed as u32, (seed >> 32) as u32]);
        let pair = |u: u32, v: u32| {
            let radius = deviation * (-2.0 * ((f64::from(u) + 0.5) / 2f64.powi(32)).ln()).sqrt();
            let angle = std::f64::consts::TAU * f64::from(v) / 2f64.powi(32);
            [radius * angle.cos(), radius * angle.sin()]
        };
        [pair(words[0], words[1]), pair(words[2], words[3])].concat()
    };
    (0..n.div_ceil(4) as u32).flat_map(quarter).take(n).collect()
}

#[test]
fn random_normal_numbers_are_philoxs_and_normal() {
    let seed = 0x1234_5678_9ABC_DEF0;
    for n in [1, 3, 1023, 40_001] {
        for (order, random) in ORDERS {
            let be = gpu(order, random, true);
            let make = |dtype, seed| {
                let mut tensor = be.alloc(&[n], dtype).unwrap();
                be.random_normal(&mut tensor, 0.02, seed).unwrap();
                be.read(&tensor).unwrap()
            };
            let wide = make(DType::F32, seed);
            for (found, exact) in wide.iter().zip(expected(n, 0.02, seed)) {
                // Near u = 1 the radius feels the rounding of u, 2^-25: off by at most sqrt(2 * 2^-25) deviations. Elsewhere by ulps.
                let bound = 0.02 * if exact.abs() < 0.02 * 0.01 { 3e-4 } else { 1e-5 };
                assert!((f64::from(*found) - exact).abs() <= bound, "{found} for {exact}");
            }
            let rounded: Vec<f32> = wide.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
            assert_eq!(make(DType::BF16, seed), rounded);
            assert_ne!(make(DType::F32, seed + 1), wide);
            assert_ne!(make(DType::F32, seed + (1 << 32)), wide);
        }
    }
    let be = gpu(Order::Forward, 0, true);
    let n = 40_000;
    let mut tensor = be.alloc(&[n], DType::F32).unwrap();
    be.random_normal(&mut tensor, 1.0, 7).unwrap();
    let values: Vec<f64> = be.read(&tensor).unwrap().into_iter().map(f64::from).collect();
    let mean = values.iter().sum::<f64>() / n as f64;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
    // Five standard errors: 1 / sqrt(n) of the mean, sqrt(2 / n) of the variance.
    assert!(mean.abs() < 5.0 / (n as f64).sqrt(), "mean {mean}");
    assert!((variance - 1.0).abs() < 5.0 * (2.0 / n as f64).sqrt(), "variance {variance}");
    // The signs of four in a row: sixteen patterns, equally often. Chi-square of 15 degrees: above 50 once in 80,000 seeds.
    let mut patterns = [0.0; 16];
    for four in values.chunks_exact(4) {
        patterns[four.iter().fold(0, |bits, &x| 2 * bits + usize::from(x > 0.0))] += 1.0;
    }
    let even = n as f64 / 64.0;
    let chi_square: f64 = patterns.iter().map(|seen| (seen - even) * (seen - even) / even).sum();
    assert!(chi_square < 50.0, "{chi_square}");
}
