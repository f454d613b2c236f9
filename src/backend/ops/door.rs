//! What the doors of ops ask of a tensor: its type, its shape, whether it may be written, and, on the host, its index values.

use super::Heads;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// The float types of a backend's tensors.
#[derive(Debug, Clone, Copy)]
pub struct Types {
    /// Of activations and their gradients.
    pub activation: DType,
    /// Of statistics, losses, trained parameters and their gradients.
    pub accumulator: DType,
}

impl From<DType> for Types {
    /// One type for both.
    fn from(dtype: DType) -> Self {
        Self { activation: dtype, accumulator: dtype }
    }
}

/// The door of one op: its name and the float types of the backend.
pub(super) struct Door(&'static str, Types);

/// The door of an op of a backend with these types.
pub(super) fn door(op: &'static str, types: impl Into<Types>) -> Door {
    Door(op, types.into())
}

impl Door {
    pub fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::content(format!("{}: {what}", self.0))
    }

    pub fn typed(&self, name: &str, t: &Tensor, dtype: DType, shape: &[usize]) -> Result<()> {
        if t.dtype() != dtype || t.shape() != shape {
            return Err(self.error(format!("{name} is {t:?}, expected {dtype:?}{shape:?}")));
        }
        Ok(())
    }

    /// An input of the activation type.
    pub fn input(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.typed(name, t, self.1.activation, shape)
    }

    /// An output of the activation type.
    pub fn output(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.input(name, t, shape)?;
        self.writable(name, t)
    }

    /// An input of the accumulator type.
    pub fn statistic(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.typed(name, t, self.1.accumulator, shape)
    }

    /// An output of the accumulator type.
    pub fn accumulated(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.statistic(name, t, shape)?;
        self.writable(name, t)
    }

    /// An input of integers.
    pub fn int(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.typed(name, t, DType::I32, shape)
    }

    /// A parameter, stored in any float type.
    pub fn parameter(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        if t.dtype() == DType::I32 || t.shape() != shape {
            return Err(self.error(format!("{name} is {t:?}, expected a float type and {shape:?}")));
        }
        Ok(())
    }

    pub fn writable(&self, name: &str, t: &Tensor) -> Result<()> {
        if t.is_mapped() {
            return Err(self.error(format!("{name} {t:?} lies in a memory map and cannot be written; copy it first")));
        }
        Ok(())
    }

    /// The extents of a matrix of any type; it may have no row, but has columns.
    pub fn matrix(&self, name: &str, t: &Tensor) -> Result<[usize; 2]> {
        match t.shape() {
            &[rows, columns] if columns > 0 => Ok([rows, columns]),
            _ => Err(self.error(format!("{name} is {t:?}, expected two extents, the second above 0"))),
        }
    }

    /// The extent of a vector of any type.
    pub fn vector(&self, name: &str, t: &Tensor) -> Result<usize> {
        match t.shape() {
            [n] => Ok(*n),
            _ => Err(self.error(format!("{name} is {t:?}, expected one extent"))),
        }
    }

    pub fn require(&self, holds: bool, what: impl FnOnce() -> String) -> Result<()> {
        if holds { Ok(()) } else { Err(self.error(what())) }
    }

    pub fn given<'a, T: ?Sized>(&self, what: &str, value: Option<&'a T>) -> Result<&'a T> {
        value.ok_or_else(|| self.error(what))
    }

    pub fn heads(&self, heads: Heads) -> Result<()> {
        let Heads { nh, nkv, hs } = heads;
        let good = nh > 0 && nkv > 0 && nh.is_multiple_of(nkv) && hs > 0 && hs.is_multiple_of(2);
        self.require(good, || format!("{heads:?}: nkv must divide nh, and hs must be even, all above 0"))
    }
}

/// Every value names one of `limit` things; `what` says which (`id`, `position`) and `of` what there are so many (`V`).
pub(super) fn indices(op: &str, what: &str, values: &Tensor, of: &str, limit: usize) -> Result<()> {
    indices_of(op, what, values.slice(), of, limit)
}

/// The same of values that are part of a tensor.
pub(super) fn indices_of(op: &str, what: &str, values: &[i32], of: &str, limit: usize) -> Result<()> {
    match values.iter().position(|&i| usize::try_from(i).map_or(true, |i| i >= limit)) {
        None => Ok(()),
        Some(at) => {
            let value = values[at];
            Err(Error::content(format!("{op}: {what} {value} at index {at} is not in 0..{limit} ({of} = {limit})")))
        }
    }
}

/// Offsets run from 0 to `end` and never fall.
pub(super) fn offsets(op: &str, name: &str, values: &[i32], end: usize) -> Result<()> {
    let good = values.first() == Some(&0)
        && values.last().is_some_and(|&last| usize::try_from(last) == Ok(end))
        && values.is_sorted();
    if good {
        Ok(())
    } else {
        Err(Error::content(format!("{op}: {name} must rise from 0 to {end}, but is {values:?}")))
    }
}
