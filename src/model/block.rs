//! One transformer block: its forward and its backward side by side, over the backend's ops. Training, scoring and
//! decoding run the same code; only where attention finds its keys differs.

use crate::backend::Backend;
use crate::backend::ops::{self, Heads, Linear, LinearGrads, QkNorm, Segments};
use crate::error::Result;
use crate::model::kv_cache::PagedPlan;
use crate::model::parameters::{LayerPlaces, Module};
use crate::model::policy::{Gradients, Policy, two};
use crate::tensor::{DType, Tensor};
use std::ops::Range;

/// Linear layers that share their input, with their outputs side by side.
const QKV: &[Module] = &[Module::Q, Module::K, Module::V];
const O: &[Module] = &[Module::O];
const GATE_UP: &[Module] = &[Module::Gate, Module::Up];
const DOWN: &[Module] = &[Module::Down];

/// A residual stream and the reciprocal of its RMS. The normalised values are computed again where they are needed.
#[derive(Default)]
pub(super) struct Normed {
    pub sum: Tensor,  // (T, C)
    pub rstd: Tensor, // (T)
}

/// Values that no layer keeps: they are as large as what is kept, and cheap to compute again from it.
#[derive(Default)]
pub(super) struct Passing {
    pub y: Tensor,     // (T, C), the norm that the next layer reads, or the final one
    pub mid_y: Tensor, // (T, C), the norm after attention
    pub act: Tensor,   // (T, F)
    pub out: Tensor,   // (T, C)
}

/// Values that the forward of one block leaves for its backward.
#[derive(Default)]
pub(super) struct BlockBuffers {
    pub qkv: Tensor,            // (T, D), normalised and rotated
    pub raw: Option<Tensor>,    // (T, (NH + NKV) HS), q and k before their norm
    pub o: Tensor,              // (T, NH HS)
    pub lse: Tensor,            // (NH, T)
    pub mid: Normed,            // after attention
    pub gate_up: Tensor,        // (T, 2F)
    pub s: [Option<Tensor>; 7], // (T, R) x A^T of each adapted linear layer
}

/// Buffers for the backward of any block.
#[derive(Default)]
pub(super) struct Scratch {
    pub dsum: Tensor,     // (T, C), carried from block to block
    pub dnorm: Tensor,    // (T, C)
    pub dgate_up: Tensor, // (T, 2F)
    pub dact: Tensor,     // (T, F)
    pub dout: Tensor,     // (T, NH HS)
    pub dqkv: Tensor,     // (T, D)
    pub rstd: Tensor,     // (T), of a norm computed again
}

/// Where attention finds its keys and values.
pub(super) enum Attention<'a> {
    /// In the batch itself.
    Packed(Segments<'a>),
    /// In a paged cache, to which the batch's own keys and values are appended first.
    Paged {
        plan: &'a PagedPlan,
        k: &'a mut Tensor,
        v: &'a mut Tensor,
        block_size: usize,
        copied: &'a mut Tensor, // (X, D)
    },
}

/// Operands of linear layers in their backward: input, the adapters' s of all modules, and the gradients.
struct Sides<'a> {
    x: &'a Tensor,
    s: &'a [Option<Tensor>],
    dy: &'a Tensor,
    dx: Option<&'a mut Tensor>,
}

/// The parameters of one block, in the form that the ops take.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub policy: Policy<'a>,
    pub layer: usize,
}

