//! When a result counts as right: against the f64 oracle, within twice what a plain bf16 computation is wrong by. Inputs are drawn
//! here, the same for every backend. Knows no op.

use crate::backend::Backend;
use crate::backend::cuda::device::Device;
use crate::backend::oracle::Oracle;
use crate::error::{Error, Result};
use crate::rng::Philox;
use crate::tensor::{DType, Tensor, to_bf16};
use half::bf16;

/// Largest difference; infinite when one value is not a number or the lengths differ.
pub fn error(found: &[f64], exact: &[f64]) -> f64 {
    if found.len() != exact.len() {
        return f64::INFINITY;
    }
    let difference = |(a, b): (&f64, &f64)| if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() };
    found.iter().zip(exact).map(difference).fold(0.0, f64::max)
}

/// What a result may be off by: twice the error of a plain bf16 computation, `plain` and half a unit in the last place (2^-9 of
/// the largest magnitude) for each of `rounded` more roundings of an intermediate; and 16 units in the last place of f32 for sums
/// in another order.
pub fn allowance(plain: f64, rounded: usize, largest: f64) -> f64 {
    2.0 * (plain + rounded as f64 * largest / 512.0) + 16.0 * f64::from(f32::EPSILON) * largest
}

/// Random tensors of one backend: the same values for every backend, all of them exact in bf16.
pub struct Draw<'a> {
    /// Whose tensors they are.
    pub backend: &'a dyn Backend,
    /// What runs its kernels, if anything does.
    pub device: Option<&'a dyn Device>,
    random: Philox,
}

impl<'a> Draw<'a> {
    /// The draws of `seed`.
    pub fn new(backend: &'a dyn Backend, device: Option<&'a dyn Device>, seed: u64) -> Self {
        Self { backend, device, random: Philox::new(seed, 0) }
    }

    /// Host values with deviation `scale`, rounded to bf16.
    pub fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| bf16::from_f32(self.random.normal() as f32 * scale).to_f32()).collect()
    }

    /// Host values on the backend in `dtype`.
    pub fn put(&self, shape: &[usize], values: &[f32], dtype: DType) -> Result<Tensor> {
        let mut tensor = self.backend.alloc(shape, dtype)?;
        self.backend.write(&mut tensor, &Tensor::from_slice(shape, values))?;
        Ok(tensor)
    }

    /// Normal numbers with deviation `scale` in the activation type.
    pub fn normal(&mut self, shape: &[usize], scale: f32) -> Result<Tensor> {
        let values = self.values(shape.iter().product(), scale);
        self.put(shape, &values, self.backend.activation())
    }

    /// Normal numbers with deviation `scale` in the accumulator type.
    pub fn accumulated(&mut self, shape: &[usize], scale: f32) -> Result<Tensor> {
        let values = self.values(shape.iter().product(), scale);
        self.put(shape, &values, self.backend.accumulator())
    }

    /// A parameter: frozen (the activation type) or trained (the accumulator type).
    pub fn parameter(&mut self, shape: &[usize], scale: f32, trained: bool) -> Result<Tensor> {
        if trained { self.accumulated(shape, scale) } else { self.normal(shape, scale) }
    }

    /// An output of the activation type, full of NaN: what an op leaves out shows.
    pub fn unwritten(&self, shape: &[usize]) -> Result<Tensor> {
        self.put(shape, &vec![f32::NAN; shape.iter().product()], self.backend.activation())
    }

    /// An output of the accumulator type, full of NaN.
    pub fn unwritten_accumulated(&self, shape: &[usize]) -> Result<Tensor> {
        self.put(shape, &vec![f32::NAN; shape.iter().product()], self.backend.accumulator())
    }

    /// Integers on the backend.
    pub fn ints(&self, shape: &[usize], values: &[i32]) -> Result<Tensor> {
        let mut tensor = self.backend.alloc(shape, DType::I32)?;
        self.backend.write(&mut tensor, &Tensor::from_slice(shape, values))?;
        Ok(tensor)
    }

    /// Integers in 0..limit.
    pub fn below(&mut self, n: usize, limit: usize) -> Result<Tensor> {
        let values: Vec<i32> = (0..n).map(|_| self.random.below(limit) as i32).collect();
        self.ints(&[n], &values)
    }
}

/// One result of an op.
pub enum Output {
    /// On the backend.
    Tensor(Tensor),
    /// Scalars that came back to the host.
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

/// An op on drawn inputs.
pub type Op = Box<dyn Fn(&mut Draw) -> Result<Vec<Output>>>;

/// How far off an op is.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Of the output that comes nearest to its allowance, or is farthest above it.
    pub error: f64,
    /// Of the same output.
    pub allowance: f64,
    /// What is wrong, if anything is.
    pub problem: Option<String>,
}

/// Runs `op` on the f64 oracle, on the f32 oracle (its outputs rounded to the type that the backend gives them: the plain bf16
/// computation) and twice on the backend, for two seeds. Wrong is: an error, a value that is not finite, an output off by more than
/// its allowance, a second run that differs in a bit, inputs that show nothing.
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
    // The backend first: what has no kernel costs no oracle.
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
