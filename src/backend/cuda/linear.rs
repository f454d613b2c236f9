//! Linear layers with adapters: launches of kernels/linear.cu and kernels/gemm.cu.

use super::device::{Arg, Gemm, Matrix};
use super::gemm::{self, Second, bias_args, columns, matrix, operand};
use super::kernels::Kernel;
use super::{Cuda, int, no_kernel, pointer};
use crate::backend::{Linear, LinearGrads, Lora};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// How a linear layer with an adapter or a bias is computed. A device without a vendor's library always takes `Fused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearPath {
    /// The product with W by the vendor's library, then one pass over the output for the adapter and the bias.
    Library,
    /// All of it in one kernel of ours.
    Fused,
}

/// Rows of a block of lora_down, and the most of the contraction that one block takes (kernels/linear.cu). The latter is fixed, so
/// that the bits of a row depend on K alone.
const DOWN_ROWS: usize = 32;
const DOWN_SPLIT: usize = 4096;
/// Columns and rows of a block of lora_up.
const UP: [usize; 2] = [256, 64];
/// Rows of a block of column_sums.
const SUM_ROWS: usize = 256;

fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "linear", name }
}

/// y = x op(w), without the rest.
fn product(m: usize, n: usize, k: usize, a: Matrix, b: Matrix, c: Matrix) -> Gemm {
    Gemm { m, n, k, a, transpose_a: false, b, transpose_b: false, c, alpha: 1.0, beta: 0.0 }
}

pub(super) fn linear(
    be: &Cuda,
    x: &Tensor,
    p: &Linear,
    y: &mut Tensor,
    column: usize,
    s: Option<&mut Tensor>,
) -> Result<()> {
    let (t, n, k) = (x.rows(), p.w.rows(), p.w.columns());
    if t == 0 || n == 0 {
        return Ok(());
    }
    let w = operand(be, p.w)?;
    let out = columns(y, column)?;
    let g = Gemm { transpose_b: true, ..product(t, n, k, matrix(x)?, matrix(w.tensor())?, out) };
    let adapter = match (&p.lora, s) {
        (Some(lora), Some(s)) => Some((lora, s)),
        (Some(_), None) => return Err(Error::system("linear: an adapter without a tensor for s")),
        (None, _) => None,
    };
    if be.linear_path == LinearPath::Library && be.device.gemm(&g)? {
        return match adapter {
            Some((lora, s)) => {
                lora_down(be, matrix(x)?, t, lora.a, false, 1.0, s)?;
                lora_up(be, Some((s, lora.b)), false, lora.scale, p.bias, t, n, out)
            }
            None if p.bias.is_some() => lora_up(be, None, false, 0.0, p.bias, t, n, out),
            None => Ok(()),
        };
    }
    let Some((lora, s)) = adapter else { return gemm::product(be, &g, p.bias, None) };
    let (a, r) = (operand(be, lora.a)?, lora.a.rows());
    if r <= gemm::FUSED_RANK {
        let b = gemm::adapter(be, lora.b)?;
        return gemm::linear_lora(be, &g, p.bias, a.tensor(), &Lora { b: b.tensor(), ..*lora }, s);
    }
    let down = Gemm { transpose_b: true, ..product(t, r, k, g.a, matrix(a.tensor())?, matrix(s)?) };
    gemm::product(be, &down, None, None)?;
    let b = operand(be, lora.b)?;
    let up = Second { a: matrix(s)?, b: matrix(b.tensor())?, k: r, scale: lora.scale };
    gemm::product(be, &g, p.bias, Some(&up))
}

#[allow(clippy::too_many_arguments)]
pub(super) fn linear_backward(
    be: &Cuda,
    x: &Tensor,
    p: &Linear,
    dy: &Tensor,
    column: usize,
    s: Option<&Tensor>,
    dx: Option<&mut Tensor>,
    grads: LinearGrads,
) -> Result<()> {
    let (t, n, k) = (x.rows(), p.w.rows(), p.w.columns());
    if t == 0 || n == 0 {
        return Ok(());
    }
    let (x, dy) = (matrix(x)?, columns(dy, column)?);
    let ds = match &p.lora {
        Some(lora) if dx.is_some() || grads.lora.is_some() => {
            let mut ds = be.workspace(&[t, lora.a.rows()], DType::BF16)?;
            lora_down(be, dy, t, lora.b, true, lora.scale, &mut ds)?;
            Some((lora, ds))
        }
        _ => None,
    };
    if let Some(dx) = dx {
        let w = operand(be, p.w)?;
        let g = Gemm { beta: 1.0, ..product(t, k, n, dy, matrix(w.tensor())?, matrix(dx)?) };
        if be.linear_path == LinearPath::Library && be.device.gemm(&g)? {
            if let Some((lora, ds)) = &ds {
                lora_up(be, Some((ds, lora.a)), true, 1.0, None, t, k, g.c)?;
            }
        } else if let Some((lora, ds)) = &ds {
            let a = operand(be, lora.a)?;
            let second = Second { a: matrix(ds)?, b: matrix(a.tensor())?, k: ds.columns(), scale: 1.0 };
            gemm::product(be, &g, None, Some(&second))?;
        } else {
            gemm::product(be, &g, None, None)?;
        }
    }
    let over_tokens = |m: usize, n: usize, a: Matrix, b: Matrix, c: &Tensor| -> Result<Gemm> {
        Ok(Gemm { transpose_a: true, beta: 1.0, ..product(m, n, t, a, b, matrix(c)?) })
    };
    if let (Some((lora, ds)), Some((da, db))) = (&ds, grads.lora) {
        let s = s.ok_or_else(|| Error::system("linear_backward: the gradient of an adapter without its s"))?;
        let r = ds.columns();
        // Tall and thin: our own kernel, which splits the sum over tokens.
        gemm::product(be, &over_tokens(r, k, matrix(ds)?, x, da)?, None, None)?;
        let db = over_tokens(n, r, dy, matrix(s)?, db)?;
        gemm::product(be, &Gemm { alpha: lora.scale, ..db }, None, None)?;
    }
    if let Some(dw) = grads.w {
        gemm::gemm(be, &over_tokens(n, k, dy, x, dw)?)?;
    }
    match grads.bias {
        Some(dbias) => column_sums(be, dy, t, n, dbias),
        None => Ok(()),
    }
}

