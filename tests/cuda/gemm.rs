//! Our own matrix products, on a device without a vendor's library.

use crate::simt::Order;
use crate::support::{Draw, ORDERS, gpu};
use half::bf16;
use onestep::backend::Backend;
use onestep::backend::cuda::Cuda;
use onestep::backend::cuda::device::{Gemm, Matrix};
use onestep::tensor::{DType, Tensor};

/// A matrix inside a larger tensor: its rows are `stride` apart and it begins at `offset`. All around it lies NaN.
struct Held {
    tensor: Tensor,
    values: Vec<f32>,
    matrix: Matrix,
    rows: usize,
    columns: usize,
    offset: usize,
}

impl Held {
    fn new(draw: &mut Draw, rows: usize, columns: usize, is_aligned: bool, dtype: DType) -> Self {
        let (stride, offset) = if is_aligned { (columns.next_multiple_of(8) + 8, 8) } else { (columns + 3, 1) };
        let values = draw.values(rows * columns, 1.0);
        let mut all = vec![f32::NAN; offset + rows * stride];
        for (row, values) in values.chunks(columns.max(1)).enumerate() {
            all[offset + row * stride..][..columns].copy_from_slice(values);
        }
        let tensor = draw.put(&[all.len()], &all, dtype);
        let address = tensor.device_address().unwrap() + (offset * dtype.size()) as u64;
        Self { tensor, values, matrix: Matrix { address, stride, dtype }, rows, columns, offset }
    }

    /// The matrix as it is now; what surrounds it must still be NaN.
    fn read(&self, be: &Cuda) -> Vec<f32> {
        let mut all = be.read(&self.tensor).unwrap();
        let mut found = vec![];
        for row in 0..self.rows {
            let row = &mut all[self.offset + row * self.matrix.stride..][..self.columns];
            found.extend_from_slice(row);
            row.fill(f32::NAN);
        }
        assert!(all.iter().all(|x| x.is_nan()), "written outside of the matrix");
        found
    }
}

/// [a transposed, b transposed]
const FORMS: [[bool; 2]; 3] = [[false, true], [false, false], [true, false]];

/// Every element against f64. An f32 chain of k products is off by at most k units of 2^-24 of the sum of magnitudes; twice that is
/// allowed, since a tensor core may truncate; and rounding to bf16 adds 2^-8 of the result.
fn check_form([ta, tb]: [bool; 2], [m, n, k]: [usize; 3], is_aligned: bool, out: DType, [alpha, beta]: [f32; 2]) {
    let case = format!("{ta} {tb} {m}x{n}x{k} aligned {is_aligned} {out:?} {alpha} {beta}");
    let mut first: Option<Vec<f32>> = None;
    for (order, seed) in ORDERS {
        let be = gpu(order, seed, false);
        let mut draw = Draw::new(&be, 5);
        let [rows, columns] = if ta { [k, m] } else { [m, k] };
        let a = Held::new(&mut draw, rows, columns, is_aligned, DType::BF16);
        let [rows, columns] = if tb { [n, k] } else { [k, n] };
        let b = Held::new(&mut draw, rows, columns, is_aligned, DType::BF16);
        let mut c = Held::new(&mut draw, m, n, is_aligned, out);
        if beta == 0.0 {
            // c must not be read.
            let nan = vec![f32::NAN; c.tensor.len()];
            be.write(&mut c.tensor, &Tensor::from_slice(&[nan.len()], &nan)).unwrap();
        }
        let (transpose_a, transpose_b) = (ta, tb);
        let g = Gemm { m, n, k, a: a.matrix, transpose_a, b: b.matrix, transpose_b, c: c.matrix, alpha, beta };
        be.matrix_product(&g).unwrap();
        let found = c.read(&be);
        if let Some(first) = &first {
            assert_eq!(&found, first, "{case}: the result depends on the thread order");
            continue;
        }
        for i in 0..m {
            for j in 0..n {
                let (mut sum, mut size) = (0.0, 0.0);
                for l in 0..k {
                    let a = a.values[if ta { l * m + i } else { i * k + l }];
                    let b = b.values[if tb { j * k + l } else { l * n + j }];
                    let x = f64::from(alpha) * f64::from(a) * f64::from(b);
                    (sum, size) = (sum + x, size + x.abs());
                }
                if beta != 0.0 {
                    let x = f64::from(beta) * f64::from(c.values[i * n + j]);
                    (sum, size) = (sum + x, size + x.abs());
                }
                let mut allowed = (k + 3) as f64 * size * f64::from(f32::EPSILON);
                if out == DType::BF16 {
                    allowed += (sum.abs() + allowed) / 256.0;
                }
                let off = (f64::from(found[i * n + j]) - sum).abs();
                assert!(off <= allowed, "{case}: ({i}, {j}) is off by {off:e}, allowed {allowed:e}");
            }
        }
        first = Some(found);
    }
}

