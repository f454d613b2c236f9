//! Checks at the door of every op, shared by all backends: types and shapes first (they need no data), then, for backends whose
//! tensors lie on the host, index values. Every mismatch is an error that names the op, the tensor and both shapes.

use super::{Heads, Linear, LinearGrads, Lora, QkNorm, Segments};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

mod head;
mod values;

pub use head::*;
pub use values::*;

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
struct Door(&'static str, Types);

/// The door of an op of a backend with these types.
fn door(op: &'static str, types: impl Into<Types>) -> Door {
    Door(op, types.into())
}

impl Door {
    fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::content(format!("{}: {what}", self.0))
    }

    fn typed(&self, name: &str, t: &Tensor, dtype: DType, shape: &[usize]) -> Result<()> {
        if t.dtype() != dtype || t.shape() != shape {
            return Err(self.error(format!("{name} is {t:?}, expected {dtype:?}{shape:?}")));
        }
        Ok(())
    }

    /// An input of the activation type.
    fn input(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.typed(name, t, self.1.activation, shape)
    }

    /// An input of the accumulator type.
    fn statistic(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.typed(name, t, self.1.accumulator, shape)
    }

    /// An output of the accumulator type.
    fn accumulated(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.statistic(name, t, shape)?;
        self.writable(name, t)
    }

    /// An input of integers.
    fn int(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.typed(name, t, DType::I32, shape)
    }

    /// A parameter, stored in any float type.
    fn parameter(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        if t.dtype() == DType::I32 || t.shape() != shape {
            return Err(self.error(format!("{name} is {t:?}, expected a float type and {shape:?}")));
        }
        Ok(())
    }

    fn writable(&self, name: &str, t: &Tensor) -> Result<()> {
        if t.is_mapped() {
            return Err(self.error(format!("{name} {t:?} lies in a memory map and cannot be written; copy it first")));
        }
        Ok(())
    }

    /// An output of the activation type.
    fn output(&self, name: &str, t: &Tensor, shape: &[usize]) -> Result<()> {
        self.input(name, t, shape)?;
        self.writable(name, t)
    }

    /// The extents of a matrix of any type; it may have no row, but has columns.
    fn matrix(&self, name: &str, t: &Tensor) -> Result<[usize; 2]> {
        match t.shape() {
            &[rows, columns] if columns > 0 => Ok([rows, columns]),
            _ => Err(self.error(format!("{name} is {t:?}, expected two extents, the second above 0"))),
        }
    }

    /// The extent of a vector of any type.
    fn vector(&self, name: &str, t: &Tensor) -> Result<usize> {
        match t.shape() {
            [n] => Ok(*n),
            _ => Err(self.error(format!("{name} is {t:?}, expected one extent"))),
        }
    }

    fn require(&self, holds: bool, what: impl FnOnce() -> String) -> Result<()> {
        if holds { Ok(()) } else { Err(self.error(what())) }
    }

    fn given<'a, T: ?Sized>(&self, what: &str, value: Option<&'a T>) -> Result<&'a T> {
        value.ok_or_else(|| self.error(what))
    }

    fn heads(&self, heads: Heads) -> Result<()> {
        let Heads { nh, nkv, hs } = heads;
        let good = nh > 0 && nkv > 0 && nh.is_multiple_of(nkv) && hs > 0 && hs.is_multiple_of(2);
        self.require(good, || format!("{heads:?}: nkv must divide nh, and hs must be even, all above 0"))
    }

    fn linear(&self, x: &Tensor, p: &Linear) -> Result<(usize, usize, usize)> {
        let ([t, k], [n, _]) = (self.matrix("x (T, K)", x)?, self.matrix("w (N, K)", p.w)?);
        self.input("x (T, K)", x, &[t, k])?;
        self.parameter("w (N, K)", p.w, &[n, k])?;
        if let Some(bias) = p.bias {
            self.parameter("bias (N)", bias, &[n])?;
        }
        if let Some(lora) = &p.lora {
            self.lora(lora, n, k)?;
        }
        Ok((t, n, k))
    }

    fn lora(&self, lora: &Lora, n: usize, k: usize) -> Result<()> {
        let [r, _] = self.matrix("lora a (R, K)", lora.a)?;
        self.parameter("lora a (R, K)", lora.a, &[r, k])?;
        self.parameter("lora b (N, R)", lora.b, &[n, r])
    }

    fn columns(&self, name: &str, y: &Tensor, rows: usize, column: usize, n: usize) -> Result<()> {
        let [_, width] = self.matrix(name, y)?;
        self.input(name, y, &[rows, width])?;
        self.require(column.checked_add(n).is_some_and(|end| end <= width), || {
            format!("columns {column}..{column}+{n} do not lie in {name}, which is {y:?}")
        })
    }

    /// Types and shapes of segments over `t` rows.
    fn segments(&self, segments: &Segments) -> Result<()> {
        let s = self.vector("parent (S)", segments.parent)?;
        self.int("parent (S)", segments.parent, &[s])?;
        self.int("cu_seqlens (S + 1)", segments.cu_seqlens, &[s + 1])
    }

    fn norm(&self, norm: Option<QkNorm>, hs: usize) -> Result<()> {
        if let Some(norm) = norm {
            self.parameter("norm q (HS)", norm.q, &[hs])?;
            self.parameter("norm k (HS)", norm.k, &[hs])?;
        }
        Ok(())
    }

    fn rope(&self, qkv: &Tensor, heads: Heads, positions: &Tensor, table: &Tensor) -> Result<usize> {
        self.heads(heads)?;
        let [t, _] = self.matrix("qkv (T, D)", qkv)?;
        self.output("qkv (T, D)", qkv, &[t, heads.qkv_width()])?;
        self.int("positions (T)", positions, &[t])?;
        let [p, _] = self.matrix("table (P, HS)", table)?;
        self.parameter("table (P, HS)", table, &[p, heads.hs])?;
        Ok(t)
    }
}

