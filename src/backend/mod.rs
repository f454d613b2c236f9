//! The contract of every backend: coarse fused ops over `Tensor`, forward and hand-written backward.
//!
//! Outputs are the caller's; whatever changes between two decode steps is a tensor. Float activations have the backend's activation
//! type, statistics and gradients of parameters its accumulator type; weights may be stored narrower (f16, bf16) and are widened
//! tile by tile. Integers are `I32`.
//! "Accumulates" means the op adds to what is there. Dimensions: B batch, T tokens, C channels, NH query heads, NKV key/value
//! heads, HS head size, D = (NH + 2 NKV) HS, F MLP width, V vocabulary, R adapter rank, S segments, M rows that have a loss.

use crate::error::Result;
use crate::tensor::{DType, Tensor};

pub mod check;
pub mod cpu;
pub mod cuda;
pub mod oracle;

/// Head counts of one attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub nh: usize,
    /// Key/value heads; divides `nh`.
    pub nkv: usize,
    /// Elements of a head.
    pub hs: usize,
}

impl Heads {
    /// D, the width of a row of q, k and v together: (NH + 2 NKV) HS.
    pub fn qkv_width(&self) -> usize {
        (self.nh + 2 * self.nkv) * self.hs
    }
}

/// A low-rank pair beside a frozen weight: y += scale * (x A^T) B^T.
#[derive(Clone, Copy)]
pub struct Lora<'a> {
    /// (R, K)
    pub a: &'a Tensor,
    /// (N, R)
    pub b: &'a Tensor,
    /// alpha / R, or alpha / sqrt(R) (rsLoRA).
    pub scale: f32,
}

/// A linear layer's parameters.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// (N, K), any float type.
    pub w: &'a Tensor,
    /// (N)
    pub bias: Option<&'a Tensor>,
    /// The adapter in force, if any.
    pub lora: Option<Lora<'a>>,
}

/// Where `linear_backward` accumulates parameter gradients; `None` is not computed. All in the accumulator type.
#[derive(Default)]
pub struct LinearGrads<'a> {
    /// (R, K) and (N, R), of the adapter.
    pub lora: Option<(&'a mut Tensor, &'a mut Tensor)>,
    /// (N, K)
    pub w: Option<&'a mut Tensor>,
    /// (N)
    pub bias: Option<&'a mut Tensor>,
}

/// Per-head RMSNorm weights of queries and keys (Qwen3), each (HS).
#[derive(Clone, Copy)]
pub struct QkNorm<'a> {
    /// (HS)
    pub q: &'a Tensor,
    /// (HS)
    pub k: &'a Tensor,
    /// Added to the mean square.
    pub eps: f32,
}

/// Packed segments of a batch. A segment sees itself causally and, when it has a parent, the whole parent before itself.
/// A parent lies earlier and has no parent: one prompt serves many replies.
pub struct Segments<'a> {
    /// (S + 1), offsets into the T rows, from 0 to T.
    pub cu_seqlens: &'a Tensor,
    /// (S), the index of the parent segment or -1.
    pub parent: &'a Tensor,
}

/// How tokens are drawn; one entry a row.
pub struct Sampling<'a> {
    /// (B) f32; 0 is greedy.
    pub temperature: &'a Tensor,
    /// (B) f32 in (0, 1]; 1 keeps all.
    pub top_p: &'a Tensor,
    /// (B) i32; 0 keeps all.
    pub top_k: &'a Tensor,
    /// (B, 2) i32, the two key words of the row's Philox stream.
    pub seed: &'a Tensor,
    /// (B) i32, the token's index in its sample: the Philox counter.
    pub counter: &'a Tensor,
}

/// Estimators of KL(policy || reference) from log-probabilities of sampled tokens (Schulman, "Approximating KL divergence").
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KlEstimator {
    /// log p - log q
    K1,
    /// (log p - log q)^2 / 2
    K2,
    /// q/p - 1 - log(q/p)
    K3,
}

/// What the policy part of `ppo_loss` does with a token's ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surrogate {
    /// PPO's: the worse of the plain and the clipped ratio times the advantage (arXiv 1707.06347 eq. 7).
    Clip,
    /// CISPO's: the clipped ratio, without a gradient of its own, weighs the log-probability (arXiv 2506.13585 eq. 4, 5).
    Cispo,
}

