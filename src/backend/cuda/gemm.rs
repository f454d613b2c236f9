//! Matrix products for the ops: by the vendor's library where the device has one, else by kernels/gemm.cu.

use super::device::{Arg, Gemm, Matrix};
use super::kernels::Kernel;
use super::launch::{Cuda, int, optional, pointer};
use crate::backend::Backend;
use crate::backend::ops::Lora;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Stages of the pipeline that loads tiles (kernels/gemm.cu).
const STAGES: usize = 4;
/// The largest rank whose `s` is computed in the same pass as the product with the weight: it is kept in registers.
pub(super) const FUSED_RANK: usize = 64;
/// The least contraction worth a split, and the unit of a split's length: no tile spans two splits.
const LEAST_SPLIT: usize = 512;
const SPLIT_UNIT: usize = 128;

impl Cuda {
    /// Computes a matrix product as the ops do. The addresses must be those of live tensors of this device.
    pub fn matrix_product(&self, product: &Gemm) -> Result<()> {
        gemm(self, product)
    }
}

/// Computes a `Gemm`. Error: a form or a type without a kernel.
pub(super) fn gemm(be: &Cuda, gemm: &Gemm) -> Result<()> {
    if gemm.m == 0 || gemm.n == 0 || be.device.gemm(gemm)? {
        return Ok(());
    }
    product(be, gemm, None, None)
}

/// A second product of the same shape, added to the first before `alpha`: scale * a op(b), with `a` (M, K) and `b`
/// stored as that of the first product.
pub(super) struct Second {
    pub a: Matrix,
    pub b: Matrix,
    pub k: usize,
    pub scale: f32,
}

/// A kernel and its tile.
struct Tile {
    name: &'static str,
    m: usize,
    n: usize,
    k: usize,
    threads: usize,
}

impl Tile {
    const fn new(name: &'static str, m: usize, n: usize, k: usize, threads: usize) -> Self {
        Self { name, m, n, k, threads }
    }

    fn count(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.m) * n.div_ceil(self.n)
    }

    /// Returns the bytes of shared memory: those of the stages, in bf16, or of the sums, in f32, which replace them at
    /// the end.
    fn shared(&self, ranks: usize) -> usize {
        (STAGES * (self.m + self.n + ranks) * self.k * 2).max(self.m * (self.n + 8) * 4)
    }

    fn kernel(&self) -> Kernel {
        Kernel { file: "gemm", name: self.name }
    }
}

const NT: [Tile; 2] = [Tile::new("gemm_nt_128", 128, 128, 32, 256), Tile::new("gemm_nt_64", 64, 64, 64, 128)];
const NN: [Tile; 2] = [Tile::new("gemm_nn_128", 128, 128, 32, 256), Tile::new("gemm_nn_64", 64, 64, 64, 128)];
const TN: [Tile; 2] = [Tile::new("gemm_tn_128", 128, 128, 32, 256), Tile::new("gemm_tn_64", 64, 64, 64, 128)];
/// Tiles for few rows: at most 16, at most 64.
const NT_16: Tile = Tile::new("gemm_nt_16", 16, 32, 128, 64);
const NT_64: Tile = Tile::new("gemm_nt_64x32", 64, 32, 64, 128);
const LORA_R16: [Tile; 3] = [
    Tile::new("linear_lora_128_r16", 128, 128, 32, 256),
    Tile::new("linear_lora_64_r16", 64, 64, 64, 128),
    Tile::new("linear_lora_16_r16", 16, 64, 64, 128),
];
const LORA_R64: [Tile; 3] = [
    Tile::new("linear_lora_128_r64", 128, 128, 32, 256),
    Tile::new("linear_lora_64_r64", 64, 64, 64, 128),
    Tile::new("linear_lora_16_r64", 16, 64, 64, 128),
];

/// Returns the large tile where it fills the device, else the small one.
fn by_size<'a>(be: &Cuda, tiles: &'a [Tile], m: usize, n: usize) -> &'a Tile {
    let large = tiles[0].count(m, n) >= be.device.multiprocessors();
    if large { &tiles[0] } else { &tiles[1] }
}

fn at(matrix: Matrix) -> [Arg; 2] {
    [Arg::Pointer(matrix.address), Arg::I64(matrix.stride as i64)]
}

fn is_f32(dtype: DType) -> Arg {
    Arg::I32((dtype == DType::F32).into())
}

/// Returns a bias as the kernels take it: its address, and whether it is f32.
pub(super) fn bias_args(bias: Option<&Tensor>) -> Result<[Arg; 2]> {
    Ok([optional(bias)?, is_f32(bias.map_or(DType::BF16, Tensor::dtype))])
}

fn check(g: &Gemm) -> Result<()> {
    let bf16 = g.a.dtype == DType::BF16 && g.b.dtype == DType::BF16;
    if !bf16 || !matches!(g.c.dtype, DType::BF16 | DType::F32) || (g.transpose_a && g.transpose_b) {
        return Err(Error::system(format!(
            "gemm: no kernel for {g:?}; expected bf16 operands, bf16 or f32 out, and at most one operand transposed"
        )));
    }
    Ok(())
}

