//! Linear layers with adapters: launches of kernels/linear.cu and kernels/gemm.cu.

use super::device::{Arg, Gemm, Matrix};
use super::gemm::{self, Operand, Second, columns, matrix, operand};
use super::kernels::Kernel;
use super::launch::{Cuda, LinearPath, int, no_kernel, optional, pointer};
use crate::backend::ops::{self, Linear, LinearGrads, Lora};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Rows per block of lora_down, and the most of the contraction that one block takes (kernels/linear.cu). The latter is
/// fixed, so that the bits of a row depend on K alone.
const DOWN_ROWS: usize = 32;
const DOWN_SPLIT: usize = 4096;
/// Columns and rows per block of lora_up.
const UP: [usize; 2] = [256, 64];
/// Rows per block of column_sums.
const SUM_ROWS: usize = 256;

fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "linear", name }
}

/// Returns the plain product c = a b.
fn product(m: usize, n: usize, k: usize, a: Matrix, b: Matrix, c: Matrix) -> Gemm {
    Gemm { m, n, k, a, transpose_a: false, b, transpose_b: false, c, alpha: 1.0, beta: 0.0 }
}

/// The most layers of one input that one launch of lora_down or lora_up serves: q, k and v.
const LAYERS: usize = 3;

/// Returns tensors of equal width as one matrix if they lie one behind the other in memory, else `None`.
fn stacked<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<Option<Matrix>> {
    let mut whole: Option<(Matrix, u64)> = None;
    for tensor in tensors {
        let part = matrix(tensor)?;
        let end = part.address + (tensor.len() * part.dtype.size()) as u64;
        whole = match whole {
            None => Some((part, end)),
            Some((first, at)) if at == part.address && Matrix { address: first.address, ..part } == first => {
                Some((first, end))
            }
            Some(_) => return Ok(None),
        };
    }
    Ok(whole.map(|(first, _)| first))
}

/// Computes all layers at once where their weights form one matrix and the library has the product, else one by one.
pub(super) fn linears(be: &Cuda, op: ops::Linears) -> Result<()> {
    let each: Vec<_> = op.side_by_side().collect();
    let ops::Linears { x, layers, y, column, mut s } = op;
    let weights = stacked(layers.iter().map(|layer| layer.w))?.filter(|w| w.dtype == DType::BF16);
    if let (Some(w), LinearPath::Library, 1..=LAYERS) = (weights, be.linear_path, layers.len()) {
        let (t, k, n) = (x.rows(), x.columns(), layers.iter().map(|layer| layer.w.rows()).sum());
        let g = Gemm { transpose_b: true, ..product(t, n, k, matrix(x)?, w, columns(y, column)?) };
        if t > 0 && be.device.gemm(&g)? {
            return add_adapters(be, x, &each, y, &mut s);
        }
    }
    each.into_iter().zip(s).try_for_each(|((column, layer), s)| linear(be, x, layer, y, column, s))
}

/// Adds y += scale * s B^T + bias, with s = x A^T, for layers whose products with W are already in y.
fn add_adapters(
    be: &Cuda,
    x: &Tensor,
    layers: &[(usize, &Linear)],
    y: &Tensor,
    s: &mut [Option<&mut Tensor>],
) -> Result<()> {
    let mut down = vec![];
    for ((_, layer), s) in layers.iter().zip(&mut *s) {
        if let Some(lora) = &layer.lora {
            down.push(Down { x: matrix(x)?, w: lora.a, scale: 1.0, s: given(s.as_deref_mut())? });
        }
    }
    lora_down(be, x.rows(), false, &mut down)?;
    let mut up = vec![];
    for (&(column, layer), s) in layers.iter().zip(&*s) {
        let lora = match (&layer.lora, s) {
            (Some(lora), Some(s)) => Some((&**s, lora.b, lora.scale)),
            _ => None,
        };
        if lora.is_some() || layer.bias.is_some() {
            up.push(Up { lora, bias: layer.bias, n: layer.w.rows(), y: columns(y, column)? });
        }
    }
    lora_up(be, x.rows(), false, &up)
}

