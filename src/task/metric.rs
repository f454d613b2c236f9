//! Metrics.
/// (being written)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// share of equal labels
    Accuracy,
}
