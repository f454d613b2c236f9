//! Linear layers with an optional bias and adapter (LoRA, arXiv 2106.09685).

use super::door::{Door, Operands, Types, door};
use crate::error::Result;
use crate::tensor::Tensor;

/// A low-rank pair beside a frozen weight: y += scale * (x A^T) B^T.
#[derive(Clone, Copy)]
pub struct Lora<'a> {
    /// (R, K)
    pub a: &'a Tensor,
    /// (N, R)
    pub b: &'a Tensor,
    /// alpha / R, or alpha / sqrt(R) (rsLoRA).
    pub scale: f32,
}

/// A linear layer's parameters.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// (N, K), any float type.
    pub w: &'a Tensor,
    /// (N)
    pub bias: Option<&'a Tensor>,
    /// The adapter, if any.
    pub lora: Option<Lora<'a>>,
}

/// Gradients of a layer's parameters, in the accumulator type. They accumulate; `None` is not computed.
#[derive(Default)]
pub struct LinearGrads<'a> {
    /// (R, K) and (N, R), those of the adapter.
    pub lora: Option<(&'a mut Tensor, &'a mut Tensor)>,
    /// (N, K)
    pub w: Option<&'a mut Tensor>,
    /// (N)
    pub bias: Option<&'a mut Tensor>,
}

impl Door {
    fn linear(&self, x: &Tensor, p: &Linear) -> Result<[usize; 3]> {
        let ([t, k], [n, _]) = (self.matrix("x (T, K)", x)?, self.matrix("w (N, K)", p.w)?);
        self.input("x (T, K)", x, &[t, k])?;
        self.parameter("w (N, K)", p.w, &[n, k])?;
        if let Some(bias) = p.bias {
            self.parameter("bias (N)", bias, &[n])?;
        }
        if let Some(lora) = &p.lora {
            self.lora(lora, n, k)?;
        }
        Ok([t, n, k])
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

    fn one_a_layer(&self, layers: &[Linear], found: usize) -> Result<()> {
        let layers = layers.len();
        self.require(layers == found, || format!("{found} tensors or gradients for {layers} layers"))
    }
}

/// Pairs each layer with the first column of its output in a matrix that holds the outputs side by side from `column`
/// on.
fn side_by_side<'l, 'a>(layers: &'l [Linear<'a>], mut column: usize) -> impl Iterator<Item = (usize, &'l Linear<'a>)> {
    layers.iter().map(move |layer| {
        let first = column;
        column = column.saturating_add(layer.w.rows()); // the door has yet to see that it lies in the matrix
        (first, layer)
    })
}

/// Linear layers of one input, with their outputs side by side: y[:, n] = x W^T + bias + scale (x A^T) B^T for the
/// columns n of each.
pub struct Linears<'a> {
    /// (T, K)
    pub x: &'a Tensor,
    /// At least one layer.
    pub layers: &'a [Linear<'a>],
    /// (T, >= column + the sum of N)
    pub y: &'a mut Tensor,
    /// The first column of y, where the first layer's output begins.
    pub column: usize,
    /// One per layer: (T, R), receives x A^T; needed where there is an adapter.
    pub s: Vec<Option<&'a mut Tensor>>,
}

impl<'a> Linears<'a> {
    /// The layers, each with the first column of its output.
    pub fn side_by_side(&self) -> impl Iterator<Item = (usize, &'a Linear<'a>)> + use<'a> {
        side_by_side(self.layers, self.column)
    }
}

impl Operands for Linears<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("linear", types);
        door.one_a_layer(self.layers, self.s.len())?;
        for ((column, layer), s) in self.side_by_side().zip(&self.s) {
            let [t, n, _] = door.linear(self.x, layer)?;
            door.columns("y (T, >= column + N)", self.y, t, column, n)?;
            door.writable("y (T, >= column + N)", self.y)?;
            if let Some(lora) = &layer.lora {
                let s = door.given("an adapter needs s (T, R)", s.as_deref())?;
                door.output("s (T, R)", s, &[t, lora.a.rows()])?;
            }
        }
        Ok(())
    }
}

/// The gradients of `Linears`; all accumulate.
pub struct LinearsBackward<'a> {
    /// (T, K)
    pub x: &'a Tensor,
    /// At least one layer.
    pub layers: &'a [Linear<'a>],
    /// (T, >= column + the sum of N)
    pub dy: &'a Tensor,
    /// The first column of dy, where the first layer's part begins.
    pub column: usize,
    /// One per layer: (T, R), from the forward; needed for the gradient of an adapter.
    pub s: Vec<Option<&'a Tensor>>,
    /// (T, K)
    pub dx: Option<&'a mut Tensor>,
    /// One per layer.
    pub grads: Vec<LinearGrads<'a>>,
}

impl<'a> LinearsBackward<'a> {
    /// The layers, each with the first column of its part of dy.
    pub fn side_by_side(&self) -> impl Iterator<Item = (usize, &'a Linear<'a>)> + use<'a> {
        side_by_side(self.layers, self.column)
    }
}

impl Operands for LinearsBackward<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("linear_backward", types);
        door.one_a_layer(self.layers, self.s.len())?;
        door.one_a_layer(self.layers, self.grads.len())?;
        for (((column, layer), s), grads) in self.side_by_side().zip(&self.s).zip(&self.grads) {
            let [t, n, k] = door.linear(self.x, layer)?;
            door.columns("dy (T, >= column + N)", self.dy, t, column, n)?;
            if let Some(dx) = self.dx.as_deref() {
                door.output("dx (T, K)", dx, &[t, k])?;
            }
            if let Some((da, db)) = &grads.lora {
                let lora = door.given("adapter gradients are wanted without an adapter", layer.lora.as_ref())?;
                let r = lora.a.rows();
                door.input("s (T, R)", door.given("adapter gradients need s (T, R)", *s)?, &[t, r])?;
                door.accumulated("da (R, K)", da, &[r, k])?;
                door.accumulated("db (N, R)", db, &[n, r])?;
            }
            if let Some(dw) = &grads.w {
                door.accumulated("dw (N, K)", dw, &[n, k])?;
            }
            if let Some(dbias) = &grads.bias {
                door.accumulated("dbias (N)", dbias, &[n])?;
            }
        }
        Ok(())
    }
}

/// w += scale * B A, rounded to w's type.
pub struct MergeLora<'a> {
    /// (N, K), any float type.
    pub w: &'a mut Tensor,
    /// The adapter to merge.
    pub lora: Lora<'a>,
}

impl Operands for MergeLora<'_> {
    fn check(&self, _: Types) -> Result<()> {
        let door = door("merge_lora", self.w.dtype());
        let [n, k] = door.matrix("w (N, K)", self.w)?;
        door.parameter("w (N, K)", self.w, &[n, k])?;
        door.writable("w (N, K)", self.w)?;
        door.lora(&self.lora, n, k)
    }
}
