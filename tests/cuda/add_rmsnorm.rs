//! Residual and RMSNorm: widths for 1, 2 and 4 vectors a thread and for single elements, weights in bf16 and f32.

use crate::support::check;
use onestep::backend::ops;
use onestep::tensor::DType;

/// (T, C): vectors first, then single elements, also where the row is too wide for registers.
const SHAPES: [(usize, usize); 7] = [(5, 192), (3, 200), (2, 2056), (1, 4104), (3, 7), (4, 33), (1, 16392)];

#[test]
fn forward_adds_and_norms() {
    for (t, c) in SHAPES {
        for w_type in if c < 300 { &[DType::BF16, DType::F32][..] } else { &[DType::BF16] } {
            // One more rounding: the norm is of the sum as rounded, as a bf16 addition leaves it.
            check("add_rmsnorm", 1, |d| {
                let (residual, x) = (d.normal(&[t, c]), d.normal(&[t, c]));
                let values = d.values(c, 1.0);
                let w = d.put(&[c], &values, *w_type);
                let (mut sum, mut y) = (d.unwritten(&[t, c]), d.unwritten(&[t, c]));
                let mut rstd = d.unwritten_accumulated(&[t]);
                ops::AddRmsnorm {
                    residual: &residual,
                    x: Some(&x),
                    w: &w,
                    eps: 1e-5,
                    sum: Some(&mut sum),
                    y: &mut y,
                    rstd: &mut rstd,
                }
                .run(d.backend)
                .unwrap();
                vec![sum, y, rstd]
            });
        }
    }
}

/// Without an addition nothing is rounded but y: rstd keeps the accuracy of f32.
#[test]
fn forward_without_an_addition_norms_the_residual() {
    for (t, c) in SHAPES {
        check("add_rmsnorm", 0, |d| {
            let (residual, values) = (d.normal(&[t, c]), d.values(c, 1.0));
            let (w, mut y) = (d.put(&[c], &values, DType::F32), d.unwritten(&[t, c]));
            let mut rstd = d.unwritten_accumulated(&[t]);
            ops::AddRmsnorm { residual: &residual, x: None, w: &w, eps: 1e-5, sum: None, y: &mut y, rstd: &mut rstd }
                .run(d.backend)
                .unwrap();
            vec![y, rstd]
        });
    }
}

/// T above the number of blocks that add up dw, so that a block has more than one row.
#[test]
fn backward_accumulates_with_and_without_dw() {
    for (t, c) in SHAPES.into_iter().chain([(270, 16), (270, 7)]) {
        let small = t * c < 300; // the others in two of four variants, to save time
        for (w_type, wants_dw, all) in [
            (DType::F32, true, true),
            (DType::BF16, false, true),
            (DType::BF16, true, small),
            (DType::F32, false, small),
        ] {
            if !all {
                continue;
            }
            check("add_rmsnorm_backward", 0, |d| {
                let (sum, dy, mut dsum) = (d.normal(&[t, c]), d.normal(&[t, c]), d.normal(&[t, c]));
                let (values, mut dw) = (d.values(c, 1.0), d.accumulated(&[c]));
                let (w, rstd) = (d.put(&[c], &values, w_type), d.accumulated(&[t]));
                let wanted = wants_dw.then_some(&mut dw);
                ops::AddRmsnormBackward { sum: &sum, w: &w, rstd: &rstd, dy: &dy, dsum: &mut dsum, dw: wanted }
                    .run(d.backend)
                    .unwrap();
                vec![dsum, dw]
            });
        }
    }
}

/// The norm of a sum made here and of the same sum read back is the same to the bit: training recomputes it.
#[test]
fn the_norm_is_of_the_sum_as_stored() {
    use crate::simt::Order;
    use crate::support::{Draw, gpu};
    use onestep::backend::Backend;
    let be = gpu(Order::Forward, 0, true);
    for c in [33, 192] {
        let mut d = Draw::new(&be, 7);
        let (residual, x, w) = (d.normal(&[4, c]), d.normal(&[4, c]), d.accumulated(&[c]));
        let (mut sum, mut y, mut again) = (d.unwritten(&[4, c]), d.unwritten(&[4, c]), d.unwritten(&[4, c]));
        let (mut rstd, mut rstd_again) = (d.unwritten_accumulated(&[4]), d.unwritten_accumulated(&[4]));
        ops::AddRmsnorm {
            residual: &residual,
            x: Some(&x),
            w: &w,
            eps: 1e-6,
            sum: Some(&mut sum),
            y: &mut y,
            rstd: &mut rstd,
        }
        .run(&be)
        .unwrap();
        ops::AddRmsnorm { residual: &sum, x: None, w: &w, eps: 1e-6, sum: None, y: &mut again, rstd: &mut rstd_again }
            .run(&be)
            .unwrap();
        assert_eq!(be.read(&y).unwrap(), be.read(&again).unwrap());
        assert_eq!(be.read(&rstd).unwrap(), be.read(&rstd_again).unwrap());
    }
}
