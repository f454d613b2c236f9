//! The GPU backend without a GPU: every kernel runs on the CPU through tests/simt, against the oracle.
#![allow(clippy::unwrap_used)]

mod simt;
mod support;

mod bench;
mod tensor;