impl<'a> Block<'a> {
    fn places(&self) -> &'a LayerPlaces {
        &self.policy.model.places.layers[self.layer]
    }

    fn weight(&self, place: usize) -> &'a Tensor {
        &self.policy.model.weights[place]
    }

    fn heads(&self) -> Heads {
        self.policy.model.config.heads
    }

    fn eps(&self) -> f32 {
        self.policy.model.config.rms_eps
    }

    fn qk_norm(&self) -> Option<QkNorm<'a>> {
        let (q, k) = self.places().qk_norm?;
        Some(QkNorm { q: self.weight(q), k: self.weight(k), eps: self.eps() })
    }

    fn parameters(&self, module: Module) -> Linear<'a> {
        let (w, bias) = self.places().linears[module as usize];
        Linear {
            w: self.weight(w),
            bias: bias.map(|place| self.weight(place)),
            lora: self.policy.adapter.and_then(|adapter| adapter.lora(self.layer, module)),
        }
    }

    fn linears(&self, modules: &[Module]) -> Vec<Linear<'a>> {
        modules.iter().map(|&module| self.parameters(module)).collect()
    }

    /// Computes y = x through `modules`, outputs side by side.
    fn linear(
        &self,
        be: &dyn Backend,
        modules: &[Module],
        x: &Tensor,
        y: &mut Tensor,
        s: &mut [Option<Tensor>],
    ) -> Result<()> {
        let s = s[range(modules)].iter_mut().map(Option::as_mut).collect();
        ops::Linears { x, layers: &self.linears(modules), y, column: 0, s }.run(be)
    }

    /// Computes the backward of `linear`.
    fn linear_backward(&self, be: &dyn Backend, modules: &[Module], sides: Sides, grads: &mut Gradients) -> Result<()> {
        let Sides { x, s, dy, dx } = sides;
        let s = s[range(modules)].iter().map(Option::as_ref).collect();
        let grads = self.linear_grads(grads, modules);
        ops::LinearsBackward { x, layers: &self.linears(modules), dy, column: 0, s, dx, grads }.run(be)
    }

    fn linear_grads<'g>(&self, grads: &'g mut Gradients, modules: &[Module]) -> Vec<LinearGrads<'g>> {
        let Gradients { adapter, weights } = grads;
        let mut adapter: Vec<_> = adapter.iter_mut().flatten().map(Some).collect();
        let mut weights: Vec<_> = weights.iter_mut().flatten().map(Some).collect();
        let mut of = |module: Module| {
            let pair = self.policy.adapter.and_then(|adapter| adapter.place(self.layer, module));
            let (w, bias) = self.places().linears[module as usize];
            LinearGrads {
                lora: pair.and_then(|a| take(&mut adapter, a).zip(take(&mut adapter, a + 1))),
                w: take(&mut weights, w),
                bias: bias.and_then(|bias| take(&mut weights, bias)),
            }
        };
        modules.iter().map(|&module| of(module)).collect()
    }

    /// Computes the norm of `input` that this block reads, into `p.y`.
    pub fn normalise(&self, be: &dyn Backend, input: &Normed, p: &mut Passing, rstd: &mut Tensor) -> Result<()> {
        let w = self.weight(self.places().input_norm);
        ops::AddRmsnorm { residual: &input.sum, x: None, w, eps: self.eps(), sum: None, y: &mut p.y, rstd }.run(be)
    }

    /// Computes the residual stream after this block into `next`, from `input`, whose norm is `p.y`; then `p.y` is the
    /// norm that follows.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        be: &dyn Backend,
        positions: &Tensor,
        attention: Attention,
        input: &Normed,
        b: &mut BlockBuffers,
        p: &mut Passing,
        next: &mut Normed,
    ) -> Result<()> {
        let (heads, table) = (self.heads(), &self.policy.model.rope_table);
        let Passing { y, mid_y, act, out } = p;
        self.linear(be, QKV, y, &mut b.qkv, &mut b.s)?;
        ops::QkNormRope { qkv: &mut b.qkv, heads, norm: self.qk_norm(), positions, table, raw: b.raw.as_mut() }
            .run(be)?;
        match attention {
            Attention::Packed(segments) => {
                ops::Attention { qkv: &b.qkv, heads, segments: &segments, o: &mut b.o, lse: &mut b.lse }.run(be)?
            }
            Attention::Paged { plan, k, v, block_size, copied } => {
                ops::KvAppend { qkv: &b.qkv, heads, slots: &plan.slots, k_cache: k, v_cache: v }.run(be)?;
                if let Some((rows, slots)) = &plan.copies {
                    ops::GatherRows { x: &b.qkv, rows, y: copied }.run(be)?;
                    ops::KvAppend { qkv: copied, heads, slots, k_cache: k, v_cache: v }.run(be)?;
                }
                let (table, lens, cu_q) = (&plan.block_table, &plan.lens, &plan.cu_q);
                ops::AttentionPaged {
                    qkv: &b.qkv,
                    heads,
                    k_cache: k,
                    v_cache: v,
                    block_size,
                    block_table: table,
                    lens,
                    cu_q,
                    o: &mut b.o,
                }
                .run(be)?;
            }
        }
        self.linear(be, O, &b.o, out, &mut b.s)?;
        let (mid, post_w) = (&mut b.mid, self.weight(self.places().post_norm));
        ops::AddRmsnorm {
            residual: &input.sum,
            x: Some(out),
            w: post_w,
            eps: self.eps(),
            sum: Some(&mut mid.sum),
            y: mid_y,
            rstd: &mut mid.rstd,
        }
        .run(be)?;
        self.linear(be, GATE_UP, mid_y, &mut b.gate_up, &mut b.s)?;
        ops::Swiglu { gate_up: &b.gate_up, y: act }.run(be)?;
        self.linear(be, DOWN, act, out, &mut b.s)?;
        let places = &self.policy.model.places;
        let next_w = self.weight(places.layers.get(self.layer + 1).map_or(places.norm, |next| next.input_norm));
        ops::AddRmsnorm {
            residual: &mid.sum,
            x: Some(out),
            w: next_w,
            eps: self.eps(),
            sum: Some(&mut next.sum),
            y,
            rstd: &mut next.rstd,
        }
        .run(be)
    }

    /// Computes the backward of `forward`; norms and SwiGLU are computed again, into `p`. `d.dsum` is the gradient of
    /// the stream after this block and becomes that of the stream before it; the latter is left out when `wants_input`
    /// is false. Accumulates into `grads`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        be: &dyn Backend,
        positions: &Tensor,
        segments: &Segments,
        input: &Normed,
        b: &BlockBuffers,
        p: &mut Passing,
        d: &mut Scratch,
        grads: &mut Gradients,
        wants_input: bool,
    ) -> Result<()> {
        let (heads, table) = (self.heads(), &self.policy.model.rope_table);

        be.fill(&mut d.dact, 0.0)?;
        ops::Swiglu { gate_up: &b.gate_up, y: &mut p.act }.run(be)?;
        self.linear_backward(be, DOWN, Sides { x: &p.act, s: &b.s, dy: &d.dsum, dx: Some(&mut d.dact) }, grads)?;
        ops::SwigluBackward { gate_up: &b.gate_up, dy: &d.dact, dgate_up: &mut d.dgate_up }.run(be)?;
        be.fill(&mut d.dnorm, 0.0)?;
        let post = self.places().post_norm;
        ops::AddRmsnorm {
            residual: &b.mid.sum,
            x: None,
            w: self.weight(post),
            eps: self.eps(),
            sum: None,
            y: &mut p.mid_y,
            rstd: &mut d.rstd,
        }
        .run(be)?;
        let sides = Sides { x: &p.mid_y, s: &b.s, dy: &d.dgate_up, dx: Some(&mut d.dnorm) };
        self.linear_backward(be, GATE_UP, sides, grads)?;
        let dw = grads.weights.as_mut().map(|list| &mut list[post]);
        ops::AddRmsnormBackward {
            sum: &b.mid.sum,
            w: self.weight(post),
            rstd: &b.mid.rstd,
            dy: &d.dnorm,
            dsum: &mut d.dsum,
            dw,
        }
        .run(be)?;

        be.fill(&mut d.dout, 0.0)?;
        self.linear_backward(be, O, Sides { x: &b.o, s: &b.s, dy: &d.dsum, dx: Some(&mut d.dout) }, grads)?;
        ops::AttentionBackward { qkv: &b.qkv, o: &b.o, lse: &b.lse, dout: &d.dout, heads, segments, dqkv: &mut d.dqkv }
            .run(be)?;
        let dnorms = match (self.places().qk_norm, &mut grads.weights) {
            (Some((q, k)), Some(list)) => Some(two(list, q, k)),
            _ => None,
        };
        ops::QkNormRopeBackward {
            dqkv: &mut d.dqkv,
            heads,
            norm: self.qk_norm(),
            positions,
            table,
            raw: b.raw.as_ref(),
            dnorm: dnorms,
        }
        .run(be)?;
        be.fill(&mut d.dnorm, 0.0)?;
        self.normalise(be, input, p, &mut d.rstd)?;
        let dx = wants_input.then_some(&mut d.dnorm);
        self.linear_backward(be, QKV, Sides { x: &p.y, s: &b.s, dy: &d.dqkv, dx }, grads)?;
        if !wants_input {
            return Ok(());
        }
        let norm = self.places().input_norm;
        let dw = grads.weights.as_mut().map(|list| &mut list[norm]);
        ops::AddRmsnormBackward {
            sum: &input.sum,
            w: self.weight(norm),
            rstd: &input.rstd,
            dy: &d.dnorm,
            dsum: &mut d.dsum,
            dw,
        }
        .run(be)
    }
}

