//! AdamW over a flat list of tensors, gradient clipping by global norm, and learning-rate schedules. Writes no files.

use crate::backend::Backend;
use crate::backend::ops::{self, AdamW, Trained};
use crate::error::{Error, Result};
use crate::settings::choice;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// The constants of AdamW (arXiv 1711.05101).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay, multiplied by the learning rate; on matrices only, not on norms and biases.
    pub weight_decay: f32,
}

/// AdamW's state for one flat list of parameters.
pub struct Optimizer {
    /// Constants of AdamW.
    pub config: AdamWConfig,
    /// Steps taken.
    pub steps: u32,
    /// First moment of each parameter tensor.
    pub m: Vec<Tensor>,
    /// Second moment of each parameter tensor.
    pub v: Vec<Tensor>,
}

/// Added to the norm that clipping divides by, as in `torch.nn.utils.clip_grad_norm_`. Without it, steps that clip
/// would differ from PyTorch's by 1e-6 / norm.
const CLIP_EPS: f64 = 1e-6;

/// Largest gradient whose square is within f32's range. Above it the second moment is infinite and its parameter would
/// never move again.
const MAX_NORM: f64 = 1.8e19;

impl Optimizer {
    /// Makes fresh state for `params`.
    pub fn new<'t>(
        be: &dyn Backend,
        params: impl IntoIterator<Item = &'t Tensor>,
        config: AdamWConfig,
    ) -> Result<Self> {
        let shapes: Vec<&[usize]> = params.into_iter().map(Tensor::shape).collect();
        let zeros = || shapes.iter().map(|shape| be.alloc(shape, be.accumulator())).collect::<Result<Vec<_>>>();
        Ok(Self { config, steps: 0, m: zeros()?, v: zeros()? })
    }

    /// Takes one step with learning rate `lr`. Gradients whose global norm is above `max_norm` are first scaled down to
    /// it (0 or `f32::INFINITY`: never). Returns the norm before clipping. Errors before anything is changed: lists
    /// that do not belong together, frozen parameters, a gradient that is not finite or too large for the second
    /// moment. Error after the step: a parameter is not finite; all of them are lost then.
    pub fn step(
        &mut self,
        be: &dyn Backend,
        params: &mut [Tensor],
        grads: &[Tensor],
        lr: f32,
        max_norm: f32,
    ) -> Result<f32> {
        self.step_lists(be, params.iter_mut().collect(), &grads.iter().collect::<Vec<_>>(), lr, max_norm)
    }

    /// Same as `step`, for parameters and gradients that are not in one slice.
    pub fn step_lists(
        &mut self,
        be: &dyn Backend,
        params: Vec<&mut Tensor>,
        grads: &[&Tensor],
        lr: f32,
        max_norm: f32,
    ) -> Result<f32> {
        if params.len() != self.m.len() || grads.len() != self.m.len() {
            let (p, g, m) = (params.len(), grads.len(), self.m.len());
            return Err(Error::system(format!("optimizer for {m} tensors was given {p} parameters and {g} gradients")));
        }
        if let Some(frozen) = params.iter().find(|p| p.is_mapped() || p.dtype() != be.accumulator()) {
            return Err(Error::system(format!("{frozen:?} cannot be trained; widen the model first")));
        }
        let norm = squared_norm(be, grads)?.sqrt();
        if !norm.is_finite() {
            return Err(Error::not_finite(format!("the gradient is not finite (global norm {norm})")));
        }
        let limit = if max_norm == 0.0 { f64::INFINITY } else { f64::from(max_norm) };
        let grad_scale = (limit / (norm + CLIP_EPS)).min(1.0) as f32;
        let clipped = norm * f64::from(grad_scale);
        if clipped > MAX_NORM {
            return Err(Error::not_finite(format!(
                "the gradient is too large: the optimizer cannot hold the square of its norm, {clipped:.1e}"
            )));
        }
        self.steps += 1;
        let mut lists = [vec![], vec![]];
        for (index, param) in params.into_iter().enumerate() {
            lists[usize::from(param.shape().len() > 1)].push((index, param));
        }
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let mut squares = 0.0;
        for (list, weight_decay) in lists.into_iter().zip([0.0, weight_decay]) {
            let settings = AdamW { lr, beta1, beta2, eps, weight_decay, step: self.steps, grad_scale };
            let chosen: Vec<usize> = list.iter().map(|(index, _)| *index).collect();
            let moments = of(&mut self.m, &chosen).into_iter().zip(of(&mut self.v, &chosen));
            let mut updated: Vec<&mut Tensor> = list.into_iter().map(|(_, param)| param).collect();
            let tensors = updated.iter_mut().zip(&chosen).zip(moments);
            let tensors = tensors.map(|((param, &i), (m, v))| Trained { param, grad: grads[i], m, v }).collect();
            ops::AdamWStep { settings, tensors }.run(be)?;
            squares += squared_norm(be, &updated.iter().map(|param| &**param).collect::<Vec<_>>())?;
        }
        if !squares.is_finite() {
            return Err(Error::not_finite("a parameter is not finite after the optimizer's step"));
        }
        Ok(norm as f32)
    }
}