/// `write`: shapes agree, and either both are floats or both integers.
pub fn write(tensor: &Tensor, values: &Tensor) -> Result<()> {
    let door = door("write", tensor.dtype());
    door.require((tensor.dtype() == DType::I32) == (values.dtype() == DType::I32), || {
        format!("cannot write {values:?} into {tensor:?}: floats and integers do not mix")
    })?;
    door.require(tensor.shape() == values.shape(), || format!("values are {values:?}, the tensor is {tensor:?}"))?;
    door.writable("the tensor", tensor)
}

/// `read`: a float tensor.
pub fn read(tensor: &Tensor) -> Result<()> {
    door("read", tensor.dtype()).parameter("the tensor", tensor, tensor.shape())
}

/// `read_i32`: an integer tensor.
pub fn read_i32(tensor: &Tensor) -> Result<()> {
    door("read_i32", tensor.dtype()).int("the tensor", tensor, tensor.shape())
}

/// `copy`: equal shapes and types.
pub fn copy(from: &Tensor, to: &Tensor) -> Result<()> {
    let door = door("copy", from.dtype());
    door.output("to", to, from.shape())
}

/// `fill`: writable.
pub fn fill(tensor: &Tensor) -> Result<()> {
    door("fill", tensor.dtype()).writable("the tensor", tensor)
}

/// `embed`.
pub fn embed(types: impl Into<Types>, ids: &Tensor, wte: &Tensor, out: &Tensor) -> Result<()> {
    let door = door("embed", types);
    let (t, [v, c]) = (door.vector("ids (T)", ids)?, door.matrix("wte (V, C)", wte)?);
    door.int("ids (T)", ids, &[t])?;
    door.parameter("wte (V, C)", wte, &[v, c])?;
    door.output("out (T, C)", out, &[t, c])
}

/// `embed_backward`.
pub fn embed_backward(types: impl Into<Types>, ids: &Tensor, dout: &Tensor, dwte: &Tensor) -> Result<()> {
    let door = door("embed_backward", types);
    let (t, [v, c]) = (door.vector("ids (T)", ids)?, door.matrix("dwte (V, C)", dwte)?);
    door.int("ids (T)", ids, &[t])?;
    door.input("dout (T, C)", dout, &[t, c])?;
    door.accumulated("dwte (V, C)", dwte, &[v, c])
}

