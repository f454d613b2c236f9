//! One way to check an op: the emulated GPU against the f64 oracle, in three thread orders.

use crate::simt::{Order, Simt};
use half::bf16;
use onestep::backend::cuda::Cuda;
use onestep::backend::oracle::Oracle;
use onestep::backend::{Backend, cuda};
use onestep::bench::compare::allowance;
use onestep::rng::Philox;
use onestep::tensor::{DType, Tensor};
use std::sync::Arc;

/// Every order in which a kernel must give the same result: (order, seed).
pub const ORDERS: [(Order, u64); 4] =
    [(Order::Forward, 0), (Order::Reverse, 0), (Order::Random, 1), (Order::Random, 2)];

/// Random tensors of one backend: the same values for every backend, all of them exact in bf16.
pub struct Draw<'a> {
    pub backend: &'a dyn Backend,
    random: Philox,
}

impl<'a> Draw<'a> {
    pub fn new(backend: &'a dyn Backend, seed: u64) -> Self {
        Self { backend, random: Philox::new(seed, 0) }
    }

    /// Host values with deviation `scale`, rounded to bf16.
    pub fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| bf16::from_f32(self.random.normal() as f32 * scale).to_f32()).collect()
    }

    /// Host values on the backend in `dtype`.
    pub fn put(&self, shape: &[usize], values: &[f32], dtype: DType) -> Tensor {
        let mut tensor = self.backend.alloc(shape, dtype).unwrap();
        self.backend.write(&mut tensor, &Tensor::from_slice(shape, values)).unwrap();
        tensor
    }

    /// Normal numbers in the activation type.
    pub fn normal(&mut self, shape: &[usize]) -> Tensor {
        let values = self.values(shape.iter().product(), 1.0);
        self.put(shape, &values, self.backend.activation())
    }

    /// Normal numbers in the accumulator type.
    pub fn accumulated(&mut self, shape: &[usize]) -> Tensor {
        let values = self.values(shape.iter().product(), 1.0);
        self.put(shape, &values, self.backend.accumulator())
    }

    /// An output of the activation type, full of NaN: what an op leaves out shows.
    pub fn unwritten(&self, shape: &[usize]) -> Tensor {
        self.put(shape, &vec![f32::NAN; shape.iter().product()], self.backend.activation())
    }

    /// An output of the accumulator type, full of NaN.
    pub fn unwritten_accumulated(&self, shape: &[usize]) -> Tensor {
        self.put(shape, &vec![f32::NAN; shape.iter().product()], self.backend.accumulator())
    }

    /// Integers on the backend.
    pub fn ints(&self, shape: &[usize], values: &[i32]) -> Tensor {
        let mut tensor = self.backend.alloc(shape, DType::I32).unwrap();
        self.backend.write(&mut tensor, &Tensor::from_slice(shape, values)).unwrap();
        tensor
    }

    /// Integers in 0..limit.
    pub fn below(&mut self, n: usize, limit: usize) -> Tensor {
        let values: Vec<i32> = (0..n).map(|_| self.random.below(limit) as i32).collect();
        self.ints(&[n], &values)
    }
}

/// The emulated GPU.
pub fn gpu(order: Order, seed: u64, has_gemm: bool) -> cuda::Cuda {
    Cuda::new(Arc::new(Simt::new(order, seed, has_gemm)))
}

fn wide(backend: &dyn Backend, tensor: &Tensor) -> Vec<f64> {
    match tensor.dtype() {
        DType::F64 => tensor.slice::<f64>().to_vec(),
        _ => backend.read(tensor).unwrap().into_iter().map(f64::from).collect(),
    }
}

/// Largest difference.
pub fn error(found: &[f64], exact: &[f64]) -> f64 {
    assert_eq!(found.len(), exact.len());
    found.iter().zip(exact).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()))
}

/// Runs an op on the f64 oracle and on the emulated GPU in every order. The GPU may be wrong by twice what a plain bf16 computation
/// is wrong by: the f32 oracle on the same inputs with its outputs rounded to the type that the GPU gives them, where the op keeps
/// its intermediates in f32; `rounded` more roundings of an intermediate to bf16 (half a unit in the last place, 2^-9 of the largest
/// magnitude, each) where a plain bf16 computation has them. f32 outputs may also be off by 16 units in the last place of the
/// tensor's largest magnitude, for sums in another order. Results must be equal to the bit in all orders.
pub fn check(name: &str, rounded: usize, op: impl Fn(&mut Draw) -> Vec<Tensor>) {
    for seed in [7, 8] {
        let (exact_oracle, plain_oracle) = (Oracle::f64(), Oracle::f32());
        let exact: Vec<Vec<f64>> =
            op(&mut Draw::new(&exact_oracle, seed)).iter().map(|t| wide(&exact_oracle, t)).collect();
        let plain: Vec<Vec<f64>> =
            op(&mut Draw::new(&plain_oracle, seed)).iter().map(|t| wide(&plain_oracle, t)).collect();
        let mut first: Option<Vec<Vec<f64>>> = None;
        for (order, random) in ORDERS {
            let gpu = gpu(order, random, true);
            let tensors = op(&mut Draw::new(&gpu, seed));
            let found: Vec<Vec<f64>> = tensors.iter().map(|t| wide(&gpu, t)).collect();
            for (i, found) in found.iter().enumerate() {
                let narrow = tensors[i].dtype() == DType::BF16;
                let round = |x: f64| if narrow { bf16::from_f64(x).to_f64() } else { x };
                let plain: Vec<f64> = plain[i].iter().map(|&x| round(x)).collect();
                let largest = exact[i].iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                assert!(largest > 0.0, "{name}: output {i} is all zero and shows nothing");
                assert!(found.iter().all(|x| x.is_finite()), "{name}: output {i} has a value that is not finite");
                let bound = allowance(error(&plain, &exact[i]), rounded, largest);
                let off = error(found, &exact[i]);
                assert!(off <= bound, "{name}, {order:?} {random}: output {i} is off by {off:e}, allowed {bound:e}");
            }
            match &first {
                None => first = Some(found),
                Some(first) => assert_eq!(&found, first, "{name}: the result depends on the thread order"),
            }
        }
    }
}
