//! One transformer block: its forward and its backward side by side, over the backend's ops. Training, scoring and decoding run
//! this same code; only where attention finds its keys differs.

use crate::backend::{Backend, Heads, Linear, LinearGrads, QkNorm, Segments};
use crate::error::Result;
use crate::model::kv_cache::PagedPlan;
use crate::model::parameters::{LayerPlaces, Module};
use crate::model::{Gradients, Policy, two};
use crate::tensor::{DType, Tensor};
use std::ops::Range;

/// Linear layers that share their input, with their outputs side by side.
const QKV: &[Module] = &[Module::Q, Module::K, Module::V];
const O: &[Module] = &[Module::O];
const GATE_UP: &[Module] = &[Module::Gate, Module::Up];
const DOWN: &[Module] = &[Module::Down];

/// A residual stream and what its RMSNorm divides by. The norm itself is computed again where it is needed.
#[derive(Default)]
pub(super) struct Normed {
    pub sum: Tensor,  // (T, C)
    pub rstd: Tensor, // (T)
}

/// What no layer keeps: cheap to compute again from what it keeps, and as large.
#[derive(Default)]
pub(super) struct Passing {
    pub y: Tensor,     // (T, C), the norm that the next layer reads, or the final one
    pub mid_y: Tensor, // (T, C), the norm after attention
    pub act: Tensor,   // (T, F)
    pub out: Tensor,   // (T, C)
}

/// What the forward of one block leaves for its backward.
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

/// What the backward of any block works in.
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
    /// In a paged cache, to which the batch's own are appended first.
    Paged {
        plan: &'a PagedPlan,
        k: &'a mut Tensor,
        v: &'a mut Tensor,
        block_size: usize,
        copied: &'a mut Tensor, // (X, D)
    },
}