/// Sum of squares over all elements; see [`ops::SquaredNorm`].
pub fn squared_norm(be: &dyn Backend, tensors: &[&Tensor]) -> Result<f64> {
    let mut sum = 0.0;
    ops::SquaredNorm { tensors, sum: &mut sum }.run(be)?;
    Ok(sum)
}

/// Borrows the tensors at the indices `chosen`, which must ascend.
fn of<'t>(tensors: &'t mut [Tensor], chosen: &[usize]) -> Vec<&'t mut Tensor> {
    tensors.iter_mut().enumerate().filter(|(i, _)| chosen.binary_search(i).is_ok()).map(|(_, t)| t).collect()
}

choice! {
    /// The word for the course of the learning rate after its warm-up.
    Decay { Constant, Cosine, Linear }
}

impl Decay {
    /// The schedule of a run of `steps` steps, of which the first `warmup` warm up.
    pub fn over(self, warmup: usize, steps: usize) -> Schedule {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (warmup, total) = (count(warmup), count(steps));
        match self {
            Decay::Constant => Schedule::Constant { warmup },
            Decay::Cosine => Schedule::Cosine { warmup, total, floor: 0.0 },
            Decay::Linear => Schedule::Linear { warmup, total },
        }
    }
}

/// Course of the learning rate over the steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum Schedule {
    /// Linear warm-up, then 1.
    Constant {
        /// Steps of the warm-up.
        warmup: u32,
    },
    /// Linear warm-up, then half a cosine down to `floor` at step `total`.
    Cosine {
        /// Steps of the warm-up.
        warmup: u32,
        /// Steps of the run.
        total: u32,
        /// Final factor, as a share of the peak.
        floor: f32,
    },
    /// Linear warm-up, then a line down to 0 at step `total`.
    Linear {
        /// Steps of the warm-up.
        warmup: u32,
        /// Steps of the run.
        total: u32,
    },
}

impl Schedule {
    /// The factor on the peak learning rate in step `step`, counted from 0.
    pub fn factor(&self, step: u32) -> f32 {
        let (Schedule::Constant { warmup } | Schedule::Cosine { warmup, .. } | Schedule::Linear { warmup, .. }) = *self;
        if step < warmup {
            return (step + 1) as f32 / (warmup as f32 + 1.0);
        }
        let done = |total: u32| (f64::from(step - warmup) / f64::from(total.saturating_sub(warmup).max(1))).min(1.0);
        match *self {
            Schedule::Constant { .. } => 1.0,
            Schedule::Cosine { total, floor, .. } => {
                let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done(total)).cos());
                (f64::from(floor) + (1.0 - f64::from(floor)) * cosine) as f32
            }
            Schedule::Linear { total, .. } => (1.0 - done(total)) as f32,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::backend::oracle::Oracle;
    use crate::error::Kind;