/// Index range of modules that are consecutive in `Module::ALL`.
fn range(modules: &[Module]) -> Range<usize> {
    let first = modules[0] as usize;
    first..first + modules.len()
}

fn take<'g>(list: &mut [Option<&'g mut Tensor>], place: usize) -> Option<&'g mut Tensor> {
    list.get_mut(place).and_then(Option::take)
}

impl Normed {
    pub fn fit(&mut self, be: &dyn Backend, policy: Policy, rows: usize) -> Result<()> {
        let hidden = policy.model.config.hidden;
        fit(be, &mut self.sum, &[rows, hidden])?;
        fit_as(be, &mut self.rstd, &[rows], be.accumulator())
    }

    pub fn bytes(&self) -> usize {
        bytes(&self.sum) + bytes(&self.rstd)
    }
}

impl Passing {
    pub fn fit(&mut self, be: &dyn Backend, policy: Policy, rows: usize) -> Result<()> {
        let config = &policy.model.config;
        fit(be, &mut self.y, &[rows, config.hidden])?;
        fit(be, &mut self.mid_y, &[rows, config.hidden])?;
        fit(be, &mut self.act, &[rows, config.mlp])?;
        fit(be, &mut self.out, &[rows, config.hidden])
    }

    pub fn bytes(&self) -> usize {
        [&self.y, &self.mid_y, &self.act, &self.out].into_iter().map(bytes).sum()
    }
}

