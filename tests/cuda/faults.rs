//! The emulation itself: planted faults are caught, right kernels pass, every kernel of the crate is in its compiled library.

use crate::simt::{Order, exports, own};
use crate::support::{ORDERS, gpu};
use onestep::backend::Backend;
use onestep::backend::cuda::device::{Arg, Launch};
use onestep::backend::cuda::kernels::{SOURCES, names};
use onestep::tensor::{DType, Tensor};

const N: usize = 128;

/// What a kernel of tests/simt/faults.cu makes of x = 0, 1, ..., or its fault.
fn ran(name: &'static str, (order, seed): (Order, u64)) -> Result<Vec<f32>, String> {
    ran_with(name, (order, seed), [1, 1, 1], N as u32, 512, |args| args)
}

fn ran_with(
    name: &'static str,
    (order, seed): (Order, u64),
    grid: [u32; 3],
    block: u32,
    shared: u32,
    args: impl Fn(Vec<Arg>) -> Vec<Arg>,
) -> Result<Vec<f32>, String> {
    let be = gpu(order, seed, false);
    let (mut x, y) = (be.alloc(&[N], DType::F32).unwrap(), be.alloc(&[N], DType::F32).unwrap());
    let values: Vec<f32> = (0..N).map(|i| i as f32).collect();
    be.write(&mut x, &Tensor::from_slice(&[N], &values)).unwrap();
    let args = args([&x, &y].map(|t| Arg::Pointer(t.device_address().unwrap())).to_vec());
    let launch = Launch { kernel: own(name), grid, block, shared, args: &args };
    be.device().launch(&launch).map_err(|e| e.to_string())?;
    Ok(be.read(&y).unwrap())
}

/// Every order faults, and the message has all `parts`.
fn faults(name: &'static str, parts: &[&str]) {
    for order in ORDERS {
        let fault = ran(name, order).expect_err(name);
        for part in parts.iter().chain([&name]) {
            assert!(fault.contains(part), "{name} in {order:?}: {fault:?} lacks {part:?}");
        }
    }
}

/// Whether an order gives a value that is not a number.
fn has_nan(name: &'static str, order: (Order, u64)) -> bool {
    ran(name, order).unwrap().iter().any(|y| y.is_nan())
}

#[test]
fn right_kernels_pass_in_every_order() {
    let reversed: Vec<f32> = (0..N).rev().map(|i| i as f32).collect();
    let half: Vec<f32> = (0..64).rev().map(|i| i as f32).chain([0.0; 64]).collect();
    for order in ORDERS {
        assert_eq!(ran("reversed", order).unwrap(), reversed);
        assert_eq!(ran("leaves_early", order).unwrap(), half);
    }
}

#[test]
fn a_missing_barrier_shows_in_the_values() {
    for order in ORDERS {
        assert!(has_nan("missing_barrier", order), "{order:?}");
    }
    for order in ORDERS {
        assert_ne!(ran("missing_second_barrier", order).unwrap(), vec![6.0; N], "{order:?}");
    }
    // One order hides it, the others do not.
    let right: Vec<f32> = (1..=N).map(|i| i as f32).collect();
    let is_right = ORDERS.map(|order| ran("hidden_missing_barrier", order).unwrap() == right);
    assert_eq!(is_right, ORDERS.map(|(order, _)| order == Order::Reverse));
}

#[test]
fn a_copy_that_is_not_waited_for_is_not_there() {
    for order in ORDERS {
        assert!(ran("missing_wait", order).unwrap().iter().all(|y| y.is_nan()));
        let y = ran("waits_for_too_few", order).unwrap();
        assert!(y[..64].iter().enumerate().all(|(i, &y)| y == i as f32) && y[64..].iter().all(|y| y.is_nan()), "{y:?}");
    }
}

#[test]
fn a_warp_that_does_not_act_as_one_is_a_fault() {
    faults("divergent_shuffle", &["deadlock", "a warp collective at", "faults.cu:"]);
    faults("different_collectives", &["different collectives", "faults.cu:"]);
    faults("different_masks", &["masks", "faults.cu:"]);
    faults("outside_its_mask", &["with a mask 0000ffff that leaves it out"]);
    faults("barrier_deadlock", &["deadlock", "the block barrier at", "a warp collective at"]);
    for order in ORDERS {
        assert!(has_nan("shuffle_from_outside", order));
    }
}

#[test]
fn accesses_outside_are_seen() {
    for name in ["writes_past_the_end", "writes_before_the_start"] {
        faults(name, &["outside an allocation", "one of 512 bytes"]);
    }
    faults("writes_past_shared", &["past a shared array of 512 bytes"]);
    faults("writes_past_dynamic", &["past its 512 bytes of dynamic shared memory"]);
    assert!(has_nan("reads_past_the_end", ORDERS[0]));
}

#[test]
fn what_was_never_written_is_nan() {
    for order in ORDERS {
        for name in ["unset_shared", "unset_dynamic"] {
            let y = ran(name, order).unwrap();
            assert!(y[127].is_nan() && y[..127].iter().all(|y| y.is_finite()), "{name}: {y:?}");
        }
    }
}

#[test]
fn addresses_are_aligned_and_of_the_right_memory() {
    faults("unaligned_matrix", &["ldmatrix", "16-byte aligned"]);
    faults("unaligned_copy", &["cp_async", "16-byte aligned"]);
    faults("copy_to_global", &["cp_async", "not in shared memory"]);
    faults("unaligned_load", &["aligned to 16 bytes"]);
}

#[test]
fn wrong_arguments_and_geometry_are_refused() {
    let refused = |grid, block, shared, args: &dyn Fn(Vec<Arg>) -> Vec<Arg>, part: &str| {
        let fault = ran_with("reversed", ORDERS[0], grid, block, shared, args).unwrap_err();
        assert!(fault.contains(part), "{fault:?} lacks {part:?}");
    };
    let same = |args: Vec<Arg>| args;
    refused([1, 1, 1], 128, 0, &|args| args[..1].to_vec(), "1 arguments given, the kernel has 2");
    refused([1, 1, 1], 128, 0, &|args| vec![args[0], Arg::I32(1)], "argument 1 has 4 bytes, the kernel expects 8");
    refused([1, 1, 1], 100, 0, &same, "a block of 100 threads");
    refused([1, 1, 1], 2048, 0, &same, "a block of 2048 threads");
    refused([1, 0, 1], 128, 0, &same, "a grid extent of 0");
    refused([1, 65536, 1], 128, 0, &same, "a grid extent of 65536");
    refused([1, 1, 1], 128, 228 << 10, &same, "bytes of shared memory");
    let fault = ran("no_such_kernel", ORDERS[0]).unwrap_err();
    assert!(fault.contains("no_such_kernel"), "{fault}");
}

#[test]
fn every_kernel_is_in_the_emulation() {
    for (stem, source) in SOURCES {
        let missing: Vec<&str> = names(source).filter(|name| !exports(stem, name)).collect();
        assert!(missing.is_empty(), "kernels/{stem}.cu: {missing:?}");
        // A kernel without its EXPORT line would never be tested.
        let exported = names(source).count();
        assert!(exported > 0, "kernels/{stem}.cu exports nothing");
    }
    assert!(!exports("tensor", "no_such_kernel"));
}
