//! Integers on the backend.

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Makes an integer tensor on the backend.
pub fn index_tensor(be: &dyn Backend, shape: &[usize], values: &[i32]) -> Result<Tensor> {
    let mut tensor = be.alloc_unset(shape, DType::I32)?;
    be.write(&mut tensor, &Tensor::from_slice(shape, values))?;
    Ok(tensor)
}

/// Converts offsets, rows and positions to the 32-bit integers that ops take.
pub(super) fn narrow(values: &[usize]) -> Result<Vec<i32>> {
    let narrow = |&value: &usize| {
        i32::try_from(value)
            .map_err(|_| Error::system(format!("index {value} does not fit 32 bits; make the batch smaller")))
    };
    values.iter().map(narrow).collect()
}
