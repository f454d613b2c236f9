//! The private Python environment of the tasks.
/// (being written)
pub struct Python;
