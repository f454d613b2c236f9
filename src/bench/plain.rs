//! Plain bf16 computation, the yardstick for whole models: f32 inside each op, and every activation that an op writes
//! rounded to bf16, as in PyTorch. Statistics, log-probabilities and gradients of parameters stay f32.

use crate::backend::Backend;
use crate::backend::ops::{self, Execute, Op};
use crate::backend::oracle::Oracle;
use crate::error::Result;
use crate::tensor::{DType, Tensor};
use half::bf16;

/// Backend that computes in plain bf16 (see the top of the file).
pub struct Plain {
    inner: Oracle,
}

impl Default for Plain {
    fn default() -> Self {
        Self::new()
    }
}

impl Plain {
    /// Makes the backend; it has no state.
    pub fn new() -> Self {
        Self { inner: Oracle::f32() }
    }
}

fn round(tensor: &mut Tensor) {
    tensor.slice_mut::<f32>().iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
}

impl Execute for Plain {
    fn activation(&self) -> DType {
        DType::F32
    }

    fn execute(&self, op: Op) -> Result<()> {
        let run = |op: Op| self.inner.execute(op);
        let activation = match op {
            Op::Embed(op) => {
                run(ops::Embed { out: &mut *op.out, ..op }.into())?;
                op.out
            }
            Op::AddRmsnorm(op) => {
                self.add_rmsnorm(ops::AddRmsnorm { y: &mut *op.y, ..op })?;
                op.y
            }
            Op::AddRmsnormBackward(op) => {
                run(ops::AddRmsnormBackward { dsum: &mut *op.dsum, ..op }.into())?;
                op.dsum
            }
            Op::Linears(mut op) => {
                let s = op.s.iter_mut().map(|s| s.as_deref_mut()).collect();
                run(ops::Linears { y: &mut *op.y, s, ..op }.into())?;
                op.s.into_iter().flatten().for_each(round);
                op.y
            }
            Op::LinearsBackward(mut op) => {
                run(ops::LinearsBackward { dx: op.dx.as_deref_mut(), ..op }.into())?;
                let Some(dx) = op.dx else { return Ok(()) };
                dx
            }
            Op::QkNormRope(op) => {
                run(ops::QkNormRope { qkv: &mut *op.qkv, ..op }.into())?;
                op.qkv
            }
            Op::QkNormRopeBackward(op) => {
                run(ops::QkNormRopeBackward { dqkv: &mut *op.dqkv, ..op }.into())?;
                op.dqkv
            }
            Op::Attention(op) => {
                run(ops::Attention { o: &mut *op.o, ..op }.into())?;
                op.o
            }
            Op::AttentionBackward(op) => {
                run(ops::AttentionBackward { dqkv: &mut *op.dqkv, ..op }.into())?;
                op.dqkv
            }
            Op::AttentionPaged(op) => {
                run(ops::AttentionPaged { o: &mut *op.o, ..op }.into())?;
                op.o
            }
            Op::Swiglu(op) => {
                run(ops::Swiglu { y: &mut *op.y, ..op }.into())?;
                op.y
            }
            Op::SwigluBackward(op) => {
                run(ops::SwigluBackward { dgate_up: &mut *op.dgate_up, ..op }.into())?;
                op.dgate_up
            }
            Op::ScatterAddRows(op) => {
                run(ops::ScatterAddRows { dx: &mut *op.dx, ..op }.into())?;
                op.dx
            }
            Op::LinearLogprobBackward(op) => {
                run(ops::LinearLogprobBackward { dx: &mut *op.dx, ..op }.into())?;
                op.dx
            }
            other => return run(other),
        };
        round(activation);
        Ok(())
    }
}

impl Backend for Plain {
    fn name(&self) -> &'static str {
        "plain bf16"
    }
    fn alloc(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.inner.alloc(shape, dtype)
    }
    fn write(&self, tensor: &mut Tensor, values: &Tensor) -> Result<()> {
        self.inner.write(tensor, values)
    }
    fn read(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        self.inner.read(tensor)
    }
    fn read_i32(&self, tensor: &Tensor) -> Result<Vec<i32>> {
        self.inner.read_i32(tensor)
    }
    fn copy(&self, from: &Tensor, to: &mut Tensor) -> Result<()> {
        self.inner.copy(from, to)
    }
    fn fill(&self, tensor: &mut Tensor, value: f32) -> Result<()> {
        self.inner.fill(tensor, value)
    }
}

impl Plain {
    /// Rounds the sum before it is normalised.
    fn add_rmsnorm(&self, op: ops::AddRmsnorm) -> Result<()> {
        let ops::AddRmsnorm { residual, x, w, eps, sum, y, rstd } = op;
        let Some(sum) = sum else {
            return self.inner.execute(ops::AddRmsnorm { residual, x, w, eps, sum, y, rstd }.into());
        };
        let added = ops::AddRmsnorm { residual, x, w, eps, sum: Some(&mut *sum), y: &mut *y, rstd: &mut *rstd };
        self.inner.execute(added.into())?;
        round(sum);
        self.inner.execute(ops::AddRmsnorm { residual: sum, x: None, w, eps, sum: None, y, rstd }.into())
    }
}