/// `add_rmsnorm`: `x` and `sum` come together.
pub fn add_rmsnorm(
    types: impl Into<Types>,
    residual: &Tensor,
    x: Option<&Tensor>,
    w: &Tensor,
    sum: Option<&Tensor>,
    y: &Tensor,
    rstd: &Tensor,
) -> Result<()> {
    let door = door("add_rmsnorm", types);
    let [t, c] = door.matrix("residual (T, C)", residual)?;
    door.input("residual (T, C)", residual, &[t, c])?;
    match (x, sum) {
        (Some(x), Some(sum)) => {
            door.input("x (T, C)", x, &[t, c])?;
            door.output("sum (T, C)", sum, &[t, c])?;
        }
        (None, None) => {}
        _ => return Err(door.error(format!("x and sum come together: x is {x:?}, sum is {sum:?}"))),
    }
    door.parameter("w (C)", w, &[c])?;
    door.output("y (T, C)", y, &[t, c])?;
    door.accumulated("rstd (T)", rstd, &[t])
}

/// `add_rmsnorm_backward`.
pub fn add_rmsnorm_backward(
    types: impl Into<Types>,
    sum: &Tensor,
    w: &Tensor,
    rstd: &Tensor,
    dy: &Tensor,
    dsum: &Tensor,
    dw: Option<&Tensor>,
) -> Result<()> {
    let door = door("add_rmsnorm_backward", types);
    let [t, c] = door.matrix("sum (T, C)", sum)?;
    door.input("sum (T, C)", sum, &[t, c])?;
    door.parameter("w (C)", w, &[c])?;
    door.statistic("rstd (T)", rstd, &[t])?;
    door.input("dy (T, C)", dy, &[t, c])?;
    door.output("dsum (T, C)", dsum, &[t, c])?;
    dw.map_or(Ok(()), |dw| door.accumulated("dw (C)", dw, &[c]))
}

/// `linear`: with an adapter, `s` is required.
pub fn linear(
    types: impl Into<Types>,
    x: &Tensor,
    p: &Linear,
    y: &Tensor,
    column: usize,
    s: Option<&Tensor>,
) -> Result<()> {
    let door = door("linear", types);
    let (t, n, _) = door.linear(x, p)?;
    door.columns("y (T, >= column + N)", y, t, column, n)?;
    door.writable("y (T, >= column + N)", y)?;
    match &p.lora {
        Some(lora) => door.output("s (T, R)", door.given("an adapter needs s (T, R)", s)?, &[t, lora.a.rows()]),
        None => Ok(()),
    }
}

/// `linear_backward`: gradients of an adapter need the adapter and `s`.
#[allow(clippy::too_many_arguments)]
pub fn linear_backward(
    types: impl Into<Types>,
    x: &Tensor,
    p: &Linear,
    dy: &Tensor,
    column: usize,
    s: Option<&Tensor>,
    dx: Option<&Tensor>,
    grads: &LinearGrads,
) -> Result<()> {
    let door = door("linear_backward", types);
    let (t, n, k) = door.linear(x, p)?;
    door.columns("dy (T, >= column + N)", dy, t, column, n)?;
    if let Some(dx) = dx {
        door.output("dx (T, K)", dx, &[t, k])?;
    }
    if let Some((da, db)) = &grads.lora {
        let lora = door.given("adapter gradients are wanted without an adapter", p.lora.as_ref())?;
        let r = lora.a.rows();
        door.input("s (T, R)", door.given("adapter gradients need s (T, R)", s)?, &[t, r])?;
        door.accumulated("da (R, K)", da, &[r, k])?;
        door.accumulated("db (N, R)", db, &[n, r])?;
    }
    if let Some(dw) = &grads.w {
        door.accumulated("dw (N, K)", dw, &[n, k])?;
    }
    if let Some(dbias) = &grads.bias {
        door.accumulated("dbias (N)", dbias, &[n])?;
    }
    Ok(())
}

/// `linears`: each layer as `linear`, one `s` a layer.
pub fn linears(types: impl Into<Types>, x: &Tensor, layers: &[Linear], y: &Tensor, s: &[Option<Tensor>]) -> Result<()> {
    let (types, mut column) = (types.into(), 0);
    same_number("linears", layers.len(), s.len())?;
    for (layer, s) in layers.iter().zip(s) {
        linear(types, x, layer, y, column, s.as_ref())?;
        column += layer.w.rows();
    }
    Ok(())
}