fn given<T>(s: Option<T>) -> Result<T> {
    s.ok_or_else(|| Error::system("linear: an adapter without a tensor for s"))
}

fn linear(be: &Cuda, x: &Tensor, p: &Linear, y: &mut Tensor, column: usize, s: Option<&mut Tensor>) -> Result<()> {
    let (t, n, k) = (x.rows(), p.w.rows(), p.w.columns());
    if t == 0 || n == 0 {
        return Ok(());
    }
    let w = operand(be, p.w)?;
    let g = Gemm { transpose_b: true, ..product(t, n, k, matrix(x)?, matrix(w.tensor())?, columns(y, column)?) };
    if be.linear_path == LinearPath::Library && be.device.gemm(&g)? {
        return add_adapters(be, x, &[(column, p)], y, &mut [s]);
    }
    let Some(lora) = &p.lora else { return gemm::product(be, &g, p.bias, None) };
    let s = given(s)?;
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

/// One layer of a backward pass.
struct Layer<'a> {
    p: &'a Linear<'a>,
    column: usize,
    s: Option<&'a Tensor>,
    grads: LinearGrads<'a>,
}

/// Computes all layers at once where their weights form one matrix and the library has the product, else one by one.
pub(super) fn linears_backward(be: &Cuda, op: ops::LinearsBackward) -> Result<()> {
    let each: Vec<_> = op.side_by_side().collect();
    let ops::LinearsBackward { x, layers, dy, column, s, mut dx, grads } = op;
    let weights = stacked(layers.iter().map(|layer| layer.w))?.filter(|w| w.dtype == DType::BF16);
    let operands = each.iter().zip(s).zip(grads);
    let parts = operands.map(|((&(column, p), s), grads)| Layer { p, column, s, grads });
    if let (Some(w), Some(dx), LinearPath::Library, 1..=LAYERS) = (weights, &mut dx, be.linear_path, layers.len()) {
        let (t, k, n) = (x.rows(), x.columns(), layers.iter().map(|layer| layer.w.rows()).sum());
        let g = Gemm { beta: 1.0, ..product(t, k, n, columns(dy, column)?, w, matrix(dx)?) };
        if t > 0 && be.device.gemm(&g)? {
            let ds = through_b(be, &each, dy)?;
            let mut up = vec![];
            for (layer, ds) in layers.iter().zip(&ds) {
                if let (Some(lora), Some(ds)) = (&layer.lora, ds) {
                    up.push(Up { lora: Some((ds, lora.a, 1.0)), bias: None, n: k, y: g.c });
                }
            }
            lora_up(be, t, true, &up)?;
            return parts.zip(&ds).try_for_each(|(layer, ds)| parameter_gradients(be, x, dy, layer, ds.as_ref()));
        }
    }
    parts.into_iter().try_for_each(|layer| linear_backward(be, x, dy, layer, dx.as_deref_mut()))
}

/// Computes ds (T, R) = scale * dy B for every layer with an adapter.
fn through_b(be: &Cuda, layers: &[(usize, &Linear)], dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let space = |(_, layer): &(usize, &Linear)| {
        layer.lora.as_ref().map(|lora| be.workspace(&[dy.rows(), lora.a.rows()], DType::BF16)).transpose()
    };
    let mut all = layers.iter().map(space).collect::<Result<Vec<_>>>()?;
    let mut down = vec![];
    for (&(column, layer), ds) in layers.iter().zip(&mut all) {
        if let (Some(lora), Some(ds)) = (&layer.lora, ds) {
            down.push(Down { x: columns(dy, column)?, w: lora.b, scale: lora.scale, s: ds });
        }
    }
    lora_down(be, dy.rows(), true, &mut down)?;
    Ok(all)
}

