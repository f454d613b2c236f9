//! One op at a real shape, ready to be run again and again. Allocates and fills its tensors first; times nothing.

use super::measure::Target;
use super::work::{BLOCK_SIZE, Task, Work};
use crate::backend::{AdamW, Heads, Linear, LinearGrads, Lora, Sampling, Segments};
use crate::error::{Error, Result};
use crate::model::config::RopeConfig;
use crate::model::config::RopeScaling;
use crate::model::index_tensor;
use crate::model::rope;
use crate::tensor::{DType, Tensor};

/// What a row repeats.
pub type Step<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

/// Readies the work of a kernel's row.
pub fn prepare<'a>(target: Target<'a>, work: &Work) -> Result<Step<'a>> {
    let backward = work.mode == "backward";
    match &work.task {
        Task::Linear { t, k, parts, rank } => linear(target, *t, *k, parts, *rank, backward),
        Task::Attention { t, heads } => attention(target, *t, *heads, backward),
        Task::LogProb { m, c, v } => logprob(target, *m, *c, *v, backward),
        Task::Logits { b, c, v } => {
            let be = target.backend;
            let (x, w) = (target.normal(&[*b, *c], 1.0, 1)?, target.normal(&[*v, *c], 0.02, 2)?);
            let mut out = be.alloc(&[*b, *v], be.accumulator())?;
            Ok(Box::new(move || be.logits(&x, &w, &mut out)))
        }
        Task::RmsNorm { t, c } => rmsnorm(target, *t, *c, backward),
        Task::Rope { t, heads } => rotary(target, *t, *heads, backward),
        Task::SwiGlu { t, f } => {
            let be = target.backend;
            let gate_up = target.normal(&[*t, 2 * f], 1.0, 1)?;
            if backward {
                let (dy, mut d) = (target.normal(&[*t, *f], 1.0, 2)?, be.alloc(&[*t, 2 * f], be.activation())?);
                return Ok(Box::new(move || be.swiglu_backward(&gate_up, &dy, &mut d)));
            }
            let mut y = be.alloc(&[*t, *f], be.activation())?;
            Ok(Box::new(move || be.swiglu(&gate_up, &mut y)))
        }
        Task::AdamW { shapes } => adamw(target, shapes),
        Task::SquaredNorm { shapes } => {
            let list = tensors(target, shapes, 1.0)?;
            let be = target.backend;
            Ok(Box::new(move || be.squared_norm(&list.iter().collect::<Vec<_>>()).map(drop)))
        }
        Task::Sample { b, v, filtered } => sample(target, *b, *v, *filtered),
        Task::Paged { b, context, heads } => paged(target, *b, *context, *heads),
        other => Err(Error::system(format!("{other:?} is no kernel"))),
    }
}

fn tensors(target: Target, shapes: &[[usize; 2]], deviation: f32) -> Result<Vec<Tensor>> {
    let one =
        |(i, shape): (usize, &[usize; 2])| target.random(shape, target.backend.accumulator(), deviation, i as u64);
    shapes.iter().enumerate().map(one).collect()
}

/// Layers that share their input, of these widths, as a block has them.
fn linear<'a>(target: Target<'a>, t: usize, k: usize, widths: &[usize], r: usize, backward: bool) -> Result<Step<'a>> {
    let (be, n) = (target.backend, widths.iter().sum());
    let (wide, narrow) = (be.accumulator(), be.activation());
    let each = |one: &dyn Fn(usize, u64) -> Result<Tensor>| {
        widths.iter().enumerate().map(|(i, &n)| one(n, 10 * i as u64)).collect::<Result<Vec<_>>>()
    };
    let w = each(&|n, seed| target.normal(&[n, k], 0.02, seed))?; // one behind the other, as a model's
    let a = each(&|_, seed| target.random(&[r, k], wide, 0.02, seed + 1))?;
    let b = each(&|n, seed| target.random(&[n, r], wide, 0.02, seed + 2))?;
    let s = each(&|_, seed| target.random(&[t, r], narrow, 1.0, seed + 3))?;
    let mut s: Vec<_> = s.into_iter().map(Some).collect();
    let (x, mut y) = (target.normal(&[t, k], 1.0, 100)?, target.normal(&[t, n], 1.0, 101)?);
    if !backward {
        return Ok(Box::new(move || be.linears(&x, &adapted(&w, &a, &b), &mut y, &mut s)));
    }
    let mut dx = be.alloc(&[t, k], narrow)?;
    let (mut da, mut db) = (each(&|_, _| be.alloc(&[r, k], wide))?, each(&|n, _| be.alloc(&[n, r], wide))?);
    Ok(Box::new(move || {
        let pairs = da.iter_mut().zip(&mut db);
        let grads = pairs.map(|pair| LinearGrads { lora: Some(pair), w: None, bias: None }).collect();
        be.linears_backward(&x, &adapted(&w, &a, &b), &y, &s, Some(&mut dx), grads)
    }))
}