/// The parameters of one block, as the ops want them.
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

    fn linear(&self, module: Module) -> Linear<'a> {
        let (w, bias) = self.places().linears[module as usize];
        Linear {
            w: self.weight(w),
            bias: bias.map(|place| self.weight(place)),
            lora: self.policy.adapter.and_then(|adapter| adapter.lora(self.layer, module)),
        }
    }

    fn linears(&self, modules: &[Module]) -> Vec<Linear<'a>> {
        modules.iter().map(|&module| self.linear(module)).collect()
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

    /// The norm of `input` that this block reads, in `p.y`.
    pub fn normalise(&self, be: &dyn Backend, input: &Normed, p: &mut Passing, rstd: &mut Tensor) -> Result<()> {
        let w = self.weight(self.places().input_norm);
        be.add_rmsnorm(&input.sum, None, w, self.eps(), None, &mut p.y, rstd)
    }

    /// From `input`, whose norm is `p.y`, to `next`, the stream after this block, with the norm that follows it in `p.y`.
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
        be.linears(y, &self.linears(QKV), &mut b.qkv, &mut b.s[range(QKV)])?;
        be.qk_norm_rope(&mut b.qkv, heads, self.qk_norm(), positions, table, b.raw.as_mut())?;
        match attention {
            Attention::Packed(segments) => be.attention(&b.qkv, heads, &segments, &mut b.o, &mut b.lse)?,
            Attention::Paged { plan, k, v, block_size, copied } => {
                be.kv_append(&b.qkv, heads, &plan.slots, k, v)?;
                if let Some((rows, slots)) = &plan.copies {
                    be.gather_rows(&b.qkv, rows, copied)?;
                    be.kv_append(copied, heads, slots, k, v)?;
                }
                let (table, lens, cu_q) = (&plan.block_table, &plan.lens, &plan.cu_q);
                be.attention_paged(&b.qkv, heads, k, v, block_size, table, lens, cu_q, &mut b.o)?;
            }
        }
        be.linears(&b.o, &self.linears(O), out, &mut b.s[range(O)])?;
        let (mid, post_w) = (&mut b.mid, self.weight(self.places().post_norm));
        be.add_rmsnorm(&input.sum, Some(out), post_w, self.eps(), Some(&mut mid.sum), mid_y, &mut mid.rstd)?;
        be.linears(mid_y, &self.linears(GATE_UP), &mut b.gate_up, &mut b.s[range(GATE_UP)])?;
        be.swiglu(&b.gate_up, act)?;
        be.linears(act, &self.linears(DOWN), out, &mut b.s[range(DOWN)])?;
        let places = &self.policy.model.places;
        let next_w = self.weight(places.layers.get(self.layer + 1).map_or(places.norm, |next| next.input_norm));
        be.add_rmsnorm(&mid.sum, Some(out), next_w, self.eps(), Some(&mut next.sum), y, &mut next.rstd)
    }

    /// The mirror image; norms and SwiGLU are computed again, into `p`. `d.dsum` is the gradient of the stream after this block and becomes the one before it, which is left out
    /// when `wants_input` is false. Accumulates into `grads`.
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
        let s = |modules: &[Module]| &b.s[range(modules)];

        be.fill(&mut d.dact, 0.0)?;
        be.swiglu(&b.gate_up, &mut p.act)?;
        let dgrads = self.linear_grads(grads, DOWN);
        be.linears_backward(&p.act, &self.linears(DOWN), &d.dsum, s(DOWN), Some(&mut d.dact), dgrads)?;
        be.swiglu_backward(&b.gate_up, &d.dact, &mut d.dgate_up)?;
        be.fill(&mut d.dnorm, 0.0)?;
        let post = self.places().post_norm;
        be.add_rmsnorm(&b.mid.sum, None, self.weight(post), self.eps(), None, &mut p.mid_y, &mut d.rstd)?;
        let dgrads = self.linear_grads(grads, GATE_UP);
        be.linears_backward(&p.mid_y, &self.linears(GATE_UP), &d.dgate_up, s(GATE_UP), Some(&mut d.dnorm), dgrads)?;
        let dw = grads.weights.as_mut().map(|list| &mut list[post]);
        be.add_rmsnorm_backward(&b.mid.sum, self.weight(post), &b.mid.rstd, &d.dnorm, &mut d.dsum, dw)?;

        be.fill(&mut d.dout, 0.0)?;
        let dgrads = self.linear_grads(grads, O);
        be.linears_backward(&b.o, &self.linears(O), &d.dsum, s(O), Some(&mut d.dout), dgrads)?;
        be.attention_backward(&b.qkv, &b.o, &b.lse, &d.dout, heads, segments, &mut d.dqkv)?;
        let dnorms = match (self.places().qk_norm, &mut grads.weights) {
            (Some((q, k)), Some(list)) => Some(two(list, q, k)),
            _ => None,
        };
        be.qk_norm_rope_backward(&mut d.dqkv, heads, self.qk_norm(), positions, table, b.raw.as_ref(), dnorms)?;
        be.fill(&mut d.dnorm, 0.0)?;
        self.normalise(be, input, p, &mut d.rstd)?;
        let (dx, dgrads) = (wants_input.then_some(&mut d.dnorm), self.linear_grads(grads, QKV));
        be.linears_backward(&p.y, &self.linears(QKV), &d.dqkv, s(QKV), dx, dgrads)?;
        if !wants_input {
            return Ok(());
        }
        let norm = self.places().input_norm;
        let dw = grads.weights.as_mut().map(|list| &mut list[norm]);
        be.add_rmsnorm_backward(&input.sum, self.weight(norm), &input.rstd, &d.dnorm, &mut d.dsum, dw)
    }
}

/// The places of modules that follow each other in `Module::ALL`.
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

/// Bytes of a buffer, whatever part of it the last pass used.
pub(super) fn bytes(tensor: &Tensor) -> usize {
    tensor.capacity()
}

/// Gives `tensor` this shape in the activation type, with anything in it: in the memory it has when that is enough.
pub(super) fn fit(be: &dyn Backend, tensor: &mut Tensor, shape: &[usize]) -> Result<()> {
    fit_as(be, tensor, shape, be.activation())
}

/// The same in `dtype`.
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