/// `linears_backward`: each layer as `linear_backward`, one `s` and one set of gradients a layer.
pub fn linears_backward(
    types: impl Into<Types>,
    x: &Tensor,
    layers: &[Linear],
    dy: &Tensor,
    s: &[Option<Tensor>],
    dx: Option<&Tensor>,
    grads: &[LinearGrads],
) -> Result<()> {
    let (types, mut column) = (types.into(), 0);
    same_number("linears_backward", layers.len(), s.len())?;
    same_number("linears_backward", layers.len(), grads.len())?;
    for ((layer, s), grads) in layers.iter().zip(s).zip(grads) {
        linear_backward(types, x, layer, dy, column, s.as_ref(), dx, grads)?;
        column += layer.w.rows();
    }
    Ok(())
}

fn same_number(op: &str, layers: usize, found: usize) -> Result<()> {
    match layers == found {
        true => Ok(()),
        false => Err(Error::system(format!("{op}: {found} tensors or gradients for {layers} layers"))),
    }
}

/// `qk_norm_rope`: with a norm, `raw` is required.
pub fn qk_norm_rope(
    types: impl Into<Types>,
    qkv: &Tensor,
    heads: Heads,
    norm: Option<QkNorm>,
    positions: &Tensor,
    table: &Tensor,
    raw: Option<&Tensor>,
) -> Result<()> {
    let door = door("qk_norm_rope", types);
    let t = door.rope(qkv, heads, positions, table)?;
    door.norm(norm, heads.hs)?;
    if norm.is_some() {
        let raw = door.given("a norm needs raw (T, (NH + NKV) HS)", raw)?;
        door.output("raw (T, (NH + NKV) HS)", raw, &[t, (heads.nh + heads.nkv) * heads.hs])?;
    }
    Ok(())
}

/// `qk_norm_rope_backward`: with a norm, `raw` is required; `dnorm` needs a norm.
#[allow(clippy::too_many_arguments)]
pub fn qk_norm_rope_backward(
    types: impl Into<Types>,
    dqkv: &Tensor,
    heads: Heads,
    norm: Option<QkNorm>,
    positions: &Tensor,
    table: &Tensor,
    raw: Option<&Tensor>,
    dnorm: Option<(&Tensor, &Tensor)>,
) -> Result<()> {
    let door = door("qk_norm_rope_backward", types);
    let t = door.rope(dqkv, heads, positions, table)?;
    door.norm(norm, heads.hs)?;
    if norm.is_some() {
        let raw = door.given("a norm needs raw (T, (NH + NKV) HS)", raw)?;
        door.input("raw (T, (NH + NKV) HS)", raw, &[t, (heads.nh + heads.nkv) * heads.hs])?;
    }
    if let Some((dq, dk)) = dnorm {
        door.require(norm.is_some(), || "gradients of a norm are wanted without a norm".into())?;
        door.accumulated("dnorm q (HS)", dq, &[heads.hs])?;
        door.accumulated("dnorm k (HS)", dk, &[heads.hs])?;
    }
    Ok(())
}

/// `attention`.
pub fn attention(
    types: impl Into<Types>,
    qkv: &Tensor,
    heads: Heads,
    segments: &Segments,
    o: &Tensor,
    lse: &Tensor,
) -> Result<()> {
    let door = door("attention", types);
    door.heads(heads)?;
    let [t, _] = door.matrix("qkv (T, D)", qkv)?;
    door.input("qkv (T, D)", qkv, &[t, heads.qkv_width()])?;
    door.segments(segments)?;
    door.output("o (T, NH HS)", o, &[t, heads.nh * heads.hs])?;
    door.accumulated("lse (NH, T)", lse, &[heads.nh, t])
}

/// `attention_backward`.
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    types: impl Into<Types>,
    qkv: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    heads: Heads,
    segments: &Segments,
    dqkv: &Tensor,
) -> Result<()> {
    let door = door("attention_backward", types);
    door.heads(heads)?;
    let [t, _] = door.matrix("qkv (T, D)", qkv)?;
    door.input("qkv (T, D)", qkv, &[t, heads.qkv_width()])?;
    door.segments(segments)?;
    door.input("o (T, NH HS)", o, &[t, heads.nh * heads.hs])?;
    door.input("dout (T, NH HS)", dout, &[t, heads.nh * heads.hs])?;
    door.statistic("lse (NH, T)", lse, &[heads.nh, t])?;
    door.output("dqkv (T, D)", dqkv, &[t, heads.qkv_width()])
}