/// Sizes for every tile: the large one (the emulated device has 3 multiprocessors), the small one, and those for few rows.
const SIZES: [[usize; 3]; 5] = [[1, 1, 1], [5, 40, 133], [17, 31, 70], [70, 150, 47], [200, 150, 100]];

#[test]
fn all_forms_and_output_types_on_ragged_sizes_aligned_and_not() {
    for (i, size) in SIZES.into_iter().enumerate() {
        for (j, form) in FORMS.into_iter().enumerate() {
            for is_aligned in [true, false] {
                // Every form meets both output types with and without beta as the sizes go by.
                let out = if (i + j) % 2 == 0 { DType::BF16 } else { DType::F32 };
                check_form(form, size, is_aligned, out, [1.0, 0.0]);
                let out = if (i + j) % 2 == 0 { DType::F32 } else { DType::BF16 };
                check_form(form, size, is_aligned, out, [1.5, -0.5]);
            }
        }
    }
}

#[test]
fn a_long_sum_over_tokens_is_split() {
    for is_aligned in [true, false] {
        check_form([true, false], [16, 70, 1500], is_aligned, DType::F32, [0.5, 1.0]);
    }
    check_form([true, false], [40, 24, 1100], true, DType::BF16, [1.0, 0.0]);
}

#[test]
fn an_empty_contraction_leaves_beta_times_c() {
    for form in FORMS {
        check_form(form, [20, 40, 0], true, DType::F32, [1.0, 0.5]);
    }
}

#[test]
fn the_bits_of_a_row_do_not_depend_on_the_other_rows() {
    let (n, k) = (150, 200);
    let be = gpu(Order::Forward, 0, false);
    let mut draw = Draw::new(&be, 3);
    let (x, w) = (draw.normal(&[200, k]), draw.normal(&[n, k]));
    let rows = |m: usize| {
        let y = draw.unwritten(&[m, n]);
        let at = |t: &Tensor, stride| Matrix { address: t.device_address().unwrap(), stride, dtype: DType::BF16 };
        let (a, b, c) = (at(&x, k), at(&w, k), at(&y, n));
        let g = Gemm { m, n, k, a, transpose_a: false, b, transpose_b: true, c, alpha: 1.0, beta: 0.0 };
        be.matrix_product(&g).unwrap();
        be.read(&y).unwrap().into_iter().map(|y| bf16::from_f32(y).to_bits()).collect::<Vec<_>>()
    };
    let all = rows(200);
    for m in [1, 3, 17, 70] {
        assert_eq!(rows(m), all[..m * n], "{m} rows");
    }
}

#[test]
fn what_has_no_kernel_is_an_error() {
    let be = gpu(Order::Forward, 0, false);
    let t = be.alloc(&[8, 8], DType::BF16).unwrap();
    let a = Matrix { address: t.device_address().unwrap(), stride: 8, dtype: DType::BF16 };
    let g = Gemm { m: 8, n: 8, k: 8, a, transpose_a: true, b: a, transpose_b: true, c: a, alpha: 1.0, beta: 0.0 };
    assert!(be.matrix_product(&g).unwrap_err().to_string().contains("at most one operand transposed"));
    let wide = Matrix { dtype: DType::F32, ..a };
    let g = Gemm { transpose_a: false, b: wide, ..g };
    assert!(be.matrix_product(&g).unwrap_err().to_string().contains("expected bf16 operands"));
}
