//! Runs a script in a folder, isolated and within limits, and returns a verdict. Never sees tokens, tasks or metrics.
//!
//! The trainer ([`Pool`]) starts one small helper process (our own binary), which forks workers ([`worker`]). A worker
//! enforces the limits on time, output and memory from outside. It forks the fork-server of its slot (`server`), which
//! enters the slot's isolation (`root`), keeps a Python with the libraries loaded there (loader.py) and takes each job
//! through its steps: `keeper` makes namespaces, and the loader forks the script's process into them under the rules of
//! `landlock` and the filters of `seccomp` (both before the job arrives, where there are namespaces); then `keeper`
//! lays out the files and the script begins.

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