fn adapted<'a>(w: &'a [Tensor], a: &'a [Tensor], b: &'a [Tensor]) -> Vec<Linear<'a>> {
    let pairs = a.iter().zip(b);
    w.iter().zip(pairs).map(|(w, (a, b))| Linear { w, bias: None, lora: Some(Lora { a, b, scale: 2.0 }) }).collect()
}

fn attention<'a>(target: Target<'a>, t: usize, heads: Heads, backward: bool) -> Result<Step<'a>> {
    let (be, width) = (target.backend, heads.nh * heads.hs);
    let qkv = target.normal(&[t, heads.qkv_width()], 1.0, 1)?;
    let (cu, parent) = (index_tensor(be, &[2], &[0, t as i32])?, index_tensor(be, &[1], &[-1])?);
    let (mut o, mut lse) = (be.alloc(&[t, width], be.activation())?, be.alloc(&[heads.nh, t], be.accumulator())?);
    if !backward {
        return Ok(Box::new(move || {
            be.attention(&qkv, heads, &Segments { cu_seqlens: &cu, parent: &parent }, &mut o, &mut lse)
        }));
    }
    be.attention(&qkv, heads, &Segments { cu_seqlens: &cu, parent: &parent }, &mut o, &mut lse)?;
    let (dout, mut dqkv) = (target.normal(&[t, width], 1.0, 2)?, be.alloc(&[t, heads.qkv_width()], be.activation())?);
    Ok(Box::new(move || {
        let segments = Segments { cu_seqlens: &cu, parent: &parent };
        be.attention_backward(&qkv, &o, &lse, &dout, heads, &segments, &mut dqkv)
    }))
}

fn logprob<'a>(target: Target<'a>, m: usize, c: usize, v: usize, backward: bool) -> Result<Step<'a>> {
    let be = target.backend;
    let (x, w) = (target.normal(&[m, c], 1.0, 1)?, target.normal(&[v, c], 0.02, 2)?);
    let ids: Vec<i32> = (0..m).map(|i| ((i * 7919) % v) as i32).collect();
    let targets = index_tensor(be, &[m], &ids)?;
    let vector = || be.alloc(&[m], be.accumulator());
    let (mut logp, mut entropy, mut lse) = (vector()?, vector()?, vector()?);
    if !backward {
        return Ok(Box::new(move || be.linear_logprob(&x, &w, &targets, 1.0, &mut logp, &mut entropy, &mut lse)));
    }
    be.linear_logprob(&x, &w, &targets, 1.0, &mut logp, &mut entropy, &mut lse)?;
    let (dlogp, mut dx) = (target.random(&[m], be.accumulator(), 1.0, 3)?, be.alloc(&[m, c], be.activation())?);
    Ok(Box::new(move || be.linear_logprob_backward(&x, &w, &targets, 1.0, &entropy, &lse, &dlogp, None, &mut dx, None)))
}

fn rmsnorm<'a>(target: Target<'a>, t: usize, c: usize, backward: bool) -> Result<Step<'a>> {
    let be = target.backend;
    let (residual, x, w) =
        (target.normal(&[t, c], 1.0, 1)?, target.normal(&[t, c], 1.0, 2)?, target.normal(&[c], 1.0, 3)?);
    let (mut sum, mut y) = (be.alloc(&[t, c], be.activation())?, be.alloc(&[t, c], be.activation())?);
    let mut rstd = be.alloc(&[t], be.accumulator())?;
    if !backward {
        return Ok(Box::new(move || be.add_rmsnorm(&residual, Some(&x), &w, 1e-6, Some(&mut sum), &mut y, &mut rstd)));
    }
    be.fill(&mut rstd, 1.0)?;
    Ok(Box::new(move || be.add_rmsnorm_backward(&residual, &w, &rstd, &x, &mut sum, None)))
}