/// Log-probability ratios and differences are held within +-20 before they are exponentiated or squared; outside they have no gradient.
pub const MOST_LOG_RATIO: f64 = 20.0;

/// The policy loss of one token and its options.
#[derive(Debug, Clone, Copy)]
pub struct PpoParams {
    /// The form of the policy part.
    pub surrogate: Surrogate,
    /// The ratio is clipped below at 1 - clip_low.
    pub clip_low: f32,
    /// The ratio is clipped above at 1 + clip_high.
    pub clip_high: f32,
    /// Dual clip (arXiv 1912.09729 eq. 5): with a negative advantage A the objective is at least `dual_clip * A`; above 1. CISPO has none.
    pub dual_clip: Option<f32>,
    /// Weight of the KL term in the loss; 0 leaves it out. The term is the estimate times the token's ratio, which has no gradient here
    /// and makes the term unbiased when the policy has moved since sampling.
    pub kl_coefficient: f32,
    /// Which estimator the KL term uses. Its gradient is taken through the policy's log-probability: that of K2 is the gradient of
    /// KL(policy || reference), K3's that of KL(reference || policy), K1's is 0 on the mean.
    pub kl_estimator: KlEstimator,
    /// Weight of the entropy bonus (subtracted from the loss).
    pub entropy_coefficient: f32,
}

/// Inputs of `ppo_loss`, each (M) in the accumulator type.
pub struct PpoInputs<'a> {
    /// Log-probabilities under the policy being trained.
    pub logp: &'a Tensor,
    /// Entropies under the policy being trained.
    pub entropy: &'a Tensor,
    /// Log-probabilities recorded when sampling.
    pub behaviour: &'a Tensor,
    /// Log-probabilities under the frozen reference.
    pub reference: &'a Tensor,
    /// Advantages.
    pub advantage: &'a Tensor,
    /// The token's share of the loss: the loss is the weighted sum (token mean: 1 / M each).
    pub weight: &'a Tensor,
}

/// Weighted sums over the M tokens of one `ppo_loss` call.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PpoStats {
    /// The whole loss.
    pub loss: f64,
    /// The policy part.
    pub policy_loss: f64,
    /// The KL estimate (chosen estimator), whatever its coefficient, without the ratio that weighs it in the loss.
    pub kl: f64,
    /// Entropy.
    pub entropy: f64,
    /// Tokens for which the clip to [1 - clip_low, 1 + clip_high] was in force.
    pub clip_fraction: f64,
    /// k3 between behaviour and policy: how far the update has moved.
    pub approx_kl: f64,
    /// No sum: the greatest ratio of a token whose weight is not 0; 0 when there is none.
    pub ratio_max: f64,
}

/// Inputs of `value_loss`, each (M) in the accumulator type.
pub struct ValueInputs<'a> {
    /// Values under the critic being trained.
    pub value: &'a Tensor,
    /// Values when the batch was collected.
    pub old_value: &'a Tensor,
    /// Targets.
    pub target: &'a Tensor,
    /// The token's share of the loss.
    pub weight: &'a Tensor,
}

/// One AdamW step's settings (arXiv 1711.05101): decoupled weight decay, bias-corrected moments.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled decay, times lr.
    pub weight_decay: f32,
    /// Steps taken including this one, from 1.
    pub step: u32,
    /// Gradients are multiplied by this first (clipping, averaging).
    pub grad_scale: f32,
}

/// Work that a backend can do again and again, cheaper than op by op.
pub trait Recording: Send + Sync {
    /// Does it once more.
    fn replay(&self) -> Result<()>;
    /// Bytes of the device's memory that it holds.
    fn bytes(&self) -> usize {
        0
    }
}

/// A copy of `tensor`, a tensor of the backend.
pub fn duplicate(be: &dyn Backend, tensor: &Tensor) -> Result<Tensor> {
    let mut copy = be.alloc(tensor.shape(), tensor.dtype())?;
    be.copy(tensor, &mut copy)?;
    Ok(copy)
}

/// The ops. Shapes are checked at the door of each op; a mismatch is an error that names the op and the shapes.
pub trait Backend: Send + Sync {
    /// `oracle`, `cpu` or `cuda`.
    fn name(&self) -> &'static str;
    /// The type of activations and of their gradients.
    fn activation(&self) -> DType;
    /// The type of what must not be rounded as activations may be: statistics (rstd, lse, log-probabilities, logits), losses, trained
    /// parameters, their gradients and moments.
    fn accumulator(&self) -> DType {
        self.activation()
    }

