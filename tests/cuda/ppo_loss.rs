//! The policy loss.

use crate::support::{Draw, check};
use onestep::backend::Backend;
use onestep::backend::ops::{self, KlEstimator, PpoInputs, PpoParams, PpoStats, Surrogate};
use onestep::tensor::Tensor;

const PARAMS: PpoParams = PpoParams {
    surrogate: Surrogate::Clip,
    clip_low: 0.2,
    clip_high: 0.28,
    dual_clip: None,
    kl_coefficient: 0.1,
    kl_estimator: KlEstimator::K3,
    entropy_coefficient: 0.01,
};

/// Ratios of exp(N(0, 0.3 sqrt 2)): on both sides of every clip.
fn loss(draw: &mut Draw, params: &PpoParams, m: usize) -> (PpoStats, Vec<Tensor>) {
    spread_loss(draw, params, m, 0.3)
}

/// Log ratios of deviation `spread` sqrt 2.
fn spread_loss(draw: &mut Draw, params: &PpoParams, m: usize, spread: f32) -> (PpoStats, Vec<Tensor>) {
    let mut near = |scale| {
        let values = draw.values(m, scale);
        draw.put(&[m], &values, draw.backend.accumulator())
    };
    let [logp, entropy, behaviour, reference, advantage, weight] =
        [spread, 2.0, spread, spread, 1.0, 0.1].map(&mut near);
    let (mut dlogp, mut dentropy) = (draw.unwritten_accumulated(&[m]), draw.unwritten_accumulated(&[m]));
    let inputs = PpoInputs {
        logp: &logp,
        entropy: &entropy,
        behaviour: &behaviour,
        reference: &reference,
        advantage: &advantage,
        weight: &weight,
    };
    let stats = run(draw.backend, params, &inputs, [&mut dlogp, &mut dentropy]);
    (stats, vec![dlogp, dentropy])
}

fn run(backend: &dyn Backend, params: &PpoParams, inputs: &PpoInputs, gradients: [&mut Tensor; 2]) -> PpoStats {
    let ([dlogp, dentropy], mut stats) = (gradients, PpoStats::default());
    ops::PpoLoss { params, inputs, dlogp, dentropy, stats: &mut stats }.run(backend).unwrap();
    stats
}

#[test]
fn gradients_are_the_oracles() {
    for (m, dual_clip, kl_estimator) in
        [(5, None, KlEstimator::K1), (33, Some(1.5), KlEstimator::K2), (300, Some(1.2), KlEstimator::K3)]
    {
        let params = PpoParams { dual_clip, kl_estimator, ..PARAMS };
        // A token's arithmetic is in f64: no rounding but that of the output.
        check("ppo_loss", 0, |draw| loss(draw, &params, m).1);
        let params = PpoParams { surrogate: Surrogate::Cispo, ..params };
        check("ppo_loss cispo", 0, |draw| loss(draw, &params, m).1);
    }
}

#[test]
fn log_ratios_beyond_the_bound_are_the_oracles() {
    for kl_estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
        // Most of the log ratios are beyond 20 on either side; without the bound f32 would not hold them.
        let params = PpoParams { dual_clip: Some(3.0), kl_estimator, ..PARAMS };
        check("ppo_loss far", 0, |draw| spread_loss(draw, &params, 300, 60.0).1);
    }
}

#[test]
fn a_log_probability_that_is_no_number_is_not_hidden() {
    use crate::simt::Order;
    let be = crate::support::gpu(Order::Forward, 0, true);
    let draw = Draw::new(&be, 1);
    let put = |value: f32| draw.put(&[1], &[value], draw.backend.accumulator());
    for surrogate in [Surrogate::Clip, Surrogate::Cispo] {
        let (mut dlogp, mut dentropy) = (put(0.0), put(0.0));
        let inputs = PpoInputs {
            logp: &put(f32::NAN),
            entropy: &put(1.0),
            behaviour: &put(-1.0),
            reference: &put(-1.0),
            advantage: &put(-1.0),
            weight: &put(1.0),
        };
        let params = PpoParams { surrogate, dual_clip: Some(3.0), ..PARAMS };
        let stats = run(draw.backend, &params, &inputs, [&mut dlogp, &mut dentropy]);
        assert!(stats.loss.is_nan() && draw.backend.read(&dlogp).unwrap()[0].is_nan(), "{surrogate:?}: {stats:?}");
    }
}

#[test]
fn statistics_are_the_oracles_to_f64s_rounding() {
    use crate::simt::Order;
    use crate::support::gpu;
    use onestep::backend::oracle::Oracle;
    let oracle = Oracle::f64();
    // One block, several, and more tokens than the grid has threads (256 blocks of 256).
    for (m, dual_clip) in [(0, None), (1, None), (1000, Some(1.2)), (66_000, Some(1.2))] {
        let params = PpoParams { dual_clip, ..PARAMS };
        let fields = |s: PpoStats| [s.loss, s.policy_loss, s.kl, s.entropy, s.clip_fraction, s.approx_kl, s.ratio_max];
        let exact = fields(loss(&mut Draw::new(&oracle, 3), &params, m).0);
        for order in [Order::Forward, Order::Reverse] {
            let be = gpu(order, 0, true);
            let found = fields(loss(&mut Draw::new(&be, 3), &params, m).0);
            // The greatest ratio goes out as f32.
            assert!((found[6] - exact[6]).abs() <= f64::from(f32::EPSILON) * exact[6], "{m}: {found:?} for {exact:?}");
            for (found, exact) in found.iter().zip(exact).take(6) {
                // m terms below 10, each sum wrong by at most m ulps of the sum of magnitudes.
                let bound = 10.0 * (m as f64).powi(2) * f64::EPSILON * 1e-2 + 10.0 * m as f64 * f64::EPSILON;
                assert!((found - exact).abs() <= bound, "{m}: {found} for {exact}, allowed {bound:e}");
            }
        }
    }
}