fn linear_backward(be: &Cuda, x: &Tensor, dy: &Tensor, layer: Layer, dx: Option<&mut Tensor>) -> Result<()> {
    let Layer { p, column, ref grads, .. } = layer;
    let (t, n, k) = (x.rows(), p.w.rows(), p.w.columns());
    if t == 0 || n == 0 {
        return Ok(());
    }
    let wants_ds = dx.is_some() || grads.lora.is_some();
    let ds = if wants_ds { through_b(be, &[(column, p)], dy)?.pop().flatten() } else { None };
    if let Some(dx) = dx {
        let w = operand(be, p.w)?;
        let g = Gemm { beta: 1.0, ..product(t, k, n, columns(dy, column)?, matrix(w.tensor())?, matrix(dx)?) };
        let adapter = p.lora.as_ref().zip(ds.as_ref());
        if be.linear_path == LinearPath::Library && be.device.gemm(&g)? {
            if let Some((lora, ds)) = adapter {
                lora_up(be, t, true, &[Up { lora: Some((ds, lora.a, 1.0)), bias: None, n: k, y: g.c }])?;
            }
        } else if let Some((lora, ds)) = adapter {
            let a = operand(be, lora.a)?;
            let second = Second { a: matrix(ds)?, b: matrix(a.tensor())?, k: ds.columns(), scale: 1.0 };
            gemm::product(be, &g, None, Some(&second))?;
        } else {
            gemm::product(be, &g, None, None)?;
        }
    }
    parameter_gradients(be, x, dy, layer, ds.as_ref())
}

/// Computes the gradients of a layer's own parameters, from its columns of dy and from ds (T, R) = scale * dy B.
fn parameter_gradients(be: &Cuda, x: &Tensor, dy: &Tensor, layer: Layer, ds: Option<&Tensor>) -> Result<()> {
    let Layer { p, column, s, grads } = layer;
    let (t, n, k) = (x.rows(), p.w.rows(), p.w.columns());
    let (x, dy) = (matrix(x)?, columns(dy, column)?);
    let over_tokens = |m: usize, n: usize, a: Matrix, b: Matrix, c: &Tensor| -> Result<Gemm> {
        Ok(Gemm { transpose_a: true, beta: 1.0, ..product(m, n, t, a, b, matrix(c)?) })
    };
    if let (Some(lora), Some(ds), Some((da, db))) = (&p.lora, ds, grads.lora) {
        let s = s.ok_or_else(|| Error::system("linear_backward: the gradient of an adapter without its s"))?;
        let r = ds.columns();
        // Tall and thin: the crate's own kernel, which splits the sum over tokens.
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

/// s (T, R) = scale * x op(w), with x (T, K) and w (R, K), or w (K, R) when `k_rows`.
struct Down<'a> {
    x: Matrix,
    w: &'a Tensor,
    scale: f32,
    s: &'a mut Tensor,
}

/// Computes up to `LAYERS` products in one launch; their x have one stride.
fn lora_down(be: &Cuda, t: usize, k_rows: bool, layers: &mut [Down]) -> Result<()> {
    let Some(first) = layers.first() else { return Ok(()) };
    let stride = first.x.stride;
    let ranks = layers.iter().map(|layer| layer.s.columns()).max().unwrap_or(0);
    let contraction = |w: &Tensor| if k_rows { w.rows() } else { w.columns() };
    let splits = |w: &Tensor| contraction(w).div_ceil(DOWN_SPLIT).max(1);
    let (name, block) = match (k_rows, ranks <= 16) {
        (false, true) => ("lora_down_16", 16),
        (false, false) => ("lora_down_64", 64),
        (true, true) => ("lora_down_rows_16", 16),
        (true, false) => ("lora_down_rows_64", 64),
    };
    let operands = layers.iter().map(|layer| gemm::adapter(be, layer.w)).collect::<Result<Vec<Operand>>>()?;
    let (mut args, mut partials) = (vec![], vec![]);
    for (layer, w) in layers.iter().zip(&operands) {
        let (r, k, parts) = (layer.s.columns(), contraction(layer.w), splits(layer.w));
        let partial = (parts > 1).then(|| be.workspace(&[parts, t, r], DType::F32)).transpose()?;
        args.extend([Arg::Pointer(layer.x.address), pointer(w.tensor())?, int(k)?, int(r)?, Arg::F32(layer.scale)]);
        args.extend([pointer(layer.s)?, optional(partial.as_ref())?]);
        partials.push(partial);
    }
    for _ in layers.len()..LAYERS {
        let null = Arg::Pointer(0);
        args.extend([null, null, Arg::I32(0), Arg::I32(0), Arg::F32(0.0), null, null]);
    }
    let most = layers.iter().map(|layer| splits(layer.w)).max().unwrap_or(1);
    args.extend([Arg::I64(stride as i64), int(t)?, int(DOWN_SPLIT)?, int(most)?]);
    let grid = [t.div_ceil(DOWN_ROWS), ranks.div_ceil(block), layers.len() * most];
    be.launch(kernel(name), grid, 256, 0, &args)?;
    for (layer, partial) in layers.iter().zip(&partials) {
        if let Some(partial) = partial {
            gemm::sum_splits(be, partial, t, layer.s.columns(), matrix(layer.s)?, layer.scale, 0.0)?;
        }
    }
    Ok(())
}

/// y (T, N) += scale * s op(w) + bias, with s (T, R) and w (N, R), or w (R, N) when `r_rows`.
struct Up<'a> {
    /// The tensors s and w, and the scale.
    lora: Option<(&'a Tensor, &'a Tensor, f32)>,
    bias: Option<&'a Tensor>,
    n: usize,
    y: Matrix,
}

