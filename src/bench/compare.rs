//! Decides when a result counts as right: against the f64 oracle, within twice the error of a plain bf16 computation.
//! Also draws the inputs, the same for every backend. Knows no op.

use crate::backend::Backend;
use crate::backend::cuda::device::Device;
use crate::backend::oracle::Oracle;
use crate::error::{Error, Result};
use crate::rng::Philox;
use crate::tensor::{DType, Tensor, to_bf16};
use half::bf16;

/// Largest absolute difference; infinite when a difference is not a number or the lengths differ.
pub fn error(found: &[f64], exact: &[f64]) -> f64 {
    if found.len() != exact.len() {
        return f64::INFINITY;
    }
    let difference = |(a, b): (&f64, &f64)| if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() };
    found.iter().zip(exact).map(difference).fold(0.0, f64::max)
}

/// Largest error that a result may have: twice the error of a plain bf16 computation, plus 16 units in the last place
/// of f32 for sums in another order. The former is `plain` plus half a unit in the last place (2^-9 of the largest
/// magnitude) for each of `rounded` further roundings of an intermediate.
pub fn allowance(plain: f64, rounded: usize, largest: f64) -> f64 {
    2.0 * (plain + rounded as f64 * largest / 512.0) + 16.0 * f64::from(f32::EPSILON) * largest
}

/// Source of random tensors on one backend. The values are the same on every backend, and all exact in bf16.
pub struct Draw<'a> {
    /// Backend that holds the tensors.
    pub backend: &'a dyn Backend,
    /// Device that runs the kernels, if there is one.
    pub device: Option<&'a dyn Device>,
    random: Philox,
}

impl<'a> Draw<'a> {
    /// Starts the draws of `seed`.
    pub fn new(backend: &'a dyn Backend, device: Option<&'a dyn Device>, seed: u64) -> Self {
        Self { backend, device, random: Philox::new(seed, 0) }
    }

    /// Draws normal host values with standard deviation `scale`, rounded to bf16.
    pub fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| bf16::from_f32(self.random.normal() as f32 * scale).to_f32()).collect()
    }

    /// Copies host values to the backend as `dtype`.
    pub fn put(&self, shape: &[usize], values: &[f32], dtype: DType) -> Result<Tensor> {
        let mut tensor = self.backend.alloc(shape, dtype)?;
        self.backend.write(&mut tensor, &Tensor::from_slice(shape, values))?;
        Ok(tensor)
    }

    /// Draws normal numbers with standard deviation `scale` in the activation type.
    pub fn normal(&mut self, shape: &[usize], scale: f32) -> Result<Tensor> {
        let values = self.values(shape.iter().product(), scale);
        self.put(shape, &values, self.backend.activation())
    }

    /// Draws normal numbers with standard deviation `scale` in the accumulator type.
    pub fn accumulated(&mut self, shape: &[usize], scale: f32) -> Result<Tensor> {
        let values = self.values(shape.iter().product(), scale);
        self.put(shape, &values, self.backend.accumulator())
    }

    /// Draws a parameter: frozen (the activation type) or trained (the accumulator type).
    pub fn parameter(&mut self, shape: &[usize], scale: f32, trained: bool) -> Result<Tensor> {
        if trained { self.accumulated(shape, scale) } else { self.normal(shape, scale) }
    }

    /// An output of the activation type, full of NaN, so that elements that an op does not write show.
    pub fn unwritten(&self, shape: &[usize]) -> Result<Tensor> {
        self.put(shape, &vec![f32::NAN; shape.iter().product()], self.backend.activation())
    }

    /// An output of the accumulator type, full of NaN.
    pub fn unwritten_accumulated(&self, shape: &[usize]) -> Result<Tensor> {
        self.put(shape, &vec![f32::NAN; shape.iter().product()], self.backend.accumulator())
    }

    /// Copies integers to the backend.
    pub fn ints(&self, shape: &[usize], values: &[i32]) -> Result<Tensor> {
        let mut tensor = self.backend.alloc(shape, DType::I32)?;
        self.backend.write(&mut tensor, &Tensor::from_slice(shape, values))?;
        Ok(tensor)
    }

    /// Draws integers in 0..limit.
    pub fn below(&mut self, n: usize, limit: usize) -> Result<Tensor> {
        let values: Vec<i32> = (0..n).map(|_| self.random.below(limit) as i32).collect();
        self.ints(&[n], &values)
    }
}

