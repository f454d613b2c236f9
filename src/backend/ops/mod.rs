//! The ops, one struct each: its operands with their shapes, and the check (its "door") that rejects wrong types and
//! shapes before a backend sees them. `Swiglu { gate_up, y }.run(backend)` runs one.
//!
//! Float activations have the backend's activation type; statistics and gradients of parameters have its accumulator
//! type. Weights may be stored narrower (f16, bf16); they are widened tile by tile. Integers are `I32`. "Accumulates"
//! means that the op adds to the values already there. Dimensions: B batch, T tokens, C channels, NH query heads, NKV
//! key/value heads, HS head size, D = (NH + 2 NKV) HS, F MLP width, V vocabulary, R adapter rank, S segments, M rows
//! that have a loss.

use crate::error::Result;
use crate::tensor::DType;
use door::Operands;

mod door;
pub(super) mod tensor;

pub use door::{Heads, Types};
pub(super) use sample::no_distribution;

/// What computes ops, and the types that it computes in.
pub trait Execute: Send + Sync {
    /// The type of activations and of their gradients.
    fn activation(&self) -> DType;
    /// The type of values that need more precision than activations: statistics (rstd, lse, log-probabilities, logits),
    /// losses, trained parameters, their gradients and moments.
    fn accumulator(&self) -> DType {
        self.activation()
    }
    /// True when tensors lie in host memory. Index values are then checked before each op; on other backends the code
    /// that makes the index tensors has checked them.
    fn is_host(&self) -> bool {
        true
    }

    /// Runs an op whose operands have passed its door.
    fn execute(&self, op: Op) -> Result<()>;

    /// Runs an op. Error: as the op says, or an operand of a wrong type or shape.
    fn run(&self, op: Op) -> Result<()> {
        op.check(Types { activation: self.activation(), accumulator: self.accumulator() }, self.is_host())?;
        self.execute(op)
    }
}

/// Declares the op files, the ops in each, and what else each file exports.
macro_rules! ops {
    ($($file:ident: $($op:ident),+ $(; $($other:ident),+)?.)+) => {
        $(mod $file;
        pub use $file::{$($op),+ $(, $($other),+)?};)+

        /// One op with its operands, as passed to a backend.
        pub enum Op<'a> {
            $($(#[doc = concat!("See [`", stringify!($op), "`].")]
            $op($op<'a>),)+)+
        }

        impl Op<'_> {
            /// Checks the operands. Error: an operand of a wrong type or shape; where tensors lie on the host, also an
            /// index out of range.
            fn check(&self, types: Types, on_host: bool) -> Result<()> {
                match self {
                    $($(Op::$op(op) => {
                        op.check(types)?;
                        if on_host { op.check_values() } else { Ok(()) }
                    })+)+
                }
            }
        }

        $($(impl<'a> From<$op<'a>> for Op<'a> {
            fn from(op: $op<'a>) -> Self {
                Op::$op(op)
            }
        }

        impl $op<'_> {
            /// Runs the op. Error: as the op says, or an operand of a wrong type or shape.
            pub fn run(self, backend: &(impl Execute + ?Sized)) -> Result<()> {
                backend.run(self.into())
            }
        })+)+
    };
}

ops! {
    embed: Embed, EmbedBackward.
    add_rmsnorm: AddRmsnorm, AddRmsnormBackward.
    linear: Linears, LinearsBackward, MergeLora; Linear, LinearGrads, Lora.
    qk_norm_rope: QkNormRope, QkNormRopeBackward; QkNorm.
    attention: Attention, AttentionBackward; Segments.
    attention_paged: KvAppend, AttentionPaged.
    advance: Advance.
    swiglu: Swiglu, SwigluBackward.
    rows: GatherRows, ScatterAddRows.
    linear_logprob: LinearLogprob, LinearLogprobBackward, Logits.
    sample: Sample; Sampling.
    value_head: ValueHead, ValueHeadBackward.
    ppo_loss: PpoLoss; KlEstimator, PpoInputs, PpoParams, PpoStats, Surrogate, MOST_LOG_RATIO.
    value_loss: ValueLoss; ValueInputs.
    adamw: AdamWStep, SquaredNorm; AdamW, Trained.
}
