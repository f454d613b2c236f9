//! Checks that ops make on their operands: type, shape, whether a tensor may be written and, on the host, index values.

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Head counts of one attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub nh: usize,
    /// Key/value heads; divides `nh`.
    pub nkv: usize,
    /// Elements per head.
    pub hs: usize,
}

impl Heads {
    /// The width D of a row of q, k and v together: (NH + 2 NKV) HS.
    pub fn qkv_width(&self) -> usize {
        (self.nh + 2 * self.nkv) * self.hs
    }
}

/// Checks of an op's operands.
pub(super) trait Operands {
    /// Checks types and shapes, which needs no data. The error names the op, the tensor and both shapes.
    fn check(&self, types: Types) -> Result<()>;

    /// Checks the values of index tensors and settings, for tensors that lie on the host.
    fn check_values(&self) -> Result<()> {
        Ok(())
    }
}

/// The float types of a backend's tensors.
#[derive(Debug, Clone, Copy)]
pub struct Types {
    /// Type of activations and their gradients.
    pub activation: DType,
    /// Type of statistics, losses, trained parameters and their gradients.
    pub accumulator: DType,
}

impl From<DType> for Types {
    /// Uses one type for both.
    fn from(dtype: DType) -> Self {
        Self { activation: dtype, accumulator: dtype }
    }
}

/// Operand checks of one op: its name and the float types of the backend.
pub(super) struct Door(&'static str, Types);

/// Returns the checks of `op` for a backend with these types.
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

    /// Checks an input of the activation type.
    pub fn input(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.typed(name, t, self.1.activation, shape)
    }

    /// Checks an output of the activation type.
    pub fn output(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.input(name, t, shape)?;
        self.writable(name, t)
    }

    /// Checks an input of the accumulator type.
    pub fn statistic(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.typed(name, t, self.1.accumulator, shape)
    }

    /// Checks an output of the accumulator type.
    pub fn accumulated(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.statistic(name, t, shape)?;
        self.writable(name, t)
    }

    /// Checks an input of integers.
    pub fn int(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.typed(name, t, DType::I32, shape)
    }

    /// Checks a parameter, stored in any float type.
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

    /// Returns the extents of a matrix of any type; it may have no rows, but must have columns.
    pub fn matrix(&self, name: &str, t: &Tensor) -> Result<[usize; 2]> {
        match t.shape() {
            &[rows, columns] if columns > 0 => Ok([rows, columns]),
            _ => Err(self.error(format!("{name} is {t:?}, expected two extents, the second above 0"))),
        }
    }

    /// Returns the extent of a vector of any type.
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

/// Checks that every value lies in 0..`limit`. For the error message, `what` says what a value is (`id`, `position`)
/// and `of` names the limit (`V`).
pub(super) fn indices(op: &str, what: &str, values: &Tensor, of: &str, limit: usize) -> Result<()> {
    indices_of(op, what, values.slice(), of, limit)
}

/// Checks values that are only part of a tensor, as `indices` does.
pub(super) fn indices_of(op: &str, what: &str, values: &[i32], of: &str, limit: usize) -> Result<()> {
    match values.iter().position(|&i| usize::try_from(i).map_or(true, |i| i >= limit)) {
        None => Ok(()),
        Some(at) => {
            let value = values[at];
            Err(Error::content(format!("{op}: {what} {value} at index {at} is not in 0..{limit} ({of} = {limit})")))
        }
    }
}

/// Checks that offsets run from 0 to `end` and never fall.
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
