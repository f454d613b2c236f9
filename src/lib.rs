//! OneStep trains a language-model agent for machine-learning engineering on one machine: exploration-enriched supervised
//! fine-tuning, then step-wise reinforcement learning on single actions (ML-Agent, arXiv 2505.23723).
//!
//! Modules in layer order; a file imports only from lines above its own, from its own line, or from its own folder.

pub mod error;
pub mod rng;
pub mod tensor;

pub mod backend;

pub mod environment;
pub mod reward;
pub mod sandbox;
pub mod task;
pub mod trajectory;

pub mod ideas;

pub mod exercises;
