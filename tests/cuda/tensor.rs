//! Whole tensors on the device.

use crate::simt::Order;
use crate::support::gpu;
use half::bf16;
use onestep::backend::Backend;
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