/// s (T, R) = scale * x op(w): x (T, K); w (R, K), or (K, R) when `k_rows`.
fn lora_down(be: &Cuda, x: Matrix, t: usize, w: &Tensor, k_rows: bool, scale: f32, s: &mut Tensor) -> Result<()> {
    let (r, k) = if k_rows { (w.columns(), w.rows()) } else { (w.rows(), w.columns()) };
    let w = gemm::adapter(be, w)?;
    let (name, ranks) = match (k_rows, r <= 16) {
        (false, true) => ("lora_down_16", 16),
        (false, false) => ("lora_down_64", 64),
        (true, true) => ("lora_down_rows_16", 16),
        (true, false) => ("lora_down_rows_64", 64),
    };
    let splits = k.div_ceil(DOWN_SPLIT).max(1);
    let partial = if splits > 1 { Some(be.workspace(&[splits, t, r], DType::F32)?) } else { None };
    let args = [
        Arg::Pointer(x.address),
        Arg::I64(x.stride as i64),
        pointer(w.tensor())?,
        int(t)?,
        int(r)?,
        int(k)?,
        int(DOWN_SPLIT)?,
        Arg::F32(scale),
        pointer(s)?,
        super::optional(partial.as_ref())?,
    ];
    be.launch(kernel(name), [t.div_ceil(DOWN_ROWS), r.div_ceil(ranks), splits], 256, 0, &args)?;
    match &partial {
        Some(partial) => gemm::sum_splits(be, partial, t, r, matrix(s)?, scale, 0.0),
        None => Ok(()),
    }
}

/// y (T, N) += scale * s op(w) + bias: s (T, R); w (N, R), or (R, N) when `r_rows`.
#[allow(clippy::too_many_arguments)]
fn lora_up(
    be: &Cuda,
    lora: Option<(&Tensor, &Tensor)>,
    r_rows: bool,
    scale: f32,
    bias: Option<&Tensor>,
    t: usize,
    n: usize,
    y: Matrix,
) -> Result<()> {
    let w = lora.map(|(_, w)| gemm::adapter(be, w)).transpose()?;
    let name = if r_rows { "lora_up_nn" } else { "lora_up_nt" };
    let [bias, bias_is_f32] = bias_args(bias)?;
    let args = [
        super::optional(lora.map(|(s, _)| s))?,
        super::optional(w.as_ref().map(|w| w.tensor()))?,
        int(t)?,
        int(n)?,
        int(lora.map_or(0, |(s, _)| s.columns()))?,
        Arg::F32(scale),
        bias,
        bias_is_f32,
        Arg::Pointer(y.address),
        Arg::I64(y.stride as i64),
    ];
    be.launch(kernel(name), [n.div_ceil(UP[0]), t.div_ceil(UP[1]), 1], 256, 0, &args)
}

/// dbias (N) += the column sums of dy (T, N).
fn column_sums(be: &Cuda, dy: Matrix, t: usize, n: usize, dbias: &mut Tensor) -> Result<()> {
    let splits = t.div_ceil(SUM_ROWS);
    let partial = be.workspace(&[splits, n], DType::F32)?;
    let args =
        [Arg::Pointer(dy.address), Arg::I64(dy.stride as i64), int(t)?, int(n)?, int(SUM_ROWS)?, pointer(&partial)?];
    be.launch(kernel("column_sums"), [n.div_ceil(256), splits, 1], 256, 0, &args)?;
    gemm::sum_splits(be, &partial, 1, n, Matrix { stride: n, ..matrix(dbias)? }, 1.0, 1.0)
}

pub(super) fn merge_lora(be: &Cuda, w: &mut Tensor, lora: &Lora) -> Result<()> {
    let name = match w.dtype() {
        DType::BF16 => "merge_lora_bf16",
        DType::F32 => "merge_lora_f32",
        _ => return Err(no_kernel("merge_lora", "w", w)),
    };
    let (a, b) = (gemm::adapter(be, lora.a)?, gemm::adapter(be, lora.b)?);
    let (n, k, r) = (w.rows(), w.columns(), lora.a.rows());
    let args =
        [pointer(w)?, pointer(a.tensor())?, pointer(b.tensor())?, int(n)?, int(k)?, int(r)?, Arg::F32(lora.scale)];
    be.launch(kernel(name), [k.div_ceil(256), n.div_ceil(32), 1], 256, 0, &args)
}