impl BlockBuffers {
    pub fn fit(&mut self, be: &dyn Backend, policy: Policy, rows: usize) -> Result<()> {
        let config = &policy.model.config;
        let Heads { nh, nkv, hs } = config.heads;
        fit(be, &mut self.qkv, &[rows, config.heads.qkv_width()])?;
        fit_option(be, &mut self.raw, config.qk_norm.then_some([rows, (nh + nkv) * hs]))?;
        fit(be, &mut self.o, &[rows, nh * hs])?;
        fit_as(be, &mut self.lse, &[nh, rows], be.accumulator())?;
        self.mid.fit(be, policy, rows)?;
        fit(be, &mut self.gate_up, &[rows, 2 * config.mlp])?;
        for (module, s) in Module::ALL.into_iter().zip(&mut self.s) {
            let lora = policy.adapter.filter(|adapter| adapter.config.modules.contains(&module));
            fit_option(be, s, lora.map(|adapter| [rows, adapter.config.rank]))?;
        }
        Ok(())
    }

    pub fn bytes(&self) -> usize {
        let own = [&self.qkv, &self.o, &self.lse, &self.gate_up].into_iter().chain(&self.raw);
        own.chain(self.s.iter().flatten()).map(bytes).sum::<usize>() + self.mid.bytes()
    }
}

impl Scratch {
    pub fn fit(&mut self, be: &dyn Backend, policy: Policy, rows: usize) -> Result<()> {
        let config = &policy.model.config;
        fit(be, &mut self.dsum, &[rows, config.hidden])?;
        fit(be, &mut self.dnorm, &[rows, config.hidden])?;
        fit(be, &mut self.dgate_up, &[rows, 2 * config.mlp])?;
        fit(be, &mut self.dact, &[rows, config.mlp])?;
        fit(be, &mut self.dout, &[rows, config.heads.nh * config.heads.hs])?;
        fit_as(be, &mut self.rstd, &[rows], be.accumulator())?;
        fit(be, &mut self.dqkv, &[rows, config.heads.qkv_width()])
    }

    pub fn bytes(&self) -> usize {
        let all = [&self.dsum, &self.dnorm, &self.dgate_up, &self.dact, &self.dout, &self.dqkv, &self.rstd];
        all.into_iter().map(bytes).sum()
    }
}

/// Bytes of a buffer's memory, whatever part of it the last pass used.
pub(super) fn bytes(tensor: &Tensor) -> usize {
    tensor.capacity()
}

/// Gives `tensor` this shape in the activation type, in its own memory if that is large enough. The contents are
/// undefined.
pub(super) fn fit(be: &dyn Backend, tensor: &mut Tensor, shape: &[usize]) -> Result<()> {
    fit_as(be, tensor, shape, be.activation())
}

/// Same as `fit`, in `dtype`.
fn fit_as(be: &dyn Backend, tensor: &mut Tensor, shape: &[usize], dtype: DType) -> Result<()> {
    if !tensor.refit(shape, dtype) {
        *tensor = Tensor::default(); // freed first, so that two never live together
        *tensor = be.alloc_unset(shape, dtype)?;
    }
    Ok(())
}

fn fit_option(be: &dyn Backend, slot: &mut Option<Tensor>, shape: Option<[usize; 2]>) -> Result<()> {
    match shape {
        Some(shape) => fit(be, slot.get_or_insert_default(), &shape),
        None => {
            *slot = None;
            Ok(())
        }
    }
}
