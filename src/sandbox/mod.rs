//! A folder and a script in, a verdict out. Never sees tokens, tasks or metrics.
//!
//! The trainer ([`Pool`]) starts one small helper process (our own binary), which forks workers ([`worker`]); each worker
//! owns one Python fork-server (fork_server.py), which forks a sealed child for each job. Isolation is
//! seal.py with the filters of `seccomp`; limits on time and output are enforced by the worker, from outside.

mod cgroup;
mod leftovers;
pub mod limits;
pub mod pool;
pub mod protocol;
pub mod python;
mod seccomp;
mod system;
pub mod worker;

pub use limits::Limits;
pub use pool::Pool;
pub use protocol::{Isolation, Job, Outcome, Protection, Verdict, WORKSPACE, Wanted};
pub use python::Python;
