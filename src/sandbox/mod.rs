//! A folder and a script in, a verdict out. Never sees tokens, tasks or metrics.

pub mod limits;
pub mod pool;
pub mod protocol;
pub mod python;
pub mod worker;

pub use limits::Limits;
pub use pool::Pool;
pub use protocol::{Job, Outcome, Protection, Verdict};
pub use python::Python;
