//! The GPU backend without a GPU: every kernel runs on the CPU through tests/simt, against the oracle.
#![allow(clippy::unwrap_used)]

mod simt;
mod support;

mod adamw;
mod add_rmsnorm;
mod advance;
mod attention;
mod attention_paged;
mod bench;
mod embed;
mod faults;
mod gemm;
mod linear;
mod linear_logprob;
mod model;
mod ppo_loss;
mod qk_norm_rope;
mod rows;
mod sample;
mod swiglu;
mod tensor;
mod value_head;
mod value_loss;