fn rotary<'a>(target: Target<'a>, t: usize, heads: Heads, backward: bool) -> Result<Step<'a>> {
    let be = target.backend;
    let mut qkv = target.normal(&[t, heads.qkv_width()], 1.0, 1)?;
    let positions = index_tensor(be, &[t], &(0..t as i32).collect::<Vec<_>>())?;
    let table = rope::table(be, &RopeConfig { theta: 1e6, scaling: RopeScaling::None }, t, heads.hs)?;
    if backward {
        return Ok(Box::new(move || be.qk_norm_rope_backward(&mut qkv, heads, None, &positions, &table, None, None)));
    }
    Ok(Box::new(move || be.qk_norm_rope(&mut qkv, heads, None, &positions, &table, None)))
}

fn adamw<'a>(target: Target<'a>, shapes: &[[usize; 2]]) -> Result<Step<'a>> {
    let be = target.backend;
    let (mut p, g, mut m) =
        (tensors(target, shapes, 0.02)?, tensors(target, shapes, 0.01)?, tensors(target, shapes, 0.01)?);
    let mut v = tensors(target, shapes, 0.01)?;
    v.iter_mut().try_for_each(|v| be.fill(v, 1e-4))?; // second moments are not negative
    let step = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01, step: 10, grad_scale: 0.5 };
    Ok(Box::new(move || {
        let mut p: Vec<&mut Tensor> = p.iter_mut().collect();
        let (mut m, mut v): (Vec<_>, Vec<_>) = (m.iter_mut().collect(), v.iter_mut().collect());
        be.adamw(&step, &mut p, &g.iter().collect::<Vec<_>>(), &mut m, &mut v)
    }))
}

fn sample<'a>(target: Target<'a>, b: usize, v: usize, filtered: bool) -> Result<Step<'a>> {
    let be = target.backend;
    let logits = target.random(&[b, v], be.accumulator(), 2.0, 1)?;
    let put = |value: f32| -> Result<Tensor> {
        let mut tensor = be.alloc(&[b], DType::F32)?;
        be.fill(&mut tensor, value)?;
        Ok(tensor)
    };
    let (temperature, top_p) = (put(1.0)?, put(if filtered { 0.9 } else { 1.0 })?);
    let top_k = index_tensor(be, &[b], &vec![if filtered { 50 } else { 0 }; b])?;
    let seed = index_tensor(be, &[b, 2], &(0..2 * b as i32).collect::<Vec<_>>())?;
    let counter = index_tensor(be, &[b], &vec![5; b])?;
    let (mut ids, mut logp) = (be.alloc(&[b], DType::I32)?, be.alloc(&[b], be.accumulator())?);
    Ok(Box::new(move || {
        let sampling =
            Sampling { temperature: &temperature, top_p: &top_p, top_k: &top_k, seed: &seed, counter: &counter };
        be.sample(&logits, &sampling, &mut ids, &mut logp)
    }))
}

fn paged<'a>(target: Target<'a>, b: usize, context: usize, heads: Heads) -> Result<Step<'a>> {
    let (be, pages) = (target.backend, context.div_ceil(BLOCK_SIZE));
    let cache = [b * pages * BLOCK_SIZE, heads.nkv * heads.hs];
    let (k, v) = (target.normal(&cache, 1.0, 1)?, target.normal(&cache, 1.0, 2)?);
    let qkv = target.normal(&[b, heads.qkv_width()], 1.0, 3)?;
    // As after decoding side by side: page p of sequence i lies in block p B + i.
    let table: Vec<i32> = (0..b * pages).map(|i| ((i % pages) * b + i / pages) as i32).collect();
    let table = index_tensor(be, &[b, pages], &table)?;
    let lens = index_tensor(be, &[b], &vec![context as i32; b])?;
    let cu = index_tensor(be, &[b + 1], &(0..=b as i32).collect::<Vec<_>>())?;
    let mut o = be.alloc(&[b, heads.nh * heads.hs], be.activation())?;
    Ok(Box::new(move || be.attention_paged(&qkv, heads, &k, &v, BLOCK_SIZE, &table, &lens, &cu, &mut o)))
}
