//! Residual and RMSNorm: widths for 1, 2 and 4 vectors a thread and for single elements, weights in bf16 and f32.

use crate::support::check;
use onestep::tensor::DType;

/// (T, C): vectors first, then single elements, also where the row is too wide for registers.
const SHAPES: [(usize, usize); 9] =
    [(5, 192), (3, 200), (2, 2056), (2, 4104), (1, 10000), (3, 7), (4, 33), (2, 2061), (1, 16392)];

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
                d.backend.add_rmsnorm(&residual, Some(&x), &w, 1e-5, Some(&mut sum), &mut y, &mut rstd).unwrap();
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
            d.backend.add_rmsnorm(&residual, None, &w, 1e-5, None, &mut y, &mut rstd).unwrap();
            vec![y, rstd]
        });
    }
}

/// T above the number of blocks that add up dw, so that a block has more than one row.
#[test]
fn backward_accumulates_with_and_without_dw() {
    for (t, c) in SHAPES.into_iter().chain([(300, 40), (300, 7)]) {
        for (w_type, wants_dw) in [(DType::BF16, true), (DType::F32, true), (DType::BF16, false), (DType::F32, false)] {
            if c > 300 && w_type == DType::BF16 {
                continue; // only to save time
            }
            check("add_rmsnorm_backward", 0, |d| {
                let (sum, dy, mut dsum) = (d.normal(&[t, c]), d.normal(&[t, c]), d.normal(&[t, c]));
                let (values, mut dw) = (d.values(c, 1.0), d.accumulated(&[c]));
                let (w, rstd) = (d.put(&[c], &values, w_type), d.accumulated(&[t]));
                let wanted = wants_dw.then_some(&mut dw);
                d.backend.add_rmsnorm_backward(&sum, &w, &rstd, &dy, &mut dsum, wanted).unwrap();
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
        be.add_rmsnorm(&residual, Some(&x), &w, 1e-6, Some(&mut sum), &mut y, &mut rstd).unwrap();
        be.add_rmsnorm(&sum, None, &w, 1e-6, None, &mut again, &mut rstd_again).unwrap();
        assert_eq!(be.read(&y).unwrap(), be.read(&again).unwrap());
        assert_eq!(be.read(&rstd).unwrap(), be.read(&rstd_again).unwrap());
    }
}