    /// True when `record` gives recordings.
    fn records(&self) -> bool {
        false
    }
    /// Records the ops of `work` without doing them, where the backend can. Tensors that `work` was given must outlive the recording;
    /// those it makes and drops belong to it. `work` must not read, or write from the host.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Recording>>> {
        let _ = work;
        Ok(None)
    }

    /// Writes what was chosen by timing so far to where a resumed run finds it, where the backend chooses anything: called at the end of a
    /// step. Error: the file cannot be written.
    fn keep_choices(&self) -> Result<()> {
        Ok(())
    }

    /// Zeros of this backend.
    fn alloc(&self, shape: &[usize], dtype: DType) -> Result<Tensor>;
    /// A tensor with anything in it, to be written whole before it is read.
    fn alloc_unset(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.alloc(shape, dtype)
    }
    /// A frozen weight from a file, where and as this backend computes with it: as it is on the host; in device memory, in the activation
    /// type, on a GPU.
    fn place(&self, weight: Tensor) -> Result<Tensor> {
        Ok(weight)
    }
    /// Copies host values in; converts between float types.
    fn write(&self, tensor: &mut Tensor, values: &Tensor) -> Result<()>;
    /// Copies float values out to the host as f32.
    fn read(&self, tensor: &Tensor) -> Result<Vec<f32>>;
    /// Copies integer values out to the host.
    fn read_i32(&self, tensor: &Tensor) -> Result<Vec<i32>>;
    /// Copies between tensors of one shape and type.
    fn copy(&self, from: &Tensor, to: &mut Tensor) -> Result<()>;
    /// Sets every element.
    fn fill(&self, tensor: &mut Tensor, value: f32) -> Result<()>;

    /// ids (T), wte (V, C) -> out (T, C). Error: an id outside 0..V.
    fn embed(&self, ids: &Tensor, wte: &Tensor, out: &mut Tensor) -> Result<()>;
    /// ids (T), dout (T, C); accumulates dwte (V, C) in token order.
    fn embed_backward(&self, ids: &Tensor, dout: &Tensor, dwte: &mut Tensor) -> Result<()>;

    /// sum = residual + x (when x is given), y = sum / rms(sum) * w. residual, x, sum, y (T, C), w (C), rstd (T).
    /// Without x, the norm is of `residual` and `sum` must be `None` too.
    #[allow(clippy::too_many_arguments)]
    fn add_rmsnorm(
        &self,
        residual: &Tensor,
        x: Option<&Tensor>,
        w: &Tensor,
        eps: f32,
        sum: Option<&mut Tensor>,
        y: &mut Tensor,
        rstd: &mut Tensor,
    ) -> Result<()>;
    /// `sum` is what was normalised; accumulates into dsum (T, C) (which serves as dx and dresidual both) and dw (C).
    fn add_rmsnorm_backward(
        &self,
        sum: &Tensor,
        w: &Tensor,
        rstd: &Tensor,
        dy: &Tensor,
        dsum: &mut Tensor,
        dw: Option<&mut Tensor>,
    ) -> Result<()>;

    /// y[:, column .. column + N] = x W^T + bias + scale (x A^T) B^T; x (T, K), y (T, >= column + N), s (T, R) receives x A^T
    /// (required with an adapter).
    fn linear(&self, x: &Tensor, p: &Linear, y: &mut Tensor, column: usize, s: Option<&mut Tensor>) -> Result<()>;
    /// dy is read from columns [column, column + N). dx (T, K), when wanted, is accumulated; so are the parameter gradients.
    #[allow(clippy::too_many_arguments)]
    fn linear_backward(
        &self,
        x: &Tensor,
        p: &Linear,
        dy: &Tensor,
        column: usize,
        s: Option<&Tensor>,
        dx: Option<&mut Tensor>,
        grads: LinearGrads,
    ) -> Result<()>;
    /// Layers of one input, their outputs side by side: y (T, the sum of N) has the first one's in its first columns. `s`, one a layer,
    /// as in `linear`. One by one unless the backend knows better.
    fn linears(&self, x: &Tensor, layers: &[Linear], y: &mut Tensor, s: &mut [Option<Tensor>]) -> Result<()> {
        let mut column = 0;
        for (layer, s) in layers.iter().zip(s) {
            self.linear(x, layer, y, column, s.as_mut())?;
            column += layer.w.rows();
        }
        Ok(())
    }
    /// The backward of `linears`: dy (T, the sum of N), gradients one a layer; otherwise as `linear_backward`.
    fn linears_backward(
        &self,
        x: &Tensor,
        layers: &[Linear],
        dy: &Tensor,
        s: &[Option<Tensor>],
        mut dx: Option<&mut Tensor>,
        grads: Vec<LinearGrads>,
    ) -> Result<()> {
        let mut column = 0;
        for ((layer, s), grads) in layers.iter().zip(s).zip(grads) {
            self.linear_backward(x, layer, dy, column, s.as_ref(), dx.as_deref_mut(), grads)?;
            column += layer.w.rows();
        }
        Ok(())
    }

    /// In place on the q and k parts of qkv (T, D): optional per-head RMSNorm, then rotary embedding (arXiv 2104.09864, halves
    /// rotated as in Hugging Face). positions (T), table (P, HS): HS/2 cosines then HS/2 sines, any scaling folded in.
    /// With a norm, `raw` (T, (NH + NKV) HS) receives q and k as they were. Error: a position outside the table.
    fn qk_norm_rope(
        &self,
        qkv: &mut Tensor,
        heads: Heads,
        norm: Option<QkNorm>,
        positions: &Tensor,
        table: &Tensor,
        raw: Option<&mut Tensor>,
    ) -> Result<()>;
    /// In place on dqkv; accumulates dnorm (q (HS), k (HS)) when wanted.
    #[allow(clippy::too_many_arguments)]
    fn qk_norm_rope_backward(
        &self,
        dqkv: &mut Tensor,
        heads: Heads,
        norm: Option<QkNorm>,
        positions: &Tensor,
        table: &Tensor,
        raw: Option<&Tensor>,
        dnorm: Option<(&mut Tensor, &mut Tensor)>,
    ) -> Result<()>;

    /// Causal softmax attention with scale 1/sqrt(HS) inside the segments: qkv (T, D) -> o (T, NH HS), lse (NH, T).
    fn attention(
        &self,
        qkv: &Tensor,
        heads: Heads,
        segments: &Segments,
        o: &mut Tensor,
        lse: &mut Tensor,
    ) -> Result<()>;
    /// Writes dqkv (T, D) whole.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        qkv: &Tensor,
        o: &Tensor,
        lse: &Tensor,
        dout: &Tensor,
        heads: Heads,
        segments: &Segments,
        dqkv: &mut Tensor,
    ) -> Result<()>;

    /// Copies the k and v parts of qkv (T, D) to rows slots[t] of k_cache, v_cache (blocks * block_size, NKV HS).
    fn kv_append(
        &self,
        qkv: &Tensor,
        heads: Heads,
        slots: &Tensor,
        k_cache: &mut Tensor,
        v_cache: &mut Tensor,
    ) -> Result<()>;
    /// Attention of the q part of qkv (Q, D) over a paged cache. Sequence b has queries cu_q[b]..cu_q[b+1], the last ones of
    /// its lens[b] tokens; token t of b lies in row block_table[b, t / block_size] * block_size + t % block_size.
    /// block_table (B, P), lens (B), cu_q (B + 1) -> o (Q, NH HS).
    #[allow(clippy::too_many_arguments)]
    fn attention_paged(
        &self,
        qkv: &Tensor,
        heads: Heads,
        k_cache: &Tensor,
        v_cache: &Tensor,
        block_size: usize,
        block_table: &Tensor,
        lens: &Tensor,
        cu_q: &Tensor,
        o: &mut Tensor,
    ) -> Result<()>;

    /// gate_up (T, 2F) -> y (T, F) = silu(gate) * up.
    fn swiglu(&self, gate_up: &Tensor, y: &mut Tensor) -> Result<()>;
    /// Writes dgate_up (T, 2F) whole.
    fn swiglu_backward(&self, gate_up: &Tensor, dy: &Tensor, dgate_up: &mut Tensor) -> Result<()>;

    /// y (M, C) = rows of x (T, C).
    fn gather_rows(&self, x: &Tensor, rows: &Tensor, y: &mut Tensor) -> Result<()>;
    /// Accumulates dy (M, C) into rows of dx (T, C), in row order; a row may be named more than once.
    fn scatter_add_rows(&self, dy: &Tensor, rows: &Tensor, dx: &mut Tensor) -> Result<()>;

    /// x (M, C), w (V, C), targets (M): logits = x w^T / temperature in chunks; logp of the target, entropy, lse, each (M).
    #[allow(clippy::too_many_arguments)]
    fn linear_logprob(
        &self,
        x: &Tensor,
        w: &Tensor,
        targets: &Tensor,
        temperature: f32,
        logp: &mut Tensor,
        entropy: &mut Tensor,
        lse: &mut Tensor,
    ) -> Result<()>;
    /// From dlogp, dentropy (M) (and entropy, lse of the forward) writes dx (M, C) whole and accumulates dw (V, C) when wanted.
    #[allow(clippy::too_many_arguments)]
    fn linear_logprob_backward(
        &self,
        x: &Tensor,
        w: &Tensor,
        targets: &Tensor,
        temperature: f32,
        entropy: &Tensor,
        lse: &Tensor,
        dlogp: &Tensor,
        dentropy: Option<&Tensor>,
        dx: &mut Tensor,
        dw: Option<&mut Tensor>,
    ) -> Result<()>;

    /// From one decode step of B sequences to the next: positions, lens and counter (B) rise by one, and slots (B) become the cache rows
    /// of the tokens that are now last (see `attention_paged` for block_table (B, P)).
    fn advance(
        &self,
        block_size: usize,
        block_table: &Tensor,
        positions: &mut Tensor,
        lens: &mut Tensor,
        slots: &mut Tensor,
        counter: &mut Tensor,
    ) -> Result<()>;

    /// x (B, C), w (V, C) -> out (B, V).
    fn logits(&self, x: &Tensor, w: &Tensor, out: &mut Tensor) -> Result<()>;
    /// Draws ids (B) from logits (B, V); logp (B) is the id's log-probability at the row's temperature, before top-k and top-p
    /// (greedy: at temperature 1). Inverse transform over ids in ascending order with Philox word 0 at `counter`.
    fn sample(&self, logits: &Tensor, sampling: &Sampling, ids: &mut Tensor, logp: &mut Tensor) -> Result<()>;

    /// A critic's head in the accumulator type, whatever the activations are: x (M, C), w (1, C), bias (1) -> value (M) = x w^T + bias.
    fn value_head(&self, x: &Tensor, w: &Tensor, bias: &Tensor, value: &mut Tensor) -> Result<()>;
    /// From dvalue (M) writes dx (M, C) whole and accumulates dw (1, C) and dbias (1).
    fn value_head_backward(
        &self,
        x: &Tensor,
        w: &Tensor,
        dvalue: &Tensor,
        dx: &mut Tensor,
        dw: &mut Tensor,
        dbias: &mut Tensor,
    ) -> Result<()>;

    /// Loss statistics; writes dlogp and dentropy (M).
    fn ppo_loss(
        &self,
        params: &PpoParams,
        inputs: &PpoInputs,
        dlogp: &mut Tensor,
        dentropy: &mut Tensor,
    ) -> Result<PpoStats>;
    /// Half squared error, with `clip` the larger of the plain one and the one of the value clipped around old_value (PPO2).
    /// Returns the weighted loss; writes dvalue (M).
    fn value_loss(&self, clip: Option<f32>, inputs: &ValueInputs, dvalue: &mut Tensor) -> Result<f64>;

    /// The sum of squares over all tensors, in f64 in a fixed order.
    fn squared_norm(&self, tensors: &[&Tensor]) -> Result<f64>;
    /// One AdamW step on every tensor of the lists; param, m and v are updated.
    fn adamw(
        &self,
        step: &AdamW,
        params: &mut [&mut Tensor],
        grads: &[&Tensor],
        m: &mut [&mut Tensor],
        v: &mut [&mut Tensor],
    ) -> Result<()>;
    /// w (N, K) += scale * B A, rounded to w's type.
    fn merge_lora(&self, w: &mut Tensor, lora: &Lora) -> Result<()>;
}