/// `kv_append`.
pub fn kv_append(
    types: impl Into<Types>,
    qkv: &Tensor,
    heads: Heads,
    slots: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
) -> Result<()> {
    let door = door("kv_append", types);
    door.heads(heads)?;
    let [t, _] = door.matrix("qkv (T, D)", qkv)?;
    door.input("qkv (T, D)", qkv, &[t, heads.qkv_width()])?;
    door.int("slots (T)", slots, &[t])?;
    let [rows, _] = door.matrix("k_cache", k_cache)?;
    door.output("k_cache (blocks block_size, NKV HS)", k_cache, &[rows, heads.nkv * heads.hs])?;
    door.output("v_cache (blocks block_size, NKV HS)", v_cache, &[rows, heads.nkv * heads.hs])
}

/// `attention_paged`.
#[allow(clippy::too_many_arguments)]
pub fn attention_paged(
    types: impl Into<Types>,
    qkv: &Tensor,
    heads: Heads,
    k_cache: &Tensor,
    v_cache: &Tensor,
    block_size: usize,
    block_table: &Tensor,
    lens: &Tensor,
    cu_q: &Tensor,
    o: &Tensor,
) -> Result<()> {
    let door = door("attention_paged", types);
    door.heads(heads)?;
    let [q, _] = door.matrix("qkv (Q, D)", qkv)?;
    door.input("qkv (Q, D)", qkv, &[q, heads.qkv_width()])?;
    let [rows, _] = door.matrix("k_cache", k_cache)?;
    door.input("k_cache (blocks block_size, NKV HS)", k_cache, &[rows, heads.nkv * heads.hs])?;
    door.input("v_cache (blocks block_size, NKV HS)", v_cache, &[rows, heads.nkv * heads.hs])?;
    door.require(block_size > 0 && rows.is_multiple_of(block_size), || {
        format!("block_size {block_size} does not divide the rows of k_cache, which is {k_cache:?}")
    })?;
    let [b, p] = door.matrix("block_table (B, P)", block_table)?;
    door.int("block_table (B, P)", block_table, &[b, p])?;
    door.int("lens (B)", lens, &[b])?;
    door.int("cu_q (B + 1)", cu_q, &[b + 1])?;
    door.output("o (Q, NH HS)", o, &[q, heads.nh * heads.hs])
}

/// `swiglu`.
pub fn swiglu(types: impl Into<Types>, gate_up: &Tensor, y: &Tensor) -> Result<()> {
    let door = door("swiglu", types);
    let [t, f] = door.matrix("y (T, F)", y)?;
    door.input("gate_up (T, 2F)", gate_up, &[t, 2 * f])?;
    door.output("y (T, F)", y, &[t, f])
}

/// `swiglu_backward`.
pub fn swiglu_backward(types: impl Into<Types>, gate_up: &Tensor, dy: &Tensor, dgate_up: &Tensor) -> Result<()> {
    let door = door("swiglu_backward", types);
    let [t, f] = door.matrix("dy (T, F)", dy)?;
    door.input("dy (T, F)", dy, &[t, f])?;
    door.input("gate_up (T, 2F)", gate_up, &[t, 2 * f])?;
    door.output("dgate_up (T, 2F)", dgate_up, &[t, 2 * f])
}

/// `gather_rows`.
pub fn gather_rows(types: impl Into<Types>, x: &Tensor, rows: &Tensor, y: &Tensor) -> Result<()> {
    let door = door("gather_rows", types);
    let ([t, c], m) = (door.matrix("x (T, C)", x)?, door.vector("rows (M)", rows)?);
    door.input("x (T, C)", x, &[t, c])?;
    door.int("rows (M)", rows, &[m])?;
    door.output("y (M, C)", y, &[m, c])
}

/// `scatter_add_rows`.
pub fn scatter_add_rows(types: impl Into<Types>, dy: &Tensor, rows: &Tensor, dx: &Tensor) -> Result<()> {
    let door = door("scatter_add_rows", types);
    let ([t, c], m) = (door.matrix("dx (T, C)", dx)?, door.vector("rows (M)", rows)?);
    door.input("dy (M, C)", dy, &[m, c])?;
    door.int("rows (M)", rows, &[m])?;
    door.output("dx (T, C)", dx, &[t, c])
}