/// Computes up to `LAYERS` products in one launch; their y have one stride and their biases one type. When `r_rows`,
/// they share one y, the scales are 1, and the products are added before y is rounded.
fn lora_up(be: &Cuda, t: usize, r_rows: bool, layers: &[Up]) -> Result<()> {
    let Some(first) = layers.first() else { return Ok(()) };
    let (stride, widest) = (first.y.stride, layers.iter().map(|layer| layer.n).max().unwrap_or(0));
    let weights = layers.iter().map(|layer| layer.lora.map(|(_, w, _)| gemm::adapter(be, w)).transpose());
    let weights = weights.collect::<Result<Vec<Option<Operand>>>>()?;
    let mut args = vec![];
    for (layer, w) in layers.iter().zip(&weights) {
        let (s, scale) = (layer.lora.map(|(s, ..)| s), layer.lora.map_or(0.0, |(.., scale)| scale));
        args.extend([optional(s)?, optional(w.as_ref().map(|w| w.tensor()))?, int(s.map_or(0, Tensor::columns))?]);
        args.extend([Arg::F32(scale), optional(layer.bias)?, Arg::Pointer(layer.y.address), int(layer.n)?]);
    }
    for _ in layers.len()..LAYERS {
        let null = Arg::Pointer(0);
        args.extend([null, null, Arg::I32(0), Arg::F32(0.0), null, null, Arg::I32(0)]);
    }
    let bias_is_f32 = layers.iter().find_map(|layer| layer.bias).is_some_and(|bias| bias.dtype() == DType::F32);
    args.extend([int(t)?, Arg::I32(bias_is_f32.into()), Arg::I64(stride as i64)]);
    let (name, depth) = if r_rows { ("lora_up_nn", 1) } else { ("lora_up_nt", layers.len()) };
    be.launch(kernel(name), [widest.div_ceil(UP[0]), t.div_ceil(UP[1]), depth], 256, 0, &args)
}

/// Adds the column sums of dy (T, N) to dbias (N).
fn column_sums(be: &Cuda, dy: Matrix, t: usize, n: usize, dbias: &mut Tensor) -> Result<()> {
    let splits = t.div_ceil(SUM_ROWS);
    let partial = be.workspace(&[splits, n], DType::F32)?;
    let args =
        [Arg::Pointer(dy.address), Arg::I64(dy.stride as i64), int(t)?, int(n)?, int(SUM_ROWS)?, pointer(&partial)?];
    be.launch(kernel("column_sums"), [n.div_ceil(256), splits, 1], 256, 0, &args)?;
    gemm::sum_splits(be, &partial, 1, n, Matrix { stride: n, ..matrix(dbias)? }, 1.0, 1.0)
}

pub(super) fn merge_lora(be: &Cuda, op: ops::MergeLora) -> Result<()> {
    let ops::MergeLora { w, lora } = op;
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
