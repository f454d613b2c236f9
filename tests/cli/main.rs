//! Drives the real program as a user does: arguments and files in; exit codes, messages and files out.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod context;
mod data;
mod disk_full;
mod export;
mod keys;
mod look;
mod lost;
mod machine;
mod models;
mod plan;
mod rl;
mod runs;
mod sandbox;
mod score;
mod settings;
mod sft;
mod store;
mod support;
mod task_run;