/// One result of an op.
pub enum Output {
    /// A tensor on the backend.
    Tensor(Tensor),
    /// Scalars already on the host.
    Values(Vec<f64>),
}

impl From<Tensor> for Output {
    fn from(tensor: Tensor) -> Self {
        Output::Tensor(tensor)
    }
}

impl Output {
    fn values(&self, backend: &dyn Backend) -> Result<Vec<f64>> {
        match self {
            Output::Values(values) => Ok(values.clone()),
            Output::Tensor(t) if t.dtype() == DType::F64 => Ok(t.slice::<f64>().to_vec()),
            Output::Tensor(t) if t.dtype() == DType::I32 => {
                Ok(backend.read_i32(t)?.into_iter().map(f64::from).collect())
            }
            Output::Tensor(t) => Ok(backend.read(t)?.into_iter().map(f64::from).collect()),
        }
    }

    fn is_narrow(&self) -> bool {
        matches!(self, Output::Tensor(t) if t.dtype() == DType::BF16)
    }
}

/// An op to be run on drawn inputs.
pub type Op = Box<dyn Fn(&mut Draw) -> Result<Vec<Output>>>;

/// Outcome of checking an op.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Error of the output with the largest ratio of error to allowance.
    pub error: f64,
    /// Allowance of the same output.
    pub allowance: f64,
    /// Description of what is wrong, if anything is.
    pub problem: Option<String>,
}

/// Runs `op` for two seeds on the f64 oracle, on the f32 oracle and twice on the backend. The outputs of the f32
/// oracle, rounded to the backend's output types, are the plain bf16 computation. A problem is: an error, a value that
/// is not finite, an output off by more than its allowance, a second run that differs in any bit, an output that is all
/// zero.
pub fn check(backend: &dyn Backend, device: Option<&dyn Device>, rounded: usize, op: &Op) -> Verdict {
    let mut worst = Verdict::default();
    for seed in [7, 8] {
        if let Err(problem) = check_seed(backend, device, rounded, op, seed, &mut worst) {
            worst.problem = Some(problem.to_string());
            break;
        }
    }
    worst
}

fn check_seed(
    backend: &dyn Backend,
    device: Option<&dyn Device>,
    rounded: usize,
    op: &Op,
    seed: u64,
    worst: &mut Verdict,
) -> Result<()> {
    let run = |backend: &dyn Backend, device: Option<&dyn Device>| -> Result<Vec<(Vec<f64>, bool)>> {
        let outputs = op(&mut Draw::new(backend, device, seed))?;
        outputs.iter().map(|o| Ok((o.values(backend)?, o.is_narrow()))).collect()
    };
    // The backend runs first, so that an op without a kernel costs no oracle run.
    let (found, again) = (run(backend, device)?, run(backend, device)?);
    let (exact, plain) = (run(&Oracle::f64(), None)?, run(&Oracle::f32(), None)?);
    for (i, (values, narrow)) in found.iter().enumerate() {
        let (exact, fail) = (&exact[i].0, |what: String| Err(Error::system(format!("output {i} {what}"))));
        let largest = exact.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        if largest == 0.0 {
            return fail("is all zero and shows nothing".into());
        }
        if values.iter().any(|x| !x.is_finite()) {
            return fail("has a value that is not finite".into());
        }
        if values != &again[i].0 {
            return fail(format!("differs between two runs, by up to {:e}", error(values, &again[i].0)));
        }
        let round = |x: &f64| if *narrow { to_bf16(*x).to_f64() } else { *x };
        let plain: Vec<f64> = plain[i].0.iter().map(round).collect();
        let (off, allowed) = (error(values, exact), allowance(error(&plain, exact), rounded, largest));
        if worst.allowance == 0.0 || off * worst.allowance > worst.error * allowed {
            (worst.error, worst.allowance) = (off, allowed);
        }
        if off > allowed {
            return fail(format!("is off by {off:e}, allowed {allowed:e}"));
        }
    }
    Ok(())
}
