//! OneStep trains a language-model agent for machine-learning engineering on one machine: exploration-enriched
//! supervised fine-tuning, then step-wise reinforcement learning on single actions (ML-Agent, arXiv 2505.23723).
//!
//! Modules stand in layer order: a file imports only from groups above its own, from its own group, or from its own
//! folder. tests/layers.rs checks that.

pub mod console;
pub mod error;
pub mod files;
pub mod machine;
pub mod metrics;
pub mod rng;
pub mod settings;
pub mod tensor;
pub mod version;

pub mod backend;

pub mod weights;

pub mod model;

pub mod checkpoint;
pub mod optimizer;

pub mod sandbox;

pub mod task;

pub mod message;

pub mod reward;
pub mod trajectory;

pub mod chat;
pub mod tokenizer;

pub mod environment;

pub mod batch;
pub mod rollout;

pub mod agent;
pub mod dataset;
pub mod state_pool;

pub mod export;
pub mod identity;
pub mod progress;
pub mod run;

pub mod exercises;
pub mod expert;
pub mod ideas;

pub mod evaluate;
pub mod ppo;
pub mod pretrain;
pub mod rl;
pub mod sft;

pub mod config;

pub mod plan;

pub mod bench;
pub mod report;

pub mod cli;
