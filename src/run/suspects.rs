//! Finds what broke a step that ended in numbers that are not finite: the tensor that holds the first of them.

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};
use crate::weights::converted;
use std::path::Path;

/// The tensors that may hold the first number that is not finite.
pub struct Suspects<'a> {
    /// The frozen base: names and tensors.
    pub base: (&'a [String], &'a [Tensor]),
    /// The trained tensors, list by list.
    pub trained: Vec<Suspect<'a>>,
}

/// One list of trained tensors.
pub struct Suspect<'a> {
    /// Name of the list in messages, for example `the adapter`.
    pub what: &'static str,
    /// A name for each tensor.
    pub names: &'a [String],
    /// The tensors.
    pub tensors: &'a [Tensor],
    /// The learning rate of the step.
    pub rate: f32,
}

/// Checks a value, which the message calls `what`. Error: it is NaN or infinite.
pub fn finite(what: &str, value: f64) -> Result<()> {
    if value.is_finite() { Ok(()) } else { Err(Error::not_finite(format!("{what} is {value}"))) }
}

impl Suspects<'_> {
    /// Says what is broken and what to do; `newest` is the newest checkpoint.
    pub(super) fn verdict(&self, newest: Option<&Path>) -> Result<String> {
        if let Some(found) = broken(self.base.0, self.base.1)? {
            return Ok(format!("the base itself is broken: its {found}; get the model again, or take another"));
        }
        let begin = match newest {
            Some(path) => format!("begin a new run with a lower one, from {} if you like", path.display()),
            None => "begin again with a lower one".to_string(),
        };
        for Suspect { what, names, tensors, rate } in &self.trained {
            if let Some(found) = broken(names, tensors)? {
                return Ok(format!(
                    "base and data are sound; {what} is not: its {found}; the learning rate {rate:e} is too high: {begin}"
                ));
            }
        }
        for Suspect { what, names, tensors, rate } in &self.trained {
            if let Some(found) = huge(names, tensors)? {
                return Ok(format!(
                    "every weight is finite, but {what} has gone far: its {found}; the learning rate {rate:e} is too high: {begin}"
                ));
            }
        }
        let rate = self.trained.first().map_or(0.0, |suspect| suspect.rate);
        Ok(format!(
            "every weight is finite, so this batch made it: look at the lengths and rewards of its examples, and if they are as they \
             should be the learning rate {rate:e} is too high: {begin}"
        ))
    }
}

/// Describes the first tensor that holds numbers that are not finite: its name and how many.
fn broken(names: &[String], tensors: &[Tensor]) -> Result<Option<String>> {
    for (name, tensor) in names.iter().zip(tensors) {
        let copy = tensor.host_copy()?;
        let count = copy.as_ref().unwrap_or(tensor).not_finite();
        if count > 0 {
            return Ok(Some(format!("tensor {name} holds {count} of {} numbers that are not finite", tensor.len())));
        }
    }
    Ok(None)
}

/// Larger than any trained weight should be.
const HUGE: f64 = 1e4;

/// Describes the first tensor that holds a number above `HUGE`: its name and the largest magnitude.
fn huge(names: &[String], tensors: &[Tensor]) -> Result<Option<String>> {
    for (name, tensor) in names.iter().zip(tensors) {
        let copy = tensor.host_copy()?;
        let largest = converted(copy.as_ref().unwrap_or(tensor), DType::F64)
            .slice::<f64>()
            .iter()
            .fold(0.0, |largest: f64, x| largest.max(x.abs()));
        if largest > HUGE {
            return Ok(Some(format!("tensor {name} holds numbers as large as {largest:.0e}")));
        }
    }
    Ok(None)
}
