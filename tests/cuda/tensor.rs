//! Whole tensors on the device.

use crate::simt::Order;
use crate::support::gpu;
use half::bf16;
use onestep::backend::Backend;
use onestep::tensor::{DType, Tensor};

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