/// Computes the product with the crate's own kernels, plus `bias` (N) and a second product. Only a product with `a`
/// transposed (a sum over tokens) is split over k; the split depends on m, n, k and the device alone.
pub(super) fn product(be: &Cuda, g: &Gemm, bias: Option<&Tensor>, second: Option<&Second>) -> Result<()> {
    check(g)?;
    let &Gemm { m, n, k, .. } = g;
    let tile = match (g.transpose_a, g.transpose_b) {
        (true, _) => by_size(be, &TN, m, n),
        (_, false) => by_size(be, &NN, m, n),
        _ if m <= NT_16.m => &NT_16,
        _ if m <= NT_64.m => &NT_64,
        _ => by_size(be, &NT, m, n),
    };
    let tiles = tile.count(m, n);
    let wanted = if g.transpose_a && bias.is_none() && second.is_none() {
        (2 * be.device.multiprocessors() / tiles).clamp(1, k.div_ceil(LEAST_SPLIT).max(1))
    } else {
        1
    };
    let k_split = k.div_ceil(wanted).next_multiple_of(SPLIT_UNIT);
    let splits = k.div_ceil(k_split.max(1)).max(1);
    let partial = if splits > 1 { Some(be.workspace(&[splits, m, n], DType::F32)?) } else { None };
    let (c, alpha, beta) = match &partial {
        Some(partial) => (Matrix { stride: n, ..matrix(partial)? }, 1.0, 0.0),
        None => (g.c, g.alpha, g.beta),
    };
    let none = Second { a: Matrix { address: 0, ..g.a }, b: Matrix { address: 0, ..g.b }, k: 0, scale: 1.0 };
    let second = second.unwrap_or(&none);
    let mut args = [at(g.a), at(g.b), at(c)].concat();
    args.extend([is_f32(c.dtype), int(m)?, int(n)?, int(k)?, int(k_split)?, Arg::F32(alpha), Arg::F32(beta)]);
    args.extend([bias_args(bias)?, at(second.a), at(second.b)].concat());
    args.extend([int(second.k)?, Arg::F32(second.scale)]);
    be.launch(tile.kernel(), [tiles, 1, splits], tile.threads, tile.shared(0), &args)?;
    match partial {
        Some(partial) => sum_splits(be, &partial, m, n, g.c, g.alpha, g.beta),
        None => Ok(()),
    }
}

/// Computes c (M, N) = alpha * the sum of `partial` (splits, M, N) over its splits, in order, + beta * c.
pub(super) fn sum_splits(
    be: &Cuda,
    partial: &Tensor,
    m: usize,
    n: usize,
    c: Matrix,
    alpha: f32,
    beta: f32,
) -> Result<()> {
    let name = if c.dtype == DType::F32 { "sum_splits_f32" } else { "sum_splits_bf16" };
    let mut args = vec![pointer(partial)?, int(partial.rows())?];
    args.extend(at(c));
    args.extend([int(m)?, int(n)?, Arg::F32(alpha), Arg::F32(beta)]);
    let blocks = (m * n).div_ceil(256).min(be.device.multiprocessors() * 8);
    be.launch(Kernel { file: "gemm", name }, [blocks, 1, 1], 256, 0, &args)
}

/// Computes y = x W^T + bias + scale s B^T and s (M, R) = x A^T in one pass: `g` is x W^T into y, `a` the adapter's A
/// as bf16, with a rank of at most FUSED_RANK. B is f32.
pub(super) fn linear_lora(
    be: &Cuda,
    g: &Gemm,
    bias: Option<&Tensor>,
    a: &Tensor,
    lora: &Lora,
    s: &mut Tensor,
) -> Result<()> {
    check(g)?;
    let (&Gemm { m, n, k, .. }, r) = (g, lora.a.rows());
    let (tiles, ranks) = if r <= 16 { (&LORA_R16, 16) } else { (&LORA_R64, FUSED_RANK) };
    let tile = if m <= tiles[2].m { &tiles[2] } else { by_size(be, tiles, m, n) };
    let mut args = [at(g.a), at(g.b), at(g.c)].concat();
    args.extend([int(m)?, int(n)?, int(k)?]);
    args.extend(bias_args(bias)?);
    args.extend([pointer(a)?, pointer(lora.b)?, int(r)?, Arg::F32(lora.scale), pointer(s)?]);
    be.launch(tile.kernel(), [tile.count(m, n), 1, 1], tile.threads, tile.shared(ranks), &args)
}

/// Returns the matrix of a whole tensor (rows, columns).
pub(super) fn matrix(tensor: &Tensor) -> Result<Matrix> {
    columns(tensor, 0)
}

/// Returns the matrix that begins at `column` of a tensor's rows.
pub(super) fn columns(tensor: &Tensor, column: usize) -> Result<Matrix> {
    let Arg::Pointer(address) = pointer(tensor)? else { return Err(Error::system("a tensor without an address")) };
    let (stride, dtype) = (tensor.columns(), tensor.dtype());
    Ok(Matrix { address: address + (column * dtype.size()) as u64, stride, dtype })
}

/// A weight in the type that a kernel takes: itself, or a copy.
pub(super) enum Operand<'a> {
    Own(Tensor),
    Borrowed(&'a Tensor),
}

impl Operand<'_> {
    pub(super) fn tensor(&self) -> &Tensor {
        match self {
            Operand::Own(tensor) => tensor,
            Operand::Borrowed(tensor) => tensor,
        }
    }
}

/// Returns a weight as the tensor cores take it: itself when it is bf16, a copy rounded to bf16 when it is f32 (a
/// trained weight).
pub(super) fn operand<'a>(be: &Cuda, weight: &'a Tensor) -> Result<Operand<'a>> {
    of_type(be, weight, DType::BF16)
}

/// Returns an adapter's matrix as its kernels take it: itself when it is f32, else a copy.
pub(super) fn adapter<'a>(be: &Cuda, weight: &'a Tensor) -> Result<Operand<'a>> {
    of_type(be, weight, DType::F32)
}

fn of_type<'a>(be: &Cuda, weight: &'a Tensor, dtype: DType) -> Result<Operand<'a>> {
    if weight.dtype() == dtype {
        return Ok(Operand::Borrowed(weight));
    }
    let mut copy = be.workspace(weight.shape(), dtype)?;
    be.write(&mut copy, weight)?;
    Ok(Operand::Own(copy))
}