    const CONFIG: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.5 };

    fn tensors(matrix: [f32; 2], vector: [f32; 2]) -> Vec<Tensor> {
        vec![Tensor::from_slice(&[1, 2], &matrix), Tensor::from_slice(&[2], &vector)]
    }

    #[test]
    fn a_first_step_moves_by_the_learning_rate_and_decays_matrices_only() {
        let be = &Oracle::f32();
        let mut params = tensors([1.0, -1.0], [1.0, -1.0]);
        let grads = tensors([3.0, 0.0], [0.0, -4.0]);
        let mut optimizer = Optimizer::new(be, &params, CONFIG).unwrap();
        let norm = optimizer.step(be, &mut params, &grads, 0.1, f32::INFINITY).unwrap();
        assert_eq!(norm, 5.0);
        // Bias-corrected, a first step is lr * sign(g) up to eps; a matrix also loses lr * decay = 5 %.
        let expected = tensors([0.95 - 0.1, -0.95], [1.0, -1.0 + 0.1]);
        for (found, expected) in params.iter().zip(&expected) {
            for (a, b) in found.slice::<f32>().iter().zip(expected.slice::<f32>()) {
                assert!((a - b).abs() < 8.0 * f32::EPSILON, "{a} against {b}");
            }
        }
    }

    #[test]
    fn clipping_scales_all_gradients_by_one_factor() {
        let be = &Oracle::f32();
        let (mut clipped, mut scaled) = (tensors([1.0; 2], [1.0; 2]), tensors([1.0; 2], [1.0; 2]));
        let mut a = Optimizer::new(be, &clipped, CONFIG).unwrap();
        let mut b = Optimizer::new(be, &scaled, CONFIG).unwrap();
        assert_eq!(a.step(be, &mut clipped, &tensors([3.0, 0.0], [0.0, 4.0]), 0.1, 2.5).unwrap(), 5.0);
        let factor = (2.5 / 5.000001) as f32;
        b.step(be, &mut scaled, &tensors([3.0 * factor, 0.0], [0.0, 4.0 * factor]), 0.1, f32::INFINITY).unwrap();
        for (a, b) in a.m.iter().chain(&a.v).zip(b.m.iter().chain(&b.v)) {
            assert_eq!(a.slice::<f32>(), b.slice::<f32>());
        }
    }

    #[test]
    fn a_norm_of_zero_does_not_clip() {
        let be = &Oracle::f32();
        let run = |max_norm: f32| {
            let mut params = tensors([1.0; 2], [1.0; 2]);
            let mut optimizer = Optimizer::new(be, &params, CONFIG).unwrap();
            optimizer.step(be, &mut params, &tensors([3.0, 0.0], [0.0, 4.0]), 0.1, max_norm).unwrap();
            optimizer.m.iter().flat_map(|t| t.slice::<f32>().to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(run(0.0), run(f32::INFINITY));
        assert_ne!(run(0.0), run(2.5));
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let be = &Oracle::f32();
        let mut params = tensors([1.0, 2.0], [3.0, 4.0]);
        let mut optimizer = Optimizer::new(be, &params, CONFIG).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let error = optimizer.step(be, &mut params, &tensors([0.0, bad], [0.0; 2]), 0.1, 1.0).unwrap_err();
            assert!(error.to_string().starts_with("the gradient is not finite"), "{error}");
            assert_eq!(error.kind(), Kind::NotFinite);
        }
        let huge = optimizer.step(be, &mut params, &tensors([0.0, 1e20], [0.0; 2]), 0.1, 0.0).unwrap_err();
        assert_eq!(huge.kind(), Kind::NotFinite);
        assert_eq!((params[0].slice::<f32>(), optimizer.steps), (&[1.0, 2.0][..], 0));
        assert_eq!(optimizer.m[0].slice::<f32>(), [0.0; 2]);
    }

    #[test]
    fn parameters_that_a_step_makes_infinite_are_seen() {
        let be = &Oracle::f32();
        for (matrix, vector) in [([f32::MAX, 0.0], [0.0; 2]), ([0.0; 2], [0.0, -f32::MAX])] {
            let mut params = tensors(matrix, vector);
            let mut optimizer = Optimizer::new(be, &params, AdamWConfig { weight_decay: 0.0, ..CONFIG }).unwrap();
            let error = optimizer.step(be, &mut params, &tensors([-1.0; 2], [1.0; 2]), 1e38, 0.0).unwrap_err();
            assert_eq!(error.kind(), Kind::NotFinite, "{error}");
        }
    }

    #[test]
    fn stored_types_are_not_trained() {
        let be = &Oracle::f32();
        let mut params = vec![Tensor::zeros(&[2], crate::tensor::DType::BF16)];
        let mut optimizer = Optimizer::new(be, &params, CONFIG).unwrap();
        let error = optimizer.step(be, &mut params, &[Tensor::from_slice(&[2], &[1.0f32; 2])], 0.1, 1.0).unwrap_err();
        assert!(error.to_string().contains("widen the model first"), "{error}");
    }

    #[test]
    fn schedules_warm_up_and_come_down() {
        let constant = Schedule::Constant { warmup: 3 };
        assert_eq!([0, 1, 2, 3, 100].map(|step| constant.factor(step)), [0.25, 0.5, 0.75, 1.0, 1.0]);
        let cosine = Schedule::Cosine { warmup: 1, total: 5, floor: 0.2 };
        let found = [0, 1, 3, 5, 9].map(|step| cosine.factor(step));
        for (found, expected) in found.into_iter().zip([0.5, 1.0, 0.6, 0.2, 0.2]) {
            assert!((found - expected).abs() <= f32::EPSILON, "{found} against {expected}");
        }
        let linear = Schedule::Linear { warmup: 1, total: 5 };
        assert_eq!([0, 1, 2, 3, 5, 9].map(|step| linear.factor(step)), [0.5, 1.0, 0.75, 0.5, 0.0, 0.0]);
        let none = Schedule::Cosine { warmup: 0, total: 0, floor: 0.0 };
        assert_eq!(none.factor(0), 1.0);
    }
}
