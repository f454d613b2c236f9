//! A folder and a script in, a verdict out. Never sees tokens, tasks or metrics.
//!
//! The trainer ([`Pool`]) starts one small helper process (our own binary), which forks workers ([`worker`]). A worker enforces from
//! outside the limits on time, output and memory; it forks the fork-server of its slot (`server`), which enters the slot's isolation
//! (`root`), keeps there a Python that has the libraries loaded (loader.py) and takes each job through its steps: `keeper` makes
//! namespaces, the loader forks the script's process into them under the rules of `landlock` and the filters of `seccomp`, both ahead of the
//! job where there are namespaces; then `keeper` lays out the files and the script begins.

mod cgroup;
mod keeper;
mod landlock;
mod leftovers;
pub mod limits;
mod output;
pub mod pool;
pub mod protocol;
mod pulse;
pub mod python;
mod root;
mod seccomp;
mod server;
mod system;
pub mod worker;

pub use limits::{LEAST_MEMORY, Limits, MOST_BYTES, MOST_PROCESSES, MOST_SECONDS};
pub use pool::Pool;
pub use protocol::{Isolation, Job, Outcome, Protection, Verdict, WORKSPACE, Wanted};
pub use python::Python;
