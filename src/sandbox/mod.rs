//! A folder and a script in, a verdict out. Never sees tokens, tasks or metrics.
//!
//! The trainer ([`Pool`]) starts one small helper process (our own binary), which forks workers ([`worker`]); each worker
//! owns one Python fork-server (fork_server.py), which forks a sealed child for each job. Isolation is one function,
//! `seal` in fork_server.py; limits on time and output are enforced by the worker, from outside.

pub mod limits;
pub mod pool;
pub mod protocol;
pub mod python;
mod system;
pub mod worker;

pub use limits::Limits;
pub use pool::Pool;
pub use protocol::{Job, Outcome, Protection, Verdict};
pub use python::Python;
